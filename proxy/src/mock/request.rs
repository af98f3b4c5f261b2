//! What a request asks the engine for: its prompt, its length, its faults, and how the answer is to
//! be worded. Checks what vLLM checks, in the same words.

use super::answers::{Answer, created};
use super::anthropic::Messages;
use super::check::Fields;
use super::dialect::Dialect;
use super::machine::Sequence;
use super::openai::{Chat, Completion, Wording};
use super::orders::{Ordered, Orders};
use super::prompt::{ANSWER, Prompt, conversation, conversation_text, prompts, turn};
use super::responses::Responses;
use super::run::Pace;
use super::state::Mock;
use super::store::Background;
use serde_json::Value;
use std::rc::Rc;
use vllm_proxy_core::rng::mix;
use vllm_proxy_sim::reply::{Bounds, Reply};

/// vLLM's own limit (VLLM_MAX_N_SEQUENCES).
const CHOICES_MAX: i64 = 16_384;
/// Characters of a salt (0.32).
const SALT_MAX: usize = 128;
/// What vLLM gives completions that do not say.
const COMPLETION_TOKENS: i64 = 16;

/// One generation, ready for the engine.
pub(super) struct Ask {
    /// What the engine calls it.
    pub(super) id: String,
    /// What its answer names.
    pub(super) model: String,
    pub(super) stream: bool,
    /// Where it is made, if that is not on the client's connection.
    pub(super) background: Option<Rc<Background>>,
    pub(super) prompt_tokens: u32,
    pub(super) sequences: Vec<Sequence>,
    pub(super) pace: Pace,
    pub(super) fault: Ordered,
    /// After how many tokens of a stream the fault comes.
    pub(super) after: Option<u32>,
    pub(super) dialect: Box<dyn Dialect>,
}

/// How long a request wants its answer.
#[derive(Clone, Copy, Debug)]
struct Length {
    max: Option<i64>,
    min: i64,
    stops: bool,
}

impl Length {
    fn read(fields: &mut Fields<'_>, max: &[&str]) -> Self {
        // All of the names are checked; the first that is given counts.
        let given: Vec<_> = max.iter().filter_map(|name| fields.number(name)).collect();
        Self {
            max: given.first().copied(),
            min: fields.number("min_tokens").unwrap_or(0),
            stops: !fields.flag("ignore_eos"),
        }
    }

    fn bounds(self, mock: &Mock, natural: u32, prompt: &Prompt) -> Result<Bounds, Answer> {
        let room = mock.args.max_model_len;
        let refused = |message: String, param, value: i64| {
            let message = format!("{message} (parameter={param}, value={value})");
            Err(Answer::refused(&message, Some(param)))
        };
        if let Some(max) = self.max.filter(|max| *max > i64::from(room)) {
            let message = format!(
                "max_tokens={max} cannot be greater than max_model_len={room}. \
                 Please request fewer output tokens."
            );
            return refused(message, "max_tokens", max);
        }
        if prompt.tokens > room {
            // The tokenizer stops at one token too many, so vLLM never knows the real number.
            let least = i64::from(room) + 1;
            let message = format!(
                "This model's maximum context length is {room} tokens. However, your prompt \
                 contains at least {least} input tokens, which exceeds this limit even without any \
                 output tokens. Please reduce the length of the input prompt."
            );
            return refused(message, "input_tokens", least);
        }
        let left = i64::from(room - prompt.tokens);
        let max = self.max.map_or(left, |max| max.min(left));
        if max < 1 {
            let message = format!("max_tokens must be at least 1, got {max}.");
            return refused(message, "max_tokens", max);
        }
        let min = u32::try_from(self.min.max(0)).unwrap_or(u32::MAX);
        Ok(Bounds { natural, min, max: max as u32, stops: self.stops })
    }
}

/// `stream_options`, which need a stream.
struct StreamOptions {
    usage: bool,
    continuous: bool,
}

impl StreamOptions {
    fn read(fields: &Fields<'_>, stream: bool) -> Result<Self, Answer> {
        let Some(options) = fields.value("stream_options") else {
            return Ok(Self { usage: false, continuous: false });
        };
        if !stream {
            let message = "Stream options can only be defined when `stream=True`. \
                           (parameter=stream_options)";
            return Err(Answer::refused(message, Some("stream_options")));
        }
        let set = |name: &str| options.get(name).and_then(Value::as_bool).unwrap_or(false);
        let usage = set("include_usage");
        // vLLM tells how far a stream is only to those who want to know where it ends.
        Ok(Self { usage, continuous: usage && set("continuous_usage_stats") })
    }
}

fn choices(fields: &mut Fields<'_>) -> i64 {
    fields.number("n").unwrap_or(1)
}

fn check_choices(n: i64) -> Result<u32, Answer> {
    if n < 1 {
        return Err(Answer::refused(&format!("n must be at least 1, got {n}."), None));
    }
    if n > CHOICES_MAX {
        let message = format!("n must be at most {CHOICES_MAX}, got {n}.");
        return Err(Answer::refused(&message, None));
    }
    Ok(n as u32)
}

/// What vLLM keeps apart in its cache: a salt, if the request has one.
fn salt<'a>(fields: &Fields<'a>) -> Result<Option<&'a str>, Answer> {
    let Some(salt) = fields.value("cache_salt") else { return Ok(None) };
    let refused = |message| Err(Answer::refused(message, Some("cache_salt")));
    let Some(salt) = salt.as_str().filter(|salt| !salt.is_empty()) else {
        return refused(
            "Parameter 'cache_salt' must be a non-empty string if provided. \
             (parameter=cache_salt)",
        );
    };
    if salt.chars().count() > SALT_MAX || salt.contains(['@', '/', '\\', '\0']) {
        return refused(
            r"Parameter 'cache_salt' must be at most 128 characters and must not contain '@', '/', '\\', or NUL. (parameter=cache_salt)",
        );
    }
    Ok(Some(salt))
}

/// What the text of an answer depends on beside its prompt, and what its blocks do.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Own<'a> {
    pub(super) seed: Option<i64>,
    pub(super) salt: Option<&'a str>,
}

/// The sequences of one prompt: choices `first..first + n` of the request.
pub(super) fn sequences(
    mock: &Mock,
    model: &str,
    prompt: &Prompt,
    bounds: Bounds,
    own: Own<'_>,
    (first, n): (usize, u32),
) -> Vec<Sequence> {
    // A request without a seed is not the same as one with seed 0.
    let seed = own.seed.map_or(0, |seed| mix(seed as u64 ^ 1));
    let base = mix(mock.args.seed) ^ seed;
    let reply = |choice| Reply::new(&prompt.text, base.wrapping_add(choice + first as u64), bounds);
    let whose = mock.whose(model, own.salt);
    prompt.sequences((0..u64::from(n)).map(reply), whose).collect()
}

/// /v1/chat/completions
pub(super) fn chat(mock: &Mock, mut fields: Fields<'_>, id: String) -> Result<Ask, Answer> {
    fields.require("messages");
    let messages = fields.list("messages").unwrap_or_default();
    let model = fields.string("model");
    let length = Length::read(&mut fields, &["max_completion_tokens", "max_tokens"]);
    let n = choices(&mut fields);
    let seed = fields.number("seed");
    let stream = fields.flag("stream");
    fields.done()?;
    let options = StreamOptions::read(&fields, stream)?;
    let own = Own { seed, salt: salt(&fields)? };
    let model = mock.serves(model)?;
    let n = check_choices(n)?;
    let orders = Orders::read(mock, &fields)?;
    let prompt = conversation(&fields, None, messages)?;
    let bounds = length.bounds(mock, orders.natural, &prompt)?;
    let sequences = sequences(mock, &model, &prompt, bounds, own, (0, n));
    let id = format!("chatcmpl-{id}");
    let wording = Wording {
        id: id.clone(),
        created: created(),
        model: model.clone(),
        fingerprint: mock.fingerprint(),
        prompt: prompt.tokens,
        choices: n as usize,
        details: mock.args.prompt_tokens_details,
        usage: options.usage,
        continuous: options.continuous,
    };
    Ok(Ask {
        id,
        model,
        stream,
        background: None,
        prompt_tokens: prompt.tokens,
        sequences,
        pace: orders.pace,
        fault: orders.fault,
        after: orders.after,
        dialect: Box::new(Chat(wording)),
    })
}

/// /v1/completions
pub(super) fn completions(mock: &Mock, mut fields: Fields<'_>, id: String) -> Result<Ask, Answer> {
    let model = fields.string("model");
    let mut length = Length::read(&mut fields, &["max_tokens"]);
    length.max = length.max.or(Some(COMPLETION_TOKENS));
    let n = choices(&mut fields);
    let seed = fields.number("seed");
    let stream = fields.flag("stream");
    let echo = fields.flag("echo");
    fields.done()?;
    let options = StreamOptions::read(&fields, stream)?;
    let own = Own { seed, salt: salt(&fields)? };
    let prompts = prompts(fields.value("prompt"))?;
    let model = mock.serves(model)?;
    let n = check_choices(n)?;
    let orders = Orders::read(mock, &fields)?;
    let mut all = Vec::new();
    let mut echoes = Vec::new();
    for prompt in &prompts {
        let bounds = length.bounds(mock, orders.natural, prompt)?;
        let first = all.len();
        all.extend(sequences(mock, &model, prompt, bounds, own, (first, n)));
        if echo {
            echoes.extend((0..n).map(|_| prompt.text.clone()));
        }
    }
    let prompt_tokens =
        prompts.iter().fold(0, |sum: u32, prompt| sum.saturating_add(prompt.tokens));
    let id = format!("cmpl-{id}");
    let wording = Wording {
        id: id.clone(),
        created: created(),
        model: model.clone(),
        fingerprint: mock.fingerprint(),
        prompt: prompt_tokens,
        choices: all.len(),
        details: mock.args.prompt_tokens_details,
        usage: options.usage,
        continuous: options.continuous,
    };
    Ok(Ask {
        id,
        model,
        stream,
        background: None,
        prompt_tokens,
        sequences: all,
        pace: orders.pace,
        fault: orders.fault,
        after: orders.after,
        dialect: Box::new(Completion { wording, echo: echoes }),
    })
}

/// /v1/messages
pub(super) fn messages(mock: &Mock, mut fields: Fields<'_>, id: String) -> Result<Ask, Answer> {
    fields.require("model");
    let model = fields.string("model");
    fields.require("messages");
    let messages = fields.list("messages").unwrap_or_default();
    fields.require("max_tokens");
    let length = Length::read(&mut fields, &["max_tokens"]);
    let stream = fields.flag("stream");
    fields.done()?;
    let ask = || {
        let model = mock.serves(model)?;
        let orders = Orders::read(mock, &fields)?;
        let prompt = conversation(&fields, fields.value("system"), messages)?;
        let bounds = length.bounds(mock, orders.natural, &prompt)?;
        let id = format!("chatcmpl-{id}");
        Ok(Ask {
            id: id.clone(),
            model: model.clone(),
            stream,
            background: None,
            prompt_tokens: prompt.tokens,
            sequences: sequences(mock, &model, &prompt, bounds, Own::default(), (0, 1)),
            pace: orders.pace,
            fault: orders.fault,
            after: orders.after,
            dialect: Box::new(Messages {
                id,
                model,
                prompt: prompt.tokens,
                details: mock.args.prompt_tokens_details,
                finish: None,
            }),
        })
    };
    ask().map_err(Answer::anthropic)
}

/// The prompt of /v1/messages/count_tokens.
pub(super) fn counted(mock: &Mock, mut fields: Fields<'_>) -> Result<Prompt, Answer> {
    fields.require("model");
    let model = fields.string("model");
    fields.require("messages");
    let messages = fields.list("messages").unwrap_or_default();
    fields.done()?;
    mock.serves(model).map_err(Answer::anthropic)?;
    conversation(&fields, fields.value("system"), messages).map_err(Answer::anthropic)
}

/// The prompt of /tokenize.
pub(super) fn tokenized(mock: &Mock, mut fields: Fields<'_>) -> Result<Prompt, Answer> {
    if fields.value("prompt").is_none() {
        if fields.value("messages").is_none() {
            fields.require("prompt");
        }
        fields.require("messages");
    }
    let model = fields.string("model");
    let prompt = fields.string("prompt");
    let messages = fields.list("messages").unwrap_or_default();
    fields.done()?;
    mock.serves(model)?;
    match prompt {
        Some(prompt) => Ok(Prompt::of(prompt.to_owned())),
        None => conversation(&fields, None, messages),
    }
}

/// /v1/responses
pub(super) fn responses(mock: &Rc<Mock>, mut fields: Fields<'_>) -> Result<Ask, Answer> {
    fields.require("input");
    let model = fields.string("model");
    let instructions = fields.string("instructions");
    let previous = fields.string("previous_response_id");
    let own_id = fields.string("request_id");
    let length = Length::read(&mut fields, &["max_output_tokens"]);
    let stream = fields.flag("stream");
    let background = fields.flag("background");
    let store = fields.value("store").is_none() || fields.flag("store");
    if background && !store {
        let message = "background can only be used when `store` is true (parameter=background)";
        return Err(Answer::refused(message, Some("background")));
    }
    fields.done()?;
    let own = Own { seed: None, salt: salt(&fields)? };
    let model = mock.serves(model)?;
    if background && !mock.args.response_store {
        let message = "This vLLM engine does not support `store=True` and therefore does not \
                       support the background mode. To enable these features, set the environment \
                       variable `VLLM_ENABLE_RESPONSES_API_STORE=1` when launching the vLLM \
                       server.";
        return Err(Answer::error(400, "invalid_request_error", message, Some("background")));
    }
    let orders = Orders::read(mock, &fields)?;
    let mut text = match previous {
        None => String::new(),
        Some(id) => mock.responses.borrow().find(id)?.conversation.clone(),
    };
    let turns: &[Value] = match fields.value("input") {
        Some(Value::Array(items)) => items,
        Some(_) | None => &[],
    };
    if let Some(instructions) = instructions {
        turn(&mut text, "system", instructions);
    }
    if let Some(Value::String(input)) = fields.value("input") {
        turn(&mut text, "user", input);
    }
    text.push_str(&conversation_text(turns));
    text.push_str(ANSWER);
    let prompt = Prompt::of(text);
    let bounds = length.bounds(mock, orders.natural, &prompt)?;
    let json = |text: Option<&str>| text.map_or("null".to_owned(), super::answers::quote);
    let id = own_id.map_or_else(|| format!("resp_{}", mock.hex()), str::to_owned);
    let background = background.then(|| Background::new(stream));
    Ok(Ask {
        id: id.clone(),
        model: model.clone(),
        stream,
        background: background.clone(),
        prompt_tokens: prompt.tokens,
        sequences: sequences(mock, &model, &prompt, bounds, own, (0, 1)),
        pace: orders.pace,
        fault: orders.fault,
        after: orders.after,
        dialect: Box::new(Responses {
            id,
            item: format!("msg_{}", mock.hex()),
            created: created(),
            model,
            instructions: json(instructions),
            previous: json(previous),
            max_output_tokens: bounds.max,
            prompt: prompt.text,
            text: String::new(),
            finish: None,
            sequence: 0,
            background,
            store: store && mock.args.response_store,
            mock: Rc::clone(mock),
        }),
    })
}
