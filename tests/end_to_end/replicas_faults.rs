//! Whatever happens to Redis: requests go on as if nothing was, an operator is told once, and when
//! it is over, all proxies know the same again.

use crate::backend::Backend;
use crate::company::{Traffic, alive, await_agreement, await_company, company, holding, sharing};
use crate::proxy::{Proxy, Runtime, eventually, on_every_runtime};
use crate::redis::{RedisServer, Relay};
use crate::wire::chat;
use std::time::Duration;

pub(crate) const UNUSABLE: &str =
    "Redis cannot be used: requests are routed by what this proxy knows";
pub(crate) const ALONE: &str = "alone: other proxies cannot be heard";
pub(crate) const UNKEPT: &str = "nothing is kept in Redis for proxies that start";
const HEARD: &str = "no longer alone: other proxies can be heard";

/// Answers that each client gets while a fault lasts, or before it.
const SOME: usize = 50;

fn backends() -> [Backend; 2] {
    [holding("a"), holding("b")]
}

/// Proxies, and what must not end before they do.
pub(crate) struct Scene<const N: usize> {
    pub(crate) proxies: [Proxy; N],
    _redis: RedisServer,
    _backends: [Backend; 2],
}

/// Three proxies, requests that flow through them, a fault, its end. `noticed` waits for what must
/// follow from the fault.
pub(crate) fn survives(
    runtime: Runtime,
    fault: impl FnOnce(&mut RedisServer),
    noticed: impl FnOnce(&[Proxy]),
    end: impl FnOnce(&mut RedisServer),
) -> Scene<3> {
    let mut redis = RedisServer::start(&[]);
    let backends = backends();
    let url = redis.url();
    let proxies = company(runtime, [&url; 3], &[&backends[0], &backends[1]]);
    let traffic = Traffic::start(&proxies);
    traffic.await_answers(SOME);
    fault(&mut redis);
    traffic.await_answers(SOME);
    noticed(&proxies);
    traffic.await_answers(SOME);
    end(&mut redis);
    traffic.await_answers(SOME);
    await_company(&proxies);
    traffic.stop();
    await_agreement(&proxies);
    Scene { proxies, _redis: redis, _backends: backends }
}

/// Waits until each proxy says that it is alone, and why.
fn await_alone(proxies: &[Proxy]) {
    for proxy in proxies {
        eventually("it is alone", || {
            let status = proxy.status();
            status["replicas"]["alone"] == true
                && status["redis"]["connected"] == false
                && status["redis"]["reason"].is_string()
        });
        eventually("nobody else counts", || alive(proxy) == 0);
    }
}

/// Waits until each proxy is well again and says so.
pub(crate) fn await_well(proxies: &[Proxy]) {
    for proxy in proxies {
        eventually("it is well", || {
            let status = proxy.status();
            status["replicas"]["alone"] == false
                && status["redis"]["connected"] == true
                && status["redis"]["reason"].is_null()
        });
    }
}

/// Being alone and its end were logged once by each, with one reason.
#[track_caller]
fn assert_told_once(proxies: &[Proxy]) {
    for proxy in proxies {
        // What the status says already may still be on its way into the log.
        proxy.await_entries(HEARD, 1);
        let count = |message| proxy.entries(message);
        let counts = [ALONE, UNUSABLE, HEARD, UNKEPT].map(count);
        assert_eq!(counts, [1, 1, 1, 0], "{}", proxy.told());
    }
}

/// The reason that a proxy logged, once.
#[track_caller]
pub(crate) fn reason(proxy: &Proxy, message: &str) -> String {
    // What the status says already may still be on its way into the log.
    proxy.await_entries(message, 1);
    let values = proxy.values(message);
    assert_eq!(values.len(), 1, "{}", proxy.told());
    values[0]["reason"].as_str().expect("there is one").to_owned()
}

fn redis_that_is_not_there_yet(runtime: Runtime) {
    let mut redis = RedisServer::absent();
    let backends = backends();
    let url = redis.url();
    let proxies = sharing(runtime, [&url; 3], &[&backends[0], &backends[1]]);
    let traffic = Traffic::start(&proxies);
    await_alone(&proxies);
    traffic.await_answers(4 * SOME);
    for proxy in &proxies {
        assert!(reason(proxy, UNUSABLE).contains("refused"), "{}", proxy.told());
    }
    redis.restart();
    traffic.await_answers(SOME);
    traffic.stop();
    await_agreement(&proxies);
    await_well(&proxies);
    assert_told_once(&proxies);
}

fn redis_is_killed_and_starts_empty(runtime: Runtime) {
    let scene = survives(runtime, RedisServer::kill, await_alone, RedisServer::restart);
    await_well(&scene.proxies);
    assert_told_once(&scene.proxies);
}

fn redis_restarts_empty_at_once(runtime: Runtime) {
    let scene = survives(runtime, RedisServer::restart, |_| {}, |_| {});
    await_well(&scene.proxies);
    for proxy in &scene.proxies {
        assert_eq!(proxy.entries(UNKEPT), 0, "{}", proxy.told());
    }
}

fn redis_hangs(runtime: Runtime) {
    let scene = survives(runtime, |redis| redis.hang(), await_alone, |r| r.go_on());
    await_well(&scene.proxies);
    assert_told_once(&scene.proxies);
}

fn redis_is_flushed(runtime: Runtime) {
    let flush = |redis: &mut RedisServer| drop(redis.command(&[b"FLUSHALL"]));
    let scene = survives(runtime, flush, await_company, |_| {});
    for proxy in &scene.proxies {
        assert_eq!(proxy.entries(ALONE), 0, "{}", proxy.told());
    }
}

/// Says one command to Redis.
pub(crate) fn say(words: &'static str) -> impl FnOnce(&mut RedisServer) {
    move |redis| {
        let words: Vec<_> = words.split(' ').map(str::as_bytes).collect();
        assert_eq!(redis.command(&words), "+OK");
    }
}

/// Proxies as a user of Redis who may not do what must be done, until he may.
pub(crate) fn with_user(
    runtime: Runtime,
    rights: &'static str,
    noticed: impl FnOnce(&[Proxy]),
    more_rights: &'static str,
) -> Scene<2> {
    let mut redis = RedisServer::start(&[]);
    say(rights)(&mut redis);
    let backends = backends();
    let url = redis.url().replace("redis://", "redis://someone:open-sesame@");
    let proxies = sharing(runtime, [&url; 2], &[&backends[0], &backends[1]]);
    let traffic = Traffic::start(&proxies);
    noticed(&proxies);
    traffic.await_answers(2 * SOME);
    say(more_rights)(&mut redis);
    traffic.await_answers(SOME);
    traffic.stop();
    await_agreement(&proxies);
    await_well(&proxies);
    for proxy in &proxies {
        assert!(!proxy.told().contains("sesame"), "{}", proxy.told());
        assert!(!proxy.status().to_string().contains("sesame"));
    }
    Scene { proxies, _redis: redis, _backends: backends }
}

fn the_password_is_wrong(runtime: Runtime) {
    let scene = with_user(
        runtime,
        "ACL SETUSER someone on >another ~* &* +@all",
        |proxies| {
            await_alone(proxies);
            for proxy in proxies {
                let reason = reason(proxy, UNUSABLE);
                assert!(reason.contains("the password is wrong"), "{reason}");
            }
        },
        "ACL SETUSER someone >open-sesame",
    );
    assert_told_once(&scene.proxies);
}

/// One who may do all but this.
fn the_user_may_not(runtime: Runtime, what: &str, rights: &'static str, more_rights: &'static str) {
    let noticed = |proxies: &[Proxy]| {
        await_alone(proxies);
        for proxy in proxies {
            assert!(reason(proxy, UNUSABLE).contains(what), "{}", proxy.told());
        }
    };
    let scene = with_user(runtime, rights, noticed, more_rights);
    assert_told_once(&scene.proxies);
}

fn the_user_may_not_publish(runtime: Runtime) {
    the_user_may_not(
        runtime,
        "PUBLISH",
        "ACL SETUSER someone on >open-sesame ~* &* +@all -publish",
        "ACL SETUSER someone +publish",
    );
}

fn the_user_may_not_subscribe(runtime: Runtime) {
    the_user_may_not(
        runtime,
        "SUBSCRIBE",
        "ACL SETUSER someone on >open-sesame ~* &* +@all -subscribe",
        "ACL SETUSER someone +subscribe",
    );
}

fn the_user_may_not_hear_the_channel(runtime: Runtime) {
    the_user_may_not(
        runtime,
        "channel",
        "ACL SETUSER someone on >open-sesame ~* resetchannels +@all",
        "ACL SETUSER someone &vllm-proxy:1:*",
    );
}

/// Fills every key with something that no proxy wrote.
const FILL: &[u8] = b"for at, key in ipairs(redis.call('KEYS', '*')) do redis.call('DEL', key) \
                      if at % 2 == 0 then redis.call('LPUSH', key, 'hello') \
                      else redis.call('SET', key, 'hello, this is nothing at all') end end return 1";

fn redis_is_full_of_garbage(runtime: Runtime) {
    let redis = RedisServer::start(&[]);
    let backends = backends();
    let all = [&backends[0], &backends[1]];
    let url = redis.url();
    let [a, b] = company(runtime, [&url; 2], &all);
    let proxies = [a, b];
    let traffic = Traffic::start(&proxies);
    traffic.await_answers(SOME);
    for _ in 0..3 {
        redis.command(&[b"EVAL", FILL, b"0"]);
        for garbage in [&b""[..], b"hello", &[0xff; 300], &[1, 0, 0, 0, 0xff, 0xff], &[0; 4_096]] {
            redis.command(&[b"PUBLISH", b"vllm-proxy:1:0", garbage]);
        }
        traffic.await_answers(SOME);
    }
    for proxy in &proxies {
        eventually("it is counted", || {
            proxy.status()["replicas"]["unreadable"].as_u64().is_some_and(|count| count >= 3)
        });
    }
    // One that begins in the middle of it.
    redis.command(&[b"EVAL", FILL, b"0"]);
    let [c] = sharing(runtime, [&url], &all);
    traffic.await_answers(SOME);
    traffic.stop();
    let [a, b] = proxies;
    let proxies = [a, b, c];
    await_agreement(&proxies);
    await_well(&proxies);
    for proxy in &proxies {
        assert_eq!(proxy.entries(ALONE), 0, "{}", proxy.told());
    }
}

fn redis_is_far_away(runtime: Runtime) {
    let redis = RedisServer::start(&[]);
    let relay = Relay::to(redis.port());
    relay.delay(Duration::from_millis(100));
    let backends = backends();
    let url = relay.url();
    let proxies = company(runtime, [&url; 3], &[&backends[0], &backends[1]]);
    let traffic = Traffic::start(&proxies);
    traffic.await_answers(4 * SOME);
    traffic.stop();
    await_agreement(&proxies);
    for proxy in &proxies {
        let lag = proxy.status()["redis"]["lag_ms"].as_f64();
        assert!(lag.is_some_and(|lag| lag >= 200.0), "{lag:?}");
        assert_eq!(proxy.entries(ALONE), 0, "{}", proxy.told());
    }
}

fn one_proxy_loses_the_way_to_redis(runtime: Runtime) {
    let redis = RedisServer::start(&[]);
    let relay = Relay::to(redis.port());
    let backends = backends();
    let (url, long) = (redis.url(), relay.url());
    let all = [&backends[0], &backends[1]];
    let [a, b, c] = company(runtime, [&url, &url, &long], &all);
    let proxies = [a, b, c];
    let traffic = Traffic::start(&proxies);
    traffic.await_answers(SOME);
    relay.cut();
    await_alone(&proxies[2..]);
    for other in &proxies[..2] {
        eventually("it is missed", || alive(other) == 1);
        assert_eq!((other.entries(ALONE), other.ask(&chat("m"))), (0, 200), "{}", other.told());
    }
    traffic.await_answers(SOME);
    relay.heal();
    traffic.stop();
    await_agreement(&proxies);
    assert_told_once(&proxies[2..]);
}

on_every_runtime![
    redis_that_is_not_there_yet,
    redis_is_killed_and_starts_empty,
    redis_restarts_empty_at_once,
    redis_hangs,
    redis_is_flushed,
    the_password_is_wrong,
    the_user_may_not_publish,
    the_user_may_not_subscribe,
    the_user_may_not_hear_the_channel,
    redis_is_full_of_garbage,
    redis_is_far_away,
    one_proxy_loses_the_way_to_redis,
];
