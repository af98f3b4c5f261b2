//! Backends that answer what no server should: garbage, too early, too much, too little, never.
//! The client gets a proper answer or a broken one, and nobody gets another one's bytes.

use crate::backend::{Backend, Gate, Then};
use crate::proxy::{Proxy, Runtime, eventually, on_every_runtime};
use crate::sockets::await_arrival;
use crate::wire::{
    End, LAST_CHUNK, STREAM_HEAD, assert_bytes, chat, chunk, framed, get, header, ok, post, status,
};
use std::time::{Duration, Instant};

/// Sends these bytes as its answer, and keeps the connection.
fn saying(answer: impl Into<Vec<u8>>) -> Backend {
    let answer = answer.into();
    Backend::answering(&["m"], move |_| answer.clone())
}

fn nonsense_is_a_bad_gateway(runtime: Runtime) {
    let long = |line: &[u8], times: usize| [b"HTTP/1.1 200 OK\r\n", &*line.repeat(times)].concat();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("another protocol", b"SSH-2.0-OpenSSH_9.6\r\n\r\n".to_vec()),
        ("zeros", vec![0; 4096]),
        ("TLS", b"\x15\x03\x03\x00\x02\x02\x46\r\n\r\n".to_vec()),
        ("an empty line first", [b"\r\n", &*ok("hi")].concat()),
        ("HTTP/2", b"HTTP/2 200 OK\r\ncontent-length: 0\r\n\r\n".to_vec()),
        ("bare LF", b"HTTP/1.1 200 OK\ncontent-length: 0\n\n".to_vec()),
        ("status of two digits", b"HTTP/1.1 20 OK\r\ncontent-length: 0\r\n\r\n".to_vec()),
        ("status of four digits", b"HTTP/1.1 2000 OK\r\ncontent-length: 0\r\n\r\n".to_vec()),
        ("two lengths", head("content-length: 2\r\ncontent-length: 2")),
        ("two different lengths", head("content-length: 2\r\ncontent-length: 3")),
        ("a list of lengths", head("content-length: 2, 2")),
        ("a length with a sign", head("content-length: +2")),
        ("a length beyond numbers", head("content-length: 99999999999999999999")),
        ("a length and chunks", head("content-length: 2\r\ntransfer-encoding: chunked")),
        ("chunks twice", head("transfer-encoding: chunked\r\ntransfer-encoding: chunked")),
        ("unknown coding", head("transfer-encoding: gzip, chunked")),
        ("a folded line", head("a: b\r\n c\r\ncontent-length: 2")),
        ("a blank before a colon", head("content-length : 2")),
        ("a control character", head("a: \x01\r\ncontent-length: 2")),
        ("a bare CR", head("a: b\rc: d\r\ncontent-length: 2")),
        ("a chunk size that is none", [STREAM_HEAD, b"xyz\r\n"].concat()),
        ("a chunk size with a sign", [STREAM_HEAD, b"+2\r\nhi\r\n"].concat()),
        ("a chunk size beyond numbers", [STREAM_HEAD, b"10000000000000000\r\n"].concat()),
        ("switched protocols unasked", b"HTTP/1.1 101 X\r\nUpgrade: x\r\n\r\nbytes".to_vec()),
        ("informational for ever", b"HTTP/1.1 103 Early Hints\r\n\r\n".repeat(1_000)),
        ("a head without an end", long(b"a: bcdefghijklmnopqrstuvwxyz\r\n", 100_000)),
        ("headers without number", [long(b"a: b\r\n", 10_000), b"\r\n".to_vec()].concat()),
    ];
    // One proxy for all, and a backend each, since a backend that fails so is soon down.
    let backends: Vec<_> = cases
        .iter()
        .map(|(name, answer)| {
            let answer = answer.clone();
            Backend::answering(&[name], move |_| answer.clone())
        })
        .collect();
    let proxy = Proxy::start(runtime, &backends.iter().collect::<Vec<_>>());
    let mut wrong = Vec::new();
    for (name, _) in &cases {
        let mut client = proxy.client();
        client.send(chat(name));
        let mut answer = client.answer();
        while answer.as_ref().is_ok_and(|answer| answer.status() < 200) {
            answer = client.answer();
        }
        match answer {
            Ok(answer) if answer.status() == 502 => {
                client.send(get("/version"));
                assert_eq!(client.answer().unwrap().status(), 200, "{name}");
            }
            answer => wrong.push(format!("{name}: {answer:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn head(lines: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\n{lines}\r\n\r\nhi").into_bytes()
}

fn nonsense_is_tried_elsewhere(runtime: Runtime) {
    let bad = saying(head("content-length: 2, 3"));
    let good = Backend::named(&["m"], "hi");
    let proxy = Proxy::with(runtime, &["--policy", "round-robin"], &[&bad, &good]);
    let mut client = proxy.client();
    client.send(chat("m"));
    assert_bytes(&client.answer().unwrap().raw, &ok("hi"));
    assert_eq!((bad.requests(), good.requests()), (1, 1));
}

fn chunks_that_go_wrong_break_the_answer(runtime: Runtime) {
    for (name, wrong) in [
        ("a size that is none", &b"xyz\r\n"[..]),
        ("longer than its size", b"2\r\nhi!\r\n0\r\n\r\n"),
        ("a bare LF behind a size", b"2\nhi\r\n0\r\n\r\n"),
        ("a bare LF behind data", b"2\r\nhi\n0\r\n\r\n"),
        ("a bare LF in trailers", b"0\r\nX: 1\n\r\n"),
        ("a trailer that is none", b"0\r\nnothing\r\n\r\n"),
    ] {
        let begun = [STREAM_HEAD, &chunk("data: 1\n\n")].concat();
        let (first, seen) = (begun.clone(), Gate::default());
        let opens = seen.clone();
        let backend = Backend::scripted(&["m"], move |wire, asked| {
            wire.request_with(asked.head).unwrap();
            wire.send(&first);
            if seen.pass() {
                wire.send(wrong);
            }
            Then::Keep
        });
        let proxy = Proxy::start(runtime, &[&backend]);
        let mut client = proxy.client();
        client.send(chat("m"));
        assert_bytes(&client.exactly(begun.len()).unwrap(), &begun);
        opens.open();
        let (rest, end) = client.rest();
        assert!(!rest.ends_with(LAST_CHUNK), "{name}: {}", rest.escape_ascii());
        assert_eq!(end, End::Closed, "{name}");
    }
}

fn two_answers_to_one_request_are_one(runtime: Runtime) {
    for (name, first, surplus) in [
        ("a whole one", ok("right"), framed("200 OK", "stolen")),
        ("half a one", ok("right"), b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsto".to_vec()),
        ("bytes beyond the length", ok("right"), b"stolen".to_vec()),
        ("one behind chunks", [STREAM_HEAD, &chunk("right"), LAST_CHUNK].concat(), ok("stolen")),
        ("one behind none", b"HTTP/1.1 204 x\r\n\r\n".to_vec(), ok("stolen")),
    ] {
        let answer = first.clone();
        let backend = Backend::scripted(&["m"], move |wire, asked| {
            wire.request_with(asked.head).unwrap();
            if asked.number % 2 == 0 {
                wire.send([&*answer, &surplus].concat());
            } else {
                wire.send(ok("next"));
            }
            Then::Keep
        });
        let proxy = Proxy::start(runtime, &[&backend]);
        let mut client = proxy.client();
        for _ in 0..5 {
            client.send(chat("m"));
            let answer = client.answer().unwrap_or_else(|end| panic!("{name}: {end:?}"));
            assert_bytes(&answer.raw, &first);
            client.send(chat("m"));
            let answer = client.answer().unwrap_or_else(|end| panic!("{name}: {end:?}"));
            assert_bytes(&answer.raw, &ok("next"));
        }
    }
}

fn bytes_that_nobody_asked_for_are_nobodys_answer(runtime: Runtime) {
    // They come when the client has its answer, so on a connection that is idle.
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let (done, sent) = std::sync::mpsc::channel::<()>();
    let gone = std::sync::Mutex::new(gone);
    let backend = Backend::scripted(&["m"], move |wire, asked| {
        wire.request_with(asked.head).unwrap();
        wire.send(ok("right"));
        if asked.number % 2 == 0 {
            let _ = gone.lock().unwrap().recv_timeout(crate::wire::PATIENCE);
            let _ = wire.try_send(ok("stolen"));
            await_arrival(wire.stream());
            let _ = done.send(());
        }
        Then::Keep
    });
    let proxy = Proxy::start(runtime, &[&backend]);
    let mut client = proxy.client();
    for _ in 0..20 {
        client.send(chat("m"));
        assert_bytes(&client.answer().unwrap().raw, &ok("right"));
        go.send(()).unwrap();
        sent.recv_timeout(crate::wire::PATIENCE).unwrap();
        client.send(chat("m"));
        assert_bytes(&client.answer().unwrap().raw, &ok("right"));
    }
}

fn an_answer_before_the_request_is_whole_passes(runtime: Runtime) {
    // 20 MB are on their way, and it reads them too late or never.
    let refusal = framed("413 Too Much", r#"{"error":"too much"}"#);
    for then in [Then::Keep, Then::Close, Then::Reset] {
        let answer = refusal.clone();
        let backend = Backend::scripted(&["m"], move |wire, asked| {
            if asked.head.starts_with(b"GET") {
                wire.send(ok("hi"));
                return Then::Keep;
            }
            wire.send(&answer);
            await_arrival(wire.stream());
            if then == Then::Keep && wire.request_with(asked.head).is_err() {
                return Then::Close;
            }
            then
        });
        let proxy = Proxy::start(runtime, &[&backend]);
        let mut client = proxy.client();
        client.send(post("/v1/completions", &"x".repeat(20 << 20)));
        let start = Instant::now();
        let answer = client.answer().unwrap_or_else(|end| panic!("{then:?}: {end:?}"));
        println!("413 during the upload, {then:?}: passed after {:?}", start.elapsed());
        if then == Then::Reset {
            // It may be seen before the answer is read.
            assert!(matches!(answer.status(), 413 | 502), "{answer:?}");
        } else {
            assert_bytes(&answer.raw, &refusal);
        }
        client.send(get("/docs"));
        assert_eq!(client.answer().unwrap().status(), 200);
    }
}

fn silence_is_a_gateway_timeout(runtime: Runtime) {
    let quiet = Backend::scripted(&["quiet"], |wire, asked| {
        let _ = wire.request_with(asked.head);
        let _ = wire.rest();
        Then::Close
    });
    let half = Backend::scripted(&["half"], |wire, asked| {
        let _ = wire.request_with(asked.head);
        wire.send("HTTP/1.1 200 OK\r\n");
        let _ = wire.rest();
        Then::Close
    });
    let begun = Backend::scripted(&["begun"], |wire, asked| {
        let _ = wire.request_with(asked.head);
        wire.send([STREAM_HEAD, &chunk("data: 1\n\n")].concat());
        let _ = wire.rest();
        Then::Close
    });
    let other = Backend::named(&["quiet", "half", "begun"], "hi");
    let options = ["--policy", "round-robin", "--http-timeout", "0.02"];
    let proxy = Proxy::with(runtime, &options, &[&quiet, &half, &begun, &other]);
    let start = Instant::now();
    let mut clients = ["quiet", "half"].map(|name| {
        let client = proxy.client();
        client.send(chat(name));
        (name, client)
    });
    let mut begins = proxy.client();
    // A backend that is late with its first word is as silent as the others.
    eventually("a stream begins", || {
        begins.send(chat("begun"));
        let head = begins.head().unwrap();
        let is_late = status(&head) == 504;
        if is_late {
            let length = header(&head, "content-length").unwrap().parse().unwrap();
            begins.exactly(length).unwrap();
        }
        !is_late
    });
    for (name, client) in &mut clients {
        let answer = client.answer().unwrap();
        assert_eq!(answer.status(), 504, "{name}: {answer:?}");
        assert!(start.elapsed().as_millis() >= 1_200, "{name}: {:?}", start.elapsed());
        client.send(get("/version"));
        assert_eq!(client.answer().unwrap().status(), 200, "{name}");
    }
    let (seen, end) = begins.rest();
    assert!(!seen.ends_with(LAST_CHUNK) && end != End::Silent, "{end:?} {}", seen.escape_ascii());
    println!("1.2 s of silence end after {:?}", start.elapsed());
    // Never retried, never counted against anybody's health.
    other.assert_untouched();
    assert_eq!(proxy.entries("backend is suspect"), 0);
}

fn a_trickle_is_no_silence(runtime: Runtime) {
    // Longer than the limit in all, never as long between two bytes.
    let (tick, ticks) = std::sync::mpsc::channel::<()>();
    let ticks = std::sync::Mutex::new(ticks);
    let backend = Backend::scripted(&["m"], move |wire, asked| {
        wire.request_with(asked.head).unwrap();
        let ticks = ticks.lock().unwrap();
        let mut sent = wire.try_send(STREAM_HEAD);
        for _ in 0..8 {
            // Nobody sends: this is the pace of a slow model.
            let _ = ticks.recv_timeout(Duration::from_millis(250));
            sent = sent.and_then(|()| wire.try_send(chunk("data: 1\n\n")));
        }
        sent.and_then(|()| wire.try_send(LAST_CHUNK)).map_or(Then::Close, |()| Then::Keep)
    });
    let proxy = Proxy::with(runtime, &["--http-timeout", "0.02"], &[&backend]);
    let passes = || {
        let mut client = proxy.client();
        client.send(chat("m"));
        client.answer().is_ok_and(|answer| answer.body == b"data: 1\n\n".repeat(8))
    };
    // Where this machine is busy, the backend may once be silent for as long as the limit.
    assert!((0..10).any(|_| passes()), "it ends: {}", proxy.told());
    drop(tick);
}

fn a_large_head_passes(runtime: Runtime) {
    // vLLM puts an entry per input into one header.
    let answer = format!(
        "HTTP/1.1 200 OK\r\nmetadata: {}\r\ncontent-length: 2\r\n\r\nhi",
        "a".repeat(1_900 << 10)
    );
    let backend = saying(answer.as_bytes());
    let proxy = Proxy::start(runtime, &[&backend]);
    let mut client = proxy.client();
    client.send(chat("m"));
    assert_bytes(&client.answer().unwrap().raw, answer.as_bytes());
}

on_every_runtime![
    nonsense_is_a_bad_gateway,
    nonsense_is_tried_elsewhere,
    chunks_that_go_wrong_break_the_answer,
    two_answers_to_one_request_are_one,
    bytes_that_nobody_asked_for_are_nobodys_answer,
    an_answer_before_the_request_is_whole_passes,
    silence_is_a_gateway_timeout,
    a_trickle_is_no_silence,
    a_large_head_passes,
];
