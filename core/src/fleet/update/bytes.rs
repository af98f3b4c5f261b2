//! Bytes: numbers and fields as they stand in an update.
//!
//! Owns the reading and writing of these, with the place at which something was not as expected.
//! Does not know what a field means.

use super::UpdateError;
use crate::time::Duration;
use alloc::vec::Vec;

/// Appends a number, seven bits to a byte, the lowest first (LEB128).
pub(super) fn put(out: &mut Vec<u8>, mut number: u64) {
    while number > 0x7f {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Appends a number of eight bytes, the lowest first: of hashes no bit is likelier than another.
pub(super) fn put_hash(out: &mut Vec<u8>, hash: u64) {
    out.extend_from_slice(&hash.to_le_bytes());
}

/// Appends a number that is not below zero; what is counts as zero.
pub(super) fn put_amount(out: &mut Vec<u8>, amount: i64) {
    put(out, u64::try_from(amount).unwrap_or(0));
}

/// Appends a time in microseconds.
pub(super) fn put_time(out: &mut Vec<u8>, time: Duration) {
    put(out, micros(time));
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Appends a field: its tag, its length, and what `write` appends.
pub(super) fn put_field(out: &mut Vec<u8>, tag: u8, write: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    let from = out.len();
    write(out);
    let end = out.len();
    // The length is known now, and goes before what it counts.
    put(out, (end - from) as u64);
    let bytes = out.len() - end;
    out[from..].rotate_right(bytes);
}

/// Appends a field of one number, unless that is zero: a field that is not there is.
pub(super) fn put_number(out: &mut Vec<u8>, tag: u8, number: u64) {
    if number > 0 {
        put_field(out, tag, |out| put(out, number));
    }
}

/// A part of the bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    /// All of them, up to the end of the part.
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// What is wrong is wrong here.
    pub(super) const fn wrong(&self, expected: &'static str) -> UpdateError {
        UpdateError::Malformed { offset: self.at, expected }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.at >= self.bytes.len()
    }

    /// Bytes that are left.
    pub(super) const fn len(&self) -> usize {
        self.bytes.len().saturating_sub(self.at)
    }

    pub(super) fn byte(&mut self, expected: &'static str) -> Result<u8, UpdateError> {
        let byte = self.bytes.get(self.at).copied().ok_or_else(|| self.wrong(expected))?;
        self.at += 1;
        Ok(byte)
    }

    /// A number in [`put`]'s words, `max` at most.
    pub(super) fn number(&mut self, max: u64, what: &'static str) -> Result<u64, UpdateError> {
        let start = *self;
        let mut number = 0_u64;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.byte(what)?;
            let bits = u64::from(byte & 0x7f);
            // Of the tenth byte only one bit has a place.
            if bits << shift >> shift != bits {
                return Err(start.wrong(what));
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return if number <= max { Ok(number) } else { Err(start.wrong(what)) };
            }
        }
        Err(start.wrong(what))
    }

    pub(super) fn small(&mut self, what: &'static str) -> Result<u32, UpdateError> {
        let number = self.number(u32::MAX.into(), what)?;
        Ok(u32::try_from(number).unwrap_or(u32::MAX))
    }

    pub(super) fn amount(&mut self, what: &'static str) -> Result<i64, UpdateError> {
        Ok(self.number(i64::MAX.cast_unsigned(), what)?.cast_signed())
    }

    pub(super) fn time(&mut self, what: &'static str) -> Result<Duration, UpdateError> {
        self.number(u64::MAX, what).map(Duration::from_micros)
    }

    pub(super) fn flag(&mut self, what: &'static str) -> Result<bool, UpdateError> {
        Ok(self.number(1, what)? == 1)
    }

    pub(super) fn hash(&mut self, what: &'static str) -> Result<u64, UpdateError> {
        let rest = self.bytes.get(self.at..).and_then(|rest| rest.first_chunk());
        let hash = rest.copied().map(u64::from_le_bytes).ok_or_else(|| self.wrong(what))?;
        self.at += 8;
        Ok(hash)
    }

    /// The rest as text.
    pub(super) fn text(&mut self, max: usize, what: &'static str) -> Result<&'a str, UpdateError> {
        let rest = self.bytes.get(self.at..).filter(|rest| rest.len() <= max);
        let text = rest.and_then(|rest| core::str::from_utf8(rest).ok());
        let text = text.ok_or_else(|| self.wrong(what))?;
        self.at = self.bytes.len();
        Ok(text)
    }

    /// The next field, by its tag, if there is one.
    pub(super) fn field(&mut self) -> Result<Option<(u8, Self)>, UpdateError> {
        if self.is_empty() {
            return Ok(None);
        }
        let tag = self.byte("a tag")?;
        let what = "the length of a field within its surroundings";
        let start = *self;
        let length = self.number(u64::MAX, what)?;
        let end = usize::try_from(length).ok().and_then(|length| self.at.checked_add(length));
        let part = end.and_then(|end| self.bytes.get(..end)).ok_or_else(|| start.wrong(what))?;
        let field = Self { bytes: part, at: self.at };
        self.at = part.len();
        Ok(Some((tag, field)))
    }

    /// Nothing more is expected here.
    pub(super) const fn end(&self) -> Result<(), UpdateError> {
        if self.is_empty() { Ok(()) } else { Err(self.wrong("the end of a field")) }
    }
}
