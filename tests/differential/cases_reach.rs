//! How a server is reached: with a key, below a root path, by an alias, as SageMaker does, by an
//! offer to upgrade. On servers without keys and root paths, these are ordinary requests and 404s.

use crate::answer::Transcript;
use crate::cases::{Case, HOST, OWN_CONNECTION, Request, kept_open};

const CHAT: &str = "/v1/chat/completions";
const POSTED: &str = "an upgrade is offered by GET only";
const GREETED: &str = "where models differ the proxy greets by itself";
/// The key of the variant `keyed` of `tests/real/servers.sh`.
const KEY: &str = "Bearer sk-differential";
const LISTS: &str = "the answer lists the models of all backends";

/// All of them, for a server of this model.
pub(crate) fn cases(model: &str) -> Vec<Case> {
    let mut cases = keys(model);
    cases.extend(root_path(model));
    cases.extend(aliases(model));
    cases.extend(invocations(model));
    cases.extend(engine_errors(model));
    cases.extend(sockets());
    cases
}

fn chat(model: &str) -> String {
    format!(
        r#"{{"model":"{model}","messages":[{{"role":"user","content":"Count"}}],"temperature":0,"max_tokens":3}}"#
    )
}

fn keys(model: &str) -> Vec<Case> {
    let with = |name, header: &str, value: &str, request: fn(&str) -> Request, body: &str| {
        let request = request(CHAT).header(header, value);
        Case::raw(name, if body.is_empty() { request } else { request.json(body) }.bytes())
    };
    let post: fn(&str) -> Request = |target| Request::new("POST", target);
    let right = chat(model);
    let get = |name, target: &str| {
        Case::raw(name, Request::get(target).header("Authorization", KEY).bytes())
    };
    let send = |name, target: &str, body: &str| {
        Case::raw(
            name,
            Request::new("POST", target).header("Authorization", KEY).json(body).bytes(),
        )
    };
    let stream = right.replacen('{', r#"{"stream":true,"#, 1);
    vec![
        with("key_right", "Authorization", KEY, post, &right),
        with("key_right_stream", "Authorization", KEY, post, &stream),
        with("key_lower_case_scheme", "authorization", "bearer sk-differential", post, &right),
        with("key_wrong", "Authorization", "Bearer sk-other", post, &right),
        with("key_prefix", "Authorization", "Bearer sk-differentia", post, &right),
        with("key_without_scheme", "Authorization", "sk-differential", post, &right),
        with("key_basic", "Authorization", "Basic c2stZGlmZmVyZW50aWFs", post, &right),
        with("key_empty", "Authorization", "", post, &right),
        with("key_x_api_key", "x-api-key", "sk-differential", post, &right),
        with("key_two_spaces", "Authorization", "Bearer  sk-differential", post, &right),
        with("key_wrong_unknown_model", "Authorization", "Bearer sk-other", post, &chat("nope"))
            .fleet(LISTS),
        with("key_wrong_malformed", "Authorization", "Bearer sk-other", post, "{"),
        with("key_right_unknown_model", "Authorization", KEY, post, &chat("nope")).fleet(LISTS),
        with("key_right_malformed", "Authorization", KEY, post, "{"),
        get("key_models", "/v1/models").fleet(LISTS),
        get("key_models_head", "/v1/models?x=1").fleet(LISTS),
        get("key_method", CHAT),
        get("key_unknown_path", "/v1/frobnicate"),
        get("key_unknown_path_outside", "/frobnicate"),
        get("key_slash", "/v1/models/"),
        get("key_health", "/health"),
        get("key_version", "/version"),
        get("key_responses", "/v1/responses/resp_nobody"),
        send("key_messages", "/v1/messages", &right),
        send("key_messages_unknown_model", "/v1/messages", &chat("nope")).fleet(LISTS),
        send("key_tokenize", "/tokenize", &format!(r#"{{"model":"{model}","prompt":"Hi"}}"#)),
        send("key_invocations", "/invocations", &right),
        send("key_embeddings", "/v1/embeddings", &format!(r#"{{"model":"{model}","input":"Hi"}}"#)),
        send("key_lora", "/v1/unload_lora_adapter", r#"{"lora_name":"nobody"}"#),
        Case::raw(
            "key_wrong_models",
            Request::get("/v1/models").header("Authorization", "Bearer sk-other").bytes(),
        )
        .fleet(LISTS),
        Case::raw("key_absent_options", Request::new("OPTIONS", CHAT).bytes()),
        Case::post("key_absent_invocations", "/invocations", &right),
        Case::post("key_absent_batch", "/v1/chat/completions/batch", "{}"),
        Case::raw(
            "key_twice",
            Request::new("POST", CHAT)
                .header("Authorization", "Bearer sk-other")
                .header("Authorization", KEY)
                .json(&right)
                .bytes(),
        ),
        Case::raw(
            "key_anthropic_style",
            Request::new("POST", "/v1/messages")
                .header("x-api-key", "sk-differential")
                .header("anthropic-version", "2023-06-01")
                .json(&right)
                .bytes(),
        ),
    ]
}

fn root_path(model: &str) -> Vec<Case> {
    vec![
        Case::post("root_path_chat", "/p/v1/chat/completions", &chat(model)),
        Case::get("root_path_models", "/p/v1/models").fleet(LISTS),
        Case::get("root_path_health", "/p/health"),
        Case::get("root_path_version", "/p/version"),
        Case::get("root_path_slash", "/p/v1/models/"),
        Case::get("root_path_docs", "/p/docs"),
        Case::get("root_path_alone", "/p"),
        Case::get("root_path_alone_slash", "/p/"),
        Case::get("root_path_unknown", "/p/frobnicate"),
        Case::get("root_path_twice", "/p/p/v1/models"),
        Case::post("root_path_unknown_model", "/p/v1/chat/completions", &chat("nope")).fleet(LISTS),
    ]
}

fn aliases(model: &str) -> Vec<Case> {
    let alias = format!("{model}-alias");
    let stream = chat(&alias).replacen('{', r#"{"stream":true,"#, 1);
    let get = |name, target: &str| Case::get(name, target);
    vec![
        Case::post("alias_chat", CHAT, &chat(&alias)),
        Case::post("alias_chat_stream", CHAT, &stream),
        Case::post("alias_messages", "/v1/messages", &chat(&alias)),
        Case::post(
            "alias_responses",
            "/v1/responses",
            &format!(r#"{{"model":"{alias}","input":"Hi","max_output_tokens":2,"temperature":0}}"#),
        ),
        Case::post("alias_other_case", CHAT, &chat(&alias.to_uppercase())).fleet(LISTS),
        get("alias_card", &format!("/v1/models/{alias}")),
    ]
}

fn invocations(model: &str) -> Vec<Case> {
    let user = r#""messages":[{"role":"user","content":"Hi"}]"#;
    let post = |name, more: &str| {
        Case::post(name, "/invocations", &format!(r#"{{"model":"{model}",{more}}}"#))
    };
    let session = |name, header: &str, value: &str| {
        Case::raw(
            name,
            Request::new("POST", "/invocations").header(header, value).json(&chat(model)).bytes(),
        )
    };
    vec![
        post(
            "invocations_completion_stream",
            r#""prompt":"a","max_tokens":2,"temperature":0,"stream":true"#,
        ),
        post("invocations_both", &format!(r#"{user},"prompt":"a","max_tokens":2,"temperature":0"#)),
        post("invocations_bad_chat", &format!(r#"{user},"max_tokens":"many""#)),
        post("invocations_too_long", &format!(r#""prompt":"{}""#, "hello ".repeat(4000))),
        Case::post(
            "invocations_no_model",
            "/invocations",
            r#"{"prompt":"a","max_tokens":2,"temperature":0}"#,
        ),
        session("invocations_session", "X-Amzn-SageMaker-Session-Id", "s-1"),
        session("invocations_new_session", "X-Amzn-SageMaker-Session-Id", "NEW_SESSION"),
        session("invocations_attributes", "X-Amzn-SageMaker-Custom-Attributes", "a=b"),
        Case::post(
            "invocations_new_session_body",
            "/invocations",
            r#"{"requestType":"NEW_SESSION"}"#,
        ),
        Case::post("invocations_close_session_body", "/invocations", r#"{"requestType":"CLOSE"}"#),
    ]
}

/// Errors of the engine, before and inside a stream.
fn engine_errors(model: &str) -> Vec<Case> {
    let ranked = |name, target: &str, rank: &str, more: &str| {
        let body = format!(r#"{{"model":"{model}","temperature":0,"max_tokens":3{more}}}"#);
        Case::raw(
            name,
            Request::new("POST", target).header("X-data-parallel-rank", rank).json(&body).bytes(),
        )
    };
    let user = r#","messages":[{"role":"user","content":"Hi"}]"#;
    let batch = r#","messages":[[{"role":"user","content":"Hi"}]]"#;
    let stream = |more: &str| format!(r#"{more},"stream":true"#);
    let prompt = r#","prompt":"Hi""#;
    let input = r#","input":"Hi","max_output_tokens":2"#;
    vec![
        ranked("rank_completion", "/v1/completions", "7", prompt),
        ranked("rank_completion_stream", "/v1/completions", "7", &stream(prompt)),
        ranked("rank_messages", "/v1/messages", "7", user),
        ranked("rank_messages_stream", "/v1/messages", "7", &stream(user)),
        ranked("rank_responses", "/v1/responses", "7", input),
        ranked("rank_responses_stream", "/v1/responses", "7", &stream(input)),
        ranked("rank_batch", "/v1/chat/completions/batch", "7", batch),
        ranked("rank_zero", CHAT, "0", user),
        ranked("rank_negative", CHAT, "-1", user),
        ranked("rank_no_number", CHAT, "first", user),
        ranked("rank_huge", CHAT, "99999999999999999999", user),
        ranked("rank_invocations_stream", "/invocations", "7", &stream(user)),
    ]
}

fn sockets() -> Vec<Case> {
    let offer = |name, method: &str, target: &str, headers: &[(&str, &str)]| {
        let request = Request::new(method, target)
            .header("Connection", "Upgrade")
            .header("Upgrade", "websocket");
        let request = headers.iter().fold(request, |r, (n, v)| r.header(n, v));
        let mut case = Case::raw(name, request.bytes()).rewritten(OWN_CONNECTION, kept_open);
        case.beyond_mock = Some("ends the connection on an upgrade");
        case
    };
    let key = ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");
    let version = ("Sec-WebSocket-Version", "13");
    let realtime = |name, target: &str, more: &[(&str, &str)]| {
        offer(name, "GET", target, &[&[key, version], more].concat()).fleet(GREETED)
    };
    vec![
        realtime("websocket_realtime", "/v1/realtime", &[]),
        offer("websocket_unknown", "GET", "/frobnicate", &[key, version]),
        offer("websocket_chat", "GET", CHAT, &[key, version]),
        offer("websocket_models", "GET", "/v1/models", &[key, version]),
        offer("websocket_health", "GET", "/health", &[key, version]),
        offer("websocket_slash", "GET", "/v1/realtime/", &[key, version]),
        realtime("websocket_query", "/v1/realtime?model=nope", &[]),
        realtime("websocket_key", "/v1/realtime", &[("Authorization", KEY)]),
        realtime("websocket_origin", "/v1/realtime", &[("Origin", &format!("http://{HOST}"))]),
        realtime(
            "websocket_protocol",
            "/v1/realtime",
            &[("Sec-WebSocket-Protocol", "realtime, openai-insecure-api-key.x")],
        ),
        offer("websocket_no_key", "GET", "/v1/realtime", &[version]),
        offer(
            "websocket_short_key",
            "GET",
            "/v1/realtime",
            &[("Sec-WebSocket-Key", "abc"), version],
        ),
        offer("websocket_version_8", "GET", "/v1/realtime", &[key, ("Sec-WebSocket-Version", "8")]),
        offer("websocket_post", "POST", "/v1/realtime", &[key, version, ("Content-Length", "0")])
            .by_design(POSTED, refused),
    ]
}

/// One complete answer that refuses.
fn refused(seen: &Transcript) -> Result<(), String> {
    match seen.answers.as_slice() {
        [answer] if (400..500).contains(&answer.status()) || answer.status() == 307 => Ok(()),
        [answer] => Err(format!("expected a refusal, got status {}", answer.status())),
        answers => Err(format!("expected one answer, got {}", answers.len())),
    }
}
