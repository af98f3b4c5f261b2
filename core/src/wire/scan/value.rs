//! Walks over JSON that is all there: the values of an array, the members of an object.
//!
//! Knows nothing of what they mean. Of broken JSON it finds something, the same each time, and
//! never looks at a byte twice on one level.

use super::text::{bracket_or_quote, closing_quote, unescape};
use alloc::string::String;

/// A value as it stands in the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    /// A string, without its quotes.
    Text(&'a [u8]),
    /// An array, with its brackets.
    Array(&'a [u8]),
    /// An object, with its brackets.
    Object(&'a [u8]),
    /// A number or a word.
    Scalar(&'a [u8]),
}

impl<'a> Value<'a> {
    /// The value that begins here, and where it ends.
    pub(super) fn at(json: &'a [u8], from: usize) -> Option<(Self, usize)> {
        let first = *json.get(from)?;
        if first == b'"' {
            let end = closing_quote(json, from + 1)?;
            return Some((Self::Text(json.get(from + 1..end)?), end + 1));
        }
        if !matches!(first, b'{' | b'[') {
            let ends = |byte: &u8| b" \t\n\r,:\"{}[]".contains(byte);
            let len = json.get(from..)?.iter().position(ends);
            let end = len.map_or(json.len(), |len| from + len);
            return (end > from).then_some((Self::Scalar(json.get(from..end)?), end));
        }
        let end = nested_end(json, from)?;
        Some((Self::nested(json.get(from..end)?)?, end))
    }

    /// An array or object that is just this.
    pub(super) fn nested(raw: &'a [u8]) -> Option<Self> {
        match raw.first()? {
            b'{' => Some(Self::Object(raw)),
            b'[' => Some(Self::Array(raw)),
            _ => None,
        }
    }

    pub(super) const fn raw(self) -> &'a [u8] {
        match self {
            Self::Text(raw) | Self::Array(raw) | Self::Object(raw) | Self::Scalar(raw) => raw,
        }
    }

    /// Whether it says nothing: null, or nothing between its quotes or brackets.
    pub(super) fn is_empty(self) -> bool {
        match self {
            Self::Text(raw) => raw.is_empty(),
            Self::Scalar(raw) => raw == b"null",
            Self::Array(raw) | Self::Object(raw) => space_end(raw, 1) + 1 >= raw.len(),
        }
    }
}

/// Behind the bracket that closes the one here.
fn nested_end(json: &[u8], from: usize) -> Option<usize> {
    let mut depth = 0;
    let mut at = from;
    loop {
        at = bracket_or_quote(json, at)?;
        match json.get(at) {
            Some(b'"') => at = closing_quote(json, at + 1)?,
            Some(b'{' | b'[') => depth += 1,
            _ => depth -= 1,
        }
        at += 1;
        if depth == 0 {
            return Some(at);
        }
    }
}

/// Behind the white space here.
pub(super) fn space_end(json: &[u8], from: usize) -> usize {
    let rest = json.get(from..).unwrap_or_default();
    from + rest.iter().take_while(|byte| b" \t\n\r".contains(byte)).count()
}

/// What a short string says, if it takes no more bytes than this: its bytes as they are, or the
/// text that they stand for.
pub(super) enum Word<'a> {
    Plain(&'a [u8]),
    Escaped(String),
}

impl<'a> Word<'a> {
    pub(super) fn of(raw: &'a [u8], bytes_max: usize) -> Self {
        if raw.len() > bytes_max || !raw.contains(&b'\\') {
            return Self::Plain(raw);
        }
        unescape(raw).map_or(Self::Plain(raw), Self::Escaped)
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Plain(raw) => raw,
            Self::Escaped(text) => text.as_bytes(),
        }
    }
}

/// The members of an object: raw keys and values.
pub(super) struct Members<'a> {
    raw: &'a [u8],
    at: usize,
}

impl<'a> Members<'a> {
    /// `raw` is a whole object.
    pub(super) const fn of(raw: &'a [u8]) -> Self {
        Self { raw, at: 1 }
    }
}

impl<'a> Iterator for Members<'a> {
    type Item = (&'a [u8], Value<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let mut at = space_end(self.raw, self.at);
        if self.raw.get(at) == Some(&b',') {
            at = space_end(self.raw, at + 1);
        }
        let (Value::Text(key), end) = Value::at(self.raw, at)? else { return None };
        let colon = space_end(self.raw, end);
        if self.raw.get(colon) != Some(&b':') {
            return None;
        }
        let (value, end) = Value::at(self.raw, space_end(self.raw, colon + 1))?;
        self.at = end;
        Some((key, value))
    }
}
