//! Every route that a vLLM 0.32 on a CPU registers under some option, asked wrongly: a malformed
//! body, an empty one, another type, another method, a model that nobody serves, a slash behind.
//! Where a server lacks the route, its 404 is what both must say.

use crate::cases::{Case, Request, kept_open_after_500};

/// What `$M` in a body stands for is the model.
const MODEL: &str = "$M";
const LISTS: &str = "the answer lists the models of all backends";

/// Routes that read a body, with one that is right where the server has the route.
const READING: &[(&str, &str)] = &[
    (
        "/v1/chat/completions",
        r#"{"model":"$M","messages":[{"role":"user","content":"Hi"}],"max_tokens":2,"temperature":0}"#,
    ),
    (
        "/v1/chat/completions/batch",
        r#"{"model":"$M","messages":[[{"role":"user","content":"Hi"}]],"max_tokens":2,"temperature":0}"#,
    ),
    ("/v1/completions", r#"{"model":"$M","prompt":"Hi","max_tokens":2,"temperature":0}"#),
    ("/v1/responses", r#"{"model":"$M","input":"Hi","max_output_tokens":2,"temperature":0}"#),
    (
        "/v1/messages",
        r#"{"model":"$M","messages":[{"role":"user","content":"Hi"}],"max_tokens":2,"temperature":0}"#,
    ),
    ("/v1/messages/count_tokens", r#"{"model":"$M","messages":[{"role":"user","content":"Hi"}]}"#),
    (
        "/generative_scoring",
        r#"{"model":"$M","query":"a","items":["b"],"label_token_ids":[40,41]}"#,
    ),
    ("/v1/systemone", r#"{"model":"$M","state":"a","questions":{"q":{"type":"bool"}}}"#),
    ("/v1/decisions", r#"{"model":"$M","input":"a","questions":{"q":{"type":"bool"}}}"#),
    ("/tokenize", r#"{"model":"$M","prompt":"Hi"}"#),
    ("/detokenize", r#"{"model":"$M","tokens":[40,41]}"#),
    ("/invocations", r#"{"model":"$M","prompt":"Hi","max_tokens":2,"temperature":0}"#),
    (
        "/cohere/v2/chat",
        r#"{"model":"$M","messages":[{"role":"user","content":"Hi"}],"max_tokens":2,"temperature":0}"#,
    ),
    (
        "/cohere/v2/chat/render",
        r#"{"model":"$M","messages":[{"role":"user","content":"Hi"}],"temperature":0}"#,
    ),
    (
        "/v1/chat/completions/render",
        r#"{"model":"$M","messages":[{"role":"user","content":"Hi"}]}"#,
    ),
    ("/v1/completions/render", r#"{"model":"$M","prompt":"Hi"}"#),
    (
        "/v1/messages/render",
        r#"{"model":"$M","messages":[{"role":"user","content":"Hi"}],"max_tokens":2}"#,
    ),
    ("/v1/responses/render", r#"{"model":"$M","input":"Hi"}"#),
    (
        "/v1/chat/completions/derender",
        r#"{"model":"$M","generate_response":{"request_id":"r","model":"$M","choices":[{"index":0,"token_ids":[40,41],"finish_reason":"length"}]}}"#,
    ),
    (
        "/v1/completions/derender",
        r#"{"model":"$M","generate_responses":[{"request_id":"r","model":"$M","choices":[{"index":0,"token_ids":[40,41],"finish_reason":"length"}]}]}"#,
    ),
    (
        "/inference/v1/generate",
        r#"{"model":"$M","token_ids":[1,40,41],"sampling_params":{"max_tokens":2,"temperature":0}}"#,
    ),
    ("/inference/v1/abort_requests", r#"{"request_ids":["nobody"]}"#),
    ("/v1/embeddings", r#"{"model":"$M","input":"Hi"}"#),
    ("/v2/embed", r#"{"model":"$M","texts":["Hi"],"embedding_types":["float"]}"#),
    ("/pooling", r#"{"model":"$M","input":"Hi"}"#),
    ("/classify", r#"{"model":"$M","input":"Hi"}"#),
    ("/score", r#"{"model":"$M","queries":"a","documents":["b","c"]}"#),
    ("/v1/score", r#"{"model":"$M","text_1":"a","text_2":"b"}"#),
    ("/rerank", r#"{"model":"$M","query":"a","documents":["b","c"]}"#),
    ("/v1/rerank", r#"{"model":"$M","query":"a","documents":["b","c"]}"#),
    ("/v2/rerank", r#"{"model":"$M","query":"a","documents":["b","c"]}"#),
    ("/v1/load_lora_adapter", r#"{"lora_name":"nobody","lora_path":"/nowhere"}"#),
    ("/v1/unload_lora_adapter", r#"{"lora_name":"nobody"}"#),
    ("/adapters", r#"{"name":"nobody","src":"/nowhere"}"#),
    ("/collective_rpc", r#"{"method":"check_health"}"#),
    ("/abort_requests", r#"{"request_ids":["nobody"]}"#),
    ("/update_weight_version", r#"{"new_version":"default"}"#),
    ("/weight_checker", r#"{"action":"checksum"}"#),
    ("/init_weight_transfer_engine", r#"{"init_info":{}}"#),
    ("/update_weights", r#"{"update_info":{}}"#),
    ("/scale_elastic_ep", r#"{"new_data_parallel_size":1}"#),
];

/// Routes whose right use says nothing of a body or is stated in another list.
const OTHERS: &[(&str, &str)] = &[
    ("GET", "/v1/models"),
    ("GET", "/tokenizer_info"),
    ("GET", "/version"),
    ("GET", "/load"),
    ("GET", "/health"),
    ("GET", "/ping"),
    ("GET", "/kv_event_sources"),
    ("GET", "/server_info"),
    ("GET", "/is_sleeping"),
    ("GET", "/is_paused"),
    ("GET", "/weight_info"),
    ("GET", "/get_world_size"),
    ("GET", "/fault_tolerance/status"),
    ("GET", "/v1/responses/resp_unknown"),
    ("POST", "/v1/responses/resp_unknown/cancel"),
    ("POST", "/v1/audio/transcriptions"),
    ("POST", "/v1/audio/translations"),
    ("POST", "/sleep"),
    ("POST", "/wake_up"),
    ("POST", "/pause"),
    ("POST", "/resume"),
    ("POST", "/reset_prefix_cache"),
    ("POST", "/reset_mm_cache"),
    ("POST", "/reset_encoder_cache"),
    ("POST", "/release_kv_cache_memory"),
    ("POST", "/start_profile"),
    ("POST", "/stop_profile"),
    ("POST", "/start_weight_update"),
    ("POST", "/start_draft_weight_update"),
    ("POST", "/finish_weight_update"),
    ("POST", "/shutdown_weight_transfer_engine"),
    ("POST", "/is_scaling_elastic_ep"),
    ("POST", "/fault_tolerance/apply"),
    ("DELETE", "/adapters/nobody"),
];

/// Routes that refuse an unknown model with the names of the known ones.
const LISTING_MODELS: [&str; 21] = [
    "/v1/chat/completions",
    "/v1/chat/completions/batch",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/generative_scoring",
    "/v1/systemone",
    "/v1/decisions",
    "/tokenize",
    "/detokenize",
    "/invocations",
    "/cohere/v2/chat",
    "/cohere/v2/chat/render",
    "/v1/chat/completions/render",
    "/v1/completions/render",
    "/v1/messages/render",
    "/v1/responses/render",
    "/v1/chat/completions/derender",
    "/v1/completions/derender",
    "/inference/v1/generate",
];

/// All of them, for a server of this model.
pub(crate) fn cases(model: &str) -> Vec<Case> {
    let mut cases = Vec::new();
    for (path, body) in READING {
        reading(&mut cases, path, body, model);
    }
    for (method, path) in OTHERS {
        let other = if *method == "GET" { "POST" } else { "GET" };
        let name = |what: &str| format!("{what}: {method} {path}");
        cases.push(Case::raw(&name("method"), Request::new(other, path).bytes()));
        cases.push(Case::raw(&name("put"), Request::new("PUT", path).json("{}").bytes()));
        cases.push(Case::head(&name("head"), path));
        cases.push(Case::raw(&name("options"), Request::new("OPTIONS", path).bytes()));
        cases.push(Case::raw(&name("slash"), Request::new(method, &format!("{path}/")).bytes()));
    }
    // Their bodies name a model twice, and what falls back is that of the first backend.
    let twice =
        |case: &&mut Case| case.name.ends_with("/derender") && case.name.starts_with("model_");
    for case in cases.iter_mut().filter(twice) {
        case.fleet = Some("the default model is that of the first backend");
    }
    cases.into_iter().map(kept_open_after_500).collect()
}

fn reading(cases: &mut Vec<Case>, path: &str, body: &str, model: &str) {
    let filled = body.replace(MODEL, model);
    let name = |what: &str| format!("{what}: {path}");
    let mut post = |what: &str, body: &str| cases.push(Case::post(&name(what), path, body));
    post("right", &filled);
    post("extra", &filled.replacen('{', r#"{"frobnicate":{"model":"nope"},"#, 1));
    post("malformed", &filled[..filled.len() - 1]);
    post("not_object", "[1,2]");
    post("null", "null");
    post("deep", &"[".repeat(2000));
    post("empty", "");
    if path != "/abort_requests" {
        // An empty object aborts everything that runs there.
        post("empty_object", "{}");
    }
    if body.contains(MODEL) {
        let absent = filled.replacen(&format!(r#""model":"{model}","#), "", 1);
        post("model_absent", &absent);
        post("model_null", &filled.replacen(&format!("\"{model}\""), "null", 1));
        post("model_empty", &filled.replacen(&format!("\"{model}\""), "\"\"", 1));
        post("model_number", &filled.replacen(&format!("\"{model}\""), "7", 1));
        post("alias", &filled.replace(&format!("\"{model}\""), &format!("\"{model}-alias\"")));
        let unknown = Case::post(&name("unknown"), path, &body.replace(MODEL, "nope"));
        cases.push(match LISTING_MODELS.contains(&path) {
            true => unknown.fleet(LISTS),
            false => unknown,
        });
    }
    let mut raw =
        |what: &str, request: Request| cases.push(Case::raw(&name(what), request.bytes()));
    raw(
        "text",
        Request::new("POST", path).header("Content-Type", "text/plain").body(filled.as_bytes()),
    );
    raw("type_absent", Request::new("POST", path).body(filled.as_bytes()));
    raw("method", Request::new("GET", path));
    raw("put", Request::new("PUT", path).json(&filled));
    raw("options", Request::new("OPTIONS", path));
    raw("slash", Request::post(&format!("{path}/"), &filled));
    raw("query", Request::post(&format!("{path}?model=nope&x=%20"), &filled));
    raw("request_id", Request::new("POST", path).header("X-Request-Id", "mine").json(&filled));
    cases.push(Case::head(&name("head"), path));
}
