//! `vllm-proxy mock` and `vllm-proxy demo`, seen from the outside: does a mock answer as vLLM does,
//! and fail as ordered?

#[path = "mock/adapters.rs"]
mod adapters;
#[path = "mock/audio.rs"]
mod audio;
#[path = "mock/cache.rs"]
mod cache;
#[path = "mock/demo.rs"]
mod demo;
#[path = "mock/dev.rs"]
mod dev;
#[path = "mock/faults.rs"]
mod faults;
#[path = "mock/flow.rs"]
mod flow;
#[path = "mock/layout.rs"]
mod layout;
#[path = "mock/options.rs"]
mod options;
#[path = "patience.rs"]
mod patience;
#[path = "mock/realtime.rs"]
mod realtime;
#[path = "mock/responses.rs"]
mod responses;
#[path = "mock/routes.rs"]
mod routes;
#[path = "mock/server.rs"]
mod server;

use serde_json::Value;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const MESSAGES: &str = "/v1/messages";
const RESPONSES: &str = "/v1/responses";
const RUNNING: &str = r#"vllm:num_requests_running{engine="0",model_name="tiny"}"#;

/// 15 tokens: 59 bytes in ChatML.
const HELLO: &str = r#""messages":[{"role":"user","content":"say hello"}]"#;

/// A chat request with more fields.
fn chat(fields: &str) -> String {
    format!("{{{HELLO}{fields}}}")
}

/// The text of a chat answer.
fn content(answer: &Value) -> String {
    answer["choices"][0]["message"]["content"].as_str().expect("a text").to_owned()
}
