//! Backends that operators have drained: what they have goes on, and nothing new comes, through
//! whichever proxy. Only operators may say so, and no page of elsewhere by their browser.

use crate::backend::{Backend, Gate, Then};
use crate::company::{await_company, chat_of, hold, holding};
use crate::proxy::{Proxy, Runtime, eventually, on_every_runtime};
use crate::redis::RedisServer;
use crate::wire::{
    End, LAST_CHUNK, Message, STREAM_HEAD, assert_bytes, chat, chunk, framed, get, header, ok, post,
};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;
use tungstenite::handshake::derive_accept_key;

const ADMIN: [&str; 2] = ["--admin", "127.0.0.1:0"];

/// An order, with these header lines.
fn order_with(proxy: &Proxy, target: &str, lines: &str) -> Result<Message, End> {
    let mut operator = proxy.operator();
    let host = proxy.admin();
    operator.send(format!(
        "POST /proxy/{target} HTTP/1.1\r\nHost: {host}\r\n{lines}Content-Length: 0\r\n\r\n"
    ));
    operator.answer()
}

/// What comes of an order that is followed.
#[track_caller]
fn order(proxy: &Proxy, what: &str, backend: &Backend) -> serde_json::Value {
    let target = format!("{what}?backend={}", backend.address());
    let answer = order_with(proxy, &target, "").unwrap();
    assert_eq!(answer.status(), 200, "{answer:?}");
    let told: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(told["address"], backend.address().to_string());
    assert_eq!(told["draining"], what == "drain");
    told
}

/// Which backends a proxy gives nothing new, in their order.
fn drains(proxy: &Proxy) -> Vec<bool> {
    let status = proxy.status();
    let backends = status["backends"].as_array().expect("they are a list");
    backends.iter().map(|backend| backend["draining"] == true).collect()
}

/// Who answers so many chats, each of which begins as none did before: nobody has it cached.
fn answerers(proxy: &Proxy, count: usize) -> Vec<String> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let mut client = proxy.client();
    let answer = |_| {
        let number = NEXT.fetch_add(1, Ordering::SeqCst);
        client.send(post("/v1/chat/completions", &chat_of(number)));
        let answer = client.answer().unwrap();
        assert_eq!(answer.status(), 200, "{answer:?}");
        answer.text()
    };
    let mut names: Vec<_> = (0..count).map(answer).collect();
    names.sort();
    names.dedup();
    names
}

fn open_streams_go_on_and_new_requests_go_elsewhere(runtime: Runtime) {
    let gate = Gate::default();
    let go_on = gate.clone();
    let event = |number| chunk(format!("data: {{\"event\":{number}}}\n\n"));
    let a = Backend::scripted(&["m"], move |wire, asked| {
        let streams = asked.number == 0;
        wire.request_with(asked.head).unwrap();
        if !streams {
            wire.send(ok("a"));
            return Then::Keep;
        }
        wire.send([STREAM_HEAD, &event(0)].concat());
        assert!(go_on.pass());
        (1..100).for_each(|number| wire.send(event(number)));
        wire.send([chunk("data: [DONE]\n\n"), LAST_CHUNK.to_vec()].concat());
        Then::Keep
    });
    let b = Backend::named(&["m"], "b");
    let proxy = Proxy::with(runtime, &ADMIN, &[&a, &b]);
    order(&proxy, "drain", &b);
    let mut client = proxy.client();
    client.send(chat("m"));
    assert_bytes(&client.head().unwrap(), STREAM_HEAD);
    assert_bytes(&client.exactly(event(0).len()).unwrap(), &event(0));

    order(&proxy, "undrain", &b);
    let told = order(&proxy, "drain", &a);
    assert!(told["in_flight"] == 1 && told["by_label"] == false, "{told}");
    assert_eq!(drains(&proxy), [true, false]);
    assert_eq!(answerers(&proxy, 20), ["b"]);
    let mut operator = proxy.operator();
    operator.send(get("/metrics"));
    let page = operator.answer().unwrap().text();
    for (backend, draining) in [(&a, 1), (&b, 0)] {
        let line =
            format!("vllm_proxy_backend_draining{{backend=\"{}\"}} {draining}", backend.address());
        assert!(page.lines().any(|other| other == line), "{line} is not in\n{page}");
    }
    gate.open();
    let rest: Vec<u8> = (1..100).flat_map(event).collect();
    let rest = [rest, chunk("data: [DONE]\n\n"), LAST_CHUNK.to_vec()].concat();
    assert_bytes(&client.exactly(rest.len()).unwrap(), &rest);
    eventually("it has nothing left", || order(&proxy, "drain", &a)["in_flight"] == 0);
    // On the connection that had the stream, too.
    client.send(chat("m"));
    assert_eq!(client.answer().unwrap().text(), "b");
    order(&proxy, "undrain", &a);
    eventually("it gets requests again", || answerers(&proxy, 20) == ["a", "b"]);
    proxy.await_entries("backend undrained", 2);
    let by =
        |message| proxy.values(message).iter().filter(|one| one["by"] == "operator here").count();
    assert_eq!((by("backend drained"), by("backend undrained")), (2, 2), "{}", proxy.told());
}

fn open_websockets_go_on_and_no_new_ones_come(runtime: Runtime) {
    let backend = Backend::scripted(&["m"], |wire, asked| {
        let key = header(&asked.head, "sec-websocket-key").expect("it is an offer");
        wire.send(format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {}\r\n\r\n",
            derive_accept_key(key.as_bytes())
        ));
        while let Ok(bytes) = wire.exactly(4) {
            wire.send(bytes);
        }
        Then::Close
    });
    let proxy = Proxy::with(runtime, &ADMIN, &[&backend]);
    let offer = "GET /v1/realtime HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\n\
        Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let mut open = proxy.client();
    open.send(offer);
    assert!(open.head().unwrap().starts_with(b"HTTP/1.1 101 "));
    assert_eq!(order(&proxy, "drain", &backend)["in_flight"], 1);
    for bytes in [b"1234", b"5678"] {
        open.send(bytes);
        assert_bytes(&open.exactly(4).unwrap(), bytes);
    }
    assert_eq!(proxy.ask(offer.as_bytes()), 503);
    assert_eq!(backend.requests(), 1);
}

fn second_tries_do_not_go_there(runtime: Runtime) {
    let a = Backend::answering(&["m"], |_| framed("500 Internal Server Error", "a's own words"));
    let b = Backend::named(&["m"], "b");
    let proxy = Proxy::with(runtime, &ADMIN, &[&a, &b]);
    order(&proxy, "drain", &b);
    let mut client = proxy.client();
    for _ in 0..5 {
        client.send(chat("m"));
        let answer = client.answer().unwrap();
        assert_eq!((answer.status(), answer.text()), (500, "a's own words".to_owned()));
    }
    b.assert_untouched();
}

fn the_last_one_is_drained_if_an_operator_says_so(runtime: Runtime) {
    let backend = Backend::named(&["m"], "a");
    let proxy = Proxy::with(runtime, &ADMIN, &[&backend]);
    order(&proxy, "drain", &backend);
    let mut client = proxy.client();
    client.send(chat("m"));
    let answer = client.answer().unwrap();
    assert_eq!((answer.status(), answer.header("retry-after").as_deref()), (503, Some("5")));
    let words = "Every backend of the model `m` that is up is drained for maintenance.";
    assert!(answer.text().contains(words), "{answer:?}");
    for path in ["/health", "/v1/models", "/version"] {
        assert_eq!(proxy.ask(&get(path)), 503, "{path}");
    }
    backend.assert_untouched();
    // What it alone may keep is asked of it, and what goes to all goes to it.
    for request in [get("/v1/responses/resp_1"), post("/reset_mm_cache", "")] {
        assert_eq!(proxy.ask(&request), 200);
    }
    assert_eq!(backend.requests(), 2);
    order(&proxy, "undrain", &backend);
    assert_eq!([proxy.ask(&get("/health")), proxy.ask(&chat("m"))], [200, 200]);
}

fn pages_of_elsewhere_may_not_have_it_done(runtime: Runtime) {
    let backend = Backend::named(&["m"], "a");
    let proxy = Proxy::with(runtime, &ADMIN, &[&backend]);
    let target = format!("drain?backend={}", backend.address());
    let own = proxy.admin();
    let form = "Content-Type: application/x-www-form-urlencoded\r\n";
    for lines in [
        "Origin: http://evil.example\r\n".to_owned(),
        format!("{form}Origin: http://evil.example\r\n"),
        "Origin: null\r\n".to_owned(),
        format!("Origin: http://{}:1\r\n", own.ip()),
        format!("Origin: http://{own}\r\nOrigin: http://evil.example\r\n"),
        "Sec-Fetch-Site: cross-site\r\n".to_owned(),
        format!("Origin: http://{own}\r\nSec-Fetch-Site: same-site\r\n"),
    ] {
        let answer = order_with(&proxy, &target, &lines).unwrap();
        assert_eq!(answer.status(), 403, "{lines}{answer:?}");
        assert_eq!(answer.header("access-control-allow-origin"), None);
        assert_eq!(drains(&proxy), [false], "{lines}");
    }
    // A page that was made to come from here by its name server.
    let mut rebound = proxy.operator();
    rebound.send(format!(
        "POST /proxy/{target} HTTP/1.1\r\nHost: evil.example:{port}\r\n\
         Origin: http://evil.example:{port}\r\nSec-Fetch-Site: same-origin\r\n\
         Content-Length: 0\r\n\r\n",
        port = own.port(),
    ));
    assert_eq!(rebound.answer().unwrap().status(), 403);
    // Nor does anybody else say that it may.
    let mut preflight = proxy.operator();
    preflight.send(format!(
        "OPTIONS /proxy/{target} HTTP/1.1\r\nHost: {own}\r\nOrigin: http://evil.example\r\n\
         Access-Control-Request-Method: POST\r\n\r\n"
    ));
    let answer = preflight.answer().unwrap();
    assert_eq!((answer.status(), answer.header("allow").as_deref()), (405, Some("POST")));
    assert_eq!(drains(&proxy), [false]);
    backend.assert_untouched();
    let lines = format!("Origin: http://{own}\r\nSec-Fetch-Site: same-origin\r\n");
    assert_eq!(order_with(&proxy, &target, &lines).unwrap().status(), 200);
    assert_eq!(drains(&proxy), [true]);
}

fn clients_cannot_drain(runtime: Runtime) {
    for options in [&ADMIN[..], &[]] {
        let backend = Backend::answering(&["m"], |_| framed("404 Not Found", "no such path"));
        let proxy = Proxy::with(runtime, options, &[&backend]);
        for (sent, what) in (0..).zip(["drain", "undrain"]) {
            let target = format!("/proxy/{what}?backend={}", backend.address());
            let mut client = proxy.client();
            client.send(post(&target, ""));
            let answer = client.answer().unwrap();
            assert_eq!((answer.status(), answer.text()), (404, "no such path".to_owned()));
            let head = String::from_utf8(backend.heads()[sent].clone()).unwrap();
            assert!(head.starts_with(&format!("POST {target} HTTP/1.1\r\n")), "{head}");
        }
        assert_eq!(drains(&proxy), [false]);
    }
}

fn operators_are_told_what_is_wrong(runtime: Runtime) {
    let backend = Backend::named(&["m"], "a");
    let proxy = Proxy::with(runtime, &ADMIN, &[&backend]);
    let address = backend.address();
    for (target, status, words) in [
        ("drain".to_owned(), 400, "`backend`"),
        ("undrain?backend=".to_owned(), 400, "`backend`"),
        ("drain?backend=10.9.9.9:1".to_owned(), 404, "There is no backend `10.9.9.9:1`."),
    ] {
        let answer = order_with(&proxy, &target, "").unwrap();
        assert_eq!(answer.status(), status, "{answer:?}");
        let text = answer.text();
        assert!(text.contains(words) && text.contains(&address.to_string()), "{text}");
    }
    let mut operator = proxy.operator();
    operator.send(get(&format!("/proxy/drain?backend={address}")));
    let answer = operator.answer().unwrap();
    assert_eq!((answer.status(), answer.header("allow").as_deref()), (405, Some("POST")));
    assert_eq!(drains(&proxy), [false]);
    // Said twice it is no mistake, nor with the colon as browsers write it.
    let escaped = address.to_string().replace(':', "%3A");
    for _ in 0..2 {
        let answer = order_with(&proxy, &format!("drain?backend={escaped}"), "").unwrap();
        assert_eq!(answer.status(), 200, "{answer:?}");
    }
    assert_eq!(drains(&proxy), [true]);
    order(&proxy, "undrain", &backend);
    proxy.await_entries("backend undrained", 1);
    assert_eq!(proxy.entries("backend drained"), 1, "{}", proxy.told());
    backend.assert_untouched();
}

/// Proxies on one Redis with an address for operators each.
fn sharing<const N: usize>(runtime: Runtime, url: &str, backends: &[&Backend]) -> [Proxy; N] {
    let options = [&["--redis", url], &ADMIN[..]].concat();
    [(); N].map(|()| Proxy::with(runtime, &options, backends))
}

#[track_caller]
fn await_drains(proxies: &[&Proxy], expected: &[bool]) -> Duration {
    eventually("all know it", || proxies.iter().all(|proxy| drains(proxy) == expected))
}

/// Waits until Redis keeps something of both backends.
#[track_caller]
fn await_kept(redis: &RedisServer) {
    let pattern = format!("vllm-proxy:1:kept:{}", "?".repeat(16));
    eventually("it is kept", || redis.command(&[b"KEYS", pattern.as_bytes()]) == "*2");
}

fn what_one_is_told_all_obey_whoever_dies(runtime: Runtime) {
    let redis = RedisServer::start(&[]);
    let backends = [holding("a"), holding("b")];
    let all = [&backends[0], &backends[1]];
    let proxies: [Proxy; 2] = sharing(runtime, &redis.url(), &all);
    await_company(&proxies);
    let [mut a, mut b] = proxies;
    // It is seen from everywhere how much is left.
    order(&a, "drain", &backends[1]);
    let held = hold(&a);
    backends[0].await_requests(1);
    order(&a, "undrain", &backends[1]);
    order(&a, "drain", &backends[0]);
    let took = await_drains(&[&b], &[true, false]);
    println!("an order was obeyed elsewhere after {took:?}");
    assert_eq!(answerers(&b, 20), ["b"]);
    b.await_entries("backend drained", 1);
    assert_eq!(b.values("backend drained").last().unwrap()["by"], "another proxy");
    eventually("what is in flight elsewhere is told", || {
        let told = order(&b, "drain", &backends[0]);
        [&told["in_flight"], &told["in_flight_elsewhere"]] == [&0, &1]
    });
    drop(held);
    // One that starts, when who said it is gone.
    await_kept(&redis);
    a.kill();
    let [mut c] = sharing(runtime, &redis.url(), &all);
    await_drains(&[&b, &c], &[true, false]);
    assert_eq!(answerers(&c, 20), ["b"]);
    // One that starts when nobody is there to tell it.
    b.kill();
    c.kill();
    let [d] = sharing(runtime, &redis.url(), &all);
    await_drains(&[&d], &[true, false]);
    assert_eq!(answerers(&d, 20), ["b"]);
    // Redis forgets all: those that live do not, nor who starts afterwards.
    assert_eq!(redis.command(&[b"FLUSHALL"]), "+OK");
    let [e] = sharing(runtime, &redis.url(), &all);
    await_drains(&[&d, &e], &[true, false]);
    let proxies = [d, e];
    await_company(&proxies);
    await_kept(&redis);
    // It is taken back by anybody, for good.
    order(&proxies[1], "undrain", &backends[0]);
    await_drains(&[&proxies[0]], &[false, false]);
    eventually("both are asked", || answerers(&proxies[0], 20) == ["a", "b"]);
    order(&proxies[0], "drain", &backends[1]);
    await_drains(&[&proxies[1]], &[false, true]);
}

fn orders_that_cross_end_alike(runtime: Runtime) {
    let redis = RedisServer::start(&[]);
    let backends = [holding("a"), holding("b")];
    let proxies: [Proxy; 3] = sharing(runtime, &redis.url(), &[&backends[0], &backends[1]]);
    await_company(&proxies);
    thread::scope(|scope| {
        for (at, proxy) in proxies.iter().enumerate() {
            let backend = &backends[0];
            scope.spawn(move || {
                for number in 0..15 {
                    order(proxy, ["drain", "undrain"][(at + number) % 2], backend);
                }
            });
        }
    });
    // What is told last comes behind all that crossed and was heard.
    for (what, drained) in [("drain", true), ("undrain", false)] {
        eventually("all agree", || {
            let known: Vec<_> = proxies.iter().map(drains).collect();
            known.windows(2).all(|pair| pair[0] == pair[1])
        });
        // One that crossed may still be on its way though all agree: then it is said once more.
        eventually("all obey", || {
            order(&proxies[1], what, &backends[0]);
            proxies.iter().all(|proxy| drains(proxy) == [drained, false])
        });
    }
}

on_every_runtime![
    open_streams_go_on_and_new_requests_go_elsewhere,
    open_websockets_go_on_and_no_new_ones_come,
    second_tries_do_not_go_there,
    the_last_one_is_drained_if_an_operator_says_so,
    pages_of_elsewhere_may_not_have_it_done,
    clients_cannot_drain,
    operators_are_told_what_is_wrong,
    what_one_is_told_all_obey_whoever_dies,
    orders_that_cross_end_alike,
];
