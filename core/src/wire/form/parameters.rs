//! The parameters of a header such as `Content-Type`, as Python's parser for forms splits them.
//!
//! That is not RFC 9110: quotes and backslashes are counted, not parsed. Knows no parameter.

use alloc::vec::Vec;

/// Key and value.
pub(super) type Parameter = (Vec<u8>, Vec<u8>);

/// What stands before the first semicolon, and the parameters behind it in order: keys in lower
/// case (as they stand if they have no value), values without their quotes. Of a key that occurs
/// twice the last value counts.
///
/// RFC 7578 section 4.2 forbids the extended syntax (`filename*=`): such keys are passed over.
pub(super) fn parameters(value: &[u8]) -> (&[u8], impl Iterator<Item = Parameter>) {
    let mut segments = Segments(Some(value));
    let kind = segments.next().unwrap_or_default();
    let parameters = segments.filter_map(|segment| {
        let Some(equals) = memchr::memchr(b'=', segment) else {
            return Some((segment.to_vec(), Vec::new()));
        };
        let (key, value) = (segment.get(..equals)?, segment.get(equals + 1..)?);
        Some((trim(key).to_ascii_lowercase(), unquote(trim(value))))
    });
    (kind, parameters.filter(|(key, _)| !key.contains(&b'*')))
}

/// The pieces between semicolons, trimmed. A semicolon within quotes separates nothing.
struct Segments<'a>(Option<&'a [u8]>);

impl<'a> Iterator for Segments<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = self.0?;
        let mut quoted = false;
        let mut before = b';';
        let end = rest.iter().position(|&byte| {
            // A quote behind a backslash is never counted, even if another escapes the backslash.
            quoted ^= byte == b'"' && before != b'\\';
            before = byte;
            byte == b';' && !quoted
        });
        self.0 = end.and_then(|end| rest.get(end + 1..));
        Some(trim(rest.get(..end.unwrap_or(rest.len()))?))
    }
}

fn trim(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}

fn unquote(value: &[u8]) -> Vec<u8> {
    let [b'"', inner @ .., b'"'] = value else { return value.to_vec() };
    // Two passes, as there: `\\"` loses both of its backslashes.
    replace(&replace(inner, *b"\\\\", b'\\'), *b"\\\"", b'"')
}

fn replace(text: &[u8], pair: [u8; 2], by: u8) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [byte, behind @ ..] = rest {
        if let Some(behind) = rest.strip_prefix(&pair) {
            out.push(by);
            rest = behind;
        } else {
            out.push(*byte);
            rest = behind;
        }
    }
    out
}
