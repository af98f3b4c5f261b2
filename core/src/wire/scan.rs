//! Finds what routing needs in a JSON body, in one pass, without building a tree.
//!
//! Knows the names of a few top-level keys; does not know routes, nor what a valid request is. It
//! is no validator: of valid JSON it finds exactly what vLLM finds there (0.32 reads a body with
//! Python's `json.loads`), of broken JSON what stands before the fault. Such a request goes to
//! a backend, whose own error is the right answer. JSON in UTF-16 or UTF-32, which Python accepts,
//! names no model here.

mod prompt;
mod render;
mod text;
mod value;

#[cfg(test)]
mod tests;

use self::prompt::{Part, Prompt};
use self::text::{bracket_or_quote, closing_quote, unescape};
use self::value::Value;
use crate::route::Fingerprint;
use alloc::string::String;

/// Names that take more bytes than this in the body are passed over: no backend serves them, and
/// the default model's says so in vLLM's words. What we keep of a body stays bounded.
pub(super) const MODEL_BYTES_MAX: usize = 64 * 1024;

/// The same for other names: whoever gives them out makes them shorter.
const NAME_BYTES_MAX: usize = 4 * 1024;

/// The keys that hold a prompt, on any route, and of which the values are text or token ids. What
/// is base64 throughout (`images`, `prompt_embeds`) says nothing about tokens by its length.
const PROMPT_KEYS: [&[u8]; 23] = [
    b"messages",
    b"prompt",
    b"input",
    b"instructions",
    b"system",
    b"tools",
    b"documents",
    b"query",
    b"queries",
    b"items",
    b"text_1",
    b"text_2",
    b"data_1",
    b"data_2",
    b"data",
    b"texts",
    b"inputs",
    b"token_ids",
    b"tokens",
    b"suffix",
    b"previous_input_messages",
    b"state",
    b"questions",
];

/// No key above takes more than this in a body, were each character written as `\u0061`.
const KEY_BYTES_MAX: usize = 6 * 24;

/// What was found. Of a key that occurs twice the last one counts, as in Python.
#[derive(Debug, Default, PartialEq, Eq, Clone)]
pub struct Scan {
    /// The model named; `None` where vLLM would see none, or nothing it accepts as a name.
    pub model: Option<String>,
    /// Whether the answer is to come as events.
    pub stream: bool,
    /// Length in the body of what makes up the prompt, without the quotes of a plain string. Here
    /// a key that occurs twice counts twice.
    pub prompt_bytes: u64,
    /// Whether it must not be sent twice: it names another backend's state (`kv_transfer_params`)
    /// or outlives its connection (`background`).
    pub pinned: bool,
    /// The response that is to be continued: whoever made it holds its history.
    pub previous_response_id: Option<String>,
    /// The adapter that is to be loaded or unloaded.
    pub lora_name: Option<String>,
    /// The prompt, and what else decides what a backend may have cached of it.
    pub fingerprint: Fingerprint,
}

/// Scans a body that is all there.
pub fn scan(body: &[u8]) -> Scan {
    Scanner::new().finish(body)
}

/// Scans a body while it arrives. It keeps positions, not bytes: however the body is cut, a byte
/// is looked at once, and a few times more if it belongs to a key or to what the fingerprint tells:
/// that part is read again as soon as the message or the value that it is part of is complete.
#[derive(Debug, Default)]
pub struct Scanner {
    found: Scan,
    /// The two reasons of [`Scan::pinned`]: each key's last value decides over its own.
    kv_transfer: bool,
    background: bool,
    state: State,
    /// Everything before was looked at.
    at: usize,
    /// Where the key or the value in hand begins, behind the quote of a string.
    start: usize,
    /// The key of the value in hand, and what the value is to the prompt.
    key: Key,
    part: Option<Part>,
    prompt: Prompt,
    /// Whether nobody wants to know what prompts have in common.
    plain: bool,
    /// Where the last bracket within the value's own stands.
    element: usize,
    /// Open brackets within the value. At most one a byte, so that it cannot overflow.
    depth: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Before the first byte.
    #[default]
    Begin,
    /// The object is due.
    Object,
    /// A key is due.
    Key,
    /// Inside a key.
    KeyText,
    /// The colon is due.
    Colon,
    /// A value is due.
    Value,
    /// Inside a value that is a string.
    Text,
    /// Inside a value that is a number or a word.
    Scalar,
    /// Inside a value that is an array or object, outside its strings.
    Nested,
    /// Inside a string inside such a value.
    NestedText,
    /// A comma is due, or the end of the object.
    Comma,
    /// Behind the object, or the JSON is broken: nothing more is looked at.
    Done,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Key {
    Model,
    Stream,
    Prompt,
    KvTransferParams,
    Background,
    PreviousResponseId,
    LoraName,
    #[default]
    Other,
}

impl Scanner {
    /// At the beginning of a body.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same, without a fingerprint, which takes as long as everything else.
    pub fn plain() -> Self {
        Self { plain: true, ..Self::default() }
    }

    /// Goes on where the last call stopped. `body` is the whole body so far, and only ever grows.
    pub fn feed(&mut self, body: &[u8]) {
        while self.step(body) {}
    }

    /// The whole body is there.
    pub fn finish(mut self, body: &[u8]) -> Scan {
        self.feed(body);
        self.found.pinned = self.kv_transfer || self.background;
        if !self.plain {
            self.found.fingerprint = self.prompt.finish();
        }
        self.found
    }

    /// One token, or the rest of one; false where that takes more bytes, or none.
    fn step(&mut self, body: &[u8]) -> bool {
        match self.state {
            State::Begin => self.begin(body),
            State::Object | State::Key | State::Colon | State::Value | State::Comma => {
                self.punctuation(body)
            }
            State::KeyText | State::Text => self.text(body),
            State::Scalar => self.scalar(body),
            State::Nested | State::NestedText => self.nested(body),
            State::Done => false,
        }
    }

    /// Python strips one byte order mark in front of everything.
    fn begin(&mut self, body: &[u8]) -> bool {
        const MARK: &[u8] = b"\xef\xbb\xbf";
        if body.len() < MARK.len() && MARK.starts_with(body) {
            return false;
        }
        self.at = if body.starts_with(MARK) { MARK.len() } else { 0 };
        self.state = State::Object;
        true
    }

    fn punctuation(&mut self, body: &[u8]) -> bool {
        let rest = body.get(self.at..).unwrap_or_default();
        let space = rest.iter().take_while(|byte| b" \t\n\r".contains(byte)).count();
        self.at += space;
        let Some(&byte) = rest.get(space) else { return false };
        // Scalars and nested values begin with this byte, strings behind it.
        self.start = self.at;
        self.at += 1;
        self.state = match (self.state, byte) {
            (State::Object, b'{') | (State::Comma, b',') => State::Key,
            (State::Colon, b':') => State::Value,
            (State::Key, b'"') => {
                self.start = self.at;
                State::KeyText
            }
            (State::Value, b'"') => {
                self.start = self.at;
                State::Text
            }
            (State::Value, b'{' | b'[') => {
                self.depth = 1;
                State::Nested
            }
            (State::Value, b'-' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z') => State::Scalar,
            _ => State::Done,
        };
        true
    }

    fn text(&mut self, body: &[u8]) -> bool {
        let Some(end) = closing_quote(body, self.at) else {
            self.at = body.len();
            return false;
        };
        self.at = end + 1;
        let raw = body.get(self.start..end).unwrap_or_default();
        if self.state == State::KeyText {
            (self.key, self.part) = key(raw);
            self.part = self.part.filter(|_| !self.plain);
            self.state = State::Colon;
        } else {
            self.value(raw);
        }
        true
    }

    fn scalar(&mut self, body: &[u8]) -> bool {
        let rest = body.get(self.at..).unwrap_or_default();
        let inside = |byte: &&u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
        let length = rest.iter().take_while(inside).count();
        self.at += length;
        if length == rest.len() {
            return false;
        }
        self.value(body.get(self.start..self.at).unwrap_or_default());
        true
    }

    fn nested(&mut self, body: &[u8]) -> bool {
        let mut at = self.at;
        loop {
            if self.state == State::NestedText {
                let Some(end) = closing_quote(body, at) else { break };
                at = end + 1;
                self.state = State::Nested;
            }
            let Some(next) = bracket_or_quote(body, at) else { break };
            at = next + 1;
            match body.get(next) {
                Some(b'"') => self.state = State::NestedText,
                Some(b'{' | b'[') => {
                    self.depth += 1;
                    if self.depth == 2 {
                        self.element = next;
                    }
                }
                _ => {
                    self.depth -= 1;
                    let raw = body.get(self.start..at).unwrap_or_default();
                    if self.depth == 0 {
                        self.at = at;
                        self.value(raw);
                        return true;
                    }
                    if let (1, Some(part)) = (self.depth, self.part) {
                        self.prompt.arrives(part, raw, self.element - self.start);
                    }
                }
            }
        }
        self.at = body.len();
        false
    }

    /// The value in hand ended.
    fn value(&mut self, raw: &[u8]) {
        if let Some(part) = self.part {
            let value = match (self.state, raw.first()) {
                (State::Text, _) => Value::Text(raw),
                (_, Some(b'[')) => Value::Array(raw),
                (_, Some(b'{')) => Value::Object(raw),
                _ => Value::Scalar(raw),
            };
            self.prompt.value(part, value);
        }
        let text = self.state == State::Text;
        let scalar = |word: &[u8]| self.state == State::Scalar && raw == word;
        let name = |bytes_max| if text { name(raw, bytes_max) } else { None };
        match self.key {
            Key::Model => self.found.model = name(MODEL_BYTES_MAX),
            Key::PreviousResponseId => self.found.previous_response_id = name(NAME_BYTES_MAX),
            Key::LoraName => self.found.lora_name = name(NAME_BYTES_MAX),
            Key::Stream => self.found.stream = scalar(b"true"),
            Key::Prompt if self.state == State::Scalar => {}
            Key::Prompt => self.found.prompt_bytes += raw.len() as u64,
            Key::KvTransferParams => self.kv_transfer = !scalar(b"null"),
            // vLLM takes 1, "yes" and more for true: whatever does not plainly say no, says yes.
            Key::Background => self.background = !(scalar(b"false") || scalar(b"null")),
            Key::Other => {}
        }
        self.state = State::Comma;
    }
}

/// What a key names, and what it is to the prompt.
fn key(raw: &[u8]) -> (Key, Option<Part>) {
    let named = |name: &[u8]| (Key::named(name), Part::named(name));
    if !raw.contains(&b'\\') {
        return named(raw);
    }
    if raw.len() > KEY_BYTES_MAX {
        return (Key::Other, None);
    }
    unescape(raw).map_or((Key::Other, None), |name| named(name.as_bytes()))
}

impl Key {
    fn named(name: &[u8]) -> Self {
        match name {
            b"model" => Self::Model,
            b"stream" => Self::Stream,
            b"kv_transfer_params" => Self::KvTransferParams,
            b"background" => Self::Background,
            b"previous_response_id" => Self::PreviousResponseId,
            b"lora_name" => Self::LoraName,
            name if PROMPT_KEYS.contains(&name) => Self::Prompt,
            _ => Self::Other,
        }
    }
}

fn name(raw: &[u8], bytes_max: usize) -> Option<String> {
    if raw.len() > bytes_max {
        return None;
    }
    unescape(raw).filter(|name| !name.is_empty())
}
