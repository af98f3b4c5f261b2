//! What an answer says it cost, read from its body while that passes.
//!
//! Owns where the several APIs of vLLM 0.33 say it, and what of a body must be kept to read it
//! there: a fixed part of its end, or of its beginning. Nothing is parsed until the body ends, and
//! nothing is copied of one that comes in a single piece. Knows neither routes nor framing.
//!
//! It is no validator, and what it reads is nobody's proof. But no text can be taken for a usage,
//! whoever wrote it, since the quotes in it are escaped; and what stands where a usage may is the
//! server's own word.

use alloc::vec;
use alloc::vec::Vec;
use httparse::Header;
use memchr::{memchr_iter, memchr2, memrchr_iter};

/// How much of a body is kept. A usage with all details takes 400 bytes, what vLLM says behind it
/// (timings, empty fields, the last event) as much again. Behind the ids of a prompt's tokens and
/// its log probabilities, which few ask for, no usage is found.
const KEPT_BYTES_MAX: usize = 1_280;

/// What an answer said it cost, in tokens. Backends are not trusted: any number may be anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt: u64,
    /// Those of them that were found in the KV cache; `None` if that was not said. vLLM 0.33 says
    /// it of `/v1/responses`, and elsewhere if started with `--enable-prompt-tokens-details`.
    pub cached: Option<u64>,
    /// Tokens of the answer.
    pub completion: u64,
}

/// Where in an answer its usage stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UsageAt {
    /// Nowhere, or in no way that would tell the tokens of a text.
    Nowhere,
    /// Before what was asked for; in a stream, in one of the last events.
    Start,
    /// Behind it, but for a few short fields; in a stream, in one of the last events.
    End,
}

/// Follows one answer's body to its end.
#[derive(Debug)]
pub struct UsageReader {
    at_start: bool,
    /// The beginning of the body, or its end in a ring. Without memory until a body does not end
    /// with its first piece.
    kept: Vec<u8>,
    /// Where the next byte goes.
    next: usize,
    /// Whether the ring is full, and its oldest byte is there.
    full: bool,
}

impl UsageReader {
    /// At the beginning of a body with these headers; `None` if it is not JSON, nor events that
    /// hold some, or compressed.
    pub fn new(at: UsageAt, headers: &[Header<'_>]) -> Option<Self> {
        if at == UsageAt::Nowhere {
            return None;
        }
        let (mut json, mut events) = (false, false);
        for header in headers {
            let is = |name: &str| header.name.eq_ignore_ascii_case(name);
            if header.name.len() == 12 && is("content-type") {
                json = begins(header.value, b"application/json");
                events = begins(header.value, b"text/event-stream");
            } else if header.name.len() == 16 && is("content-encoding") {
                return None;
            }
        }
        let at_start = at == UsageAt::Start && json;
        (json || events).then(|| Self { at_start, kept: Vec::new(), next: 0, full: false })
    }

    /// Shows a piece of the body that others follow.
    pub fn read(&mut self, bytes: &[u8]) {
        if bytes.is_empty() || (self.at_start && self.full) {
            return;
        }
        if self.kept.is_empty() {
            self.kept = vec![0; KEPT_BYTES_MAX];
        }
        let room = KEPT_BYTES_MAX - self.next;
        if bytes.len() < room {
            self.kept[self.next..][..bytes.len()].copy_from_slice(bytes);
            self.next += bytes.len();
        } else if self.at_start {
            self.kept[self.next..].copy_from_slice(&bytes[..room]);
            (self.next, self.full) = (0, true);
        } else {
            let bytes = last_of(bytes);
            // What fills all of the ring may as well begin where it is.
            let (to_end, from_start) = bytes.split_at(room);
            self.kept[self.next..].copy_from_slice(to_end);
            self.kept[..from_start.len()].copy_from_slice(from_start);
            (self.next, self.full) = (from_start.len(), true);
        }
    }

    /// Shows the last piece of the body, and says what the whole said.
    pub fn end(&mut self, last: &[u8]) -> Option<Usage> {
        let whole = self.kept.is_empty();
        if self.at_start {
            if whole {
                return first(last.get(..KEPT_BYTES_MAX).unwrap_or(last));
            }
            self.read(last);
            return first(if self.full { &self.kept } else { &self.kept[..self.next] });
        }
        if whole || last.len() >= KEPT_BYTES_MAX {
            return latest(last_of(last));
        }
        self.read(last);
        if !self.full {
            return latest(&self.kept[..self.next]);
        }
        self.kept.rotate_left(self.next);
        self.next = 0;
        latest(&self.kept)
    }
}

fn begins(value: &[u8], kind: &[u8]) -> bool {
    value.get(..kind.len()).is_some_and(|start| start.eq_ignore_ascii_case(kind))
}

/// The part of the bytes that would be kept of an end.
fn last_of(bytes: &[u8]) -> &[u8] {
    &bytes[bytes.len().saturating_sub(KEPT_BYTES_MAX)..]
}

const KEY: &[u8] = b"\"usage\"";
/// The place in [`KEY`] of its rarest letter.
const RAREST: usize = 4;

/// The first usage in the beginning of a body.
fn first(bytes: &[u8]) -> Option<Usage> {
    parse(memchr_iter(KEY[RAREST], bytes).find_map(|at| value(bytes, at))?)
}

/// The last usage in the end of a body: a stream may have one in each event, and only the last is
/// of the whole. If that is `null` there is none: what comes before it may be a schema of the
/// client's, which `/v1/responses` echoes.
fn latest(bytes: &[u8]) -> Option<Usage> {
    parse(memrchr_iter(KEY[RAREST], bytes).find_map(|at| value(bytes, at))?)
}

/// What stands behind the key of which this letter is a part, if it is one. A quote that no
/// backslash stands before begins or ends a text; one that a name, a quote and a colon follow
/// begins a key.
fn value(bytes: &[u8], letter: usize) -> Option<&[u8]> {
    let key = letter.checked_sub(RAREST)?;
    let behind = bytes.get(key..)?.strip_prefix(KEY)?;
    let before = bytes[..key].last()?;
    if !matches!(before, b'{' | b',' | b' ' | b'\t' | b'\r' | b'\n') {
        return None;
    }
    Some(behind.trim_ascii_start().strip_prefix(b":")?.trim_ascii_start())
}

/// The usage that the bytes begin with; all in it that is not a count is not said.
fn parse(bytes: &[u8]) -> Option<Usage> {
    if bytes.first() != Some(&b'{') {
        return None;
    }
    // OpenAI's names, then those of `/v1/responses` and of Anthropic, which counts what was read
    // from its cache, or written to it, beside its `input_tokens`.
    let (mut prompt, mut input) = (None, None);
    let (mut read, mut created) = (None, None);
    let (mut completion, mut cached) = (None, None);
    let (mut key, mut at, mut depth): (&[u8], _, _) = (b"", 0, 0_usize);
    let mut in_details = false;
    loop {
        let byte = *bytes.get(at)?;
        match byte {
            b'"' => {
                let end = text_end(bytes, at + 1)?;
                key = &bytes[at + 1..end];
                at = end;
            }
            b'{' => {
                depth += 1;
                if depth == 2 {
                    in_details = matches!(key, b"prompt_tokens_details" | b"input_tokens_details");
                }
            }
            b'[' => (depth, key) = (depth + 1, b""),
            b'}' | b']' => {
                depth -= 1;
                match depth {
                    0 => break,
                    1 => in_details = false,
                    _ => {}
                }
            }
            b'0'..=b'9' => {
                let (number, end) = count(bytes, at);
                let place = match (depth, key) {
                    (1, b"prompt_tokens") => Some(&mut prompt),
                    (1, b"completion_tokens" | b"output_tokens") => Some(&mut completion),
                    (1, b"input_tokens") => Some(&mut input),
                    (1, b"cache_read_input_tokens") => Some(&mut read),
                    (1, b"cache_creation_input_tokens") => Some(&mut created),
                    (2, b"cached_tokens") if in_details => Some(&mut cached),
                    _ => None,
                };
                if let Some(place) = place {
                    *place = number;
                }
                (at, key) = (end, b"");
                continue;
            }
            // The value is over, or no count.
            b',' | b'-' => key = b"",
            _ => {}
        }
        at += 1;
    }
    let input = || input?.checked_add(read.unwrap_or(0))?.checked_add(created.unwrap_or(0));
    Some(Usage {
        prompt: prompt.or_else(input)?,
        cached: cached.or(read),
        completion: completion.unwrap_or(0),
    })
}

/// Where the quote is that ends the text which begins there.
fn text_end(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        at += memchr2(b'"', b'\\', bytes.get(at..)?)?;
        if bytes[at] == b'"' {
            return Some(at);
        }
        at += 2;
    }
}

/// The number that begins there, if it is a count, and where it ends.
fn count(bytes: &[u8], at: usize) -> (Option<u64>, usize) {
    let mut count = Some(0_u64);
    let mut end = at;
    while let Some(&byte) = bytes.get(end) {
        count = match byte {
            b'0'..=b'9' => {
                count.and_then(|count| count.checked_mul(10)?.checked_add(u64::from(byte - b'0')))
            }
            b'.' | b'e' | b'E' | b'+' | b'-' => None,
            _ => break,
        };
        end += 1;
    }
    (count, end)
}

#[cfg(test)]
mod tests;
