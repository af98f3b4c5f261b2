//! Why a backend was chosen: headers for clients that ask, dry runs for operators, and the log.

use crate::backend::{Backend, Then};
use crate::proxy::{Proxy, Runtime, on_every_runtime};
use crate::wire::{Message, Wire, assert_bytes, chat, get, ok, post};
use serde_json::{Value, json};

const ADMIN: [&str; 2] = ["--admin", "127.0.0.1:0"];
const HEADERS: [&str; 4] = ["backend", "reason", "predicted-cached-tokens", "attempts"];

/// The same request, of a client that asks.
fn asking(request: Vec<u8>) -> Vec<u8> {
    let text = String::from_utf8(request).unwrap();
    text.replacen("\r\n", "\r\nx-vllm-proxy-explain: 1\r\n", 1).into_bytes()
}

fn asked(wire: &mut Wire, request: &[u8]) -> Message {
    wire.send(request);
    wire.answer().unwrap_or_else(|end| panic!("no answer: {end:?}"))
}

/// What an answer tells of its way.
fn way(answer: &Message) -> [Option<String>; 4] {
    HEADERS.map(|name| answer.header(&format!("x-vllm-proxy-{name}")))
}

fn told(backend: &Backend, reason: &str, predicted: u32, attempts: u32) -> [Option<String>; 4] {
    let rest = [reason.to_owned(), predicted.to_string(), attempts.to_string()];
    let [reason, predicted, attempts] = rest.map(Some);
    [Some(backend.address().to_string()), reason, predicted, attempts]
}

/// What a request of this body would come to, as operators are told.
fn explained(proxy: &Proxy, query: &str, body: &str) -> Value {
    let answer = asked(&mut proxy.operator(), &post(&format!("/proxy/explain{query}"), body));
    assert_eq!(answer.status(), 200, "{answer:?}");
    serde_json::from_slice(&answer.body).expect("it is JSON")
}

/// A chat of so many KiB of prompt.
fn long(kib: usize) -> String {
    let content = "x".repeat(kib << 10);
    json!({"model": "m", "messages": [{"role": "user", "content": content}]}).to_string()
}

fn clients_are_told_only_if_they_may_and_ask(runtime: Runtime) {
    let backend = Backend::named(&["m"], "hi");
    for (options, may) in [(&[][..], false), (&["--explain"], true), (&["--explain=no"], false)] {
        let proxy = Proxy::with(runtime, options, &[&backend]);
        let before = backend.heads().len();
        let answer = asked(&mut proxy.client(), &asking(chat("m")));
        let expected = if may { told(&backend, "only", 0, 1) } else { [const { None }; 4] };
        assert_eq!(way(&answer), expected, "{options:?}");
        if !may {
            assert_bytes(&answer.raw, &ok("hi"));
        }
        // The question goes on with the request.
        let head = String::from_utf8(backend.heads()[before].clone()).unwrap();
        assert!(head.contains("\r\nx-vllm-proxy-explain: 1\r\n"), "{head}");
        assert_bytes(&asked(&mut proxy.client(), &chat("m")).raw, &ok("hi"));
    }
}

fn operators_are_told_always(runtime: Runtime) {
    let backend = Backend::named(&["m"], "hi");
    let proxy = Proxy::with(runtime, &ADMIN, &[&backend]);
    let answer = asked(&mut proxy.operator(), &asking(chat("m")));
    assert_eq!(way(&answer), told(&backend, "only", 0, 1));
    assert_bytes(&asked(&mut proxy.client(), &asking(chat("m"))).raw, &ok("hi"));
    // Only they are told what would be: for others it is a path like any other.
    assert_bytes(&asked(&mut proxy.client(), &post("/proxy/explain", "{}")).raw, &ok("hi"));
    assert_eq!(asked(&mut proxy.operator(), &get("/proxy/explain")).status(), 405);
}

fn backends_that_failed_are_counted(runtime: Runtime) {
    let lost = |_: &mut Wire, _| Then::Reset;
    let backends = [Backend::scripted(&["m"], lost), Backend::scripted(&["m"], lost)];
    let proxy = Proxy::with(runtime, &["--explain"], &[&backends[0], &backends[1]]);
    let answer = asked(&mut proxy.client(), &asking(chat("m")));
    let words = ["no-answer".to_owned(), "2".to_owned()].map(Some);
    assert_eq!(way(&answer), [None, words[0].clone(), None, words[1].clone()], "{answer:?}");
    assert!([502, 503].contains(&answer.status()), "{answer:?}");
    let good = Backend::named(&["n"], "hi");
    let bad = Backend::scripted(&["n"], lost);
    let proxy = Proxy::with(runtime, &["--explain", "--policy", "round-robin"], &[&bad, &good]);
    let answer = asked(&mut proxy.client(), &asking(chat("n")));
    assert_eq!(way(&answer), told(&good, "only", 0, 2), "{answer:?}");
}

fn what_is_explained_is_what_happens(runtime: Runtime) {
    let backends = [(); 3].map(|()| Backend::named(&["m"], "hi"));
    let [one, two, three] = &backends;
    let options = ["--admin", "127.0.0.1:0", "--explain", "-v"];
    let proxy = Proxy::with(runtime, &options, &[one, two, three]);
    let mut first = None;
    for kib in 1..6 {
        let body = long(4 * kib);
        let would = explained(&proxy, "", &body);
        assert_eq!(would, explained(&proxy, "", &body), "nothing changes by the question");
        assert_eq!((&would["outcome"], &would["model"]["name"]), (&json!("forward"), &json!("m")));
        assert!(!would.to_string().contains("xxx"), "{would}");
        let answer = asked(&mut proxy.client(), &asking(post("/v1/chat/completions", &body)));
        let [backend, reason, predicted, attempts] = way(&answer);
        assert_eq!(would["backend"].as_str(), backend.as_deref());
        assert_eq!(would["reason"].as_str(), reason.as_deref());
        assert_eq!(Some(would["predicted_cached_tokens"].to_string()), predicted);
        assert_eq!(attempts.as_deref(), Some("1"));
        // A prompt that goes on where the last one ended is found where that went.
        let expected = first.get_or_insert_with(|| backend.clone());
        let is_first = kib == 1;
        assert_eq!((&backend, reason.as_deref() == Some("cached")), (&*expected, !is_first));
        // By half kilobytes of text, 4 bytes a token; what begins the prompt is a part of it.
        let tokens = would["predicted_cached_tokens"].as_u64().unwrap();
        let most = 1_024 * (kib as u64 - 1);
        assert!(tokens <= most + 128 && tokens + 256 >= most, "{tokens} of {most}");
        let of = |rank: u64| {
            let all = would["backends"].as_array().unwrap();
            all.iter().find(|one| one["rank"] == rank).expect("all are ranked")
        };
        assert_eq!(of(1)["address"], would["backend"]);
        let total = |rank| of(rank)["cost"]["total"].as_f64().unwrap();
        assert!(total(1) <= total(2) && total(2) <= total(3), "{would}");
        for rank in 1..4 {
            let cost = of(rank)["cost"].as_object().unwrap();
            let parts = cost.iter().filter(|(name, _)| *name != "total");
            let sum: f64 = parts.map(|(_, part)| part.as_f64().unwrap()).sum();
            assert!((sum - total(rank)).abs() < 0.01, "{cost:?}");
        }
        // The next question is asked when nothing is in hand any more.
        proxy.await_entries("settled", kib);
    }
    let entries = proxy.values("routed");
    assert_eq!(entries.len(), 5, "dry runs are not requests: {entries:?}");
    let last = &entries[4];
    assert_eq!((&last["candidates"], &last["attempt"]), (&json!(3), &json!(1)), "{last}");
    assert_eq!((&last["model"], &last["reason"]), (&json!("m"), &json!("cached")), "{last}");
    assert_eq!(last["address"].as_str(), first.flatten().as_deref());
    let number = |name: &str| last[name].as_i64().unwrap_or_else(|| panic!("{name} in {last}"));
    assert!(number("prompt_tokens") > number("predicted_cached_tokens"), "{last}");
    assert!(number("next_cost") > number("cost") && number("queued_tokens") == 0, "{last}");
    assert!(!proxy.told().contains("xxx"));
}

fn whoever_is_not_chosen_among_is_told_of(runtime: Runtime) {
    let mut backends = [&["m"][..], &["m"], &["n"]].map(|models| Backend::judging(models, "hi"));
    let [one, two, three] = &backends;
    let proxy = Proxy::with(runtime, &ADMIN, &[one, two, three]);
    backends[1].stop();
    proxy.await_entries("backend is down", 1);
    let would = explained(&proxy, "?path=/v1/completions", r#"{"model":"m","prompt":"hi"}"#);
    let all = would["backends"].as_array().unwrap();
    let words: Vec<_> =
        all.iter().map(|one| (&one["candidate"], &one["excluded"], &one["state"])).collect();
    let (yes, no, up) = (json!(true), json!(false), json!("up"));
    let (down, other) = (json!("down"), json!("other-model"));
    assert_eq!(words, [(&yes, &Value::Null, &up), (&no, &down, &down), (&no, &other, &up)]);
    assert_eq!(all[0]["address"], backends[0].address().to_string());
    assert_eq!((&would["reason"], &all[1]["cost"]), (&json!("only"), &Value::Null));
    assert_eq!(would["request"]["path"], "/v1/completions");

    // A name that nobody lists, in the words that a client would get.
    let would = explained(&proxy, "", r#"{"model":"none"}"#);
    let answer = asked(&mut proxy.client(), &chat("none"));
    assert_eq!((answer.status(), &would["outcome"]), (404, &json!("judge")));
    let body: Value = serde_json::from_slice(&answer.body).unwrap();
    let refusal = json!({"status": 404, "reason": "unknown-model", "body": body});
    assert_eq!(would["refusal"], refusal);

    // What is no JSON is a backend's to refuse.
    let would = explained(&proxy, "", r#"{"model":"m","messages":["#);
    assert_eq!((&would["outcome"], &would["reason"]), (&json!("forward"), &json!("only")));

    backends[2].stop();
    proxy.await_entries("backend is down", 2);
    let would = explained(&proxy, "?path=/v1/messages", r#"{"model":"n"}"#);
    let refusal = &would["refusal"];
    assert_eq!((&refusal["status"], &refusal["reason"]), (&json!(503), &json!("model-down")));
    assert_eq!(refusal["body"]["error"]["type"], "overloaded_error", "in the route's own form");
    // One that asks is told the same word.
    let answer = asked(&mut proxy.operator(), &asking(chat("n")));
    let words = [None, Some("model-down".to_owned()), None, Some("0".to_owned())];
    assert_eq!((answer.status(), way(&answer)), (503, words));
    assert_eq!(backends[0].requests(), 1, "it judged one, and was asked nothing by questions");
}

fn an_explanation_has_the_limits_of_a_request(runtime: Runtime) {
    let backend = Backend::named(&["m"], "hi");
    let options = ["--admin", "127.0.0.1:0", "--max-body", "8KiB"];
    let proxy = Proxy::with(runtime, &options, &[&backend]);
    assert_eq!(explained(&proxy, "", &long(7))["outcome"], "forward");
    let answer = asked(&mut proxy.operator(), &post("/proxy/explain", &long(8)));
    assert_eq!(answer.status(), 413);
    let answer = asked(&mut proxy.operator(), &post("/proxy/explain?path=chat", "{}"));
    assert_eq!(answer.status(), 400);
    backend.assert_untouched();
}

on_every_runtime![
    clients_are_told_only_if_they_may_and_ask,
    operators_are_told_always,
    backends_that_failed_are_counted,
    what_is_explained_is_what_happens,
    whoever_is_not_chosen_among_is_told_of,
    an_explanation_has_the_limits_of_a_request,
];
