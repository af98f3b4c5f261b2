//! JSON at the level of bytes: where a string or a run without brackets ends, what a string says.
//!
//! Knows nothing of keys, and keeps no state.

use alloc::string::String;
use memchr::{memchr, memchr2};

/// The next quote that no backslash escapes. `from` is inside the string, or behind its end.
///
/// A string's opening quote stands before all of its backslashes, so that counting them backwards
/// from each quote ends there at the latest, or at the quote before: it stays linear. And it makes
/// a text of many lines, each ending in `\n`, one search.
pub(super) fn closing_quote(body: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    loop {
        at += find::<b'"'>(body.get(at..)?)?;
        let escapes = body.get(..at)?.iter().rev().take_while(|byte| **byte == b'\\').count();
        if escapes.is_multiple_of(2) {
            return Some(at);
        }
        at += 1;
    }
}

/// Calling memchr costs as much as 16 bytes looked at here; most keys and many escaped quotes are
/// nearer than that.
///
/// GB/s of a whole scan of 32 MiB that hashes nothing, one core of an AMD EPYC, AVX2, typical of
/// several runs on a machine that was busy otherwise (they vary by a third, so the second line is a
/// draw):
///
/// | chat text with                | this | memchr alone | memchr2, `"` and `\` | 8 bytes at a time |
/// |-------------------------------|------|--------------|----------------------|-------------------|
/// | `\n` every 80 bytes           | 25   | 24           | 8                    | 10                |
/// | `\"` every 80 bytes           | 8    | 7.5          | 8                    | 7.5               |
/// | `\"` every 10 bytes           | 3.0  | 1.9          | 1.8                  | 2.9               |
/// | messages of 25 bytes          | 2.4  | 1.5          | 1.6                  | 2.3               |
/// | nothing but `\"`              | 0.75 | 0.5          | 0.4                  | 0.6               |
fn find<const BYTE: u8>(text: &[u8]) -> Option<usize> {
    let (looked_at, found) = near(text, zeros::<BYTE>);
    found.or_else(|| Some(looked_at + memchr(BYTE, text.get(looked_at..)?)?))
}

/// Looks at up to 16 bytes: at how many, and what is found there first.
fn near(text: &[u8], marks: impl Fn(u64) -> u64) -> (usize, Option<usize>) {
    let mut at = 0;
    for eight in text.as_chunks().0.iter().take(2) {
        let marks = marks(u64::from_le_bytes(*eight));
        if marks != 0 {
            return (at, Some(at + marks.trailing_zeros() as usize / 8));
        }
        at += 8;
    }
    (at, None)
}

const LOW: u64 = u64::from_le_bytes([0x01; 8]);
const HIGH: u64 = u64::from_le_bytes([0x80; 8]);

/// Marks the bytes of a word that are this one. The borrow of the first may spoil those behind it
/// only.
const fn zeros<const BYTE: u8>(word: u64) -> u64 {
    let word = word ^ (LOW * BYTE as u64);
    word.wrapping_sub(LOW) & !word & HIGH
}

/// Between strings a bracket is near, and token ids (no brackets for megabytes) pass at 2.5 GB/s:
/// a table was no faster beyond the noise, blocks of 16 or 32 bytes were slower.
pub(super) fn bracket_or_quote(body: &[u8], from: usize) -> Option<usize> {
    let found = |byte: &u8| matches!(byte, b'"' | b'{' | b'[' | b']' | b'}');
    body.get(from..)?.iter().position(found).map(|offset| from + offset)
}

/// The next quote or backslash, in a string of which the end is not known.
pub(super) fn quote_or_backslash(body: &[u8], from: usize) -> Option<usize> {
    let text = body.get(from..)?;
    let (looked_at, found) = near(text, |word| zeros::<b'"'>(word) | zeros::<b'\\'>(word));
    let far = || Some(looked_at + memchr2(b'"', b'\\', text.get(looked_at..)?)?);
    found.or_else(far).map(|at| from + at)
}

/// The next space or quote; in JSON nothing else outside strings is less than them.
pub(super) fn space_or_quote(body: &[u8], from: usize) -> usize {
    const ABOVE: u64 = LOW * (b'"' + 1) as u64;
    let mut at = from;
    while let Some(eight) = body.get(at..).and_then(<[u8]>::first_chunk) {
        let word = u64::from_le_bytes(*eight);
        let below = word.wrapping_sub(ABOVE) & !word & HIGH;
        if below != 0 {
            return at + below.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    let rest = body.get(at..).unwrap_or_default();
    at + rest.iter().take_while(|byte| **byte > b'"').count()
}

/// The next backslash.
pub(super) fn backslash(text: &[u8]) -> Option<usize> {
    find::<b'\\'>(text)
}

/// What the escape here stands for, and its length. What is none says what it looks like, half of a
/// surrogate pair the three bytes that UTF-8 would have for it.
pub(super) fn escaped(escape: &[u8]) -> (Said, usize) {
    let byte = match escape.get(1) {
        Some(&plain @ (b'"' | b'\\' | b'/')) => plain,
        Some(b'b') => 8,
        Some(b'f') => 12,
        Some(b'n') => b'\n',
        Some(b'r') => b'\r',
        Some(b't') => b'\t',
        Some(b'u') => return utf16(escape),
        _ => return (Said::byte(b'\\'), 1),
    };
    (Said::byte(byte), 2)
}

/// A character, with room for copying all of it at once.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) utf8: [u8; 16],
    pub(super) len: usize,
}

impl Said {
    const fn byte(byte: u8) -> Self {
        let mut utf8 = [0; 16];
        utf8[0] = byte;
        Self { utf8, len: 1 }
    }

    fn character(character: char) -> Self {
        let mut utf8 = [0; 16];
        let len = character.encode_utf8(&mut utf8).len();
        Self { utf8, len }
    }
}

/// What one `\u0061`, or two of them, stand for, and their length.
fn utf16(escape: &[u8]) -> (Said, usize) {
    let unit = |from: usize| -> Option<u32> {
        let digits = escape.get(from..from + 6)?.strip_prefix(b"\\u")?;
        let digit = |unit: u32, byte: &u8| Some(unit << 4 | char::from(*byte).to_digit(16)?);
        digits.iter().try_fold(0, digit)
    };
    let Some(first) = unit(0) else { return (Said::byte(b'\\'), 1) };
    if let Some(character) = char::from_u32(first) {
        return (Said::character(character), 6);
    }
    let second = unit(6).filter(|second| first < 0xdc00 && (0xdc00..0xe000).contains(second));
    let pair = second.map(|second| 0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00));
    if let Some(character) = pair.and_then(char::from_u32) {
        return (Said::character(character), 12);
    }
    let mut half = Said::byte(0xed);
    half.utf8[1] = 0x80 | (first >> 6 & 0x3f) as u8;
    half.utf8[2] = 0x80 | (first & 0x3f) as u8;
    half.len = 3;
    (half, 6)
}

/// What a JSON string says; `None` where Python or pydantic would not take it for text.
pub(super) fn unescape(raw: &[u8]) -> Option<String> {
    let mut rest = core::str::from_utf8(raw).ok()?;
    if rest.bytes().any(|byte| byte < b' ') {
        return None;
    }
    let mut text = String::with_capacity(rest.len());
    while let Some((plain, escape)) = rest.split_once('\\') {
        text.push_str(plain);
        let mut after = escape.chars();
        let character = match after.next()? {
            plain @ ('"' | '\\' | '/') => plain,
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => {
                let (character, length) = utf16_escape(escape)?;
                after = escape.get(length..)?.chars();
                character
            }
            _ => return None,
        };
        text.push(character);
        rest = after.as_str();
    }
    text.push_str(rest);
    Some(text)
}

/// The character that `u0061` or `ud83d\ude00` stands for, and the length of that.
fn utf16_escape(escape: &str) -> Option<(char, usize)> {
    let unit = |from: usize| {
        let digits = escape.get(from..from + 4)?;
        // `from_str_radix` takes a sign.
        let plain = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        plain.then(|| u16::from_str_radix(digits, 16).ok())?
    };
    let first = unit(1)?;
    if !(0xd800..0xe000).contains(&first) {
        return Some((char::from_u32(first.into())?, 5));
    }
    let second = escape.get(5..)?.starts_with("\\u").then(|| unit(7))??;
    let pair = char::decode_utf16([first, second]).next()?.ok()?;
    Some((pair, 11))
}
