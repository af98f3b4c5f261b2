//! A mock of the built program, and a client so simple that it cannot agree with it by accident:
//! raw bytes on a socket, read chunk by chunk.

pub(crate) use crate::patience::PATIENCE;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// One running mock; it is killed when it is dropped.
pub(crate) struct Mock {
    child: Child,
    pub(crate) address: SocketAddr,
    /// Where it listens in place of the address.
    uds: Option<PathBuf>,
}

impl Mock {
    /// Starts one on a port of its own that loses no time, unless `options` say so.
    pub(crate) fn start(options: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_vllm-proxy"))
            .args(["-L", "json", "mock", "--port", "0", "--model", "tiny"])
            .args(if options.contains(&"--itl-ms") { &[][..] } else { &["--itl-ms", "0"] })
            .args(if options.contains(&"--ttft-ms") { &[][..] } else { &["--ttft-ms", "0"] })
            .args(options)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut line = String::new();
        let stdout = child.stdout.as_mut().expect("it is piped");
        BufReader::new(stdout).read_line(&mut line).expect("it logs");
        if let Some((_, path)) = line.split_once("unix://") {
            let uds = path.split('"').next().map(PathBuf::from);
            return Self { child, address: (Ipv4Addr::UNSPECIFIED, 0).into(), uds };
        }
        let (_, address) = line.split_once("http://").expect("the entry tells the address");
        let address = address.split('"').next().and_then(|address| address.parse().ok());
        Self { child, address: address.expect("it is an address"), uds: None }
    }

    /// Connects.
    pub(crate) fn connect(&self) -> Client {
        let stream = match &self.uds {
            None => TcpStream::connect(self.address).expect("it listens"),
            // To read and to write are the same calls.
            Some(path) => {
                TcpStream::from(OwnedFd::from(UnixStream::connect(path).expect("it listens")))
            }
        };
        stream.set_read_timeout(Some(PATIENCE)).expect("it is no zero");
        Client { stream, read: Vec::new() }
    }

    /// Sends a request on a connection of its own.
    pub(crate) fn send(&self, request: &str) -> Client {
        let mut client = self.connect();
        client.send(request);
        client
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.send(&head("GET", path, "", None)).answer()
    }

    pub(crate) fn post(&self, path: &str, body: &str) -> Answer {
        self.send(&post(path, body)).answer()
    }

    /// The value of a series of `/metrics`.
    pub(crate) fn metric(&self, series: &str) -> f64 {
        let page = self.get("/metrics").text();
        let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {series} in {page}")).parse().expect("it is a number")
    }

    /// Asks until a series has this value, and says how long that took.
    pub(crate) fn await_metric(&self, series: &str, value: f64) -> Duration {
        let start = Instant::now();
        while self.metric(series) != value {
            assert!(start.elapsed() < PATIENCE, "{series} is {}", self.metric(series));
        }
        start.elapsed()
    }

    /// Waits for its end.
    pub(crate) fn exit(mut self) -> ExitStatus {
        self.child.wait().expect("it was started")
    }

    /// Asks it to end, as Ctrl-C does.
    pub(crate) fn interrupt(&self) {
        self.signal(Signal::INT);
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("it runs");
    }
}

/// The demo, running, and the requests that its page proposes.
pub(crate) struct Demo {
    /// The proxy is asked just as a mock is.
    pub(crate) proxy: Mock,
    /// Path, body and the status that it should get, of each request to the proxy.
    pub(crate) requests: Vec<(String, String, u16)>,
}

impl Demo {
    pub(crate) fn start() -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_vllm-proxy"))
            .args(["demo", "--port", "0"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let stdout = child.stdout.take().expect("it is piped");
        let mut lines = BufReader::new(stdout).lines().map(|line| line.expect("it is text"));
        let page: Vec<_> = lines.by_ref().take_while(|line| !line.starts_with("Below")).collect();
        // Printed is not yet bound: that the log tells.
        lines.by_ref().find(|line| line.contains("listening")).expect("it listens");
        // Someone has to read what it logs, or it would stall.
        std::thread::spawn(move || lines.for_each(drop));
        let page = page.join("\n");
        let after = |text: &str| page.split(text).nth(1).and_then(|rest| rest.lines().next());
        let address = after("proxy over them: http://").and_then(|address| address.parse().ok());
        let address: SocketAddr = address.expect("the page tells the address");
        let requests = page
            .split(&format!("http://{address}/"))
            .skip(1)
            .filter_map(|rest| {
                let (path, rest) = rest.split_once(' ')?;
                let body = rest.split("\n\n").next()?.split("-d '").nth(1)?.strip_suffix('\'')?;
                let status = if body.contains("demo/none") { 404 } else { 200 };
                Some((format!("/{path}"), body.to_owned(), status))
            })
            .collect();
        Self { proxy: Mock { child, address, uds: None }, requests }
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A request's head, with more header lines in `headers`.
pub(crate) fn head(method: &str, path: &str, headers: &str, length: Option<usize>) -> String {
    let length = length.map_or(String::new(), |length| format!("content-length: {length}\r\n"));
    format!("{method} {path} HTTP/1.1\r\nhost: mock\r\n{headers}{length}\r\n")
}

/// A JSON request.
pub(crate) fn post(path: &str, body: &str) -> String {
    post_with(path, "content-type: application/json\r\nx-request-id: rid\r\n", body)
}

pub(crate) fn post_with(path: &str, headers: &str, body: &str) -> String {
    head("POST", path, headers, Some(body.len())) + body
}

/// A connection.
pub(crate) struct Client {
    stream: TcpStream,
    read: Vec<u8>,
}

/// What came.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: String,
    /// Each chunk, or all of a body that is not chunked.
    pub(crate) chunks: Vec<String>,
    /// Whether the body came to its end.
    pub(crate) complete: bool,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        self.chunks.concat()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text()).expect("it is JSON")
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

impl Client {
    pub(crate) fn send(&mut self, request: &str) {
        self.stream.write_all(request.as_bytes()).expect("it listens");
    }

    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("it listens");
    }

    pub(crate) fn half_close(&self) {
        self.stream.shutdown(Shutdown::Write).expect("it is open");
    }

    /// Reads more; `false` at the end of the stream.
    fn more(&mut self) -> std::io::Result<bool> {
        let mut buffer = [0; 65_536];
        let length = self.stream.read(&mut buffer)?;
        self.read.extend_from_slice(&buffer[..length]);
        Ok(length > 0)
    }

    /// Takes what comes before `end`; `None` if the stream ends before.
    fn until(&mut self, end: &[u8]) -> std::io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(at) = self.read.windows(end.len()).position(|window| window == end) {
                let rest = self.read.split_off(at + end.len());
                let mut taken = std::mem::replace(&mut self.read, rest);
                taken.truncate(at);
                return Ok(Some(taken));
            }
            if !self.more()? {
                return Ok(None);
            }
        }
    }

    /// Takes `length` bytes, or fewer at the end of the stream.
    pub(crate) fn exactly(&mut self, length: usize) -> std::io::Result<Vec<u8>> {
        while self.read.len() < length && self.more()? {}
        let rest = self.read.split_off(length.min(self.read.len()));
        Ok(std::mem::replace(&mut self.read, rest))
    }

    /// All that comes until the end of the stream.
    pub(crate) fn rest(&mut self) -> String {
        while self.more().expect("an orderly end") {}
        String::from_utf8(std::mem::take(&mut self.read)).expect("it is text")
    }

    /// The head of an answer: status and header lines. `None` if the connection ends instead.
    pub(crate) fn head(&mut self) -> Option<(u16, String)> {
        let head = String::from_utf8(self.until(b"\r\n\r\n").ok()??).expect("a head is ASCII");
        let (line, headers) = head.split_once("\r\n").expect("there are headers");
        let status = line.strip_prefix("HTTP/1.1 ").and_then(|line| line.get(..3)?.parse().ok());
        Some((status.expect("a status line"), headers.replace("\r\n", "\n")))
    }

    /// The next chunk; `None` if the connection ends instead. The last one is empty.
    pub(crate) fn chunk(&mut self) -> Option<String> {
        let size = String::from_utf8(self.until(b"\r\n").ok()??).expect("a size is ASCII");
        let size = usize::from_str_radix(&size, 16).expect("a size is hexadecimal");
        let chunk = self.exactly(size + 2).ok()?;
        String::from_utf8(chunk).expect("events are UTF-8").strip_suffix("\r\n").map(str::to_owned)
    }

    /// A whole answer.
    pub(crate) fn answer(&mut self) -> Answer {
        let (status, headers) = self.head().expect("there is an answer");
        let mut answer = Answer { status, headers, chunks: Vec::new(), complete: false };
        match answer.header("content-length").map(|length| length.parse().expect("a number")) {
            Some(length) => {
                let body = self.exactly(length).unwrap_or_default();
                answer.complete = body.len() == length;
                answer.chunks.push(String::from_utf8(body).expect("bodies are UTF-8"));
            }
            None => {
                while let Some(chunk) = self.chunk() {
                    if chunk.is_empty() {
                        answer.complete = true;
                        break;
                    }
                    answer.chunks.push(chunk);
                }
            }
        }
        answer
    }

    /// Reads the half that comes of a plain answer with this head.
    pub(crate) fn half_a_body(&mut self, headers: &str) {
        let length = headers.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.expect("it is framed").parse().expect("a number");
        let half = self.exactly(length / 2).expect("half of it comes");
        assert!(half.windows(17).any(|part| part == b"\"chat.completion\""), "{half:?}");
    }

    /// Whether nothing at all comes for a while, and the connection stays open.
    pub(crate) fn silent(&mut self, wait: Duration) -> bool {
        self.stream.set_read_timeout(Some(wait)).expect("it is no zero");
        let silent = self.read.is_empty()
            && self.more().is_err_and(|error| {
                matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                )
            });
        self.stream.set_read_timeout(Some(PATIENCE)).expect("it is no zero");
        silent
    }

    /// What ends the connection: `Ok` for an orderly close with nothing before it.
    pub(crate) fn end(&mut self) -> std::io::Result<()> {
        assert!(!self.more()?, "bytes where the end should be");
        Ok(())
    }
}
