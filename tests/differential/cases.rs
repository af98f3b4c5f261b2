//! What a case is, and how its request is written. The lists: `cases_api.rs`, what clients of
//! vLLM ask; `cases_http.rs`, how HTTP lets them ask it.

use std::time::Duration;

use crate::answer::{Step, Transcript};

/// The Host that every request names, so that redirects name it too, whoever answers.
pub(crate) const HOST: &str = "vllm.test:8000";

/// A named request and what is expected of the proxy's answer to it.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) steps: Vec<Step>,
    /// One entry per expected final answer: whether it answers a HEAD.
    pub(crate) answers: Vec<bool>,
    pub(crate) expected: Expected,
    /// Why several models behind one address rightly answer this otherwise than one server.
    pub(crate) fleet: Option<&'static str>,
    /// What of it the mock's HTTP does not speak: left out when the mock stands in.
    pub(crate) beyond_mock: Option<&'static str>,
}

/// Changes what is expected, line by line.
pub(crate) type Rewrite = fn(&mut Vec<String>);

/// What the proxy's answer must be.
pub(crate) enum Expected {
    /// The bare server's, byte for byte.
    Same,
    /// Another one, on purpose, and then exactly this.
    ByDesign { why: &'static str, check: fn(&Transcript) -> Result<(), String> },
    /// The bare server's with these of its lines rewritten, on purpose.
    Rewritten { why: &'static str, rewrite: Rewrite },
}

impl Case {
    fn new(name: &'static str, steps: Vec<Step>) -> Self {
        Self {
            name,
            steps,
            answers: vec![false],
            expected: Expected::Same,
            fleet: None,
            beyond_mock: None,
        }
    }

    /// A request of exactly these bytes.
    pub(crate) fn raw(name: &'static str, bytes: impl Into<Vec<u8>>) -> Self {
        Self::new(name, vec![Step::Send(bytes.into())])
    }

    /// Requests whose bytes are sent one after the other, each part on its own.
    pub(crate) fn parts(name: &'static str, parts: &[&[u8]]) -> Self {
        let mut steps = Vec::new();
        for part in parts {
            steps.push(Step::Send(part.to_vec()));
            steps.push(Step::Pause(Duration::from_millis(15)));
        }
        Self::new(name, steps)
    }

    pub(crate) fn steps(name: &'static str, steps: Vec<Step>) -> Self {
        Self::new(name, steps)
    }

    pub(crate) fn get(name: &'static str, target: &str) -> Self {
        Self::raw(name, Request::new("GET", target).bytes())
    }

    pub(crate) fn head(name: &'static str, target: &str) -> Self {
        let mut case = Self::raw(name, Request::new("HEAD", target).bytes());
        case.answers = vec![true];
        case
    }

    pub(crate) fn post(name: &'static str, target: &str, body: &str) -> Self {
        Self::raw(name, Request::new("POST", target).json(body).bytes())
    }

    /// Several answers, in order.
    pub(crate) fn answers(mut self, count: usize) -> Self {
        self.answers = vec![false; count];
        self
    }

    pub(crate) fn by_design(
        mut self,
        why: &'static str,
        check: fn(&Transcript) -> Result<(), String>,
    ) -> Self {
        self.expected = Expected::ByDesign { why, check };
        self
    }

    pub(crate) fn rewritten(mut self, why: &'static str, rewrite: Rewrite) -> Self {
        self.expected = Expected::Rewritten { why, rewrite };
        self
    }

    pub(crate) fn fleet(mut self, why: &'static str) -> Self {
        self.fleet = Some(why);
        self
    }
}

/// A request being written.
pub(crate) struct Request {
    start: String,
    headers: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
}

impl Request {
    pub(crate) fn new(method: &str, target: &str) -> Self {
        Self {
            start: format!("{method} {target} HTTP/1.1"),
            headers: vec![("Host".to_owned(), HOST.into())],
            body: Vec::new(),
        }
    }

    /// The same in HTTP/1.0, without a Host.
    pub(crate) fn old(mut self) -> Self {
        self.start = self.start.replace("HTTP/1.1", "HTTP/1.0");
        self.headers.retain(|(name, _)| name != "Host");
        self
    }

    pub(crate) fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name.to_owned(), value.as_ref().to_vec()));
        self
    }

    pub(crate) fn json(self, body: &str) -> Self {
        self.header("Content-Type", "application/json").body(body.as_bytes())
    }

    /// A body with its length.
    pub(crate) fn body(mut self, body: &[u8]) -> Self {
        self.body = body.to_vec();
        let length = body.len().to_string();
        self.header("Content-Length", length)
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = format!("{}\r\n", self.start).into_bytes();
        for (name, value) in &self.headers {
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(b": ");
            bytes.extend_from_slice(value);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// A body in chunks of these sizes, over and over, with the last chunk.
pub(crate) fn chunked(body: &[u8], sizes: &[usize]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let (mut rest, mut sizes) = (body, sizes.iter().cycle());
    while !rest.is_empty() {
        let size = sizes.next().map_or(rest.len(), |&size| size.min(rest.len()));
        bytes.extend_from_slice(format!("{size:x}\r\n").as_bytes());
        bytes.extend_from_slice(&rest[..size]);
        bytes.extend_from_slice(b"\r\n");
        rest = &rest[size..];
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    bytes
}
