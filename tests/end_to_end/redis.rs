//! A real Redis on a loopback port, and a way to it that can be slow or cut.
//!
//! Owns the process and its faults. Talks to it without a client library, so as to be a witness of
//! its own. Knows nothing of proxies.

use super::patience::PATIENCE;
use rustix::process::{Pid, Signal, kill_process};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// A `redis-server` that keeps nothing on disk and ends with this value.
#[derive(Debug)]
pub(crate) struct RedisServer {
    child: Option<Child>,
    port: u16,
    options: Vec<String>,
}

impl RedisServer {
    /// Starts one with these options beside those that every test needs.
    pub(crate) fn start(options: &[&str]) -> Self {
        let options = options.iter().map(ToString::to_string).collect();
        let mut server = Self { child: None, port: free_port(), options };
        server.restart();
        server
    }

    /// Starts none: there will be one at this place.
    pub(crate) fn absent() -> Self {
        Self { child: None, port: free_port(), options: Vec::new() }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Where a proxy finds it.
    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// Starts it, empty, at the same place.
    pub(crate) fn restart(&mut self) {
        self.kill();
        let port = self.port.to_string();
        let mut command = Command::new("redis-server");
        // A configuration file, where there is one, comes first.
        command.args(&self.options).current_dir(std::env::temp_dir());
        command.args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("redis-server is installed (Debian: redis-server)");
        self.child = Some(child);
        let end = Instant::now() + PATIENCE;
        // It answers when it listens wherever it is to listen, and not before. It is done with
        // whoever asked when it closes.
        while !self.says_goodbye().is_ok_and(|said| !said.is_empty()) {
            let child = self.child.as_mut().expect("it was just started");
            let ended = child.try_wait().expect("it is a child of ours");
            assert!(ended.is_none(), "redis-server ended with {ended:?}");
            assert!(Instant::now() < end, "redis-server does not answer");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// What it says to who comes and goes.
    fn says_goodbye(&self) -> io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"*1\r\n$4\r\nPING\r\n")?;
        stream.shutdown(Shutdown::Write)?;
        let mut said = Vec::new();
        stream.read_to_end(&mut said).map(|_| said)
    }

    /// Kills it, as by `kill -9`.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Stops it where it is: it takes connections and says nothing.
    pub(crate) fn hang(&self) {
        self.signal(Signal::STOP);
    }

    /// Ends [`hang`](Self::hang).
    pub(crate) fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    /// Its process, if it runs.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Says one command and returns the answer: a line, or what follows it if it is a string.
    pub(crate) fn command(&self, words: &[&[u8]]) -> String {
        self.ask(words).unwrap_or_else(|error| panic!("redis-server does not answer: {error}"))
    }

    fn ask(&self, words: &[&[u8]]) -> io::Result<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut request = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            request.extend(format!("${}\r\n", word.len()).bytes());
            request.extend(*word);
            request.extend(b"\r\n");
        }
        stream.write_all(&request)?;
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim_end().to_owned();
        let Some(length) = line.strip_prefix('$').and_then(|length| length.parse().ok()) else {
            return Ok(line);
        };
        let mut text = vec![0; length];
        reader.read_exact(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    fn signal(&self, signal: Signal) {
        let pid = self.pid().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        kill_process(pid.expect("it runs"), signal).expect("it is a child of ours");
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port that stays free while nobody listens there: below those that the kernel gives to whoever
/// asks for any, this machine's outgoing connections among them.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let start = u64::from(std::process::id()) * 61;
    loop {
        let place = (start + NEXT.fetch_add(1, Ordering::SeqCst)) % 20_000;
        let port = 10_000 + u16::try_from(place).expect("it is small");
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// A way to a server that takes its time and can be cut.
#[derive(Debug)]
pub(crate) struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    cut: AtomicBool,
    delay_micros: AtomicU64,
    streams: Mutex<Vec<TcpStream>>,
}

impl Relay {
    /// A way to that port on this machine.
    pub(crate) fn to(target: u16) -> Self {
        Self::at((Ipv4Addr::LOCALHOST, 0).into(), target).expect("loopback has ports")
    }

    /// The same, from a place of one's choice.
    pub(crate) fn at(address: SocketAddr, target: u16) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let relaying = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if relaying.cut.load(Ordering::SeqCst) {
                    continue;
                }
                let address = SocketAddr::from((Ipv4Addr::LOCALHOST, target));
                if let Ok(server) = TcpStream::connect(address) {
                    pump(&relaying, &client, &server);
                    pump(&relaying, &server, &client);
                    relaying.streams.lock().expect("nobody panics").extend([client, server]);
                }
            }
        });
        Ok(Self { address, shared })
    }

    /// Where a proxy finds the server by this way.
    pub(crate) fn url(&self) -> String {
        format!("redis://{}/0", self.address)
    }

    /// From now on every byte takes so long, in both directions.
    pub(crate) fn delay(&self, delay: Duration) {
        let micros = u64::try_from(delay.as_micros()).expect("it is short");
        self.shared.delay_micros.store(micros, Ordering::SeqCst);
    }

    /// Ends all connections and lets none through.
    pub(crate) fn cut(&self) {
        self.shared.cut.store(true, Ordering::SeqCst);
        for stream in self.shared.streams.lock().expect("nobody panics").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Ends [`cut`](Self::cut).
    pub(crate) fn heal(&self) {
        self.shared.cut.store(false, Ordering::SeqCst);
    }
}

/// Passes on what comes, each part as late as is wanted when it comes.
fn pump(shared: &Arc<Shared>, from: &TcpStream, to: &TcpStream) {
    let (mut from, mut to) = (from.try_clone().expect("it is open"), to.try_clone().expect("too"));
    let _ = to.set_nodelay(true);
    let shared = Arc::clone(shared);
    let (late, parts) = mpsc::channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        let mut buffer = [0; 16 << 10];
        while let Ok(bytes @ 1..) = from.read(&mut buffer) {
            let delay = Duration::from_micros(shared.delay_micros.load(Ordering::SeqCst));
            let _ = late.send((Instant::now() + delay, buffer[..bytes].into()));
        }
    });
    thread::spawn(move || {
        for (at, part) in parts {
            thread::sleep(at.saturating_duration_since(Instant::now()));
            if to.write_all(&part).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}
