//! Many connections: those that do nothing are in nobody's way.

use crate::backend::Backend;
use crate::proxy::{Proxy, Runtime, eventually, on_every_runtime};
use crate::wire::{End, assert_bytes, chat, get, ok, post};
use rustix::process::{Resource, Rlimit, getrlimit, prlimit, setrlimit};
use std::time::{Duration, Instant};

/// How long a client may take to send a request's head.
const HEAD_LIMIT: Duration = Duration::from_secs(60);

/// How often a thread says that accepting pauses, at most.
const WARN_AGAIN: Duration = Duration::from_secs(60);

/// Raises this process's limit as far as it goes; whether so many descriptors are to be had.
fn descriptors(wanted: u64) -> bool {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return true;
    }
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).is_ok()
        && limit.maximum.is_none_or(|maximum| maximum >= wanted)
}

fn two_thousand_idle_connections_are_in_nobodys_way(runtime: Runtime) {
    const IDLE: usize = 2_000;
    if !descriptors(IDLE as u64 + 500) {
        println!("skipped: this process may not have {IDLE} descriptors");
        return;
    }
    let backend = Backend::named(&["m"], "hi");
    let proxy = Proxy::start(runtime, &[&backend]);
    let before = proxy.resident_kib();
    let mut idle = Vec::new();
    for number in 0..IDLE {
        let born = Instant::now();
        let mut client = proxy.client();
        match number % 3 {
            // Says nothing, has said half a head, or has been answered.
            0 => {}
            1 => client.send("POST /v1/chat/completions HTTP/1.1\r\nHo"),
            _ => {
                client.send(chat("m"));
                assert_bytes(&client.answer().unwrap().raw, &ok("hi"));
            }
        }
        idle.push((client, born));
    }
    // All of them are accepted before what follows is.
    let start = Instant::now();
    for _ in 0..50 {
        assert_eq!(proxy.ask(&chat("m")), 200);
    }
    let grown = proxy.resident_kib().saturating_sub(before);
    println!(
        "50 requests beside {IDLE} idle connections: {:?}; {:.1} KiB a connection",
        start.elapsed(),
        grown as f64 / IDLE as f64
    );
    // None of them was forgotten.
    for (number, (client, born)) in idle.iter_mut().enumerate() {
        let sent = client.try_send(match number % 3 {
            1 => b"st: a\r\nContent-Length: 0\r\n\r\n".to_vec(),
            _ => get("/version"),
        });
        let answer = sent.map_err(|_| End::Reset).and_then(|()| client.answer());
        // Where so many take longer than any may be idle, they were told to go.
        let in_time = born.elapsed() < HEAD_LIMIT;
        let is_well = answer.as_ref().is_ok_and(|answer| answer.status() == 200);
        assert!(is_well || !in_time, "{number}: {answer:?} after {:?}", born.elapsed());
    }
}

fn connections_come_and_go(runtime: Runtime) {
    let backend = Backend::named(&["m"], "hi");
    let proxy = Proxy::start(runtime, &[&backend]);
    let before = proxy.descriptors();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..100 {
                    assert_eq!(proxy.ask(&chat("m")), 200);
                }
            });
        }
    });
    // What is left are idle connections to the backend, at most one a request at a time.
    eventually("descriptors are given back", || proxy.descriptors() <= before + 20);
}

fn without_descriptors_accepting_pauses(runtime: Runtime) {
    let backend = Backend::named(&["m"], "hi");
    let proxy = Proxy::start(runtime, &[&backend]);
    let mut first = proxy.client();
    first.send(chat("m"));
    assert_bytes(&first.answer().unwrap().raw, &ok("hi"));
    let (before, start) = (proxy.descriptors(), Instant::now());
    let limit = Rlimit { current: Some(64), maximum: Some(64) };
    prlimit(Some(proxy.pid()), Resource::Nofile, limit).expect("it is our child");
    let mut clients: Vec<_> = (0..100).map(|_| proxy.client()).collect();
    proxy.await_entries("accepting pauses", 1);
    // Who is in goes on, by what needs no descriptor at least.
    first.send(get("/version"));
    assert_eq!(first.answer().unwrap().status(), 200);
    // It is not the backend's fault, whatever is asked: what must not be sent twice always takes
    // a new connection.
    for request in [chat("m"), post("/v1/load_lora_adapter", "{}"), chat("m")] {
        first.send(request);
        let answer = first.answer().unwrap();
        assert!(matches!(answer.status(), 200 | 502 | 503), "{answer:?}");
    }
    // Probes want descriptors, too, and three in a row that have none are silence like any other:
    // that takes more than twice the 4 s between two of them.
    let suspicions = proxy.entries("backend is suspect") + proxy.entries("backend is down");
    assert!(suspicions == 0 || start.elapsed() > Duration::from_secs(8), "{}", proxy.told());
    // Those who waited come in as others leave, and each of the two threads said it once.
    let last = clients.split_off(80);
    drop(clients);
    eventually("those who left are gone", || proxy.descriptors() <= before + last.len() + 2);
    for mut client in last {
        client.send(chat("m"));
        assert_eq!(client.answer().unwrap().status(), 200, "{}", proxy.told());
    }
    let times = 1 + start.elapsed().as_secs() / WARN_AGAIN.as_secs();
    assert!(proxy.entries("accepting pauses") as u64 <= 2 * times, "{}", proxy.told());
}

on_every_runtime![
    two_thousand_idle_connections_are_in_nobodys_way,
    connections_come_and_go,
    without_descriptors_accepting_pauses,
];
