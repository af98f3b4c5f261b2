//! Transcriptions and translations: a form in, text out. Wording and order are those of 0.32.
//!
//! The simulated model hears the size of its file and then says what it says to any prompt.

use super::answers::{Answer, created, quote};
use super::check::Fields;
use super::dialect::{Choice, Dialect, Trouble, Usage, data, reason};
use super::form::Form;
use super::machine::Sequence;
use super::openai;
use super::orders::Orders;
use super::prompt::Prompt;
use super::request::Ask;
use super::run::Token;
use super::state::Mock;
use serde_json::Value;
use std::rc::Rc;
use vllm_proxy_core::rng::mix;
use vllm_proxy_sim::reply::{Bounds, Reply};

/// vLLM's limit (VLLM_MAX_AUDIO_CLIP_FILESIZE_MB).
const FILE_MIB_MAX: usize = 25;
/// A second of sound, as 16-bit samples at 16 kHz.
const SECOND_BYTES: usize = 32_000;
/// Fields that have a value when nothing is given, which vLLM counts.
const DEFAULTS: usize = 13;

/// What is to be done with the sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    Transcribe,
    Translate,
}

impl Task {
    const fn word(self) -> &'static str {
        match self {
            Self::Transcribe => "transcribe",
            Self::Translate => "translate",
        }
    }

    const fn chunk(self) -> &'static str {
        match self {
            Self::Transcribe => "transcription.chunk",
            Self::Translate => "translation.chunk",
        }
    }
}

/// The formats of an answer, as vLLM lists them.
const FORMATS: [&str; 5] = ["json", "text", "srt", "verbose_json", "vtt"];
const DIARIZED: &str = "diarized_json";

/// /v1/audio/transcriptions and /v1/audio/translations
pub(super) fn ask(mock: &Mock, task: Task, mut form: Form, id: &str) -> Result<Ask, Answer> {
    // What in a JSON body would be an object is text here.
    if let Some(orders) = form.fields.get("mock").and_then(Value::as_str) {
        let orders = serde_json::from_str(orders).unwrap_or_default();
        form.fields.insert("mock".to_owned(), orders);
    }
    let mut fields = Fields::new(&form.fields);
    if fields.value("file").is_some_and(Value::is_string) {
        let message = "Expected 'file' to be a file-like object, not 'str'.";
        return Err(Answer::error(422, "Unprocessable Entity", message, None));
    }
    let stream = fields.flag("stream");
    let options = ["stream_include_usage", "stream_continuous_usage_stats"];
    if let Some(option) = options.into_iter().find(|name| fields.value(name).is_some())
        && fields.value("stream").is_none()
    {
        let message =
            format!("Stream options can only be defined when `stream=True`. (parameter={option})");
        return Err(Answer::refused(&message, Some(option)));
    }
    let file = form.file.clone();
    if file.is_none() {
        fields.require_of("file", DEFAULTS + usize::from(fields.value("model").is_some()));
    }
    let model = fields.string("model").unwrap_or_default();
    let format = fields.string("response_format").unwrap_or("json");
    if !FORMATS.contains(&format) && format != DIARIZED {
        fields.no_such_word("response_format", &FORMATS);
        fields.no_such_word("response_format", &[DIARIZED]);
    }
    let usage = fields.flag(options[0]);
    let max = fields.number("max_completion_tokens");
    fields.done()?;
    let file = file.unwrap_or_default();
    let mib = file.bytes as f64 / f64::from(1 << 20);
    if mib > FILE_MIB_MAX as f64 {
        let message =
            format!("Maximum file size exceeded (parameter=audio_filesize_mb, value={mib:?})");
        return Err(Answer::refused(&message, Some("audio_filesize_mb")));
    }
    let canonical = mock.serves(Some(model))?;
    // Unlike all other answers, those of a stream hold the name that was asked for.
    let model = if model.is_empty() { canonical } else { model.to_owned() };
    match format {
        "json" | "text" => {}
        "verbose_json" | DIARIZED => {
            let message = format!("Currently do not support {format} for {model}");
            return Err(Answer::refused(&message, None));
        }
        _ => {
            let message = "Currently only support response_format: `text`, `json`, \
                           `verbose_json` or `diarized_json`";
            return Err(Answer::refused(message, None));
        }
    }
    let orders = Orders::read(mock, &fields)?;
    let heard = format!("{}: {} bytes;", file.name, file.bytes);
    let prompt = Prompt::of(heard.clone());
    let left = mock.args.max_model_len.saturating_sub(prompt.tokens);
    let max = max.and_then(|max| u32::try_from(max).ok()).map_or(left, |max| max.min(left)).max(1);
    let bounds = Bounds { natural: orders.natural, min: 0, max, stops: true };
    let id = format!("{}-{id}", task.word());
    Ok(Ask {
        id: id.clone(),
        model: model.clone(),
        stream,
        background: None,
        prompt_tokens: prompt.tokens,
        // What is heard is no text, and not looked for in the cache.
        sequences: vec![Sequence {
            reply: Reply::new(&heard, mix(mock.args.seed), bounds),
            prompt: prompt.tokens,
            blocks: Rc::default(),
            answer: Vec::new(),
        }],
        pace: orders.pace,
        fault: orders.fault,
        after: orders.after,
        dialect: Box::new(Speech {
            task,
            id,
            created: created(),
            model,
            heard,
            seconds: file.bytes.div_ceil(SECOND_BYTES),
            usage,
        }),
    })
}

/// The words of an answer.
struct Speech {
    task: Task,
    id: String,
    created: u64,
    model: String,
    /// What the text begins with.
    heard: String,
    seconds: usize,
    /// `stream_include_usage`
    usage: bool,
}

impl Speech {
    fn chunk(&self, choices: &str, usage: &str) -> String {
        let (id, model, created) = (quote(&self.id), quote(&self.model), self.created);
        let object = self.task.chunk();
        data(&format!(
            r#"{{"id":{id},"object":"{object}","created":{created},"model":{model},"choices":[{choices}]{usage}}}"#
        ))
    }
}

impl Dialect for Speech {
    fn token(&mut self, token: Token, events: &mut Vec<String>) {
        let text = if token.count == 1 {
            format!("{} {}", self.heard, token.text)
        } else {
            token.text.to_owned()
        };
        let finish = token.finish.map_or(String::new(), |finish| {
            format!(r#","finish_reason":"{}","stop_reason":null"#, reason(finish))
        });
        let choice = format!(r#"{{"delta":{{"content":{}}}{finish}}}"#, quote(&text));
        events.push(self.chunk(&choice, ""));
    }

    fn closing(&mut self, usage: Usage, events: &mut Vec<String>) {
        if self.usage {
            let usage = format!(r#","usage":{{{}}}"#, openai::usage_fields(usage));
            events.push(self.chunk("", &usage));
        }
        events.push(data("[DONE]"));
    }

    fn failure(&mut self, trouble: &Trouble, events: &mut Vec<String>) -> bool {
        openai::failure(trouble, trouble.kind(), events)
    }

    fn whole(&mut self, choices: &[Choice], _usage: Usage) -> String {
        let said = choices.first().map_or("", |choice| &choice.text);
        let (text, seconds) = (quote(&format!("{} {said}", self.heard)), self.seconds);
        match self.task {
            Task::Transcribe => {
                format!(r#"{{"text":{text},"usage":{{"type":"duration","seconds":{seconds}}}}}"#)
            }
            Task::Translate => format!(r#"{{"text":{text}}}"#),
        }
    }
}
