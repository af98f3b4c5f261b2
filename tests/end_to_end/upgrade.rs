//! Websockets: an independent client and server through the proxy, and raw sockets that do what
//! neither would.

use crate::backend::{Asked, Backend, Gate, Then};
use crate::proxy::{Proxy, Runtime, eventually, on_every_runtime};
use crate::sockets::until_still;
use crate::wire::{End, PATIENCE, Wire, assert_bytes, get, header, ok};
use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, Role};
use tungstenite::{Message, WebSocket};

const OFFER: &[u8] = b"GET /some/socket?a=b HTTP/1.1\r\nHost: proxy.test\r\n\
    Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nX-Kept: 1\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: a2V5\r\n\r\n";
const SWITCH: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nX-Mine: 1\r\n\r\n";

/// Switches whatever asks for it, and does this then.
fn switching(then: impl Fn(&mut Wire, Asked) -> Then + Send + Sync + 'static) -> Backend {
    Backend::scripted(&["m"], move |wire, asked| {
        if header(&asked.head, "upgrade").is_none() {
            wire.send(ok("hi"));
            return Then::Keep;
        }
        wire.send(SWITCH);
        then(wire, asked)
    })
}

/// A client whose websocket is open.
fn open(proxy: &Proxy) -> Wire {
    let mut client = proxy.client();
    client.send(OFFER);
    assert_bytes(&client.head().unwrap(), SWITCH);
    client
}

/// A server of websockets that says back what it hears.
fn echoing() -> Backend {
    Backend::scripted(&["m"], |wire, asked| {
        let key = header(&asked.head, "sec-websocket-key").expect("it is an offer");
        wire.send(format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {}\r\n\r\n",
            derive_accept_key(key.as_bytes())
        ));
        let mut socket = WebSocket::from_raw_socket(wire.stream(), Role::Server, None);
        while let Ok(message) = socket.read() {
            if message.is_text() || message.is_binary() {
                socket.send(message).expect("the client reads");
            }
        }
        Then::Close
    })
}

fn a_library_speaks_to_a_library(runtime: Runtime) {
    let backend = echoing();
    let proxy = Proxy::start(runtime, &[&backend]);
    let stream = TcpStream::connect(proxy.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut socket, answer) = tungstenite::client("ws://proxy.test/v1/socket", stream).unwrap();
    assert_eq!(answer.status(), 101);
    for message in [
        Message::text("hello"),
        Message::binary(vec![7; 8 << 20]),
        Message::text(""),
        Message::text("é".repeat(100_000)),
    ] {
        socket.send(message.clone()).unwrap();
        assert_eq!(socket.read().unwrap(), message);
    }
    socket.send(Message::Ping("are you there".into())).unwrap();
    assert_eq!(socket.read().unwrap(), Message::Pong("are you there".into()));
    let reason = CloseFrame { code: CloseCode::Away, reason: "enough".into() };
    socket.close(Some(reason.clone())).unwrap();
    assert_eq!(socket.read().unwrap(), Message::Close(Some(reason)));
    assert!(matches!(socket.read(), Err(tungstenite::Error::ConnectionClosed)));
    assert_eq!(backend.requests(), 1);
}

fn bytes_behind_either_head_arrive(runtime: Runtime) {
    let backend = switching(|wire, _| {
        wire.send(b"at once");
        let heard = wire.until(b"end").unwrap();
        wire.send([b"heard ", &heard[..]].concat());
        Then::Close
    });
    let proxy = Proxy::start(runtime, &[&backend]);
    let mut client = proxy.client();
    // As long as what is kept of a client that is ahead of its turn, and longer than one read.
    let ahead = [&[b'x'; 60_000][..], b"end"].concat();
    client.send([OFFER, &ahead].concat());
    assert_bytes(&client.head().unwrap(), SWITCH);
    let expected = [b"at onceheard ", &ahead[..]].concat();
    let (rest, end) = client.rest();
    assert_bytes(&rest, &expected);
    assert_eq!(end, End::Closed);
    let head = backend.heads().remove(0);
    assert_bytes(&head, &String::from_utf8_lossy(OFFER).replace("keep-alive, ", "").into_bytes());
}

fn other_protocols_are_not_offered(runtime: Runtime) {
    let backend = Backend::scripted(&["m"], |wire, _| {
        // It switches all the same.
        wire.send([SWITCH, b"PRI * HTTP/2.0\r\n\r\n"].concat());
        Then::Close
    });
    let proxy = Proxy::start(runtime, &[&backend]);
    for offer in [
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ",
        "Connection: Upgrade\r\nUpgrade: websocket, h2c",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c",
        "Connection: Upgrade\r\nUpgrade: TLS/1.0",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "X: y",
    ] {
        let mut client = proxy.client();
        client.send(format!("GET /docs HTTP/1.1\r\nHost: proxy.test\r\n{offer}\r\n\r\n"));
        let answer = client.answer().unwrap();
        assert_eq!(answer.status(), 502, "{offer}: {answer:?}");
        client.send(get("/version"));
        assert_eq!(client.answer().unwrap().status(), 200, "{offer}");
    }
    let rest = "GET /docs HTTP/1.1\r\nHost: proxy.test\r\n";
    for head in backend.heads() {
        let head = String::from_utf8(head).unwrap();
        assert!(head == format!("{rest}\r\n") || head == format!("{rest}X: y\r\n\r\n"), "{head}");
    }
}

fn a_backend_that_does_not_switch_answers(runtime: Runtime) {
    let answers: [&[u8]; 3] = [
        b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 426 Upgrade Required\r\ncontent-length: 3\r\n\r\nno!",
        b"HTTP/1.1 503 Busy\r\ntransfer-encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n",
    ];
    for answer in answers {
        let backend = Backend::answering(&["m"], move |_| answer.to_vec());
        let proxy = Proxy::start(runtime, &[&backend]);
        let mut client = proxy.client();
        // What follows is the next request.
        client.send([OFFER, &get("/version")].concat());
        assert_bytes(&client.answer().unwrap().raw, answer);
        assert!(client.answer().unwrap().text().contains("0.33.0"));
        assert_eq!(backend.requests(), 1, "it was tried twice");
    }
}

/// What is switched to has no length, and what follows an interim answer is no body of it.
fn an_interim_answer_that_frames_a_body_is_refused(runtime: Runtime) {
    let switch = str::from_utf8(SWITCH).unwrap().trim_end();
    for answer in [
        format!("{switch}\r\nContent-Length: 5\r\n\r\nhello"),
        format!("{switch}\r\nContent-Length: 0\r\n\r\n"),
        format!("{switch}\r\nTransfer-Encoding: chunked\r\n\r\n"),
        "HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\nHTTP/1.1 204 No\r\n\r\n".into(),
    ] {
        let said = answer.clone();
        let backend = Backend::answering(&["m"], move |_| said.clone().into_bytes());
        let proxy = Proxy::start(runtime, &[&backend]);
        let mut client = proxy.client();
        client.send(OFFER);
        assert_eq!(client.answer().unwrap().status(), 502, "{answer}");
    }
}

fn last_words_arrive_though_the_client_still_sends(runtime: Runtime) {
    let backend = switching(|wire, _| {
        wire.until(b"more").unwrap();
        wire.send(b"goodbye");
        Then::Close
    });
    let proxy = Proxy::start(runtime, &[&backend]);
    for _ in 0..20 {
        let mut client = open(&proxy);
        let mut stream = client.stream().try_clone().unwrap();
        let sender = thread::spawn(move || while stream.write_all(b"more and more").is_ok() {});
        assert_bytes(&client.exactly(7).unwrap(), b"goodbye");
        assert_eq!(client.end(), End::Closed);
        client.stream().shutdown(Shutdown::Both).unwrap();
        sender.join().unwrap();
    }
}

fn a_client_that_closes_its_half_is_heard_to_the_end(runtime: Runtime) {
    let (sender, heard) = mpsc::channel();
    let backend = switching(move |wire, _| {
        sender.send(wire.rest()).unwrap();
        Then::Close
    });
    let proxy = Proxy::start(runtime, &[&backend]);
    for bytes in [0, 1, 3_000_000] {
        let mut client = open(&proxy);
        client.send(vec![b'x'; bytes]);
        client.half_close();
        let (rest, end) = heard.recv_timeout(PATIENCE).unwrap();
        assert_eq!((rest.len(), end), (bytes, End::Closed));
        assert_eq!(client.end(), End::Closed);
    }
}

fn a_reset_of_either_side_ends_the_other(runtime: Runtime) {
    let (sender, heard) = mpsc::channel();
    let backend = switching(move |wire, asked| {
        if asked.number == 0 {
            wire.send(b"bye");
            return Then::Reset;
        }
        // It may be reset before what it said is read: it waits until it was heard.
        wire.until(b"hello").unwrap();
        wire.send(b"you");
        sender.send(wire.end()).unwrap();
        Then::Close
    });
    let proxy = Proxy::start(runtime, &[&backend]);
    let mut client = open(&proxy);
    let (rest, end) = client.rest();
    assert!(b"bye".starts_with(&rest[..]), "{}", rest.escape_ascii());
    assert_ne!(end, End::Silent);
    let mut client = open(&proxy);
    client.send(b"hello");
    assert_bytes(&client.exactly(3).unwrap(), b"you");
    client.reset();
    assert_ne!(heard.recv_timeout(PATIENCE).unwrap(), End::Silent);
}

fn a_backend_that_does_not_read_stops_the_client(runtime: Runtime) {
    const SENT: usize = 64 << 20;
    let gate = Gate::default();
    let (opened, (sender, heard)) = (gate.clone(), mpsc::channel());
    let backend = switching(move |wire, _| {
        assert!(opened.pass());
        sender.send(wire.drained()).unwrap();
        Then::Close
    });
    let proxy = Proxy::start(runtime, &[&backend]);
    let client = open(&proxy);
    let before = proxy.resident_kib();
    let mut stream = client.stream().try_clone().unwrap();
    let taken = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&taken);
    let sending = thread::spawn(move || {
        let piece = [b'x'; 64 << 10];
        for _ in 0..SENT / piece.len() {
            stream.write_all(&piece).unwrap();
            count.fetch_add(piece.len(), Ordering::SeqCst);
        }
        stream.shutdown(Shutdown::Write).unwrap();
    });
    until_still(|| taken.load(Ordering::SeqCst));
    assert!(taken.load(Ordering::SeqCst) < SENT / 2, "it is read without an end");
    let grown = proxy.resident_kib().saturating_sub(before);
    assert!(grown < 2_048, "{grown} KiB are held");
    gate.open();
    assert_eq!(heard.recv_timeout(PATIENCE).unwrap(), (SENT, End::Closed));
    sending.join().unwrap();
    drop(client);
}

/// It is not read, and it is missed all the same.
fn a_client_that_is_reset_while_its_backend_does_not_read(runtime: Runtime) {
    let gate = Gate::default();
    let opened = gate.clone();
    let backend = switching(move |_, _| {
        assert!(opened.pass());
        Then::Close
    });
    let proxy = Proxy::start(runtime, &[&backend]);
    let before = proxy.descriptors();
    let client = open(&proxy);
    let stream = client.stream();
    stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    while (&*stream).write_all(&[b'x'; 64 << 10]).is_ok() {}
    client.reset();
    eventually("it is over", || proxy.descriptors() <= before);
    gate.open();
}

/// Each side sends without a pause while the other does, too.
fn both_ways_at_once(runtime: Runtime) {
    const SENT: usize = 128 << 20;
    fn exchange(wire: &mut Wire) -> usize {
        let mut stream = wire.stream().try_clone().unwrap();
        let sending = thread::spawn(move || {
            let piece = [b'x'; 64 << 10];
            for _ in 0..SENT / piece.len() {
                stream.write_all(&piece).unwrap();
            }
        });
        let mut heard = 0;
        while heard < SENT {
            heard += wire.exactly(64 << 10).unwrap().len();
        }
        sending.join().unwrap();
        heard
    }
    let backend = switching(|wire, _| {
        exchange(wire);
        Then::Close
    });
    let proxy = Proxy::start(runtime, &[&backend]);
    let mut client = open(&proxy);
    let start = Instant::now();
    assert_eq!(exchange(&mut client), SENT);
    assert_eq!(client.end(), End::Closed);
    println!("{} MiB each way took {:?}", SENT >> 20, start.elapsed());
}

/// A client is heard while its backend speaks without a pause, and still gets all that it said.
fn a_flood_does_not_keep_the_client_from_being_heard(runtime: Runtime) {
    const BEFORE: usize = 1 << 20;
    let (sender, heard) = mpsc::channel();
    let backend = switching(move |wire, _| {
        let mut stream = wire.stream().try_clone().unwrap();
        let flood = thread::spawn(move || {
            let mut sent = 0;
            while let Ok(bytes) = stream.write(&[b'x'; 64 << 10]) {
                sent += bytes;
            }
            sent
        });
        let stop = wire.until(b"stop");
        // Nothing else ends the flood.
        wire.stream().shutdown(Shutdown::Both).unwrap();
        sender.send((stop, flood.join().unwrap())).unwrap();
        Then::Close
    });
    let proxy = Proxy::start(runtime, &[&backend]);
    let mut client = open(&proxy);
    client.exactly(BEFORE).unwrap();
    client.send(b"stop");
    let (bytes, end) = client.drained();
    let (stop, sent) = heard.recv_timeout(PATIENCE).unwrap();
    assert_eq!(stop.unwrap(), b"stop");
    assert_eq!((BEFORE + bytes, end), (sent, End::Closed));
}

fn a_stop_leaves_it_open_for_as_long_as_it_may(runtime: Runtime) {
    let backend = switching(|wire, _| {
        while let Ok(heard) = wire.exactly(4) {
            wire.send(&heard);
        }
        Then::Close
    });
    // It goes on for as long as a stop may take, and ends then.
    for (seconds, goes_on) in [("600", true), ("1", false)] {
        let options = ["--drain-grace", "0", "--drain-timeout", seconds];
        let mut proxy = Proxy::with(runtime, &options, &[&backend]);
        let mut client = open(&proxy);
        let mut idle = proxy.client();
        idle.send(get("/version"));
        idle.answer().unwrap();
        let start = Instant::now();
        proxy.terminate();
        proxy.await_entries("stopping", 1);
        assert_eq!(idle.end(), End::Closed);
        if goes_on {
            client.send(b"ping");
            assert_bytes(&client.exactly(4).unwrap(), b"ping");
            continue;
        }
        assert_ne!(client.end(), End::Silent);
        assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
        assert_eq!(proxy.exit().0, Some(0));
    }
}

fn nothing_is_left_of_many(runtime: Runtime) {
    let backend = echoing();
    let proxy = Proxy::start(runtime, &[&backend]);
    let before = proxy.descriptors();
    for round in 0..50 {
        let stream = TcpStream::connect(proxy.address).unwrap();
        let (mut socket, _) = tungstenite::client("ws://proxy.test/", stream).unwrap();
        socket.send(Message::text("hello")).unwrap();
        assert_eq!(socket.read().unwrap(), Message::text("hello"), "{round}");
        if round % 2 == 0 {
            socket.close(None).unwrap();
            while socket.read().is_ok() {}
        }
    }
    eventually("descriptors are closed", || proxy.descriptors() <= before);
}

on_every_runtime!(
    a_library_speaks_to_a_library,
    bytes_behind_either_head_arrive,
    other_protocols_are_not_offered,
    a_backend_that_does_not_switch_answers,
    an_interim_answer_that_frames_a_body_is_refused,
    last_words_arrive_though_the_client_still_sends,
    a_client_that_closes_its_half_is_heard_to_the_end,
    a_reset_of_either_side_ends_the_other,
    a_backend_that_does_not_read_stops_the_client,
    a_client_that_is_reset_while_its_backend_does_not_read,
    both_ways_at_once,
    a_flood_does_not_keep_the_client_from_being_heard,
    a_stop_leaves_it_open_for_as_long_as_it_may,
    nothing_is_left_of_many,
);
