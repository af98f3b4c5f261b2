//! Sockets: the one file that knows what they are made of.
//!
//! Reads and writes are tried at once and never wait; waiting is a call of its own, to the thread's
//! [`Reactor`]. async-net's sockets do the same work with 11.6 system calls per request where these
//! need 5.6, so they are left to the prober and the mock.

use crate::reactor::{Bytes, Reactor, Source};
use rustix::fd::{AsFd, OwnedFd};
use rustix::net::{RecvFlags, SendFlags, SocketFlags};
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
        let read = self.0.read(|fd, room| {
            rustix::net::recv(fd, room, RecvFlags::empty()).map(|(bytes, _)| bytes)
        });
        match read {
            Ok(None) => Ok(Read::Nothing),
            Ok(Some(bytes)) if bytes.is_empty() => Ok(Read::End),
            // A short read took all there was.
            Ok(Some(bytes)) => Ok(Read::Some { more: bytes.is_full(), bytes }),
            Err(_) => Err(Lost),
        }
    }

    fn write(&self, slices: [&[u8]; 2]) -> Result<usize, Lost> {
        let bytes = slices.iter().map(|slice| slice.len()).sum();
        let written = self.0.try_write(bytes, |fd| match slices {
            // `recv` and `send` skip what `read` and `write` do for files (`vfs_read`, `fdget_pos`
            // and so on were 4 % of the samples of a paced event).
            [slice, []] | [[], slice] => rustix::net::send(fd, slice, SendFlags::NOSIGNAL),
            slices => rustix::io::writev(fd, &slices.map(IoSlice::new)),
        });
        written.map(Option::unwrap_or_default).map_err(|_| Lost)
    }

    fn poll_readable(&self, cx: &Context<'_>) -> Poll<()> {
        self.0.poll_readable(cx)
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
        !self.0.is_readable()
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
    let source = reactor.watch(OwnedFd::from(socket))?;
    if pending {
        poll_fn(|cx| source.poll_writable(cx)).await;
        if let Some(error) = SockRef::from(&source).take_error()? {
            return Err(error);
        }
    }
    Ok(Socket(source))
}

/// Whose fault it is that there is no connection.
pub(crate) fn whose(error: &io::Error) -> Unconnected {
    use rustix::io::Errno;
    let ours = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL];
    let is_ours = |code| ours.iter().any(|errno| errno.raw_os_error() == code);
    if error.raw_os_error().is_some_and(is_ours) { Unconnected::Ours } else { Unconnected::Theirs }
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
        let clock = crate::Clock::new(std::time::Instant::now());
        let reactor = Reactor::new(clock).expect("a reactor");
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
