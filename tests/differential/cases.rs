//! What a case is, and how its request is written. The lists: `cases_api.rs`, what clients of
//! vLLM ask; `cases_http.rs`, how HTTP lets them ask it; `cases_routes.rs`, every route asked
//! wrongly; and one file for each kind of server that has more routes than a plain one.

use std::time::Duration;

use crate::answer::{Step, Transcript};

/// The Host that every request names, so that redirects name it too, whoever answers.
pub(crate) const HOST: &str = "vllm.test:8000";

/// A named request and what is expected of the proxy's answer to it.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) steps: Vec<Step>,
    /// One entry per expected final answer: whether it answers a HEAD.
    pub(crate) answers: Vec<bool>,
    pub(crate) expected: Expected,
    /// Why several models behind one address rightly answer this otherwise than one server.
    pub(crate) fleet: Option<&'static str>,
    /// What of it the mock's HTTP does not speak: left out when the mock stands in.
    pub(crate) beyond_mock: Option<&'static str>,
    /// What of both answers is compared, where that is not all of them.
    pub(crate) view: Option<Rewrite>,
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
    fn new(name: &str, steps: Vec<Step>) -> Self {
        Self {
            name: name.to_owned(),
            steps,
            answers: vec![false],
            expected: Expected::Same,
            fleet: None,
            beyond_mock: None,
            view: None,
        }
    }

    /// A request of exactly these bytes.
    pub(crate) fn raw(name: &str, bytes: impl Into<Vec<u8>>) -> Self {
        Self::new(name, vec![Step::Send(bytes.into())])
    }

    /// Requests whose bytes are sent one after the other, each part on its own.
    pub(crate) fn parts(name: &str, parts: &[&[u8]]) -> Self {
        let mut steps = Vec::new();
        for part in parts {
            steps.push(Step::Send(part.to_vec()));
            steps.push(Step::Pause(Duration::from_millis(15)));
        }
        Self::new(name, steps)
    }

    pub(crate) fn steps(name: &str, steps: Vec<Step>) -> Self {
        Self::new(name, steps)
    }

    pub(crate) fn get(name: &str, target: &str) -> Self {
        Self::raw(name, Request::new("GET", target).bytes())
    }

    pub(crate) fn head(name: &str, target: &str) -> Self {
        let mut case = Self::raw(name, Request::new("HEAD", target).bytes());
        case.answers = vec![true];
        case
    }

    pub(crate) fn post(name: &str, target: &str, body: &str) -> Self {
        Self::raw(name, Request::new("POST", target).json(body).bytes())
    }

    /// Requests on one connection, each sent when the one before it was answered.
    pub(crate) fn talk(name: &str, requests: &[Request]) -> Self {
        let ask = |request: &Request| [Step::Send(request.bytes()), Step::Await];
        Self::steps(name, requests.iter().flat_map(ask).collect()).answers(requests.len())
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

    /// Whether one of its requests has more bytes than these.
    pub(crate) fn is_longer_than(&self, bytes: usize) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Send(sent) if sent.len() > bytes))
    }

    /// Method and path of each request.
    pub(crate) fn asked(&self) -> Vec<(String, String)> {
        let line = |step: &Step| {
            let (Step::Send(bytes) | Step::Until(bytes, _)) = step else { return None };
            let line = bytes.split(|&b| b == b'\r').next()?;
            let mut words = std::str::from_utf8(line).ok()?.split(' ');
            let (method, target) = (words.next()?, words.next()?);
            let path = target.split('?').next().unwrap_or_default();
            Some((method.to_owned(), path.to_owned()))
        };
        self.steps.iter().filter_map(line).collect()
    }

    /// Compares only what `view` leaves of the lines of both answers.
    pub(crate) fn view(mut self, view: Rewrite) -> Self {
        self.view = Some(view);
        self
    }

    pub(crate) fn fleet(mut self, why: &'static str) -> Self {
        self.fleet = Some(why);
        self
    }
}

/// vLLM's handler of last resort answers a 500, and uvicorn then ends the connection without
/// having said so: it is no answer's business whether the client's one ends too.
pub(crate) fn kept_open_after_500(mut case: Case) -> Case {
    const WHY: &str = "a connection that the server ends unannounced after a 500 is its own";
    if matches!(case.expected, Expected::Same) {
        case.expected = Expected::Rewritten { why: WHY, rewrite: keep_open_after_500 };
    }
    case
}

fn keep_open_after_500(lines: &mut Vec<String>) {
    let last = lines.iter().rfind(|line| line.starts_with("HTTP/1.1 "));
    if last.is_some_and(|line| line.starts_with("HTTP/1.1 500 ")) {
        keep_open(lines);
    }
}

/// The connection is still open, if it was closed at the end.
pub(crate) fn keep_open(lines: &mut Vec<String>) {
    if lines.pop_if(|end| end == "[connection: closed]").is_some() {
        lines.push("[connection: open]".to_owned());
    }
}

/// Why the proxy's client is not told that the server ends its connection.
pub(crate) const OWN_CONNECTION: &str =
    "the server's `connection: close` ends its own connection only";

/// The server neither said that it ends the connection nor did.
pub(crate) fn kept_open(lines: &mut Vec<String>) {
    lines.retain(|line| !line.eq_ignore_ascii_case("connection: close"));
    keep_open(lines);
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

    pub(crate) fn get(target: &str) -> Self {
        Self::new("GET", target)
    }

    /// A POST of this JSON.
    pub(crate) fn post(target: &str, body: &str) -> Self {
        Self::new("POST", target).json(body)
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

/// Whether the path is one of a route like `/v1/responses/{id}/cancel`.
pub(crate) fn is_path_of(route: &str, path: &str) -> bool {
    let (route, path): (Vec<_>, Vec<_>) = (route.split('/').collect(), path.split('/').collect());
    route.len() == path.len()
        && route.iter().zip(&path).all(|(a, b)| a == b || (a.starts_with('{') && !b.is_empty()))
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
