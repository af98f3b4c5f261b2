//! One end of a TCP connection, byte by byte: what clients and backends of these tests are made of.
//!
//! Knows just enough of HTTP/1.1 to find where a message ends, and forgives nothing: what is not
//! there within [`PATIENCE`] fails the test. Independent of the proxy's own codec on purpose.

pub(crate) use crate::patience::PATIENCE;
use socket2::{SockRef, TcpKeepalive};
use std::fmt::{self, Write as _};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

/// How often the kernel asks a silent peer whether it is still there.
const ASK: Duration = Duration::from_secs(5);

/// How a peer's bytes end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Closed,
    Reset,
    /// It neither sent nor closed within [`PATIENCE`].
    Silent,
}

/// A connection and what was read of it too early.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: TcpStream,
    ahead: Vec<u8>,
}

/// One message: its bytes as they came, and its body without framing.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) raw: Vec<u8>,
    pub(crate) head: Vec<u8>,
    pub(crate) body: Vec<u8>,
}

impl Wire {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        Self::new(TcpStream::connect_timeout(&address, PATIENCE).expect("the proxy accepts"))
    }

    pub(crate) fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).expect("a limit that is not zero");
        stream.set_write_timeout(Some(PATIENCE)).expect("a limit that is not zero");
        stream.set_nodelay(true).expect("TCP has it");
        // Loopback loses packets, too, where this machine has more of them than it can look at. All
        // but a reset are sent again; who misses one learns of it when it asks.
        let often = TcpKeepalive::new().with_time(ASK).with_interval(ASK);
        SockRef::from(&stream).set_tcp_keepalive(&often).expect("TCP has it");
        Self { stream, ahead: Vec::new() }
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Sends all; the peer must take it.
    pub(crate) fn send(&self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).expect("the peer takes bytes");
    }

    /// Sends what the peer takes.
    pub(crate) fn try_send(&self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        (&self.stream).write_all(bytes.as_ref())
    }

    /// Waits for more bytes.
    fn more(&mut self) -> Result<(), End> {
        let mut buffer = [0; 64 << 10];
        loop {
            return match self.stream.read(&mut buffer) {
                Ok(0) => Err(End::Closed),
                Ok(bytes) => {
                    self.ahead.extend_from_slice(&buffer[..bytes]);
                    Ok(())
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => Err(End::Silent),
                Err(_) => Err(End::Reset),
            };
        }
    }

    /// Everything up to and with `needle`.
    pub(crate) fn until(&mut self, needle: &[u8]) -> Result<Vec<u8>, End> {
        let mut seen = 0;
        loop {
            let from = seen.min(self.ahead.len());
            let found = self.ahead[from..].windows(needle.len()).position(|bytes| bytes == needle);
            if let Some(at) = found {
                return Ok(self.take(from + at + needle.len()));
            }
            seen = (self.ahead.len() + 1).saturating_sub(needle.len());
            self.more()?;
        }
    }

    /// A message's head, with its empty line.
    pub(crate) fn head(&mut self) -> Result<Vec<u8>, End> {
        self.until(b"\r\n\r\n")
    }

    /// So many bytes.
    pub(crate) fn exactly(&mut self, len: usize) -> Result<Vec<u8>, End> {
        while self.ahead.len() < len {
            self.more()?;
        }
        Ok(self.take(len))
    }

    /// Everything to the end, and what the end is.
    pub(crate) fn rest(&mut self) -> (Vec<u8>, End) {
        loop {
            if let Err(end) = self.more() {
                return (std::mem::take(&mut self.ahead), end);
            }
        }
    }

    /// The end, which must come before another byte.
    pub(crate) fn end(&mut self) -> End {
        let (rest, end) = self.rest();
        assert!(rest.is_empty(), "unexpected before the end: {}", shown(&rest));
        end
    }

    /// How it ends, whatever comes before; nothing is kept, so that it may be much.
    pub(crate) fn drained(&mut self) -> (usize, End) {
        let mut bytes = 0;
        loop {
            bytes += std::mem::take(&mut self.ahead).len();
            if let Err(end) = self.more() {
                return (bytes, end);
            }
        }
    }

    /// Whether nothing is there to be read right now.
    pub(crate) fn is_silent(&mut self) -> bool {
        self.stream.set_nonblocking(true).expect("sockets have it");
        let more = self.more();
        self.stream.set_nonblocking(false).expect("sockets have it");
        more == Err(End::Silent) && self.ahead.is_empty()
    }

    /// A whole answer.
    pub(crate) fn answer(&mut self) -> Result<Message, End> {
        let head = self.head()?;
        let bodyless = matches!(status(&head), 100..=199 | 204 | 304);
        self.body_of(head, !bodyless)
    }

    /// A whole answer to HEAD.
    pub(crate) fn answer_to_head(&mut self) -> Result<Message, End> {
        let head = self.head()?;
        Ok(Message { raw: head.clone(), head, body: Vec::new() })
    }

    /// What is left of a request whose head was read.
    pub(crate) fn request_with(&mut self, head: Vec<u8>) -> Result<Message, End> {
        let framed = header(&head, "content-length").or(header(&head, "transfer-encoding"));
        let has_body = framed.is_some();
        self.body_of(head, has_body)
    }

    fn body_of(&mut self, head: Vec<u8>, has_body: bool) -> Result<Message, End> {
        let mut message = Message { raw: head.clone(), head, body: Vec::new() };
        if !has_body {
            return Ok(message);
        }
        if let Some(length) = header(&message.head, "content-length") {
            message.body = self.exactly(length.parse().expect("a length is a number"))?;
            message.raw.extend_from_slice(&message.body);
        } else if header(&message.head, "transfer-encoding").is_some() {
            loop {
                let line = self.until(b"\r\n")?;
                message.raw.extend_from_slice(&line);
                let digits = std::str::from_utf8(&line[..line.len() - 2]).expect("hex digits");
                let size = usize::from_str_radix(digits, 16).expect("hex digits");
                if size == 0 {
                    break;
                }
                let chunk = self.exactly(size + 2)?;
                assert!(chunk.ends_with(b"\r\n"), "no line end behind a chunk: {}", shown(&chunk));
                message.body.extend_from_slice(&chunk[..size]);
                message.raw.extend_from_slice(&chunk);
            }
            loop {
                let line = self.until(b"\r\n")?;
                message.raw.extend_from_slice(&line);
                if line == b"\r\n" {
                    break;
                }
            }
        } else {
            let (rest, end) = self.rest();
            if end != End::Closed {
                return Err(end);
            }
            message.raw.extend_from_slice(&rest);
            message.body = rest;
        }
        Ok(message)
    }

    fn take(&mut self, len: usize) -> Vec<u8> {
        let rest = self.ahead.split_off(len);
        std::mem::replace(&mut self.ahead, rest)
    }

    /// Closes the sending half.
    pub(crate) fn half_close(&self) {
        self.stream.shutdown(Shutdown::Write).expect("it is open");
    }

    /// Ends the connection by a reset.
    pub(crate) fn reset(self) {
        SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).expect("TCP has it");
    }
}

impl Message {
    pub(crate) fn status(&self) -> u16 {
        status(&self.head)
    }

    pub(crate) fn header(&self, name: &str) -> Option<String> {
        header(&self.head, name)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shown(&self.raw))
    }
}

/// The status of an answer's head.
pub(crate) fn status(head: &[u8]) -> u16 {
    let digits = head.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok());
    let status = digits.and_then(|digits| digits.parse().ok());
    status.unwrap_or_else(|| panic!("no status: {}", shown(head)))
}

/// The value of the first header of this name.
pub(crate) fn header(head: &[u8], name: &str) -> Option<String> {
    let head = String::from_utf8_lossy(head);
    let fields = head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
    let mut named = fields.filter(|(key, _)| key.eq_ignore_ascii_case(name));
    named.next().map(|(_, value)| value.trim().to_owned())
}

/// Bytes for people, the middle of many left out.
pub(crate) fn shown(bytes: &[u8]) -> String {
    const ENDS: usize = 600;
    let mut text = String::new();
    if bytes.len() <= 2 * ENDS {
        let _ = write!(text, "\"{}\"", bytes.escape_ascii());
    } else {
        let (front, back) = (&bytes[..ENDS], &bytes[bytes.len() - ENDS..]);
        let _ = write!(
            text,
            "{} bytes: \"{}\" .. \"{}\"",
            bytes.len(),
            front.escape_ascii(),
            back.escape_ascii()
        );
    }
    text
}

/// Equal to the byte, and readable if not.
#[track_caller]
pub(crate) fn assert_bytes(got: &[u8], expected: &[u8]) {
    if got != expected {
        let at = got.iter().zip(expected).take_while(|(got, expected)| got == expected).count();
        panic!("differs at byte {at}\n  got:      {}\n  expected: {}", shown(got), shown(expected));
    }
}

/// A POST of JSON, as most clients send it.
pub(crate) fn post(path: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nHost: proxy.test\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// A chat request for a model.
pub(crate) fn chat(model: &str) -> Vec<u8> {
    post("/v1/chat/completions", &format!(r#"{{"model":"{model}","messages":[]}}"#))
}

/// A GET of a path.
pub(crate) fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: proxy.test\r\n\r\n").into_bytes()
}

/// A plain 200.
pub(crate) fn ok(body: impl AsRef<[u8]>) -> Vec<u8> {
    framed("200 OK", body.as_ref())
}

/// An answer of known length.
pub(crate) fn framed(status: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let mut answer = format!(
        "HTTP/1.1 {status}\r\nserver: uvicorn\r\ncontent-length: {}\r\n\
         content-type: application/json\r\n\r\n",
        body.len()
    )
    .into_bytes();
    answer.extend_from_slice(body);
    answer
}

/// The head of a stream of events, as vLLM sends it.
pub(crate) const STREAM_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\n\
    content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";

/// One chunk.
pub(crate) fn chunk(data: impl AsRef<[u8]>) -> Vec<u8> {
    let data = data.as_ref();
    let mut chunk = format!("{:x}\r\n", data.len()).into_bytes();
    chunk.extend_from_slice(data);
    chunk.extend_from_slice(b"\r\n");
    chunk
}

/// The last chunk, without trailers.
pub(crate) const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
