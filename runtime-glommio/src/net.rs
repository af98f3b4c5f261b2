//! Sockets: the one file that knows what they are made of.
//!
//! What is read was received by the ring before; writes are tried at once and never wait. Waiting
//! is a call of its own, to the thread's [`Reactor`].

use crate::reactor::{Reactor, Source};
use crate::ring::Bytes;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{SendFlags, SocketFlags};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket as RawSocket, TcpKeepalive, Type};
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;
use vllm_proxy_core::carry::{self, Lost, Read, Unconnected};
use vllm_proxy_core::fleet::Address;

/// How soon a Unix socket whose queue is full is asked again. It cannot be waited for: where TCP
/// sends another SYN, `connect` says EAGAIN.
const CONNECT_AGAIN: Duration = Duration::from_millis(5);

/// A connected stream.
#[derive(Debug)]
pub(crate) struct Socket(Source);

impl carry::Socket for Socket {
    type Bytes = Bytes;

    fn read(&self) -> Result<Read<Bytes>, Lost> {
        self.0.read()
    }

    fn write(&self, slices: [&[u8]; 2]) -> Result<usize, Lost> {
        let bytes = slices.iter().map(|slice| slice.len()).sum();
        let written = self.0.try_write(bytes, |fd| match slices {
            [slice, []] | [[], slice] => rustix::net::send(fd, slice, SendFlags::NOSIGNAL),
            slices => rustix::io::writev(fd, &slices.map(IoSlice::new)),
        });
        written.map(Option::unwrap_or_default).map_err(|_| Lost)
    }

    fn poll_readable(&self, cx: &Context<'_>) -> Poll<()> {
        self.0.poll_received(cx)
    }

    fn poll_ended(&self, cx: &Context<'_>) -> Poll<()> {
        self.0.poll_ended(cx)
    }

    fn poll_failed(&self, cx: &Context<'_>) -> Poll<()> {
        self.0.poll_failed(cx)
    }

    fn poll_writable(&self, cx: &Context<'_>) -> Poll<()> {
        self.0.poll_writable(cx)
    }

    fn is_silent(&self) -> bool {
        self.0.is_silent()
    }

    fn shutdown(&self) {
        // A peer that is gone already needs no goodbye.
        let _ = rustix::net::shutdown(&self.0, rustix::net::Shutdown::Write);
    }

    fn reset(&self) {
        let _ = SockRef::from(&self.0).set_linger(Some(Duration::ZERO));
    }
}

/// Connects to a backend.
pub(crate) async fn connect(reactor: Rc<Reactor>, address: Address) -> io::Result<Socket> {
    let (domain, protocol, address) = match address {
        Address::Tcp(address) => {
            (Domain::for_address(address), Some(Protocol::TCP), SockAddr::from(address))
        }
        Address::Unix(path) => (Domain::UNIX, None, SockAddr::unix(path)?),
    };
    let socket = RawSocket::new(domain, Type::STREAM.nonblocking(), protocol)?;
    if protocol.is_some() {
        socket.set_tcp_nodelay(true)?;
        keep_watch(&SockRef::from(&socket))?;
    }
    let pending = loop {
        match socket.connect(&address) {
            Ok(()) => break false,
            Err(error) if error.raw_os_error() == Some(IN_PROGRESS) => break true,
            // Whoever waits for the connection knows for how long.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                reactor.after(CONNECT_AGAIN).await;
            }
            Err(error) => return Err(error),
        }
    };
    let source = reactor.watch(OwnedFd::from(socket));
    if pending {
        // A write that was tried would have found no room.
        source.try_write(1, |_| Err(Errno::AGAIN))?;
        poll_fn(|cx| source.poll_writable(cx)).await;
        if let Some(error) = SockRef::from(&source).take_error()? {
            return Err(error);
        }
    }
    source.receive();
    Ok(Socket(source))
}

/// Whose fault it is that there is no connection.
pub(crate) fn whose(error: &io::Error) -> Unconnected {
    let ours = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL];
    let is_ours = |code| ours.iter().any(|errno| errno.raw_os_error() == code);
    if error.raw_os_error().is_some_and(is_ours) { Unconnected::Ours } else { Unconnected::Theirs }
}

/// A connection under way.
const IN_PROGRESS: i32 = Errno::INPROGRESS.raw_os_error();

/// Has the kernel find a backend that vanished without a word.
fn keep_watch(socket: &SockRef<'_>) -> io::Result<()> {
    let keepalive = TcpKeepalive::new()
        .with_time(carry::KEEPALIVE_AFTER)
        .with_interval(carry::KEEPALIVE_EVERY)
        .with_retries(carry::KEEPALIVE_TRIES);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(carry::UNACKNOWLEDGED_MAX))
}

/// A listening socket.
#[derive(Debug)]
pub(crate) struct Listener {
    source: Source,
    reactor: Rc<Reactor>,
}

impl Listener {
    pub(crate) fn new(reactor: Rc<Reactor>, listener: std::net::TcpListener) -> Self {
        Self { source: reactor.watch(listener.into()), reactor }
    }

    /// Waits for a client.
    pub(crate) async fn accept(&self) -> io::Result<Socket> {
        loop {
            poll_fn(|cx| self.source.poll_readable(cx)).await;
            if let Some(socket) = self.accept_now()? {
                return Ok(socket);
            }
        }
    }

    /// Stops waiting for clients. A close that follows is at once: in the time that the kernel
    /// takes to forget the listener clients would come in who nobody takes.
    pub(crate) async fn rest(&self) {
        poll_fn(|cx| self.source.poll_unwatched(cx)).await;
    }

    /// A client that waits already.
    pub(crate) fn accept_now(&self) -> io::Result<Option<Socket>> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let accepted =
            self.source.try_read(|listener| rustix::net::accept_with(listener, flags))?;
        Ok(accepted.map(|accepted| {
            let source = self.reactor.watch(accepted);
            source.receive();
            Socket(source)
        }))
    }
}
