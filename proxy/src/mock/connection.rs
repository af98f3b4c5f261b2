//! The server's sockets: listening, one task a connection, and noticing that a client has left.
//!
//! async-h1 speaks HTTP. It does not look at the socket while an answer is being made, so the work
//! on an answer races with a `peek` here; when the client has left all of it is dropped at once.

use super::engine::Engine;
use super::responses::Store;
use super::routes::respond;
use super::{Args, End, answers};
use async_h1::server::{ConnectionStatus, Server as Http};
use http_types::Method;
use smol::channel::{Receiver, Sender, bounded};
use smol::future::{FutureExt, pending};
use smol::io::AsyncWriteExt;
use smol::net::{TcpListener, TcpStream};
use smol::{Async, LocalExecutor, Timer};
use socket2::{Domain, SockRef, Socket, Type};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;
use vllm_proxy_core::rng::{Rng, mix};
use vllm_proxy_sim::faults::{Chances, Fault};

/// uvicorn's, as vLLM starts it.
const BACKLOG: i32 = 2_048;
/// vLLM closes a connection that was idle for so long after an answer
/// (`VLLM_HTTP_TIMEOUT_KEEP_ALIVE`).
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// How long accepting pauses when it fails, as it does when descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// The label of requests counted by `http_requests_total`: handler, method, first digit of status.
type Handled = (&'static str, String, u16);

/// What all connections of one simulated server share.
#[derive(Debug)]
pub(super) struct Mock {
    pub(super) args: Args,
    pub(super) engine: Rc<Engine>,
    /// Responses kept for later requests.
    pub(super) responses: RefCell<Store>,
    pub(super) requests: RefCell<BTreeMap<Handled, u64>>,
    /// When the server started, in seconds since 1970.
    pub(super) started: f64,
    chances: Chances,
    /// Two generators: how many ids were made must not change which faults are drawn.
    faults: RefCell<Rng>,
    ids: RefCell<Rng>,
    /// Generation requests so far.
    generations: Cell<u64>,
    ended: Sender<End>,
}

impl Mock {
    fn new(args: Args, ended: Sender<End>) -> Self {
        Self {
            engine: Rc::new(Engine::new()),
            responses: RefCell::default(),
            requests: RefCell::default(),
            started: answers::unix_time(),
            chances: args.chances(),
            faults: RefCell::new(Rng::new(args.seed)),
            ids: RefCell::new(Rng::new(mix(args.seed))),
            generations: Cell::new(0),
            ended,
            args,
        }
    }

    /// The fault of the next generation request, if it has one.
    pub(super) fn draw(&self) -> Option<Fault> {
        self.generations.set(self.generations.get() + 1);
        if self.args.crash_at == Some(self.generations.get()) {
            return Some(Fault::Crash);
        }
        self.chances.draw(&mut self.faults.borrow_mut())
    }

    /// A new id, as the sixteen digits that vLLM's have.
    pub(super) fn hex(&self) -> String {
        format!("{:016x}", self.ids.borrow_mut().next_u64())
    }

    /// Tells apart configurations, as vLLM's does.
    pub(super) fn fingerprint(&self) -> String {
        let args = &self.args;
        let bytes = args.models.iter().flat_map(|model| model.bytes());
        let hash = bytes.fold(args.max_model_len.into(), |hash, byte| mix(hash ^ u64::from(byte)));
        format!("vllm-{}-{:08x}", args.version, hash as u32)
    }

    /// The name that answers hold for a request that names `model`, or 404.
    pub(super) fn serves(&self, model: Option<&str>) -> Result<String, answers::Answer> {
        let args = &self.args;
        match model {
            Some(model) if args.denied_models.iter().any(|name| name == model) => {
                Err(self.unknown(model))
            }
            None | Some("") => Ok(args.canonical().to_owned()),
            Some(model) if args.models.iter().any(|name| name == model) => {
                Ok(args.canonical().to_owned())
            }
            Some(model) if args.loras.iter().any(|name| name == model) => Ok(model.to_owned()),
            Some(model) => Err(self.unknown(model)),
        }
    }

    pub(super) fn unknown(&self, model: &str) -> answers::Answer {
        answers::Answer::unknown_model(model, &self.args.models)
    }

    /// Counts an answer, where vLLM does.
    pub(super) fn count(&self, handler: &'static str, method: Method, status: u16) {
        if !matches!(handler, "/metrics" | "/health" | "/load" | "/ping" | "/version") {
            let key = (handler, method.to_string(), status / 100);
            *self.requests.borrow_mut().entry(key).or_default() += 1;
        }
    }

    /// Ends the server.
    pub(super) fn end(&self, why: End) {
        // Full when it is ending already.
        let _ = self.ended.try_send(why);
    }
}

/// A bound server, not yet serving.
#[derive(Debug)]
pub(super) struct Server {
    listener: std::net::TcpListener,
    address: SocketAddr,
    args: Args,
    ends: (Sender<End>, Receiver<End>),
}

impl Server {
    pub(super) fn bind(
        address: SocketAddr,
        args: Args,
        ends: (Sender<End>, Receiver<End>),
    ) -> io::Result<Self> {
        // std's listener has a backlog of 128: too short when a thousand clients come at once.
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let listener = std::net::TcpListener::from(socket);
        Ok(Self { address: listener.local_addr()?, listener, args, ends })
    }

    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn model(&self) -> &str {
        self.args.canonical()
    }

    /// Serves until told to end; says why it did. All connections close with it.
    pub(super) async fn serve(self) -> io::Result<End> {
        let (ended, ends) = self.ends;
        let mock = Rc::new(Mock::new(self.args, ended));
        let listener = TcpListener::from(Async::new(self.listener)?);
        let tasks = LocalExecutor::new();
        let accepting = async {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => tasks.spawn(connection(stream, Rc::clone(&mock))).detach(),
                    Err(error) => {
                        log::warn!(error:% = error; "mock cannot accept");
                        Timer::after(ACCEPT_PAUSE).await;
                    }
                }
            }
        };
        // The sender is held by `mock`, so this never fails.
        let ending = async { ends.recv().await.unwrap_or(End::Asked) };
        Ok(ending.or(tasks.run(accepting)).await)
    }
}

/// Work on an answer that goes on while the answer leaves.
pub(super) type Job = Pin<Box<dyn Future<Output = ()>>>;

/// One client's connection, as the makers of answers see it.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) mock: Rc<Mock>,
    stream: TcpStream,
    /// Takes the job of the request in hand; whoever hears it starts to watch the client.
    jobs: Sender<Option<Job>>,
    /// Whether the request in hand was understood.
    understood: Cell<bool>,
}

impl Connection {
    /// The request has been read: from now on all work on it ends when the client leaves. `job` is
    /// the work that the answer's body waits for.
    pub(super) fn watch(&self, job: Option<Job>) {
        // There is room: one request at a time, one call for each.
        let _ = self.jobs.try_send(job);
    }

    /// Makes the coming close a reset: what the kernel does when nothing may linger.
    pub(super) fn reset_on_close(&self) {
        let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
    }
}

async fn connection(stream: TcpStream, mock: Rc<Mock>) {
    // Every event is to leave at once. It fails when the client is gone already.
    let _ = stream.set_nodelay(true);
    let (jobs, watched) = bounded(1);
    let this = &Connection { mock, stream: stream.clone(), jobs, understood: Cell::new(false) };
    let mut http = Http::new(stream.clone(), |request| {
        this.understood.set(true);
        respond(this, request)
    });
    loop {
        this.understood.set(false);
        let exchange = async { http.accept_one().await.map_err(drop) };
        let leaving = async {
            left(&stream, &watched).await;
            Ok(ConnectionStatus::Close)
        };
        match exchange.or(leaving).await {
            Ok(ConnectionStatus::KeepAlive) => {}
            Ok(ConnectionStatus::Close) => return,
            Err(()) => {
                if !this.understood.get() {
                    let _ = stream.clone().write_all(NOT_UNDERSTOOD).await;
                }
                return;
            }
        }
        // Where the answer was there before anyone watched.
        let _ = watched.try_recv();
        if !speaks_again(&stream).await {
            return;
        }
    }
}

/// uvicorn's words for what is not HTTP.
const NOT_UNDERSTOOD: &[u8] = b"HTTP/1.1 400 Bad Request\r\nserver: uvicorn\r\n\
    content-type: text/plain; charset=utf-8\r\ncontent-length: 30\r\nconnection: close\r\n\r\n\
    Invalid HTTP request received.";

/// Does the job of the request in hand, and returns when its client has left.
async fn left(stream: &TcpStream, watched: &Receiver<Option<Job>>) {
    // The sender outlives this, so it never fails.
    let job = watched.recv().await.ok().flatten();
    let work = async {
        if let Some(job) = job {
            job.await;
        }
        pending().await
    };
    work.or(gone(stream)).await;
}

/// Returns when the client has closed its side, be it one direction only, as vLLM sees it.
async fn gone(stream: &TcpStream) {
    match stream.peek(&mut [0]).await {
        Ok(0) | Err(_) => {}
        // It sends the next request already. Behind that no one can look, so the next failing
        // write has to tell.
        Ok(_) => pending().await,
    }
}

/// Whether the client sends another byte before it has been idle for too long.
async fn speaks_again(stream: &TcpStream) -> bool {
    let speaks = async { matches!(stream.peek(&mut [0]).await, Ok(1)) };
    let idle = async {
        Timer::after(KEEP_ALIVE).await;
        false
    };
    speaks.or(idle).await
}
