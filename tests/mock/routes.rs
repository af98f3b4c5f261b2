//! Errors, and the routes that generate nothing. The expected bodies were taken from vLLM 0.32.

use crate::server::{Mock, head};
use crate::{CHAT, COMPLETIONS, MESSAGES, chat};
use rstest::rstest;
use serde_json::{Value, json};

#[rstest]
#[case::unknown_model(CHAT, r#"{"model":"nope","messages":[{"role":"user","content":"x"}]}"#, 404, r#"{"error":{"message":"The model `nope` does not exist. Valid aliases: tiny, alias.","type":"NotFoundError","param":"model","code":404}}"#)]
#[case::unknown_model_of_messages(MESSAGES, r#"{"model":"nope","max_tokens":1,"messages":[{"role":"user","content":"x"}]}"#, 404, r#"{"type":"error","error":{"type":"not_found_error","message":"The model `nope` does not exist. Valid aliases: tiny, alias."}}"#)]
#[case::body_before_model(CHAT, r#"{"model":"nope"}"#, 400, r#"{"error":{"message":"1 validation error:\n  {'type': 'missing', 'loc': 'body.messages', 'msg': 'Field required', 'input': '<dict of 1 items>'}","type":"Bad Request","param":"body.messages","code":400}}"#)]
#[case::empty(CHAT, "", 400, r#"{"error":{"message":"1 validation error:\n  {'type': 'missing', 'loc': 'body', 'msg': 'Field required', 'input': 'None'}","type":"Bad Request","param":"body","code":400}}"#)]
#[case::not_json(CHAT, "hello", 400, r#"{"error":{"message":"1 validation error:\n  {'type': 'json_invalid', 'loc': 'body.0', 'msg': 'JSON decode error', 'input': '<dict of 0 items>', 'ctx': {'error': 'Expecting value'}}","type":"Bad Request","param":"body.0","code":400}}"#)]
#[case::half_json(CHAT, r#"{"model":"tiny","#, 400, r#"{"error":{"message":"1 validation error:\n  {'type': 'json_invalid', 'loc': 'body.16', 'msg': 'JSON decode error', 'input': '<dict of 0 items>', 'ctx': {'error': 'Expecting property name enclosed in double quotes'}}","type":"Bad Request","param":"body.16","code":400}}"#)]
#[case::no_object(CHAT, "[1]", 400, r#"{"error":{"message":"1 validation error:\n  {'type': 'model_attributes_type', 'loc': 'body', 'msg': 'Input should be a valid dictionary or object to extract fields from', 'input': '<list of 1 items>'}","type":"Bad Request","param":"body","code":400}}"#)]
#[case::wrong_type(CHAT, r#"{"model":5,"messages":[{"role":"user","content":"x"}]}"#, 400, r#"{"error":{"message":"1 validation error:\n  {'type': 'string_type', 'loc': 'body.model', 'msg': 'Input should be a valid string', 'input': '5'}","type":"Bad Request","param":"body.model","code":400}}"#)]
#[case::no_messages(CHAT, r#"{"messages":[]}"#, 400, r#"{"error":{"message":"Cannot apply chat template to an empty conversation. Provide at least one message.","type":"BadRequestError","param":null,"code":400}}"#)]
#[case::no_prompt(COMPLETIONS, r#"{"model":"tiny"}"#, 400, r#"{"error":{"message":"Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)","type":"BadRequestError","param":"prompt","code":400}}"#)]
#[case::two_missing("/tokenize", r#"{"model":"tiny"}"#, 400, r#"{"error":{"message":"2 validation errors:\n  {'type': 'missing', 'loc': 'body.prompt', 'msg': 'Field required', 'input': '<dict of 1 items>'}\n  {'type': 'missing', 'loc': 'body.messages', 'msg': 'Field required', 'input': '<dict of 1 items>'}","type":"Bad Request","param":"body.prompt","code":400}}"#)]
#[case::no_answer_wanted(CHAT, r#"{"max_tokens":0,"messages":[{"role":"user","content":"x"}]}"#, 400, r#"{"error":{"message":"max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)","type":"BadRequestError","param":"max_tokens","code":400}}"#)]
#[case::too_much_wanted(CHAT, r#"{"max_tokens":5000,"messages":[{"role":"user","content":"x"}]}"#, 400, r#"{"error":{"message":"max_tokens=5000 cannot be greater than max_model_len=64. Please request fewer output tokens. (parameter=max_tokens, value=5000)","type":"BadRequestError","param":"max_tokens","code":400}}"#)]
#[case::options_of_no_stream(CHAT, r#"{"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"x"}]}"#, 400, r#"{"error":{"message":"Stream options can only be defined when `stream=True`. (parameter=stream_options)","type":"BadRequestError","param":"stream_options","code":400}}"#)]
#[case::scale_out("/v1/chat/completions/render", "{}", 403, r#"{"error":{"message":"Scale-out endpoints are disabled. Restart vllm serve with --enable-scale-out to enable them.","type":"PermissionDeniedError","param":null,"code":403}}"#)]
#[case::unknown_order(CHAT, r#"{"mock":{"fail":"explode"},"messages":[{"role":"user","content":"x"}]}"#, 400, r#"{"error":{"message":"mock: unknown fault \"explode\"","type":"BadRequestError","param":"mock","code":400}}"#)]
fn wrong_bodies_get_vllms_errors(
    #[case] path: &str,
    #[case] body: &str,
    #[case] status: u16,
    #[case] error: &str,
) {
    let mock = Mock::start(&["--model", "alias", "--max-model-len", "64"]);
    let answer = mock.post(path, body);
    assert_eq!((answer.status, answer.text().as_str()), (status, error));
    assert_eq!(answer.header("content-type"), Some("application/json"));
}

#[test]
fn a_prompt_without_room_is_refused() {
    let mock = Mock::start(&["--max-model-len", "64"]);
    let body = format!(r#"{{"prompt":"{}"}}"#, "x".repeat(257));
    assert_eq!(
        mock.post(COMPLETIONS, &body).text(),
        r#"{"error":{"message":"This model's maximum context length is 64 tokens. However, your prompt contains at least 65 input tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input prompt. (parameter=input_tokens, value=65)","type":"BadRequestError","param":"input_tokens","code":400}}"#
    );
    let body = format!(r#"{{"prompt":"{}","max_tokens":64}}"#, "x".repeat(240));
    assert_eq!(mock.post(COMPLETIONS, &body).json()["usage"]["total_tokens"], 64);
}

#[rstest]
#[case::health("GET", "/health", 200, "", None)]
#[case::ping("POST", "/ping", 200, "", None)]
#[case::version("GET", "/version", 200, r#"{"version":"0.33.0"}"#, None)]
#[case::load("GET", "/load", 200, r#"{"server_load":0}"#, None)]
#[case::event_sources("GET", "/kv_event_sources", 200, "{}", None)]
#[case::escaped("GET", "/v%31/mod%65ls/x", 404, r#"{"detail":"Not Found"}"#, None)]
#[case::escaped_version("GET", "/versio%6E", 200, r#"{"version":"0.33.0"}"#, None)]
#[case::nothing_there("POST", "/nope", 404, r#"{"detail":"Not Found"}"#, None)]
#[case::no_embeddings("POST", "/v1/embeddings", 404, r#"{"detail":"Not Found"}"#, None)]
#[case::wrong_method("GET", CHAT, 405, r#"{"detail":"Method Not Allowed"}"#, Some(("allow", "POST")))]
#[case::options("OPTIONS", "/v1/models", 405, r#"{"detail":"Method Not Allowed"}"#, Some(("allow", "GET")))]
#[case::slash("GET", "/v1/models/?a=b", 307, "", Some(("location", "http://mock/v1/models?a=b")))]
#[case::no_type("POST", CHAT, 400, r#"{"error":{"message":"1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed","type":"Bad Request","param":null,"code":400}}"#, None)]
#[case::lost_response("GET", "/v1/responses/resp_abc", 404, r#"{"error":{"message":"Response with id 'resp_abc' not found.","type":"invalid_request_error","param":"response_id","code":404}}"#, None)]
fn other_routes_answer_as_vllms(
    #[case] method: &str,
    #[case] path: &str,
    #[case] status: u16,
    #[case] body: &str,
    #[case] header: Option<(&str, &str)>,
) {
    let mock = Mock::start(&[]);
    let answer = mock.send(&head(method, path, "", None)).answer();
    assert_eq!((answer.status, answer.text().as_str()), (status, body));
    if let Some((name, value)) = header {
        assert_eq!(answer.header(name), Some(value));
    }
}

#[test]
fn head_requests_get_no_body() {
    let mock = Mock::start(&[]);
    let mut client = mock.send(&head("HEAD", "/health", "", None));
    let (status, headers) = client.head().expect("an answer");
    assert_eq!(status, 405);
    assert!(headers.contains("content-length: 31\n"), "{headers}");
    client.send(&head("GET", "/version", "", None));
    assert_eq!(client.answer().status, 200, "the connection goes on");
}

#[test]
fn garbage_is_refused() {
    let mock = Mock::start(&[]);
    let answer = mock.send("GARBAGE\r\n\r\n").answer();
    assert_eq!((answer.status, answer.text().as_str()), (400, "Invalid HTTP request received."));
}

#[test]
fn models_are_listed_with_aliases_and_adapters() {
    let mock = Mock::start(&["--model", "alias", "--lora", "sql", "--max-model-len", "64"]);
    let list = mock.get("/v1/models").json();
    let cards: Vec<_> = list["data"]
        .as_array()
        .expect("cards")
        .iter()
        .map(|card| {
            let fields = ["id", "root", "parent", "max_model_len"];
            fields.map(|field| card[field].clone())
        })
        .collect();
    assert_eq!(
        cards,
        [
            [json!("tiny"), json!("tiny"), Value::Null, json!(64)],
            [json!("alias"), json!("tiny"), Value::Null, json!(64)],
            [json!("sql"), json!("/adapters/sql"), json!("tiny"), Value::Null],
        ]
    );
    assert_eq!(mock.post(CHAT, &chat(r#","model":"sql""#)).json()["model"], "sql");
    assert_eq!(mock.post(CHAT, &chat(r#","model":"""#)).json()["model"], "tiny");
    assert_eq!(mock.post(CHAT, &chat(r#","model":null"#)).json()["model"], "tiny");
}

#[test]
fn a_key_is_asked_for_where_vllm_asks() {
    let mock = Mock::start(&["--api-key", "secret"]);
    let status = |path: &str, headers: &str| {
        let answer = mock.send(&head("GET", path, headers, None)).answer();
        (answer.status, answer.text())
    };
    let refused = (401, r#"{"error":"Unauthorized"}"#.to_owned());
    assert_eq!(status("/v1/models", ""), refused);
    assert_eq!(status("/v1/models", "authorization: Bearer wrong\r\n"), refused);
    assert_eq!(status("/v1/nothing", ""), refused, "before 404");
    assert_eq!(status("/v1/models", "authorization: bearer secret\r\n").0, 200);
    assert_eq!(status("/health", "").0, 200);
    assert_eq!(mock.post("/tokenize", r#"{"prompt":"x"}"#).status, 200);
}

#[test]
fn metrics_count_what_happened() {
    let mock = Mock::start(&["--tokens", "5"]);
    mock.post(CHAT, &chat(""));
    mock.post(CHAT, &chat(r#","max_tokens":2"#));
    mock.post(CHAT, "{}");
    let labels = r#"{engine="0",model_name="tiny"}"#;
    let value = |name: &str| mock.metric(&format!("{name}{labels}"));
    assert_eq!(value("vllm:prompt_tokens_total"), 30.0);
    assert_eq!(value("vllm:generation_tokens_total"), 7.0);
    assert_eq!(value("vllm:time_to_first_token_seconds_count"), 2.0);
    assert_eq!(value("vllm:kv_cache_usage_perc"), 0.0);
    let success = |reason: &str| {
        mock.metric(&format!(
            "vllm:request_success_total{{engine=\"0\",finished_reason=\"{reason}\",model_name=\"tiny\"}}"
        ))
    };
    assert_eq!((success("stop"), success("length"), success("abort")), (1.0, 1.0, 0.0));
    let http = |class: &str| {
        mock.metric(&format!(
            "http_requests_total{{handler=\"{CHAT}\",method=\"POST\",status=\"{class}\"}}"
        ))
    };
    assert_eq!((http("2xx"), http("4xx")), (2.0, 1.0));
    let answer = mock.get("/metrics");
    assert_eq!(answer.header("content-type"), Some("text/plain; version=1.0.0; charset=utf-8"));
    // As Prometheus wants it: a family is announced once, before all of its samples.
    let page = answer.text();
    let mut announced = Vec::new();
    for line in page.lines() {
        if let Some(family) = line.strip_prefix("# TYPE ") {
            let name = family.split(' ').next().expect("a name");
            assert!(!announced.contains(&name), "{name} twice");
            announced.push(name);
        } else if !line.starts_with('#') {
            let name = line.split('{').next().expect("a name");
            let family = announced.last().expect("a family");
            assert!(name.starts_with(family), "{name} under {family}");
        }
    }
    assert!(page.contains(",block_size=\"16\","), "{page}");
}
