//! JSON at the level of bytes: where a string or a run without brackets ends, what a string says.
//!
//! Knows nothing of keys, and keeps no state.

use alloc::string::String;
use memchr::memchr;

/// The next quote that no backslash escapes. `from` is inside the string, or behind its end.
///
/// A string's opening quote stands before all of its backslashes, so that counting them backwards
/// from each quote ends there at the latest, or at the quote before: it stays linear. And it makes
/// a text of many lines, each ending in `\n`, one search.
pub(super) fn closing_quote(body: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    loop {
        at += quote(body.get(at..)?)?;
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
/// GB/s of a whole scan of 32 MiB, one core of an AMD EPYC, AVX2, typical of several runs on a
/// machine that was busy otherwise (they vary by a third, so the second line is a draw):
///
/// | chat text with                | this | memchr alone | memchr2, `"` and `\` | 8 bytes at a time |
/// |-------------------------------|------|--------------|----------------------|-------------------|
/// | `\n` every 80 bytes           | 25   | 24           | 8                    | 10                |
/// | `\"` every 80 bytes           | 8    | 7.5          | 8                    | 7.5               |
/// | `\"` every 10 bytes           | 3.0  | 1.9          | 1.8                  | 2.9               |
/// | messages of 25 bytes          | 2.4  | 1.5          | 1.6                  | 2.3               |
/// | nothing but `\"`              | 0.75 | 0.5          | 0.4                  | 0.6               |
fn quote(text: &[u8]) -> Option<usize> {
    const LOW: u64 = u64::from_le_bytes([0x01; 8]);
    const HIGH: u64 = u64::from_le_bytes([0x80; 8]);
    const QUOTES: u64 = u64::from_le_bytes([b'"'; 8]);
    let mut at = 0;
    for eight in text.as_chunks().0.iter().take(2) {
        // Quotes become zero. The borrow of the first one may spoil those behind it only.
        let word = u64::from_le_bytes(*eight) ^ QUOTES;
        let zeros = word.wrapping_sub(LOW) & !word & HIGH;
        if zeros != 0 {
            return Some(at + zeros.trailing_zeros() as usize / 8);
        }
        at += 8;
    }
    Some(at + memchr(b'"', text.get(at..)?)?)
}

/// Between strings a bracket is near, and token ids (no brackets for megabytes) pass at 2.5 GB/s:
/// a table was no faster beyond the noise, blocks of 16 or 32 bytes were slower.
pub(super) fn bracket_or_quote(body: &[u8], from: usize) -> Option<usize> {
    let found = |byte: &u8| matches!(byte, b'"' | b'{' | b'[' | b']' | b'}');
    body.get(from..)?.iter().position(found).map(|offset| from + offset)
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
