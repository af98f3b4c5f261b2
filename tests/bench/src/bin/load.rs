//! The bench's load generator: one thread that sends what a case asks for, checks every byte of
//! every answer, and prints one line of JSON with what it saw and what the watched processes used
//! meanwhile. Any wrong answer ends it with status 1.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::time::{Duration, Instant};

use vllm_proxy_bench::Fault;
use vllm_proxy_bench::chunks::Chunks;
use vllm_proxy_bench::content::{
    BODIES, DONE, EVENT_BYTES, Events, ORDER_FIELD, ORDER_HEADER, Order, answer, body,
};
use vllm_proxy_bench::poll::{Interest, Poll, Ready};
use vllm_proxy_bench::usage::{Group, core_idle_ns};

const USAGE: &str = "usage: load requests|streams|idle --addr HOST:PORT [--name value]...";
const READ_BYTES: usize = 256 << 10;
/// So many streams may be waiting for their first event while others are still to be opened.
const OPENING_MAX: usize = 64;

fn main() {
    let options = Options::parse(std::env::args().skip(1));
    let result = options.and_then(|options| match options.case.as_str() {
        "requests" => requests(&options),
        "streams" => streams(&options),
        "idle" => idle(&options),
        _ => Err(USAGE.into()),
    });
    match result {
        Ok(report) => println!("{report}"),
        Err(fault) => {
            eprintln!("load: {fault}");
            std::process::exit(1);
        }
    }
}

/// The command line: a case, then pairs of names and values.
struct Options {
    case: String,
    addr: SocketAddr,
    values: HashMap<String, String>,
    /// When the whole program gives up.
    deadline: Instant,
}

impl Options {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, Fault> {
        let case = words.next().ok_or(USAGE)?;
        let mut values = HashMap::new();
        while let Some(name) = words.next() {
            let name = name.strip_prefix("--").ok_or(USAGE)?.to_owned();
            values.insert(name, words.next().ok_or(USAGE)?);
        }
        let addr = values.get("addr").ok_or(USAGE)?.parse()?;
        let mut options = Self { case, addr, values, deadline: Instant::now() };
        options.deadline += Duration::from_secs(options.number("limit-seconds", 120)?);
        Ok(options)
    }

    fn number(&self, name: &str, default: u64) -> Result<u64, Fault> {
        match self.values.get(name) {
            None => Ok(default),
            Some(text) => text.parse().map_err(|_| format!("invalid value for --{name}").into()),
        }
    }

    fn group(&self, name: &str) -> Result<Group, Fault> {
        match self.values.get(name) {
            None => Ok(Group::default()),
            Some(pids) => {
                Group::parse(pids).ok_or_else(|| format!("invalid value for --{name}").into())
            }
        }
    }

    fn check_deadline(&self, doing: &str) -> Result<(), Fault> {
        if Instant::now() < self.deadline {
            Ok(())
        } else {
            Err(format!("time out {doing}").into())
        }
    }
}

/// What was used between two moments, by whom.
struct Meter {
    watched: [Group; 3],
    cores: [usize; 2],
}

struct Reading {
    at: Instant,
    /// On a CPU: the proxy, the backend, this program. Idle: core 0, core 1.
    values: [u64; 5],
}

impl Meter {
    fn new(options: &Options) -> Result<Self, Fault> {
        let own = Group::parse(&std::process::id().to_string()).ok_or("no process id")?;
        Ok(Self {
            watched: [options.group("pids")?, options.group("backend-pids")?, own],
            cores: [
                options.number("load-core", 0)? as usize,
                options.number("proxy-core", 1)? as usize,
            ],
        })
    }

    fn read(&self) -> io::Result<Reading> {
        let [proxy, backend, own] = &self.watched;
        let values = [
            proxy.cpu_ns()?,
            backend.cpu_ns()?,
            own.cpu_ns()?,
            core_idle_ns(self.cores[0])?,
            core_idle_ns(self.cores[1])?,
        ];
        Ok(Reading { at: Instant::now(), values })
    }

    /// The difference as members of a JSON object.
    fn report(&self, from: &Reading, to: &Reading) -> String {
        let used = |index: usize| to.values[index].saturating_sub(from.values[index]);
        format!(
            r#""seconds":{:.6},"cpu_ns":{},"backend_cpu_ns":{},"load_cpu_ns":{},"load_core_idle_ns":{},"proxy_core_idle_ns":{}"#,
            to.at.duration_since(from.at).as_secs_f64(),
            used(0),
            used(1),
            used(2),
            used(3),
            used(4),
        )
    }
}

/// What an answer must be.
#[derive(Clone)]
enum Expected {
    Whole(Rc<[u8]>),
    /// Some JSON: the request was written anew on its way, and the answer follows from its bytes.
    Json,
    Events(u64),
}

/// Checks the body of one answer as it comes.
struct Checker {
    expected: Expected,
    seen: u64,
    /// What was seen of [`Expected::Json`].
    json: Vec<u8>,
}

impl Checker {
    fn check(&mut self, mut piece: &[u8], events: &mut Events) -> Result<(), Fault> {
        let wrong = "the body differs from what the backend sends";
        match &self.expected {
            Expected::Whole(whole) => {
                let from = self.seen as usize;
                if whole.get(from..from + piece.len()) != Some(piece) {
                    return Err(wrong.into());
                }
                self.seen += piece.len() as u64;
            }
            Expected::Json => {
                self.json.extend_from_slice(piece);
                self.seen += piece.len() as u64;
            }
            Expected::Events(count) => {
                while !piece.is_empty() {
                    let (index, offset) =
                        (self.seen / EVENT_BYTES as u64, (self.seen % EVENT_BYTES as u64) as usize);
                    let rest = if index < *count {
                        &events.event(index)[offset..]
                    } else {
                        DONE.get((self.seen - count * EVENT_BYTES as u64) as usize..).unwrap_or(b"")
                    };
                    let length = rest.len().min(piece.len());
                    if length == 0 || rest[..length] != piece[..length] {
                        return Err(format!("{wrong} (event {index})").into());
                    }
                    self.seen += length as u64;
                    piece = &piece[length..];
                }
            }
        }
        Ok(())
    }

    fn is_complete(&self) -> bool {
        match &self.expected {
            Expected::Whole(whole) => self.seen == whole.len() as u64,
            Expected::Json => serde_json::from_slice::<serde_json::Value>(&self.json).is_ok(),
            Expected::Events(count) => self.seen == count * EVENT_BYTES as u64 + DONE.len() as u64,
        }
    }
}

/// How far an answer has come.
enum Phase {
    Head(Vec<u8>),
    Fixed(usize),
    Chunked(Chunks),
}

/// One answer that is being read.
struct Answer {
    phase: Phase,
    checker: Checker,
}

impl Answer {
    fn new(expected: Expected) -> Self {
        Self {
            phase: Phase::Head(Vec::new()),
            checker: Checker { expected, seen: 0, json: Vec::new() },
        }
    }

    /// Takes what was read; true when the answer is complete and right.
    fn feed(&mut self, bytes: &[u8], events: &mut Events) -> Result<bool, Fault> {
        let done = match &mut self.phase {
            Phase::Head(head) => {
                head.extend_from_slice(bytes);
                let head = std::mem::take(head);
                let Some((phase, length)) = parse_head(&head)? else {
                    self.phase = Phase::Head(head);
                    return Ok(false);
                };
                self.phase = phase;
                return self.feed(&head[length..], events);
            }
            Phase::Fixed(left) => {
                *left = left.checked_sub(bytes.len()).ok_or("more bytes than content-length")?;
                self.checker.check(bytes, events)?;
                *left == 0
            }
            Phase::Chunked(chunks) => {
                let checker = &mut self.checker;
                chunks.feed::<Fault>(bytes, |piece| checker.check(piece, events))?
            }
        };
        if done && !self.checker.is_complete() {
            return Err(format!("the answer ended early, after {} bytes", self.checker.seen).into());
        }
        Ok(done)
    }
}

fn parse_head(bytes: &[u8]) -> Result<Option<(Phase, usize)>, Fault> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(length) =
        head.parse(bytes).map_err(|error| error.to_string())?
    else {
        return Ok(None);
    };
    if head.code != Some(200) {
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(length + 300)]);
        return Err(format!("expected status 200, got: {text}").into());
    }
    for header in head.headers.iter() {
        if header.name.eq_ignore_ascii_case("content-length") {
            let length_text = std::str::from_utf8(header.value)?;
            return Ok(Some((Phase::Fixed(length_text.parse()?), length)));
        }
        if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Ok(Some((Phase::Chunked(Chunks::default()), length)));
        }
    }
    Err("an answer without framing".into())
}

/// One request's bytes and the answer they must bring.
struct Shot {
    bytes: Rc<[u8]>,
    expected: Expected,
}

impl Shot {
    fn new(options: &Options, order: Order, body_bytes: usize, index: usize) -> Self {
        let addr = options.addr;
        let mut body = body(body_bytes, index % BODIES, order != Order::Unary);
        if options.values.contains_key("rewritten") {
            // Who writes bodies anew may pass on few headers.
            body.splice(..1, format!("{{{ORDER_FIELD}{order}\",").bytes());
        }
        let mut bytes = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: {addr}\r\nUser-Agent: bench/1\r\n\
             Accept: application/json\r\nAccept-Encoding: identity\r\n\
             Authorization: Bearer sk-bench\r\nContent-Type: application/json\r\n\
             {ORDER_HEADER}: {order}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        bytes.extend_from_slice(&body);
        let expected = match order.events() {
            None if options.values.contains_key("rewritten") => Expected::Json,
            None => Expected::Whole(answer(&body).into()),
            Some(events) => Expected::Events(events),
        };
        Self { bytes: bytes.into(), expected }
    }
}

/// One connection to the thing under test.
struct Client {
    socket: TcpStream,
    token: usize,
    unsent: Option<(Rc<[u8]>, usize)>,
    answer: Option<Answer>,
    sent_at: Instant,
}

impl Client {
    fn connect(addr: SocketAddr, poll: &Poll, token: usize) -> Result<Self, Fault> {
        let socket = TcpStream::connect_timeout(&addr, Duration::from_secs(10))?;
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        poll.add(&socket, token)?;
        Ok(Self { socket, token, unsent: None, answer: None, sent_at: Instant::now() })
    }

    fn fire(&mut self, shot: &Shot, poll: &Poll) -> Result<(), Fault> {
        self.answer = Some(Answer::new(shot.expected.clone()));
        self.unsent = Some((Rc::clone(&shot.bytes), 0));
        self.sent_at = Instant::now();
        self.flush(poll, Interest::Read)
    }

    /// Writes what is unsent. `registered` is what epoll now waits for.
    fn flush(&mut self, poll: &Poll, registered: Interest) -> Result<(), Fault> {
        let Some((bytes, sent)) = &mut self.unsent else { return Ok(()) };
        match self.socket.write(&bytes[*sent..]) {
            Ok(length) => *sent += length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(format!("cannot send: {error}").into()),
        }
        let wanted = if *sent == bytes.len() {
            self.unsent = None;
            Interest::Read
        } else {
            Interest::ReadWrite
        };
        if wanted != registered {
            poll.modify(&self.socket, self.token, wanted)?;
        }
        Ok(())
    }
}

/// Who the connections are and how they are waited for.
struct Crowd {
    poll: Poll,
    ready: Vec<Ready>,
    clients: Vec<Client>,
    buffer: Vec<u8>,
    events: Events,
}

impl Crowd {
    fn new() -> Result<Self, Fault> {
        Ok(Self {
            poll: Poll::new()?,
            ready: Vec::new(),
            clients: Vec::new(),
            buffer: vec![0; READ_BYTES],
            events: Events::default(),
        })
    }

    fn connect(&mut self, addr: SocketAddr) -> Result<(), Fault> {
        let client = Client::connect(addr, &self.poll, self.clients.len())?;
        self.clients.push(client);
        Ok(())
    }

    /// Waits once and tells of every client that got bytes: its number, and whether its answer is
    /// now complete.
    fn wait(
        &mut self,
        timeout: Duration,
        mut progress: impl FnMut(&mut Client, bool) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let mut ready = std::mem::take(&mut self.ready);
        self.poll.wait(Some(timeout), &mut ready)?;
        for event in ready.drain(..) {
            let client = &mut self.clients[event.token];
            if event.write {
                client.flush(&self.poll, Interest::ReadWrite)?;
            }
            if !event.read {
                continue;
            }
            let length = match client.socket.read(&mut self.buffer) {
                Ok(0) => return Err("the connection was closed".into()),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(format!("cannot read: {error}").into()),
            };
            let answer = client.answer.as_mut().ok_or("bytes that nobody asked for")?;
            let done = answer.feed(&self.buffer[..length], &mut self.events)?;
            if done {
                client.answer = None;
            }
            progress(client, done)?;
        }
        self.ready = ready;
        Ok(())
    }
}

/// Keep-alive connections with at most one request each, at a fixed rate or as fast as they go.
fn requests(options: &Options) -> Result<String, Fault> {
    let connections = options.number("connections", 32)? as usize;
    let measured = options.number("requests", 10_000)? as usize;
    let warmup = options.number("warmup", 1_000)? as usize;
    let rate = options.number("rate", 0)?;
    let body_bytes = options.number("body-bytes", 2048)? as usize;
    let order = match options.number("burst", 0)? {
        0 => Order::Unary,
        events => Order::Burst { events },
    };
    let shots: Vec<Shot> =
        (0..BODIES).map(|index| Shot::new(options, order, body_bytes, index)).collect();
    let mut crowd = Crowd::new()?;
    for _ in 0..connections {
        crowd.connect(options.addr)?;
    }
    let meter = Meter::new(options)?;
    let mut latencies: Vec<u64> = Vec::with_capacity(warmup.max(measured));

    run_requests(options, &mut crowd, &shots, warmup, rate, &mut latencies)?;
    latencies.clear();
    let from = meter.read()?;
    let late = run_requests(options, &mut crowd, &shots, measured, rate, &mut latencies)?;
    let to = meter.read()?;

    latencies.sort_unstable();
    let quantile = |q: f64| latencies[((latencies.len() - 1) as f64 * q).round() as usize];
    Ok(format!(
        r#"{{"requests":{measured},"events":{},"late":{late},"p50_ns":{},"p90_ns":{},"p99_ns":{},{}}}"#,
        measured as u64 * order.events().unwrap_or(0),
        quantile(0.5),
        quantile(0.9),
        quantile(0.99),
        meter.report(&from, &to),
    ))
}

/// Sends `count` requests and waits for all answers. Returns how many were sent over one
/// millisecond late because every connection was busy.
fn run_requests(
    options: &Options,
    crowd: &mut Crowd,
    shots: &[Shot],
    count: usize,
    rate: u64,
    latencies: &mut Vec<u64>,
) -> Result<usize, Fault> {
    let started = Instant::now();
    let due = |index: usize| match rate {
        0 => started,
        rate => started + Duration::from_nanos(index as u64 * 1_000_000_000 / rate),
    };
    let mut idle: VecDeque<usize> = (0..crowd.clients.len()).collect();
    let (mut sent, mut done, mut late) = (0, 0, 0);
    while done < count {
        let now = Instant::now();
        while sent < count && due(sent) <= now {
            let Some(token) = idle.pop_front() else { break };
            late += usize::from(rate > 0 && now > due(sent) + Duration::from_millis(1));
            crowd.clients[token].fire(&shots[sent % shots.len()], &crowd.poll)?;
            sent += 1;
        }
        let timeout = if sent < count && !idle.is_empty() {
            due(sent).saturating_duration_since(Instant::now())
        } else {
            Duration::from_secs(1)
        };
        crowd.wait(timeout, |client, complete| {
            if complete {
                latencies.push(client.sent_at.elapsed().as_nanos() as u64);
                idle.push_back(client.token);
                done += 1;
            }
            Ok(())
        })?;
        options.check_deadline(&format!("after {done} of {count} answers"))?;
    }
    Ok(late)
}

/// Streams of events at one pace, their phases spread evenly over the interval.
fn streams(options: &Options) -> Result<String, Fault> {
    let streams = options.number("streams", 256)? as usize;
    let interval_us = options.number("interval-us", 20_000)?;
    let warmup = Duration::from_millis(options.number("warmup-ms", 1_000)?);
    let window = Duration::from_millis(options.number("window-ms", 5_000)?);
    let body_bytes = options.number("body-bytes", 2048)? as usize;
    // Four seconds more than the window, for the streams that opened first.
    let lifetime = warmup + window + Duration::from_millis(4_000);
    let events = (lifetime.as_micros() as u64).div_ceil(interval_us);
    let mut crowd = Crowd::new()?;
    for stream in 0..streams {
        crowd.connect(options.addr)?;
        let phase_us = interval_us * stream as u64 / streams as u64;
        let order = Order::Paced { interval_us, phase_us, events };
        let shot = Shot::new(options, order, body_bytes, stream);
        crowd.clients[stream].fire(&shot, &crowd.poll)?;
    }
    let meter = Meter::new(options)?;

    let (mut done, mut reads) = (0, 0_u64);
    let opened = Instant::now();
    let mut from: Option<(Reading, u64, u64)> = None;
    let mut report = None;
    while done < streams {
        crowd.wait(Duration::from_millis(100), |_, complete| {
            reads += 1;
            done += usize::from(complete);
            Ok(())
        })?;
        let elapsed = opened.elapsed();
        if from.is_none() && elapsed >= warmup {
            from = Some((meter.read()?, seen(&crowd), reads));
        }
        if let (Some((reading, seen_before, reads_before)), None) = (&from, &report)
            && elapsed >= warmup + window
        {
            if done > 0 {
                return Err("streams ended before the window did".into());
            }
            let to = meter.read()?;
            let relayed = (seen(&crowd) - seen_before) / EVENT_BYTES as u64;
            let expected = streams as f64 * to.at.duration_since(reading.at).as_secs_f64() * 1e6
                / interval_us as f64;
            report = Some(format!(
                r#""events":{relayed},"expected_events":{expected:.0},"reads":{},{}"#,
                reads - reads_before,
                meter.report(reading, &to),
            ));
        }
        options.check_deadline(&format!("after {done} of {streams} streams"))?;
    }
    let report = report.ok_or("streams ended before the window did")?;
    Ok(format!(r#"{{"streams":{streams},"total_events":{},{report}}}"#, streams as u64 * events))
}

/// Bytes of events that arrived on all streams.
fn seen(crowd: &Crowd) -> u64 {
    let answers = crowd.clients.iter().filter_map(|client| client.answer.as_ref());
    answers.map(|answer| answer.checker.seen).sum()
}

/// Many streams that got their head and one event, and then nothing: what each of them occupies.
fn idle(options: &Options) -> Result<String, Fault> {
    let streams = options.number("streams", 2_000)? as usize;
    let settle = Duration::from_millis(options.number("settle-ms", 1_000)?);
    let body_bytes = options.number("body-bytes", 2048)? as usize;
    let shots: Vec<Shot> =
        (0..BODIES).map(|index| Shot::new(options, Order::Idle, body_bytes, index)).collect();
    let watched = options.group("pids")?;
    let before = watched.memory_kib()?;
    let mut crowd = Crowd::new()?;
    let mut opened = 0;
    while opened < streams {
        while crowd.clients.len() < streams && crowd.clients.len() - opened < OPENING_MAX {
            crowd.connect(options.addr)?;
            let index = crowd.clients.len() - 1;
            crowd.clients[index].fire(&shots[index % BODIES], &crowd.poll)?;
        }
        crowd.wait(Duration::from_millis(100), |client, _| {
            let seen = client.answer.as_ref().map_or(0, |answer| answer.checker.seen);
            opened += usize::from(seen == EVENT_BYTES as u64);
            Ok(())
        })?;
        options.check_deadline(&format!("after {opened} of {streams} streams opened"))?;
    }
    let settled = Instant::now() + settle;
    while Instant::now() < settled {
        crowd.wait(Duration::from_millis(50), |_, _| Err("bytes on an idle stream".into()))?;
    }
    let after = watched.memory_kib()?;
    Ok(format!(
        r#"{{"streams":{streams},"rss_before_kib":{},"rss_kib":{},"pss_before_kib":{},"pss_kib":{}}}"#,
        before.rss_kib, after.rss_kib, before.pss_kib, after.pss_kib,
    ))
}
