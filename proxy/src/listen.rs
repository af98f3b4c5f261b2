//! Listening sockets: one a thread, on one port.
//!
//! Knows whose a port is; does not know who accepts, nor what is said.

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::thread;
use std::time::Duration;
use vllm_proxy_core::carry;

/// Clients that may wait to be accepted; the kernel lowers it to `net.core.somaxconn`.
const BACKLOG: i32 = 4_096;

/// A process on io_uring is gone before its sockets are: the kernel closes those behind its end. Of
/// 30 ports 24 were still taken then, for 205 ms at most (Linux 6.18, two cores at a load of 48).
const TAKEN_TRIES: u32 = 200;
const TAKEN_PAUSE: Duration = Duration::from_millis(10);

/// Binds as [`bind`] does, and waits for a port that is taken, for two seconds: who starts a proxy
/// anew does so as soon as the former one has ended.
pub(crate) fn bind_patiently(address: SocketAddr, threads: usize) -> io::Result<Vec<TcpListener>> {
    patiently(|| bind(address, threads))
}

fn patiently<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 0..TAKEN_TRIES {
        match attempt() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => thread::sleep(TAKEN_PAUSE),
            done => return done,
        }
    }
    attempt()
}

/// Binds one listening socket for each of `threads` threads, which share the address. Port 0 picks
/// a free one for all.
///
/// # Errors
///
/// The address is taken, by whatever kind of socket, or is not one of this machine's.
fn bind(address: SocketAddr, threads: usize) -> io::Result<Vec<TcpListener>> {
    let mut listeners = Vec::with_capacity(threads.max(1));
    let mut shared = address;
    for index in 0..threads.max(1) {
        let socket = Socket::new(Domain::for_address(shared), Type::STREAM, Some(Protocol::TCP))?;
        // Connections of a former process in TIME_WAIT do not keep the port.
        socket.set_reuse_address(true)?;
        if shared.is_ipv6() {
            // `::` means both families.
            socket.set_only_v6(false)?;
        }
        socket.set_tcp_nodelay(true)?;
        keep_watch(&socket)?;
        socket.set_nonblocking(true)?;
        if index == 0 {
            // The first asks for the port alone, so that one which another process shares counts
            // as taken. It is ours once we listen: until then SO_REUSEADDR lets others bind it,
            // too. Only then it is shared, so that of two proxies that start at once one fails.
            socket.bind(&shared.into())?;
            socket.listen(BACKLOG)?;
            socket.set_reuse_port(true)?;
        } else {
            socket.set_reuse_port(true)?;
            socket.bind(&shared.into())?;
            socket.listen(BACKLOG)?;
        }
        let listener = TcpListener::from(socket);
        shared = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok(listeners)
}

/// Has the kernel find a client that vanished without a word: what is accepted inherits this, and
/// TCP_NODELAY, too (Linux).
fn keep_watch(socket: &Socket) -> io::Result<()> {
    let keepalive = TcpKeepalive::new()
        .with_time(carry::KEEPALIVE_AFTER)
        .with_interval(carry::KEEPALIVE_EVERY)
        .with_retries(carry::KEEPALIVE_TRIES);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(carry::UNACKNOWLEDGED_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{ErrorKind, Read, Write};
    use std::net::TcpStream;
    use std::time::Instant;

    fn loopback(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    fn port(listeners: &[TcpListener]) -> u16 {
        listeners[0].local_addr().unwrap().port()
    }

    /// Accepts until so many connections came, and says how many each listener got.
    fn accepted(listeners: &[TcpListener], expected: usize) -> Vec<usize> {
        let mut counts = vec![0; listeners.len()];
        let end = Instant::now() + Duration::from_secs(120);
        while counts.iter().sum::<usize>() < expected && Instant::now() < end {
            for (count, listener) in counts.iter_mut().zip(listeners) {
                if let Ok((mut stream, _)) = listener.accept() {
                    stream.write_all(b"x").unwrap();
                    *count += 1;
                }
            }
        }
        counts
    }

    #[test]
    fn connections_are_spread_over_all_listeners() {
        let listeners = bind(loopback(0), 4).unwrap();
        let address = listeners[0].local_addr().unwrap();
        let clients: Vec<_> = (0..200).map(|_| TcpStream::connect(address).unwrap()).collect();
        let counts = accepted(&listeners, 200);
        assert_eq!(counts.iter().sum::<usize>(), 200, "{counts:?}");
        assert!(counts.iter().all(|count| *count > 10), "{counts:?}");
        for mut client in clients {
            let mut byte = [0];
            client.read_exact(&mut byte).unwrap();
        }
    }

    #[test]
    fn a_shared_port_is_taken() {
        let listeners = bind(loopback(0), 3).unwrap();
        for threads in [1, 3] {
            let error = bind(loopback(port(&listeners)), threads).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::AddrInUse);
        }
    }

    #[test]
    fn a_port_that_is_let_go_is_waited_for() {
        let mut former = bind(loopback(0), 2).unwrap();
        let address = loopback(port(&former));
        let mut tries = 0;
        let listeners = patiently(|| {
            tries += 1;
            if tries == 3 {
                former.clear();
            }
            bind(address, 2)
        });
        assert_eq!((tries, port(&listeners.unwrap())), (3, address.port()));
    }

    #[test]
    fn what_is_wrong_otherwise_is_told_at_once() {
        let mut tries = 0;
        let failed = patiently(|| {
            tries += 1;
            Err::<(), _>(io::Error::from(ErrorKind::AddrNotAvailable))
        });
        assert_eq!((tries, failed.unwrap_err().kind()), (1, ErrorKind::AddrNotAvailable));
    }

    #[test]
    fn a_port_that_others_share_is_taken() {
        let other = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
        other.set_reuse_address(true).unwrap();
        other.set_reuse_port(true).unwrap();
        other.bind(&loopback(0).into()).unwrap();
        other.listen(1).unwrap();
        let other = TcpListener::from(other);
        let error = bind(other.local_addr().unwrap(), 2).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
    }

    #[test]
    fn of_many_at_once_one_gets_the_port() {
        for _ in 0..50 {
            let free = port(&bind(loopback(0), 1).unwrap());
            let racers: Vec<_> =
                (0..8).map(|_| thread::spawn(move || bind(loopback(free), 2))).collect();
            let won: Vec<_> =
                racers.into_iter().filter_map(|racer| racer.join().unwrap().ok()).collect();
            assert_eq!(won.len(), 1);
        }
    }

    #[test]
    fn a_port_is_free_again_at_once() {
        let listeners = bind(loopback(0), 2).unwrap();
        let port = port(&listeners);
        let client = TcpStream::connect(loopback(port)).unwrap();
        assert_eq!(accepted(&listeners, 1).iter().sum::<usize>(), 1);
        // Whoever closes first is in TIME_WAIT: the accepted side is closed by now.
        drop(listeners);
        drop(client);
        assert_eq!(bind(loopback(port), 2).unwrap().len(), 2);
    }
}
