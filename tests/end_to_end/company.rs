//! Proxies on one Redis, backends that hold a request for as long as its client stays, and traffic
//! that goes through all of them meanwhile.

use crate::backend::{Backend, Then, until_left};
use crate::proxy::{Proxy, Runtime, eventually};
use crate::wire::{Message, Wire, ok, post};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Between two requests of one client.
const PACE: Duration = Duration::from_millis(5);

/// How long whoever waits for a Redis that hangs waits, before he gives up. No request ever waits
/// for Redis: most take less by far, however busy this machine is.
const WAIT_OF_REDIS: Duration = Duration::from_secs(2);

/// Answers chats with its own name, and completions never.
pub(crate) fn holding(name: &str) -> Backend {
    let answer = ok(name);
    Backend::scripted(&["m"], move |wire, asked| {
        let holds = asked.head.starts_with(b"POST /v1/completions ");
        if wire.request_with(asked.head).is_err() {
            return Then::Close;
        }
        if holds {
            until_left(wire);
            return Then::Close;
        }
        match wire.try_send(&answer) {
            Ok(()) => Then::Keep,
            Err(_) => Then::Close,
        }
    })
}

/// A request that stays in flight until its client is dropped.
pub(crate) fn hold(proxy: &Proxy) -> Wire {
    let client = proxy.client();
    client.send(post("/v1/completions", r#"{"model":"m","prompt":"some words"}"#));
    client
}

/// A chat of several kilobytes, which begins like no other with another number.
pub(crate) fn chat_of(number: usize) -> String {
    let text = format!("{number} and then some more words; ").repeat(100);
    format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{text}"}}]}}"#)
}

/// Asks on a connection of its own.
pub(crate) fn asked(proxy: &Proxy, request: impl AsRef<[u8]>) -> Message {
    let mut client = proxy.client();
    client.send(request);
    let answer = client.answer();
    let answer = answer.unwrap_or_else(|end| panic!("no answer: {end:?} {}", proxy.told()));
    assert_eq!(answer.status(), 200, "{answer:?}");
    answer
}

/// Who answers this chat.
pub(crate) fn chat(proxy: &Proxy, body: &str) -> String {
    asked(proxy, post("/v1/chat/completions", body)).text()
}

/// Proxies that share this Redis; they may not have heard of each other yet.
pub(crate) fn sharing<const N: usize>(
    runtime: Runtime,
    urls: [&str; N],
    backends: &[&Backend],
) -> [Proxy; N] {
    urls.map(|url| Proxy::with(runtime, &["--redis", url], backends))
}

/// Proxies that hear each other.
pub(crate) fn company<const N: usize>(
    runtime: Runtime,
    urls: [&str; N],
    backends: &[&Backend],
) -> [Proxy; N] {
    let proxies = sharing(runtime, urls, backends);
    await_company(&proxies);
    proxies
}

/// Waits until all of them hear all others, and nobody else.
#[track_caller]
pub(crate) fn await_company(proxies: &[Proxy]) {
    for proxy in proxies {
        eventually("it hears all others", || alive(proxy) == proxies.len() as u64 - 1);
    }
}

/// How many others a proxy hears.
pub(crate) fn alive(proxy: &Proxy) -> u64 {
    proxy.status()["replicas"]["alive"].as_u64().expect("it has a Redis")
}

/// Requests that other proxies have in flight, as a proxy knows it.
pub(crate) fn elsewhere(proxy: &Proxy) -> u64 {
    let status = proxy.status();
    let backends = status["backends"].as_array().expect("they are a list");
    backends.iter().filter_map(|backend| backend["in_flight_elsewhere"].as_u64()).sum()
}

/// How much a proxy remembers of prompts.
pub(crate) fn entries(proxy: &Proxy) -> u64 {
    proxy.status()["index"]["entries"].as_u64().expect("the policy asks for it")
}

/// Waits until all remember equally much, and nothing is in flight. Since they last did, only one
/// of them may have been asked anything: each might lack as much that another has not told yet.
#[track_caller]
pub(crate) fn await_equal_memory(proxies: &[Proxy]) {
    eventually("all remember the same", || {
        let now: Vec<_> = proxies.iter().map(entries).collect();
        now.windows(2).all(|pair| pair[0] == pair[1])
    });
    let is_idle = |proxy: &Proxy| {
        let status = proxy.status();
        let backends = status["backends"].as_array().expect("they are a list");
        backends.iter().all(|one| one["in_flight"] == 0 && one["in_flight_elsewhere"] == 0)
    };
    eventually("nothing is in flight", || proxies.iter().all(is_idle));
}

/// Waits until proxies without requests hear each other, and each truly knows what others have.
#[track_caller]
pub(crate) fn await_agreement(proxies: &[Proxy]) {
    await_company(proxies);
    let expect = |counts: &dyn Fn(usize) -> u64| {
        eventually("all know what is in flight", || {
            let known = proxies.iter().enumerate();
            known.into_iter().all(|(at, proxy)| elsewhere(proxy) == counts(at))
        })
    };
    expect(&|_| 0);
    for (holder, proxy) in proxies.iter().enumerate() {
        let held = hold(proxy);
        expect(&|at| u64::from(at != holder));
        drop(held);
        expect(&|_| 0);
    }
}

/// A client of each proxy that asks, is answered, and asks again.
pub(crate) struct Traffic {
    clients: Vec<(JoinHandle<Vec<Duration>>, mpsc::Sender<()>)>,
    answered: Arc<Vec<AtomicUsize>>,
}

impl Traffic {
    pub(crate) fn start(proxies: &[Proxy]) -> Self {
        let answered: Arc<Vec<_>> =
            Arc::new(proxies.iter().map(|_| AtomicUsize::default()).collect());
        let client = |(at, proxy): (usize, &Proxy)| {
            let (stop, stopped) = mpsc::channel();
            let (address, answered) = (proxy.address, Arc::clone(&answered));
            let run = move || ask_on_and_on(address, at, &answered, &stopped);
            (thread::spawn(run), stop)
        };
        let clients = proxies.iter().enumerate().map(client).collect();
        Self { clients, answered }
    }

    /// Waits until each client got so many answers more.
    #[track_caller]
    pub(crate) fn await_answers(&self, count: usize) {
        let now = || self.answered.iter().map(|count| count.load(Ordering::SeqCst));
        let before: Vec<_> = now().collect();
        eventually("answers come", || {
            now().zip(&before).all(|(now, before)| now >= before + count)
        });
    }

    /// Ends it. Every request was answered by a backend, and none waited for anything else.
    #[track_caller]
    pub(crate) fn stop(self) {
        for (client, stop) in self.clients {
            drop(stop);
            let mut took = client.join().expect("every request is answered");
            took.sort();
            let typical = took.get(took.len() / 2).copied().unwrap_or_default();
            let longest = took.last().copied().unwrap_or_default();
            println!("{} requests took {typical:?}, {longest:?} at most", took.len());
            assert!(typical < WAIT_OF_REDIS, "requests waited: {typical:?}");
        }
    }
}

/// Asks until told to stop, and says how long each answer took.
fn ask_on_and_on(
    address: SocketAddr,
    at: usize,
    answered: &[AtomicUsize],
    stopped: &Receiver<()>,
) -> Vec<Duration> {
    let mut client = Wire::connect(address);
    let mut took = Vec::new();
    while stopped.recv_timeout(PACE) == Err(RecvTimeoutError::Timeout) {
        let start = Instant::now();
        client.send(post("/v1/chat/completions", &chat_of(1_000 * at + took.len())));
        let answer = client.answer().unwrap_or_else(|end| panic!("no answer: {end:?}"));
        assert_eq!(answer.status(), 200, "{answer:?}");
        took.push(start.elapsed());
        answered[at].fetch_add(1, Ordering::SeqCst);
    }
    took
}
