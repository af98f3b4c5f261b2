//! A backend made by hand: a thread that accepts and one a connection, with nothing but
//! `std::net`. It answers the proxy's probes as vLLM does; what it does to every other request is
//! the test's script.

use crate::wire::{End, Message, PATIENCE, Wire, framed, header, ok, shown};
use socket2::{Domain, Socket, Type};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long a test may pause a backend: longer than it waits for anything.
const PAUSE_MAX: Duration = PATIENCE.saturating_mul(6);

/// How many connections may wait for a backend to take them.
const QUEUE: i32 = 256;

/// What becomes of a connection after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    Keep,
    Close,
    Reset,
}

/// A request whose head has come.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) head: Vec<u8>,
    /// Which of this backend's requests it is, from 0.
    pub(crate) number: usize,
    /// Which of this backend's connections it came on.
    pub(crate) connection: usize,
}

type Script = dyn Fn(&mut Wire, Asked) -> Then + Send + Sync;

struct Shared {
    script: Box<Script>,
    state: Mutex<State>,
    changed: Condvar,
    /// Accepts, and closes before a byte was read.
    slams: AtomicBool,
}

#[derive(Default)]
struct State {
    models: Vec<String>,
    /// Without which models are not listed.
    key: Option<String>,
    /// Connections are left in the kernel's queue.
    paused: bool,
    /// The acceptor has seen that, and takes none any more.
    parked: bool,
    stopping: bool,
    accepted: usize,
    /// A probe asked for metrics.
    metrics_asked: bool,
    /// What `stop` closes, by the number of the connection.
    open: Vec<(usize, TcpStream)>,
    heads: Vec<Vec<u8>>,
    /// What came on a connection that ended before a head was whole.
    pieces: Vec<Vec<u8>>,
}

pub(crate) struct Backend {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<TcpListener>>,
}

impl Backend {
    /// Lists these models, and does to each request what `script` says.
    pub(crate) fn scripted(
        models: &[&str],
        script: impl Fn(&mut Wire, Asked) -> Then + Send + Sync + 'static,
    ) -> Self {
        Self::at(SocketAddr::from((own_ip(), 0)), models, script)
    }

    /// The same, at this address.
    pub(crate) fn at(
        address: SocketAddr,
        models: &[&str],
        script: impl Fn(&mut Wire, Asked) -> Then + Send + Sync + 'static,
    ) -> Self {
        let models = models.iter().map(|&model| model.to_owned()).collect();
        let shared = Arc::new(Shared {
            script: Box::new(script),
            state: Mutex::new(State { models, ..State::default() }),
            changed: Condvar::new(),
            slams: AtomicBool::new(false),
        });
        let listener = listening(address);
        let address = listener.local_addr().expect("it is bound");
        let mut backend = Self { address, shared, acceptor: None };
        backend.accept_on(listener);
        backend
    }

    /// Reads each request to its end and answers it with these bytes.
    pub(crate) fn answering(
        models: &[&str],
        answer: impl Fn(&Message) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        Self::scripted(models, move |wire, asked| {
            let Ok(request) = wire.request_with(asked.head) else { return Then::Close };
            match wire.try_send(answer(&request)) {
                Ok(()) => Then::Keep,
                Err(_) => Then::Close,
            }
        })
    }

    /// Answers every request with its own name.
    pub(crate) fn named(models: &[&str], name: &str) -> Self {
        let answer = ok(name);
        Self::answering(models, move |_| answer.clone())
    }

    /// Answers requests for its models with its own name, and others as vLLM does.
    pub(crate) fn judging(models: &[&str], name: &str) -> Self {
        let (own, answer): (Vec<_>, _) =
            (models.iter().map(ToString::to_string).collect(), ok(name));
        Self::answering(models, move |request| {
            let body: Option<serde_json::Value> = serde_json::from_slice(&request.body).ok();
            match body.as_ref().and_then(|body| body["model"].as_str()) {
                Some(model) if !own.iter().any(|own| own == model) => not_found(model),
                _ => answer.clone(),
            }
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// As the command line names it.
    pub(crate) fn upstream(&self) -> String {
        format!("http://{}", self.address)
    }

    fn accept_on(&mut self, listener: TcpListener) {
        let shared = Arc::clone(&self.shared);
        self.acceptor = Some(thread::spawn(move || {
            loop {
                let mut state = shared.lock();
                if state.paused {
                    state.parked = true;
                    shared.changed.notify_all();
                }
                drop(state);
                drop(shared.wait(PAUSE_MAX, |state| !state.paused || state.stopping));
                if shared.lock().stopping {
                    return listener;
                }
                let Ok((stream, _)) = listener.accept() else { continue };
                // Who paused or stopped it woke it by this connection.
                if shared.lock().paused || shared.lock().stopping {
                    continue;
                }
                if shared.slams.load(Ordering::SeqCst) {
                    continue;
                }
                let mut state = shared.lock();
                let connection = state.accepted;
                state.accepted += 1;
                state.open.push((connection, stream.try_clone().expect("descriptors are left")));
                drop(state);
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    let mut wire = Wire::new(stream);
                    let then = serve(&shared, &mut wire, connection);
                    // A second descriptor would keep it open.
                    shared.lock().open.retain(|(number, _)| *number != connection);
                    if then == Then::Reset {
                        wire.reset();
                    }
                });
            }
        }));
    }

    /// Requests that came, probes apart.
    pub(crate) fn requests(&self) -> usize {
        self.shared.lock().heads.len()
    }

    /// Connections that are open.
    pub(crate) fn open(&self) -> usize {
        self.shared.lock().open.len()
    }

    /// Closes every connection.
    pub(crate) fn hang_up(&self) {
        for (_, stream) in &self.shared.lock().open {
            // It may be closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// The heads of requests that came, probes apart.
    pub(crate) fn heads(&self) -> Vec<Vec<u8>> {
        self.shared.lock().heads.clone()
    }

    /// No request came, nor a part of one.
    #[track_caller]
    pub(crate) fn assert_untouched(&self) {
        let state = self.shared.lock();
        let seen: Vec<_> =
            state.heads.iter().chain(&state.pieces).map(|bytes| shown(bytes)).collect();
        assert!(seen.is_empty(), "the backend saw {seen:?}");
    }

    /// Waits until so many requests came.
    pub(crate) fn await_requests(&self, count: usize) {
        drop(self.shared.wait(PATIENCE, |state| state.heads.len() >= count));
    }

    /// Until a probe asked for metrics.
    pub(crate) fn await_metrics_probe(&self) {
        drop(self.shared.wait(PATIENCE, |state| state.metrics_asked));
    }

    pub(crate) fn list(&self, models: &[&str]) {
        self.shared.lock().models = models.iter().map(|&model| model.to_owned()).collect();
    }

    /// From now on lists its models only to who shows this key.
    pub(crate) fn ask_for(&self, key: &str) {
        self.shared.lock().key = Some(format!("Bearer {key}"));
    }

    /// From now on accepts and closes at once.
    pub(crate) fn slam(&self) {
        self.shared.slams.store(true, Ordering::SeqCst);
    }

    /// From now on connections are made by the kernel alone, as far as its queue takes them.
    pub(crate) fn pause(&self) {
        self.shared.lock().paused = true;
        self.wake();
        // Else it would take one more connection, whenever it gets round to it.
        drop(self.shared.wait(PATIENCE, |state| state.parked));
    }

    /// Closes the port and every connection.
    pub(crate) fn stop(&mut self) {
        self.shared.lock().stopping = true;
        self.shared.changed.notify_all();
        self.wake();
        if let Some(acceptor) = self.acceptor.take() {
            drop(acceptor.join().expect("the acceptor does not panic"));
        }
        // Now that nobody adds another.
        let open = std::mem::take(&mut self.shared.lock().open);
        for (_, stream) in open {
            // It may be closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Opens the same port again.
    pub(crate) fn start_again(&mut self) {
        self.shared.lock().stopping = false;
        self.accept_on(listening(self.address));
    }

    /// Ends the acceptor's wait. Its queue may be full, in which case it does not wait.
    fn wake(&self) {
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_millis(500));
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A test that failed with the lock in hand has said so.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, limit: Duration, is_so: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let (state, waited) = self
            .changed
            .wait_timeout_while(self.lock(), limit, |state| !is_so(state))
            .unwrap_or_else(PoisonError::into_inner);
        assert!(!waited.timed_out(), "the backend waits in vain");
        state
    }
}

fn serve(shared: &Shared, wire: &mut Wire, connection: usize) -> Then {
    loop {
        let Ok(head) = wire.head() else {
            let (piece, _) = wire.rest();
            if !piece.is_empty() {
                shared.lock().pieces.push(piece);
            }
            return Then::Close;
        };
        if let Some(answer) = probe_answer(shared, &head) {
            if wire.try_send(answer).is_err() || says_close(&head) {
                return Then::Close;
            }
            continue;
        }
        let number = {
            let mut state = shared.lock();
            state.heads.push(head.clone());
            shared.changed.notify_all();
            state.heads.len() - 1
        };
        let then = (shared.script)(wire, Asked { head, number, connection });
        if then != Then::Keep {
            return then;
        }
    }
}

fn says_close(head: &[u8]) -> bool {
    header(head, "connection").is_some_and(|value| value == "close")
}

fn probe_answer(shared: &Shared, head: &[u8]) -> Option<Vec<u8>> {
    let target = head.strip_prefix(b"GET ")?.split(|byte| *byte == b' ').next()?;
    if target.ends_with(b"/health") {
        Some(ok(""))
    } else if target.ends_with(b"/v1/models") {
        if let Some(key) = &shared.lock().key
            && header(head, "authorization").as_deref() != Some(key)
        {
            return Some(framed("401 Unauthorized", r#"{"error":"Unauthorized"}"#));
        }
        let cards: Vec<_> = shared.lock().models.iter().map(|model| card(model)).collect();
        Some(ok(format!(r#"{{"object":"list","data":[{}]}}"#, cards.join(","))))
    } else if target.ends_with(b"/version") {
        Some(ok(r#"{"version":"0.33.0"}"#))
    } else if target.ends_with(b"/metrics")
        && header(head, "connection").as_deref() == Some("close")
    {
        // Clients' questions come on connections that are kept.
        shared.lock().metrics_asked = true;
        shared.changed.notify_all();
        Some(ok(""))
    } else {
        None
    }
}

/// What vLLM says to a name that it does not know.
pub(crate) fn not_found(model: &str) -> Vec<u8> {
    let message = format!("The model `{model}` does not exist.");
    let error =
        format!(r#"{{"message":"{message}","type":"NotFoundError","param":"model","code":404}}"#);
    framed("404 Not Found", format!(r#"{{"error":{error}}}"#))
}

/// A model as `/v1/models` lists it.
pub(crate) fn card(model: &str) -> String {
    format!(r#"{{"id":"{model}","object":"model","created":1,"owned_by":"vllm","parent":null}}"#)
}

/// A port at which many may wait: a backend may be slow to take them, and whoever finds no place
/// has to try again in a second.
fn listening(address: SocketAddr) -> TcpListener {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None);
    let socket = socket.expect("descriptors are left");
    socket.set_reuse_address(true).expect("TCP has it");
    socket.bind(&address.into()).expect("nobody else uses this address");
    socket.listen(QUEUE).expect("it is bound");
    socket.into()
}

/// An address of its own for each backend, so that a port that was closed stays free for the one
/// who closed it: not even connections that this machine makes take their source port from there.
fn own_ip() -> Ipv4Addr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let next = NEXT.fetch_add(1, Ordering::SeqCst) % 254 + 1;
    let [.., high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 64 + high % 128, low, next as u8)
}

/// Opens once, for all who wait.
#[derive(Clone, Default)]
pub(crate) struct Gate {
    state: Arc<(Mutex<bool>, Condvar)>,
}

impl Gate {
    pub(crate) fn open(&self) {
        *self.state.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.state.1.notify_all();
    }

    /// Whether it was opened in time.
    #[must_use]
    pub(crate) fn pass(&self) -> bool {
        let open = self.state.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (open, _) = self
            .state
            .1
            .wait_timeout_while(open, PATIENCE, |open| !*open)
            .unwrap_or_else(PoisonError::into_inner);
        *open
    }
}

/// When and how a connection ended, as its backend saw it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Left {
    pub(crate) end: End,
    pub(crate) at: Instant,
    /// What came before, the request's head and body apart.
    pub(crate) bytes: usize,
}

/// Reads until the proxy ends the connection.
pub(crate) fn until_left(wire: &mut Wire) -> Left {
    let (bytes, end) = wire.drained();
    Left { end, at: Instant::now(), bytes }
}
