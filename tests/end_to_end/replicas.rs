//! Proxies on one Redis decide as one: what one has in flight, has placed, was told or has seen,
//! all know.

use crate::backend::Backend;
use crate::company::{
    alive, asked, await_equal_memory, chat, chat_of, company, elsewhere, hold, holding,
};
use crate::proxy::{Proxy, Runtime, eventually, on_every_runtime};
use crate::redis::RedisServer;
use crate::wire::{framed, get, ok, post};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Within this, what one does is known to all, on a machine that builds something else as well.
/// Facts that are only told again with the next beat take up to a second.
const AT_ONCE: Duration = Duration::from_millis(500);

/// A proxy that says nothing for 3 s is gone, and it last said something up to a second before its
/// end, or at it; the rest is for this machine.
const GONE: Duration = Duration::from_millis(3_500);

fn what_a_killed_proxy_had_is_gone_and_nothing_else(runtime: Runtime) {
    const MANY: usize = 200;
    let redis = RedisServer::start(&[]);
    let backends = [holding("a"), holding("b")];
    let url = redis.url();
    let [mut a, b, c] = company(runtime, [&url; 3], &[&backends[0], &backends[1]]);
    let held_b: Vec<_> = (0..5).map(|_| hold(&b)).collect();
    let held_c: Vec<_> = (0..7).map(|_| hold(&c)).collect();
    eventually("few are known", || (elsewhere(&b), elsewhere(&c)) == (7, 5));
    let held_a: Vec<_> = (0..MANY).map(|_| hold(&a)).collect();
    eventually("all came", || {
        backends.iter().map(Backend::requests).sum::<usize>() == MANY + 5 + 7
    });
    let took = eventually("many are known", || (elsewhere(&b), elsewhere(&c)) == (207, 205));
    println!("{MANY} in flight were known after {took:?}");
    assert!(took < AT_ONCE, "{took:?}");
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
    assert!(start.elapsed() < GONE, "{:?}", start.elapsed());
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
    let mut chance = 7_usize;
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
            assert_eq!(backend.get_or_insert_with(|| answered.clone()), &answered, "turn {turn}");
        }
        // A person takes longer than this to read the answer.
        await_equal_memory(&proxies);
    }
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
        assert!(took < AT_ONCE, "{took:?}");
        for number in 0..6 {
            let answered = chat(&b, &chat_of(number));
            assert!(answered == "b" || !sleeps, "{answered} while it sleeps");
        }
    }
}

on_every_runtime![
    what_a_killed_proxy_had_is_gone_and_nothing_else,
    a_chat_stays_at_one_backend_whoever_is_asked,
    a_stored_response_is_found_through_another_proxy,
    who_sleeps_is_known_to_all,
];
