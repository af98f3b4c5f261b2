//! Requests and answers pass to the byte, both ways, in every framing that HTTP/1.x has.

use crate::backend::{Backend, Then};
use crate::proxy::{Proxy, Runtime, on_every_runtime};
use crate::redis_urls::TempPath;
use crate::wire::{End, Message, assert_bytes, chat, get, ok, post};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A backend that keeps the requests it got, as they came, and answers all alike.
pub(crate) fn keeping(answer: impl Into<Vec<u8>>) -> (Backend, mpsc::Receiver<Message>) {
    let answer = answer.into();
    let (sender, requests) = mpsc::channel();
    let backend = Backend::answering(&["m"], move |request| {
        let _ = sender.send(request.clone());
        answer.clone()
    });
    (backend, requests)
}

fn a_plain_request_and_its_answer_pass_to_the_byte(runtime: Runtime) {
    let answer = b"HTTP/1.1 200 OK\r\nDate: never\r\nX-b: 1\r\nx-B: 2\r\nset-Cookie: a=1\r\n\
        X-obs: \xe9\xff\r\nset-Cookie: b=2; c,d\r\nX-empty: \r\nCONTENT-length: 7\r\n\r\n\0\r\n\xff\r\n7";
    let (backend, requests) = keeping(&answer[..]);
    let proxy = Proxy::start(runtime, &[&backend]);
    let mut client = proxy.client();
    for request in [
        &b"POST /v1/chat/completions?a=%2F//b&c HTTP/1.1\r\nX-b: 1\r\nhOsT: Example.test:1\r\n\
           A: \xe9\xff\r\nx-B: 2\r\nX-b: 1\r\nContent-LENGTH: 15\r\nAuthorization: Bearer k\r\n\
           X-Empty: \r\n\r\n{\"model\":\"m\"}\r\n"[..],
        b"DELETE //adapters/../x%zz';[] HTTP/1.1\r\nHost: a\r\ncookie: a=1\r\nCookie: b=2\r\n\
           Content-Length: 3\r\n\r\n\0\xff\n",
        b"GET /docs HTTP/1.1\r\nHost: [::1]:8000\r\nUser-Agent: \r\n\r\n",
        b"M-SEARCH /odd HTTP/1.1\r\nhost: a\r\nContent-Length: 0\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        client.send(request);
        assert_bytes(&client.answer().unwrap().raw, answer);
        assert_bytes(&requests.recv().unwrap().raw, request);
    }
}

fn odd_statuses_and_reasons_pass(runtime: Runtime) {
    let lines: [&[u8]; 10] = [
        b"200 ",
        b"201 Created indeed, 100 %",
        b"299 \xe9t\xe9",
        b"400 Bad Request",
        b"404 not found",
        b"418 I'm a teapot\t!",
        b"499 Gone before",
        b"529 Overloaded",
        b"599 x",
        b"999 Beyond",
    ];
    let backend = Backend::answering(&["m"], move |request| {
        let number: usize = request.text()[12..].trim_end_matches(['}', '"']).parse().unwrap();
        [b"HTTP/1.1 ", lines[number], b"\r\nA: b\r\ncontent-length: 2\r\n\r\nhi"].concat()
    });
    let proxy = Proxy::start(runtime, &[&backend]);
    let mut client = proxy.client();
    for (number, line) in lines.iter().enumerate() {
        client.send(post("/v1/completions", &format!(r#"{{"user":"abc{number}"}}"#)));
        let expected = [b"HTTP/1.1 ", *line, b"\r\nA: b\r\ncontent-length: 2\r\n\r\nhi"].concat();
        assert_bytes(&client.answer().unwrap().raw, &expected);
    }
}

fn answers_without_a_body_pass(runtime: Runtime) {
    let answers: [(&[u8], bool); 4] = [
        (b"HTTP/1.1 204 No Content\r\nA: b\r\n\r\n", false),
        (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 99\r\netag: x\r\n\r\n", false),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n", true),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", true),
    ];
    let backend = Backend::scripted(&["m"], move |wire, asked| {
        wire.send(answers[asked.number].0);
        Then::Keep
    });
    let proxy = Proxy::start(runtime, &[&backend]);
    // One connection: a body that is waited for, or left over, would spoil what follows.
    let mut client = proxy.client();
    for (answer, head) in answers {
        let method = if head { "HEAD" } else { "GET" };
        client.send(format!("{method} /docs HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_bytes(&client.answer_to_head().unwrap().raw, answer);
    }
}

fn hop_by_hop_headers_end_here(runtime: Runtime) {
    let (backend, requests) = keeping(
        &b"HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Hop\r\nKeep-Alive: timeout=5\r\nX-Hop: 1\r\n\
           Proxy-Connection: x\r\nUpgrade: h2c\r\nX-Stays: 1\r\ncontent-length: 2\r\n\r\nhi"[..],
    );
    let proxy = Proxy::start(runtime, &[&backend]);
    let mut client = proxy.client();
    client.send(
        "POST /v1/completions HTTP/1.1\r\nHost: a\r\nConnection: X-Hop, keep-alive, Content-Length\r\n\
         x-hop: 1\r\nKeep-Alive: 5\r\nTE: trailers\r\nProxy-Connection: x\r\nUpgrade: h2c\r\n\
         HTTP2-Settings: x\r\nExpect: 100-continue\r\nX-Stays: 1\r\nContent-Length: 2\r\n\r\n{}",
    );
    assert_bytes(
        &client.answer().unwrap().raw,
        b"HTTP/1.1 200 OK\r\nX-Stays: 1\r\ncontent-length: 2\r\n\r\nhi",
    );
    assert_bytes(
        &requests.recv().unwrap().raw,
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nHTTP2-Settings: x\r\nX-Stays: 1\r\n\
          Content-Length: 2\r\n\r\n{}",
    );
}

fn close_is_said_and_done(runtime: Runtime) {
    let (backend, requests) = keeping(ok("hi"));
    let proxy = Proxy::start(runtime, &[&backend]);
    let mut client = proxy.client();
    client.send("GET /docs HTTP/1.1\r\nHost: a\r\nconnection: Close\r\n\r\n");
    let answer = client.answer().unwrap();
    assert_eq!(answer.header("connection").as_deref(), Some("close"), "{answer:?}");
    assert_eq!(client.end(), End::Closed);
    assert_bytes(&requests.recv().unwrap().raw, b"GET /docs HTTP/1.1\r\nHost: a\r\n\r\n");
}

fn a_target_in_absolute_form_names_the_host(runtime: Runtime) {
    let (backend, requests) = keeping(ok("hi"));
    let proxy = Proxy::start(runtime, &[&backend]);
    let mut client = proxy.client();
    client.send("GET http://other:1/docs?x HTTP/1.1\r\nA: b\r\nHost: a\r\n\r\n");
    assert_eq!(client.answer().unwrap().status(), 200);
    assert_bytes(
        &requests.recv().unwrap().raw,
        b"GET /docs?x HTTP/1.1\r\nA: b\r\nHost: other:1\r\n\r\n",
    );
}

fn a_prefix_goes_before_every_target(runtime: Runtime) {
    let (backend, requests) = keeping(ok("hi"));
    let upstream = format!("{}/some/where", backend.upstream());
    let proxy = Proxy::before(runtime, &[], &[upstream]);
    proxy.await_entries("backend is up", 1);
    let mut client = proxy.client();
    client.send(get("/docs?x=/y"));
    assert_eq!(client.answer().unwrap().status(), 200);
    assert_bytes(
        &requests.recv().unwrap().raw,
        b"GET /some/where/docs?x=/y HTTP/1.1\r\nHost: proxy.test\r\n\r\n",
    );
}

fn connections_to_backends_are_used_again(runtime: Runtime) {
    let connections = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&connections);
    let backend = Backend::scripted(&["m"], move |wire, asked| {
        seen.lock().unwrap().push((asked.connection, Instant::now()));
        wire.request_with(asked.head).unwrap();
        wire.send(ok("hi"));
        Then::Keep
    });
    let proxy = Proxy::start(runtime, &[&backend]);
    // One client connection is served by one thread, which has one pool.
    let mut client = proxy.client();
    for _ in 0..20 {
        client.send(chat("m"));
        assert_bytes(&client.answer().unwrap().body, b"hi");
    }
    let requests = connections.lock().unwrap().clone();
    for pair in requests.windows(2) {
        let [(before, asked), (now, again)] = [pair[0], pair[1]];
        // One that was idle for 4 s may be closed by the backend at any moment.
        let is_old = again - asked >= Duration::from_secs(4);
        assert!(before == now || is_old, "{requests:?}");
    }
}

fn a_unix_socket_is_an_upstream(runtime: Runtime) {
    use std::io::{Read, Write};
    let path = TempPath::new("e2e.sock");
    let _ = std::fs::remove_file(path.as_str());
    let listener = std::os::unix::net::UnixListener::bind(path.as_str()).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let (mut head, mut byte) = (Vec::new(), [0]);
                while !head.ends_with(b"\r\n\r\n") {
                    stream.read_exact(&mut byte).unwrap();
                    head.push(byte[0]);
                }
                let models = format!(r#"{{"data":[{}]}}"#, crate::backend::card("m"));
                let path = head.split(|byte| *byte == b' ').nth(1).unwrap();
                stream.write_all(&ok(if path == b"/v1/models" { models.as_bytes() } else { path }))
            });
        }
    });
    let upstream = format!("unix://{}", path.as_str());
    let proxy = Proxy::before(runtime, &[], &[upstream]);
    proxy.await_entries("backend is up", 1);
    let mut client = proxy.client();
    client.send(get("/some/path"));
    assert_eq!(client.answer().unwrap().text(), "/some/path");
}

on_every_runtime![
    a_plain_request_and_its_answer_pass_to_the_byte,
    odd_statuses_and_reasons_pass,
    answers_without_a_body_pass,
    hop_by_hop_headers_end_here,
    close_is_said_and_done,
    a_target_in_absolute_form_names_the_host,
    a_prefix_goes_before_every_target,
    connections_to_backends_are_used_again,
    a_unix_socket_is_an_upstream,
];
