//! Way: how a request came to its backend, as headers of the answer, for clients that ask.
//!
//! Owns the headers' names. Does not know who may ask.

use super::forward::{decimal, line, number_line};
use alloc::vec::Vec;

/// By this header, with the value `1`, a client asks. It goes on to the backend as it came.
pub const ASKED: &str = "x-vllm-proxy-explain";
const BACKEND: &str = "x-vllm-proxy-backend";
const REASON: &str = "x-vllm-proxy-reason";
const PREDICTED: &str = "x-vllm-proxy-predicted-cached-tokens";
const ATTEMPTS: &str = "x-vllm-proxy-attempts";

/// How a request came to the backend whose answer it is.
#[derive(Clone, Copy, Debug)]
pub struct Way<'a> {
    /// That backend's address.
    pub backend: &'a str,
    /// Why it was chosen, in a word.
    pub reason: &'static str,
    /// Prompt tokens that it is believed to have cached.
    pub predicted_tokens: u64,
    /// Backends that the request was sent to.
    pub attempts: u32,
}

/// Who says these headers in what a client gets of a backend.
#[derive(Clone, Copy, Debug)]
pub enum Says<'a> {
    /// The backend: the client did not ask us, so they pass as any others.
    Backend,
    /// Nobody: the client did ask us, but this is no place for it.
    Nobody,
    /// We do, since the client asked.
    Proxy(&'a Way<'a>),
}

impl Says<'_> {
    /// Whether a header of a backend's is dropped, since it would be taken for our word.
    pub(super) fn drops(&self, name: &str) -> bool {
        !matches!(self, Self::Backend) && is_of_way(name)
    }
}

/// Why a request came nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nowhere {
    /// In a word.
    pub reason: &'static str,
    /// Backends that the request was sent to all the same.
    pub attempts: u32,
}

impl Way<'_> {
    /// Appends the header lines.
    pub(super) fn emit(&self, out: &mut Vec<u8>) {
        // The path of a socket may hold what no header may.
        let bytes = self.backend.bytes();
        let backend: Vec<u8> =
            bytes.map(|byte| if byte.is_ascii_control() { b'?' } else { byte }).collect();
        line(out, BACKEND, &backend);
        line(out, REASON, self.reason.as_bytes());
        number_line(out, PREDICTED, self.predicted_tokens);
        number_line(out, ATTEMPTS, self.attempts.into());
    }
}

impl Nowhere {
    /// Appends the header lines.
    pub(super) fn emit(&self, out: &mut Vec<u8>) {
        line(out, REASON, self.reason.as_bytes());
        number_line(out, ATTEMPTS, self.attempts.into());
    }
}

/// Whether a header is one of these.
fn is_of_way(name: &str) -> bool {
    [BACKEND, REASON, PREDICTED, ATTEMPTS].iter().any(|told| name.eq_ignore_ascii_case(told))
}

/// Says in an answer whose head ends with a [`Way`] how many backends were tried in the end.
pub fn set_attempts(answer: &mut Vec<u8>, attempts: u32) {
    let Some(end) = memchr::memmem::find(answer, b"\r\n\r\n") else { return };
    let Some(space) = answer[..end].iter().rposition(|&byte| byte == b' ') else { return };
    let mut digits = Vec::new();
    decimal(&mut digits, attempts.into());
    answer.splice(space + 1..end, digits);
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::String;
    use rstest::rstest;

    fn emitted(backend: &str) -> String {
        let mut out = Vec::new();
        let way = Way { backend, reason: "cached", predicted_tokens: 128, attempts: 1 };
        way.emit(&mut out);
        String::from_utf8(out).expect("it is text")
    }

    #[rstest]
    #[case::address("10.0.0.1:80", "10.0.0.1:80")]
    #[case::socket("unix:/run/vllm.sock", "unix:/run/vllm.sock")]
    #[case::beyond_ascii("unix:/ö", "unix:/ö")]
    #[case::hostile("unix:/a\r\nset-cookie: b\0\x7f", "unix:/a??set-cookie: b??")]
    fn the_way_is_four_lines(#[case] backend: &str, #[case] shown: &str) {
        let rest = "x-vllm-proxy-reason: cached\r\nx-vllm-proxy-predicted-cached-tokens: 128\r\n\
                    x-vllm-proxy-attempts: 1\r\n";
        let expected = alloc::format!("x-vllm-proxy-backend: {shown}\r\n{rest}");
        assert_eq!(emitted(backend), expected);
        assert!(expected.lines().all(|line| is_of_way(line.split(':').next().unwrap_or(""))));
    }

    #[rstest]
    #[case::one(2, "2")]
    #[case::more_digits(1_234, "1234")]
    fn attempts_are_set_behind_the_rest(#[case] attempts: u32, #[case] digits: &str) {
        let body = "\r\n\r\nx: 1\r\n\r\n";
        let head = alloc::format!("HTTP/1.1 503 No\r\n{}", emitted("a"));
        let mut answer = alloc::format!("{head}\r\n{body}").into_bytes();
        set_attempts(&mut answer, attempts);
        let head = head.replace("attempts: 1", &alloc::format!("attempts: {digits}"));
        assert_eq!(String::from_utf8(answer).expect("text"), alloc::format!("{head}\r\n{body}"));
        let mut none = b"HTTP/1.1".to_vec();
        set_attempts(&mut none, attempts);
        assert_eq!(none, b"HTTP/1.1");
    }
}
