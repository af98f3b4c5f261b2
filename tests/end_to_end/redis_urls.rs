//! Proxies find each other by every kind of URL that names their Redis, whoever they are to it, and
//! nothing that they say shows a password.

use crate::backend::Backend;
use crate::company::{asked, await_agreement, await_company, chat, chat_of, holding};
use crate::proxy::{Proxy, Runtime, eventually, on_every_runtime};
use crate::redis::{RedisServer, Relay, free_port};
use crate::replicas::certificate;
use crate::replicas_faults::{ALONE, UNKEPT, UNUSABLE, await_well};
use crate::wire::get;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

/// What proxies are to trust so that they believe a Redis with [`tls_options`].
pub(crate) fn authority() -> String {
    certificate("ca")
}

/// The options of a Redis that speaks TLS at this port.
pub(crate) fn tls_options(port: u16) -> Vec<String> {
    let port = port.to_string();
    let (key, own) = (certificate("key"), certificate("cert"));
    let options = [
        ["--tls-port", &port],
        ["--tls-key-file", &key],
        ["--tls-cert-file", &own],
        ["--tls-auth-clients", "no"],
    ];
    options.concat().into_iter().map(str::to_owned).collect()
}

/// A password that needs escapes, the same in a URL, another user's, and a key of backends.
const PASSWORD: &str = "open@sesame:1/2%?#";
const ESCAPED: &str = "open%40sesame%3A1%2F2%25%3F%23";
const ANOTHER: &str = "hunter-two";
pub(crate) const KEY: &str = "sk-of-backends";

/// Parts of them all.
const SECRETS: [&str; 3] = ["sesame", "hunter", KEY];

/// No proxy shows a secret anywhere: not in its log, however loud, nor in what it says of itself.
#[track_caller]
pub(crate) fn assert_discreet(proxies: &mut [Proxy]) {
    for proxy in proxies {
        let pages = [proxy.status().to_string(), asked(proxy, get("/metrics")).text()];
        proxy.kill();
        let (_, errors) = proxy.exit();
        let told = [proxy.told(), errors];
        for secret in SECRETS {
            let shown = told.iter().chain(&pages).find(|text| text.contains(secret));
            assert!(shown.is_none(), "{secret} is shown: {shown:?}");
        }
    }
}

/// As loud as can be, with this Redis, and more variables.
pub(crate) fn loud(
    runtime: Runtime,
    url: &str,
    variables: &[(&str, &str)],
    backends: &[&Backend],
) -> Proxy {
    let mut all = vec![("VLLM_PXY_REDIS", url), ("VLLM_PXY_BACKEND_KEY", KEY)];
    all.extend_from_slice(variables);
    let upstreams: Vec<_> = backends.iter().map(|backend| backend.upstream()).collect();
    let proxy = Proxy::among(runtime, &["-vvv", "--index-memory", "1MiB"], &all, &upstreams);
    proxy.await_entries("backend is up", backends.len());
    proxy
}

/// Where a socket or a file is to be; it is removed in the end.
pub(crate) struct TempPath(PathBuf);

impl TempPath {
    pub(crate) fn new(name: &str) -> Self {
        // Cases of one test run at the same time.
        static MADE: AtomicU64 = AtomicU64::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("vllm-proxy-{name}-{}-{number}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }

    pub(crate) fn as_str(&self) -> &str {
        self.0.to_str().expect("it is text")
    }
}

impl Drop for TempPath {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// All find each other, know what each has in hand, and are well.
#[track_caller]
fn all_share(mut proxies: Vec<Proxy>) {
    await_agreement(&proxies);
    await_well(&proxies);
    for proxy in &proxies {
        assert_eq!(proxy.entries(UNUSABLE), 0, "{}", proxy.told());
    }
    assert_discreet(&mut proxies);
}

fn every_url_without_a_password(runtime: Runtime) {
    let socket = TempPath::new("open");
    let redis = RedisServer::start(&["--unixsocket", socket.as_str()]);
    let port = redis.port();
    let mut urls = vec![
        redis.url(),
        format!("redis://127.0.0.1:{port}"),
        format!("redis://localhost:{port}/"),
        format!("redis+unix://{}", socket.as_str()),
    ];
    // Of all loopback addresses one where nobody has Redis's own port.
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let own = Ipv4Addr::new(127, 77, high, low.max(1));
    let places = [SocketAddr::from((own, 6379)), (Ipv6Addr::LOCALHOST, 0).into()];
    let ways = places.map(|place| Relay::at(place, port));
    for (way, place) in ways.iter().zip(places) {
        match way {
            Ok(_) if place.is_ipv4() => urls.push(format!("redis://{own}")),
            Ok(way) => urls.push(way.url()),
            Err(error) => println!("skipped: {place} cannot be had here: {error}"),
        }
    }
    let backend = holding("a");
    let proxies = urls.iter().map(|url| loud(runtime, url, &[], &[&backend])).collect();
    all_share(proxies);
}

fn every_url_with_a_password(runtime: Runtime) {
    let socket = TempPath::new("closed");
    let path = socket.as_str();
    let (tls_port, authority) = (free_port(), authority());
    let tls = tls_options(tls_port);
    let user = format!(">{ANOTHER}");
    let mut options = vec!["--unixsocket", path, "--requirepass", PASSWORD];
    options.extend(["--user", "someone", "on", &user, "~*", "&*", "+@all"]);
    options.extend(tls.iter().map(String::as_str));
    let redis = RedisServer::start(&options);
    let port = redis.port();
    let urls = [
        format!("redis://:{ESCAPED}@127.0.0.1:{port}/3"),
        format!("redis://someone:{ANOTHER}@127.0.0.1:{port}/3"),
        format!("rediss://:{ESCAPED}@127.0.0.1:{tls_port}/3"),
        format!("rediss://someone:{ANOTHER}@127.0.0.1:{tls_port}/3"),
        format!("redis+unix://:{ESCAPED}@{path}?db=3"),
        format!("redis+unix://someone:{ANOTHER}@{path}?db=3"),
    ];
    let backend = holding("a");
    let start =
        |url: &String| loud(runtime, url, &[("SSL_CERT_FILE", authority.as_str())], &[&backend]);
    all_share(urls.iter().map(start).collect());
}

fn the_rights_that_are_told_are_enough(runtime: Runtime) {
    const README: &str = include_str!("../../README.md");
    const LEFT: &[u8] = b"redis.call('SELECT', ARGV[1]) return #redis.call('KEYS', '*:kept:*')";
    let line = README.lines().find_map(|line| line.trim().strip_prefix("ACL SETUSER "));
    let rights = line.expect("the README has it").replace("PASSWORD", ANOTHER);
    let (name, _) = rights.split_once(' ').expect("a name comes first");
    let redis = RedisServer::start(&[]);
    let words = ["ACL", "SETUSER"].into_iter().chain(rights.split(' '));
    assert_eq!(redis.command(&words.map(str::as_bytes).collect::<Vec<_>>()), "+OK");
    let backend = holding("a");
    for db in ["0", "3"] {
        let url = format!("redis://{name}:{ANOTHER}@127.0.0.1:{}/{db}", redis.port());
        let mut proxies = [0; 2].map(|_| loud(runtime, &url, &[], &[&backend]));
        await_company(&proxies);
        chat(&proxies[0], &chat_of(1));
        eventually("it is kept", || redis.command(&[b"EVAL", LEFT, b"0", db.as_bytes()]) == ":1");
        await_agreement(&proxies);
        await_well(&proxies);
        for proxy in &proxies {
            let warned = [ALONE, UNUSABLE, UNKEPT];
            assert!(warned.iter().all(|entry| proxy.entries(entry) == 0), "{}", proxy.told());
        }
        assert_discreet(&mut proxies);
    }
    assert_eq!(redis.command(&[b"ACL", b"LOG"]), "*0", "Redis refused something");
}

on_every_runtime![
    every_url_without_a_password,
    every_url_with_a_password,
    the_rights_that_are_told_are_enough,
];
