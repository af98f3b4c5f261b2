//! Looks up the upstreams' names, again and again, and tells the engine the whole list of backends
//! whenever it changes.
//!
//! A name that cannot be looked up keeps what it had: name servers fail more often than backends
//! vanish.

use crate::shared::SharedEngine;
use crate::upstream::{Place, Upstream};
use crate::values::Host;
use smol::{LocalExecutor, Timer};
use std::cell::{Cell, RefCell};
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use vllm_proxy_core::engine::Input;
use vllm_proxy_core::fleet::{Address, BackendSpec, Labels};

/// How long an answer counts. The system's resolver hides the name server's own limit; container
/// platforms use 5 to 30 s.
const AGAIN: Duration = Duration::from_secs(10);

/// How long the first list waits for the first answers. The engine's first round of questions is to
/// all backends of that list, and requests wait for that round, but not for long.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// Starts a task for each name: one that hangs must not hold up the others.
pub(super) fn start(
    executor: &Rc<LocalExecutor<'static>>,
    shared: &Arc<SharedEngine>,
    upstreams: Vec<Upstream>,
) {
    let known: Vec<_> = upstreams.iter().map(|upstream| fixed(&upstream.place)).collect();
    let unknown = known.iter().filter(|known| known.is_none()).count();
    let list = Rc::new(List {
        shared: Arc::clone(shared),
        upstreams,
        known: RefCell::new(known.into_iter().map(Option::unwrap_or_default).collect()),
        awaited: Cell::new(unknown),
    });
    for (number, upstream) in list.upstreams.iter().enumerate() {
        if let Place::Tcp { host: Host::Name(name), port } = &upstream.place {
            let follow = follow(Rc::clone(&list), number, name.clone(), *port);
            executor.spawn(follow).detach();
        }
    }
    if unknown == 0 {
        list.tell();
        return;
    }
    let first = async move {
        Timer::after(FIRST_WAIT).await;
        if list.awaited.take() > 0 {
            list.tell();
        }
    };
    executor.spawn(first).detach();
}

/// The address of what needs no look-up.
fn fixed(place: &Place) -> Option<Vec<Address>> {
    match place {
        Place::Unix(path) => Some(vec![Address::Unix(path.clone())]),
        Place::Tcp { host: Host::Ip(ip), port } => {
            Some(vec![Address::Tcp(SocketAddr::new(*ip, *port))])
        }
        Place::Tcp { host: Host::Name(_), .. } => None,
    }
}

/// What each upstream stands for now.
struct List {
    shared: Arc<SharedEngine>,
    upstreams: Vec<Upstream>,
    known: RefCell<Vec<Vec<Address>>>,
    /// First answers that the first list waits for.
    awaited: Cell<usize>,
}

impl List {
    /// Replaces what an upstream stands for; whether that changed anything.
    fn replace(&self, number: usize, addresses: Vec<Address>) -> bool {
        let mut known = self.known.borrow_mut();
        let changed = known[number] != addresses;
        known[number] = addresses;
        changed
    }

    /// An upstream's answer is there, its first or a later one. True if the engine must hear of it.
    fn is_due(&self, first: bool, changed: bool) -> bool {
        match self.awaited.get() {
            0 => changed,
            awaited => {
                let awaited = awaited - usize::from(first);
                self.awaited.set(awaited);
                awaited == 0
            }
        }
    }

    fn tell(&self) {
        let specs = specs(&self.upstreams, &self.known.borrow());
        self.shared.tell(Input::Discovered(&specs));
    }
}

/// Backends in the order of their upstreams. An address of two upstreams stands there twice, since
/// the engine wants to know both.
fn specs(upstreams: &[Upstream], known: &[Vec<Address>]) -> Vec<BackendSpec> {
    let spec = |upstream: u16, of: &Upstream, address: &Address| BackendSpec {
        upstream,
        address: address.clone(),
        authority: of.authority.clone(),
        prefix: of.prefix.clone(),
        labels: Labels::default(),
    };
    (0_u16..)
        .zip(upstreams.iter().zip(known))
        .flat_map(|(number, (of, addresses))| {
            addresses.iter().map(move |address| spec(number, of, address))
        })
        .collect()
}

/// Looks one name up, for ever. Tells a change of state once.
async fn follow(list: Rc<List>, number: usize, name: String, port: u16) {
    let upstream = list.upstreams[number].to_string();
    let mut first = true;
    let mut failing = false;
    loop {
        let asked = name.clone();
        let mut changed = false;
        match smol::unblock(move || look_up(&asked, port)).await {
            Ok(addresses) => {
                let count = addresses.len();
                changed = list.replace(number, addresses);
                if changed {
                    log::info!(upstream = upstream.as_str(), addresses = count; "upstream resolved");
                } else if failing {
                    log::info!(upstream = upstream.as_str(); "upstream resolves again");
                }
                failing = false;
            }
            Err(error) if !failing => {
                log::warn!(upstream = upstream.as_str(), error:%; "upstream does not resolve");
                failing = true;
            }
            Err(_) => {}
        }
        if list.is_due(first, changed) {
            list.tell();
        }
        first = false;
        Timer::after(AGAIN).await;
    }
}

fn look_up(name: &str, port: u16) -> io::Result<Vec<Address>> {
    let addresses = one_family((name, port).to_socket_addrs()?.collect());
    if addresses.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    }
    Ok(addresses.into_iter().map(Address::Tcp).collect())
}

/// The IPv4 addresses if there are any, else the IPv6 ones: a server that has both is one backend.
/// Sorted, since name servers shuffle them.
fn one_family(mut addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
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
    use crate::upstream::parse_all;
    use rstest::rstest;

    fn addresses(list: &[&str]) -> Vec<SocketAddr> {
        list.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[rstest]
    #[case::mixed(&["[::1]:1", "10.0.0.2:1", "10.0.0.1:1"], &["10.0.0.1:1", "10.0.0.2:1"])]
    #[case::six(&["[::2]:1", "[::1]:1", "[::2]:1"], &["[::1]:1", "[::2]:1"])]
    #[case::none(&[], &[])]
    fn families(#[case] list: &[&str], #[case] expected: &[&str]) {
        assert_eq!(one_family(addresses(list)), addresses(expected));
    }

    #[test]
    fn backends_stand_in_the_order_of_upstreams() {
        let upstreams = parse_all(&["http://b:1", "unix:///s", "http://a:1"]).unwrap();
        let tcp = |address: &str| Address::Tcp(address.parse().unwrap());
        let unix = Address::Unix("/s".to_owned());
        let known =
            [vec![tcp("10.0.0.2:1")], vec![unix], vec![tcp("10.0.0.1:1"), tcp("10.0.0.2:1")]];
        let specs = specs(&upstreams, &known);
        let got: Vec<_> = specs
            .iter()
            .map(|spec| (spec.upstream, spec.address.to_string(), spec.authority.as_str()))
            .collect();
        assert_eq!(
            got,
            [
                (0, "10.0.0.2:1".to_owned(), "b:1"),
                (1, "unix:/s".to_owned(), "localhost"),
                (2, "10.0.0.1:1".to_owned(), "a:1"),
                (2, "10.0.0.2:1".to_owned(), "a:1"),
            ]
        );
    }

    #[test]
    fn localhost_resolves() {
        assert!(!look_up("localhost", 80).unwrap().is_empty());
        assert!(look_up("does-not-exist.invalid", 80).is_err());
    }
}
