//! Starting and stopping: what is open is finished, what cannot start says so in one line.

use crate::backend::{Backend, Gate, Then};
use crate::proxy::{Proxy, Runtime, eventually, on_every_runtime};
use crate::sockets::is_received;
use crate::wire::{End, LAST_CHUNK, STREAM_HEAD, Wire, assert_bytes, chat, chunk, get, ok, post};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long a connection may be idle.
const KEEP_ALIVE: Duration = Duration::from_secs(75);

/// Streams one event, and the second when the gate opens; answers all else at once.
fn streaming(gate: &Gate) -> Backend {
    let gate = gate.clone();
    Backend::scripted(&["m"], move |wire, asked| {
        if asked.head.starts_with(b"GET ") {
            wire.send(ok("hi"));
            return Then::Keep;
        }
        wire.request_with(asked.head).unwrap();
        wire.send([STREAM_HEAD, &chunk("data: 1\n\n")].concat());
        if !gate.pass() {
            return Then::Close;
        }
        let _ = wire.try_send([&chunk("data: 2\n\n"), LAST_CHUNK].concat());
        Then::Keep
    })
}

/// Balancers are told, and requests are still taken.
fn in_its_grace_a_proxy_says_so_and_goes_on(runtime: Runtime) {
    let backend = Backend::named(&["m"], "hi");
    let proxy = Proxy::with(runtime, &["--drain-grace", "600"], &[&backend]);
    let mut idle = proxy.client();
    idle.send(get("/docs"));
    assert_eq!(idle.answer().unwrap().header("connection"), None);
    let start = Instant::now();
    proxy.terminate();
    proxy.await_entries("stopping", 1);
    // Each thread hears of it when it next wakes.
    let told_to_go = |client: &mut Wire, path: &str, status: u16| {
        client.send(get(path));
        let answer = client.answer().unwrap();
        let closes = answer.header("connection").as_deref() == Some("close");
        if closes {
            assert_eq!(answer.status(), status, "{path}: {answer:?}");
            assert_eq!(client.end(), End::Closed, "{path}");
        }
        closes
    };
    eventually("health says so", || told_to_go(&mut proxy.client(), "/health", 503));
    eventually("others are told", || told_to_go(&mut proxy.client(), "/docs", 200));
    eventually("who was there is told", || told_to_go(&mut idle, "/docs", 200));
    println!("all were told after {:?}", start.elapsed());
    assert_eq!(proxy.ask(&chat("m")), 200);
}

fn a_drain_finishes_what_is_open(runtime: Runtime) {
    let gate = Gate::default();
    let backend = streaming(&gate);
    let mut proxy = Proxy::with(runtime, &["--drain-grace", "1"], &[&backend]);
    let mut stream = proxy.client();
    stream.send(chat("m"));
    stream.until(b"data: 1\n\n\r\n").unwrap();
    let mut silent = proxy.client();
    let start = Instant::now();
    proxy.terminate();
    // Behind the grace nobody comes in any more, and those without a request are sent away.
    assert_eq!(silent.end(), End::Closed);
    eventually("the port is closed", || TcpStream::connect(proxy.address).is_err());
    println!("the port closed after {:?}", start.elapsed());
    assert!(start.elapsed() >= Duration::from_secs(1));
    gate.open();
    let expected = [&chunk("data: 2\n\n"), LAST_CHUNK].concat();
    assert_bytes(&stream.exactly(expected.len()).unwrap(), &expected);
    assert_eq!(stream.end(), End::Closed);
    let (status, stderr) = proxy.exit();
    assert_eq!((status, stderr.as_str()), (Some(0), ""));
}

fn a_drain_waits_for_an_upload(runtime: Runtime) {
    let backend = Backend::answering(&["m"], |request| ok(&request.body));
    let mut proxy = Proxy::with(runtime, &["--drain-grace", "0"], &[&backend]);
    let mut client = proxy.client();
    let request = post("/v1/completions", "{\"prompt\":\"some words\"}");
    let (first, rest) = request.split_at(request.len() - 10);
    client.send(first);
    eventually("it is read", || is_received(proxy.address, client.stream()));
    proxy.terminate();
    eventually("the port is closed", || TcpStream::connect(proxy.address).is_err());
    client.send(rest);
    let answer = client.answer().unwrap();
    assert_bytes(&answer.body, b"{\"prompt\":\"some words\"}");
    assert_eq!(answer.header("connection").as_deref(), Some("close"), "{answer:?}");
    assert_eq!(client.end(), End::Closed);
    assert_eq!(proxy.exit(), (Some(0), String::new()));
}

fn a_drain_ends_at_its_limit(runtime: Runtime) {
    let gate = Gate::default();
    let backend = streaming(&gate);
    let options = ["--drain-grace", "0", "--drain-timeout", "1"];
    let mut proxy = Proxy::with(runtime, &options, &[&backend]);
    let mut stream = proxy.client();
    stream.send(chat("m"));
    stream.until(b"data: 1\n\n\r\n").unwrap();
    let start = Instant::now();
    proxy.terminate();
    let (rest, end) = stream.rest();
    assert!(rest.is_empty() && end != End::Silent, "{end:?} {}", rest.escape_ascii());
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert_eq!(proxy.exit().0, Some(0));
    println!("drained by force after {:?}", start.elapsed());
    gate.open();
}

fn a_drain_of_nothing_is_quick(runtime: Runtime) {
    let backend = Backend::named(&["m"], "hi");
    let mut proxy = Proxy::with(runtime, &["--drain-grace", "0"], &[&backend]);
    let mut idle: Vec<_> = (0..10).map(|_| proxy.client()).collect();
    for client in &mut idle {
        client.send(chat("m"));
        assert_eq!(client.answer().unwrap().status(), 200);
    }
    let start = Instant::now();
    proxy.terminate();
    assert_eq!(proxy.exit(), (Some(0), String::new()));
    println!("ended after {:?}", start.elapsed());
    assert!(start.elapsed() < KEEP_ALIVE, "idle connections were waited for");
    for client in &mut idle {
        assert_eq!(client.end(), End::Closed);
    }
}

fn requests_during_a_stop_are_answered_or_never_taken(runtime: Runtime) {
    const CLIENTS: usize = 4;
    let backend = Backend::named(&["m"], "hi");
    let mut proxy = Proxy::with(runtime, &["--drain-grace", "1"], &[&backend]);
    let (address, begun) = (proxy.address, Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let begun = Arc::clone(&begun);
            std::thread::spawn(move || {
                let (mut answered, mut refused) = (0, 0);
                // Until the port is closed.
                while let Ok(stream) = TcpStream::connect(address) {
                    let mut client = Wire::new(stream);
                    // Whether it could be sent shows in what comes back.
                    let _ = client.try_send(chat("m"));
                    match client.answer() {
                        Ok(answer) => {
                            assert_bytes(&answer.body, b"hi");
                            begun.fetch_add(usize::from(answered == 0), Ordering::SeqCst);
                            answered += 1;
                        }
                        Err(end) => {
                            assert_ne!(end, End::Silent);
                            refused += 1;
                        }
                    }
                }
                (answered, refused)
            })
        })
        .collect();
    eventually("all of them are answered", || begun.load(Ordering::SeqCst) == CLIENTS);
    proxy.terminate();
    let counts: Vec<(usize, usize)> =
        clients.into_iter().map(|client| client.join().unwrap()).collect();
    println!("answered before its end, and not let in at it: {counts:?}");
    // Nobody was taken in and then let down.
    let answered: usize = counts.iter().map(|(answered, _)| answered).sum();
    assert_eq!(backend.requests(), answered);
    // A connection that the kernel makes between the last accept of a thread and the close of its
    // port is reset by it, and each client has one at a time. More would be our doing.
    assert!(counts.iter().all(|(_, refused)| *refused <= 2), "{counts:?}");
    assert_eq!(proxy.exit(), (Some(0), String::new()));
}

fn a_second_signal_ends_at_once(runtime: Runtime) {
    let gate = Gate::default();
    let backend = streaming(&gate);
    let mut proxy = Proxy::start(runtime, &[&backend]);
    let mut stream = proxy.client();
    stream.send(chat("m"));
    stream.until(b"data: 1\n\n\r\n").unwrap();
    proxy.terminate();
    proxy.await_entries("stopping", 1);
    let start = Instant::now();
    proxy.terminate();
    let (status, _) = proxy.exit();
    println!("cut short after {:?}", start.elapsed());
    // A drain would have gone on for as long as the stream, and have ended well.
    assert_eq!(status, Some(1));
    assert_ne!(stream.end(), End::Silent);
    gate.open();
}

fn a_taken_port_is_told_in_one_line(runtime: Runtime) {
    let backend = Backend::named(&["m"], "hi");
    let first = Proxy::start(runtime, &[&backend]);
    let port = first.address.port().to_string();
    let mut second = Proxy::spawn(runtime, &["-p", &port], &[], &[backend.upstream()]);
    let (status, stderr) = second.exit();
    assert_eq!(status, Some(1), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.contains(&port) && stderr.contains("taken"), "{stderr}");
    assert_eq!(first.ask(&chat("m")), 200);
}

fn a_name_that_does_not_resolve_stops_nobody(runtime: Runtime) {
    let upstreams = ["http://no-such-host.invalid:8000".to_owned()];
    let proxy = Proxy::before(runtime, &[], &upstreams);
    assert_eq!(proxy.ask(&get("/health")), 503);
    let mut client = proxy.client();
    client.send(chat("m"));
    let answer = client.answer().unwrap();
    assert_eq!(answer.status(), 503, "{answer:?}");
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
}

fn a_backend_that_starts_later_is_found(runtime: Runtime) {
    let mut backend = Backend::named(&["m"], "hi");
    backend.stop();
    let proxy = Proxy::before(runtime, &[], &[backend.upstream()]);
    assert_eq!(proxy.ask(&get("/health")), 503);
    assert_eq!(proxy.ask(&chat("m")), 503);
    backend.start_again();
    proxy.await_entries("backend is up", 1);
    assert_eq!(proxy.ask(&get("/health")), 200);
    assert_eq!(proxy.ask(&chat("m")), 200);
}

fn requests_wait_for_the_first_probes(runtime: Runtime) {
    // It listens before anything is known of backends; who asks at once is not told off.
    let backend = Backend::named(&["m"], "hi");
    let proxy = Proxy::before(runtime, &[], &[backend.upstream()]);
    assert_eq!(proxy.ask(&chat("m")), 200);
}

on_every_runtime![
    in_its_grace_a_proxy_says_so_and_goes_on,
    a_drain_finishes_what_is_open,
    a_drain_waits_for_an_upload,
    a_drain_ends_at_its_limit,
    a_drain_of_nothing_is_quick,
    requests_during_a_stop_are_answered_or_never_taken,
    a_second_signal_ends_at_once,
    a_taken_port_is_told_in_one_line,
    a_name_that_does_not_resolve_stops_nobody,
    a_backend_that_starts_later_is_found,
    requests_wait_for_the_first_probes,
];
