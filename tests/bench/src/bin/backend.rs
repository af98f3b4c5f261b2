//! The bench's backend: one thread, made to cost little and to be punctual. Prints the port it
//! listens on, serves until its standard input ends, and answers as the `x-bench` header orders.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketType};
use vllm_proxy_bench::Fault;
use vllm_proxy_bench::content::{
    self, Events, ORDER_HEADER, Order, answer, push_chunk, written_order,
};
use vllm_proxy_bench::poll::{Interest, Poll, Ready};

/// Larger than any request of the bench, so that one read empties the socket.
const READ_BYTES: usize = 256 << 10;
const HEAD_BYTES_MAX: usize = 16 << 10;
const BODY_BYTES_MAX: usize = 16 << 20;

const LISTENER: usize = usize::MAX;
const STDIN: usize = usize::MAX - 1;

const MODELS: &str = r#"{"object":"list","data":[{"id":"bench","object":"model","created":1,"owned_by":"vllm","root":"bench","parent":null,"max_model_len":4096,"permission":[]}]}"#;
const STREAM_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\n\
    server: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n\
    transfer-encoding: chunked\r\n\r\n";

fn main() -> Result<(), Fault> {
    let listener = listen()?;
    println!("{}", listener.local_addr()?.port());
    io::stdout().flush()?;
    Backend::new(listener)?.serve()
}

/// std's own backlog of 128 is too short for thousands of streams that open at once.
fn listen() -> io::Result<TcpListener> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
    rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0))?;
    rustix::net::listen(&socket, 4096)?;
    let listener = TcpListener::from(socket);
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// A stream that still owes events.
struct Paced {
    due_us: u64,
    interval_us: u64,
    next: u64,
    events: u64,
}

struct Connection {
    socket: TcpStream,
    /// Tells this connection's timers from those of an earlier one under the same number.
    serial: u64,
    /// What was read of a request that is not whole yet.
    partial: Vec<u8>,
    /// What the socket did not take yet.
    unsent: Vec<u8>,
    paced: Option<Paced>,
}

struct Backend {
    listener: TcpListener,
    poll: Poll,
    started: Instant,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    serials: u64,
    /// When which connection (and serial) owes an event.
    timers: BinaryHeap<Reverse<(u64, usize, u64)>>,
    events: Events,
    burst: (u64, Vec<u8>),
    buffer: Vec<u8>,
}

impl Backend {
    fn new(listener: TcpListener) -> io::Result<Self> {
        Ok(Self {
            listener,
            poll: Poll::new()?,
            started: Instant::now(),
            connections: Vec::new(),
            free: Vec::new(),
            serials: 0,
            timers: BinaryHeap::new(),
            events: Events::default(),
            burst: (0, Vec::new()),
            buffer: vec![0; READ_BYTES],
        })
    }

    fn serve(mut self) -> Result<(), Fault> {
        self.poll.add(&self.listener, LISTENER)?;
        self.poll.add(io::stdin(), STDIN)?;
        let mut ready: Vec<Ready> = Vec::new();
        loop {
            self.send_due();
            let timeout = self.timers.peek().map(|Reverse((due_us, ..))| {
                Duration::from_micros(*due_us).saturating_sub(self.started.elapsed())
            });
            self.poll.wait(timeout, &mut ready)?;
            for event in ready.drain(..) {
                match event.token {
                    LISTENER => self.accept()?,
                    STDIN => {
                        if io::stdin().read(&mut [0; 16])? == 0 {
                            return Ok(());
                        }
                    }
                    token => self.handle(token, event),
                }
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            let socket = match self.listener.accept() {
                Ok((socket, _)) => socket,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            socket.set_nonblocking(true)?;
            socket.set_nodelay(true)?;
            let token = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            self.poll.add(&socket, token)?;
            self.serials += 1;
            self.connections[token] = Some(Connection {
                socket,
                serial: self.serials,
                partial: Vec::new(),
                unsent: Vec::new(),
                paced: None,
            });
        }
    }

    fn handle(&mut self, token: usize, event: Ready) {
        // It may have been closed by an earlier event of the same wait.
        let Some(mut connection) = self.connections.get_mut(token).and_then(Option::take) else {
            return;
        };
        let kept = (!event.write || connection.flush(&self.poll, token))
            && (!event.read || self.read(&mut connection, token));
        if kept {
            self.connections[token] = Some(connection);
        } else {
            self.free.push(token);
        }
    }

    /// Reads once and answers every request that is whole; false when the connection is to close.
    fn read(&mut self, connection: &mut Connection, token: usize) -> bool {
        let mut buffer = std::mem::take(&mut self.buffer);
        let kept = match connection.socket.read(&mut buffer) {
            Ok(0) => false,
            Ok(length) if connection.partial.is_empty() => {
                match self.answer_all(connection, token, &buffer[..length]) {
                    Some(used) => {
                        connection.partial.extend_from_slice(&buffer[used..length]);
                        true
                    }
                    None => false,
                }
            }
            Ok(length) => {
                let mut partial = std::mem::take(&mut connection.partial);
                partial.extend_from_slice(&buffer[..length]);
                let used = self.answer_all(connection, token, &partial);
                partial.drain(..used.unwrap_or(0));
                connection.partial = partial;
                used.is_some()
            }
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        };
        self.buffer = buffer;
        kept
    }

    /// Answers the requests at the start of `input` and says how many bytes they were.
    fn answer_all(
        &mut self,
        connection: &mut Connection,
        token: usize,
        input: &[u8],
    ) -> Option<usize> {
        let mut used = 0;
        while used < input.len() {
            let rest = &input[used..];
            let mut headers = [httparse::EMPTY_HEADER; 64];
            let mut head = httparse::Request::new(&mut headers);
            let head_bytes = match head.parse(rest) {
                Ok(httparse::Status::Complete(bytes)) => bytes,
                Ok(httparse::Status::Partial) if rest.len() < HEAD_BYTES_MAX => return Some(used),
                _ => return None,
            };
            let (mut body_bytes, mut order) = (0, None);
            for header in head.headers.iter() {
                let value = std::str::from_utf8(header.value).ok()?;
                if header.name.eq_ignore_ascii_case("content-length") {
                    body_bytes = value.parse().ok().filter(|&bytes| bytes <= BODY_BYTES_MAX)?;
                } else if header.name.eq_ignore_ascii_case(ORDER_HEADER) {
                    order = Some(Order::parse(value)?);
                } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
                    // No proxy of the bench has a reason to re-frame a body of known length.
                    connection.send(&self.poll, token, &plain("501 Not Implemented", b"chunked"));
                    return None;
                }
            }
            let Some(body) = rest.get(head_bytes..head_bytes + body_bytes) else {
                return Some(used);
            };
            let order = order.or_else(|| written_order(body));
            let sent = match order {
                Some(order) => self.obey(connection, token, order, body),
                None => {
                    let answer = match head.path? {
                        "/health" => plain("200 OK", b""),
                        "/v1/models" => plain("200 OK", MODELS.as_bytes()),
                        "/version" => plain("200 OK", br#"{"version":"0.33.0"}"#),
                        _ => plain("404 Not Found", br#"{"detail":"Not Found"}"#),
                    };
                    connection.send(&self.poll, token, &answer)
                }
            };
            if !sent {
                return None;
            }
            used += head_bytes + body_bytes;
        }
        Some(used)
    }

    fn obey(&mut self, to: &mut Connection, token: usize, order: Order, body: &[u8]) -> bool {
        match order {
            Order::Unary => to.send(&self.poll, token, &plain("200 OK", &answer(body))),
            Order::Burst { events } => {
                if self.burst.0 != events || self.burst.1.is_empty() {
                    let mut bytes = STREAM_HEAD.to_vec();
                    for index in 0..events {
                        push_chunk(&mut bytes, self.events.event(index));
                    }
                    push_chunk(&mut bytes, content::DONE);
                    push_chunk(&mut bytes, b"");
                    self.burst = (events, bytes);
                }
                to.send(&self.poll, token, &self.burst.1)
            }
            Order::Paced { interval_us, phase_us, events } => {
                let now_us = self.started.elapsed().as_micros() as u64;
                let phase_us = phase_us % interval_us;
                let passed = (now_us + interval_us - phase_us) / interval_us;
                let due_us = phase_us + passed * interval_us;
                to.paced = Some(Paced { due_us, interval_us, next: 0, events });
                self.timers.push(Reverse((due_us, token, to.serial)));
                to.send(&self.poll, token, STREAM_HEAD)
            }
            Order::Idle => {
                let mut chunk = Vec::new();
                push_chunk(&mut chunk, self.events.event(0));
                to.send(&self.poll, token, STREAM_HEAD) && to.send(&self.poll, token, &chunk)
            }
        }
    }

    /// Writes every event that is due, each by itself.
    fn send_due(&mut self) {
        let mut chunk = Vec::with_capacity(512);
        while let Some(&Reverse((due_us, token, serial))) = self.timers.peek() {
            if due_us > self.started.elapsed().as_micros() as u64 {
                return;
            }
            self.timers.pop();
            let connection = self.connections[token].as_mut();
            let Some(connection) = connection.filter(|connection| connection.serial == serial)
            else {
                continue;
            };
            let Some(paced) = connection.paced.as_mut() else { continue };
            chunk.clear();
            if paced.next < paced.events {
                push_chunk(&mut chunk, self.events.event(paced.next));
                paced.next += 1;
                paced.due_us += paced.interval_us;
                self.timers.push(Reverse((paced.due_us, token, serial)));
            } else {
                push_chunk(&mut chunk, content::DONE);
                push_chunk(&mut chunk, b"");
                connection.paced = None;
            }
            if !connection.send(&self.poll, token, &chunk) {
                self.connections[token] = None;
                self.free.push(token);
            }
        }
    }
}

impl Connection {
    /// Writes what the socket takes and keeps the rest; false if the connection is broken.
    fn send(&mut self, poll: &Poll, token: usize, bytes: &[u8]) -> bool {
        if !self.unsent.is_empty() {
            self.unsent.extend_from_slice(bytes);
            return true;
        }
        match self.socket.write(bytes) {
            Ok(sent) if sent == bytes.len() => true,
            Ok(sent) => {
                self.unsent.extend_from_slice(&bytes[sent..]);
                poll.modify(&self.socket, token, Interest::ReadWrite).is_ok()
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.unsent.extend_from_slice(bytes);
                poll.modify(&self.socket, token, Interest::ReadWrite).is_ok()
            }
            Err(_) => false,
        }
    }

    fn flush(&mut self, poll: &Poll, token: usize) -> bool {
        match self.socket.write(&self.unsent) {
            Ok(sent) => {
                self.unsent.drain(..sent);
                !self.unsent.is_empty() || poll.modify(&self.socket, token, Interest::Read).is_ok()
            }
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        }
    }
}

/// A whole answer of known length.
fn plain(status: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!(
        "HTTP/1.1 {status}\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\nserver: uvicorn\r\n\
         content-length: {}\r\ncontent-type: application/json\r\n\r\n",
        body.len()
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    bytes
}
