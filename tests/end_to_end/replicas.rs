//! Proxies on one Redis decide as one: what one has in flight, has placed, was told or has seen,
//! all know.

use crate::backend::Backend;
use crate::company::{
    alive, asked, await_agreement, await_company, await_equal_memory, chat, chat_of, company,
    elsewhere, hold, holding, sharing,
};
use crate::proxy::{Proxy, Runtime, eventually, on_every_runtime};
use crate::redis::{RedisServer, free_port};
use crate::redis_urls::TempPath;
use crate::wire::{framed, get, ok, post};
use rustix::process::{Signal, kill_process};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

fn what_a_killed_proxy_had_is_gone_and_nothing_else(runtime: Runtime) {
    const MANY: usize = 200;
    let redis = RedisServer::start(&[]);
    let backends = [holding("a"), holding("b")];
    let url = redis.url();
    let [mut a, b, c] = company(runtime, [&url; 3], &[&backends[0], &backends[1]]);
    let held_b: Vec<_> = (0..5).map(|_| hold(&b)).collect();
    let held_c: Vec<_> = (0..7).map(|_| hold(&c)).collect();
    eventually("few are known", || [&a, &b, &c].map(elsewhere) == [12, 7, 5]);
    let held_a: Vec<_> = (0..MANY).map(|_| hold(&a)).collect();
    eventually("all came", || {
        backends.iter().map(Backend::requests).sum::<usize>() == MANY + 5 + 7
    });
    let took = eventually("many are known", || (elsewhere(&b), elsewhere(&c)) == (207, 205));
    println!("{MANY} in flight were known after {took:?}");
    // Each counts as one, by whomever it was sent.
    let in_flight = |proxy: &Proxy| {
        let status = proxy.status();
        let each = status["backends"].as_array().expect("they are a list").clone();
        let sum = |one: &serde_json::Value| {
            one["in_flight"].as_u64().unwrap_or(0)
                + one["in_flight_elsewhere"].as_u64().unwrap_or(0)
        };
        each.iter().map(sum).collect::<Vec<_>>()
    };
    assert_eq!(in_flight(&b), [106, 106]);

    a.kill();
    let start = Instant::now();
    eventually("what it had is gone", || {
        let known = (elsewhere(&b), elsewhere(&c));
        assert!(known.0 >= 7 && known.1 >= 5, "the living keep what they have: {known:?}");
        assert!(known.0 == 7 || known.0 == 207, "it is gone at once or not at all: {known:?}");
        known == (7, 5)
    });
    println!("what the dead had was gone after {:?}", start.elapsed());
    for _ in 0..50 {
        assert_eq!((elsewhere(&b), elsewhere(&c)), (7, 5));
    }
    assert_eq!((alive(&b), alive(&c)), (1, 1));
    drop((held_a, held_b, held_c));
    eventually("nothing is in flight", || (elsewhere(&b), elsewhere(&c)) == (0, 0));
}

fn a_chat_stays_at_one_backend_whoever_is_asked(runtime: Runtime) {
    let redis = RedisServer::start(&[]);
    let backends = ["a", "b", "c"].map(holding);
    let url = redis.url();
    let all: Vec<&Backend> = backends.iter().collect();
    let proxies = company(runtime, [&url; 3], &all);
    let mut chats: Vec<(String, Option<String>)> =
        (0..20).map(|number| (format!("chat {number} begins. "), None)).collect();
    let (mut chance, mut moved) = (7_usize, 0);
    for turn in 0..5 {
        for (text, backend) in &mut chats {
            // Short ones, so that what is being computed for others is no reason to go elsewhere.
            let length = if turn == 0 { 200 } else { 20 };
            text.push_str(&format!("Turn {turn} has this to say. ").repeat(length));
            chance = chance.wrapping_mul(1_103_515_245).wrapping_add(12_345);
            let proxy = &proxies[(chance >> 16) % proxies.len()];
            let body =
                format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{text}"}}]}}"#);
            let answered = chat(proxy, &body);
            moved +=
                usize::from(backend.replace(answered.clone()).is_some_and(|it| it != answered));
            // A person takes longer than this to read the answer.
            await_equal_memory(&proxies);
        }
    }
    // A backend that was held up once may seem so slow that what it has is not worth the wait.
    assert!(moved <= 8, "{moved} of 80 times a chat went elsewhere");
    let used = |name: &str| chats.iter().any(|(_, backend)| backend.as_deref() == Some(name));
    assert!(["a", "b", "c"].iter().filter(|name| used(name)).count() > 1, "{chats:?}");
}

/// Keeps the responses that it made, and answers chats.
fn storing() -> Backend {
    let kept: Arc<Mutex<Vec<String>>> = Arc::default();
    Backend::answering(&["m"], move |request| {
        let line = String::from_utf8_lossy(&request.head).into_owned();
        let mut words = line.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut kept = kept.lock().expect("nobody panics with it");
        match (method, path.strip_prefix("/v1/responses")) {
            ("POST", Some("")) => {
                let id = format!("resp_{:p}{}", &*kept, kept.len());
                kept.push(id.clone());
                ok(format!(r#"{{"id":"{id}","object":"response"}}"#))
            }
            ("GET", Some(id)) if kept.iter().any(|kept| id[1..] == **kept) => {
                ok(format!(r#"{{"id":"{}"}}"#, &id[1..]))
            }
            (_, Some(_)) => framed("404 Not Found", r#"{"error":{"message":"not found"}}"#),
            (_, None) => ok("{}"),
        }
    })
}

fn a_stored_response_is_found_through_another_proxy(runtime: Runtime) {
    let redis = RedisServer::start(&[]);
    let backends = [storing(), storing(), storing()];
    let all: Vec<&Backend> = backends.iter().collect();
    let url = redis.url();
    let [a, b] = company(runtime, [&url; 2], &all);
    let mut made = Vec::new();
    for number in 0..9 {
        let body = format!(r#"{{"model":"m","input":"number {number}, and so on","store":true}}"#);
        let answer: serde_json::Value =
            serde_json::from_slice(&asked(&a, post("/v1/responses", &body)).body).unwrap();
        made.push(answer["id"].as_str().expect("it has one").to_owned());
    }
    // What is told later is heard later.
    chat(&a, &chat_of(1));
    let proxies = [a, b];
    await_equal_memory(&proxies);
    let before: usize = backends.iter().map(Backend::requests).sum();
    for id in &made {
        let answer = asked(&proxies[1], get(&format!("/v1/responses/{id}")));
        assert!(answer.text().contains(id), "{answer:?}");
    }
    let after: usize = backends.iter().map(Backend::requests).sum();
    assert_eq!(after - before, made.len(), "nobody else was asked");
}

/// Sleeps when it is told to, and says so.
fn sleepy(name: &'static str) -> Backend {
    let sleeps = AtomicBool::new(false);
    Backend::answering(&["m"], move |request| {
        let head = String::from_utf8_lossy(&request.head);
        let sleeping = || format!(r#"{{"is_sleeping":{}}}"#, sleeps.load(Ordering::SeqCst));
        match head.split([' ', '?']).nth(1).unwrap_or_default() {
            "/sleep" => sleeps.store(true, Ordering::SeqCst),
            "/wake_up" => sleeps.store(false, Ordering::SeqCst),
            "/is_sleeping" => return ok(sleeping()),
            "/is_paused" => return ok(r#"{"is_paused":false}"#),
            _ => return ok(name),
        }
        ok("")
    })
}

fn who_sleeps_is_known_to_all(runtime: Runtime) {
    let redis = RedisServer::start(&[]);
    let backends = [sleepy("a"), sleepy("b")];
    let url = redis.url();
    let [a, b, c] = company(runtime, [&url; 3], &[&backends[0], &backends[1]]);
    let rests = |proxy: &Proxy| proxy.status()["backends"][0]["rests"] == true;
    let one = backends[0].address();
    for (teller, order, sleeps) in [(&a, "sleep", true), (&c, "wake_up", false)] {
        asked(teller, post(&format!("/{order}?vllm_proxy_backend={one}"), ""));
        let took = eventually("all know", || [&a, &b, &c].iter().all(|one| rests(one) == sleeps));
        println!("{order} was known after {took:?}");
        for number in 0..6 {
            let answered = chat(&b, &chat_of(number));
            assert!(answered == "b" || !sleeps, "{answered} while it sleeps");
        }
    }
}

fn databases_are_apart_and_ways_to_one_are_not(runtime: Runtime) {
    let socket = TempPath::new("redis.sock");
    let socket = socket.as_str();
    let redis = RedisServer::start(&["--unixsocket", socket]);
    let backend = holding("a");
    let (tcp, unix) = (redis.url(), format!("redis+unix://{socket}"));
    let other = tcp.replace("/0", "/1");
    let [a, b] = company(runtime, [&tcp, &unix], &[&backend]);
    let [c, d] = company(runtime, [&other, &other], &[&backend]);
    let held = [hold(&a), hold(&a), hold(&c)];
    eventually("each knows its own", || (elsewhere(&b), elsewhere(&d)) == (2, 1));
    assert_eq!([&a, &b, &c, &d].map(alive), [1; 4]);
    drop(held);
    eventually("it is over", || (elsewhere(&b), elsewhere(&d)) == (0, 0));
}

/// Of an authority that nobody else trusts, whose key is gone: it vouches for 127.0.0.1, to 2120.
pub(crate) fn certificate(name: &str) -> String {
    format!("{}/../tests/end_to_end/tls/{name}.pem", env!("CARGO_MANIFEST_DIR"))
}

fn the_way_may_be_encrypted(runtime: Runtime) {
    let [authority, certificate, key] = ["ca", "cert", "key"].map(certificate);
    let port = free_port();
    let (text, url) = (port.to_string(), format!("rediss://127.0.0.1:{port}/0"));
    let options = ["--tls-port", &text, "--tls-cert-file", &certificate, "--tls-key-file", &key];
    let redis = RedisServer::start(&[&options[..], &["--tls-auth-clients", "no"]].concat());
    let backend = holding("a");
    let start = |variables: &[(&str, &str)]| {
        Proxy::among(runtime, &["--redis", &url], variables, &[backend.upstream()])
    };
    let trusting = [("SSL_CERT_FILE", authority.as_str())];
    let proxies = [start(&trusting), start(&trusting)];
    let [plain] = sharing(runtime, [&redis.url()], &[&backend]);
    let [a, b] = proxies;
    await_company(&[a, b, plain]);
    // Who does not know the authority does not talk to it.
    let stranger = start(&[]);
    eventually("it says why", || {
        let reason = stranger.status()["redis"]["reason"].to_string();
        reason.contains("certificate")
    });
    assert_eq!(alive(&stranger), 0);
}

fn a_proxy_that_was_stopped_comes_back(runtime: Runtime) {
    let redis = RedisServer::start(&[]);
    let backend = holding("a");
    let url = redis.url();
    let proxies = company(runtime, [&url; 3], &[&backend]);
    let held: Vec<_> = (0..4).map(|_| hold(&proxies[0])).collect();
    eventually("they are known", || proxies[1..].iter().all(|one| elsewhere(one) == 4));
    kill_process(proxies[0].pid(), Signal::STOP).expect("it runs");
    eventually("it is missed", || proxies[1..].iter().all(|one| alive(one) == 1));
    assert!(proxies[1..].iter().all(|one| elsewhere(one) == 0));
    let one = hold(&proxies[1]);
    kill_process(proxies[0].pid(), Signal::CONT).expect("it was only stopped");
    await_company(&proxies);
    eventually("its requests are known again", || {
        [0, 1, 2].map(|at: usize| elsewhere(&proxies[at])) == [1, 4, 5]
    });
    drop((held, one));
    await_agreement(&proxies);
}

fn what_is_in_both_lists_is_shared(runtime: Runtime) {
    let redis = RedisServer::start(&[]);
    let backends = [holding("a"), holding("b"), holding("c")];
    let url = redis.url();
    // The second in one list is the first in the other; policies need not be the same either.
    let [a] = sharing(runtime, [&url], &[&backends[0], &backends[1]]);
    let options = ["--redis", &url, "--policy", "least-load"];
    let b = Proxy::with(runtime, &options, &[&backends[1], &backends[2]]);
    let mut held: Vec<_> = (0..6).map(|_| hold(&a)).collect();
    eventually("what is common is known", || elsewhere(&b) == 3);
    let there = |proxy: &Proxy| {
        let status = proxy.status();
        let each = status["backends"].as_array().expect("they are a list").clone();
        let of = |one: &serde_json::Value| one["in_flight_elsewhere"].as_u64().unwrap_or(0);
        each.iter().map(of).collect::<Vec<_>>()
    };
    assert_eq!(there(&b), [3, 0]);
    // It evens that out.
    held.extend((0..3).map(|_| hold(&b)));
    eventually("they came", || backends[2].requests() == 3);
    assert_eq!((backends[1].requests(), there(&a)), (3, vec![0, 0]));
    drop(held);
    eventually("it is over", || elsewhere(&b) == 0);
}

fn metrics_tell_of_it(runtime: Runtime) {
    let mut redis = RedisServer::start(&[]);
    let backend = holding("a");
    let url = redis.url();
    let [a, b] = company(runtime, [&url; 2], &[&backend]);
    let held = hold(&b);
    let is_told = |lines: &[&str]| {
        let page = asked(&a, get("/metrics")).text();
        lines.iter().all(|line| page.lines().any(|other| other == *line))
    };
    let elsewhere =
        format!("vllm_proxy_requests_in_flight_elsewhere{{backend=\"{}\"}} 1", backend.address());
    let well = [
        "vllm_proxy_redis_up 1",
        "vllm_proxy_replicas 1",
        "vllm_proxy_alone 0",
        "vllm_proxy_updates_missed_total 0",
        "vllm_proxy_updates_unreadable_total 0",
        elsewhere.as_str(),
    ];
    eventually("all is well", || is_told(&well));
    eventually("the lag is known", || {
        asked(&a, get("/metrics")).text().contains("\nvllm_proxy_redis_lag_seconds 0.0")
    });
    redis.kill();
    let alone = ["vllm_proxy_redis_up 0", "vllm_proxy_replicas 0", "vllm_proxy_alone 1"];
    eventually("nothing is heard", || is_told(&alone));
    assert!(!asked(&a, get("/metrics")).text().contains("vllm_proxy_redis_lag_seconds"));
    drop(held);
}

on_every_runtime![
    what_a_killed_proxy_had_is_gone_and_nothing_else,
    a_chat_stays_at_one_backend_whoever_is_asked,
    a_stored_response_is_found_through_another_proxy,
    who_sleeps_is_known_to_all,
    databases_are_apart_and_ways_to_one_are_not,
    the_way_may_be_encrypted,
    a_proxy_that_was_stopped_comes_back,
    what_is_in_both_lists_is_shared,
    metrics_tell_of_it,
];
