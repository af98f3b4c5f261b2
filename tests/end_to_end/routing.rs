//! Who gets a request: by the model it names, wherever that stands, and by what backends have in
//! hand.

use crate::backend::{Backend, Gate, Then, card, not_found};
use crate::proxy::{Proxy, Runtime, eventually, on_every_runtime};
use crate::wire::{assert_bytes, chat, chunk, framed, get, ok, post};
use std::fmt::Write;

/// Asks on a connection of its own.
fn asked(proxy: &Proxy, request: impl AsRef<[u8]>) -> crate::wire::Message {
    let mut client = proxy.client();
    client.send(request);
    client.answer().unwrap_or_else(|end| panic!("no answer: {end:?}"))
}

fn models_of_all_backends_are_one_list(runtime: Runtime) {
    let one = Backend::named(&["a", "both"], "one");
    let two = Backend::named(&["b", "both"], "two");
    let proxy = Proxy::start(runtime, &[&one, &two]);
    let answer = asked(&proxy, get("/v1/models"));
    assert_eq!(answer.status(), 200);
    let cards = [card("a"), card("both"), card("b")].join(",");
    assert_eq!(answer.text(), format!(r#"{{"object":"list","data":[{cards}]}}"#));
    assert_eq!(asked(&proxy, get("/version")).text(), r#"{"version":"0.33.0"}"#);
    one.assert_untouched();
    two.assert_untouched();
}

fn the_model_is_found_wherever_it_stands(runtime: Runtime) {
    let one = Backend::named(&["first", "quoted\\\"name", "schön", "n"], "one");
    let two = Backend::named(&["b"], "two");
    let proxy = Proxy::start(runtime, &[&one, &two]);
    let long = {
        let mut messages = String::new();
        while messages.len() < 1 << 20 {
            let text = r#"said \"model\": \"first\", {\\ \u0022model\u0022:\"first\" "#;
            write!(messages, r#"{{"role":"user","content":"{text}"}},"#).unwrap();
        }
        format!(r#"{{"messages":[{}null],"model":"b"}}"#, messages)
    };
    let chat = "/v1/chat/completions";
    for (name, path, body, expected) in [
        ("first", chat, r#"{"model":"b","messages":[]}"#, "two"),
        ("other", chat, r#"{"model":"first","messages":[]}"#, "one"),
        ("last after a megabyte", chat, &long, "two"),
        ("escaped key", chat, r#"{"\u006do\u0064el":"b"}"#, "two"),
        ("escaped value", chat, r#"{"model":"\u0062"}"#, "two"),
        ("escaped and beyond ASCII", chat, r#"{"model":"sch\u00f6n"}"#, "one"),
        ("beyond ASCII", chat, r#"{"model":"schön"}"#, "one"),
        ("quoted", chat, r#"{"model":"quoted\"name"}"#, "one"),
        ("the last of two counts", chat, r#"{"model":"first","model":"b"}"#, "two"),
        ("the last of two, escaped", chat, r#"{"model":"first","mod\u0065l":"b"}"#, "two"),
        ("null is the last", chat, r#"{"model":"b","model":null}"#, "one"),
        (
            "nested before",
            chat,
            r#"{"a":{"model":"first"},"b":["model","first"],"model":"b"}"#,
            "two",
        ),
        (
            "nested behind",
            chat,
            r#"{"model":"b","a":{"model":"first"},"b":["model","first"]}"#,
            "two",
        ),
        ("only nested", chat, r#"{"a":{"model":"b"},"x":"model\":\"b"}"#, "one"),
        ("in a string", chat, r#"{"a":"\"model\":\"first\"","model":"b"}"#, "two"),
        ("blanks", chat, " \r\n\t{ \"model\" \n:\t\"b\" }\n", "two"),
        ("none", chat, r#"{"messages":[]}"#, "one"),
        ("empty", chat, r#"{"model":""}"#, "one"),
        ("no JSON", chat, "model=b", "one"),
        ("broken behind it", chat, r#"{"model":"b","messages":["#, "two"),
        ("no body", chat, "", "one"),
        ("an unknown path", "/v9/new", r#"{"model":"b"}"#, "two"),
        ("an escaped path", "/v1/%63hat/completions", r#"{"model":"b"}"#, "two"),
    ] {
        let answer = asked(&proxy, post(path, body));
        assert_eq!((answer.status(), answer.text()), (200, expected.to_owned()), "{name}");
    }
}

fn the_model_is_found_however_the_body_is_cut(runtime: Runtime) {
    let one = Backend::named(&["a"], "one");
    let two = Backend::named(&["b"], "two");
    let proxy = Proxy::start(runtime, &[&one, &two]);
    let request = post("/v1/chat/completions", r#"{"x":{"model":"a"},"mod\u0065l":"\u0062"}"#);
    let mut client = proxy.client();
    for cut in 1..request.len() {
        client.send(&request[..cut]);
        client.send(&request[cut..]);
        assert_eq!(client.answer().unwrap().text(), "two", "cut at {cut}");
    }
}

fn a_default_model_may_be_named(runtime: Runtime) {
    let one = Backend::named(&["a"], "one");
    let two = Backend::named(&["b"], "two");
    let proxy = Proxy::with(runtime, &["--default-model", "b"], &[&one, &two]);
    assert_eq!(asked(&proxy, get("/docs")).text(), "two");
    assert_eq!(asked(&proxy, post("/v1/completions", "{}")).text(), "two");
    assert_eq!(asked(&proxy, chat("a")).text(), "one");
}

fn an_unknown_model_is_told_with_all_that_there_are(runtime: Runtime) {
    let one = Backend::judging(&["a", "x"], "one");
    let two = Backend::judging(&["b"], "two");
    let proxy = Proxy::start(runtime, &[&one, &two]);
    let mut client = proxy.client();
    for (path, body) in [
        (
            "/v1/chat/completions",
            r#"{"error":{"message":"The model `none` does not exist. Valid aliases: a, x, b.","type":"NotFoundError","param":"model","code":404}}"#,
        ),
        (
            "/v1/embeddings",
            r#"{"error":{"message":"The model `none` does not exist.","type":"NotFoundError","param":null,"code":404}}"#,
        ),
    ] {
        client.send(post(path, r#"{"model":"none"}"#));
        let answer = client.answer().unwrap();
        assert_eq!((answer.status(), answer.text()), (404, body.to_owned()));
    }
    client.send(post("/v1/messages", r#"{"model":"none"}"#));
    let answer = client.answer().unwrap();
    assert_eq!(answer.status(), 404);
    assert!(
        answer.text().starts_with(r#"{"type":"error","error":{"type":"not_found_error","#),
        "{answer:?}"
    );
    two.assert_untouched();
}

fn what_else_is_wrong_with_an_unknown_model_is_said_first(runtime: Runtime) {
    // vLLM reads a body before it looks for the model, and so do clients of ours learn.
    let wrong = framed("400 Bad Request", r#"{"error":{"message":"max_tokens","code":400}}"#);
    let answer = wrong.clone();
    let one = Backend::answering(&["a"], move |_| answer.clone());
    let two = Backend::named(&["b"], "two");
    let proxy = Proxy::start(runtime, &[&one, &two]);
    assert_bytes(&asked(&proxy, chat("none")).raw, &wrong);
    two.assert_untouched();
}

fn a_single_backend_speaks_for_itself(runtime: Runtime) {
    let backend = Backend::judging(&["a"], "one");
    let proxy = Proxy::start(runtime, &[&backend]);
    assert_bytes(&asked(&proxy, chat("none")).raw, &not_found("none"));
    assert_eq!(asked(&proxy, chat("a")).text(), "one");
}

fn an_adapter_that_was_just_loaded_is_found(runtime: Runtime) {
    let one = Backend::judging(&["a"], "one");
    let two = Backend::named(&["b"], "two");
    let proxy = Proxy::start(runtime, &[&one, &two]);
    assert_eq!(proxy.ask(&chat("adapter")), 404);
    two.list(&["b", "adapter"]);
    // Lists are refreshed once a second at most, and sooner than they would be by themselves.
    let after = eventually("the adapter is found", || proxy.ask(&chat("adapter")) == 200);
    println!("an adapter was found after {after:?}");
}

fn a_known_model_without_a_backend_is_503(runtime: Runtime) {
    let one = Backend::judging(&["a"], "one");
    let mut two = Backend::named(&["b"], "two");
    let proxy = Proxy::start(runtime, &[&one, &two]);
    two.stop();
    for shape in ["/v1/chat/completions", "/v1/messages"] {
        let answer = asked(&proxy, post(shape, r#"{"model":"b"}"#));
        assert_eq!(answer.status(), 503, "{answer:?}");
        assert!(answer.header("retry-after").is_some(), "{answer:?}");
    }
    proxy.await_entries("backend is down", 1);
    let answer = asked(&proxy, chat("b"));
    assert_eq!(answer.status(), 503, "{answer:?}");
    let seconds: u32 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&seconds), "{answer:?}");
    // The others go on, and the list tells who is left.
    assert_eq!(asked(&proxy, chat("a")).text(), "one");
    assert_eq!(asked(&proxy, chat("unknown")).status(), 404);
    let list = format!(r#"{{"object":"list","data":[{}]}}"#, card("a"));
    assert_eq!(asked(&proxy, get("/v1/models")).text(), list);
}

fn a_backend_that_comes_back_is_used_again(runtime: Runtime) {
    let mut backend = Backend::named(&["a"], "one");
    let proxy = Proxy::start(runtime, &[&backend]);
    assert_eq!(proxy.ask(&chat("a")), 200);
    backend.stop();
    assert_eq!(proxy.ask(&chat("a")), 503);
    proxy.await_entries("backend is down", 1);
    assert_eq!(proxy.ask(&get("/health")), 503);
    backend.start_again();
    proxy.await_entries("backend is up", 2);
    assert_eq!(proxy.ask(&get("/health")), 200);
    assert_eq!(proxy.ask(&chat("a")), 200);
}

/// Backends that answer when the gate opens.
fn waiting(gate: &Gate) -> Backend {
    let gate = gate.clone();
    Backend::scripted(&["a"], move |wire, asked| {
        if wire.request_with(asked.head).is_err() || !gate.pass() {
            return Then::Close;
        }
        wire.send(ok("hi"));
        Then::Keep
    })
}

fn least_load_spreads_what_is_open(runtime: Runtime) {
    let gate = Gate::default();
    let backends = [waiting(&gate), waiting(&gate)];
    let proxy = Proxy::with(runtime, &["--policy", "least-load"], &[&backends[0], &backends[1]]);
    let mut clients = Vec::new();
    for number in 1..=20 {
        let mut client = proxy.client();
        client.send(chat("a"));
        // One after the other: each choice knows of all before it.
        eventually("the request arrives", || {
            backends.iter().map(Backend::requests).sum::<usize>() == number
        });
        let (one, two) = (backends[0].requests(), backends[1].requests());
        assert!(one.abs_diff(two) <= 1, "{one} and {two}");
        assert!(client.is_silent());
        clients.push(client);
    }
    gate.open();
    for client in &mut clients {
        assert_eq!(client.answer().unwrap().status(), 200);
    }
}

fn round_robin_takes_turns(runtime: Runtime) {
    let one = Backend::named(&["a"], "one");
    let two = Backend::named(&["a", "b"], "two");
    let three = Backend::named(&["a"], "three");
    let proxy = Proxy::with(runtime, &["--policy", "round-robin"], &[&one, &two, &three]);
    for _ in 0..4 {
        for name in ["one", "two", "three"] {
            assert_eq!(asked(&proxy, chat("a")).text(), name);
            // Another model's turns are its own.
            assert_eq!(asked(&proxy, chat("b")).text(), "two");
        }
    }
}

fn what_answers_and_metrics_say_is_read(runtime: Runtime) {
    let last = r#"{"choices":[],"usage":{"prompt_tokens":19,"completion_tokens":7,"prompt_tokens_details":{"cached_tokens":16}}}"#;
    let events: Vec<_> = [r#"{"choices":[{"delta":{"content":"a"}}]}"#, last, "[DONE]"]
        .iter()
        .map(|data| chunk(format!("data: {data}\n\n")))
        .collect();
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                transfer-encoding: chunked\r\n\r\n";
    let answer = [head.as_bytes(), &events.concat(), b"0\r\n\r\n"].concat();
    let expected = answer.clone();
    let backend = Backend::answering(&["m"], move |request| {
        if request.head.starts_with(b"GET /metrics ") { ok("") } else { answer.clone() }
    });
    let proxy = Proxy::with(runtime, &["--policy", "cache-aware"], &[&backend]);
    backend.await_metrics_probe();
    let passed = asked(&proxy, chat("m"));
    assert_bytes(&passed.raw, &expected);
    let name =
        format!("vllm_proxy_reported_cached_tokens_total{{backend=\"{}\"}}", backend.address());
    eventually("the cached tokens are told", || {
        asked(&proxy, get("/metrics")).text().contains(&format!("{name} 16\n"))
    });
}

on_every_runtime![
    models_of_all_backends_are_one_list,
    the_model_is_found_wherever_it_stands,
    the_model_is_found_however_the_body_is_cut,
    a_default_model_may_be_named,
    an_unknown_model_is_told_with_all_that_there_are,
    what_else_is_wrong_with_an_unknown_model_is_said_first,
    a_single_backend_speaks_for_itself,
    an_adapter_that_was_just_loaded_is_found,
    a_known_model_without_a_backend_is_503,
    a_backend_that_comes_back_is_used_again,
    least_load_spreads_what_is_open,
    round_robin_takes_turns,
    what_answers_and_metrics_say_is_read,
];
