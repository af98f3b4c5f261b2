//! What is kept in Redis for proxies that start when nobody is there to tell them, and what is said
//! where nothing can be kept.

use crate::backend::Backend;
use crate::company::{alive, asked, await_company, chat, chat_of, entries, holding, sharing};
use crate::proxy::{Proxy, Runtime, eventually, on_every_runtime};
use crate::redis::RedisServer;
use crate::replicas_faults::{
    ALONE, UNKEPT, UNUSABLE, await_well, reason, say, survives, with_user,
};
use crate::wire::get;
use rustix::process::{Signal, kill_process};

const WORKS: &str = "sharing with other proxies through Redis";
const READ: &str = "read what was kept in Redis";

/// Prompt tokens that a proxy believed to be cached where it sent requests.
fn predicted(proxy: &Proxy) -> u64 {
    let page = asked(proxy, get("/metrics")).text();
    let name = "vllm_proxy_sent_cached_tokens_total{";
    let lines = page.lines().filter(|line| line.starts_with(name));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

fn a_new_proxy_is_warm_though_all_others_are_dead(runtime: Runtime) {
    let redis = RedisServer::start(&[]);
    let backends = ["a", "b", "c", "d"].map(holding);
    let all: Vec<&Backend> = backends.iter().collect();
    let [mut a] = sharing(runtime, [&redis.url()], &all);
    // So that they are spread, each of the first half waits while those of the other are asked.
    let placed: Vec<_> = (0..24).map(|number| chat(&a, &chat_of(number))).collect();
    let expected = entries(&a);
    assert!(expected > 0);
    let upstreams: Vec<_> = all.iter().map(|backend| backend.upstream()).collect();
    let start = || Proxy::before(runtime, &["--redis", &redis.url()], &upstreams);
    let pattern = format!("vllm-proxy:1:kept:{}", "?".repeat(16));
    eventually("some is kept", || redis.command(&[b"KEYS", pattern.as_bytes()]) != "*0");
    // Nobody says when all is kept: what is asked is one that starts while the other is dead, or as
    // good as that.
    let all_is_kept = || {
        kill_process(a.pid(), Signal::STOP).expect("it runs");
        let b = start();
        b.await_entries(READ, 1);
        let known = entries(&b) == expected;
        kill_process(a.pid(), Signal::CONT).expect("it was only stopped");
        known
    };
    eventually("all is kept", all_is_kept);
    a.kill();
    let b = start();
    let took = eventually("it knows what was kept", || entries(&b) == expected);
    println!("{expected} entries were known {took:?} after it listened");
    b.await_entries("backend is up", backends.len());
    let again: Vec<_> = (0..24).map(|number| chat(&b, &chat_of(number))).collect();
    assert_eq!(again, placed);
    assert!(predicted(&b) >= 24 * 100, "{}", predicted(&b));
    assert_eq!(b.values(READ).len(), 1, "{}", b.told());
}

/// Waits until each proxy has said that nothing is kept, and for which reason. They still hear each
/// other.
fn await_unkept(proxies: &[Proxy], word: &str) {
    for proxy in proxies {
        proxy.await_entries(UNKEPT, 1);
        assert!(reason(proxy, UNKEPT).contains(word), "{}", proxy.told());
        assert_eq!(alive(proxy), 2);
        let said = proxy.status()["redis"]["reason"].to_string();
        assert!(said.contains(word), "{said}");
    }
}

/// Waits until nothing is wrong any more, which nobody was alone for.
fn assert_kept_again(proxies: &[Proxy]) {
    await_well(proxies);
    for proxy in proxies {
        proxy.await_entries(WORKS, 2);
        assert_eq!((proxy.entries(ALONE), proxy.entries(UNUSABLE)), (0, 0), "{}", proxy.told());
        assert_eq!(proxy.entries(UNKEPT), 1, "{}", proxy.told());
    }
}

fn redis_is_full(runtime: Runtime) {
    let scene = survives(
        runtime,
        say("CONFIG SET maxmemory 1"),
        |proxies| await_unkept(proxies, "maxmemory"),
        say("CONFIG SET maxmemory 0"),
    );
    assert_kept_again(&scene.proxies);
}

fn redis_is_full_and_evicts(runtime: Runtime) {
    let scene = survives(
        runtime,
        say("CONFIG SET maxmemory 1 maxmemory-policy allkeys-lru"),
        |proxies| await_unkept(proxies, "maxmemory"),
        say("CONFIG SET maxmemory 0"),
    );
    assert_kept_again(&scene.proxies);
}

fn redis_becomes_a_replica(runtime: Runtime) {
    // There is no such master, and what there is is read-only.
    let scene = survives(
        runtime,
        say("REPLICAOF 127.0.0.1 1"),
        |proxies| await_unkept(proxies, "read-only replica"),
        say("REPLICAOF NO ONE"),
    );
    assert_kept_again(&scene.proxies);
}

fn the_user_may_not_append(runtime: Runtime) {
    let scene = with_user(
        runtime,
        "ACL SETUSER someone on >open-sesame ~* &* +@all -append -rename",
        |proxies| {
            await_company(proxies);
            for proxy in proxies {
                proxy.await_entries(UNKEPT, 1);
                let reason = reason(proxy, UNKEPT);
                assert!(reason.contains("APPEND") && reason.contains("RENAME"), "{reason}");
            }
        },
        "ACL SETUSER someone +append +rename",
    );
    for proxy in &scene.proxies {
        assert_eq!((proxy.entries(ALONE), proxy.entries(UNKEPT)), (0, 1), "{}", proxy.told());
    }
}

on_every_runtime![
    a_new_proxy_is_warm_though_all_others_are_dead,
    redis_is_full,
    redis_is_full_and_evicts,
    redis_becomes_a_replica,
    the_user_may_not_append,
];
