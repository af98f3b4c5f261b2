//! Where proxies were told to find Redis there is something else, or a Redis that will not have
//! them: they say so once, in words for whoever must mend it, and go on alone without ado.

use crate::backend::Backend;
use crate::company::{asked, chat_of, holding};
use crate::proxy::{Proxy, Runtime, eventually, on_every_runtime};
use crate::redis::{RedisServer, Relay, free_port};
use crate::redis_urls::{TempPath, assert_discreet, authority, loud, tls_options};
use crate::replicas_faults::{UNUSABLE, reason};
use crate::wire::post;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

/// How long nothing must happen.
const QUIET: Duration = Duration::from_secs(4);

/// How soon another reason for the same trouble may be logged.
const REASON_GAP: Duration = Duration::from_secs(60);

/// Processor time of the threads that look for Redis, in each second: they try once a second, and
/// this is no optimised build.
const BUSY_A_SECOND: Duration = Duration::from_millis(20);

/// Somebody who listens there, and what he does with each connection.
fn somebody(meets: fn(&mut TcpStream) -> io::Result<()>) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has ports");
    let port = listener.local_addr().expect("it is bound").port();
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            thread::spawn(move || meets(&mut client));
        }
    });
    port
}

/// Says nothing until the client goes.
fn is_silent(client: &mut TcpStream) -> io::Result<()> {
    io::copy(client, &mut io::sink()).map(drop)
}

fn closes_at_once(_: &mut TcpStream) -> io::Result<()> {
    Ok(())
}

fn repeats_all(client: &mut TcpStream) -> io::Result<()> {
    let mut heard = client.try_clone()?;
    io::copy(&mut heard, client).map(drop)
}

fn speaks_http(client: &mut TcpStream) -> io::Result<()> {
    let read = client.read(&mut [0; 4_096])?;
    assert!(read > 0, "it was asked something");
    client.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
}

fn says_anything(client: &mut TcpStream) -> io::Result<()> {
    let garbage: Vec<_> = (0..=u8::MAX).rev().cycle().take(64 << 10).collect();
    client.write_all(&garbage)?;
    is_silent(client)
}

/// A file that a test needs.
fn file(name: &str, text: &str) -> TempPath {
    let path = TempPath::new(name);
    fs::write(path.as_str(), text).expect("there is room for it");
    path
}

/// Processor time that the threads of Redis took so far. Not of `stat`, where who runs when the
/// clock ticks is charged for others.
fn busy(proxy: &Proxy) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{}/task", proxy.pid())).expect("it runs").flatten();
    let of_redis: Vec<_> = tasks
        .map(|task| task.path())
        .filter(|task| {
            fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with("redis-"))
        })
        .collect();
    assert_eq!(of_redis.len(), 3, "none of them ended: {}", proxy.told());
    let time = |task: &PathBuf| {
        let said = fs::read_to_string(task.join("schedstat")).expect("Linux says it");
        let nanos = said.split(' ').next().and_then(|nanos| nanos.parse().ok());
        Duration::from_nanos(nanos.expect("it is a number"))
    };
    of_redis.iter().map(time).sum()
}

type Words = &'static [&'static str];

/// Where a proxy is told to find Redis, whom it is to trust, and words of what it says of that.
struct Place {
    url: String,
    authority: Option<String>,
    words: Words,
}

impl Place {
    fn new(url: impl Into<String>, words: Words) -> Self {
        Self { url: url.into(), authority: None, words }
    }

    fn trusting(self, authority: &str) -> Self {
        Self { authority: Some(authority.to_owned()), ..self }
    }

    fn start(&self, runtime: Runtime, backend: &Backend) -> Proxy {
        let variable = self.authority.iter().map(|file| ("SSL_CERT_FILE", file.as_str()));
        loud(runtime, &self.url, &variable.collect::<Vec<_>>(), &[backend])
    }
}

/// A proxy for each of these places, all of which are unusable: each says why, once, in a line that
/// has all of its words, and answers meanwhile; and then nothing follows.
#[track_caller]
fn assert_told_and_quiet(runtime: Runtime, places: &[Place]) {
    let (backend, begun) = (holding("a"), Instant::now());
    let mut proxies: Vec<_> = places.iter().map(|place| place.start(runtime, &backend)).collect();
    for (proxy, Place { url, words, .. }) in proxies.iter().zip(places) {
        proxy.await_entries(UNUSABLE, 1);
        let logged = reason(proxy, UNUSABLE);
        println!("{url}: {logged}");
        for word in *words {
            assert!(logged.contains(word), "{url}: {word} was expected in: {logged}");
        }
        // What the kernel says of a connection that was closed varies from one to the next.
        let is_told = || {
            let said = proxy.status()["redis"]["reason"].as_str().unwrap_or_default().to_owned();
            words.iter().all(|word| said.contains(word))
        };
        eventually("the status says the same", is_told);
        assert_eq!(proxy.status()["redis"]["connected"], false);
    }
    let lines = |proxy: &Proxy| {
        let all = proxy.told();
        all.lines().filter(|line| line.contains("Redis") || line.contains("alone")).count()
    };
    let before: Vec<_> = proxies.iter().map(|proxy| (busy(proxy), lines(proxy))).collect();
    let start = Instant::now();
    let mut number = 0;
    eventually("requests flow for some time", || {
        for proxy in &proxies {
            number += 1;
            asked(proxy, post("/v1/chat/completions", &chat_of(number)));
        }
        start.elapsed() > QUIET
    });
    for ((proxy, Place { url, .. }), (busy_before, lines_before)) in
        proxies.iter().zip(places).zip(before)
    {
        let (took, seconds) = (busy(proxy) - busy_before, start.elapsed().as_secs());
        println!("{url}: {took:?} of {:?}", start.elapsed());
        assert!(took <= BUSY_A_SECOND * seconds as u32, "{url}: {took:?} of {seconds} s");
        let more = lines(proxy) - lines_before;
        assert!(more == 0 || begun.elapsed() > REASON_GAP, "{url}: {}", proxy.told());
    }
    assert_discreet(&mut proxies);
}

fn what_is_there_is_no_redis(runtime: Runtime) {
    const SILENT: Words = &["no answer to INFO from redis", "within 2 s"];
    const CLOSED: Words = &["closed the connection", "a Redis server was expected"];
    const OTHER: Words = &["as Redis never would", "a Redis server was expected"];
    let user = |meets| format!("redis://someone:hunter-two@127.0.0.1:{}", somebody(meets));
    let bare = |meets| format!("redis://127.0.0.1:{}", somebody(meets));
    let nobody = format!("redis://127.0.0.1:{}", free_port());
    let (socket, authority) = (TempPath::new("absent"), authority());
    let socket = format!("redis+unix://{}", socket.as_str());
    let places = [
        Place::new(user(is_silent), &["no answer to AUTH from redis://127", "within 2 s"]),
        Place::new(bare(is_silent), SILENT),
        Place::new(bare(is_silent).replace("redis:", "rediss:"), SILENT).trusting(&authority),
        Place::new(user(closes_at_once), CLOSED),
        Place::new(bare(closes_at_once), CLOSED),
        Place::new(user(repeats_all), OTHER),
        Place::new(user(speaks_http), OTHER),
        Place::new(bare(speaks_http), OTHER),
        Place::new(bare(says_anything), OTHER),
        Place::new(nobody, &["cannot connect to redis://", "refused"]),
        Place::new(socket, &["cannot connect to redis+unix://", "No such file"]),
    ];
    assert_told_and_quiet(runtime, &places);
}

fn what_is_there_is_no_single_server(runtime: Runtime) {
    const NODE: Words = &["a node of a Redis cluster", "a single server was expected"];
    const SENTINEL: Words = &["a Redis sentinel", "a single server was expected"];
    let nodes = TempPath::new("nodes");
    // Its name alone, in the directory of the process.
    let (_, nodes) = nodes.as_str().rsplit_once('/').expect("it is a path");
    let bus = free_port().to_string();
    #[rustfmt::skip]
    let options = [
        "--cluster-enabled", "yes", "--cluster-config-file", nodes, "--cluster-port", &bus,
    ];
    let node = RedisServer::start(&options);
    let own = file("sentinel", "");
    let sentinel = RedisServer::start(&[own.as_str(), "--sentinel"]);
    let places = [
        Place::new(node.url(), NODE),
        Place::new(node.url().replace("/0", "/3"), NODE),
        Place::new(sentinel.url(), SENTINEL),
        Place::new(sentinel.url().replace("/0", "/3"), SENTINEL),
    ];
    assert_told_and_quiet(runtime, &places);
}

fn redis_will_not_have_us(runtime: Runtime) {
    let (open, closed) = (RedisServer::start(&[]), RedisServer::start(&["--requirepass", "other"]));
    let renamed = RedisServer::start(&["--rename-command", "AUTH", ""]);
    let full = RedisServer::start(&["--maxclients", "1"]);
    let _only = TcpStream::connect((Ipv4Addr::LOCALHOST, full.port())).expect("it listens");
    let as_user = |redis: &RedisServer, user: &str| {
        redis.url().replace("redis://", &format!("redis://{user}:hunter-two@"))
    };
    let places = [
        Place::new(as_user(&closed, ""), &["the password is wrong", "WRONGPASS"]),
        Place::new(as_user(&closed, "nobody"), &["the user or", "WRONGPASS"]),
        Place::new(closed.url(), &["Redis wants a password", "NOAUTH"]),
        Place::new(as_user(&open, "nobody"), &["the user or", "WRONGPASS"]),
        Place::new(as_user(&open, ""), &["AUTH", "without any password configured"]),
        Place::new(as_user(&renamed, "nobody"), &["AUTH", "unknown command"]),
        Place::new(open.url().replace("/0", "/99"), &["SELECT 99", "DB index is out of range"]),
        // What it says may be lost with the connection that it closes.
        Place::new(full.url(), &["INFO"]),
    ];
    assert_told_and_quiet(runtime, &places);
}

fn tls_is_not_as_expected(runtime: Runtime) {
    const UNTRUSTED: Words = &["TLS failed", "certificate", "SSL_CERT_FILE"];
    const NO_TLS: Words = &["a Redis server that speaks TLS was expected"];
    const NOWHERE: &str = "/nowhere/to-be-found";
    let (port, strict_port, authority) = (free_port(), free_port(), authority());
    let start = |options: &[String], more: &[&str]| {
        let options = options.iter().map(String::as_str).chain(more.iter().copied());
        RedisServer::start(&options.collect::<Vec<_>>())
    };
    let redis = start(&tls_options(port), &[]);
    let clients = ["--tls-auth-clients", "yes", "--tls-ca-cert-file", &authority];
    let _strict = start(&tls_options(strict_port), &clients);
    // The certificate is for another address.
    let other = Relay::at((Ipv4Addr::new(127, 0, 0, 2), 0).into(), port);
    let other = other.expect("all of 127/8 is loopback").url().replace("redis:", "rediss:");
    let by_tls = |port: u16| format!("rediss://127.0.0.1:{port}");
    let (plain, http) = (redis.port(), somebody(speaks_http));
    let empty = file("empty", "");
    let places = [
        Place::new(by_tls(plain), NO_TLS).trusting(&authority),
        Place::new(by_tls(http), NO_TLS).trusting(&authority),
        Place::new(format!("redis://127.0.0.1:{port}"), &["closed the connection"]),
        Place::new(other, UNTRUSTED).trusting(&authority),
        Place::new(by_tls(strict_port), &["tls-auth-clients no"]).trusting(&authority),
        Place::new(by_tls(port), UNTRUSTED),
        Place::new(by_tls(port), UNTRUSTED).trusting(empty.as_str()),
        Place::new(by_tls(port), &["cannot connect", NOWHERE]).trusting(NOWHERE),
    ];
    assert_told_and_quiet(runtime, &places);
}

on_every_runtime![
    what_is_there_is_no_redis,
    what_is_there_is_no_single_server,
    redis_will_not_have_us,
    tls_is_not_as_expected,
];
