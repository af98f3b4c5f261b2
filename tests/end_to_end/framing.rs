//! Where messages begin and end: chunks, old clients, `100 Continue`, requests one behind another,
//! bodies that are large or come in pieces.

use crate::backend::{Backend, Gate, Then};
use crate::proxy::{Proxy, Runtime, on_every_runtime};
use crate::relay::keeping;
use crate::wire::{
    End, LAST_CHUNK, Message, STREAM_HEAD, Wire, assert_bytes, chat, chunk, framed, get, ok, post,
};
use std::sync::mpsc;

fn chunked_requests_keep_their_bytes_and_trailers(runtime: Runtime) {
    let (backend, requests) = keeping(ok("hi"));
    let proxy = Proxy::start(runtime, &[&backend]);
    let mut client = proxy.client();
    let head = "POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n";
    let body = "A;ext=\"1\"\r\n{\"model\":\"\r\n4\r\nm\"}\n\r\n00\r\nX-Sum: 1\r\nx-sum: \u{e9}\r\n\
                Content-Length: 9\r\nHost: b\r\n\r\n";
    // Whole, and in single bytes.
    client.send([head, body].concat());
    assert_eq!(client.answer().unwrap().status(), 200);
    client.send(head);
    for byte in body.as_bytes() {
        client.send([*byte]);
    }
    assert_eq!(client.answer().unwrap().status(), 200);
    for request in requests.iter().take(2) {
        let expected =
            [head, "e\r\n{\"model\":\"m\"}\n\r\n0\r\nX-Sum: 1\r\nx-sum: \u{e9}\r\n\r\n"].concat();
        assert_bytes(&request.raw, expected.as_bytes());
    }
    // Without a byte of body.
    client.send([head.as_bytes(), LAST_CHUNK].concat());
    assert_eq!(client.answer().unwrap().status(), 200);
    assert_bytes(&requests.recv().unwrap().raw, [head.as_bytes(), LAST_CHUNK].concat().as_slice());
}

fn chunked_answers_keep_their_chunks_and_trailers(runtime: Runtime) {
    let answer: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
        3\r\nabc\r\n0A\r\n0123456789\r\n1\r\n\n\r\n0\r\nX-Sum: 1\r\nx-sum: \xe9\r\n\r\n";
    let backend = Backend::scripted(&["m"], move |wire, asked| {
        wire.request_with(asked.head).unwrap();
        if asked.number == 0 {
            wire.send(answer);
        } else {
            for byte in answer {
                wire.send([*byte]);
            }
        }
        Then::Keep
    });
    let proxy = Proxy::start(runtime, &[&backend]);
    let mut client = proxy.client();
    for _ in 0..2 {
        client.send(chat("m"));
        assert_bytes(&client.answer().unwrap().raw, answer);
    }
}

fn an_answer_until_the_close_arrives_in_chunks(runtime: Runtime) {
    let backend = Backend::scripted(&["m"], |wire, asked| {
        wire.request_with(asked.head).unwrap();
        wire.send("HTTP/1.0 200 OK\r\nA: b\r\n\r\nsome ");
        wire.send("thing");
        Then::Close
    });
    let proxy = Proxy::start(runtime, &[&backend]);
    let mut client = proxy.client();
    for _ in 0..2 {
        client.send(chat("m"));
        let answer = client.answer().unwrap();
        assert_bytes(
            &answer.head,
            b"HTTP/1.1 200 OK\r\nA: b\r\ntransfer-encoding: chunked\r\n\r\n",
        );
        assert_bytes(&answer.body, b"some thing");
    }
}

fn an_old_client_gets_no_chunks(runtime: Runtime) {
    let backend = Backend::scripted(&["m"], |wire, asked| {
        let text = String::from_utf8(asked.head.clone()).unwrap();
        assert!(text.starts_with("GET /docs HTTP/1.1\r\nHost: 127."), "{text}");
        wire.send([STREAM_HEAD, &chunk("one "), &chunk("two"), LAST_CHUNK].concat());
        Then::Keep
    });
    let proxy = Proxy::start(runtime, &[&backend]);
    for request in
        ["GET /docs HTTP/1.0\r\n\r\n", "GET /docs HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"]
    {
        let mut client = proxy.client();
        client.send(request);
        let answer = client.answer().unwrap();
        assert_eq!(answer.header("transfer-encoding"), None, "{answer:?}");
        assert_eq!(answer.header("connection").as_deref(), Some("close"), "{answer:?}");
        assert_bytes(&answer.body, b"one two");
    }
}

fn an_old_client_may_keep_its_connection(runtime: Runtime) {
    let backend = Backend::named(&["m"], "hi");
    let proxy = Proxy::start(runtime, &[&backend]);
    let mut client = proxy.client();
    for _ in 0..3 {
        client.send("GET /docs HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n");
        let answer = client.answer().unwrap();
        assert_eq!(answer.header("connection").as_deref(), Some("keep-alive"), "{answer:?}");
        assert_bytes(&answer.body, b"hi");
    }
    client.send("GET /docs HTTP/1.0\r\n\r\n");
    assert_bytes(&client.answer().unwrap().body, b"hi");
    assert_eq!(client.end(), End::Closed);
}

fn continue_is_said_here_and_only_when_waited_for(runtime: Runtime) {
    let (backend, requests) = keeping(ok("hi"));
    let proxy = Proxy::start(runtime, &[&backend]);
    let mut client = proxy.client();
    for framing in ["Content-Length: 2", "Transfer-Encoding: chunked"] {
        let head = format!("POST /v1/completions HTTP/1.1\r\nHost: a\r\n{framing}\r\n");
        let body = if framing.contains("chunked") { "2\r\n{}\r\n0\r\n\r\n" } else { "{}" };
        client.send(format!("{head}Expect: 100-continue\r\n\r\n"));
        assert_bytes(&client.head().unwrap(), b"HTTP/1.1 100 Continue\r\n\r\n");
        backend_saw_nothing(&requests);
        client.send(body);
        assert_bytes(&client.answer().unwrap().raw, &ok("hi"));
        assert_bytes(&requests.recv().unwrap().raw, format!("{head}\r\n{body}").as_bytes());
        // The body comes with the head: nobody waits.
        client.send(format!("{head}Expect: 100-continue\r\n\r\n{body}"));
        assert_bytes(&client.answer().unwrap().raw, &ok("hi"));
        assert_bytes(&requests.recv().unwrap().raw, format!("{head}\r\n{body}").as_bytes());
    }
    // What else is expected is the backend's affair, as it is vLLM's.
    let magic = "GET /docs HTTP/1.1\r\nHost: a\r\nExpect: magic\r\n\r\n";
    client.send(magic);
    assert_bytes(&client.answer().unwrap().raw, &ok("hi"));
    assert_bytes(&requests.recv().unwrap().raw, magic.as_bytes());
}

fn backend_saw_nothing(requests: &mpsc::Receiver<Message>) {
    assert!(requests.try_recv().is_err(), "a request came too early");
}

fn informational_answers_pass_to_who_knows_them(runtime: Runtime) {
    const HINTS: &[u8] = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    let backend = Backend::scripted(&["m"], |wire, asked| {
        wire.request_with(asked.head).unwrap();
        wire.send([b"HTTP/1.1 100 Continue\r\n\r\n", HINTS, &ok("hi")].concat());
        Then::Keep
    });
    let proxy = Proxy::start(runtime, &[&backend]);
    let mut client = proxy.client();
    client.send(chat("m"));
    let mut heads = vec![client.head().unwrap(), client.head().unwrap()];
    if heads[0].starts_with(b"HTTP/1.1 100") {
        // The backend's own 100, which a proxy may pass or not.
        heads.remove(0);
        heads.push(client.head().unwrap());
        assert_bytes(&client.exactly(2).unwrap(), b"hi");
    }
    assert_bytes(&heads[0], HINTS);
    let mut client = proxy.client();
    client.send("GET /docs HTTP/1.0\r\n\r\n");
    assert_eq!(client.answer().unwrap().status(), 200);
}

fn fifty_requests_at_once_are_answered_in_order(runtime: Runtime) {
    let backend = Backend::answering(&["m"], |request| match request.body.as_slice() {
        [] => ok(&request.head[4..8]),
        body => ok(body),
    });
    let proxy = Proxy::start(runtime, &[&backend]);
    let mut client = proxy.client();
    let mut all = Vec::new();
    for number in 0..50 {
        match number % 3 {
            0 => all.extend(post("/v1/completions", &format!(r#"{{"user":"{number}"}}"#))),
            1 => all.extend(get(&format!("/{number:03}"))),
            _ => all.extend(
                format!(
                    "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
                     3\r\n{number:03}\r\n0\r\n\r\n"
                )
                .into_bytes(),
            ),
        }
    }
    client.send(&all);
    for number in 0..50 {
        let expected = match number % 3 {
            0 => format!(r#"{{"user":"{number}"}}"#),
            1 => format!("/{number:03}"),
            _ => format!("{number:03}"),
        };
        assert_eq!(client.answer().unwrap().text(), expected);
    }
    assert!(client.is_silent());
}

fn a_request_in_single_bytes_is_one_request(runtime: Runtime) {
    let (backend, requests) = keeping(ok("hi"));
    let proxy = Proxy::start(runtime, &[&backend]);
    let mut client = proxy.client();
    let request = chat("m");
    for byte in &request {
        client.send([*byte]);
    }
    assert_bytes(&client.answer().unwrap().raw, &ok("hi"));
    assert_bytes(&requests.recv().unwrap().raw, &request);
}

fn twenty_megabytes_pass_both_ways(runtime: Runtime) {
    let backend = Backend::answering(&["m"], |request| ok(&request.body));
    let proxy = Proxy::start(runtime, &[&backend]);
    let mut text = String::from(r#"{"prompt":""#);
    while text.len() < 20 << 20 {
        text.push_str(&format!("{} words ", text.len()));
    }
    text.push_str(r#"","model":"m"}"#);
    let client = proxy.client();
    let mut reader = Wire::new(client.stream().try_clone().unwrap());
    let request = post("/v1/completions", &text);
    let sender = std::thread::spawn(move || client.send(request));
    assert_bytes(&reader.answer().unwrap().body, text.as_bytes());
    sender.join().unwrap();
}

fn an_answer_that_comes_during_the_upload_is_no_deadlock(runtime: Runtime) {
    // Sends 20 MB before it reads the request, which is as long.
    let backend = Backend::scripted(&["m"], |wire, asked| {
        let body = vec![b'x'; 20 << 20];
        if wire.try_send(framed("200 OK", &body)).is_err() {
            return Then::Close;
        }
        match wire.request_with(asked.head) {
            Ok(_) => Then::Keep,
            Err(_) => Then::Close,
        }
    });
    let proxy = Proxy::start(runtime, &[&backend]);
    let mut client = proxy.client();
    client.send(post("/v1/completions", &"y".repeat(20 << 20)));
    let answer = client.answer().unwrap();
    assert_eq!(answer.body.len(), 20 << 20);
    // The connection is still good.
    client.send(get("/version"));
    assert_eq!(client.answer().unwrap().status(), 200);
}

fn what_is_sent_far_ahead_waits(runtime: Runtime) {
    // More than the proxy and the kernel hold of it: it is read on when the first is answered.
    let gate = Gate::default();
    let opens = gate.clone();
    let backend = Backend::scripted(&["m"], move |wire, asked| {
        let request = wire.request_with(asked.head).unwrap();
        if asked.number == 0 && !gate.pass() {
            return Then::Close;
        }
        wire.send(ok(&request.body));
        Then::Keep
    });
    let proxy = Proxy::start(runtime, &[&backend]);
    let client = proxy.client();
    let mut reader = Wire::new(client.stream().try_clone().unwrap());
    let body = |number: usize| format!("{number}").repeat(1 << 20);
    let sender = std::thread::spawn(move || {
        for number in 0..8 {
            client.send(post("/v1/completions", &body(number)));
        }
    });
    backend.await_requests(1);
    opens.open();
    for number in 0..8 {
        assert_bytes(&reader.answer().unwrap().body, body(number).as_bytes());
    }
    sender.join().unwrap();
}

fn requests_behind_a_close_are_not_taken(runtime: Runtime) {
    let backend = Backend::named(&["m"], "hi");
    let proxy = Proxy::start(runtime, &[&backend]);
    let mut client = proxy.client();
    let last = "GET /docs HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    client.send([last, last, last].concat());
    assert_bytes(&client.answer().unwrap().body, b"hi");
    assert_eq!(client.end(), End::Closed);
    assert_eq!(backend.requests(), 1);
}

fn a_second_request_waits_for_its_turn(runtime: Runtime) {
    let gate = Gate::default();
    let opens = gate.clone();
    let backend = Backend::scripted(&["m"], move |wire, asked| {
        wire.request_with(asked.head).unwrap();
        if asked.number == 0 && !gate.pass() {
            return Then::Close;
        }
        wire.send(ok(asked.number.to_string()));
        Then::Keep
    });
    let proxy = Proxy::start(runtime, &[&backend]);
    let mut client = proxy.client();
    client.send([chat("m"), chat("m")].concat());
    backend.await_requests(1);
    // Another client is not held up, and this one's second request is not sent before its turn.
    assert_eq!(proxy.ask(&chat("m")), 200);
    assert_eq!(backend.requests(), 2);
    assert!(client.is_silent());
    opens.open();
    assert_eq!(client.answer().unwrap().text(), "0");
    assert_eq!(client.answer().unwrap().text(), "2");
}

on_every_runtime![
    chunked_requests_keep_their_bytes_and_trailers,
    chunked_answers_keep_their_chunks_and_trailers,
    an_answer_until_the_close_arrives_in_chunks,
    an_old_client_gets_no_chunks,
    an_old_client_may_keep_its_connection,
    continue_is_said_here_and_only_when_waited_for,
    informational_answers_pass_to_who_knows_them,
    fifty_requests_at_once_are_answered_in_order,
    a_request_in_single_bytes_is_one_request,
    twenty_megabytes_pass_both_ways,
    an_answer_that_comes_during_the_upload_is_no_deadlock,
    what_is_sent_far_ahead_waits,
    requests_behind_a_close_are_not_taken,
    a_second_request_waits_for_its_turn,
];
