//! Requests that only some backends can answer: stored responses, models behind keys, names that
//! nobody lists, forms.

use crate::backend::{Backend, not_found};
use crate::proxy::{Proxy, Runtime, eventually, on_every_runtime};
use crate::wire::{Message, chat, framed, get, ok, post};
use std::sync::{Arc, Mutex};

/// Asks on a connection of its own.
fn asked(proxy: &Proxy, request: impl AsRef<[u8]>) -> Message {
    let mut client = proxy.client();
    client.send(request);
    client.answer().unwrap_or_else(|end| panic!("no answer: {end:?} {}", proxy.told()))
}

/// Keeps the responses that it made, as vLLM does with its store on.
fn storing(name: &'static str) -> Backend {
    let kept: Arc<Mutex<Vec<String>>> = Arc::default();
    Backend::answering(&["m"], move |request| {
        let head = String::from_utf8_lossy(&request.head).into_owned();
        let path = head.split(' ').nth(1).unwrap_or_default();
        let unknown = || framed("404 Not Found", r#"{"error":{"message":"Response not found"}}"#);
        let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap_or_default();
        if let Some(id) = path.strip_prefix("/v1/responses/") {
            let id = id.split('/').next().unwrap_or_default();
            let found = kept.lock().unwrap().iter().any(|kept| kept == id);
            return if found {
                ok(format!(r#"{{"id":"{id}","from":"{name}"}}"#))
            } else {
                unknown()
            };
        }
        if let Some(id) = body["previous_response_id"].as_str()
            && !kept.lock().unwrap().iter().any(|kept| kept == id)
        {
            return unknown();
        }
        let mut kept = kept.lock().unwrap();
        let id = format!("resp_{name}{}", kept.len());
        kept.push(id.clone());
        if body["stream"] == true {
            let event = format!(
                "event: response.created\ndata: {{\"type\":\"response.created\",\
                 \"response\":{{\"id\":\"{id}\"}}}}\n\n"
            );
            return [
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                  transfer-encoding: chunked\r\n\r\n",
                crate::wire::chunk(&event).as_slice(),
                b"0\r\n\r\n",
            ]
            .concat();
        }
        ok(format!(r#"{{"id":"{id}","from":"{name}"}}"#))
    })
}

fn a_stored_response_is_found_where_it_was_made(runtime: Runtime) {
    let backends = [storing("a"), storing("b"), storing("c")];
    let all: Vec<&Backend> = backends.iter().collect();
    let proxy = Proxy::with(runtime, &["--policy", "round-robin"], &all);
    // Another proxy knows nothing of what this one saw.
    let stranger = Proxy::start(runtime, &all);
    let mut made = Vec::new();
    for number in 0..6 {
        let stream = number % 2 == 1;
        let body = format!(r#"{{"model":"m","input":"x","stream":{stream}}}"#);
        let text = asked(&proxy, post("/v1/responses", &body)).text();
        let start = text.find("resp_").expect("an id");
        made.push(text[start..].split('"').next().unwrap().to_owned());
    }
    made.sort();
    made.dedup();
    assert_eq!(made.len(), 6);
    let before: usize = backends.iter().map(Backend::requests).sum();
    for id in &made {
        for request in [
            get(&format!("/v1/responses/{id}")),
            post(&format!("/v1/responses/{id}/cancel"), ""),
            post("/v1/responses", &format!(r#"{{"previous_response_id":"{id}"}}"#)),
        ] {
            assert_eq!(asked(&proxy, &request).status(), 200, "{id}");
        }
    }
    let after: usize = backends.iter().map(Backend::requests).sum();
    assert_eq!(after - before, 3 * made.len(), "nobody else was asked");
    for id in &made {
        for _ in 0..2 {
            let answer = asked(&stranger, get(&format!("/v1/responses/{id}")));
            assert!(answer.text().contains(id), "{}", answer.text());
        }
    }
    let found: usize = backends.iter().map(Backend::requests).sum();
    assert!(found - after <= made.len() * 4, "looked for once, then known");
    let unknown = asked(&stranger, get("/v1/responses/resp_nobody"));
    assert_eq!(unknown.status(), 404);
    assert!(unknown.text().contains("Response not found"));
    let all_asked: usize = backends.iter().map(Backend::requests).sum();
    assert_eq!(all_asked - found, 3);
}

fn models_are_for_those_with_a_key(runtime: Runtime) {
    let backend = Backend::judging(&["m"], "hi");
    backend.ask_for("secret");
    let upstreams = [backend.upstream()];
    let key = [("VLLM_PXY_BACKEND_KEY", "secret")];
    let proxy = Proxy::among(runtime, &[], &key, &upstreams);
    proxy.await_entries("backend is up", 1);
    let models = |headers: &str| {
        asked(&proxy, format!("GET /v1/models HTTP/1.1\r\nHost: h\r\n{headers}\r\n"))
    };
    let refused = models("");
    assert_eq!((refused.status(), refused.text()), (401, r#"{"error":"Unauthorized"}"#.to_owned()));
    assert_eq!(models("Authorization: Bearer guess\r\n").status(), 401);
    let told = models("Authorization: Bearer secret\r\n");
    assert_eq!(told.status(), 200);
    assert!(told.text().contains(r#""id":"m""#));
    assert!(!proxy.told().contains("secret"));
    // Without the variable nothing can be listed.
    let blind = Proxy::among(runtime, &[], &[], &upstreams);
    blind.await_entries(
        "backend asks for a key to list its models: VLLM_PXY_BACKEND_KEY is not set or wrong",
        1,
    );
    assert_eq!(asked(&blind, chat("m")).status(), 503);
    assert_eq!(blind.ask(&get("/health")), 503, "no request is to come here");
}

fn a_model_that_was_unloaded_is_asked_of_another(runtime: Runtime) {
    // It lists what it no longer serves.
    let forgetful = Backend::answering(&["m"], |_| not_found("m"));
    let good = Backend::named(&["m"], "good");
    let proxy = Proxy::with(runtime, &["--policy", "round-robin"], &[&forgetful, &good]);
    for _ in 0..4 {
        assert_eq!(asked(&proxy, chat("m")).text(), "good");
    }
    assert!(forgetful.requests() > 0);
    let alone = Proxy::start(runtime, &[&forgetful]);
    assert_eq!(asked(&alone, chat("m")).raw, not_found("m"), "its word passes as it is");
}

fn unknown_names_go_to_resolvers(runtime: Runtime) {
    let plain = Backend::judging(&["a"], "plain");
    let resolver = Backend::named(&["b"], "resolver");
    let upstream = resolver.upstream();
    let options = ["--forward-unknown", &upstream];
    let proxy = Proxy::with(runtime, &options, &[&plain, &resolver]);
    assert_eq!(asked(&proxy, chat("adapter")).text(), "resolver");
    assert_eq!(asked(&proxy, chat("a")).text(), "plain");
}

fn the_model_of_a_form_may_stand_behind_the_file(runtime: Runtime) {
    let one = Backend::named(&["a"], "one");
    let two = Backend::named(&["b"], "two");
    let proxy = Proxy::start(runtime, &[&one, &two]);
    let file = "x\r\n--nearly\r\n".repeat(50_000);
    let form = |model: &str| {
        format!(
            "--edge\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\
             Content-Type: audio/wav\r\n\r\n{file}\r\n--edge\r\n\
             Content-Disposition: form-data; name=\"model\"\r\n\r\n{model}\r\n--edge--\r\n"
        )
    };
    let send = |boundary: &str, body: &str| {
        asked(
            &proxy,
            format!(
                "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: h\r\n\
                 Content-Type: multipart/form-data; boundary={boundary}\r\n\
                 Content-Length: {}\r\n\r\n{body}",
                body.len()
            ),
        )
        .text()
    };
    assert_eq!(send("edge", &form("b")), "two");
    assert_eq!(send("edge", &form("a")), "one");
    assert_eq!(send("edge", &form("")), "one", "the default model");
    assert_eq!(send("other", &form("b")), "one", "a backend judges what has no such boundary");
    eventually("all of it was relayed", || two.requests() == 1);
}

on_every_runtime!(
    a_stored_response_is_found_where_it_was_made,
    models_are_for_those_with_a_key,
    a_model_that_was_unloaded_is_asked_of_another,
    unknown_names_go_to_resolvers,
    the_model_of_a_form_may_stand_behind_the_file,
);
