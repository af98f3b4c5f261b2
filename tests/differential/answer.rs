//! What came back, byte for byte: reads raw answers off a socket and writes them down as lines
//! that can be compared. Knows HTTP/1.1 framing and nothing of vLLM or of the proxy.
//!
//! Chunk boundaries are not kept (they are timing), everything else is: the status line, every
//! header line in its order and spelling, interim answers, the body, the trailers, whether the
//! message ended as complete, and whether the connection served another request afterwards.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::servers::Address;

/// How often a question is asked again.
const ASKED_MAX: usize = 600;
/// How long an answer that is not there yet is given.
const ASKED_EVERY: Duration = Duration::from_millis(20);

/// One thing that a client does.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Write these bytes at once.
    Send(Vec<u8>),
    /// Let what was written arrive on its own.
    Pause(Duration),
    /// Read one answer; what follows is left undone if it is a final one.
    AwaitInterim,
    /// Read answers up to a final one.
    Await,
    /// Ask this again until the body of its answer holds the text, or the answer is no 200, and
    /// keep the last answer alone.
    Until(Vec<u8>, &'static str),
}

/// How the body of an answer was delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    None,
    Length(usize),
    Chunked,
    UntilClose,
}

/// One answer, interim ones included.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Status line and header lines without their CRLF.
    pub(crate) head: Vec<Vec<u8>>,
    pub(crate) body: Vec<u8>,
    framing: Framing,
    trailers: Vec<Vec<u8>>,
    cut: bool,
}

impl Answer {
    pub(crate) fn status(&self) -> u16 {
        self.head.first().map_or(0, |line| {
            let digits = line.splitn(3, |&b| b == b' ').nth(1).unwrap_or_default();
            std::str::from_utf8(digits).ok().and_then(|s| s.parse().ok()).unwrap_or(0)
        })
    }

    pub(crate) fn header(&self, name: &str) -> Option<String> {
        self.head.iter().skip(1).find_map(|line| {
            let colon = line.iter().position(|&b| b == b':')?;
            line[..colon]
                .eq_ignore_ascii_case(name.as_bytes())
                .then(|| String::from_utf8_lossy(&line[colon + 1..]).trim().to_owned())
        })
    }

    pub(crate) fn is_event_stream(&self) -> bool {
        self.header("content-type").is_some_and(|v| v.starts_with("text/event-stream"))
    }
}

/// Everything that one run of a case showed.
#[derive(Debug, Default)]
pub(crate) struct Transcript {
    pub(crate) answers: Vec<Answer>,
    /// What went wrong on the way, in words.
    pub(crate) trouble: Option<String>,
    /// What became of the connection.
    pub(crate) afterwards: &'static str,
}

impl Transcript {
    /// The transcript as lines for comparing and for reading; `normalise` hides what is
    /// volatile by nature.
    pub(crate) fn lines(&self, normalise: impl Fn(&[u8]) -> Vec<u8>) -> Vec<String> {
        let mut lines = Vec::new();
        for answer in &self.answers {
            lines.push(printable(answer.head.first().map_or(b"", |line| line)));
            for header in answer.head.iter().skip(1) {
                let date = header.len() > 5 && header[..5].eq_ignore_ascii_case(b"date:");
                // "Sat, 22 Nov 2025 11:11:11 GMT" always has 29 bytes.
                if date && header.len() == 6 + 29 {
                    lines.push(format!("{} <date>", printable(&header[..5])));
                } else {
                    lines.push(printable(&normalise(header)));
                }
            }
            lines.push(format!("[framing: {:?}]", answer.framing));
            for line in normalise(&answer.body).split_inclusive(|&b| b == b'\n') {
                lines.push(printable(line));
            }
            lines.extend(answer.trailers.iter().map(|t| format!("[trailer] {}", printable(t))));
            lines.push(format!("[{}]", if answer.cut { "cut short" } else { "complete" }));
        }
        lines.extend(self.trouble.iter().map(|trouble| format!("[trouble: {trouble}]")));
        lines.push(format!("[connection: {}]", self.afterwards));
        lines
    }
}

/// Carries out `steps` on a fresh connection and reads `expected` final answers.
///
/// `head_only` says for each answer whether it answers a HEAD.
pub(crate) fn run(
    addr: &Address,
    steps: &[Step],
    head_only: &[bool],
    limit: Duration,
) -> Transcript {
    let mut transcript = Transcript { afterwards: "closed", ..Transcript::default() };
    if let Err(error) = drive(addr, steps, head_only, limit, &mut transcript) {
        transcript.trouble = Some(error);
    }
    transcript
}

fn drive(
    addr: &Address,
    steps: &[Step],
    head_only: &[bool],
    limit: Duration,
    transcript: &mut Transcript,
) -> Result<(), String> {
    let mut peer = Peer { stream: connect(addr, limit)?, unread: Vec::new(), at_end: false };
    let mut heads = head_only.iter().copied();
    for step in steps {
        match step {
            // An early refusal may close on us while we write: the answer is still worth reading.
            Step::Send(bytes) => {
                if peer.stream.write_all(bytes).is_err() {
                    break;
                }
            }
            Step::Pause(time) => std::thread::sleep(*time),
            Step::AwaitInterim => {
                let answer = peer.answer(false)?;
                let interim = answer.status() < 200;
                transcript.answers.push(answer);
                if !interim {
                    heads.next();
                    break;
                }
            }
            Step::Await => {
                if peer.final_answer(heads.next().unwrap_or(false), transcript)? {
                    return Ok(());
                }
            }
            Step::Until(bytes, text) => {
                heads.next();
                transcript.answers.push(peer.asked_until(bytes, text)?);
            }
        }
    }
    for head_only in heads {
        if peer.final_answer(head_only, transcript)? {
            return Ok(());
        }
    }
    transcript.afterwards = peer.afterwards();
    Ok(())
}

/// Both directions of a connection.
trait Stream: Read + Write {}

impl<S: Read + Write> Stream for S {}

fn connect(addr: &Address, limit: Duration) -> Result<Box<dyn Stream>, String> {
    let words = |e: io::Error| e.to_string();
    match addr {
        Address::Tcp(addr) => {
            let stream =
                TcpStream::connect_timeout(addr, limit).map_err(|e| format!("connect: {e}"))?;
            stream.set_nodelay(true).map_err(words)?;
            stream.set_read_timeout(Some(limit)).map_err(words)?;
            stream.set_write_timeout(Some(limit)).map_err(words)?;
            Ok(Box::new(stream))
        }
        Address::Unix(path) => {
            let stream = UnixStream::connect(path).map_err(|e| format!("connect: {e}"))?;
            stream.set_read_timeout(Some(limit)).map_err(words)?;
            stream.set_write_timeout(Some(limit)).map_err(words)?;
            Ok(Box::new(stream))
        }
    }
}

struct Peer {
    stream: Box<dyn Stream>,
    unread: Vec<u8>,
    at_end: bool,
}

impl Peer {
    /// Reads more; false at the end of the connection, orderly or not.
    fn more(&mut self) -> Result<bool, String> {
        if self.at_end {
            return Ok(false);
        }
        let mut buffer = [0; 65536];
        match self.stream.read(&mut buffer) {
            Ok(0) => self.at_end = true,
            Ok(n) => self.unread.extend_from_slice(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => self.at_end = true,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => {
                let got = printable(&self.unread[..self.unread.len().min(300)]);
                return Err(format!("read: {e}; unread so far: `{got}`"));
            }
        }
        Ok(!self.at_end)
    }

    fn line(&mut self) -> Result<Option<Vec<u8>>, String> {
        loop {
            if let Some(end) = self.unread.windows(2).position(|w| w == b"\r\n") {
                let line = self.unread[..end].to_vec();
                self.unread.drain(..end + 2);
                return Ok(Some(line));
            }
            if !self.more()? {
                return Ok(None);
            }
        }
    }

    /// Takes up to `len` bytes: fewer only at the end of the connection.
    fn take(&mut self, len: usize) -> Result<Vec<u8>, String> {
        while self.unread.len() < len && self.more()? {}
        Ok(self.unread.drain(..len.min(self.unread.len())).collect())
    }

    /// Reads up to a final answer; true if it was the last thing said on this connection.
    fn final_answer(
        &mut self,
        head_only: bool,
        transcript: &mut Transcript,
    ) -> Result<bool, String> {
        loop {
            let answer = self.answer(head_only)?;
            // 101 is the last thing that HTTP says on a connection.
            let upgraded = answer.status() == 101;
            let over = answer.framing == Framing::UntilClose || answer.cut || upgraded;
            let interim = answer.status() < 200 && !upgraded;
            transcript.answers.push(answer);
            if over || !interim {
                return Ok(over);
            }
        }
    }

    fn asked_until(&mut self, request: &[u8], text: &str) -> Result<Answer, String> {
        for _ in 0..ASKED_MAX {
            self.stream.write_all(request).map_err(|e| format!("asking again: {e}"))?;
            let answer = self.answer(false)?;
            if answer.status() != 200 || String::from_utf8_lossy(&answer.body).contains(text) {
                return Ok(answer);
            }
            std::thread::sleep(ASKED_EVERY);
        }
        Err(format!("never answered with `{text}`"))
    }

    fn answer(&mut self, head_only: bool) -> Result<Answer, String> {
        let mut head = Vec::new();
        loop {
            match self.line()? {
                Some(line) if line.is_empty() && !head.is_empty() => break,
                Some(line) => head.push(line),
                None if head.is_empty() && self.unread.is_empty() => {
                    return Err("connection closed without an answer".to_owned());
                }
                None => return Err(format!("head cut short after `{}`", printable(&self.unread))),
            }
        }
        let mut answer = Answer {
            head,
            body: Vec::new(),
            framing: Framing::None,
            trailers: Vec::new(),
            cut: false,
        };
        let status = answer.status();
        let length = answer.header("content-length").and_then(|v| v.parse().ok());
        answer.framing = if head_only || status < 200 || status == 204 || status == 304 {
            Framing::None
        } else if answer.header("transfer-encoding").is_some() {
            Framing::Chunked
        } else {
            length.map_or(Framing::UntilClose, Framing::Length)
        };
        match answer.framing {
            Framing::None => {}
            Framing::Length(len) => {
                answer.body = self.take(len)?;
                answer.cut = answer.body.len() < len;
            }
            Framing::UntilClose => {
                while self.more()? {}
                answer.body = std::mem::take(&mut self.unread);
            }
            Framing::Chunked => answer.cut = !self.chunks(&mut answer)?,
        }
        Ok(answer)
    }

    /// Reads a chunked body; false if it ends before its last chunk.
    fn chunks(&mut self, answer: &mut Answer) -> Result<bool, String> {
        loop {
            let Some(line) = self.line()? else { return Ok(false) };
            let text = String::from_utf8_lossy(&line).into_owned();
            let size = text.split(';').next().unwrap_or_default();
            let size = usize::from_str_radix(size, 16)
                .map_err(|_| format!("malformed chunk size `{}`", printable(&line)))?;
            if size == 0 {
                break;
            }
            let chunk = self.take(size)?;
            let whole = chunk.len() == size;
            answer.body.extend(chunk);
            if !whole {
                return Ok(false);
            }
            match self.take(2)? {
                end if end == b"\r\n" => {}
                end if end.len() < 2 => return Ok(false),
                end => return Err(format!("chunk ends with `{}`", printable(&end))),
            }
        }
        loop {
            match self.line()? {
                Some(line) if line.is_empty() => return Ok(true),
                Some(line) => answer.trailers.push(line),
                None => return Ok(false),
            }
        }
    }

    /// Whether the connection serves another request.
    fn afterwards(&mut self) -> &'static str {
        if !self.unread.is_empty() {
            return "stray bytes after the last answer";
        }
        // A failing write says the same as the read behind it: closed.
        let _ = self.stream.write_all(b"GET /version HTTP/1.1\r\nHost: vllm.test\r\n\r\n");
        match self.answer(false) {
            Ok(answer) if answer.status() == 200 => "open",
            Ok(_) => "open, and the next request fails",
            Err(_) if self.at_end => "closed",
            Err(_) => "silent",
        }
    }
}

/// Bytes as one line of text that hides nothing.
pub(crate) fn printable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                c if c.is_control() => {
                    let _ = write!(text, "\\u{{{:x}}}", u32::from(c));
                }
                c => text.push(c),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}
