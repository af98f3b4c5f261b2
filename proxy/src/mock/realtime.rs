//! The websocket /v1/realtime: events in, words out. Wording and order are those of 0.32.
//!
//! The simulated model says one word for each piece of audio that it hears.

use super::answers::{created, quote};
use super::dialect::Trouble;
use super::machine::Sequence;
use super::state::Mock;
use super::wire::Wire;
use async_tungstenite::WebSocketStream;
use async_tungstenite::tungstenite::error::CapacityError;
use async_tungstenite::tungstenite::protocol::CloseFrame;
use async_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use async_tungstenite::tungstenite::{Bytes, Error, Message};
use serde_json::Value;
use smol::Timer;
use smol::channel::{Receiver, Sender, unbounded};
use smol::future::{FutureExt, pending};
use smol::stream::StreamExt;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;
use vllm_proxy_core::rng::mix;
use vllm_proxy_sim::reply::{Bounds, Reply};

/// How often uvicorn asks whether its client is still there.
const PING_EVERY: Duration = Duration::from_secs(20);

/// Samples of audio that count as one token: 80 ms.
const TOKEN_SAMPLES: u32 = 1_280;

/// What may happen next.
enum Next {
    Heard(Option<Result<Message, Error>>),
    Said(String),
    Transcribed,
    Ping,
}

/// Samples of one piece, or `None` for the end of the audio.
type Audio = Option<u32>;

struct Session {
    mock: Rc<Mock>,
    audio: (Sender<Audio>, Receiver<Audio>),
    events: Sender<String>,
    /// Whether a model was named that is served.
    validated: bool,
    generation: Option<Pin<Box<dyn Future<Output = ()>>>>,
    /// Generations begun.
    generations: u64,
}

/// Speaks until the client closes, or the connection ends.
pub(super) async fn serve(mock: &Rc<Mock>, mut socket: WebSocketStream<Wire>) {
    let (events, said) = unbounded();
    let mut session = Session {
        mock: Rc::clone(mock),
        audio: unbounded(),
        events,
        validated: false,
        generation: None,
        generations: 0,
    };
    session.say(format!(
        r#"{{"type":"session.created","id":"sess-{}","created":{}}}"#,
        mock.hex(),
        created()
    ));
    let mut ping = Timer::interval(PING_EVERY);
    loop {
        // What was said leaves before more is heard, so that answers keep their order.
        let said = async { said.recv().await.map_or(Next::Transcribed, Next::Said) };
        let heard = async { Next::Heard(socket.next().await) };
        let transcribed = async {
            match &mut session.generation {
                Some(generation) => generation.await,
                None => pending().await,
            }
            Next::Transcribed
        };
        let pinged = async {
            ping.next().await;
            Next::Ping
        };
        let sent = match said.or(heard).or(transcribed).or(pinged).await {
            Next::Said(event) => socket.send(Message::text(event)).await,
            Next::Ping => socket.send(Message::Ping(Bytes::new())).await,
            Next::Transcribed => {
                session.generation = None;
                Ok(())
            }
            Next::Heard(Some(Ok(Message::Text(text)))) => {
                session.handle(&text);
                Ok(())
            }
            // tungstenite answers pings by itself, when it is next asked for a message.
            Next::Heard(Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)))) => {
                Ok(())
            }
            Next::Heard(Some(Ok(Message::Close(_)))) => {
                // It has been answered; reading on sends that and ends.
                while let Some(Ok(_)) = socket.next().await {}
                return;
            }
            Next::Heard(Some(Err(Error::Capacity(CapacityError::MessageTooLong { .. })))) => {
                let reason = "frame exceeds limit of 16777216 bytes".into();
                let close = CloseFrame { code: CloseCode::Size, reason };
                let _ = socket.close(Some(close)).await;
                return;
            }
            // vLLM reads no binary messages: its handler fails, and the connection just ends.
            Next::Heard(Some(Ok(Message::Binary(_)) | Err(_)) | None) => return,
        };
        if sent.is_err() {
            return;
        }
    }
}

impl Session {
    fn say(&self, event: String) {
        // Whoever sends it outlives this.
        let _ = self.events.try_send(event);
    }

    fn complain(&self, message: &str, code: &str) {
        self.say(error(message, code));
    }

    /// What vLLM's loop does with one message.
    fn handle(&mut self, text: &str) {
        let event = match serde_json::from_str::<Value>(text) {
            Ok(Value::Object(event)) => event,
            Ok(other) => {
                let message = format!("'{}' object has no attribute 'get'", python_type(&other));
                return self.complain(&message, "processing_error");
            }
            Err(_) => return self.complain("Invalid JSON", "invalid_json"),
        };
        match event.get("type").and_then(Value::as_str) {
            Some("session.update") => match event.get("model") {
                None | Some(Value::Null) => {
                    self.complain("Missing required field: model", "invalid_event");
                }
                Some(model) => {
                    let name = model.as_str().map_or_else(|| model.to_string(), str::to_owned);
                    // No adapters here, and the empty name is the default model's.
                    if name.is_empty() || self.mock.is_base_model(&name) {
                        self.validated = true;
                    } else {
                        let message = format!("The model `{name}` does not exist.");
                        self.complain(&message, "model_not_found");
                    }
                }
            },
            Some("input_audio_buffer.append") => match event.get("audio") {
                Some(Value::String(audio)) => match samples(audio) {
                    Some(samples) => {
                        let _ = self.audio.0.try_send(Some(samples));
                    }
                    None => self.complain("Invalid audio data", "invalid_audio"),
                },
                audio => self.complain(&wrong_audio(audio, &event), "processing_error"),
            },
            Some("input_audio_buffer.commit") => self.commit(event.get("final")),
            Some(other) => {
                self.complain(&format!("Unknown event type: {other}"), "unknown_event");
            }
            None => self.complain("Unknown event type: None", "unknown_event"),
        }
    }

    fn commit(&mut self, last: Option<&Value>) {
        if !self.validated {
            let message = "Model not validated. Make sure to validate the model by sending a \
                           session.update event.";
            return self.complain(message, "model_not_validated");
        }
        match last {
            Some(Value::Bool(true)) => {
                let _ = self.audio.0.try_send(None);
            }
            None | Some(Value::Bool(false)) if self.generation.is_none() => {
                self.generations += 1;
                let words = mix(self.mock.args.seed ^ self.generations);
                self.generation = Some(Box::pin(transcribe(
                    Rc::clone(&self.mock),
                    words,
                    self.audio.1.clone(),
                    self.events.clone(),
                )));
            }
            // It is heard already.
            None | Some(Value::Bool(false)) => {}
            Some(other) => {
                let message = format!(
                    "1 validation error for InputAudioBufferCommit\nfinal\n  Input should be a \
                     valid boolean, unable to interpret input [type=bool_parsing, input_value={}, \
                     input_type={}]\n    For further information visit \
                     https://errors.pydantic.dev/2.14/v/bool_parsing",
                    python(other),
                    python_type(other)
                );
                self.complain(&message, "processing_error");
            }
        }
    }
}

/// Says a word for each piece of audio until its end, and then all of them once more.
async fn transcribe(mock: Rc<Mock>, words: u64, audio: Receiver<Audio>, events: Sender<String>) {
    let id = format!("rt-ws-{words:016x}");
    let (mut text, mut prompt, mut completion) = (String::new(), 0, 0);
    while let Ok(Some(samples)) = audio.recv().await {
        if mock.power.refuses() {
            let _ = events.try_send(error(Trouble::PAUSED.message, "processing_error"));
            return;
        }
        let tokens = samples.div_ceil(TOKEN_SAMPLES);
        if completion == 0 {
            prompt = tokens;
        }
        let bounds = Bounds { natural: 1, min: 0, max: 1, stops: true };
        let reply = Reply::new("", words.wrapping_add(completion), bounds);
        let piece = Sequence { reply, prompt: tokens, blocks: Rc::default(), answer: Vec::new() };
        let mut run = mock.engine.admit(&id, tokens, vec![piece], mock.args.pace());
        while let Some(token) = run.next().await {
            let space = if text.is_empty() { "" } else { " " };
            let delta = format!("{space}{}", token.text);
            text.push_str(&delta);
            let delta = quote(&delta);
            let _ = events.try_send(format!(r#"{{"type":"transcription.delta","delta":{delta}}}"#));
            completion += 1;
        }
    }
    let (text, total) = (quote(&text), u64::from(prompt) + completion);
    let _ = events.try_send(format!(
        r#"{{"type":"transcription.done","text":{text},"usage":{{"prompt_tokens":{prompt},"total_tokens":{total},"completion_tokens":{completion},"prompt_tokens_details":null,"completion_tokens_details":null}}}}"#
    ));
    while audio.try_recv().is_ok() {}
}

fn error(message: &str, code: &str) -> String {
    format!(r#"{{"type":"error","error":{},"code":"{code}"}}"#, quote(message))
}

/// How many 16-bit samples base64 text holds; Python's decoder skips what is not of its alphabet.
fn samples(text: &str) -> Option<u32> {
    let digits = text.bytes().filter(|byte| byte.is_ascii_alphanumeric() || b"+/".contains(byte));
    let digits = digits.count();
    let padding = text.bytes().filter(|byte| *byte == b'=').count();
    let whole = match digits % 4 {
        0 => true,
        2 => padding >= 2,
        3 => padding >= 1,
        _ => false,
    };
    let bytes = digits * 6 / 8;
    (whole && bytes > 0 && bytes % 2 == 0).then_some((bytes / 2) as u32)
}

fn wrong_audio(audio: Option<&Value>, event: &serde_json::Map<String, Value>) -> String {
    let (kind, what, input, of) = match audio {
        None => {
            let event = Value::Object(event.clone());
            ("missing", "Field required", python(&event), "dict")
        }
        Some(audio) => {
            let what = "Input should be a valid string";
            ("string_type", what, python(audio), python_type(audio))
        }
    };
    format!(
        "1 validation error for InputAudioBufferAppend\naudio\n  {what} [type={kind}, \
         input_value={input}, input_type={of}]\n    For further information visit \
         https://errors.pydantic.dev/2.14/v/{kind}"
    )
}

fn python_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "NoneType",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float",
        Value::Number(_) => "int",
        Value::String(_) => "str",
        Value::Array(_) => "list",
        Value::Object(_) => "dict",
    }
}

/// A value as Python shows it: near enough for short ones.
fn python(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => format!("'{text}'"),
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(python).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Object(fields) => {
            let fields: Vec<_> =
                fields.iter().map(|(name, value)| format!("'{name}': {}", python(value))).collect();
            format!("{{{}}}", fields.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::one("AAA=", Some(1))]
    #[case::two("AAAAAA==", Some(2))]
    #[case::odd("AAAA", None)]
    #[case::empty("", None)]
    #[case::nothing_of_the_alphabet("@@", None)]
    #[case::cut("AAAAA", None)]
    #[case::without_padding("AAA", None)]
    fn audio_is_counted_in_samples(#[case] text: &str, #[case] expected: Option<u32>) {
        assert_eq!(samples(text), expected);
    }
}
