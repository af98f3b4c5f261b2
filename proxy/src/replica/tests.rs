//! Engines in this process, each with its threads to one real Redis, which goes through all that
//! can happen to it. What requests meet meanwhile is tested with whole proxies, end to end.

#[path = "../../../tests/patience.rs"]
mod patience;
#[allow(dead_code, reason = "the end-to-end tests use the rest")]
#[path = "../../../tests/end_to_end/redis.rs"]
mod redis;

use self::patience::PATIENCE;
use self::redis::{RedisServer, Relay};
use super::*;
use crate::redis_url::Redis;
use crate::shared::{Clock, Order};
use rstest::rstest;
use smol::channel::Receiver;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant as SystemInstant};
use vllm_proxy_core::config::Config;
use vllm_proxy_core::engine::{Company, Engine, Input, Lend, Output};
use vllm_proxy_core::fleet::{Address, BackendId, BackendSpec, Labels, Update, Word};
use vllm_proxy_core::rng::mix;
use vllm_proxy_core::route::{Decision, Fingerprint, Outcome, RequestMeta, Ticket, Who};
use vllm_proxy_core::wire::probe::{ModelCard, Probe};

const BACKENDS: u16 = 4;
const CHUNK_BYTES: u64 = 512;

/// What is not appended for so long is not to come: each looks five times a second.
const QUIET: Duration = Duration::from_secs(3);

/// An engine that has all backends, and its threads.
struct Proxy {
    shared: Arc<SharedEngine>,
    _orders: Receiver<Order>,
}

impl Proxy {
    fn start(url: &str, id: u64) -> Self {
        Self::with_index(url, id, 1 << 20)
    }

    fn with_index(url: &str, id: u64, index_memory: usize) -> Self {
        let config = Config { upstreams: 1, index_memory, proxy: Some(id), ..Config::default() };
        let clock = Clock::since(SystemInstant::now());
        let (shared, orders) = SharedEngine::new(Engine::new(config, id, clock.now()), clock);
        let shared = Arc::new(shared);
        let specs: Vec<_> = (1..=BACKENDS).map(spec).collect();
        shared.tell(Input::Discovered(&specs));
        let known: Vec<_> = std::iter::from_fn(|| orders.try_recv().ok()).collect();
        for order in known {
            let Order::Output(Output::Probe(backend)) = order else { continue };
            shared.tell(Input::Probed(backend, Ok(answer())));
        }
        let Ok(Redis::At(url)) = Redis::parse(url) else { panic!("{url} is one") };
        start(Arc::clone(&shared), url, Named::Yes, ProxyId(id)).expect("it has threads");
        Self { shared, _orders: orders }
    }

    fn engine<T>(&self, visit: impl FnOnce(&mut Engine) -> T) -> T {
        (&*self.shared as &dyn Lend).with(visit)
    }

    /// Beginnings of prompts that it remembers.
    fn entries(&self) -> usize {
        let decision = self.decide(Who::Status, 0, 0);
        let Decision::Status(status) = decision else { panic!("not a status: {decision:?}") };
        status.index.map_or(0, |index| index.entries)
    }

    /// A request with a prompt of so many chunks of that text.
    fn send(&self, text: u64, chunks: u64) -> (BackendId, Ticket) {
        let decision = self.decide(Who::Backend, text, chunks);
        let Decision::Forward(route) = decision else { panic!("all are up, yet: {decision:?}") };
        (route.backend, route.ticket)
    }

    fn decide(&self, who: Who, text: u64, chunks: u64) -> Decision {
        let now = self.shared.clock().now();
        let bytes = chunks * CHUNK_BYTES;
        let prompt = (0..chunks).map(|at| mix(text << 20 | at)).collect();
        let prompt = Fingerprint::of_chunks(prompt, bytes);
        let meta = RequestMeta { who, model: Some("m"), ..RequestMeta::of_prompt(&prompt, now) };
        self.engine(|engine| engine.route(&meta, now))
    }

    /// A whole request.
    fn serve(&self, text: u64, chunks: u64) -> BackendId {
        let (backend, ticket) = self.send(text, chunks);
        let now = self.shared.clock().now();
        self.engine(|engine| engine.first_byte(&ticket, now));
        self.engine(|engine| engine.finish(ticket, Outcome::done(200), now));
        backend
    }

    fn company(&self) -> Company {
        self.engine(|engine| engine.company())
    }

    fn hash(&self) -> u64 {
        self.engine(|engine| engine.shared_hash())
    }
}

fn spec(port: u16) -> BackendSpec {
    BackendSpec {
        upstream: 0,
        address: Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
        authority: format!("a:{port}"),
        prefix: String::new(),
        labels: Labels::default(),
    }
}

fn answer() -> Probe {
    let card = ModelCard { raw: "{\"id\":\"m\"}".into(), id: "m".into(), ..ModelCard::default() };
    Probe { health: 200, models: Some(vec![card]), ..Probe::default() }
}

/// Waits until it is so.
fn until(what: &str, mut so: impl FnMut() -> bool) {
    let end = SystemInstant::now() + PATIENCE;
    while !so() {
        assert!(SystemInstant::now() < end, "it never came to this: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Three proxies that hear each other.
fn three(urls: [&str; 3]) -> [Proxy; 3] {
    let mut id = 0;
    let proxies = urls.map(|url| {
        id += 1;
        Proxy::start(url, 0xa0 + id)
    });
    until("all hear all", || proxies.iter().all(|proxy| proxy.company().alive == 2));
    proxies
}

/// Waits until all know the same, and all of them are there.
fn agree(proxies: &[Proxy]) {
    until("all know the same", || {
        let hashes: Vec<_> = proxies.iter().map(Proxy::hash).collect();
        let alive = proxies.iter().all(|proxy| proxy.company().alive == proxies.len() - 1);
        alive && hashes.windows(2).all(|pair| pair[0] == pair[1])
    });
}

/// Prompts that nobody had before, spread over all proxies; an open request at each in the end.
fn traffic(proxies: &[Proxy], from: u64) -> Vec<(usize, Ticket)> {
    for text in from..from + 30 {
        let proxy = usize::try_from(text).expect("it is small") % proxies.len();
        proxies[proxy].serve(text, 2 + text % 40);
    }
    let open = |proxy: usize| (proxy, proxies[proxy].send(from + 100 + proxy as u64, 20).1);
    (0..proxies.len()).map(open).collect()
}

fn settle(proxies: &[Proxy], open: Vec<(usize, Ticket)>) {
    for (proxy, ticket) in open {
        let now = proxies[proxy].shared.clock().now();
        proxies[proxy].engine(|engine| engine.finish(ticket, Outcome::ClientGone, now));
    }
}

#[test]
fn what_one_decides_all_know() {
    let server = RedisServer::start(&[]);
    let proxies = three([&server.url(), &server.url(), &server.url()]);
    let open = traffic(&proxies, 0);
    agree(&proxies);
    // A conversation goes on at the backend that has it, whoever is asked.
    let backend = proxies[0].serve(7_777, 50);
    agree(&proxies);
    assert_eq!([1, 2].map(|proxy: usize| proxies[proxy].serve(7_777, 50)), [backend; 2]);
    settle(&proxies, open);
    agree(&proxies);
}

/// What happens to Redis, and what ends it.
type Fault = (fn(&mut RedisServer), fn(&mut RedisServer));

const KILLED: Fault = (RedisServer::kill, RedisServer::restart);
const RESTARTED: Fault = (RedisServer::restart, |_| {});
const HUNG: Fault = (|server| server.hang(), |server| server.go_on());
const FLUSHED: Fault = (|server| drop(server.command(&[b"FLUSHALL"])), |_| {});
const FULL: Fault = (
    |server| drop(server.command(&[b"CONFIG", b"SET", b"maxmemory", b"1"])),
    |server| drop(server.command(&[b"CONFIG", b"SET", b"maxmemory", b"0"])),
);
const EVICTING: Fault = (
    |server| {
        server.command(&[b"CONFIG", b"SET", b"maxmemory-policy", b"allkeys-lru"]);
        server.command(&[b"CONFIG", b"SET", b"maxmemory", b"1"]);
    },
    |server| drop(server.command(&[b"CONFIG", b"SET", b"maxmemory", b"0"])),
);
const DEAF: Fault =
    (|server| drop(server.command(&[b"CLIENT", b"KILL", b"TYPE", b"pubsub"])), |_| {});
const DROPPED: Fault = (
    |server| {
        for kind in [&b"pubsub"[..], b"normal"] {
            server.command(&[b"CLIENT", b"KILL", b"TYPE", kind]);
        }
    },
    |_| {},
);

/// Nobody waits for any of it; and when it is over, all know the same again.
#[rstest]
#[case::killed(KILLED)]
#[case::restarted_empty(RESTARTED)]
#[case::hung(HUNG)]
#[case::flushed(FLUSHED)]
#[case::full(FULL)]
#[case::evicting(EVICTING)]
#[case::nobody_listens(DEAF)]
#[case::connections_dropped(DROPPED)]
fn all_agree_when_a_fault_is_over(#[case] (begin, end): Fault) {
    let mut server = RedisServer::start(&[]);
    let proxies = three([&server.url(), &server.url(), &server.url()]);
    let before = traffic(&proxies, 0);
    agree(&proxies);
    begin(&mut server);
    let during = traffic(&proxies, 1_000);
    end(&mut server);
    let after = traffic(&proxies, 2_000);
    settle(&proxies, before);
    agree(&proxies);
    settle(&proxies, during);
    settle(&proxies, after);
    agree(&proxies);
}

#[test]
fn garbage_does_no_harm() {
    let server = RedisServer::start(&[]);
    let proxies = three([&server.url(), &server.url(), &server.url()]);
    let open = traffic(&proxies, 0);
    agree(&proxies);
    for garbage in [&b""[..], b"hello", &[0xff; 300], &[1, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]] {
        server.command(&[b"PUBLISH", b"vllm-proxy:1:0", garbage]);
    }
    let names = proxies[0].engine(|engine| engine.names().collect::<Vec<_>>());
    for (at, key) in names.into_iter().map(keep::key).enumerate() {
        server.command(&[b"DEL", key.as_bytes()]);
        if at % 2 == 0 {
            server.command(&[b"LPUSH", key.as_bytes(), b"hello"]);
        } else {
            server.command(&[b"SET", key.as_bytes(), b"hello, this is nothing at all"]);
        }
    }
    server.command(&[b"SET", b"vllm-proxy:1:kept:mending", b"hello"]);
    settle(&proxies, open);
    settle(&proxies, traffic(&proxies, 1_000));
    agree(&proxies);
    until("the logs are mended", || {
        server.command(&[b"GET", b"vllm-proxy:1:kept:mending"]) != "hello"
    });
    until("garbage is counted", || {
        proxies
            .iter()
            .all(|proxy| proxy.engine(|e| e.reported().is_some_and(|r| r.unreadable >= 3)))
    });
    // Who comes now clears away what cannot be read, and is told the rest.
    let newcomer = Proxy::start(&server.url(), 0xb1);
    let [a, b, c] = proxies;
    agree(&[a, b, c, newcomer]);
}

#[test]
fn one_that_is_cut_off_alone_catches_up() {
    let server = RedisServer::start(&[]);
    let relay = Relay::to(server.port());
    let proxies = three([&server.url(), &server.url(), &relay.url()]);
    agree(&proxies);
    relay.cut();
    until("the others miss it", || proxies[0].company().alive == 1);
    let open = traffic(&proxies, 0);
    relay.heal();
    agree(&proxies);
    settle(&proxies, open);
    agree(&proxies);
}

#[test]
fn a_long_way_delays_what_is_heard_and_nothing_else() {
    let server = RedisServer::start(&[]);
    let relay = Relay::to(server.port());
    relay.delay(Duration::from_millis(50));
    let proxies = three([&relay.url(), &server.url(), &relay.url()]);
    let open = traffic(&proxies, 0);
    agree(&proxies);
    settle(&proxies, open);
    agree(&proxies);
    let lag = |proxy: &Proxy| proxy.engine(|e| e.reported().and_then(|report| report.lag));
    until("the lag is known", || lag(&proxies[0]).is_some_and(|lag| lag.as_millis() >= 100));
    until("who is near has less", || lag(&proxies[1]).is_some_and(|lag| lag.as_millis() < 100));
}

/// Bytes of all logs together.
fn kept(server: &RedisServer, proxy: &Proxy) -> u64 {
    let names = proxy.engine(|engine| engine.names().collect::<Vec<_>>());
    let length = |name| server.command(&[b"STRLEN", keep::key(name).as_bytes()]);
    let lengths = names.into_iter().map(length);
    lengths.map(|length| length.trim_start_matches(':').parse::<u64>().expect("it is one")).sum()
}

/// Where prompts of so many texts go, and how many tokens of each are believed to be there.
fn ask(proxy: &Proxy, texts: u64) -> Vec<(BackendId, bool)> {
    let ask = |text| {
        let (backend, ticket) = proxy.send(text, 30);
        let work = proxy.engine(|engine| engine.work(&ticket)).expect("it is open");
        let now = proxy.shared.clock().now();
        proxy.engine(|engine| engine.finish(ticket, Outcome::ClientGone, now));
        (backend, work.uncached < work.prompt / 2)
    };
    (0..texts).map(ask).collect()
}

/// All others end, and one that starts later goes on where they were: with what was kept, and with
/// what was kept anew after all was lost.
#[rstest]
#[case::as_it_was(|_: &mut RedisServer| {})]
#[case::kept_anew_after_a_flush(FLUSHED.0)]
#[case::kept_anew_after_a_restart(RESTARTED.0)]
fn a_newcomer_is_warm_though_nobody_is_there(#[case] fault: fn(&mut RedisServer)) {
    let mut server = RedisServer::start(&[]);
    let relay = Relay::to(server.port());
    let proxies = three([&relay.url(), &relay.url(), &relay.url()]);
    let placed: Vec<_> = (0..40).map(|text| (proxies[0].serve(text, 30), true)).collect();
    agree(&proxies);
    let all_is_kept = |server: &RedisServer| {
        // Nobody says when; ticks without anything new do.
        let (mut last, mut since) = (0, SystemInstant::now());
        until("all is kept", || {
            let now = kept(server, &proxies[0]);
            if now != last {
                (last, since) = (now, SystemInstant::now());
            }
            last > 40 * 29 * 8 && since.elapsed() > QUIET
        });
    };
    all_is_kept(&server);
    fault(&mut server);
    all_is_kept(&server);
    relay.cut();
    let start = SystemInstant::now();
    let newcomer = Proxy::start(&server.url(), 0xb1);
    until("it knows what was kept", || newcomer.entries() == proxies[0].entries());
    println!("warm after {:?}", start.elapsed());
    assert_eq!(ask(&newcomer, 40), placed);
}

/// Listens to what is published.
fn listen(server: &RedisServer, mut heard: impl FnMut(Word) -> bool) {
    let Ok(Redis::At(url)) = Redis::parse(&server.url()) else { panic!("it is one") };
    let mut connection = connect::connect(&url).expect("it is there");
    let mut subscription = connection.as_pubsub();
    subscription.subscribe("vllm-proxy:1:0").expect("anybody may");
    loop {
        let message = subscription.get_message().expect("something is always told");
        if let Ok(word) = Word::decode(message.get_payload_bytes())
            && !heard(word)
        {
            return;
        }
    }
}

fn publish(server: &RedisServer, word: &Word) {
    let mut bytes = Vec::new();
    word.encode(&mut bytes);
    server.command(&[b"PUBLISH", b"vllm-proxy:1:0", &bytes]);
}

fn sign_of_life(proxy: u64, number: u64) -> Word {
    let (about, lengths) = (Vec::new(), Vec::new());
    Word::Update(Update { proxy: ProxyId(proxy), number, about, lengths })
}

/// However many ask, and however often.
#[test]
fn all_is_not_told_all_the_time() {
    let server = RedisServer::start(&[]);
    let proxies = three([&server.url(), &server.url(), &server.url()]);
    agree(&proxies);
    let (mut told, mut asker) = (Vec::new(), 0);
    listen(&server, |word| {
        // How the backends stand is told once with each snapshot.
        if let Word::Update(update) = &word
            && update.proxy == ProxyId(0xa1)
            && update.about.first().is_some_and(|about| about.clock.is_some())
        {
            told.push(SystemInstant::now());
        }
        asker += 1;
        publish(&server, &Word::Ask { from: ProxyId(asker), to: ProxyId(0xa1) });
        told.len() < 3
    });
    // Twice 5 s, and the first may have been heard late.
    assert!(told[2] - told[0] > Duration::from_secs(4), "all was told again within {told:?}");
}

/// One that has just died is asked, too, as nobody knows.
#[test]
fn who_does_not_answer_is_not_waited_for() {
    let server = RedisServer::start(&[]);
    let knowing = Proxy::start(&server.url(), 0xa1);
    let placed: Vec<_> = (0..40).map(|text| (knowing.serve(text, 30), true)).collect();
    until("it is kept", || kept(&server, &knowing) >= 40 * 29 * 8);
    server.command(&[b"FLUSHALL"]);
    let newcomer = Proxy::start(&server.url(), 0xb1);
    let mut number = 0;
    until("it hears the one that dies first", || {
        number += 1;
        publish(&server, &sign_of_life(0xdead, number));
        newcomer.engine(|engine| engine.peer()) == Some(ProxyId(0xdead))
    });
    until("it knows what another told it", || newcomer.hash() == knowing.hash());
    assert_eq!(ask(&newcomer, 40), placed);
}

/// Who listens again at once was never alone.
#[test]
fn a_subscription_that_breaks_now_and_then_is_no_loss() {
    let server = RedisServer::start(&[]);
    let proxies = three([&server.url(), &server.url(), &server.url()]);
    until("all know that they are connected", || proxies.iter().all(connected));
    let mut text = 0;
    let mut stays_whole = || {
        let end = SystemInstant::now() + Duration::from_secs(4);
        while SystemInstant::now() < end {
            server.command(&[b"CLIENT", b"KILL", b"TYPE", b"pubsub"]);
            let pause = SystemInstant::now() + Duration::from_millis(500);
            while SystemInstant::now() < pause {
                text += 1;
                proxies[0].serve(text, 3);
                if !proxies.iter().all(connected) {
                    return false;
                }
            }
        }
        true
    };
    // Where this machine holds a thread up for as long as others wait for a word, it is cut off.
    assert!((0..10).any(|_| stays_whole()), "one says that it is cut off");
    agree(&proxies);
}

fn connected(proxy: &Proxy) -> bool {
    proxy.engine(|engine| engine.reported().is_some_and(|report| report.connected))
}

/// Waits until nobody appends anything more: nobody says when all is kept.
fn settled(server: &RedisServer, proxy: &Proxy) {
    let (mut last, mut since) = (0, SystemInstant::now());
    until("all is kept", || {
        let now = kept(server, proxy);
        if now != last {
            (last, since) = (now, SystemInstant::now());
        }
        now > 0 && since.elapsed() > QUIET
    });
}

/// Those who all find their connections broken all append all they know. What each appends is half
/// of a log, and all together several logs.
#[test]
fn many_that_mend_the_logs_leave_them_whole() {
    let server = RedisServer::start(&[]);
    let relay = Relay::to(server.port());
    let url = relay.url();
    // So large that nobody appends all in one go.
    let proxies: Vec<_> = (0..6).map(|at| Proxy::with_index(&url, 0xa0 + at, 32 << 20)).collect();
    agree(&proxies);
    let chunks = |engine: &mut Engine| {
        engine.names().filter_map(|name| engine.kept_chunks(name)).sum::<u64>()
    };
    let texts = proxies[0].engine(chunks) / 31;
    for text in 0..texts {
        proxies[0].serve(text, 30);
    }
    agree(&proxies);
    settled(&server, &proxies[0]);
    server.command(&[b"CLIENT", b"KILL", b"TYPE", b"normal"]);
    // Each finds that out when it has something to append.
    for (proxy, text) in proxies.iter().zip(1 << 40..) {
        proxy.serve(text, 2);
    }
    agree(&proxies);
    settled(&server, &proxies[0]);
    relay.cut();
    let newcomer = Proxy::with_index(&server.url(), 0xb1, 32 << 20);
    until("it knows what was kept", || newcomer.hash() == proxies[0].hash());
}
