//! The words of /v1/messages (field order as seen in 0.32).

use super::answers::quote;
use super::dialect::{Choice, Dialect, Trouble, Usage, typed};
use super::run::Token;
use vllm_proxy_sim::reply::Finish;

/// This API's name for an error with that status (0.33).
pub(super) const fn kind(status: u16) -> &'static str {
    match status {
        400 => "invalid_request_error",
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        _ => "api_error",
    }
}

/// /v1/messages
#[derive(Clone, Debug)]
pub(super) struct Messages {
    pub(super) id: String,
    pub(super) model: String,
    /// Tokens of the prompt.
    pub(super) prompt: u32,
    /// `--enable-prompt-tokens-details`
    pub(super) details: bool,
    /// Why the answer ended, once it has.
    pub(super) finish: Option<Finish>,
}

/// As JSON: vLLM has no word for what was aborted.
const fn reason(finish: Option<Finish>) -> &'static str {
    match finish {
        Some(Finish::Length) => r#""max_tokens""#,
        Some(Finish::Stop) | None => r#""end_turn""#,
        Some(Finish::Abort) => "null",
    }
}

impl Messages {
    /// What was cached is told beside the rest of the prompt, and not as a part of it.
    fn usage(&self, usage: Usage) -> String {
        let (prompt, output, cached) = (usage.prompt, usage.completion, usage.cached);
        if !self.details {
            return format!(r#"{{"input_tokens":{prompt},"output_tokens":{output}}}"#);
        }
        let (read, written) = (cached.read, cached.written);
        let input = prompt.saturating_sub(read + written);
        format!(
            r#"{{"input_tokens":{input},"output_tokens":{output},"cache_creation_input_tokens":{written},"cache_read_input_tokens":{read}}}"#
        )
    }
}

impl Dialect for Messages {
    fn first(&mut self, events: &mut Vec<String>) {
        let (id, model, prompt) = (quote(&self.id), quote(&self.model), self.prompt);
        events.push(typed(
            "message_start",
            &format!(
                r#"{{"type":"message_start","message":{{"id":{id},"type":"message","role":"assistant","content":[],"model":{model},"stop_reason":null,"stop_sequence":null,"usage":{{"input_tokens":{prompt},"output_tokens":0}}}}}}"#
            ),
        ));
        events.push(typed(
            "content_block_start",
            r#"{"type":"content_block_start","content_block":{"type":"text","text":""},"index":0}"#,
        ));
    }

    fn token(&mut self, token: Token, events: &mut Vec<String>) {
        self.finish = self.finish.or(token.finish);
        let text = quote(token.text);
        events.push(typed(
            "content_block_delta",
            &format!(
                r#"{{"type":"content_block_delta","delta":{{"type":"text_delta","text":{text}}},"index":0}}"#
            ),
        ));
    }

    fn closing(&mut self, usage: Usage, events: &mut Vec<String>) {
        let (reason, usage) = (reason(self.finish), self.usage(usage));
        events.push(typed("content_block_stop", r#"{"type":"content_block_stop","index":0}"#));
        events.push(typed(
            "message_delta",
            &format!(
                r#"{{"type":"message_delta","delta":{{"stop_reason":{reason},"stop_sequence":null}},"usage":{usage}}}"#
            ),
        ));
        events.push(typed("message_stop", r#"{"type":"message_stop"}"#));
    }

    fn failure(&mut self, trouble: &Trouble, events: &mut Vec<String>) -> bool {
        let kind = match trouble.status {
            500 => "internal_error",
            status => kind(status),
        };
        let message = quote(trouble.message);
        events.push(typed(
            "error",
            &format!(r#"{{"type":"error","error":{{"type":"{kind}","message":{message}}}}}"#),
        ));
        true
    }

    fn whole(&mut self, choices: &[Choice], usage: Usage) -> String {
        let (id, model) = (quote(&self.id), quote(&self.model));
        let text = quote(choices.first().map_or("", |choice| &choice.text));
        let reason = reason(choices.first().map(|choice| choice.finish));
        let usage = self.usage(usage);
        format!(
            r#"{{"id":{id},"type":"message","role":"assistant","content":[{{"type":"text","text":{text}}}],"model":{model},"stop_reason":{reason},"usage":{usage}}}"#
        )
    }
}
