//! Looks the upstreams' names up, again and again.
//!
//! A name that cannot be looked up keeps what it had: name servers fail more often than backends
//! vanish. What becomes of an answer is the [`List`]'s to say.

use super::list::{List, MemberId};
use smol::Timer;
use smol::future::FutureExt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::rc::Rc;
use std::time::Duration;

/// How long a look-up may take. Those of glibc 2.41 end by themselves, after 10 seconds unless
/// `resolv.conf` says otherwise, but for one: whoever asks by TCP, as for more addresses than a
/// datagram of 512 bytes holds, waits for ever for a server that vanished meanwhile.
const LOOK_UP_MAX: Duration = Duration::from_secs(60);

/// Looks one name up, until it is dropped. Tells a change of state once. A name that hangs holds up
/// no other, unless as many hang as the pool has threads (500).
pub(super) async fn follow(
    list: Rc<List>,
    id: MemberId,
    upstream: String,
    name: String,
    port: u16,
) {
    let upstream = upstream.as_str();
    let (mut failing, mut limit) = (false, LOOK_UP_MAX);
    loop {
        // What is wanted while it is being looked up, is wanted anew: the answer may be old.
        let at_once = list.at_once();
        let asked = name.clone();
        match within(limit, smol::unblock(move || look_up(&asked, port))).await {
            Ok(addresses) => {
                let count = addresses.len();
                if list.answered(id, Some(addresses)) {
                    log::info!(upstream, addresses = count; "upstream resolved");
                } else if failing {
                    log::info!(upstream; "upstream resolves again");
                }
                (failing, limit) = (false, LOOK_UP_MAX);
            }
            Err(error) => {
                if error.kind() == io::ErrorKind::TimedOut {
                    // Its thread is lost: of those there are not so many.
                    limit = limit.saturating_mul(2);
                }
                list.answered(id, None);
                if !failing {
                    log::warn!(upstream, error:%; "upstream does not resolve");
                }
                failing = true;
            }
        }
        let interval = async {
            Timer::after(list.interval()).await;
        };
        interval.or(at_once).await;
    }
}

/// What comes of a look-up, if that ends. One that does not keeps its thread.
async fn within<T>(limit: Duration, look_up: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let end = async {
        Timer::after(limit).await;
        Err(io::Error::new(io::ErrorKind::TimedOut, "the look-up does not end"))
    };
    look_up.or(end).await
}

fn look_up(name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let addresses = one_family((name, port).to_socket_addrs()?.collect());
    if addresses.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    }
    Ok(addresses)
}

/// The IPv4 addresses if there are any, else the IPv6 ones: a server that has both is one backend.
/// Sorted, since name servers shuffle them. What is mapped into IPv6 (RFC 4291 section 2.5.5.2) is
/// an IPv4 address.
fn one_family(mut addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    for address in &mut addresses {
        address.set_ip(address.ip().to_canonical());
    }
    if addresses.iter().any(SocketAddr::is_ipv4) {
        addresses.retain(SocketAddr::is_ipv4);
    }
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn addresses(list: &[&str]) -> Vec<SocketAddr> {
        list.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[rstest]
    #[case::mixed(&["[::1]:1", "10.0.0.2:1", "10.0.0.1:1"], &["10.0.0.1:1", "10.0.0.2:1"])]
    #[case::six(&["[::2]:1", "[::1]:1", "[::2]:1"], &["[::1]:1", "[::2]:1"])]
    #[case::mapped(&["[::ffff:10.0.0.2]:1", "[::1]:1", "10.0.0.2:1"], &["10.0.0.2:1"])]
    #[case::none(&[], &[])]
    fn families(#[case] list: &[&str], #[case] expected: &[&str]) {
        assert_eq!(one_family(addresses(list)), addresses(expected));
    }

    #[test]
    fn a_look_up_that_never_ends_is_given_up() {
        let never = within(Duration::from_millis(1), smol::future::pending::<io::Result<()>>());
        assert_eq!(smol::block_on(never).unwrap_err().kind(), io::ErrorKind::TimedOut);
        let late = Duration::from_secs(3_600);
        assert!(smol::block_on(within(late, async { Ok(()) })).is_ok());
    }

    #[test]
    fn localhost_resolves() {
        assert!(!look_up("localhost", 80).unwrap().is_empty());
        assert!(look_up("does-not-exist.invalid", 80).is_err());
    }
}
