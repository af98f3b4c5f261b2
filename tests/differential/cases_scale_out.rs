//! Rendering, token-in token-out and Cohere's chat: routes that options turn on, in their forms.

use crate::cases::{Case, Request};

const GENERATE: &str = "/inference/v1/generate";
const COHERE: &str = "/cohere/v2/chat";
const LISTS: &str = "the answer lists the models of all backends";

/// All of them, for a server of this model.
pub(crate) fn cases(model: &str) -> Vec<Case> {
    let mut cases = tokens(model);
    cases.extend(rendered(model));
    cases.extend(cohere(model));
    cases
}

fn tokens(model: &str) -> Vec<Case> {
    let post = |name, more: &str| {
        let body = format!(r#"{{"model":"{model}","token_ids":[1,40,41]{more}}}"#);
        Case::post(name, GENERATE, &body)
    };
    let three = r#","sampling_params":{"max_tokens":3,"temperature":0}"#;
    vec![
        post("generate_stream", &format!(r#"{three},"stream":true"#)),
        post(
            "generate_stream_usage",
            &format!(r#"{three},"stream":true,"stream_options":{{"include_usage":true}}"#),
        ),
        post(
            "generate_logprobs",
            r#","sampling_params":{"max_tokens":2,"temperature":0,"logprobs":1}"#,
        ),
        post("generate_text", &format!(r#"{three},"output_mode":"text""#)),
        post("generate_request_id", &format!(r#"{three},"request_id":"mine""#)),
        post("generate_salt", &format!(r#"{three},"cache_salt":"pepper""#)),
        post("generate_no_sampling", ""),
        post("generate_bad_sampling", r#","sampling_params":{"temperature":-1}"#),
        Case::post(
            "generate_no_tokens",
            GENERATE,
            &format!(r#"{{"model":"{model}","token_ids":[]{three}}}"#),
        ),
        Case::post(
            "generate_negative",
            GENERATE,
            &format!(r#"{{"model":"{model}","token_ids":[-1]{three}}}"#),
        ),
        Case::post(
            "generate_unknown_tokens",
            GENERATE,
            &format!(r#"{{"model":"{model}","token_ids":[99999999]{three}}}"#),
        ),
        Case::raw(
            "generate_wrong_rank",
            Request::new("POST", GENERATE)
                .header("X-data-parallel-rank", "7")
                .json(&format!(r#"{{"model":"{model}","token_ids":[1]{three}}}"#))
                .bytes(),
        ),
        Case::raw(
            "generate_wrong_rank_stream",
            Request::new("POST", GENERATE)
                .header("X-data-parallel-rank", "7")
                .json(&format!(r#"{{"model":"{model}","token_ids":[1]{three},"stream":true}}"#))
                .bytes(),
        ),
        Case::post("abort_bad", "/inference/v1/abort_requests", r#"{"request_ids":"x"}"#),
        Case::post("abort_empty", "/inference/v1/abort_requests", r#"{"request_ids":[]}"#),
    ]
}

fn rendered(model: &str) -> Vec<Case> {
    let user = r#""messages":[{"role":"user","content":"Hello"}]"#;
    let post = |name, target: &str, more: &str| {
        Case::post(name, target, &format!(r#"{{"model":"{model}",{more}}}"#))
    };
    let chat = "/v1/chat/completions/render";
    let answer = format!(
        r#""request_id":"r","model":"{model}","choices":[{{"index":0,"token_ids":[40,41],"finish_reason":"length"}}]"#
    );
    vec![
        post(
            "render_chat_tools",
            chat,
            &format!(
                r#"{user},"tools":[{{"type":"function","function":{{"name":"f","parameters":{{}}}}}}]"#
            ),
        ),
        post("render_chat_stream", chat, &format!(r#"{user},"stream":true"#)),
        post("render_chat_bad", chat, r#""messages":[]"#),
        post("render_two_prompts", "/v1/completions/render", r#""prompt":["a","b"]"#),
        post("render_token_ids", "/v1/completions/render", r#""prompt":[40,41]"#),
        post(
            "render_messages_system",
            "/v1/messages/render",
            &format!(r#"{user},"system":"Be brief.","max_tokens":2"#),
        ),
        post(
            "render_responses",
            "/v1/responses/render",
            r#""input":"Hello","instructions":"Be brief.""#,
        ),
        post(
            "derender_chat",
            "/v1/chat/completions/derender",
            &format!(r#""generate_response":{{{answer}}},"prompt_tokens":3"#),
        ),
        post(
            "derender_chat_stream",
            "/v1/chat/completions/derender",
            &format!(r#""stream":true,"generate_response":{{{answer}}}"#),
        ),
        post("derender_chat_bad", "/v1/chat/completions/derender", r#""generate_response":7"#),
        post(
            "derender_completions",
            "/v1/completions/derender",
            &format!(r#""generate_responses":[{{{answer}}}],"prompt_tokens":[3]"#),
        ),
    ]
}

fn cohere(model: &str) -> Vec<Case> {
    let user = r#""messages":[{"role":"user","content":"Hello"}],"max_tokens":3,"temperature":0"#;
    let post = |name, more: &str| {
        Case::post(name, COHERE, &format!(r#"{{"model":"{model}",{user}{more}}}"#))
    };
    let with = |name, headers: &[(&str, &str)], body: &str| {
        let request = headers.iter().fold(Request::new("POST", COHERE), |r, (n, v)| r.header(n, v));
        Case::raw(name, request.json(body).bytes())
    };
    let mine = [("X-Request-Id", "mine")];
    let rank = [("X-data-parallel-rank", "7")];
    let right = format!(r#"{{"model":"{model}",{user}}}"#);
    let stream = format!(r#"{{"model":"{model}",{user},"stream":true}}"#);
    let unknown = format!(r#"{{"model":"nope",{user}}}"#);
    vec![
        post("cohere_stream", r#","stream":true"#),
        post("cohere_parts", r#","stop_sequences":["e"],"seed":3,"k":1"#),
        post("cohere_documents", r#","documents":["one","two"]"#),
        post(
            "cohere_tools",
            r#","tools":[{"type":"function","function":{"name":"f","parameters":{}}}]"#,
        ),
        post("cohere_bad_p", r#","p":7"#),
        post("cohere_too_many_tokens", r#","max_tokens":99999999"#),
        post("cohere_bad_stream", r#","stream":"perhaps""#),
        with("cohere_id_right", &mine, &right),
        with("cohere_id_unknown", &mine, &unknown).fleet(LISTS),
        with("cohere_id_malformed", &mine, "{"),
        with("cohere_id_bad", &mine, &right.replace("\"temperature\":0", "\"p\":7")),
        with("cohere_unknown_stream", &[], &unknown.replacen('{', r#"{"stream":true,"#, 1))
            .fleet(LISTS),
        with("cohere_wrong_rank", &rank, &right),
        with("cohere_wrong_rank_stream", &rank, &stream),
        with(
            "cohere_client_name",
            &[("X-Client-Name", "x"), ("Authorization", "Bearer co-key")],
            &right,
        ),
        Case::get("cohere_unknown_path", "/cohere/v2/frobnicate"),
        Case::get("cohere_models", "/cohere/v2/models"),
        Case::post("cohere_v1", "/cohere/v1/chat", &right),
    ]
}
