//! The routes of the development mode. The expected bodies were taken from vLLM 0.32; that a paused
//! engine refuses is 0.33's.

use crate::server::{Mock, head, post};
use crate::{CHAT, COMPLETIONS, MESSAGES, RESPONSES, RUNNING, chat};
use rstest::rstest;
use serde_json::json;
use std::time::Duration;

const PAUSED: &str = r#"{"error":{"message":"Generation is paused. Please retry after it resumes.","type":"ServiceUnavailableError","param":null,"code":503}}"#;
const WAITING: &str = r#"vllm:num_requests_waiting{engine="0",model_name="tiny"}"#;

fn dev() -> Mock {
    Mock::start(&["--dev-mode", "--tokens", "4"])
}

fn sleep_state(mock: &Mock) -> [f64; 3] {
    ["awake", "weights_offloaded", "discard_all"].map(|state| {
        mock.metric(&format!(
            "vllm:engine_sleep_state{{engine=\"0\",model_name=\"tiny\",sleep_state=\"{state}\"}}"
        ))
    })
}

#[rstest]
#[case::sleep("POST", "/sleep?level=0", "", 200, r#"{"status":"sleeping","level":0}"#)]
#[case::wrong_level("POST", "/sleep?level=7&mode=foo", "", 400, r#"{"error":{"message":"2 validation errors:\n  {'type': 'less_than_equal', 'loc': 'query.level', 'msg': 'Input should be less than or equal to 2', 'input': '7', 'ctx': {'le': 2}}\n  {'type': 'literal_error', 'loc': 'query.mode', 'msg': \"Input should be 'abort', 'wait' or 'keep'\", 'input': 'foo', 'ctx': {'expected': \"'abort', 'wait' or 'keep'\"}}","type":"Bad Request","param":"query.level","code":400}}"#)]
#[case::no_level("POST", "/sleep?level=x", "", 400, r#"{"error":{"message":"1 validation error:\n  {'type': 'int_parsing', 'loc': 'query.level', 'msg': 'Input should be a valid integer, unable to parse string as an integer', 'input': 'x'}","type":"Bad Request","param":"query.level","code":400}}"#)]
#[case::wake_up("POST", "/wake_up", "", 200, r#"{"status":"awake","tags":null}"#)]
#[case::wake_up_parts(
    "POST",
    "/wake_up?tags=weights&tags=kv_cache",
    "",
    200,
    r#"{"status":"awake","tags":["weights","kv_cache"]}"#
)]
#[case::is_sleeping("GET", "/is_sleeping", "", 200, r#"{"is_sleeping":false}"#)]
#[case::pause("POST", "/pause?mode=keep&clear_cache=false", "", 200, r#"{"status":"paused"}"#)]
#[case::resume("POST", "/resume", "", 200, r#"{"status":"resumed"}"#)]
#[case::is_paused("GET", "/is_paused", "", 200, r#"{"is_paused":false}"#)]
#[case::reset_prefix_cache("POST", "/reset_prefix_cache", "", 200, r#"{"success":true}"#)]
#[case::reset_mm_cache("POST", "/reset_mm_cache", "", 200, "")]
#[case::reset_encoder_cache("POST", "/reset_encoder_cache", "", 200, "")]
#[case::rpc("POST", "/collective_rpc", r#"{"method":"x"}"#, 200, r#"{"results":[null]}"#)]
#[case::rpc_echo(
    "POST",
    "/collective_rpc",
    r#"{"method":"x","args":[1]}"#,
    200,
    r#"{"results":["1"]}"#
)]
#[case::rpc_of_nothing("POST", "/collective_rpc", "{}", 400, r#"{"error":{"message":"Missing 'method' in request body","type":"Bad Request","param":null,"code":400}}"#)]
#[case::rpc_of_no_object("POST", "/collective_rpc", "[]", 400, r#"{"error":{"message":"Request body must be a JSON object","type":"Bad Request","param":null,"code":400}}"#)]
#[case::world_size("GET", "/get_world_size", "", 200, r#"{"world_size":1}"#)]
#[case::weight_info("GET", "/weight_info", "", 200, r#"{"weight_version":"default"}"#)]
#[case::weight_version(
    "POST",
    "/update_weight_version",
    r#"{"new_version":"v2"}"#,
    200,
    r#"{"success":true,"new_version":"v2"}"#
)]
#[case::no_weight_version("POST", "/update_weight_version", "", 400, r#"{"error":{"message":"1 validation error:\n  {'type': 'missing', 'loc': 'body.new_version', 'msg': 'Field required', 'input': 'None'}","type":"Bad Request","param":"body.new_version","code":400}}"#)]
#[case::start_update(
    "POST",
    "/start_weight_update",
    "",
    200,
    r#"{"message":"Weight update started"}"#
)]
#[case::update(
    "POST",
    "/update_weights",
    r#"{"update_info":{}}"#,
    200,
    r#"{"message":"Weights updated"}"#
)]
#[case::no_init("POST", "/init_weight_transfer_engine", "{}", 400, r#"{"error":{"message":"1 validation error:\n  {'type': 'missing', 'loc': 'body.init_info', 'msg': 'Field required', 'input': 'None'}","type":"Bad Request","param":"body.init_info","code":400}}"#)]
#[case::checksum(
    "POST",
    "/weight_checker",
    r#"{"action":"checksum"}"#,
    200,
    r#"{"checksums":{"model":"tiny:default"}}"#
)]
#[case::compare(
    "POST",
    "/weight_checker",
    r#"{"action":"compare","baseline":{"a":"x"}}"#,
    200,
    r#"{"match":false,"mismatches":["a","model"]}"#
)]
#[case::compare_to_nothing("POST", "/weight_checker", r#"{"action":"compare"}"#, 400, r#"{"error":{"message":"action='compare' requires a 'baseline' object","type":"Bad Request","param":null,"code":400}}"#)]
#[case::abort_nothing("POST", "/abort_requests", "{}", 200, r#"{"status":"aborted","aborted":0}"#)]
#[case::abort_garbage(
    "POST",
    "/abort_requests",
    "[",
    400,
    r#"{"error":{"message":"Invalid JSON format","type":"Bad Request","param":null,"code":400}}"#
)]
fn each_route_answers_as_vllms(
    #[case] method: &str,
    #[case] path: &str,
    #[case] body: &str,
    #[case] status: u16,
    #[case] expected: &str,
) {
    let request = head(method, path, "content-type: application/json\r\n", Some(body.len())) + body;
    let answer = dev().send(&request).answer();
    assert_eq!((answer.status, answer.text().as_str()), (status, expected));
    // Without the option there is none of them.
    let answer = Mock::start(&[]).send(&request).answer();
    assert_eq!((answer.status, answer.text().as_str()), (404, r#"{"detail":"Not Found"}"#));
}

#[rstest]
#[case::pause("/pause", "/resume")]
#[case::pause_when_done("/pause?mode=wait", "/resume")]
#[case::sleep("/sleep", "/wake_up")]
#[case::pause_in_bed("/sleep?level=0", "/wake_up?tags=scheduling")]
fn what_rests_refuses_until_it_is_woken(#[case] rest: &str, #[case] wake: &str) {
    let mock = dev();
    assert_eq!(mock.post(rest, "").status, 200);
    assert_eq!(mock.get("/is_paused").json(), json!({"is_paused": true}));
    assert_eq!(mock.get("/is_sleeping").json(), json!({"is_sleeping": true}));
    for (path, body) in [(CHAT, chat("")), (COMPLETIONS, r#"{"prompt":"x"}"#.to_owned())] {
        let answer = mock.post(path, &body);
        assert_eq!((answer.status, answer.text().as_str()), (503, PAUSED), "{path}");
    }
    assert_eq!(mock.get("/health").status, 200, "which tells nothing of that");
    mock.post(wake, "");
    assert_eq!(mock.get("/is_sleeping").json(), json!({"is_sleeping": false}));
    assert_eq!(mock.post(CHAT, &chat("")).status, 200);
}

#[test]
fn to_streams_it_is_told_after_the_head() {
    let mock = dev();
    mock.post("/pause", "");
    let event = |path: &str, body: &str| {
        let answer = mock.post(path, body);
        assert_eq!(answer.status, 200, "{path}");
        (answer.complete, answer.text())
    };
    let error = |kind: &str| {
        format!(
            "data: {{\"error\": {{\"message\": \"Generation is paused. Please retry after it \
             resumes.\", \"type\": \"{kind}\", \"param\": null, \"code\": 503}}}}\n\n\
             data: [DONE]\n\n"
        )
    };
    let chat = chat(r#","stream":true"#);
    assert_eq!(event(CHAT, &chat), (true, error("InternalServerError")), "as chats say");
    let completion = event(COMPLETIONS, r#"{"prompt":"x","stream":true}"#);
    assert_eq!(completion, (true, error("ServiceUnavailableError")));
    let body = r#"{"model":"tiny","max_tokens":1,"stream":true,"messages":[{"role":"user","content":"x"}]}"#;
    let message = "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\
                   \"message\":\"Generation is paused. Please retry after it resumes.\"}}\n\n";
    assert_eq!(event(MESSAGES, body), (true, message.to_owned()));
    let (complete, text) = event(RESPONSES, r#"{"input":"x","stream":true}"#);
    assert!(!complete && text.starts_with("event: response.created\n"), "{text}");
}

#[test]
fn sleeping_parts_wake_one_by_one() {
    let mock = dev();
    assert_eq!(sleep_state(&mock), [1.0, 0.0, 0.0]);
    mock.post("/sleep?level=2", "");
    assert_eq!(sleep_state(&mock), [0.0, 0.0, 1.0]);
    mock.post("/resume", "");
    assert_eq!(mock.get("/is_sleeping").json(), json!({"is_sleeping": true}), "without memory");
    assert_eq!(mock.post(CHAT, &chat("")).status, 503);
    let some = mock.post("/wake_up?tags=weights", "");
    assert_eq!(some.text(), r#"{"status":"sleeping","tags":["weights"]}"#);
    let none = mock.post("/wake_up?tags=weights", "");
    assert_eq!(none.json()["status"], "sleeping", "it is awake already");
    assert_eq!(mock.post("/wake_up?tags=kv_cache", "").json()["status"], "awake");
    assert_eq!(sleep_state(&mock), [1.0, 0.0, 0.0]);
    assert_eq!(mock.post(CHAT, &chat("")).status, 200);
}

#[test]
fn memory_is_given_away_only_when_paused() {
    let mock = dev();
    let early = mock.post("/release_kv_cache_memory", "");
    assert_eq!(early.status, 500);
    mock.post("/pause", "");
    let released = mock.post("/release_kv_cache_memory", "");
    assert_eq!(released.text(), r#"{"status":"kv_cache_released"}"#);
    mock.post("/resume", "");
    assert_eq!(mock.post(CHAT, &chat("")).status, 503);
    mock.post("/wake_up", "");
    assert_eq!(mock.post(CHAT, &chat("")).status, 200);
}

#[rstest]
#[case::pause("/pause", "")]
#[case::sleep("/sleep?level=1", "")]
#[case::abort_all("/abort_requests", "{}")]
#[case::abort_one("/abort_requests", r#"{"request_ids":["chatcmpl-rid"]}"#)]
fn what_is_aborted_ends_in_order(
    #[case] path: &str,
    #[case] body: &str,
    #[values(false, true)] stream: bool,
) {
    let mock = dev();
    let fields = format!(r#","stream":{stream},"mock":{{"itl_ms":3600000}}"#);
    let mut client = mock.send(&post(CHAT, &chat(&fields)));
    mock.await_metric(RUNNING, 1.0);
    mock.post(path, body);
    let answer = client.answer();
    assert_eq!((answer.status, answer.complete), (200, true));
    assert!(answer.text().contains(r#""finish_reason":"abort""#), "{}", answer.text());
    if !stream {
        assert!(answer.json()["usage"]["completion_tokens"].as_u64() < Some(4));
    }
    mock.await_metric(RUNNING, 0.0);
}

#[test]
fn others_are_not_aborted() {
    let mock = dev();
    let mut client = mock.send(&post(CHAT, &chat(r#","mock":{"itl_ms":3600000}"#)));
    mock.await_metric(RUNNING, 1.0);
    let told = mock.post("/abort_requests", r#"{"request_ids":["chatcmpl-other"]}"#);
    assert_eq!(told.json()["aborted"], 1, "vLLM counts what was asked for");
    assert!(client.silent(Duration::from_millis(50)));
    assert_eq!(mock.metric(RUNNING), 1.0);
    let busy = mock.post("/reset_prefix_cache", "");
    assert_eq!(busy.text(), r#"{"success":false}"#, "its blocks are held");
    let forced = mock.post("/reset_prefix_cache?reset_running_requests=true", "");
    assert_eq!(forced.text(), r#"{"success":true}"#);
}

#[rstest]
#[case::its_prompt("cmpl-rid-0", 0.0)]
#[case::a_longer_id("cmpl-rid2-0", 1.0)]
fn completions_are_aborted_by_their_prompts(#[case] id: &str, #[case] running: f64) {
    let mock = dev();
    let body = r#"{"prompt":"x","mock":{"itl_ms":3600000}}"#;
    let _client = mock.send(&post(COMPLETIONS, body));
    mock.await_metric(RUNNING, 1.0);
    mock.post("/abort_requests", &format!(r#"{{"request_ids":["{id}"]}}"#));
    mock.await_metric(RUNNING, running);
}

#[test]
fn what_is_kept_goes_on_later() {
    let mock = Mock::start(&["--dev-mode", "--tokens", "3"]);
    mock.post("/pause?mode=keep", "");
    let mut client = mock.send(&post(CHAT, &chat(r#","stream":true"#)));
    client.head().expect("an answer");
    mock.await_metric(RUNNING, 1.0);
    assert!(client.silent(Duration::from_millis(50)));
    mock.post("/resume", "");
    let mut events = 0;
    while client.chunk().is_some_and(|chunk| !chunk.is_empty()) {
        events += 1;
    }
    assert_eq!(events, 1 + 3 + 1, "role, tokens, end");
}

#[test]
fn a_pause_can_wait_for_what_runs() {
    let mock = dev();
    let endless = mock.send(&post(CHAT, &chat(r#","mock":{"itl_ms":3600000}"#)));
    mock.await_metric(RUNNING, 1.0);
    let fields = r#","stream":true,"max_tokens":4,"mock":{"itl_ms":100}"#;
    let mut running = mock.send(&post(CHAT, &chat(fields)));
    running.head().expect("an answer");
    running.chunk().expect("its role, when it has its first token");
    let mut pausing = mock.send(&head("POST", "/pause?mode=wait", "", None));
    assert!(pausing.silent(Duration::from_millis(50)));
    let rest: Vec<_> = std::iter::from_fn(|| running.chunk().filter(|it| !it.is_empty())).collect();
    assert_eq!(rest.last().map(String::as_str), Some("data: [DONE]\n\n"), "{rest:?}");
    assert!(pausing.silent(Duration::from_millis(50)));
    drop(endless);
    assert_eq!(pausing.answer().text(), r#"{"status":"paused"}"#);
    assert_eq!(mock.metric(WAITING), 0.0);
}

#[test]
fn the_weights_version_stays() {
    let mock = dev();
    mock.post("/update_weight_version", r#"{"new_version":"v2"}"#);
    assert_eq!(mock.get("/weight_info").text(), r#"{"weight_version":"v2"}"#);
    let sum = mock.post("/weight_checker", r#"{"action":"checksum"}"#).json()["checksums"].clone();
    let compared = json!({"action": "compare", "baseline": sum}).to_string();
    let same = mock.post("/weight_checker", &compared).text();
    assert_eq!(same, r#"{"match":true,"mismatches":[]}"#);
    mock.post("/finish_weight_update", r#"{"weight_version":"v3"}"#);
    assert_eq!(mock.get("/weight_info").text(), r#"{"weight_version":"v3"}"#);
    let info = mock.get("/server_info").json();
    assert!(info["vllm_config"].as_str().is_some_and(|text| text.contains("tiny")), "{info}");
}
