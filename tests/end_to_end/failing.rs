//! A backend that dies, at every moment: another one is tried as long as the client has seen
//! nothing, and an answer that has begun ends as broken, never as if complete.

use crate::backend::{Backend, Then};
use crate::proxy::{Proxy, Runtime, on_every_runtime};
use crate::wire::{
    End, LAST_CHUNK, PATIENCE, STREAM_HEAD, assert_bytes, chat, chunk, framed, get, ok, post,
};

const LENGTH_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n";

/// Sends these bytes as its answer, and ends.
fn dying(answer: &[u8], then: Then) -> Backend {
    let answer = answer.to_vec();
    Backend::scripted(&["m"], move |wire, asked| {
        if wire.request_with(asked.head).is_ok() {
            let _ = wire.try_send(&answer);
        }
        then
    })
}

/// A proxy that sends its first request to the first of these.
fn in_turn(runtime: Runtime, backends: &[&Backend]) -> Proxy {
    Proxy::with(runtime, &["--policy", "round-robin"], backends)
}

/// The ends before a client has seen a byte.
fn early_ends() -> [(&'static str, Backend); 8] {
    [
        ("closed before a byte", dying(b"", Then::Close)),
        ("reset before a byte", dying(b"", Then::Reset)),
        ("closed before the request was read", Backend::scripted(&["m"], |_, _| Then::Close)),
        ("closed within the head", dying(b"HTTP/1.1 200 OK\r\ncontent-le", Then::Close)),
        ("reset within the head", dying(b"HTTP/1.1 200 OK\r\ncontent-le", Then::Reset)),
        ("closed behind the head", dying(LENGTH_HEAD, Then::Close)),
        ("closed behind a stream's head", dying(STREAM_HEAD, Then::Close)),
        ("reset behind a stream's head", dying(STREAM_HEAD, Then::Reset)),
    ]
}

fn what_no_client_has_seen_is_tried_elsewhere(runtime: Runtime) {
    for (name, bad) in early_ends() {
        let good = Backend::named(&["m"], "hi");
        let proxy = in_turn(runtime, &[&bad, &good]);
        let mut client = proxy.client();
        client.send(chat("m"));
        let answer = client.answer().unwrap_or_else(|end| panic!("{name}: {end:?}"));
        assert_bytes(&answer.raw, &ok("hi"));
        assert_eq!((bad.requests(), good.requests()), (1, 1), "{name}");
        assert_bytes(&good.heads()[0], &bad.heads()[0]);
        // The client's connection is as good as ever.
        client.send(get("/version"));
        assert_eq!(client.answer().unwrap().status(), 200, "{name}");
    }
}

fn without_another_it_is_a_bad_gateway(runtime: Runtime) {
    for (name, bad) in early_ends() {
        let proxy = Proxy::start(runtime, &[&bad]);
        let mut client = proxy.client();
        client.send(chat("m"));
        let answer = client.answer().unwrap_or_else(|end| panic!("{name}: {end:?}"));
        assert_eq!(answer.status(), 502, "{name}: {answer:?}");
        assert!(answer.text().starts_with(r#"{"error":{"message":""#), "{name}: {answer:?}");
        client.send(get("/version"));
        assert_eq!(client.answer().unwrap().status(), 200, "{name}");
    }
}

/// A stream that says at once that the server failed, as vLLM does while it is paused.
fn failing_stream() -> Vec<u8> {
    let error = r#"{"error": {"message": "m", "type": "t", "param": null, "code": 503}}"#;
    let events = [&chunk(format!("data: {error}\n\n"))[..], &chunk("data: [DONE]\n\n")].concat();
    [STREAM_HEAD, &events, LAST_CHUNK].concat()
}

fn a_stream_that_begins_with_an_error_is_tried_elsewhere(runtime: Runtime) {
    let bad = Backend::answering(&["m"], |_| failing_stream());
    let good = Backend::named(&["m"], "hi");
    let proxy = in_turn(runtime, &[&bad, &good]);
    let mut client = proxy.client();
    client.send(chat("m"));
    assert_bytes(&client.answer().unwrap().raw, &ok("hi"));
    assert_eq!((bad.requests(), good.requests()), (1, 1));
    let proxy = Proxy::start(runtime, &[&bad]);
    let mut client = proxy.client();
    client.send(chat("m"));
    assert_bytes(&client.answer().unwrap().raw, &failing_stream());
}

fn whoever_refuses_is_passed_over(runtime: Runtime) {
    let mut backends: Vec<_> = (0..3).map(|_| Backend::named(&["m"], "hi")).collect();
    let proxy = in_turn(runtime, &[&backends[0], &backends[1], &backends[2]]);
    backends[0].stop();
    backends[1].stop();
    for _ in 0..5 {
        assert_eq!(proxy.ask(&chat("m")), 200);
    }
    backends[2].stop();
    let mut client = proxy.client();
    client.send(chat("m"));
    let answer = client.answer().unwrap();
    assert_eq!(answer.status(), 503, "{answer:?}");
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
}

fn whoever_slams_the_door_is_passed_over(runtime: Runtime) {
    let bad = Backend::named(&["m"], "bad");
    let good = Backend::named(&["m"], "good");
    let proxy = in_turn(runtime, &[&bad, &good]);
    bad.slam();
    for _ in 0..5 {
        assert_eq!(proxy.ask(&chat("m")), 200);
    }
    bad.assert_untouched();
}

fn three_backends_are_tried_and_two_are_harmed(runtime: Runtime) {
    let bad: Vec<_> = (0..4).map(|_| dying(b"", Then::Close)).collect();
    let proxy = in_turn(runtime, &[&bad[0], &bad[1], &bad[2], &bad[3]]);
    assert_eq!(proxy.ask(&chat("m")), 502);
    // It may be this request that kills engines.
    assert_eq!(bad.iter().map(Backend::requests).sum::<usize>(), 2);
}

fn what_changes_a_server_is_sent_once(runtime: Runtime) {
    let bad = dying(b"", Then::Close);
    let good = Backend::named(&["m"], "hi");
    for (path, body) in [
        ("/v1/plugin", r#"{"x":"y"}"#),
        ("/v1/chat/completions", r#"{"model":"m","kv_transfer_params":{"x":1}}"#),
        ("/v1/responses", r#"{"model":"m","background":true}"#),
    ] {
        let proxy = in_turn(runtime, &[&bad, &good]);
        assert_eq!(proxy.ask(&post(path, body)), 502, "{path}");
    }
    good.assert_untouched();
    assert_eq!(bad.requests(), 3);
}

fn an_answer_that_has_begun_ends_as_broken(runtime: Runtime) {
    let event = chunk("data: 1\n\n");
    let cases: [(&str, Vec<u8>, Then); 8] = [
        ("length, closed", [LENGTH_HEAD, b"12345"].concat(), Then::Close),
        ("length, reset", [LENGTH_HEAD, b"12345"].concat(), Then::Reset),
        ("behind a chunk, closed", [STREAM_HEAD, &event].concat(), Then::Close),
        ("behind a chunk, reset", [STREAM_HEAD, &event].concat(), Then::Reset),
        ("within a chunk", [STREAM_HEAD, &event, b"9\r\ndata"].concat(), Then::Close),
        ("within a size", [STREAM_HEAD, &event, b"1"].concat(), Then::Close),
        ("before the last line", [STREAM_HEAD, &event, b"0\r\n"].concat(), Then::Close),
        ("within the trailers", [STREAM_HEAD, &event, b"0\r\nX: 1\r\n"].concat(), Then::Close),
    ];
    for (name, answer, then) in cases {
        let bad = dying(&answer, then);
        let good = Backend::named(&["m"], "hi");
        let proxy = in_turn(runtime, &[&bad, &good]);
        let mut client = proxy.client();
        client.send(chat("m"));
        let (seen, end) = client.rest();
        if then == Then::Reset && bad.requests() == 1 && good.requests() == 1 {
            // The reset overtook the first bytes, so that nothing had begun.
            continue;
        }
        assert_ne!(end, End::Silent, "{name}");
        assert!(
            answer.starts_with(&seen) || (then == Then::Reset && end == End::Reset),
            "{name}: {}",
            seen.escape_ascii()
        );
        if then == Then::Close {
            assert!(seen.len() >= LENGTH_HEAD.len(), "{name}: {}", seen.escape_ascii());
        }
        assert!(!seen.ends_with(LAST_CHUNK), "{name}");
        good.assert_untouched();
    }
}

fn an_old_client_sees_a_broken_answer_by_a_reset(runtime: Runtime) {
    // For it the end of the connection would be a proper end.
    let bad = dying(&[STREAM_HEAD, &chunk("data: 1\n\n")].concat(), Then::Close);
    let proxy = Proxy::start(runtime, &[&bad]);
    let mut client = proxy.client();
    client.send("GET /docs HTTP/1.0\r\n\r\n");
    assert_eq!(client.rest().1, End::Reset);
}

fn an_answer_until_the_close_that_is_reset_is_broken(runtime: Runtime) {
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let gone = std::sync::Mutex::new(gone);
    let bad = Backend::scripted(&["m"], move |wire, asked| {
        wire.request_with(asked.head).unwrap();
        wire.send("HTTP/1.1 200 OK\r\n\r\nsome");
        let _ = gone.lock().unwrap().recv_timeout(PATIENCE);
        Then::Reset
    });
    let proxy = Proxy::start(runtime, &[&bad]);
    let mut client = proxy.client();
    client.send(chat("m"));
    client.until(b"some").unwrap();
    go.send(()).unwrap();
    let (rest, end) = client.rest();
    assert_ne!(end, End::Silent);
    assert!(!rest.ends_with(LAST_CHUNK), "{}", rest.escape_ascii());
}

fn errors_of_a_server_are_tried_elsewhere(runtime: Runtime) {
    for status in ["500 Internal Server Error", "503 Service Unavailable"] {
        let bad = Backend::answering(&["m"], move |_| framed(status, "no"));
        let good = Backend::named(&["m"], "hi");
        let proxy = in_turn(runtime, &[&bad, &good]);
        let mut client = proxy.client();
        client.send(chat("m"));
        assert_bytes(&client.answer().unwrap().raw, &ok("hi"));
        assert_eq!((bad.requests(), good.requests()), (1, 1), "{status}");
    }
}

fn the_last_answer_passes_to_the_byte(runtime: Runtime) {
    let odd: &[u8] = b"HTTP/1.1 503 Not \xe9 now\r\nX-b: 1\r\nx-B: 2\r\nRetry-after: 7\r\n\
        transfer-encoding: chunked\r\n\r\n3\r\nno!\r\n1\r\n\n\r\n0\r\nX-Sum: 1\r\n\r\n";
    let first = Backend::answering(&["m"], |_| framed("500 First", "first"));
    let second = Backend::answering(&["m"], move |_| odd.to_vec());
    let third = Backend::named(&["m"], "hi");
    {
        let proxy = in_turn(runtime, &[&first, &second, &third]);
        let mut client = proxy.client();
        client.send(chat("m"));
        assert_bytes(&client.answer().unwrap().raw, odd);
        third.assert_untouched();
    }
    // Whoever dies gives no answer: the one before it is the last.
    let dead = dying(b"", Then::Close);
    let proxy = in_turn(runtime, &[&second, &dead]);
    let mut client = proxy.client();
    client.send(chat("m"));
    assert_bytes(&client.answer().unwrap().raw, odd);
    assert_eq!(dead.requests(), 1);
    drop(proxy);
    // Nor does it where there is nobody else.
    let proxy = in_turn(runtime, &[&second]);
    let mut client = proxy.client();
    for _ in 0..3 {
        client.send(chat("m"));
        assert_bytes(&client.answer().unwrap().raw, odd);
    }
}

fn other_errors_pass_at_once(runtime: Runtime) {
    for status in ["400 Bad", "404 Not Found", "422 x", "429 Slow", "501 x", "502 x", "504 x"] {
        let bad = Backend::answering(&["m"], move |_| framed(status, "no"));
        let good = Backend::named(&["m"], "hi");
        let proxy = in_turn(runtime, &[&bad, &good]);
        let mut client = proxy.client();
        client.send(chat("m"));
        assert_bytes(&client.answer().unwrap().raw, &framed(status, "no"));
        good.assert_untouched();
    }
}

fn idle_connections_that_died_are_never_an_error(runtime: Runtime) {
    for (name, then) in [("closed", Then::Close), ("reset", Then::Reset)] {
        let (arrived, arrivals) = std::sync::mpsc::channel();
        let arrivals = std::sync::Mutex::new(arrivals);
        let backend = Backend::scripted(&["m"], move |wire, asked| {
            wire.request_with(asked.head).unwrap();
            // Says nothing of the end that follows, which must not come before it.
            wire.send(ok("hi"));
            let _ = arrivals.lock().unwrap().recv_timeout(PATIENCE);
            then
        });
        let proxy = Proxy::start(runtime, &[&backend]);
        let mut client = proxy.client();
        let mut errors = Vec::new();
        for number in 0..200 {
            client.send(chat("m"));
            let answer = client.answer();
            let answer = answer.unwrap_or_else(|end| panic!("{name}, {number}: {end:?}"));
            arrived.send(()).unwrap();
            if answer.status() != 200 || answer.body != b"hi" {
                errors.push((number, answer));
            }
        }
        assert!(errors.is_empty(), "{name}: {} errors: {:?}", errors.len(), errors.first());
    }
}

fn a_backend_that_restarts_is_never_an_error_to_who_waits(runtime: Runtime) {
    // Its idle connections die with it, and another backend is there.
    let mut one = Backend::named(&["m"], "one");
    let two = Backend::named(&["m"], "two");
    let proxy = in_turn(runtime, &[&one, &two]);
    let mut clients: Vec<_> = (0..8).map(|_| proxy.client()).collect();
    for round in 0..6 {
        for client in &mut clients {
            client.send(chat("m"));
            assert_eq!(client.answer().unwrap().status(), 200, "round {round}");
        }
        if round == 2 {
            one.stop();
        }
        if round == 4 {
            one.start_again();
        }
    }
}

on_every_runtime![
    what_no_client_has_seen_is_tried_elsewhere,
    without_another_it_is_a_bad_gateway,
    a_stream_that_begins_with_an_error_is_tried_elsewhere,
    whoever_refuses_is_passed_over,
    whoever_slams_the_door_is_passed_over,
    three_backends_are_tried_and_two_are_harmed,
    what_changes_a_server_is_sent_once,
    an_answer_that_has_begun_ends_as_broken,
    an_old_client_sees_a_broken_answer_by_a_reset,
    an_answer_until_the_close_that_is_reset_is_broken,
    errors_of_a_server_are_tried_elsewhere,
    the_last_answer_passes_to_the_byte,
    other_errors_pass_at_once,
    idle_connections_that_died_are_never_an_error,
    a_backend_that_restarts_is_never_an_error_to_who_waits,
];
