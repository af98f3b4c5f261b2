//! Requests that several backends hear, and what is believed of backends after them.

use crate::backend::{Backend, Then, until_left};
use crate::proxy::{Proxy, Runtime, eventually, on_every_runtime};
use crate::wire::{End, Message, chat, framed, get, header, ok, post};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// Asks on a connection of its own.
fn asked(proxy: &Proxy, request: impl AsRef<[u8]>) -> Message {
    let mut client = proxy.client();
    client.send(request);
    client.answer().unwrap_or_else(|end| panic!("no answer: {end:?} {}", proxy.told()))
}

fn start_line(request: &Message) -> String {
    let line = request.head.split(|&byte| byte == b'\r').next().unwrap_or_default();
    String::from_utf8_lossy(line).into_owned()
}

fn every_backend_hears_what_changes_it(runtime: Runtime) {
    let heard: Arc<Mutex<Vec<(u8, String, String)>>> = Arc::default();
    let backends: Vec<_> = (0..3)
        .map(|number| {
            let heard = Arc::clone(&heard);
            let models: &[&str] = if number == 2 { &["b"] } else { &["a"] };
            Backend::answering(models, move |request| {
                heard.lock().unwrap().push((number, start_line(request), request.text()));
                ok(r#"{"status":"sleeping","level":1}"#)
            })
        })
        .collect();
    let proxy = Proxy::start(runtime, &[&backends[0], &backends[1], &backends[2]]);
    let expect = |request: &[u8], numbers: &[u8]| {
        let answer = asked(&proxy, request);
        assert_eq!(answer.raw, ok(r#"{"status":"sleeping","level":1}"#));
        let mut heard = std::mem::take(&mut *heard.lock().unwrap());
        // Each backend that was told may be asked whether it sleeps, at any time after.
        heard.retain(|(_, line, _)| !line.starts_with("GET /is_"));
        heard.sort();
        let who: Vec<_> = heard.iter().map(|(number, ..)| *number).collect();
        assert_eq!(who, numbers);
        heard.into_iter().map(|(_, line, body)| (line, body)).collect::<Vec<_>>()
    };
    let all = expect(&post("/sleep?level=1", "{}"), &[0, 1, 2]);
    assert!(
        all.iter().all(|(line, body)| { line == "POST /sleep?level=1 HTTP/1.1" && body == "{}" })
    );
    let some = expect(&post("/sleep?level=1&vllm_proxy_model=a", "{}"), &[0, 1]);
    assert!(some.iter().all(|(line, _)| line == "POST /sleep?level=1&vllm_proxy_model=a HTTP/1.1"));
    let named = backends[1].address();
    expect(&post(&format!("/sleep?vllm_proxy_backend={named}"), "{}"), &[1]);
    let by_header = |name: &str, value: &str| {
        format!("POST /sleep HTTP/1.1\r\nHost: h\r\n{name}: {value}\r\nContent-Length: 0\r\n\r\n")
    };
    expect(by_header("X-vLLM-Proxy-Model", "b").as_bytes(), &[2]);
    expect(by_header("x-vllm-proxy-backend", &named.to_string()).as_bytes(), &[1]);
    let nobody = asked(&proxy, post("/sleep?vllm_proxy_backend=10.1.1.1:1", ""));
    assert_eq!(nobody.status(), 404);
    assert!(nobody.text().contains("There is no backend `10.1.1.1:1`."), "{}", nobody.text());
}

fn a_partial_failure_is_told(runtime: Runtime) {
    let good = Backend::named(&["m"], r#"{"success":true}"#);
    let refusing =
        Backend::answering(&["m"], |_| framed("404 Not Found", r#"{"detail":"Not Found"}"#));
    let dying = Backend::scripted(&["m"], |_, _| Then::Reset);
    let proxy = Proxy::start(runtime, &[&good, &refusing, &dying]);
    let answer = asked(&proxy, post("/reset_prefix_cache", ""));
    assert_eq!(answer.status(), 404);
    let told: serde_json::Value = serde_json::from_str(&answer.text()).unwrap();
    let message = told["error"]["message"].as_str().unwrap();
    assert!(message.starts_with("2 of 3 backends failed."), "{message}");
    for backend in [&refusing, &dying] {
        assert!(message.contains(&backend.address().to_string()), "{message}");
    }
    assert!(!message.contains(&good.address().to_string()), "{message}");
}

fn what_fits_one_backend_must_name_it(runtime: Runtime) {
    let one = Backend::named(&["m"], "one");
    let two = Backend::named(&["m"], "two");
    let proxy = Proxy::start(runtime, &[&one, &two]);
    let answer = asked(&proxy, post("/update_weights", "{}"));
    assert_eq!(answer.status(), 400);
    assert!(answer.text().contains(&format!("{}, {}", one.address(), two.address())));
    let named = format!("/update_weights?vllm_proxy_backend={}", two.address());
    assert_eq!(asked(&proxy, post(&named, "{}")).text(), "two");
    one.assert_untouched();
}

fn readings_are_merged(runtime: Runtime) {
    let backend = |load: u32, paused: bool| {
        Backend::answering(&["m"], move |request| {
            let line = start_line(request);
            if line.starts_with("GET /load ") {
                ok(format!(r#"{{"server_load":{load}}}"#))
            } else if line.starts_with("GET /is_paused ") {
                ok(format!(r#"{{"is_paused":{paused}}}"#))
            } else {
                assert_eq!(header(&request.head, "accept-encoding"), None);
                ok(format!("# TYPE vllm:x gauge\nvllm:x{{engine=\"0\"}} {load}\n"))
            }
        })
    };
    let (one, mut two) = (backend(3, false), backend(4, true));
    let proxy = Proxy::start(runtime, &[&one, &two]);
    assert_eq!(asked(&proxy, get("/load")).text(), r#"{"server_load":7}"#);
    assert_eq!(asked(&proxy, get("/is_paused")).text(), r#"{"is_paused":true}"#);
    let scrape = b"GET /metrics HTTP/1.1\r\nHost: h\r\nAccept-Encoding: gzip\r\n\r\n";
    let page = asked(&proxy, scrape);
    assert_eq!(
        page.header("content-type").as_deref(),
        Some("text/plain; version=1.0.0; charset=utf-8")
    );
    let page = page.text();
    let has = |page: &str, line: String| assert!(page.lines().any(|other| other == line), "{page}");
    has(&page, format!(r#"vllm:x{{backend="{}",engine="0"}} 3"#, one.address()));
    has(&page, format!(r#"vllm:x{{backend="{}",engine="0"}} 4"#, two.address()));
    assert_eq!(page.matches("# TYPE vllm:x gauge").count(), 1);
    has(&page, format!(r#"vllm_proxy_backend_up{{backend="{}"}} 1"#, two.address()));
    // A backend that is gone is passed over, and told of.
    two.stop();
    let page = asked(&proxy, scrape).text();
    has(&page, format!(r#"vllm:x{{backend="{}",engine="0"}} 3"#, one.address()));
    has(&page, format!(r#"vllm_proxy_metrics_up{{backend="{}"}} 0"#, two.address()));
    proxy.await_entries("backend is down", 1);
    let page = asked(&proxy, scrape).text();
    has(&page, format!(r#"vllm_proxy_backend_up{{backend="{}"}} 0"#, two.address()));
    assert_eq!(asked(&proxy, get("/load")).text(), r#"{"server_load":3}"#);
}

fn who_leaves_takes_all_questions_back(runtime: Runtime) {
    let ends: Arc<Mutex<Vec<End>>> = Arc::default();
    let silent = |_: usize| {
        let ends = Arc::clone(&ends);
        Backend::scripted(&["m"], move |wire, _| {
            let left = until_left(wire);
            ends.lock().unwrap().push(left.end);
            Then::Close
        })
    };
    let backends: Vec<_> = (0..2).map(silent).collect();
    let proxy = Proxy::start(runtime, &[&backends[0], &backends[1]]);
    let client = proxy.client();
    client.send(post("/sleep?mode=wait", ""));
    backends.iter().for_each(|backend| backend.await_requests(1));
    drop(client);
    let took = eventually("both see it", || ends.lock().unwrap().len() == 2);
    println!("both backends saw the client leave after {took:?}");
    assert!(ends.lock().unwrap().iter().all(|end| *end != End::Silent));
}

fn a_backend_that_sleeps_is_spared(runtime: Runtime) {
    let asleep = Arc::new(AtomicBool::new(false));
    let state = Arc::clone(&asleep);
    let sleepy = Backend::answering(&["m"], move |request| {
        let line = start_line(request);
        if line.starts_with("POST /sleep") || line.starts_with("POST /wake_up") {
            state.store(line.starts_with("POST /sleep"), Ordering::SeqCst);
            ok(r#"{"status":"x"}"#)
        } else if line.starts_with("GET /is_sleeping") {
            ok(format!(r#"{{"is_sleeping":{}}}"#, state.load(Ordering::SeqCst)))
        } else if line.starts_with("GET /is_paused") {
            ok(r#"{"is_paused":false}"#)
        } else {
            ok("sleepy")
        }
    });
    let awake = Backend::named(&["m"], "awake");
    let proxy = Proxy::with(runtime, &["--policy", "round-robin"], &[&sleepy, &awake]);
    let both = |proxy: &Proxy| {
        let mut names: Vec<_> = (0..4).map(|_| asked(proxy, chat("m")).text()).collect();
        names.sort();
        names.dedup();
        names
    };
    assert_eq!(both(&proxy), ["awake", "sleepy"]);
    let order = |path: &str| post(&format!("{path}?vllm_proxy_backend={}", sleepy.address()), "");
    assert_eq!(asked(&proxy, order("/sleep")).status(), 200);
    eventually("it is spared", || both(&proxy) == ["awake"]);
    assert_eq!(asked(&proxy, order("/wake_up")).status(), 200);
    eventually("it is back", || both(&proxy) == ["awake", "sleepy"]);
}

fn an_adapter_is_found_as_soon_as_it_is_loaded(runtime: Runtime) {
    let backends: Arc<Mutex<Vec<Backend>>> = Arc::default();
    let loading = Arc::clone(&backends);
    let one = Backend::answering(&["base"], move |request| {
        if start_line(request).starts_with("POST /v1/load_lora_adapter ") {
            for backend in loading.lock().unwrap().iter() {
                backend.list(&["base", "adapter"]);
            }
        }
        ok("Success")
    });
    let proxy = Proxy::start(runtime, &[&one]);
    backends.lock().unwrap().push(one);
    // The lists were refreshed just now, and are again for this.
    assert_eq!(asked(&proxy, chat("adapter")).text(), "Success", "its only backend judges");
    let load = post("/v1/load_lora_adapter", r#"{"lora_name":"adapter","lora_path":"/x"}"#);
    assert_eq!(asked(&proxy, load).text(), "Success");
    assert!(asked(&proxy, get("/v1/models")).text().contains("adapter"), "at once");
    backends.lock().unwrap().clear();
}

fn who_comes_back_gets_the_adapters_that_were_loaded(runtime: Runtime) {
    let bodies: Arc<Mutex<Vec<String>>> = Arc::default();
    let heard = Arc::clone(&bodies);
    let mut one = Backend::answering(&["base"], move |request| {
        assert!(start_line(request).starts_with("POST /v1/load_lora_adapter "));
        heard.lock().unwrap().push(request.text());
        ok("Success")
    });
    let two = Backend::named(&["base"], "Success");
    let proxy = Proxy::start(runtime, &[&one, &two]);
    let body = r#"{"lora_name":"adapter","lora_path":"/x"}"#;
    assert_eq!(asked(&proxy, post("/v1/load_lora_adapter", body)).status(), 200);
    one.stop();
    proxy.await_entries("backend is down", 1);
    one.start_again();
    proxy.await_entries("adapter loaded again", 1);
    assert_eq!(*bodies.lock().unwrap(), [body, body]);
    assert_eq!(two.requests(), 1, "it was there all the time");
}

on_every_runtime!(
    who_comes_back_gets_the_adapters_that_were_loaded,
    every_backend_hears_what_changes_it,
    a_partial_failure_is_told,
    what_fits_one_backend_must_name_it,
    readings_are_merged,
    who_leaves_takes_all_questions_back,
    a_backend_that_sleeps_is_spared,
    an_adapter_is_found_as_soon_as_it_is_loaded,
);
