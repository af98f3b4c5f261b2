//! What is said in a run: the client's requests and what backends answer, drawn from the seed.

use vllm_proxy_core::exchange::End;
use vllm_proxy_core::rng::Rng;

pub(crate) fn chance(rng: &mut Rng, one_in: u64) -> bool {
    rng.below(one_in) == 0
}

pub(crate) fn one_of<'a, T>(rng: &mut Rng, all: &'a [T]) -> &'a T {
    &all[rng.below(all.len() as u64) as usize]
}

/// A request, as the client sends it and as a backend must see it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Request {
    pub(crate) bytes: Vec<u8>,
    pub(crate) method: &'static str,
    pub(crate) minor: u8,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<String>,
    /// Whether the client says that nothing follows.
    pub(crate) last: bool,
    /// Whether it is malformed: 400, and nothing follows.
    pub(crate) malformed: bool,
    /// Whether the proxy answers it.
    pub(crate) own: bool,
    /// Whether it must not reach two backends.
    pub(crate) once: bool,
    /// Whether it would switch to a websocket.
    pub(crate) websocket: bool,
}

impl Request {
    /// What a client says, in order. Behind the offer of a websocket come bytes that are no
    /// request.
    pub(crate) fn draw_all(rng: &mut Rng) -> Vec<Self> {
        let count = 1 + rng.below(6) as usize;
        let mut requests: Vec<Self> = (0..count).map(|id| Self::draw(rng, id)).collect();
        if let Some(at) = requests.iter().position(|request| request.websocket) {
            requests.truncate(at + 1);
            let long = if chance(rng, 4) { 3_000 } else { 60 };
            let tail = format!("\u{1}of the client {}", "z".repeat(rng.below(long) as usize));
            let (method, malformed) = ("GET", true);
            requests.push(Self { bytes: tail.into_bytes(), method, malformed, ..Self::default() });
        }
        requests
    }

    fn draw(rng: &mut Rng, id: usize) -> Self {
        let own = chance(rng, 12);
        let method =
            if own { "GET" } else { *one_of(rng, &["GET", "POST", "POST", "POST", "HEAD"]) };
        let minor = if chance(rng, 8) { 0 } else { 1 };
        let once = method == "POST" && chance(rng, 6);
        let path = match (own, method) {
            (true, _) if chance(rng, 2) => "/load",
            (true, _) => "/health",
            (_, "POST") if once => "/plugin",
            (_, "POST") => "/v1/completions",
            _ => "/docs",
        };
        let websocket = method == "GET" && minor == 1 && chance(rng, 3);
        let malformed = !websocket && chance(rng, 40);
        let keep = chance(rng, 2);
        let asks_to_close = (minor == 0 && !keep) || (minor == 1 && chance(rng, 16));
        let last = malformed || (asks_to_close && !websocket);
        let empty_line = if chance(rng, 12) { "\r\n" } else { "" };
        let mut head = format!("{empty_line}{method} {path}?id={id} HTTP/1.{minor}\r\n");
        if minor == 1 || chance(rng, 2) {
            head.push_str("Host: client\r\n");
        }
        match (minor, last) {
            (0, false) => head.push_str("Connection: keep-alive\r\n"),
            (1, true) if !malformed => head.push_str("Connection: close\r\n"),
            _ => {}
        }
        if malformed {
            head.push_str("no colon here\r\n");
        }
        if websocket {
            head.push_str("Connection: Keep-Alive, Upgrade\r\nUpgrade: websocket\r\n");
        }
        head.push_str("X-Case: KePt\r\n");
        let mut request = Self {
            bytes: Vec::new(),
            method,
            minor,
            body: Vec::new(),
            trailers: Vec::new(),
            last,
            malformed,
            own: own && !websocket,
            once: once || websocket,
            websocket,
        };
        if method == "POST" && !malformed {
            let long = if chance(rng, 10) { 3_000 } else { 40 };
            let pad = "x".repeat(rng.below(long) as usize);
            request.body = format!(r#"{{"model":"m","id":{id},"pad":"{pad}"}}"#).into_bytes();
            if minor == 1 && chance(rng, 4) {
                head.push_str("Expect: 100-continue\r\n");
            }
            if minor == 1 && chance(rng, 2) {
                head.push_str("Transfer-Encoding: chunked\r\n\r\n");
                let body = &request.body;
                let (chunked, trailers) = chunks(rng, body);
                request.trailers = trailers;
                request.bytes = [head.as_bytes(), &chunked].concat();
            } else {
                head.push_str(&format!("Content-Length: {}\r\n\r\n", request.body.len()));
                request.bytes = [head.as_bytes(), &request.body].concat();
            }
        } else {
            head.push_str("\r\n");
            request.bytes = head.into_bytes();
        }
        request
    }
}

/// A stream of events; the first is an error if there is a code for it.
fn events(code: u16, serial: usize, id: usize, pad: &str) -> String {
    let text = format!("answer {serial} to {id} {pad}");
    match code {
        0 => format!("data: {{\"text\": \"{text}\"}}\n\ndata: [DONE]\n\n"),
        code => format!(
            "data: {{\"error\": {{\"message\": \"{text}\", \"code\": {code}}}}}\n\ndata: [DONE]\n\n"
        ),
    }
}

/// A body in chunks, with the fields of its trailer section.
fn chunks(rng: &mut Rng, body: &[u8]) -> (Vec<u8>, Vec<String>) {
    let mut out = Vec::new();
    let mut rest = body;
    while !rest.is_empty() {
        let (chunk, behind) = rest.split_at(1 + rng.below(rest.len() as u64) as usize);
        rest = behind;
        let extension = if chance(rng, 4) { ";name=\"value\"" } else { "" };
        out.extend_from_slice(format!("{:X}{extension}\r\n", chunk.len()).as_bytes());
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"0\r\n");
    let mut trailers = Vec::new();
    if chance(rng, 4) {
        trailers.push(String::from("X-Sum: 1"));
        out.extend_from_slice(b"X-Sum: 1\r\n");
    }
    out.extend_from_slice(b"\r\n");
    (out, trailers)
}

/// One answer of one backend, and how it goes wrong.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// Which request it answers.
    pub(crate) id: usize,
    pub(crate) status: u16,
    pub(crate) start: String,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<String>,
    /// All that the backend will send.
    pub(crate) bytes: Vec<u8>,
    /// How much of it is the answer; the rest is what nobody asked for.
    pub(crate) due: usize,
    /// What the backend does then; `None` if it stays.
    pub(crate) ends: Option<End>,
    /// Whether it says all that it owes.
    pub(crate) whole: bool,
    /// Whether a careful reader refuses it.
    pub(crate) nonsense: bool,
    /// Whether it switches to a websocket; the body is what the backend says then.
    pub(crate) switches: bool,
}

impl Answer {
    /// Whether it opens a websocket that was asked for.
    pub(crate) const fn is_websocket(&self) -> bool {
        self.switches && !self.nonsense
    }

    /// `serial` is in its head and its body, so that nothing can be taken for something else.
    pub(crate) fn draw(
        rng: &mut Rng,
        id: usize,
        serial: usize,
        request: &Request,
        faults: bool,
    ) -> Self {
        let to_head = request.method == "HEAD";
        let switches = if request.websocket { !chance(rng, 4) } else { faults && chance(rng, 60) };
        let status = if switches {
            101
        } else if faults {
            *one_of(rng, &[200, 200, 200, 200, 200, 204, 299, 304, 404, 500, 503])
        } else {
            200
        };
        let start = format!("HTTP/1.1 {status} As It Is");
        let mut bytes = Vec::new();
        for _ in 0..if chance(rng, 10) { 1 + rng.below(2) } else { 0 } {
            bytes.extend_from_slice(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n");
        }
        bytes.extend_from_slice(format!("{start}\r\nX-Serial: {serial}\r\n").as_bytes());
        let named = switches && !(faults && chance(rng, 8));
        if named {
            bytes.extend_from_slice(b"Upgrade: websocket\r\nConnection: Upgrade\r\n");
        }
        let malformed = faults && chance(rng, 30);
        let nonsense = malformed || (switches && !(named && request.websocket));
        if malformed {
            bytes.extend_from_slice(b"bad header: 1\r\nx : 2\r\n");
        }
        let closes = !switches && chance(rng, 8);
        if closes {
            bytes.extend_from_slice(b"Connection: close\r\n");
        }
        let bodiless = to_head || matches!(status, 204 | 304);
        let long = if chance(rng, 8) { 5_000 } else { 60 };
        let pad = "y".repeat(rng.below(long) as usize);
        let body = if !switches && chance(rng, 4) {
            bytes.extend_from_slice(b"content-type: text/event-stream; charset=utf-8\r\n");
            let code = if faults { *one_of(rng, &[0, 400, 500, 503]) } else { 0 };
            events(code, serial, id, &pad)
        } else {
            format!("answer {serial} to {id} {pad}")
        };
        let body = if bodiless { Vec::new() } else { body.into_bytes() };
        let mut answer = Self {
            id,
            status,
            start,
            body,
            trailers: Vec::new(),
            bytes: Vec::new(),
            due: 0,
            ends: None,
            whole: true,
            nonsense,
            switches,
        };
        let mut until_close = false;
        let mut head_end = None;
        match rng.below(3) {
            _ if switches => {
                until_close = true;
                bytes.extend_from_slice(b"\r\n");
                head_end = Some(bytes.len() as u64);
                bytes.extend_from_slice(&answer.body);
            }
            _ if bodiless => bytes.extend_from_slice(b"content-length: 0\r\n\r\n"),
            0 => {
                bytes.extend_from_slice(b"transfer-encoding: chunked\r\n\r\n");
                let (chunked, trailers) = chunks(rng, &answer.body);
                answer.trailers = trailers;
                bytes.extend_from_slice(&chunked);
            }
            1 => {
                let length = format!("content-length: {}\r\n\r\n", answer.body.len());
                bytes.extend_from_slice(length.as_bytes());
                bytes.extend_from_slice(&answer.body);
            }
            _ => {
                until_close = true;
                bytes.extend_from_slice(b"\r\n");
                bytes.extend_from_slice(&answer.body);
            }
        }
        if switches {
            let ends = [None, Some(End::Closed), Some(End::Reset)];
            answer.ends = *one_of(rng, if faults { &ends } else { &ends[..2] });
        } else if closes || until_close {
            answer.ends = Some(End::Closed);
        }
        if faults && chance(rng, 5) {
            bytes.truncate(rng.below(head_end.unwrap_or(bytes.len() as u64)) as usize);
            answer.whole = false;
            // An answer without a length that closes in order would be complete.
            answer.ends = match rng.below(4) {
                0 => None,
                1 if !until_close || switches => Some(End::Closed),
                _ => Some(End::Reset),
            };
        }
        answer.due = bytes.len();
        if faults && answer.whole && !until_close && chance(rng, 20) {
            bytes.extend_from_slice(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nstolen");
        }
        answer.bytes = bytes;
        answer
    }
}
