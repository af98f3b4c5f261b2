//! A client that leaves takes its request with it, whatever the moment: the backend's connection is
//! closed, so that vLLM aborts the generation.

use crate::backend::{Backend, Gate, Left, Then, until_left};
use crate::proxy::{Proxy, Runtime, eventually, on_every_runtime};
use crate::sockets::{is_connecting_to, is_received, until_still};
use crate::wire::{End, PATIENCE, STREAM_HEAD, Wire, chat, chunk, get, post};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

/// How often what a stall of this machine may have hidden is tried again.
const TRIES: usize = 10;

/// How a client leaves.
#[derive(Clone, Copy, Debug)]
enum Leave {
    Close,
    Reset,
    /// Counts as leaving, as for vLLM.
    HalfClose,
}

impl Leave {
    const ALL: [Self; 3] = [Self::Close, Self::Reset, Self::HalfClose];

    /// What must be kept until the backend has noticed.
    fn take(self, client: Wire) -> Option<Wire> {
        match self {
            Self::Close => drop(client),
            Self::Reset => client.reset(),
            Self::HalfClose => {
                client.half_close();
                return Some(client);
            }
        }
        None
    }
}

/// The backend is told by nothing else for as long as a test waits: the proxy would grant its
/// silence an hour.
fn check(left: &mpsc::Receiver<Left>, start: Instant, what: &str) -> Left {
    let left = left.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{what}: never noticed"));
    let after = left.at.saturating_duration_since(start);
    println!("{what}: noticed after {after:?}");
    assert_ne!(left.end, End::Silent, "{what}");
    left
}

/// Sends `answer` to each request, then waits for the end.
fn stuck(answer: &[u8]) -> (Backend, mpsc::Receiver<Left>) {
    let (told, left) = mpsc::channel();
    let answer = answer.to_vec();
    let backend = Backend::scripted(&["m"], move |wire, asked| {
        if wire.request_with(asked.head).is_ok() {
            let _ = wire.try_send(&answer);
            let _ = told.send(until_left(wire));
        }
        Then::Close
    });
    (backend, left)
}

fn during_the_prefill(runtime: Runtime) {
    let (backend, left) = stuck(b"");
    let proxy = Proxy::start(runtime, &[&backend]);
    for (number, leave) in Leave::ALL.into_iter().enumerate() {
        let client = proxy.client();
        client.send(chat("m"));
        backend.await_requests(number + 1);
        let start = Instant::now();
        let kept = leave.take(client);
        check(&left, start, &format!("prefill, {leave:?}"));
        drop(kept);
    }
}

fn behind_the_head_of_an_answer(runtime: Runtime) {
    for (name, answer) in [("half", &b"HTTP/1.1 200 OK\r\ncontent-"[..]), ("whole", STREAM_HEAD)] {
        let (backend, left) = stuck(answer);
        let proxy = Proxy::start(runtime, &[&backend]);
        let client = proxy.client();
        client.send(chat("m"));
        backend.await_requests(1);
        let start = Instant::now();
        drop(client);
        check(&left, start, &format!("behind a {name} head"));
    }
}

fn during_the_stream(runtime: Runtime) {
    let (backend, left) = stuck(&[STREAM_HEAD, &chunk("data: 1\n\n")].concat());
    let proxy = Proxy::start(runtime, &[&backend]);
    for leave in Leave::ALL {
        let mut client = proxy.client();
        client.send(chat("m"));
        client.until(b"data: 1\n\n").unwrap();
        let start = Instant::now();
        let kept = leave.take(client);
        check(&left, start, &format!("stream, {leave:?}"));
        drop(kept);
    }
}

fn during_a_stream_that_nobody_reads(runtime: Runtime) {
    // The backend's writes are stuck: it notices by a write that fails.
    let (told, left) = mpsc::channel();
    let written = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&written);
    let backend = Backend::scripted(&["m"], move |wire, asked| {
        wire.request_with(asked.head).unwrap();
        wire.send(STREAM_HEAD);
        let event = chunk("x".repeat(64 << 10));
        let mut bytes = 0;
        while wire.try_send(&event).is_ok() {
            bytes += event.len();
            counter.store(bytes, Ordering::SeqCst);
        }
        let _ = told.send(Left { end: End::Reset, at: Instant::now(), bytes });
        Then::Close
    });
    let proxy = Proxy::start(runtime, &[&backend]);
    for leave in Leave::ALL {
        let mut client = proxy.client();
        client.send(chat("m"));
        client.until(b"xxxx").unwrap();
        // Everything between is full, once no byte moves any more.
        until_still(|| written.load(Ordering::SeqCst));
        let start = Instant::now();
        let kept = leave.take(client);
        let left = check(&left, start, &format!("stream unread, {leave:?}"));
        println!("    {} KiB were on their way", left.bytes >> 10);
        drop(kept);
    }
}

fn during_the_upload(runtime: Runtime) {
    let backend = Backend::named(&["m"], "hi");
    let proxy = Proxy::with(runtime, &["--body-memory", "1MiB"], &[&backend]);
    let body = format!(r#"{{"user":"{}"}}"#, "x".repeat(900 << 10));
    let whole = post("/v1/completions", &body);
    for leave in Leave::ALL {
        let client = proxy.client();
        client.send(&whole[..whole.len() / 2]);
        // It has a budget that leaves no room for a second one, once it was read.
        eventually("the upload is read", || is_received(proxy.address, client.stream()));
        let start = Instant::now();
        let kept = leave.take(client);
        assert_eq!(proxy.ask(&whole), 200);
        let after = start.elapsed();
        println!("upload, {leave:?}: another was answered after {after:?}");
        drop(kept);
    }
    assert_eq!(backend.requests(), 3);
    // An upload that was only given up for its silence would count as a refusal.
    let refusals = &proxy.status()["refusals"];
    let counts = refusals.as_object().expect("reasons and their counts");
    assert!(counts.values().all(|count| *count == 0), "{refusals}");
}

fn while_the_backend_takes_no_more_of_the_request(runtime: Runtime) {
    let (told, left) = mpsc::channel();
    let gone = Gate::default();
    let opens = gone.clone();
    let backend = Backend::scripted(&["m"], move |wire, _| {
        if gone.pass() {
            let _ = told.send(until_left(wire));
        }
        Then::Close
    });
    let proxy = Proxy::start(runtime, &[&backend]);
    let client = proxy.client();
    let request = post("/v1/completions", &"x".repeat(20 << 20));
    client.send(&request);
    backend.await_requests(1);
    let open = proxy.descriptors();
    let start = Instant::now();
    drop(client);
    // What was sent lies in the kernel; the backend sees the end behind it.
    eventually("both connections are closed", || proxy.descriptors() <= open - 2);
    println!("request under way: closed after {:?}", start.elapsed());
    opens.open();
    let left = left.recv_timeout(PATIENCE).unwrap();
    assert_ne!(left.end, End::Silent);
    assert!(left.bytes < request.len(), "all of it came");
}

fn before_the_backend_accepts(runtime: Runtime) {
    let backend = Backend::named(&["m"], "hi");
    let proxy = Proxy::start(runtime, &[&backend]);
    backend.pause();
    let address = backend.address();
    let mut fillers = Vec::new();
    // Linux completes connections until the queue is full, then lets them wait.
    while let Ok(filler) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
        fillers.push(filler);
        assert!(fillers.len() < 10_000, "the queue is never full");
    }
    let before = proxy.descriptors();
    let in_flight = || proxy.status()["backends"][0]["in_flight"].clone();
    let is_taken_back = || {
        let mut client = proxy.client();
        client.send(chat("m"));
        // Probes connect, too: that it is on its way as well is told by the proxy alone.
        eventually("it is in flight, and the proxy connects, or has given up", || {
            (in_flight() == 1 && is_connecting_to(address)) || !client.is_silent()
        });
        let start = Instant::now();
        drop(client);
        eventually("nothing is in flight", || in_flight() == 0);
        println!("before the accept: taken back after {:?}", start.elapsed());
        // Else it ended as the connection could not be made in time.
        proxy.status()["statuses"]["client_gone"] == 1
    };
    // The proxy gives up by itself after 5 s, which may pass before this client leaves.
    assert!((0..TRIES).any(|_| is_taken_back()), "never missed: {}", proxy.status());
    eventually("both connections are closed", || {
        proxy.descriptors() <= before && !is_connecting_to(address)
    });
    backend.assert_untouched();
}

fn behind_a_pipelined_request(runtime: Runtime) {
    let (backend, left) = stuck(b"");
    let proxy = Proxy::start(runtime, &[&backend]);
    let client = proxy.client();
    client.send([chat("m"), chat("m"), get("/docs")].concat());
    backend.await_requests(1);
    let start = Instant::now();
    drop(client);
    check(&left, start, "with requests behind it");
    assert_eq!(backend.requests(), 1);
}

/// Nothing more is read then, but the end is seen.
fn behind_more_than_is_read_ahead(runtime: Runtime) {
    let (backend, left) = stuck(b"");
    let proxy = Proxy::start(runtime, &[&backend]);
    for (number, leave) in Leave::ALL.into_iter().enumerate() {
        let client = proxy.client();
        client.send(chat("m"));
        backend.await_requests(number + 1);
        client.send(get("/docs").repeat(3_000));
        let start = Instant::now();
        let kept = leave.take(client);
        check(&left, start, &format!("far ahead, {leave:?}"));
        drop(kept);
    }
}

fn while_another_backend_is_tried(runtime: Runtime) {
    let bad = Backend::scripted(&["m"], |_, _| Then::Close);
    let (good, left) = stuck(b"");
    let proxy = Proxy::with(runtime, &["--policy", "round-robin"], &[&bad, &good]);
    let client = proxy.client();
    client.send(chat("m"));
    good.await_requests(1);
    assert_eq!(bad.requests(), 1);
    let start = Instant::now();
    drop(client);
    check(&left, start, "second try");
}

fn hundreds_leave_at_once(runtime: Runtime) {
    let (told, left) = mpsc::channel();
    let told = Mutex::new(told);
    let backend = Backend::scripted(&["m"], move |wire, asked| {
        if wire.request_with(asked.head).is_ok() {
            let _ = wire.try_send([STREAM_HEAD, &chunk("data: 1\n\n")].concat());
            let left = until_left(wire);
            let _ = told.lock().unwrap().send(left);
        }
        Then::Close
    });
    let proxy = Proxy::start(runtime, &[&backend]);
    let mut clients: Vec<_> = (0..200).map(|_| proxy.client()).collect();
    for client in &clients {
        client.send(chat("m"));
    }
    for client in &mut clients {
        client.until(b"data: 1\n\n").unwrap();
    }
    let start = Instant::now();
    drop(clients);
    let last = (0..200).map(|_| left.recv_timeout(PATIENCE).unwrap().at).max().unwrap();
    println!("200 at once: the last was noticed after {:?}", last - start);
    assert_eq!(proxy.ask(&get("/version")), 200);
}

on_every_runtime![
    during_the_prefill,
    behind_the_head_of_an_answer,
    during_the_stream,
    during_a_stream_that_nobody_reads,
    during_the_upload,
    while_the_backend_takes_no_more_of_the_request,
    before_the_backend_accepts,
    behind_a_pipelined_request,
    behind_more_than_is_read_ahead,
    while_another_backend_is_tried,
    hundreds_leave_at_once,
];
