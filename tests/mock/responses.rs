//! Responses that outlive their request: kept, made in the background, read again, cancelled.

use crate::RESPONSES;
use crate::server::{Mock, PATIENCE, head, post};
use rstest::rstest;
use serde_json::Value;
use std::time::Instant;

#[test]
fn responses_are_kept_if_the_server_keeps_them() {
    let forgetful = Mock::start(&[]);
    let id = forgetful.post(RESPONSES, r#"{"input":"hi"}"#).json()["id"].clone();
    let id = id.as_str().expect("an id");
    assert_eq!(forgetful.get(&format!("/v1/responses/{id}")).status, 404);

    let mock = Mock::start(&["--response-store"]);
    let first = mock.post(RESPONSES, r#"{"input":"hi"}"#);
    let id = first.json()["id"].as_str().expect("an id").to_owned();
    assert_eq!(mock.get(&format!("/v1/responses/{id}")).text(), first.text());
    let body = format!(r#"{{"input":"more","previous_response_id":"{id}"}}"#);
    let second = mock.post(RESPONSES, &body).json();
    assert_eq!(second["previous_response_id"], id);
    let tokens = |answer: &Value| answer["usage"]["total_tokens"].as_u64().expect("a number");
    assert!(second["usage"]["input_tokens"].as_u64() > Some(tokens(&first.json())));
    let unknown = mock.post(RESPONSES, r#"{"input":"x","previous_response_id":"resp_zz"}"#);
    assert_eq!(
        unknown.text(),
        r#"{"error":{"message":"Response with id 'resp_zz' not found.","type":"invalid_request_error","param":"response_id","code":404}}"#
    );
}

/// Waits until a response says this.
fn await_status(mock: &Mock, path: &str, status: &str) -> Value {
    let start = Instant::now();
    loop {
        let response = mock.get(path).json();
        if response["status"] == status {
            return response;
        }
        assert!(start.elapsed() < PATIENCE, "{response}");
    }
}

#[rstest]
#[case::no_store(&[], r#"{"input":"x","background":true}"#, 400, r#"{"error":{"message":"This vLLM engine does not support `store=True` and therefore does not support the background mode. To enable these features, set the environment variable `VLLM_ENABLE_RESPONSES_API_STORE=1` when launching the vLLM server.","type":"invalid_request_error","param":"background","code":400}}"#)]
#[case::not_to_be_stored(&["--response-store"], r#"{"input":"x","background":true,"store":false}"#, 400, r#"{"error":{"message":"background can only be used when `store` is true (parameter=background)","type":"BadRequestError","param":"background","code":400}}"#)]
#[case::model_before_store(&[], r#"{"input":"x","background":true,"model":"nope"}"#, 404, r#"{"error":{"message":"The model `nope` does not exist. Valid aliases: tiny.","type":"NotFoundError","param":"model","code":404}}"#)]
#[case::no_such_history(&[], r#"{"input":"x","previous_response_id":"resp_a"}"#, 404, r#"{"error":{"message":"Response with id 'resp_a' not found.","type":"invalid_request_error","param":"response_id","code":404}}"#)]
fn what_cannot_be_kept_is_refused(
    #[case] options: &[&str],
    #[case] body: &str,
    #[case] status: u16,
    #[case] error: &str,
) {
    let mock = Mock::start(options);
    let answer = mock.post(RESPONSES, body);
    assert_eq!((answer.status, answer.text().as_str()), (status, error));
}

#[test]
fn what_is_not_to_be_stored_is_not() {
    let mock = Mock::start(&["--response-store"]);
    let answer = mock.post(RESPONSES, r#"{"input":"x","store":false,"request_id":"mine"}"#);
    assert_eq!(answer.json()["id"], "mine");
    assert_eq!(mock.get("/v1/responses/mine").status, 404);
    let lost = mock.post("/v1/responses/mine/cancel", "");
    assert_eq!(lost.status, 404);
}

#[test]
fn a_response_is_made_in_the_background() {
    let mock = Mock::start(&["--response-store", "--tokens", "3"]);
    let queued = mock.post(RESPONSES, r#"{"input":"hi","background":true,"request_id":"r"}"#);
    let queued = queued.json();
    assert_eq!((&queued["status"], &queued["background"]), (&"queued".into(), &true.into()));
    let done = await_status(&mock, "/v1/responses/r", "completed");
    assert_eq!(done["usage"]["output_tokens"], 3);
    let more = mock.post(RESPONSES, r#"{"input":"x","previous_response_id":"r"}"#);
    assert_eq!(more.status, 200);
    let late = mock.post("/v1/responses/r/cancel", "");
    let refused = r#"{"error":{"message":"Cannot cancel a synchronous response.","type":"invalid_request_error","param":"response_id","code":400}}"#;
    assert_eq!((late.status, late.text().as_str()), (400, refused));
}

#[test]
fn it_survives_its_client_but_not_its_cancelling() {
    let mock = Mock::start(&["--response-store"]);
    let body = r#"{"input":"hi","background":true,"request_id":"r","mock":{"itl_ms":3600000}}"#;
    mock.post(RESPONSES, body);
    mock.await_metric(crate::RUNNING, 1.0);
    let cancelled = mock.post("/v1/responses/r/cancel", "").json();
    assert_eq!(cancelled["status"], "cancelled");
    mock.await_metric(crate::RUNNING, 0.0);
    assert_eq!(mock.get("/v1/responses/r").json(), cancelled);
    assert_eq!(mock.post("/v1/responses/r/cancel", "").status, 400);
}

#[test]
fn its_events_can_be_read_again() {
    let mock = Mock::start(&["--response-store", "--tokens", "2"]);
    let body = r#"{"input":"hi","background":true,"stream":true,"request_id":"r"}"#;
    let first = mock.post(RESPONSES, body);
    assert!(first.complete && first.text().contains("event: response.completed\n"));
    assert_eq!(mock.get("/v1/responses/r?stream=true").chunks, first.chunks);
    let rest = mock.get("/v1/responses/r?stream=true&starting_after=1");
    assert_eq!(rest.chunks, first.chunks[2..]);
    assert_eq!(mock.get("/v1/responses/r").json()["status"], "completed");
    let wrong = mock.get("/v1/responses/r?starting_after=x");
    assert_eq!(wrong.json()["error"]["param"], "query.starting_after");
}

#[test]
fn there_are_no_events_of_what_was_not_in_the_background() {
    let mock = Mock::start(&["--response-store"]);
    mock.post(RESPONSES, r#"{"input":"hi","request_id":"r"}"#);
    let cut = mock.send(&head("GET", "/v1/responses/r?stream=true", "", None)).answer();
    assert_eq!((cut.status, cut.complete, cut.chunks.len()), (200, false, 0));
}

#[test]
fn that_it_was_created_is_told_at_once() {
    let mock = Mock::start(&["--ttft-ms", "3600000"]);
    let mut client = mock.send(&post(RESPONSES, r#"{"input":"hi","stream":true}"#));
    client.head().expect("an answer");
    let event = client.chunk().expect("an event");
    assert!(event.starts_with("event: response.created\n"), "{event}");
}
