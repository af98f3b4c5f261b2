//! Finds what routing needs in a `multipart/form-data` body, without keeping its parts.
//!
//! The twin of [`scan`](super::scan) for audio, where the model may stand behind a file of 25 MB.
//! Knows the names of a few fields; does not know routes, nor what a valid request is. It reads as
//! vLLM's form parser does (0.32: Starlette on python-multipart 0.0.34, stricter and laxer than RFC
//! 7578 in places): of a form that is well formed to it the same is found, of any other what stands
//! before the fault. Such a request goes to a backend, whose own error is the right answer.

mod parameters;

#[cfg(test)]
mod tests;

use self::parameters::parameters;
use super::scan::{MODEL_BYTES_MAX, Scan};
use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;
use memchr::{memchr, memmem, memrchr};

/// python-multipart refuses longer ones. RFC 2046 allows 70.
const BOUNDARY_BYTES_MAX: usize = 256;

/// More in one part are refused by python-multipart, too.
const HEADERS_MAX: u8 = 8;

/// One header without its line end; longer ones are refused by python-multipart, too.
const HEADER_BYTES_MAX: usize = 4096 + 128;

/// What a `Content-Type` says about how to read a form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boundary {
    /// What ends a part: a line end, two hyphens, the boundary.
    delimiter: Vec<u8>,
    /// Whether text is UTF-8. Of other charsets only ASCII is understood here.
    utf8: bool,
}

/// The boundary that a `Content-Type` names; `None` where it is of another type or names none.
pub fn boundary(content_type: &[u8]) -> Option<Boundary> {
    let (kind, parameters) = parameters(content_type);
    if !kind.eq_ignore_ascii_case(b"multipart/form-data") {
        return None;
    }
    let mut boundary = None;
    let mut utf8 = true;
    for (key, value) in parameters {
        match &*key {
            b"boundary" => boundary = Some(value),
            b"charset" => {
                // Spelled as Python knows it.
                let name = value.to_ascii_lowercase();
                utf8 = matches!(&*name, b"utf-8" | b"utf_8" | b"utf8");
            }
            _ => {}
        }
    }
    let boundary = boundary.filter(|boundary| boundary.len() <= BOUNDARY_BYTES_MAX)?;
    // No head holds one; the search for a delimiter relies on it.
    if boundary.contains(&b'\r') {
        return None;
    }
    Some(Boundary { delimiter: [b"\r\n--", &*boundary].concat(), utf8 })
}

/// Scans a form while it arrives. It keeps positions, not bytes: however the body is cut, a byte is
/// looked at about once, and once more if it belongs to a header or to a field that counts.
#[derive(Debug)]
pub struct FormScanner {
    boundary: Boundary,
    found: Scan,
    state: State,
    /// Everything before was looked at.
    at: usize,
    /// Where the header or the content in hand begins.
    start: usize,
    /// Headers of the part in hand.
    headers: u8,
    /// The part in hand; `None` until a header names it.
    part: Option<Part>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Before the first byte.
    Begin,
    /// In what may stand before the first boundary.
    Preamble,
    /// The first boundary is due.
    First,
    /// Inside a header, or where one is due.
    Header,
    /// Inside a part's content.
    Content,
    /// Behind a boundary, in the spaces before its line end; the content ended at `end`.
    Padding { end: usize },
    /// Behind the last boundary, or the form is broken: nothing more is looked at.
    Done,
}

#[derive(Clone, Copy, Debug)]
struct Part {
    field: Field,
    /// Whether it is a file: it has a filename, be it empty.
    file: bool,
}

#[derive(Clone, Copy, Debug)]
enum Field {
    Model,
    Stream,
    Prompt,
    Other,
}

impl FormScanner {
    /// At the beginning of a body.
    pub fn new(boundary: Boundary) -> Self {
        Self {
            boundary,
            found: Scan::default(),
            state: State::Begin,
            at: 0,
            start: 0,
            headers: 0,
            part: None,
        }
    }

    /// Goes on where the last call stopped. `body` is the whole body so far, and only ever grows.
    pub fn feed(&mut self, body: &[u8]) {
        while let Some(next) = self.step(body) {
            self.state = next;
        }
    }

    /// The whole body is there. A part that no boundary ends does not count.
    pub fn finish(mut self, body: &[u8]) -> Scan {
        self.feed(body);
        self.found
    }

    /// One token, or the rest of one, and what is due then; `None` where that takes more bytes.
    fn step(&mut self, body: &[u8]) -> Option<State> {
        match self.state {
            State::Begin => Some(match body.first()? {
                b'\r' | b'\n' => State::Preamble,
                _ => State::First,
            }),
            State::Preamble => {
                let rest = body.get(self.at..)?;
                let hyphen = memchr(b'-', rest);
                self.at += hyphen.unwrap_or(rest.len());
                hyphen.map(|_| State::First)
            }
            State::First => self.first(body),
            State::Header => self.header(body),
            State::Content => self.content(body),
            State::Padding { end } => {
                let rest = body.get(self.at..)?;
                let padding = rest.iter().take_while(|byte| b" \t".contains(byte)).count();
                self.at += padding;
                match rest.get(padding..)? {
                    [b'\r', b'\n', ..] => Some(self.next_part(body, end, 2)),
                    [] | [b'\r'] => None,
                    _ => Some(State::Done),
                }
            }
            State::Done => None,
        }
    }

    /// Nothing but a line end may follow the first boundary, unless it is the last one.
    fn first(&mut self, body: &[u8]) -> Option<State> {
        let rest = body.get(self.at..)?;
        let boundary = self.boundary.delimiter.get(2..)?;
        let common = boundary.len().min(rest.len());
        if boundary.get(..common) != rest.get(..common) {
            return Some(State::Done);
        }
        match rest.get(boundary.len()..)? {
            [b'\r', b'\n', ..] => {
                self.at += boundary.len();
                Some(self.begin_part(2))
            }
            [] | [b'\r'] => None,
            _ => Some(State::Done),
        }
    }

    /// The part whose content ends here is complete. The next one begins behind the line end, which
    /// is `behind` bytes after what was looked at.
    fn next_part(&mut self, body: &[u8], end: usize, behind: usize) -> State {
        self.end_part(body.get(self.start..end).unwrap_or_default());
        self.begin_part(behind)
    }

    fn begin_part(&mut self, behind: usize) -> State {
        self.at += behind;
        self.start = self.at;
        (self.headers, self.part) = (0, None);
        State::Header
    }

    fn header(&mut self, body: &[u8]) -> Option<State> {
        let rest = body.get(self.at..)?;
        let line_end = memchr(b'\r', rest).map(|offset| self.at + offset);
        let end = line_end.unwrap_or(body.len());
        self.at = end;
        if end - self.start > HEADER_BYTES_MAX {
            return Some(State::Done);
        }
        match body.get(line_end?..)? {
            [_, b'\n', ..] => self.at += 2,
            [_] => return None,
            _ => return Some(State::Done),
        }
        let line = body.get(self.start..end)?;
        self.start = self.at;
        if line.is_empty() {
            // A part without a name makes the form a broken one.
            return Some(if self.part.is_some() { State::Content } else { State::Done });
        }
        self.headers += 1;
        let Some((name, value)) = header(line) else { return Some(State::Done) };
        if self.headers > HEADERS_MAX {
            return Some(State::Done);
        }
        if name.eq_ignore_ascii_case(b"content-disposition") {
            self.part = Part::of(value);
        }
        Some(State::Header)
    }

    fn content(&mut self, body: &[u8]) -> Option<State> {
        loop {
            let delimiter = &*self.boundary.delimiter;
            let rest = body.get(self.at..)?;
            let Some(offset) = memmem::find(rest, delimiter) else {
                // It may have begun. A delimiter has one CR, at its front.
                let tail = rest.len().saturating_sub(delimiter.len() - 1);
                let begun = memrchr(b'\r', rest.get(tail..)?)
                    .map(|offset| tail + offset)
                    .filter(|&from| rest.get(from..).is_some_and(|end| delimiter.starts_with(end)));
                self.at += begun.unwrap_or(rest.len());
                return None;
            };
            let end = self.at + offset;
            self.at = end;
            let length = delimiter.len();
            match body.get(end + length..)? {
                [b'\r', b'\n', ..] => return Some(self.next_part(body, end, length + 2)),
                [b'-', b'-', ..] => {
                    self.end_part(body.get(self.start..end)?);
                    return Some(State::Done);
                }
                [] | [b'\r' | b'-'] => return None,
                [b' ' | b'\t', ..] => {
                    self.at += length;
                    return Some(State::Padding { end });
                }
                // A longer line that begins like the boundary belongs to the part.
                _ => self.at += length,
            }
        }
    }

    /// The content of the part in hand is all there.
    fn end_part(&mut self, content: &[u8]) {
        let Some(part) = self.part else { return };
        let text = if part.file { None } else { Some(content) };
        match part.field {
            Field::Model => self.found.model = text.and_then(|text| self.boundary.name(text)),
            Field::Stream => self.found.stream = text.is_some_and(is_true),
            Field::Prompt => self.found.prompt_bytes += text.map_or(0, |text| text.len() as u64),
            Field::Other => {}
        }
    }
}

impl Boundary {
    /// A field's text, of which nothing is stripped. What is no UTF-8 is read as Latin-1.
    fn name(&self, text: &[u8]) -> Option<String> {
        if text.is_empty() || text.len() > MODEL_BYTES_MAX || !(self.utf8 || text.is_ascii()) {
            return None;
        }
        let utf8 = core::str::from_utf8(text).map(ToOwned::to_owned);
        Some(utf8.unwrap_or_else(|_| text.iter().map(|&byte| char::from(byte)).collect()))
    }
}

impl Part {
    /// What a `Content-Disposition` says, of whichever type; `None` without a name.
    fn of(value: &[u8]) -> Option<Self> {
        let mut field = None;
        let mut file = false;
        for (key, value) in parameters(value).1 {
            match &*key {
                b"name" => field = Some(Field::of(&value)),
                b"filename" => file = true,
                _ => {}
            }
        }
        field.map(|field| Self { field, file })
    }
}

impl Field {
    fn of(name: &[u8]) -> Self {
        match name {
            b"model" => Self::Model,
            b"stream" => Self::Stream,
            b"prompt" => Self::Prompt,
            _ => Self::Other,
        }
    }
}

/// Name and value of a header; `None` where it is none.
fn header(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = memchr(b':', line)?;
    let (name, value) = (line.get(..colon)?, line.get(colon + 1..)?);
    let token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    (!name.is_empty() && name.iter().all(token)).then_some((name, value))
}

/// What pydantic takes for true when it comes as text.
fn is_true(text: &[u8]) -> bool {
    let words: [&[u8]; 6] = [b"true", b"1", b"on", b"yes", b"t", b"y"];
    words.iter().any(|word| text.eq_ignore_ascii_case(word))
}
