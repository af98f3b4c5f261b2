//! Models and LoRA adapters: the list of them, and the routes that load and unload adapters, by
//! vLLM's names and by SageMaker's. Wording is 0.32's.

use super::Adapter;
use super::answers::{Answer, created, quote};
use super::check::Fields;
use super::state::Mock;
use serde_json::{Map, Value, json};
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

/// What vLLM calls the mistakes of those who load.
const INVALID: &str = "InvalidUserInput";

fn load(mock: &Mock, name: &str, path: &str, in_place: bool) -> Result<(), Answer> {
    let refused = |message: &str| Err(Answer::error(400, INVALID, message, None));
    if name.is_empty() || path.is_empty() {
        return refused("Both 'lora_name' and 'lora_path' must be provided.");
    }
    if mock.is_base_model(name) {
        return refused(&format!("The lora adapter '{name}' conflicts with a served base model."));
    }
    let mut adapters = mock.adapters.borrow_mut();
    let loaded = adapters.iter_mut().find(|adapter| adapter.name == name);
    if loaded.is_some() && !in_place {
        return refused(&format!(
            "The lora adapter '{name}' has already been loaded. If you want to load the adapter in \
             place, set 'load_inplace' to True."
        ));
    }
    if path.rsplit('/').next() == Some("missing") {
        let message = format!("Loading lora {name} failed: No adapter found for {path}");
        return Err(Answer::error(404, "NotFoundError", &message, None));
    }
    match loaded {
        Some(adapter) => path.clone_into(&mut adapter.path),
        None => adapters.push(Adapter { name: name.to_owned(), path: path.to_owned() }),
    }
    Ok(())
}

fn unload(mock: &Mock, name: &str) -> Result<(), Answer> {
    if name.is_empty() {
        let message = "'lora_name' needs to be provided to unload a LoRA adapter.";
        return Err(Answer::error(400, INVALID, message, None));
    }
    let mut adapters = mock.adapters.borrow_mut();
    let Some(at) = adapters.iter().position(|adapter| adapter.name == name) else {
        let message = format!("The lora adapter '{name}' cannot be found.");
        return Err(Answer::error(404, "NotFoundError", &message, None));
    };
    adapters.remove(at);
    Ok(())
}

/// `POST /v1/load_lora_adapter`
pub(super) fn loaded(mock: &Mock, mut fields: Fields<'_>) -> Result<Answer, Answer> {
    fields.require("lora_name");
    fields.require("lora_path");
    let name = fields.string("lora_name").unwrap_or_default();
    let path = fields.string("lora_path").unwrap_or_default();
    let in_place = fields.flag("load_inplace");
    fields.done()?;
    load(mock, name, path, in_place)?;
    Ok(Answer::plain(format!("Success: LoRA adapter '{name}' added successfully.")))
}

/// `POST /v1/unload_lora_adapter`
pub(super) fn unloaded(mock: &Mock, mut fields: Fields<'_>) -> Result<Answer, Answer> {
    fields.require("lora_name");
    let name = fields.string("lora_name").unwrap_or_default();
    fields.done()?;
    unload(mock, name)?;
    Ok(Answer::plain(format!("Success: LoRA adapter '{name}' removed successfully.")))
}

/// `POST /adapters`: whatever the body's type is; without JSON the query counts.
pub(super) fn registered(
    mock: &Mock,
    alias: Option<&str>,
    query: Map<String, Value>,
    body: &[u8],
) -> Result<Answer, Answer> {
    let input = serde_json::from_slice::<Value>(body).ok();
    // Python shows a query by its text, which is empty when it is.
    let shown = input.clone().unwrap_or_else(|| json!(""));
    let fields = input.and_then(|input| input.as_object().cloned()).unwrap_or(query);
    let mut wrong = Vec::new();
    let mut text = |name: &str| match fields.get(name) {
        Some(Value::String(text)) if text.is_empty() => {
            let message = format!("The parameter {name} cannot be an empty string");
            wrong.push(format!(
                r#"{{"type":"value_error","loc":["{name}"],"msg":"Value error, {message}","input":"","ctx":{{"error":"{message}"}}}}"#
            ));
            String::new()
        }
        Some(Value::String(text)) => text.clone(),
        Some(other) => {
            wrong.push(format!(
                r#"{{"type":"string_type","loc":["{name}"],"msg":"Input should be a valid string","input":{other}}}"#
            ));
            String::new()
        }
        None => {
            wrong.push(format!(
                r#"{{"type":"missing","loc":["{name}"],"msg":"Field required","input":{shown}}}"#
            ));
            String::new()
        }
    };
    let (name, path) = (text("name"), text("src"));
    if !wrong.is_empty() {
        return Err(Answer::error(400, "Bad Request", &format!("[{}]", wrong.join(",")), None));
    }
    load(mock, &name, &path, fields.get("load_inplace") == Some(&Value::Bool(true)))?;
    Ok(Answer::plain(format!("Adapter {} registered", alias.unwrap_or(&name))))
}

/// `DELETE /adapters/{name}`
pub(super) fn unregistered(mock: &Mock, alias: Option<&str>, name: &str) -> Result<Answer, Answer> {
    unload(mock, name)?;
    Ok(Answer::plain(format!("Adapter {} unregistered", alias.unwrap_or(name))))
}
