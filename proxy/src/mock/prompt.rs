//! Prompts: what of a request the model reads, as text and in tokens.

use super::answers::Answer;
use super::check::Fields;
use serde_json::Value;
use vllm_proxy_sim::reply::{count, detokenize};

/// A prompt as the engine sees it.
#[derive(Clone, Debug)]
pub(super) struct Prompt {
    pub(super) text: String,
    pub(super) tokens: u32,
}

impl Prompt {
    pub(super) fn of(text: String) -> Self {
        Self { tokens: count(&text), text }
    }

    fn of_ids(ids: &[Value]) -> Self {
        Self { tokens: ids.len() as u32, text: detokenize(token_ids(ids)) }
    }
}

/// Token ids, those beyond any vocabulary as 0.
pub(super) fn token_ids(ids: &[Value]) -> impl Iterator<Item = u32> + '_ {
    ids.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()).unwrap_or(0))
}

/// A string, strings, token ids or lists of token ids.
pub(super) fn prompts(prompt: Option<&Value>) -> Result<Vec<Prompt>, Answer> {
    let prompts: Vec<_> = match prompt {
        Some(Value::String(text)) if !text.is_empty() => vec![Prompt::of(text.clone())],
        Some(Value::Array(items)) if items.first().is_some_and(Value::is_number) => {
            vec![Prompt::of_ids(items)]
        }
        Some(Value::Array(items)) => items
            .iter()
            .filter_map(|item| match item.as_str() {
                Some(text) => Some(Prompt::of(text.to_owned())),
                None => item.as_array().map(|ids| Prompt::of_ids(ids)),
            })
            .collect(),
        Some(_) | None => Vec::new(),
    };
    if prompts.is_empty() {
        let message = "Either prompt or prompt_embeds must be provided and non-empty. \
                       (parameter=prompt)";
        return Err(Answer::refused(message, Some("prompt")));
    }
    Ok(prompts)
}

/// What the chat template puts where the model is to speak.
pub(super) const ANSWER: &str = "<|im_start|>assistant\n";

/// Adds what someone said.
pub(super) fn turn(text: &mut String, role: &str, content: &str) {
    text.extend(["<|im_start|>", role, "\n", content, "<|im_end|>\n"]);
}

/// A conversation as the chat template (ChatML) renders it, tools first.
pub(super) fn conversation(
    fields: &Fields<'_>,
    system: Option<&Value>,
    messages: &[Value],
) -> Result<Prompt, Answer> {
    if messages.is_empty() {
        let message = "Cannot apply chat template to an empty conversation. \
                       Provide at least one message.";
        return Err(Answer::refused(message, None));
    }
    let mut text = String::new();
    if let Some(tools) = fields.value("tools") {
        turn(&mut text, "system", &tools.to_string());
    }
    if let Some(system) = system {
        turn(&mut text, "system", &content(system));
    }
    text.push_str(&conversation_text(messages));
    text.push_str(ANSWER);
    Ok(Prompt::of(text))
}

/// Messages one after another.
pub(super) fn conversation_text(messages: &[Value]) -> String {
    let mut text = String::new();
    for message in messages {
        turn(&mut text, message["role"].as_str().unwrap_or("user"), &content(&message["content"]));
    }
    text
}

/// The text of a `content`: a string, or parts of which those with text count.
fn content(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => String::new(),
    }
}
