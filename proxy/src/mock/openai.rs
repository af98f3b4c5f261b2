//! The words of /v1/chat/completions and /v1/completions (field order and nulls as seen in 0.32).

use super::answers::quote;
use super::dialect::{Choice, Dialect, Trouble, Usage, data, reason};
use super::run::{Cached, Token};

/// What both routes say around their choices.
#[derive(Clone, Debug)]
pub(super) struct Wording {
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
    pub(super) fingerprint: String,
    /// Tokens of the prompts.
    pub(super) prompt: u32,
    /// How many choices there are.
    pub(super) choices: usize,
    /// `--enable-prompt-tokens-details`
    pub(super) details: bool,
    /// `stream_options.include_usage`.
    pub(super) usage: bool,
    /// `stream_options.continuous_usage_stats`.
    pub(super) continuous: bool,
}

impl Wording {
    /// One event up to its choices.
    fn chunk(&self, object: &str, choices: &str, usage: &str, rest: &str) -> String {
        let Self { id, created, model, .. } = self;
        let (id, model) = (quote(id), quote(model));
        data(&format!(
            r#"{{"id":{id},"object":"{object}","created":{created},"model":{model},"choices":[{choices}]{usage}{rest}}}"#
        ))
    }

    /// `usage` of a chunk that says how far its choice is.
    fn so_far(&self, count: u32, details: &str) -> String {
        if !self.continuous {
            return String::new();
        }
        let usage = Usage { prompt: self.prompt, completion: count, ..Usage::default() };
        format!(r#","usage":{{{}{details}}}"#, usage_fields(usage))
    }

    /// The fingerprint comes once: with the usage, or else with the last word of each choice.
    fn rest(&self, last: bool) -> String {
        if last && !self.usage { self.fingerprint() } else { String::new() }
    }

    fn fingerprint(&self) -> String {
        format!(r#","system_fingerprint":"{}""#, self.fingerprint)
    }

    /// `details` words what of the prompt was cached; at the end of a stream without nulls.
    fn closing(
        &self,
        object: &str,
        usage: Usage,
        details: fn(Cached) -> String,
        events: &mut Vec<String>,
    ) {
        if self.usage {
            let details = if self.details {
                format!(r#","prompt_tokens_details":{{{}}}"#, details(usage.cached))
            } else {
                String::new()
            };
            let usage = format!(r#","usage":{{{}{details}}}"#, usage_fields(usage));
            events.push(self.chunk(object, "", &usage, &self.fingerprint()));
        }
        events.push(data("[DONE]"));
    }

    /// An answer that is not streamed.
    fn whole(
        &self,
        object: &str,
        choices: &[String],
        usage: (Usage, fn(Cached) -> String),
        rest: &str,
    ) -> String {
        let Self { id, created, model, fingerprint, .. } = self;
        let (id, model, choices) = (quote(id), quote(model), choices.join(","));
        let (usage, details) = usage;
        let details = if self.details {
            format!(r#"{{{},"multimodal_tokens":null}}"#, details(usage.cached))
        } else {
            "null".to_owned()
        };
        let usage = usage_fields(usage);
        format!(
            r#"{{"id":{id},"object":"{object}","created":{created},"model":{model},"choices":[{choices}],"service_tier":null,"system_fingerprint":"{fingerprint}","usage":{{{usage},"prompt_tokens_details":{details},"completion_tokens_details":null}}{rest},"kv_transfer_params":null,"ec_transfer_params":null,"metrics":null}}"#
        )
    }
}

pub(super) fn usage_fields(usage: Usage) -> String {
    let (prompt, total, completion) = (usage.prompt, usage.total(), usage.completion);
    format!(r#""prompt_tokens":{prompt},"total_tokens":{total},"completion_tokens":{completion}"#)
}

/// Chats tell what was found in the cache and what was put there..
fn read_and_written(cached: Cached) -> String {
    let Cached { read, written } = cached;
    format!(r#""cached_tokens":{read},"created_cache_tokens":{written}"#)
}

/// ..and completions only the first: in streams without the second at all, else with null.
fn read_alone(cached: Cached) -> String {
    format!(r#""cached_tokens":{}"#, cached.read)
}

fn read_and_null(cached: Cached) -> String {
    format!(r#"{},"created_cache_tokens":null"#, read_alone(cached))
}

/// `finish_reason`, and `stop_reason` where vLLM has it with the last token only.
fn finish(token: Token) -> String {
    token.finish.map_or("null".to_owned(), |finish| format!(r#""{}""#, reason(finish)))
}

/// vLLM makes this event with Python's `json.dumps`, which puts spaces.
pub(super) fn failure(trouble: &Trouble, kind: &str, events: &mut Vec<String>) -> bool {
    let (message, status) = (quote(trouble.message), trouble.status);
    events.push(data(&format!(
        r#"{{"error": {{"message": {message}, "type": "{kind}", "param": null, "code": {status}}}}}"#
    )));
    events.push(data("[DONE]"));
    true
}

/// /v1/chat/completions
#[derive(Clone, Debug)]
pub(super) struct Chat(pub(super) Wording);

const CHAT_CHUNK: &str = "chat.completion.chunk";

impl Dialect for Chat {
    fn first(&mut self, events: &mut Vec<String>) {
        let usage = self.0.so_far(0, r#","completion_tokens_details":null"#);
        for index in 0..self.0.choices {
            events.push(self.0.chunk(
                CHAT_CHUNK,
                &format!(
                    r#"{{"index":{index},"delta":{{"role":"assistant","content":""}},"logprobs":null,"finish_reason":null}}"#
                ),
                &usage,
                r#","prompt_token_ids":null,"prompt_text":null"#,
            ));
        }
    }

    fn token(&mut self, token: Token, events: &mut Vec<String>) {
        let (index, content, reason) = (token.choice, quote(token.text), finish(token));
        let stop = if token.finish.is_some() { r#","stop_reason":null"# } else { "" };
        events.push(self.0.chunk(
            CHAT_CHUNK,
            &format!(
                r#"{{"index":{index},"delta":{{"content":{content}}},"logprobs":null,"finish_reason":{reason}{stop},"token_ids":null}}"#
            ),
            &self.0.so_far(token.count, r#","completion_tokens_details":null"#),
            &self.0.rest(token.finish.is_some()),
        ));
    }

    fn closing(&mut self, usage: Usage, events: &mut Vec<String>) {
        self.0.closing(CHAT_CHUNK, usage, read_and_written, events);
    }

    fn failure(&mut self, trouble: &Trouble, events: &mut Vec<String>) -> bool {
        // Chats call every trouble of the server's an internal error (0.33).
        let kind = if trouble.status < 500 { trouble.kind() } else { "InternalServerError" };
        failure(trouble, kind, events)
    }

    fn whole(&mut self, choices: &[Choice], usage: Usage) -> String {
        let choices: Vec<_> = choices
            .iter()
            .enumerate()
            .map(|(index, choice)| {
                let (content, reason) = (quote(&choice.text), reason(choice.finish));
                format!(
                    r#"{{"index":{index},"message":{{"role":"assistant","content":{content},"refusal":null,"annotations":null,"audio":null,"function_call":null,"reasoning":null}},"logprobs":null,"finish_reason":"{reason}","stop_reason":null,"token_ids":null,"routed_experts":null}}"#
                )
            })
            .collect();
        let rest = r#","prompt_logprobs":null,"prompt_token_ids":null,"prompt_text":null"#;
        self.0.whole("chat.completion", &choices, (usage, read_and_written), rest)
    }
}

/// /v1/completions
#[derive(Clone, Debug)]
pub(super) struct Completion {
    pub(super) wording: Wording,
    /// What each choice begins with: its prompt, if `echo` is set.
    pub(super) echo: Vec<String>,
}

impl Completion {
    fn echo(&self, choice: usize) -> &str {
        self.echo.get(choice).map_or("", String::as_str)
    }
}

const COMPLETION: &str = "text_completion";

impl Dialect for Completion {
    fn token(&mut self, token: Token, events: &mut Vec<String>) {
        let echo = if token.count == 1 { self.echo(token.choice) } else { "" };
        let text = quote(&format!("{echo}{}", token.text));
        let (index, reason) = (token.choice, finish(token));
        events.push(self.wording.chunk(
            COMPLETION,
            &format!(
                r#"{{"index":{index},"text":{text},"logprobs":null,"finish_reason":{reason},"stop_reason":null,"prompt_token_ids":null,"token_ids":null}}"#
            ),
            &self.wording.so_far(token.count, ""),
            &self.wording.rest(token.finish.is_some()),
        ));
    }

    fn closing(&mut self, usage: Usage, events: &mut Vec<String>) {
        self.wording.closing(COMPLETION, usage, read_alone, events);
    }

    fn failure(&mut self, trouble: &Trouble, events: &mut Vec<String>) -> bool {
        failure(trouble, trouble.kind(), events)
    }

    fn whole(&mut self, choices: &[Choice], usage: Usage) -> String {
        let choices: Vec<_> = choices
            .iter()
            .enumerate()
            .map(|(index, choice)| {
                let text = quote(&format!("{}{}", self.echo(index), choice.text));
                let reason = reason(choice.finish);
                format!(
                    r#"{{"index":{index},"text":{text},"logprobs":null,"finish_reason":"{reason}","stop_reason":null,"token_ids":null,"prompt_logprobs":null,"prompt_token_ids":null,"routed_experts":null}}"#
                )
            })
            .collect();
        self.wording.whole(COMPLETION, &choices, (usage, read_and_null), "")
    }
}
