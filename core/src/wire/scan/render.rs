//! Writes the canonical text of a piece of a prompt: what of its JSON a chat template sees.
//!
//! Knows the fields of messages, of tools and of the parts of their content, of whichever API;
//! does not know where in a body they stand. Text is written as it is, between marks: bytes that
//! no UTF-8 has, so that no text can look like structure.

use super::text::{backslash, bracket_or_quote, escaped, quote_or_backslash, space_or_quote};
use super::value::{Members, Value, Word, space_end};
use crate::route::prompt::Chain;

/// Begins an object with fields: a message, a tool, a part that is not just text.
const ITEM: u8 = 0xff;
/// Begins a field; its number follows.
const FIELD: u8 = 0xfe;
/// Between the elements of a list.
const NEXT: u8 = 0xfd;
/// Begins JSON that is neither text nor a list of parts: without spaces, and of all escapes only
/// `\"` and `\\`.
const JSON: u8 = 0xfc;
/// The number of what stands for all fields without one.
const OTHERS: u8 = b'*';

/// Parts of parts of parts: a result of a tool in a message's content holds parts of its own.
/// What lies deeper is written as JSON. Each level looks at what lies in it once.
const LEVELS_MAX: u32 = 4;

/// The number of a field, in canonical order, which is about the order of templates: clients write
/// them in any other. `None` for those that are not listed.
fn field(name: &[u8]) -> Option<usize> {
    Some(match name {
        b"role" => ROLE,
        b"type" => TYPE,
        b"name" => 2,
        b"description" => 3,
        b"parameters" => 4,
        b"input_schema" => 5,
        b"function" => 6,
        b"tool_call_id" => 7,
        b"tool_use_id" => 8,
        b"call_id" => 9,
        b"reasoning" | b"reasoning_content" => REASONING,
        b"thinking" => 11,
        b"summary" => SUMMARY,
        b"content" => CONTENT,
        b"text" => TEXT,
        b"refusal" => 15,
        b"tool_calls" => 16,
        b"arguments" => 17,
        b"input" => 18,
        b"output" => OUTPUT,
        _ => return None,
    })
}
const FIELDS: usize = 20;
const ROLE: usize = 0;
const TYPE: usize = 1;
const REASONING: usize = 10;
const SUMMARY: usize = 12;
const CONTENT: usize = 13;
const TEXT: usize = 14;
const OUTPUT: usize = 19;

/// Fields that no template sees. Clients move or renew them from turn to turn.
fn is_ignored(name: &[u8]) -> bool {
    matches!(
        name,
        b"cache_control" | b"id" | b"status" | b"annotations" | b"citations" | b"logprobs"
    )
}

/// Types that say no more than the place where they stand.
const PLAIN_TYPES: [&[u8]; 4] = [b"text", b"input_text", b"output_text", b"message"];

/// No key or type above takes more than this in a body, were each character written as `\u0061`.
const WORD_BYTES_MAX: usize = 6 * 24;

/// vLLM 0.33 drops blocks of a system prompt that begin so: Claude Code tells what it bills by, and
/// that differs in each request.
const BILLING: &[u8] = b"x-anthropic-billing-header";

/// What a value at the top level may cost, in steps of up to 20 ns: elements, fields, escapes,
/// spaces and strings in JSON. A hundred thousand small messages, or 4 MiB of code, take less than
/// half of it. What comes when it is used up is hashed as it stands. So even a message that is made
/// to cost as much as it can takes some 40 ms, and the time of finding its values' ends once more.
const WORK_MAX: usize = 2 << 20;
/// What an element or a field costs.
const WORK_EACH: usize = 4;

/// Where the text of a section goes, and what it may still cost.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) chain: Chain,
    work: usize,
}

impl Writer {
    pub(super) const fn new() -> Self {
        Self { chain: Chain::new(), work: WORK_MAX }
    }

    const fn spend(&mut self, work: usize) {
        self.work = self.work.saturating_sub(work);
    }

    /// Whether the rest is taken as it stands.
    const fn is_done(&self) -> bool {
        self.work == 0 || self.chain.is_full()
    }
}

/// Where a list stands decides what its elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// At the top level: messages, tools, prompts. Of several prompts or conversations the first
    /// one counts: vLLM makes a request of each, and all go to one backend.
    Top,
    /// The same, and a plain string is what a user says.
    Input,
    /// The blocks of a system prompt.
    System,
    /// The parts of a content.
    Parts,
}

/// A list that may be written while it arrives.
#[derive(Debug)]
pub(super) struct List {
    place: Place,
    /// Everything before was written.
    at: usize,
    /// Whether an element was.
    begun: bool,
    /// Whether the rest does not count.
    ended: bool,
}

impl List {
    pub(super) const fn new(place: Place) -> Self {
        Self { place, at: 1, begun: false, ended: false }
    }

    /// Writes what was not written yet. `raw` is an array from its bracket to the end of an element
    /// or of the array.
    /// Where it is known, `last` says where that element begins, so that its end is not looked for.
    pub(super) fn write(&mut self, raw: &[u8], last: Option<usize>, level: u32, out: &mut Writer) {
        while !self.ended {
            if out.is_done() {
                out.chain.push(raw.get(self.at..).unwrap_or_default());
                self.at = raw.len();
                return;
            }
            let mut at = space_end(raw, self.at);
            if raw.get(at) == Some(&b',') {
                at = space_end(raw, at + 1);
            }
            self.at = at;
            let value = if last == Some(at) {
                Value::nested(raw.get(at..).unwrap_or_default()).map(|value| (value, raw.len()))
            } else {
                Value::at(raw, at)
            };
            let Some((value, end)) = value else { return };
            self.at = end;
            out.spend(WORK_EACH);
            if self.drops(value) {
                continue;
            }
            if self.begun {
                out.chain.mark([NEXT]);
            }
            self.begun = true;
            if let Value::Scalar(_) = value {
                self.at = bracket_or_quote(raw, at).unwrap_or(raw.len());
                let run = raw.get(at..self.at).unwrap_or_default();
                marked(Value::Scalar(without_last_comma(run)), out);
            } else {
                self.element(value, level, out);
            }
            self.ended = matches!(self.place, Place::Top | Place::Input)
                && matches!(value, Value::Text(_) | Value::Array(_));
        }
    }

    fn element(&self, value: Value<'_>, level: u32, out: &mut Writer) {
        match value {
            Value::Text(said) if self.place == Place::Input => user(said, out),
            Value::Object(raw) if level < LEVELS_MAX => item(raw, level, out),
            Value::Array(raw) if level < LEVELS_MAX => {
                Self::new(Place::Parts).write(raw, None, level + 1, out);
            }
            Value::Text(_) | Value::Object(_) | Value::Array(_) | Value::Scalar(_) => {
                marked(value, out);
            }
        }
    }

    fn drops(&self, value: Value<'_>) -> bool {
        let (Place::System, Value::Object(raw)) = (self.place, value) else { return false };
        let is_text = |key| field(Word::of(key, WORD_BYTES_MAX).as_bytes()) == Some(TEXT);
        let text = Members::of(raw).filter(|(key, _)| is_text(key)).last();
        let Some((_, Value::Text(text))) = text else { return false };
        begins(text, BILLING)
    }
}

/// Whether what a string says begins with this, which is ASCII.
fn begins(raw: &[u8], with: &[u8]) -> bool {
    let mut rest = raw;
    with.iter().all(|expected| {
        let (found, length) = match rest.first() {
            Some(b'\\') => {
                let (said, length) = escaped(rest);
                (Some(said.utf8[0]), length)
            }
            first => (first.copied(), 1),
        };
        rest = rest.get(length..).unwrap_or_default();
        found == Some(*expected)
    })
}

/// A list of numbers and words ends in the comma before the next element.
fn without_last_comma(run: &[u8]) -> &[u8] {
    let run = run.trim_ascii_end();
    run.strip_suffix(b",").unwrap_or(run)
}

/// Writes a value at the top level that is complete.
pub(super) fn value(place: Place, value: Value<'_>, out: &mut Writer) {
    match value {
        value if value.is_empty() => {}
        Value::Text(said) if place == Place::Input => user(said, out),
        Value::Object(raw) => item(raw, 0, out),
        Value::Array(raw) => List::new(place).write(raw, None, 0, out),
        Value::Text(_) | Value::Scalar(_) => marked(value, out),
    }
}

/// What stands for a value and its key where it changes the whole prompt.
pub(super) fn seed(key: &[u8], value: Value<'_>) -> u64 {
    let mut work = WORK_MAX;
    digest(key, value, &mut work)
}

/// What stands for a value and its key where its length says nothing: images, what is not listed.
fn digest(key: &[u8], value: Value<'_>, work: &mut usize) -> u64 {
    let mut out = Writer { chain: Chain::of_one(), work: *work };
    text(key, &mut out);
    out.chain.mark([NEXT]);
    marked(value, &mut out);
    *work = out.work;
    out.chain.total()
}

/// The message `{"role":"user","content":..}`.
fn user(said: &[u8], out: &mut Writer) {
    out.chain.mark([ITEM, FIELD, ROLE as u8]);
    out.chain.push(b"user");
    if !said.is_empty() {
        out.chain.mark([FIELD, CONTENT as u8]);
        text(said, out);
    }
}

/// A message, a tool or a part. One that holds nothing but text is written as that text.
fn item(raw: &[u8], level: u32, out: &mut Writer) {
    let mut fields = [None; FIELDS];
    // A bit for each of them.
    let mut present: u32 = 0;
    // A sum, so that their order makes no difference and none of them is kept.
    let mut others: u64 = 0;
    for (key, value) in Members::of(raw) {
        if out.work == 0 {
            break;
        }
        out.spend(WORK_EACH);
        let word = Word::of(key, WORD_BYTES_MAX);
        let name = word.as_bytes();
        if let Some(number) = field(name) {
            let counts = !(value.is_empty() || number == TYPE && is_plain_type(value));
            fields[number] = Some(value);
            present = present & !(1 << number) | u32::from(counts) << number;
        } else if !(value.is_empty() || is_ignored(name)) {
            others = others.wrapping_add(digest(key, value, &mut out.work));
        }
    }
    if let (true, Some(Value::Text(said))) = (present == 1 << TEXT && others == 0, fields[TEXT]) {
        return text(said, out);
    }
    out.chain.mark([ITEM]);
    while present != 0 {
        let number = present.trailing_zeros() as usize;
        present &= present - 1;
        let Some(value) = fields[number] else { continue };
        out.chain.mark([FIELD, number as u8]);
        match value {
            Value::Array(raw) if level < LEVELS_MAX && holds_parts(number) => {
                List::new(Place::Parts).write(raw, None, level + 1, out);
            }
            Value::Text(_) | Value::Object(_) | Value::Array(_) | Value::Scalar(_) => {
                marked(value, out);
            }
        }
    }
    if others != 0 {
        out.chain.mark([FIELD, OTHERS]);
        out.chain.mark(others.to_le_bytes());
    }
}

fn is_plain_type(value: Value<'_>) -> bool {
    let Value::Text(raw) = value else { return false };
    PLAIN_TYPES.contains(&Word::of(raw, WORD_BYTES_MAX).as_bytes())
}

/// `content`, and what else vLLM takes as a list of parts. Others are lists of anything.
const fn holds_parts(field: usize) -> bool {
    matches!(field, CONTENT | SUMMARY | REASONING | OUTPUT)
}

/// Text as it is, everything else as JSON.
fn marked(value: Value<'_>, out: &mut Writer) {
    if let Value::Text(said) = value {
        text(said, out);
    } else {
        out.chain.mark([JSON]);
        json(value.raw(), out);
    }
}

/// What a string says: straight from the body where nothing is escaped.
fn text(raw: &[u8], out: &mut Writer) {
    let mut rest = raw;
    while !out.is_done() {
        let Some(at) = backslash(rest) else { break };
        out.spend(1);
        out.chain.push_head(rest, at);
        let escape = rest.get(at..).unwrap_or_default();
        let (said, length) = escaped(escape);
        out.chain.push_head(&said.utf8, said.len);
        rest = escape.get(length..).unwrap_or_default();
    }
    out.chain.push(rest);
}

/// JSON in canonical form: straight from the body, if it is in that form.
fn json(raw: &[u8], out: &mut Writer) {
    let (mut from, mut at) = (0, 0);
    while !out.is_done() {
        at = space_or_quote(raw, at);
        match raw.get(at) {
            Some(b'"') => (from, at) = json_text(raw, from, at + 1, out),
            Some(_) => {
                out.spend(1);
                out.chain.push_head(raw.get(from..).unwrap_or_default(), at - from);
                at = space_end(raw, at + 1);
                from = at;
            }
            None => break,
        }
    }
    out.chain.push(raw.get(from..).unwrap_or_default());
}

/// The rest of a string. Takes and gives from where on it was not written, and where it is read.
fn json_text(raw: &[u8], from: usize, at: usize, out: &mut Writer) -> (usize, usize) {
    let (mut from, mut at) = (from, at);
    while !out.is_done() {
        let Some(stop) = quote_or_backslash(raw, at) else { break };
        out.spend(1);
        match raw.get(stop..stop + 2) {
            Some([b'\\', b'"' | b'\\']) => at = stop + 2,
            Some([b'\\', _]) => {
                out.chain.push_head(raw.get(from..).unwrap_or_default(), stop - from);
                let (said, length) = escaped(raw.get(stop..).unwrap_or_default());
                if let b'"' | b'\\' = said.utf8[0] {
                    out.chain.push(b"\\");
                }
                out.chain.push_head(&said.utf8, said.len);
                at = stop + length;
                from = at;
            }
            _ => return (from, stop + 1),
        }
    }
    (from, raw.len())
}
