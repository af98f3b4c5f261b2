//! The server's sockets: listening, one task a connection, and noticing that a client has left.
//!
//! async-h1 speaks HTTP, and who wants a websocket is handed over before it reads a byte. It does
//! not look at the socket while an answer is being made, so the work on an answer races with a
//! `peek` here; when the client has left all of it is dropped at once.

use super::routes::respond;
use super::state::{Load, Mock};
use super::websocket::{self, Upgrade};
use super::wire::Wire;
use super::{Args, End};
use async_h1::server::{ConnectionStatus, Server as Http};
use smol::channel::{Receiver, Sender, bounded, unbounded};
use smol::future::{FutureExt, pending};
use smol::io::AsyncWriteExt;
use smol::net::TcpStream;
use smol::{Async, LocalExecutor, Timer};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;
use std::{fs, io};

/// uvicorn's, as vLLM starts it.
const BACKLOG: i32 = 2_048;
/// vLLM closes a connection that was idle for so long after an answer
/// (`VLLM_HTTP_TIMEOUT_KEEP_ALIVE`).
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// How long accepting pauses when it fails, as it does when descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// A bound server, not yet serving.
#[derive(Debug)]
pub(super) struct Server {
    listener: Async<Listener>,
    args: Args,
    ends: (Sender<End>, Receiver<End>),
}

/// A listening socket of either family.
///
/// Its streams are all held as TCP streams: to read, to write and to peek are the same system calls
/// on every stream socket, and what only TCP knows fails harmlessly.
#[derive(Debug)]
struct Listener {
    socket: Socket,
    /// The file of a Unix socket, which goes when it does.
    path: Option<PathBuf>,
}

impl Listener {
    fn bind(args: &Args) -> io::Result<Self> {
        // std's listener has a backlog of 128: too short when a thousand clients come at once.
        let bind = |domain, address: &SockAddr| -> io::Result<Socket> {
            let socket = Socket::new(domain, Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(address)?;
            socket.listen(BACKLOG)?;
            Ok(socket)
        };
        let Some(path) = &args.uds else {
            let address = SocketAddr::new(args.host, args.port);
            let socket = bind(Domain::for_address(address), &address.into())?;
            return Ok(Self { socket, path: None });
        };
        // A server that crashed has left its file behind.
        if fs::metadata(path).is_ok_and(|file| file.file_type().is_socket()) {
            fs::remove_file(path)?;
        }
        let socket = bind(Domain::UNIX, &SockAddr::unix(path)?)?;
        Ok(Self { socket, path: Some(path.clone()) })
    }

    fn accept(&self) -> io::Result<TcpStream> {
        let (stream, _) = self.socket.accept()?;
        let stream = std::net::TcpStream::from(OwnedFd::from(stream));
        Ok(TcpStream::from(Async::new(stream)?))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}

impl Server {
    pub(super) fn bind(args: Args, ends: (Sender<End>, Receiver<End>)) -> io::Result<Self> {
        Ok(Self { listener: Async::new(Listener::bind(&args)?)?, args, ends })
    }

    /// Where it listens, if that is no file.
    pub(super) fn address(&self) -> io::Result<SocketAddr> {
        let address = self.listener.get_ref().socket.local_addr()?;
        address.as_socket().ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    pub(super) fn url(&self) -> String {
        match (&self.args.uds, self.address()) {
            (None, Ok(address)) => format!("http://{address}"),
            (path, _) => format!("unix://{}", path.as_deref().unwrap_or("".as_ref()).display()),
        }
    }

    pub(super) fn model(&self) -> &str {
        self.args.canonical()
    }

    /// Serves until told to end; says why it did. All connections close with it.
    pub(super) async fn serve(self) -> io::Result<End> {
        let Self { listener, args, ends: (ended, ends) } = self;
        let (background, jobs) = unbounded();
        let mock = Rc::new(Mock::new(args, background, ended));
        let tasks = LocalExecutor::new();
        let accepting = async {
            loop {
                match listener.read_with(Listener::accept).await {
                    Ok(stream) => tasks.spawn(connection(stream, Rc::clone(&mock))).detach(),
                    Err(error) => {
                        log::warn!(error:% = error; "mock cannot accept");
                        Timer::after(ACCEPT_PAUSE).await;
                    }
                }
            }
        };
        // The senders are held by `mock`, so neither of these fails.
        let working = async {
            while let Ok(job) = jobs.recv().await {
                tasks.spawn(job).detach();
            }
            pending().await
        };
        let engine = Rc::clone(&mock.engine);
        let computing = async {
            engine.machine.work().await;
            pending().await
        };
        let ending = async { ends.recv().await.unwrap_or(End::Asked) };
        Ok(ending.or(tasks.run(accepting.or(working).or(computing))).await)
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
    /// Counts the request in hand until its answer has left.
    load: RefCell<Option<Load>>,
}

impl Connection {
    /// The request has been read: from now on all work on it ends when the client leaves. `job` is
    /// the work that the answer's body waits for.
    pub(super) fn watch(&self, job: Option<Job>) {
        // There is room: one request at a time, one call for each.
        let _ = self.jobs.try_send(job);
    }

    /// The request in hand is work for the model.
    pub(super) fn carry(&self) {
        *self.load.borrow_mut() = Some(self.mock.carry());
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
    let this = &Connection {
        mock,
        stream: stream.clone(),
        jobs,
        understood: Cell::new(false),
        load: RefCell::default(),
    };
    let wire = Wire::new(stream.clone());
    let mut http = Http::new(wire.clone(), |request| {
        this.understood.set(true);
        respond(this, request)
    });
    loop {
        if let Some(upgrade) = Upgrade::wanted(&wire.head().await) {
            return websocket::serve(&this.mock, wire, &upgrade).await;
        }
        this.understood.set(false);
        let exchange = async { http.accept_one().await.map_err(drop) };
        let leaving = async {
            left(&stream, &watched).await;
            Ok(ConnectionStatus::Close)
        };
        let end = exchange.or(leaving).await;
        this.load.take();
        match end {
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
        if !wire.has_more() && !speaks_again(&stream).await {
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
