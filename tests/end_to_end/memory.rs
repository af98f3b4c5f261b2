//! Memory: a slow client slows its backend and not the proxy, and bodies share one budget.

use crate::backend::{Backend, Then};
use crate::proxy::{Proxy, Runtime, eventually, on_every_runtime};
use crate::sockets::until_still;
use crate::wire::{LAST_CHUNK, STREAM_HEAD, Wire, assert_bytes, chat, chunk, ok, post};
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const MIB: usize = 1 << 20;

/// The byte of a long body at this place.
fn byte_at(at: usize) -> u8 {
    (at % 251) as u8
}

/// Growth while readers are slow, in KiB.
const GROWTH_MAX_KIB: u64 = 8 << 10;

fn a_slow_reader_costs_no_memory(runtime: Runtime) {
    const TOTAL: usize = 200 * MIB;
    let written = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&written);
    let backend = Backend::scripted(&["m"], move |wire, asked| {
        wire.request_with(asked.head).unwrap();
        wire.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {TOTAL}\r\n\r\n"));
        let mut at = 0;
        while at < TOTAL {
            let piece: Vec<u8> = (at..(at + 256 * 1024).min(TOTAL)).map(byte_at).collect();
            if wire.try_send(&piece).is_err() {
                return Then::Close;
            }
            at += piece.len();
            counter.store(at, Ordering::SeqCst);
        }
        Then::Keep
    });
    let proxy = Proxy::start(runtime, &[&backend]);
    // What any request costs is paid before.
    let before = proxy.resident_kib();
    let mut client = proxy.client();
    client.send(chat("m"));
    client.head().unwrap();
    until_still(|| written.load(Ordering::SeqCst));
    let stuck = written.load(Ordering::SeqCst);
    let grown = proxy.resident_kib().saturating_sub(before);
    println!("a slow reader: {} KiB on their way, the proxy grew by {grown} KiB", stuck >> 10);
    assert!(stuck < TOTAL, "the backend was not slowed");
    assert!(grown < GROWTH_MAX_KIB, "it grew by {grown} KiB");
    // Then it reads on.
    let mut at = 0;
    while at < TOTAL {
        let bytes = client.exactly((TOTAL - at).min(64 << 10)).unwrap();
        for byte in bytes {
            assert_eq!(byte, byte_at(at), "byte {at}");
            at += 1;
        }
    }
    assert!(client.is_silent());
    let grown = proxy.resident_kib().saturating_sub(before);
    println!("after 200 MiB the proxy has grown by {grown} KiB");
    assert!(grown < GROWTH_MAX_KIB, "it grew by {grown} KiB");
}

fn many_slow_readers_cost_little(runtime: Runtime) {
    const STREAMS: usize = 50;
    let written = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&written);
    let backend = Backend::scripted(&["m"], move |wire, asked| {
        wire.request_with(asked.head).unwrap();
        wire.send(STREAM_HEAD);
        let event = chunk("x".repeat(64 << 10));
        while wire.try_send(&event).is_ok() {
            counter.fetch_add(event.len(), Ordering::SeqCst);
        }
        Then::Close
    });
    let proxy = Proxy::start(runtime, &[&backend]);
    let before = proxy.resident_kib();
    let clients: Vec<Wire> = (0..STREAMS).map(|_| proxy.client()).collect();
    for client in &clients {
        client.send(chat("m"));
    }
    until_still(|| written.load(Ordering::SeqCst));
    let grown = proxy.resident_kib().saturating_sub(before);
    println!("{STREAMS} slow readers: the proxy grew by {grown} KiB");
    // A read in hand each, which is at most 64 KiB, its buffer up to twice that, and some.
    assert!(grown < 200 * STREAMS as u64 + 2_048, "it grew by {grown} KiB");
}

fn bodies_take_turns_when_their_budget_is_used_up(runtime: Runtime) {
    let backend = Backend::answering(&["m"], |request| ok(&request.body));
    let proxy = Proxy::with(runtime, &["--body-memory", "1MiB"], &[&backend]);
    std::thread::scope(|scope| {
        for number in 0..4 {
            let proxy = &proxy;
            scope.spawn(move || {
                let body = number.to_string().repeat(600 << 10);
                let mut client = proxy.client();
                if number == 3 {
                    // One of unknown length asks for more and more.
                    client
                        .send("POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
                    for piece in body.as_bytes().chunks(10_000) {
                        client.send(chunk(piece));
                    }
                    client.send("0\r\n\r\n");
                } else {
                    client.send(post("/x", &body));
                }
                let answer = client.answer().unwrap();
                assert_eq!(answer.status(), 200, "{answer:?}");
                assert_bytes(&answer.body, body.as_bytes());
            });
        }
    });
    // All of it was given back.
    for _ in 0..3 {
        assert_eq!(proxy.ask(&post("/x", &"x".repeat(MIB))), 200);
    }
}

fn a_body_larger_than_the_budget_goes_alone(runtime: Runtime) {
    let backend = Backend::answering(&["m"], |request| ok(request.body.len().to_string()));
    let proxy = Proxy::with(runtime, &["--body-memory", "1MiB"], &[&backend]);
    let mut client = proxy.client();
    client.send(post("/x", &"x".repeat(5 * MIB)));
    assert_eq!(client.answer().unwrap().text(), (5 * MIB).to_string());
}

fn a_body_of_unknown_length_may_use_the_budget_up(runtime: Runtime) {
    let backend = Backend::answering(&["m"], |request| ok(request.body.len().to_string()));
    let proxy = Proxy::with(runtime, &["--body-memory", "1MiB"], &[&backend]);
    for bytes in [MIB / 2, 600 << 10, MIB, 3 * MIB] {
        let mut client = proxy.client();
        let head = "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        client.send([head.as_bytes(), &chunk("x".repeat(bytes)), LAST_CHUNK].concat());
        let answer = client.answer().unwrap_or_else(|end| panic!("{bytes} bytes: {end:?}"));
        assert_eq!(answer.text(), bytes.to_string());
    }
}

fn large_bodies_leave_little_behind(runtime: Runtime) {
    const BODIES: usize = 12;
    let backend = Backend::answering(&["m"], |request| ok(request.body.len().to_string()));
    let proxy = Proxy::start(runtime, &[&backend]);
    let before = proxy.resident_kib();
    let request = post("/x", &"x".repeat(20 * MIB));
    let mut clients: Vec<_> = (0..BODIES).map(|_| proxy.client()).collect();
    for client in &mut clients {
        client.send(&request);
        assert_eq!(client.answer().unwrap().text(), (20 * MIB).to_string());
    }
    // The connections stay open; what they carried is gone, but for what the allocator keeps for
    // the next: glibc up to twice the largest piece, for each of the two threads.
    let most = before + 2 * 2 * (20 << 10) + GROWTH_MAX_KIB;
    eventually("the memory is given back", || proxy.resident_kib() < most);
    let grown = proxy.resident_kib().saturating_sub(before);
    println!("{BODIES} bodies of 20 MiB: the proxy has grown by {grown} KiB");
}

fn sixty_four_uploads_at_once_arrive_whole(runtime: Runtime) {
    let backend = Backend::answering(&["m"], |request| ok(&request.body));
    let proxy = Proxy::start(runtime, &[&backend]);
    std::thread::scope(|scope| {
        for number in 0..64_usize {
            let proxy = &proxy;
            scope.spawn(move || {
                let mut body = String::from(r#"{"model":"m","user":""#);
                while body.len() < MIB {
                    body.push_str(&format!("{number} {} ", body.len()));
                }
                body.push_str("\"}");
                let mut client = proxy.client();
                client.send(post("/v1/completions", &body));
                assert_bytes(&client.answer().unwrap().body, body.as_bytes());
            });
        }
    });
}

fn single_bytes_for_a_slow_reader_are_all_right(runtime: Runtime) {
    // Reads of one byte against writes of one byte, with much between them.
    let backend = Backend::scripted(&["m"], |wire, asked| {
        wire.request_with(asked.head).unwrap();
        wire.send("HTTP/1.1 200 OK\r\ncontent-length: 3000000\r\n\r\n");
        let all: Vec<u8> = (0..3_000_000).map(byte_at).collect();
        for piece in all.chunks(997) {
            wire.send(piece);
        }
        Then::Keep
    });
    let proxy = Proxy::start(runtime, &[&backend]);
    let client = proxy.client();
    client.send(chat("m"));
    let mut stream = client.stream();
    let mut all = Vec::new();
    let mut piece = [0; 1_500];
    while all.len() < 3_000_000 {
        match stream.read(&mut piece).unwrap() {
            0 => break,
            bytes => all.extend_from_slice(&piece[..bytes]),
        }
    }
    let head = all.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4;
    for (at, byte) in all[head..].iter().enumerate() {
        assert_eq!(*byte, byte_at(at), "byte {at}");
    }
}

on_every_runtime![
    a_slow_reader_costs_no_memory,
    many_slow_readers_cost_little,
    bodies_take_turns_when_their_budget_is_used_up,
    a_body_larger_than_the_budget_goes_alone,
    a_body_of_unknown_length_may_use_the_budget_up,
    large_bodies_leave_little_behind,
    sixty_four_uploads_at_once_arrive_whole,
    single_bytes_for_a_slow_reader_are_all_right,
];
