//! What is said in these tests, and how a transcript shows it.

use super::harness::Bench;
use crate::wire::answers::reason;
use std::format;
use std::string::{String, ToString};

/// A request for the model that every backend serves. Its body is 13 bytes.
pub(crate) const POST: &str =
    "POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 13\r\n\r\n{\"model\":\"m\"}";
/// A request without a body.
pub(super) const GET: &str = "GET /x HTTP/1.1\r\nHost: h\r\n\r\n";
/// An answer.
pub(crate) const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";

/// A message with `|` for each line end.
pub(crate) fn http(text: &str) -> String {
    text.replace('|', "\r\n")
}

/// Bytes as a transcript shows them.
pub(crate) fn shown(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().escape_ascii().to_string().replace("\\r\\n", "|").replace("\\\"", "\"")
}

/// The header line of an answer that ends the connection.
pub(super) const CLOSE: &str = "connection: close|";

pub(super) fn status_line(status: u16) -> String {
    format!("{status} {}", reason(status))
}

/// The body of an error of our own.
pub(super) fn error(status: u16, message: &str) -> String {
    let kind = reason(status);
    format!(r#"{{"error":{{"message":"{message}","type":"{kind}","param":null,"code":{status}}}}}"#)
}

impl Bench {
    /// An answer of our own, as a transcript shows it.
    pub(super) fn own(&self, status: &str, headers: &str, connection: &str, body: &str) -> String {
        self.said(status, headers, &format!("vary: Origin|{connection}"), body)
    }

    /// An answer of our own to a request that was not read to its end.
    pub(super) fn refusal(&self, status: u16, headers: &str, body: &str) -> String {
        self.said(&status_line(status), headers, CLOSE, body)
    }

    /// The same, of an error.
    pub(super) fn error(&self, status: u16, message: &str) -> String {
        self.refusal(status, "", &error(status, message))
    }

    fn said(&self, status: &str, headers: &str, behind: &str, body: &str) -> String {
        let secs = self.now.micros() / 1_000_000;
        let (hour, minute, second) = (secs / 3_600 % 24, secs / 60 % 60, secs % 60);
        let kind = if body.is_empty() { "" } else { "content-type: application/json|" };
        format!(
            "HTTP/1.1 {status}|date: Thu, 01 Jan 1970 {hour:02}:{minute:02}:{second:02} GMT|\
             server: uvicorn|{headers}content-length: {}|{kind}{behind}|{body}",
            body.len(),
        )
    }
}
