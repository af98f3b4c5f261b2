//! What clients of vLLM ask: every route that a generate model has, right and wrong.

use crate::cases::{Case, Request};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const LISTS: &str = "the answer lists the models of all backends";

/// All of them, for a server of this model.
pub(crate) fn cases(model: &str) -> Vec<Case> {
    let mut cases = chat(model);
    cases.extend(completions(model));
    cases.extend(other_apis(model));
    cases.extend(wrong_bodies(model));
    cases.extend(models(model));
    cases.extend(routes(model));
    cases
}

/// A chat of one line; `more` are further members, each with its leading comma.
fn hello(model: &str, more: &str) -> String {
    format!(
        r#"{{"model":"{model}","messages":[{{"role":"user","content":"Hello, who are you?"}}],"temperature":0,"max_tokens":8{more}}}"#
    )
}

fn chat(model: &str) -> Vec<Case> {
    let post = |name, more: &str| Case::post(name, CHAT, &hello(model, more));
    vec![
        post("chat", ""),
        post("chat_stream", r#","stream":true"#),
        post("chat_stream_false", r#","stream":false"#),
        post("chat_stream_usage", r#","stream":true,"stream_options":{"include_usage":true}"#),
        post(
            "chat_stream_continuous_usage",
            r#","stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true}"#,
        ),
        post("chat_stream_options_null", r#","stream":true,"stream_options":null"#),
        post("chat_n_2", r#","n":2,"temperature":1,"seed":3"#),
        post("chat_n_2_stream", r#","n":2,"temperature":1,"seed":3,"stream":true"#),
        post("chat_seed", r#","temperature":1,"seed":17"#),
        post("chat_logprobs", r#","logprobs":true,"top_logprobs":2"#),
        post("chat_logprobs_stream", r#","logprobs":true,"top_logprobs":1,"stream":true"#),
        post("chat_stop", r#","stop":["e","\n"],"max_tokens":12"#),
        post("chat_five_stops", r#","stop":["a","b","c","d","e"]"#),
        post("chat_stop_token_ids", r#","stop_token_ids":[1],"ignore_eos":true"#),
        post("chat_max_completion_tokens", r#","max_completion_tokens":3"#),
        post(
            "chat_unknown_fields",
            r#","frobnicate":{"model":"nope","x":[1,{"stream":true}]},"user":"u""#,
        ),
        post("chat_echo", r#","echo":true"#),
        post("chat_prompt_logprobs", r#","prompt_logprobs":1"#),
        post("chat_return_token_ids", r#","return_token_ids":true"#),
        post("chat_return_token_ids_stream", r#","return_token_ids":true,"stream":true"#),
        post("chat_cache_salt", r#","cache_salt":"pepper""#),
        post("chat_bad_cache_salt", r#","cache_salt":"a/b""#),
        post("chat_priority", r#","priority":3"#),
        post("chat_request_id", r#","request_id":"mine""#),
        post("chat_chat_template", r#","chat_template":"{{ messages }}""#),
        post("chat_tools_empty", r#","tools":[]"#),
        post(
            "chat_tools_auto",
            r#","tools":[{"type":"function","function":{"name":"f","parameters":{}}}],"tool_choice":"auto""#,
        ),
        post(
            "chat_stream_bad_stream_options",
            r#","stream":true,"stream_options":{"include_usage":"maybe"}"#,
        ),
        post("chat_stream_options_without_stream", r#","stream_options":{"include_usage":true}"#),
        post("chat_kv_transfer_params", r#","kv_transfer_params":{"do_remote_decode":false}"#),
        Case::post(
            "chat_conversation",
            CHAT,
            &format!(
                r#"{{"messages":[{{"role":"system","content":"Be brief."}},{{"role":"user","content":[{{"type":"text","text":"One"}},{{"type":"text","text":"two ünï \u00e9\ud83d\ude00"}}]}},{{"role":"assistant","content":"ok"}},{{"role":"user","content":"\"model\":\"nope\""}}],"temperature":0,"max_tokens":4,"model":"{model}"}}"#
            ),
        ),
        Case::post(
            "chat_image",
            CHAT,
            &format!(
                r#"{{"model":"{model}","max_tokens":2,"messages":[{{"role":"user","content":[{{"type":"image_url","image_url":{{"url":"data:image/png;base64,AAAA"}}}}]}}]}}"#
            ),
        ),
        Case::post(
            "chat_batch",
            "/v1/chat/completions/batch",
            &format!(
                r#"{{"model":"{model}","temperature":0,"max_tokens":3,"messages":[[{{"role":"user","content":"One"}}],[{{"role":"user","content":"Two"}}]]}}"#
            ),
        ),
        Case::raw(
            "chat_x_request_id",
            Request::new("POST", CHAT)
                .header("X-Request-Id", "abc-123")
                .header("X-Session-ID", "s1")
                .header("X-Vllm-Priority", "2")
                .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
                .json(&hello(model, ""))
                .bytes(),
        ),
        Case::raw(
            "chat_x_request_id_stream",
            Request::new("POST", CHAT)
                .header("X-Request-Id", "abc-124")
                .json(&hello(model, r#","stream":true"#))
                .bytes(),
        ),
        Case::raw(
            "chat_data_parallel_rank",
            Request::new("POST", CHAT)
                .header("X-data-parallel-rank", "7")
                .json(&hello(model, ""))
                .bytes(),
        ),
        Case::raw(
            "chat_data_parallel_rank_stream",
            Request::new("POST", CHAT)
                .header("X-data-parallel-rank", "7")
                .json(&hello(model, r#","stream":true"#))
                .bytes(),
        ),
        Case::raw(
            "chat_authorization",
            Request::new("POST", CHAT)
                .header("Authorization", "Bearer sk-nothing")
                .header("x-api-key", "k")
                .json(&hello(model, ""))
                .bytes(),
        ),
    ]
}

fn completions(model: &str) -> Vec<Case> {
    let post = |name, more: &str| {
        let body = format!(r#"{{"model":"{model}","temperature":0,"max_tokens":6{more}}}"#);
        Case::post(name, COMPLETIONS, &body)
    };
    let long = "hello ".repeat(4000);
    vec![
        post("completion", r#","prompt":"Once upon a time""#),
        post("completion_stream", r#","prompt":"Once upon a time","stream":true"#),
        post(
            "completion_stream_usage",
            r#","prompt":"Once","stream":true,"stream_options":{"include_usage":true}"#,
        ),
        post("completion_echo_logprobs", r#","prompt":"Once upon","echo":true,"logprobs":1"#),
        post("completion_two_prompts", r#","prompt":["Once upon","a time"]"#),
        post("completion_token_ids", r#","prompt":[10,11,12]"#),
        post("completion_token_id_lists", r#","prompt":[[10,11],[12,13,14]]"#),
        post("completion_n_2", r#","prompt":"Once","n":2,"temperature":1,"seed":5"#),
        post("completion_empty_prompt", r#","prompt":"""#),
        post("completion_no_prompt", ""),
        post("completion_prompt_null", r#","prompt":null"#),
        post("completion_suffix", r#","prompt":"a","suffix":"b""#),
        post("completion_max_tokens_0", r#","prompt":"Once","max_tokens":0"#),
        post("completion_negative_max_tokens", r#","prompt":"Once","max_tokens":-1"#),
        post("completion_too_long", &format!(r#","prompt":"{long}""#)),
        post("completion_too_long_stream", &format!(r#","prompt":"{long}","stream":true"#)),
        post("completion_truncated", &format!(r#","prompt":"{long}","truncate_prompt_tokens":9"#)),
        post("completion_wrong_token_ids", r#","prompt":[999999]"#),
        post("completion_bad_temperature", r#","prompt":"a","temperature":-3"#),
        post("completion_request_id_two_prompts", r#","prompt":["a","b"],"request_id":"r""#),
    ]
}

fn other_apis(model: &str) -> Vec<Case> {
    let user = r#""messages":[{"role":"user","content":"Hello there"}]"#;
    let anthropic = |name, more: &str| {
        let body = format!(r#"{{"model":"{model}",{user},"max_tokens":6,"temperature":0{more}}}"#);
        Case::raw(
            name,
            Request::new("POST", "/v1/messages")
                .header("anthropic-version", "2023-06-01")
                .header("x-api-key", "k")
                .json(&body)
                .bytes(),
        )
    };
    let responses = |name, more: &str| {
        let body = format!(
            r#"{{"model":"{model}","input":"Hello there","max_output_tokens":6,"temperature":0{more}}}"#
        );
        Case::post(name, "/v1/responses", &body)
    };
    vec![
        anthropic("messages", ""),
        anthropic("messages_stream", r#","stream":true"#),
        anthropic("messages_system", r#","system":"Be brief.","stop_sequences":["e"]"#),
        anthropic(
            "messages_system_blocks",
            r#","system":[{"type":"text","text":"x-anthropic-billing-header: 1"},{"type":"text","text":"Be."}]"#,
        ),
        anthropic("messages_bad_field", r#","top_k":"many""#),
        Case::post("messages_no_max_tokens", "/v1/messages", &format!(r#"{{"model":"{model}",{user}}}"#)),
        Case::post("messages_no_model", "/v1/messages", &format!(r#"{{{user},"max_tokens":3}}"#)),
        Case::post("messages_empty_model", "/v1/messages", &format!(r#"{{"model":"",{user},"max_tokens":3}}"#)),
        Case::post("messages_malformed", "/v1/messages", r#"{"model":"#),
        Case::post(
            "count_tokens",
            "/v1/messages/count_tokens",
            &format!(r#"{{"model":"{model}",{user}}}"#),
        ),
        Case::get("messages_get", "/v1/messages"),
        responses("responses", ""),
        responses("responses_stream", r#","stream":true"#),
        responses("responses_instructions", r#","instructions":"Be brief.","store":false"#),
        responses("responses_background", r#","background":true"#),
        responses("responses_previous", r#","previous_response_id":"resp_unknown""#),
        responses("responses_bad_previous", r#","previous_response_id":"unknown""#),
        Case::get("responses_get_unknown", "/v1/responses/resp_0123"),
        Case::get("responses_get_unknown_stream", "/v1/responses/resp_0123?stream=true"),
        Case::post("responses_cancel_unknown", "/v1/responses/resp_0123/cancel", ""),
        Case::post("tokenize", "/tokenize", &format!(r#"{{"model":"{model}","prompt":"Hello there"}}"#)),
        Case::post(
            "tokenize_chat",
            "/tokenize",
            &format!(r#"{{"model":"{model}",{user},"return_token_strs":true}}"#),
        ),
        Case::post("tokenize_no_model", "/tokenize", r#"{"prompt":"Hello"}"#),
        Case::post("detokenize", "/detokenize", &format!(r#"{{"model":"{model}","tokens":[40,41,42]}}"#)),
        Case::post("detokenize_bad", "/detokenize", &format!(r#"{{"model":"{model}","tokens":"x"}}"#)),
        Case::get("tokenizer_info", "/tokenizer_info"),
        Case::post("invocations_chat", "/invocations", &hello(model, "")),
        Case::post("invocations_chat_stream", "/invocations", &hello(model, r#","stream":true"#)),
        Case::post(
            "invocations_completion",
            "/invocations",
            &format!(r#"{{"model":"{model}","prompt":"a","max_tokens":2,"temperature":0}}"#),
        ),
        Case::post("invocations_nothing", "/invocations", &format!(r#"{{"model":"{model}"}}"#)),
        Case::raw(
            "invocations_adapter_header",
            Request::new("POST", "/invocations")
                .header("X-Amzn-SageMaker-Adapter-Identifier", "no-such-adapter")
                .json(&hello(model, ""))
                .bytes(),
        )
        .fleet(LISTS),
        Case::post(
            "generative_scoring",
            "/generative_scoring",
            &format!(r#"{{"model":"{model}","query":"a","items":["b","c"],"label_token_ids":[40,41]}}"#),
        ),
        Case::post("embeddings", "/v1/embeddings", &format!(r#"{{"model":"{model}","input":"a"}}"#)),
        Case::post("pooling", "/pooling", &format!(r#"{{"model":"{model}","input":"a"}}"#)),
        Case::post("score", "/score", &format!(r#"{{"model":"{model}","queries":"a","documents":"b"}}"#)),
        Case::post("rerank", "/v2/rerank", &format!(r#"{{"model":"{model}","query":"a","documents":["b"]}}"#)),
        Case::post("classify", "/classify", &format!(r#"{{"model":"{model}","input":"a"}}"#)),
        Case::post("render_chat", "/v1/chat/completions/render", &hello(model, "")),
        Case::post("render_completions", "/v1/completions/render", &format!(r#"{{"model":"{model}","prompt":"a"}}"#)),
        Case::post("inference_generate", "/inference/v1/generate", &format!(r#"{{"model":"{model}","token_ids":[1]}}"#)),
        Case::post("inference_abort", "/inference/v1/abort_requests", r#"{"request_ids":["x"]}"#),
        Case::raw(
            "transcription",
            Request::new("POST", "/v1/audio/transcriptions")
                .header("Content-Type", "multipart/form-data; boundary=xyz")
                .body(
                    format!(
                        "--xyz\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\nRIFF\r\n\
                         --xyz\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n{model}\r\n--xyz--\r\n"
                    )
                    .as_bytes(),
                )
                .bytes(),
        ),
    ]
}

fn wrong_bodies(model: &str) -> Vec<Case> {
    let typed = |name, kind: &str| {
        let request = Request::new("POST", CHAT).header("Content-Type", kind);
        Case::raw(name, request.body(hello(model, "").as_bytes()).bytes())
    };
    let post = |name, body: &str| Case::post(name, CHAT, body);
    let bytes = |name, body: &[u8]| {
        let request = Request::new("POST", CHAT).header("Content-Type", "application/json");
        Case::raw(name, request.body(body).bytes())
    };
    let mut latin = hello(model, "").into_bytes();
    latin.iter_mut().filter(|b| **b == b'?').for_each(|b| *b = 0xe9);
    let sixteen: Vec<u8> = hello(model, "").encode_utf16().flat_map(u16::to_le_bytes).collect();
    vec![
        post("malformed_json", r#"{"model": "x", "messages": [}"#),
        post("truncated_json", &hello(model, "")[..40]),
        post("trailing_garbage", &(hello(model, "") + "x")),
        post("empty_body", ""),
        post("empty_object", "{}"),
        post("array_body", "[1,2,3]"),
        post("string_body", r#""hello""#),
        post("null_body", "null"),
        post("deep_nesting", &"[".repeat(20_000)),
        post("no_messages", &format!(r#"{{"model":"{model}"}}"#)),
        post("messages_empty", &format!(r#"{{"model":"{model}","messages":[]}}"#)),
        post("messages_wrong_type", &format!(r#"{{"model":"{model}","messages":"hi"}}"#)),
        post("max_tokens_wrong_type", &hello(model, r#","max_tokens":"many""#)),
        post(
            "many_errors",
            &hello(model, r#","n":"x","seed":"y","top_p":"z","stream":"w","logprobs":[]"#),
        ),
        post("stream_wrong_type", &hello(model, r#","stream":"perhaps""#)),
        post("stream_as_text", &hello(model, r#","stream":"true""#)),
        post("nan", &hello(model, r#","top_p":NaN"#)),
        post("huge_number", &hello(model, r#","seed":99999999999999999999999999"#)),
        post("white_space", &format!("\r\n\t {} \n", hello(model, "").replace(':', " :\n "))),
        bytes("byte_order_mark", &[b"\xef\xbb\xbf", hello(model, "").as_bytes()].concat()),
        bytes("invalid_utf8", &latin),
        bytes("utf16", &sixteen),
        bytes("lone_surrogate", hello(model, r#","user":"\ud800""#).as_bytes()),
        typed("content_type_text", "text/plain"),
        typed("content_type_form", "application/x-www-form-urlencoded"),
        typed("content_type_charset", "application/json; charset=utf-8"),
        typed("content_type_upper_case", "APPLICATION/JSON"),
        typed("content_type_json_suffix", "application/vnd.api+json"),
        Case::raw(
            "content_type_missing",
            Request::new("POST", CHAT).body(hello(model, "").as_bytes()).bytes(),
        ),
        Case::raw(
            "content_type_wrong_and_unknown_model",
            Request::new("POST", CHAT)
                .header("Content-Type", "text/plain")
                .body(hello("nope", "").as_bytes())
                .bytes(),
        ),
        Case::raw("content_length_missing", Request::new("POST", CHAT).bytes()),
        Case::post(
            "one_megabyte",
            COMPLETIONS,
            &format!(
                r#"{{"prompt":"{}","max_tokens":2,"model":"{model}"}}"#,
                "word ".repeat(210_000)
            ),
        ),
        Case::post(
            "one_megabyte_tokenize",
            "/tokenize",
            &format!(r#"{{"prompt":"{}","model":"{model}"}}"#, "x".repeat(1_000_000)),
        ),
    ]
}

fn models(model: &str) -> Vec<Case> {
    let escaped: String = model.chars().map(|c| format!("\\u{:04x}", u32::from(c))).collect();
    let mut members = hello("M", "").replace(r#""model":"M","#, "");
    members.remove(0);
    let with = |name, first: &str| Case::post(name, CHAT, &format!("{{{first}{members}"));
    let completion = |name, value: &str| {
        let body = format!(r#"{{"model":{value},"prompt":"a","max_tokens":2,"temperature":0}}"#);
        Case::post(name, COMPLETIONS, &body)
    };
    let user = r#""messages":[{"role":"user","content":"Hello there"}]"#;
    let mut cases = vec![
        with("model_absent", ""),
        with("model_null", r#""model":null,"#),
        with("model_empty", r#""model":"","#),
        with("model_number", r#""model":5,"#),
        with("model_object", r#""model":{"model":"x"},"#),
        with("model_array", r#""model":["x"],"#),
        with("model_true", r#""model":true,"#),
        with("model_escaped", &format!(r#""model":"{escaped}","#)),
        with("model_key_escaped", &format!(r#""m\u006fdel":"{model}","#)),
        with("model_twice_last_right", &format!(r#""model":"nope","model":"{model}","#)),
        with("model_twice_last_null", r#""model":"nope","model":null,"#),
        with("model_twice_null_hidden", &format!(r#""x":{{"model":"nope"}},"model":"{model}","#)),
        completion("completion_model_null", "null"),
        completion("completion_model_empty", r#""""#),
    ];
    let unknown = [
        with("unknown_model", r#""model":"nope","#),
        with("unknown_model_stream", r#""model":"nope","stream":true,"#),
        with("unknown_model_key_escaped", r#""m\u006fdel":"nope","#),
        with("unknown_model_twice", &format!(r#""model":"{model}","model":"nope","#)),
        with("unknown_model_other_case", &format!(r#""model":"{}","#, model.to_uppercase())),
        with("unknown_model_space", &format!(r#""model":"{model} ","#)),
        with("unknown_model_unicode", r#""model":"münchen-😀-\u00fc\ud83d\ude00","#),
        with("unknown_model_escapes", r#""model":"a\"b\\c\/d\n\t\u0001\u007f<>&'","#),
        with("unknown_model_surrogate", r#""model":"\ud800","#),
        with("unknown_model_nul", r#""model":"a\u0000b","#),
        with("unknown_model_long", &format!(r#""model":"{}","#, "m".repeat(5000))),
        completion("completion_unknown_model", r#""nope""#),
        Case::post(
            "messages_unknown_model",
            "/v1/messages",
            &format!(r#"{{"model":"nope",{user},"max_tokens":3}}"#),
        ),
        Case::post(
            "count_tokens_unknown_model",
            "/v1/messages/count_tokens",
            &format!(r#"{{"model":"nope",{user}}}"#),
        ),
        Case::post("responses_unknown_model", "/v1/responses", r#"{"model":"nope","input":"a"}"#),
        Case::post(
            "batch_unknown_model",
            "/v1/chat/completions/batch",
            &format!(r#"{{"model":"nope","messages":[{}]}}"#, &user[11..]),
        ),
        Case::post("tokenize_unknown_model", "/tokenize", r#"{"model":"nope","prompt":"a"}"#),
        Case::post("detokenize_unknown_model", "/detokenize", r#"{"model":"nope","tokens":[40]}"#),
        Case::post("invocations_unknown_model", "/invocations", &hello("nope", "")),
        Case::post(
            "scoring_unknown_model",
            "/generative_scoring",
            r#"{"model":"nope","query":"a","items":["b"],"label_token_ids":[40,41]}"#,
        ),
        Case::raw(
            "unknown_model_query",
            Request::new("POST", "/v1/chat/completions?a=b").json(&hello("nope", "")).bytes(),
        ),
    ];
    cases.extend(unknown.into_iter().map(|case| case.fleet(LISTS)));
    // Bodies and routes are wrong before their model is: the answer names no model.
    cases.extend([
        with("unknown_model_and_bad_field", r#""model":"nope","n":"x","#),
        Case::post("unknown_model_no_messages", CHAT, r#"{"model":"nope"}"#),
        Case::post("unknown_model_malformed", CHAT, r#"{"model":"nope","messages":[}"#),
        Case::post("messages_unknown_model_bad", "/v1/messages", r#"{"model":"nope"}"#),
        Case::post("embeddings_unknown_model", "/v1/embeddings", r#"{"model":"nope","input":"a"}"#),
        Case::post("render_unknown_model", "/v1/chat/completions/render", &hello("nope", ""))
            .fleet("lists all models where rendering is on"),
        Case::post("unknown_path_unknown_model", "/v1/frobnicate", r#"{"model":"nope"}"#),
        Case::raw("put_unknown_model", Request::new("PUT", CHAT).json(&hello("nope", "")).bytes()),
    ]);
    cases
}

fn routes(model: &str) -> Vec<Case> {
    let post = |name, target| Case::post(name, target, "");
    vec![
        Case::get("models", "/v1/models").fleet(LISTS),
        Case::get("models_query", "/v1/models?limit=1").fleet(LISTS),
        Case::get("models_one", &format!("/v1/models/{model}")),
        Case::get("version", "/version"),
        Case::get("health", "/health"),
        Case::get("health_query", "/health?x=1"),
        Case::head("health_head", "/health"),
        post("health_post", "/health"),
        Case::get("ping", "/ping"),
        post("ping_post", "/ping"),
        Case::head("ping_head", "/ping"),
        Case::get("load", "/load"),
        Case::head("models_head", "/v1/models"),
        Case::head("version_head", "/version"),
        post("models_post", "/v1/models"),
        post("version_post", "/version"),
        Case::get("kv_event_sources", "/kv_event_sources"),
        Case::get("openapi", "/openapi.json"),
        Case::head("openapi_head", "/openapi.json"),
        Case::get("docs", "/docs"),
        Case::get("redoc", "/redoc"),
        Case::get("unknown_path", "/frobnicate"),
        Case::get("root", "/"),
        post("unknown_path_post", "/frobnicate"),
        Case::post("unknown_path_json", "/v1/frobnicate", &format!(r#"{{"model":"{model}"}}"#)),
        Case::head("unknown_path_head", "/frobnicate"),
        Case::get("chat_get", CHAT),
        Case::head("chat_head", CHAT),
        Case::raw("chat_delete", Request::new("DELETE", CHAT).bytes()),
        Case::raw("chat_patch", Request::new("PATCH", CHAT).json(&hello(model, "")).bytes()),
        Case::raw("health_delete", Request::new("DELETE", "/health").bytes()),
        // What would leave a server otherwise than it was is asked in `cases_admin.rs`.
        Case::get("is_sleeping", "/is_sleeping"),
        Case::get("is_paused", "/is_paused"),
        post("reset_prefix_cache", "/reset_prefix_cache"),
        Case::get("server_info", "/server_info"),
        post("is_scaling", "/is_scaling_elastic_ep"),
        Case::get("fault_tolerance", "/fault_tolerance/status"),
        Case::get("world_size", "/get_world_size"),
        Case::post("decisions", "/v1/decisions", &format!(r#"{{"model":"{model}","input":"a"}}"#)),
    ]
}
