//! Sockets: the one file that knows what they are made of.
//!
//! Reads and writes are tried at once and say `None` instead of waiting; waiting is a call of its
//! own, to the thread's [`Reactor`]. async-net's sockets do the same work with 11.6 system calls
//! per request where these need 5.6, so they are left to the prober and the mock.

use crate::reactor::{Reactor, Source};
use rustix::fd::{AsFd, OwnedFd};
use rustix::net::{RecvFlags, SendFlags, SocketFlags};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket as RawSocket, TcpKeepalive, Type};
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;
use vllm_proxy_core::carry;
use vllm_proxy_core::fleet::Address;

/// How soon a Unix socket whose queue is full is asked again. It cannot be waited for: where TCP
/// sends another SYN, `connect` says EAGAIN.
const CONNECT_AGAIN: Duration = Duration::from_millis(5);

/// A connected stream.
#[derive(Debug)]
pub(crate) struct Socket(Source);

impl Socket {
    /// Reads what is there: `None` if nothing is, 0 at the end.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        self.0.try_read(buffer.len(), |fd| {
            rustix::net::recv(fd, &mut *buffer, RecvFlags::empty()).map(|(bytes, _)| bytes)
        })
    }

    /// Writes what fits: `None` if nothing does.
    pub(crate) fn write(&self, slices: &[IoSlice<'_>]) -> io::Result<Option<usize>> {
        let bytes = slices.iter().map(|slice| slice.len()).sum();
        self.0.try_write(bytes, |fd| match slices {
            // `recv` and `send` skip what `read` and `write` do for files (`vfs_read`, `fdget_pos`
            // and so on were 4 % of the samples of a paced event).
            [slice] => rustix::net::send(fd, slice, SendFlags::NOSIGNAL),
            _ => rustix::io::writev(fd, slices),
        })
    }

    /// Ready when a read may bring something; a hint, not a promise.
    pub(crate) fn poll_readable(&self, cx: &Context<'_>) -> Poll<()> {
        self.0.poll_readable(cx)
    }

    /// Ready when the peer will send nothing more, though bytes may be left to read.
    pub(crate) fn poll_ended(&self, cx: &Context<'_>) -> Poll<()> {
        self.0.poll_ended(cx)
    }

    /// Ready when the connection was reset, or lost otherwise.
    pub(crate) fn poll_failed(&self, cx: &Context<'_>) -> Poll<()> {
        self.0.poll_failed(cx)
    }

    /// Ready when a write may take something; a hint, not a promise.
    pub(crate) fn poll_writable(&self, cx: &Context<'_>) -> Poll<()> {
        self.0.poll_writable(cx)
    }

    /// Whether the peer has been silent, as far as is known.
    pub(crate) fn is_silent(&self) -> bool {
        !self.0.is_readable()
    }

    /// Closes the sending half. What is still read may be a peer's last words.
    pub(crate) fn shutdown(&self) {
        // A peer that is gone already needs no goodbye.
        let _ = rustix::net::shutdown(&self.0, rustix::net::Shutdown::Write);
    }

    /// Makes the close that follows a reset.
    pub(crate) fn reset(&self) {
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
    let source = reactor.watch(OwnedFd::from(socket))?;
    if pending {
        poll_fn(|cx| source.poll_writable(cx)).await;
        if let Some(error) = SockRef::from(&source).take_error()? {
            return Err(error);
        }
    }
    Ok(Socket(source))
}

/// Whether a connection failed for lack of something here, which says nothing of the peer.
pub(crate) fn is_ours(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let ours = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL];
    error.raw_os_error().is_some_and(|code| ours.iter().any(|errno| errno.raw_os_error() == code))
}

/// A connection under way.
const IN_PROGRESS: i32 = rustix::io::Errno::INPROGRESS.raw_os_error();

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
    pub(crate) fn new(reactor: Rc<Reactor>, listener: std::net::TcpListener) -> io::Result<Self> {
        Ok(Self { source: reactor.watch(listener.into())?, reactor })
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

    /// A client that waits already.
    pub(crate) fn accept_now(&self) -> io::Result<Option<Socket>> {
        let mut accepted = None;
        self.source.try_read(0, |listener| {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            accepted = Some(rustix::net::accept_with(listener.as_fd(), flags)?);
            Ok(0)
        })?;
        accepted.map(|accepted| Ok(Socket(self.reactor.watch(accepted)?))).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smol::future::poll_once;
    use std::os::unix::net::UnixListener;
    use std::pin::pin;

    #[test]
    fn a_full_queue_of_a_unix_socket_is_waited_for() {
        let reactor = Reactor::new().expect("a reactor");
        let name = format!("vllm-proxy-smol-{}.sock", std::process::id());
        let path = std::env::temp_dir().join(name);
        let listener = RawSocket::new(Domain::UNIX, Type::STREAM, None).expect("a socket");
        listener.bind(&SockAddr::unix(&path).expect("a path")).expect("bound");
        // Room for one.
        listener.listen(0).expect("listening");
        let listener = UnixListener::from(OwnedFd::from(listener));
        let address = Address::Unix(path.to_str().expect("text").to_owned());
        let connect = || connect(reactor.clone(), address.clone());
        reactor.block_on(async {
            let first = connect().await.expect("there is room");
            let mut second = pin!(connect());
            assert!(poll_once(&mut second).await.is_none(), "it gave up");
            listener.accept().expect("the first");
            second.await.expect("there is room again");
            drop(first);
        });
        std::fs::remove_file(&path).expect("removed");
    }
}
