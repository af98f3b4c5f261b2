//! The words of /v1/responses (field order as seen in 0.32; the last event's name as in 0.33).

use super::answers::quote;
use super::dialect::{Choice, Dialect, Trouble, Usage, typed};
use super::run::Token;
use super::state::Mock;
use super::store::{Background, Stored};
use std::fmt::Write;
use std::rc::Rc;
use vllm_proxy_sim::reply::Finish;

/// /v1/responses
pub(super) struct Responses {
    pub(super) mock: Rc<Mock>,
    pub(super) id: String,
    /// Id of the one message in it.
    pub(super) item: String,
    pub(super) created: u64,
    pub(super) model: String,
    /// As JSON: null or a string.
    pub(super) instructions: String,
    pub(super) previous: String,
    pub(super) max_output_tokens: u32,
    pub(super) prompt: String,
    pub(super) text: String,
    pub(super) finish: Option<Finish>,
    /// Number of the next event.
    pub(super) sequence: u32,
    /// Where it is made, if that is not on the client's connection.
    pub(super) background: Option<Rc<Background>>,
    /// Whether it is kept.
    pub(super) store: bool,
}

impl Responses {
    /// The response object: in progress without `usage`, else finished.
    fn object(&self, usage: Option<Usage>) -> String {
        self.object_as("in_progress", usage)
    }

    fn object_as(&self, unfinished: &str, usage: Option<Usage>) -> String {
        let background = self.background.is_some();
        let Self { created, instructions, previous, max_output_tokens, .. } = self;
        let (id, model) = (quote(&self.id), quote(&self.model));
        let short = usage.is_some() && self.finish == Some(Finish::Length);
        let incomplete = if short { r#"{"reason":"max_output_tokens"}"# } else { "null" };
        let status = match usage {
            None => unfinished,
            Some(_) if short => "incomplete",
            Some(_) => "completed",
        };
        let output = usage.map_or(String::new(), |_| self.message());
        let usage = usage.map_or("null".to_owned(), |usage| {
            let (input, output, total) = (usage.prompt, usage.completion, usage.total());
            let (cached, written) = (usage.cached.read, usage.cached.written);
            format!(
                r#"{{"input_tokens":{input},"input_tokens_details":{{"cached_tokens":{cached},"cache_write_tokens":{written},"input_tokens_per_turn":[],"cached_tokens_per_turn":[]}},"output_tokens":{output},"output_tokens_details":{{"reasoning_tokens":0,"tool_output_tokens":0,"output_tokens_per_turn":[],"tool_output_tokens_per_turn":[]}},"total_tokens":{total}}}"#
            )
        });
        format!(
            r#"{{"id":{id},"created_at":{created},"incomplete_details":{incomplete},"instructions":{instructions},"metadata":null,"model":{model},"object":"response","output":[{output}],"parallel_tool_calls":true,"temperature":1.0,"tool_choice":"none","tools":[],"top_p":1.0,"background":{background},"max_output_tokens":{max_output_tokens},"max_tool_calls":null,"previous_response_id":{previous},"prompt":null,"reasoning":null,"service_tier":"auto","status":"{status}","text":null,"top_logprobs":null,"truncation":"disabled","usage":{usage},"user":null,"presence_penalty":0.0,"frequency_penalty":0.0,"kv_transfer_params":null,"ec_transfer_params":null,"input_messages":null,"output_messages":null}}"#
        )
    }

    fn message(&self) -> String {
        let (item, part) = (quote(&self.item), self.part("null"));
        format!(
            r#"{{"id":{item},"content":[{part}],"role":"assistant","status":"completed","type":"message","phase":null}}"#
        )
    }

    fn part(&self, logprobs: &str) -> String {
        let text = quote(&self.text);
        format!(r#"{{"annotations":[],"text":{text},"type":"output_text","logprobs":{logprobs}}}"#)
    }

    /// One event. Its fields are sorted by name, so what goes before the number is given, and what
    /// goes between it and the type.
    fn event(&mut self, kind: &str, before: &str, after: &str, events: &mut Vec<String>) {
        let mut json = format!("{{{before}");
        let _ = write!(json, r#","sequence_number":{}{after},"type":"{kind}"}}"#, self.sequence);
        self.sequence += 1;
        events.push(typed(kind, &json));
    }

    /// The fields that every event about the text has.
    fn place(&self) -> String {
        format!(r#""item_id":{}"#, quote(&self.item))
    }

    fn keep(&self, json: String) {
        if self.store {
            let conversation = format!("{}{}<|im_end|>\n", self.prompt, self.text);
            let (id, background) = (self.id.clone(), self.background.clone());
            let stored = Stored { id, conversation, json, background };
            self.mock.responses.borrow_mut().keep(stored);
        }
    }
}

impl Dialect for Responses {
    fn opening(&mut self, events: &mut Vec<String>) {
        let response = format!(r#""response":{}"#, self.object(None));
        self.event("response.created", &response, "", events);
        self.event("response.in_progress", &response, "", events);
    }

    fn first(&mut self, events: &mut Vec<String>) {
        let item = quote(&self.item);
        let item = format!(
            r#""item":{{"id":{item},"content":[],"role":"assistant","status":"in_progress","type":"message","phase":null}},"output_index":0"#
        );
        self.event("response.output_item.added", &item, "", events);
        let part = format!(
            r#""content_index":0,{},"output_index":0,"part":{}"#,
            self.place(),
            self.part("[]")
        );
        self.event("response.content_part.added", &part, "", events);
    }

    fn token(&mut self, token: Token, events: &mut Vec<String>) {
        self.text.push_str(token.text);
        self.finish = self.finish.or(token.finish);
        let delta = format!(
            r#""content_index":0,"delta":{},{},"logprobs":[],"output_index":0"#,
            quote(token.text),
            self.place()
        );
        self.event("response.output_text.delta", &delta, "", events);
    }

    fn closing(&mut self, usage: Usage, events: &mut Vec<String>) {
        let place = self.place();
        let done = format!(r#""content_index":0,{place},"logprobs":[],"output_index":0"#);
        let text = format!(r#","text":{}"#, quote(&self.text));
        self.event("response.output_text.done", &done, &text, events);
        let part = self.part("null");
        let done = format!(r#""content_index":0,{place},"output_index":0,"part":{part}"#);
        self.event("response.content_part.done", &done, "", events);
        let item = format!(r#""item":{},"output_index":0"#, self.message());
        self.event("response.output_item.done", &item, "", events);
        let object = self.object(Some(usage));
        let kind = match self.finish {
            Some(Finish::Length) => "response.incomplete",
            Some(Finish::Stop | Finish::Abort) | None => "response.completed",
        };
        self.event(kind, &format!(r#""response":{object}"#), "", events);
        self.keep(object);
    }

    fn failure(&mut self, _trouble: &Trouble, _events: &mut Vec<String>) -> bool {
        false
    }

    fn queued(&mut self) -> String {
        let object = self.object_as("queued", None);
        self.keep(object.clone());
        object
    }

    fn whole(&mut self, choices: &[Choice], usage: Usage) -> String {
        if let Some(choice) = choices.first() {
            self.text.clone_from(&choice.text);
            self.finish = Some(choice.finish);
        }
        let object = self.object(Some(usage));
        self.keep(object.clone());
        object
    }
}
