//! The bytes on the wire, known to both ends so that each can check what the other sent: request
//! bodies of chat text, the unary answer, and the events of a stream.

use std::fmt::Write as _;

/// The header that tells the backend how to answer; its value is an [`Order`].
pub const ORDER_HEADER: &str = "x-bench";

/// The same as a field of a body that somebody may write anew who passes on few headers and
/// fields.
pub const ORDER_FIELD: &str = "\"stop\":\"";

/// The order in a body, if it has that field.
pub fn written_order(body: &[u8]) -> Option<Order> {
    let at = body.windows(ORDER_FIELD.len()).position(|part| part == ORDER_FIELD.as_bytes())?;
    let value = body.get(at + ORDER_FIELD.len()..)?.split(|&byte| byte == b'"').next()?;
    Order::parse(std::str::from_utf8(value).ok()?)
}

/// The length of one event's data, with its blank line.
pub const EVENT_BYTES: usize = 250;

/// What follows the last event of a stream.
pub const DONE: &[u8] = b"data: [DONE]\n\n";

/// How many bodies a load cycles through: a system prompt in common, then each its own text.
pub const BODIES: usize = 64;

/// How the backend is to answer one request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// One JSON answer with a content-length.
    Unary,
    /// So many events, each its own chunk, all in one write.
    Burst { events: u64 },
    /// One event in its own write whenever the clock is at `phase_us` modulo `interval_us`.
    Paced { interval_us: u64, phase_us: u64, events: u64 },
    /// The head and one event, then silence until the connection is closed.
    Idle,
}

impl Order {
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let name = words.next()?;
        let mut number = || words.next()?.parse::<u64>().ok();
        Some(match name {
            "unary" => Self::Unary,
            "burst" => Self::Burst { events: number()? },
            "paced" => Self::Paced {
                interval_us: number()?.max(1),
                phase_us: number()?,
                events: number()?,
            },
            "idle" => Self::Idle,
            _ => return None,
        })
    }

    /// How many events the answer has; `None` if it is unary.
    pub fn events(self) -> Option<u64> {
        match self {
            Self::Unary => None,
            Self::Burst { events } | Self::Paced { events, .. } => Some(events),
            // More than anyone reads, few enough to multiply.
            Self::Idle => Some(1 << 40),
        }
    }
}

impl std::fmt::Display for Order {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unary => write!(out, "unary"),
            Self::Burst { events } => write!(out, "burst {events}"),
            Self::Paced { interval_us, phase_us, events } => {
                write!(out, "paced {interval_us} {phase_us} {events}")
            }
            Self::Idle => write!(out, "idle"),
        }
    }
}

/// A chat request of exactly `bytes` bytes, the `index`-th of its family.
pub fn body(bytes: usize, index: usize, stream: bool) -> Vec<u8> {
    let mut text = String::from(r#"{"model":"bench","messages":[{"role":"system","content":""#);
    prose(&mut text, 1, bytes / 4);
    text.push_str(r#""},{"role":"user","content":""#);
    let end =
        if stream { r#""}],"max_tokens":16,"stream":true}"# } else { r#""}],"max_tokens":16}"# };
    prose(&mut text, 2 + index as u64, bytes.saturating_sub(end.len()));
    text.push_str(end);
    assert!(text.len() >= bytes, "bodies below 256 bytes are not built");
    // The prose stops short of an escape or a word by a few bytes; white space is legal JSON.
    assert_eq!(text.len(), bytes);
    text.into_bytes()
}

/// Extends `text` to `until` bytes with words, punctuation and, once in a line or so, an escape.
fn prose(text: &mut String, seed: u64, until: usize) {
    const WORDS: [&str; 24] = [
        "the",
        "of",
        "server",
        "and",
        "token",
        "a",
        "prompt",
        "to",
        "cache",
        "in",
        "which",
        "request",
        "is",
        "for",
        "attention",
        "layer",
        "that",
        "model",
        "with",
        "weights",
        "caf\u{e9}",
        "as",
        "batch",
        "between",
    ];
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut column = 0;
    while text.len() + 24 < until {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let word = WORDS[(state >> 32) as usize % WORDS.len()];
        text.push_str(word);
        column += word.len() + 1;
        match state % 29 {
            0 => text.push_str(", "),
            1 => text.push_str(" \\\"so\\\" "),
            _ if column > 76 => {
                text.push_str(".\\n");
                column = 0;
            }
            _ => text.push(' '),
        }
    }
    while text.len() < until {
        text.push('.');
    }
}

/// A sum that changes with any byte of `body`, at a fraction of the cost of reading it.
pub fn checksum(body: &[u8]) -> u64 {
    let (words, rest) = body.as_chunks::<8>();
    let sum = words
        .iter()
        .fold(body.len() as u64, |sum, word| sum.rotate_left(5) ^ u64::from_le_bytes(*word));
    rest.iter().fold(sum, |sum, &byte| sum.rotate_left(5) ^ u64::from(byte))
}

/// The JSON that answers `body`: about 600 bytes, and proof of which bytes arrived.
pub fn answer(body: &[u8]) -> Vec<u8> {
    let (length, sum) = (body.len(), checksum(body));
    let mut text = String::with_capacity(640);
    let _ = write!(
        text,
        concat!(
            r#"{{"id":"chatcmpl-{sum:016x}{sum:016x}","object":"chat.completion","#,
            r#""created":1767225600,"model":"bench","choices":[{{"index":0,"message":"#,
            r#"{{"role":"assistant","content":"The cache holds the prefix of this prompt, so "#,
            r#"only its last line has to be computed.","refusal":null,"annotations":null,"#,
            r#""audio":null,"function_call":null,"tool_calls":[],"reasoning_content":null}},"#,
            r#""logprobs":null,"finish_reason":"length","stop_reason":null}}],"#,
            r#""service_tier":null,"system_fingerprint":null,"usage":{{"prompt_tokens":"#,
            r#"{length:06},"total_tokens":{total:06},"completion_tokens":16,"#,
            r#""prompt_tokens_details":null}},"prompt_logprobs":null}}"#
        ),
        sum = sum,
        length = length + 100_000,
        total = length + 100_016,
    );
    text.into_bytes()
}

/// Builds events without formatting: only ten digits differ between them.
pub struct Events {
    event: Vec<u8>,
    digits: usize,
}

impl Default for Events {
    fn default() -> Self {
        let start = concat!(
            r#"data: {"id":"chatcmpl-5b1f0e9c7d3a4c62a8f7e6d5c4b3a291","#,
            r#""object":"chat.completion.chunk","created":1767225600,"model":"bench","#,
            r#""choices":[{"index":0,"delta":{"content":" w"#,
        );
        let end = "\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n";
        let mut event = format!("{start}0000000000");
        let digits = start.len();
        // Padded inside the content, so that the JSON stays what it is.
        while event.len() + end.len() < EVENT_BYTES {
            event.push('.');
        }
        event.push_str(end);
        assert_eq!(event.len(), EVENT_BYTES);
        Self { event: event.into_bytes(), digits }
    }
}

impl Events {
    /// The data of the `index`-th event of any stream.
    pub fn event(&mut self, index: u64) -> &[u8] {
        let mut rest = index;
        for digit in self.event[self.digits..self.digits + 10].iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        &self.event
    }
}

/// Appends `data` as one chunk.
pub fn push_chunk(out: &mut Vec<u8>, data: &[u8]) {
    use std::io::Write as _;
    write!(out, "{:x}\r\n", data.len()).expect("a Vec takes every write");
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::{BODIES, EVENT_BYTES, Events, Order, answer, body};

    #[test]
    fn bodies_have_the_length_asked_for_and_differ() {
        for bytes in [512, 2048, 65536] {
            let bodies: Vec<_> = (0..BODIES).map(|index| body(bytes, index, false)).collect();
            assert!(bodies.iter().all(|body| body.len() == bytes));
            assert!(bodies.windows(2).all(|pair| pair[0] != pair[1]));
        }
    }

    #[test]
    fn answers_have_one_length() {
        let lengths: Vec<_> = [512, 2048, 65536].map(|n| answer(&body(n, 3, false)).len()).into();
        assert_eq!(lengths, [lengths[0]; 3]);
        assert!((580..=660).contains(&lengths[0]), "{lengths:?}");
    }

    #[test]
    fn events_have_one_length_and_a_number() {
        let mut events = Events::default();
        let event = String::from_utf8(events.event(1234567890).to_vec()).unwrap();
        assert_eq!(event.len(), EVENT_BYTES);
        assert!(event.contains(" w1234567890"), "{event}");
    }

    #[test]
    fn orders_read_back() {
        let paced = Order::Paced { interval_us: 20_000, phase_us: 78, events: 9 };
        for order in [Order::Unary, Order::Burst { events: 128 }, paced, Order::Idle] {
            assert_eq!(Order::parse(&order.to_string()), Some(order));
        }
    }
}
