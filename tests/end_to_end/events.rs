//! Streams: every event is passed on at once, and none is held, merged or cut.

use crate::backend::{Backend, Then};
use crate::proxy::{Proxy, Runtime, on_every_runtime};
use crate::wire::{LAST_CHUNK, PATIENCE, STREAM_HEAD, assert_bytes, chat, chunk};
use std::sync::mpsc;
use std::sync::{Barrier, Mutex};
use std::time::Instant;

fn event(number: usize) -> Vec<u8> {
    chunk(format!("data: {{\"event\":{number}}}\n\n"))
}

fn each_event_is_passed_on_at_once(runtime: Runtime) {
    // The backend sends the next event when the client has said that it has the last one.
    let (go, gone) = mpsc::channel::<()>();
    let gone = Mutex::new(gone);
    let backend = Backend::scripted(&["m"], move |wire, asked| {
        wire.request_with(asked.head).unwrap();
        wire.send([STREAM_HEAD, &event(0)].concat());
        for number in 1..50 {
            if gone.lock().unwrap().recv_timeout(PATIENCE).is_err() {
                return Then::Close;
            }
            wire.send(event(number));
        }
        wire.send([chunk("data: [DONE]\n\n"), LAST_CHUNK.to_vec()].concat());
        Then::Keep
    });
    let proxy = Proxy::start(runtime, &[&backend]);
    let mut client = proxy.client();
    client.send(chat("m"));
    assert_bytes(&client.head().unwrap(), STREAM_HEAD);
    let start = Instant::now();
    for number in 0..50 {
        let expected = event(number);
        assert_bytes(&client.exactly(expected.len()).unwrap(), &expected);
        if number < 49 {
            assert!(client.is_silent());
            go.send(()).unwrap();
        }
    }
    let end = [chunk("data: [DONE]\n\n"), LAST_CHUNK.to_vec()].concat();
    assert_bytes(&client.exactly(end.len()).unwrap(), &end);
    println!("50 events, each after the last one arrived: {:?}", start.elapsed());
}

fn a_head_waits_for_the_first_event_and_no_longer(runtime: Runtime) {
    let (go, gone) = mpsc::channel::<()>();
    let gone = Mutex::new(gone);
    let backend = Backend::scripted(&["m"], move |wire, asked| {
        wire.request_with(asked.head).unwrap();
        wire.send(STREAM_HEAD);
        let _ = gone.lock().unwrap().recv_timeout(PATIENCE);
        // A half event is not held either.
        wire.send("b\r\ndata: half ");
        let _ = gone.lock().unwrap().recv_timeout(PATIENCE);
        wire.send("\r\n0\r\n\r\n");
        Then::Keep
    });
    let proxy = Proxy::start(runtime, &[&backend]);
    let mut client = proxy.client();
    client.send(chat("m"));
    backend.await_requests(1);
    assert!(client.is_silent());
    go.send(()).unwrap();
    assert_bytes(&client.head().unwrap(), STREAM_HEAD);
    assert_bytes(&client.exactly(14).unwrap(), b"b\r\ndata: half ");
    go.send(()).unwrap();
    assert_bytes(&client.exactly(7).unwrap(), b"\r\n0\r\n\r\n");
}

fn many_streams_share_the_threads(runtime: Runtime) {
    const STREAMS: usize = 64;
    const EVENTS: usize = 40;
    // No stream gets its next event before all have the last one.
    let turn = Barrier::new(STREAMS);
    let backend = Backend::scripted(&["m"], move |wire, asked| {
        wire.request_with(asked.head).unwrap();
        wire.send(STREAM_HEAD);
        for number in 0..EVENTS {
            turn.wait();
            wire.send(event(number));
        }
        wire.send(LAST_CHUNK);
        Then::Keep
    });
    let proxy = Proxy::start(runtime, &[&backend]);
    let expected: Vec<u8> = (0..EVENTS).flat_map(event).chain(LAST_CHUNK.iter().copied()).collect();
    std::thread::scope(|scope| {
        for _ in 0..STREAMS {
            let (proxy, expected) = (&proxy, &expected);
            scope.spawn(move || {
                let mut client = proxy.client();
                client.send(chat("m"));
                let answer = client.answer().unwrap();
                assert_bytes(&answer.raw[answer.head.len()..], expected);
            });
        }
    });
}

fn a_burst_passes_whole(runtime: Runtime) {
    let backend = Backend::scripted(&["m"], |wire, asked| {
        wire.request_with(asked.head).unwrap();
        let events: Vec<u8> = (0..20_000).flat_map(event).collect();
        wire.send([STREAM_HEAD, &events, LAST_CHUNK].concat());
        Then::Keep
    });
    let proxy = Proxy::start(runtime, &[&backend]);
    let mut client = proxy.client();
    client.send(chat("m"));
    let answer = client.answer().unwrap();
    let expected: Vec<u8> = (0..20_000).flat_map(event).chain(LAST_CHUNK.iter().copied()).collect();
    assert_bytes(&answer.raw[answer.head.len()..], &expected);
}

on_every_runtime![
    each_event_is_passed_on_at_once,
    a_head_waits_for_the_first_event_and_no_longer,
    many_streams_share_the_threads,
    a_burst_passes_whole,
];
