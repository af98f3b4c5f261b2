//! What the kernel knows of connections that neither end tells.

use crate::proxy::eventually;
use crate::wire::PATIENCE;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Waits until a count of bytes has not grown for so long that everything on their way is full.
pub(crate) fn until_still(count: impl Fn() -> usize) {
    const STILL: Duration = Duration::from_millis(400);
    let start = Instant::now();
    let (mut last, mut since) = (count(), start);
    while last == 0 || since.elapsed() < STILL {
        assert!(start.elapsed() < PATIENCE * 2, "bytes never stop moving");
        std::thread::sleep(Duration::from_millis(10));
        let now = count();
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
}

/// Whether a connection waits for this address to accept.
pub(crate) fn is_connecting_to(address: SocketAddr) -> bool {
    const SYN_SENT: &str = "02";
    of(address).iter().any(|line| line.remote == address && line.state == SYN_SENT)
}

/// Whether the proxy has read all that this client sent.
pub(crate) fn is_received(proxy: SocketAddr, client: &TcpStream) -> bool {
    const EMPTY: &str = "00000000:00000000";
    let client = client.local_addr().expect("it is connected");
    let both_are_empty = || {
        let lines = of(client);
        let ends = lines.iter().filter(|line| line.local == proxy || line.remote == proxy);
        let ends: Vec<_> = ends.collect();
        ends.len() == 2 && ends.iter().all(|line| line.queues == EMPTY)
    };
    // Bytes may pass from the one to the other between their lines, though not twice.
    both_are_empty() && both_are_empty()
}

/// Waits until the peer's kernel has all that was sent: from then on it comes before whatever
/// follows, be that a reset, and before what is sent on other connections. The kernel's table may
/// be long: this is not for what happens often.
pub(crate) fn await_arrival(stream: &TcpStream) {
    let local = stream.local_addr().expect("it is connected");
    let remote = stream.peer_addr().expect("it is connected");
    eventually("all that was sent has arrived", || {
        let own = of(local).into_iter().find(|line| line.local == local && line.remote == remote);
        // Where it is gone, so is the peer.
        own.is_none_or(|line| line.queues.starts_with("00000000:"))
    });
}

struct Line {
    local: SocketAddr,
    remote: SocketAddr,
    state: String,
    queues: String,
}

/// What the kernel's table of IPv4 connections says of an address. It may be long, thanks to
/// other tests.
fn of(address: SocketAddr) -> Vec<Line> {
    let table = fs::read_to_string("/proc/net/tcp").expect("Linux has it");
    let SocketAddr::V4(address) = address else { panic!("these tests use IPv4") };
    let ip = u32::from_ne_bytes(address.ip().octets());
    let wanted = format!(" {ip:08X}:{:04X} ", address.port());
    let lines = table.lines().filter(|line| line.contains(&wanted));
    lines
        .map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            Line {
                local: parsed(fields[1]),
                remote: parsed(fields[2]),
                state: fields[3].to_owned(),
                queues: fields[4].to_owned(),
            }
        })
        .collect()
}

/// An address as the table has it.
fn parsed(text: &str) -> SocketAddr {
    let (ip, port) = text.split_once(':').expect("address:port");
    let ip = u32::from_str_radix(ip, 16).expect("hex digits");
    let port = u16::from_str_radix(port, 16).expect("hex digits");
    SocketAddr::from((ip.to_ne_bytes(), port))
}
