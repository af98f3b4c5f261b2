//! Backends come and go as the answers of real name resolution do, and no request is lost.

use crate::backend::{Backend, Gate, Then};
use crate::names::{Answer, Names, with_names_on_every_runtime};
use crate::proxy::{Proxy, Runtime, eventually};
use crate::wire::{LAST_CHUNK, STREAM_HEAD, Wire, chat, chunk, get, ok, post};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const NAME: &str = "vllm.test";
const PORT: u16 = 8000;
const SOON: [&str; 2] = ["--resolve-interval", "0.1"];
const ADDRESSES: [&str; 4] = ["127.0.0.11", "127.0.0.12", "127.0.0.13", "127.0.0.14"];
/// How long a backend computes before it answers. Without that all that the proxy could learn of
/// how fast each is would be noise, and it goes by what it learns.
const PREFILL: Duration = Duration::from_millis(3);
/// Events of a stream, the first apart.
const EVENTS: usize = 50;

fn upstream(name: &str) -> [String; 1] {
    [format!("http://{name}:{PORT}")]
}

/// Streams completions, whose first event comes at once and all others when the gate opens, and
/// answers everything else by its address.
fn streaming(address: &str, gate: &Gate, streams: &Arc<AtomicUsize>) -> Backend {
    let (gate, streams, name) = (gate.clone(), Arc::clone(streams), address.to_owned());
    let at = SocketAddr::new(address.parse().unwrap(), PORT);
    Backend::at(at, &["m"], move |wire, asked| {
        let streams_it = asked.head.starts_with(b"POST /v1/completions ");
        if wire.request_with(asked.head).is_err() {
            return Then::Close;
        }
        thread::sleep(PREFILL);
        if !streams_it {
            return wire.try_send(ok(&name)).map_or(Then::Close, |()| Then::Keep);
        }
        streams.fetch_add(1, Ordering::SeqCst);
        let event = |text: &str| chunk(format!("data: {name} {text}\n\n"));
        let send = |bytes: &[u8]| wire.try_send(bytes).is_ok();
        let begun = send(STREAM_HEAD) && send(&event("first"));
        if !begun || !gate.pass() {
            return Then::Reset;
        }
        let whole = (0..EVENTS).all(|number| send(&event(&number.to_string())));
        if whole && send(LAST_CHUNK) { Then::Keep } else { Then::Reset }
    })
}

/// Answers everything by its address.
fn plain(address: &str) -> Backend {
    streaming(address, &Gate::default(), &Arc::default())
}

/// A stream whose first event has come, and who sends it.
fn stream(proxy: &Proxy) -> (Wire, String) {
    let mut client = proxy.client();
    client.send(post("/v1/completions", r#"{"model":"m","prompt":"some words","stream":true}"#));
    let first = client.until(b" first\n\n").unwrap();
    let first = String::from_utf8(first).unwrap();
    let (_, sender) = first.rsplit_once("data: ").unwrap();
    (client, sender.split(' ').next().unwrap().to_owned())
}

/// Reads a stream to its end: it is whole, and from one backend.
fn finish((mut client, sender): (Wire, String)) {
    let rest = client.until(b"\r\n0\r\n\r\n").unwrap();
    let rest = String::from_utf8(rest).unwrap();
    let last = format!("data: {sender} {}\n\n", EVENTS - 1);
    assert_eq!(rest.matches(&format!("data: {sender} ")).count(), EVENTS, "{rest}");
    assert!(rest.contains(&last), "{rest}");
}

/// A short request that was answered.
#[derive(Clone, Debug)]
struct Answered {
    /// Which client's it was.
    client: usize,
    at: Instant,
    /// By whom.
    name: String,
}

type Answers = Arc<Mutex<Vec<Answered>>>;

/// Clients that ask short questions, each on a connection of its own, until they are told to stop.
struct Clients {
    stop: Arc<AtomicBool>,
    answers: Answers,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    fn start(proxy: &Proxy, count: usize) -> Self {
        let (stop, answers) = (Arc::new(AtomicBool::new(false)), Answers::default());
        let threads = (0..count).map(|client| {
            let (mut wire, stop, answers) = (proxy.client(), Arc::clone(&stop), answers.clone());
            thread::spawn(move || {
                let mut number = client;
                while !stop.load(Ordering::SeqCst) {
                    let words = format!("{number} and then some more words; ").repeat(20);
                    let message = format!(r#"[{{"role":"user","content":"{words}"}}]"#);
                    let body = format!(r#"{{"model":"m","messages":{message}}}"#);
                    wire.send(post("/v1/chat/completions", &body));
                    let answer = wire.answer().expect("every request is answered");
                    assert_eq!(answer.status(), 200, "{answer:?}");
                    let answered = Answered { client, at: Instant::now(), name: answer.text() };
                    answers.lock().unwrap().push(answered);
                    number += 1_000;
                }
            })
        });
        let threads = threads.collect();
        Self { stop, answers, threads }
    }

    fn answered(&self) -> usize {
        self.answers.lock().unwrap().len()
    }

    /// Waits for so many answers more, and says who gave how many of them.
    fn window(&self, count: usize) -> BTreeMap<String, usize> {
        let before = self.answered();
        eventually("answers come", || self.answered() >= before + count);
        counted(&self.answers.lock().unwrap()[before..before + count])
    }

    /// The same of requests that are sent from now on: who answers what is on its way, one request
    /// a client, does not count.
    fn new_window(&self, count: usize) -> BTreeMap<String, usize> {
        let before = self.answered();
        let new = || {
            let mut known = BTreeSet::new();
            let mut new = self.answers.lock().unwrap()[before..].to_vec();
            new.retain(|answered| !known.insert(answered.client));
            new
        };
        eventually("answers come", || new().len() >= count);
        counted(&new())
    }

    /// Ends it: every request was answered.
    fn stop(self) -> Vec<Answered> {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().expect("every request is answered");
        }
        std::mem::take(&mut self.answers.lock().unwrap())
    }
}

/// How many each gave.
fn counted(answers: &[Answered]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for answered in answers {
        *counts.entry(answered.name.clone()).or_default() += 1;
    }
    counts
}

/// Waits until the proxy has so many backends, all up.
#[track_caller]
fn await_up(proxy: &Proxy, count: usize) {
    eventually("all are up", || {
        let status = proxy.status();
        let backends = status["backends"].as_array().unwrap();
        backends.len() == count && backends.iter().all(|backend| backend["state"] == "up")
    });
}

/// Where the proxy's backends are.
fn addresses(proxy: &Proxy) -> Vec<String> {
    let status = proxy.status();
    let backends = status["backends"].as_array().unwrap();
    let address = |backend: &serde_json::Value| backend["address"].as_str().unwrap().to_owned();
    backends.iter().map(address).collect()
}

fn from_2_addresses_to_4_to_1(runtime: Runtime, names: &Names) {
    let gate = Gate::default();
    let streams: [Arc<AtomicUsize>; 4] = Default::default();
    let backends: Vec<_> =
        ADDRESSES.iter().zip(&streams).map(|(at, streams)| streaming(at, &gate, streams)).collect();
    let counts = || streams.each_ref().map(|count| count.load(Ordering::SeqCst));
    names.has(NAME, &ADDRESSES[..2]);
    let options = [&SOON[..], &["--policy", "least-load"]].concat();
    let proxy = Proxy::before(runtime, &options, &upstream(NAME));
    await_up(&proxy, 2);
    let clients = Clients::start(&proxy, 3);
    clients.window(100);
    let mut open = Vec::new();
    // A busy machine makes one look slower than another, and how much so is not certain; that those
    // which have more in hand get less is.
    eventually("both have streams", || {
        open.push(stream(&proxy));
        open.len() >= 8 && counts()[..2].iter().all(|count| *count > 0)
    });

    names.has(NAME, &ADDRESSES);
    await_up(&proxy, 4);
    eventually("all have streams", || {
        open.push(stream(&proxy));
        open.len() >= 32 && counts().iter().all(|count| *count > 1)
    });
    println!("streams at each after 2 -> 4: {:?}", counts());
    clients.window(100);

    names.has(NAME, &ADDRESSES[3..]);
    proxy.await_entries("backend left", 3);
    let counts = clients.new_window(200);
    assert_eq!(counts.keys().collect::<Vec<_>>(), [ADDRESSES[3]], "{counts:?}");
    assert_eq!(proxy.entries("backend forgotten"), 0, "they have streams in hand");
    assert_eq!(addresses(&proxy), [format!("{}:{PORT}", ADDRESSES[3])]);
    let here = open.iter().filter(|(_, sender)| sender == ADDRESSES[3]).count();
    assert!(in_flight(&proxy) >= here as u64);

    gate.open();
    let streams = open.len();
    open.into_iter().for_each(finish);
    proxy.await_entries("backend forgotten", 3);
    let answers = clients.stop();
    println!("{} short requests were answered, and {streams} streams", answers.len());
    eventually("nothing is in flight", || in_flight(&proxy) == 0);
    for backend in &backends[..3] {
        eventually("connections to it are closed", || backend.open() == 0);
    }
}

/// Requests in flight at all backends.
fn in_flight(proxy: &Proxy) -> u64 {
    let status = proxy.status();
    let backends = status["backends"].as_array().unwrap();
    backends.iter().map(|backend| backend["in_flight"].as_u64().unwrap()).sum()
}

fn new_addresses_get_their_share(runtime: Runtime, names: &Names) {
    let _backends = ADDRESSES.map(plain);
    // Turns are even whatever happens, but for one request of each client; what is learned of
    // speeds on a busy machine is not.
    let policies =
        [("round-robin", 190..=210), ("least-load", 30..=500), ("cache-aware", 30..=500)];
    for (policy, shares) in policies {
        names.has(NAME, &ADDRESSES[..2]);
        let options = [&SOON[..], &["--policy", policy]].concat();
        let proxy = Proxy::before(runtime, &options, &upstream(NAME));
        await_up(&proxy, 2);
        let clients = Clients::start(&proxy, 4);
        clients.window(400);
        let changed = Instant::now();
        names.has(NAME, &ADDRESSES);
        await_up(&proxy, 4);
        let up = changed.elapsed();
        clients.window(400);
        // What was learned of speeds on a busy machine is made up for, sooner or later.
        eventually("each has its share", || {
            let counts = clients.window(800);
            println!("{policy}: {counts:?}");
            counts.len() == 4 && counts.values().all(|count| shares.contains(count))
        });
        tell(policy, changed, up, &clients.stop());
    }
}

/// Prints how even the load was after a change.
fn tell(policy: &str, changed: Instant, up: Duration, answers: &[Answered]) {
    const STEP: u128 = 100;
    println!("{policy}: all were up {up:?} after the name had changed; requests per {STEP} ms:");
    let mut steps: BTreeMap<u128, [usize; 4]> = BTreeMap::new();
    for Answered { at, name, .. } in answers.iter().filter(|answered| answered.at >= changed) {
        let place = ADDRESSES.iter().position(|address| address == name).unwrap();
        steps.entry((*at - changed).as_millis() / STEP).or_default()[place] += 1;
    }
    for (step, counts) in steps.iter().take(20) {
        println!("    {:>5} ms: {counts:?}", step * STEP);
    }
}

fn look_ups_that_fail_change_nothing(runtime: Runtime, names: &Names) {
    let _backends = [plain(ADDRESSES[0]), plain(ADDRESSES[1])];
    names.has(NAME, &ADDRESSES[..1]);
    let proxy = Proxy::before(runtime, &SOON, &upstream(NAME));
    await_up(&proxy, 1);
    let failures =
        [Answer::Unknown, Answer::Failure, Answer::Silence, Answer::Addresses(Vec::new())];
    for (number, failure) in (1..).zip(failures) {
        names.say(NAME, failure.clone());
        proxy.await_entries("upstream does not resolve", number);
        // It is asked again and again, and says no more of it.
        let asked = names.asked(NAME);
        eventually("it is asked again", || names.asked(NAME) >= asked + 2);
        assert_eq!(proxy.entries("upstream does not resolve"), number, "{failure:?}");
        assert_eq!(proxy.ask(&chat("m")), 200, "{failure:?}");
        assert_eq!(proxy.entries("backend left"), 0, "{failure:?}");
        names.has(NAME, &ADDRESSES[..1]);
        proxy.await_entries("upstream resolves again", number);
    }
    names.has(NAME, &ADDRESSES[1..2]);
    proxy.await_entries("backend left", 1);
    await_up(&proxy, 1);
    assert_eq!(addresses(&proxy), [format!("{}:{PORT}", ADDRESSES[1])]);
}

fn a_name_that_never_resolved_holds_nothing_up(runtime: Runtime, names: &Names) {
    let backend = plain(ADDRESSES[0]);
    names.say(NAME, Answer::Silence);
    let upstreams = [format!("http://{NAME}:{PORT}"), format!("http://{}", backend.address())];
    let proxy = Proxy::before(runtime, &SOON, &upstreams);
    await_up(&proxy, 1);
    assert_eq!(proxy.ask(&chat("m")), 200);
    // That one may serve any name, for all we know.
    assert_eq!(proxy.ask(&chat("other")), 503);
    let _late = plain(ADDRESSES[1]);
    names.has(NAME, &ADDRESSES[1..2]);
    await_up(&proxy, 2);
    assert_eq!(proxy.ask(&chat("other")), 200, "a backend that knows no names answers");
}

fn of_both_families_the_fourth_counts(runtime: Runtime, names: &Names) {
    let _backend = plain(ADDRESSES[0]);
    names.has(NAME, &["::1", ADDRESSES[0], "::2"]);
    let proxy = Proxy::before(runtime, &SOON, &upstream(NAME));
    await_up(&proxy, 1);
    assert_eq!(addresses(&proxy), [format!("{}:{PORT}", ADDRESSES[0])]);
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        println!("this machine has no IPv6: addresses of that alone are not tried");
        return;
    }
    let _six = plain("::1");
    names.has(NAME, &["::1"]);
    proxy.await_entries("backend left", 1);
    await_up(&proxy, 1);
    assert_eq!(addresses(&proxy), [format!("[::1]:{PORT}")]);
}

fn the_hosts_file_may_be_edited(runtime: Runtime, names: &Names) {
    let _backends = [plain(ADDRESSES[0]), plain(ADDRESSES[1])];
    // Of several lines with one name glibc takes the first, unless `/etc/host.conf` says otherwise.
    let edit = |address: &str| names.write("hosts", &format!("{address} vllm.hosts\n"));
    edit(ADDRESSES[0]);
    let proxy = Proxy::before(runtime, &SOON, &upstream("vllm.hosts"));
    await_up(&proxy, 1);
    edit(ADDRESSES[1]);
    proxy.await_entries("backend left", 1);
    await_up(&proxy, 1);
    assert_eq!(names.asked("vllm.hosts"), 0, "no name server was needed");
    assert_eq!(addresses(&proxy), [format!("{}:{PORT}", ADDRESSES[1])]);
    assert_eq!(proxy.ask(&get("/health")), 200);
}

fn names_are_looked_up_at_a_signal(runtime: Runtime, names: &Names) {
    let _backends = [plain(ADDRESSES[0]), plain(ADDRESSES[1])];
    names.has(NAME, &ADDRESSES[..1]);
    let proxy = Proxy::before(runtime, &["--resolve-interval", "86400"], &upstream(NAME));
    await_up(&proxy, 1);
    let asked = names.asked(NAME);
    names.has(NAME, &ADDRESSES[1..2]);
    proxy.hang_up();
    proxy.await_entries("backend left", 1);
    await_up(&proxy, 1);
    assert_eq!(addresses(&proxy), [format!("{}:{PORT}", ADDRESSES[1])]);
    assert!(names.asked(NAME) > asked);
    assert_eq!(proxy.entries("looking at upstreams again"), 1);
}

with_names_on_every_runtime![
    from_2_addresses_to_4_to_1,
    new_addresses_get_their_share,
    look_ups_that_fail_change_nothing,
    a_name_that_never_resolved_holds_nothing_up,
    of_both_families_the_fourth_counts,
    the_hosts_file_may_be_edited,
    names_are_looked_up_at_a_signal,
];
