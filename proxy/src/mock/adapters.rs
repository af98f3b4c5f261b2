//! The list of models and LoRA adapters. Wording is 0.32's.

use super::answers::{created, quote};
use super::state::Mock;
use std::fmt::Write;

/// `GET /v1/models`: times and permission ids are made at each call, as vLLM does.
pub(super) fn models(mock: &Mock) -> String {
    let created = created();
    let root = quote(mock.args.canonical());
    let room = mock.args.max_model_len.to_string();
    let mut cards = String::new();
    let mut card = |id: &str, root: &str, parent: &str, room: &str| {
        let comma = if cards.is_empty() { "" } else { "," };
        let (id, permission) = (quote(id), mock.hex());
        let _ = write!(
            cards,
            r#"{comma}{{"id":{id},"object":"model","created":{created},"owned_by":"vllm","root":{root},"parent":{parent},"max_model_len":{room},"permission":[{{"id":"modelperm-{permission}","object":"model_permission","created":{created},"allow_create_engine":false,"allow_sampling":true,"allow_logprobs":true,"allow_search_indices":false,"allow_view":true,"allow_fine_tuning":false,"organization":"*","group":null,"is_blocking":false}}]}}"#
        );
    };
    for model in &mock.args.models {
        card(model, &root, "null", &room);
    }
    for adapter in mock.adapters.borrow().iter() {
        card(&adapter.name, &quote(&adapter.path), &root, "null");
    }
    format!(r#"{{"object":"list","data":[{cards}]}}"#)
}
