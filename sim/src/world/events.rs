//! What is going to happen, in order.
//!
//! Equal moments are in the order of [`Kind`], then of the number: never of a map or of chance.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use vllm_proxy_core::time::Instant;

/// What happens; of one moment the first kind first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// A server ends a step.
    Server,
    /// Something happens to a server.
    Fault,
    /// The way between proxies is cut or whole again.
    Link,
    /// Something happens to Redis or to a proxy.
    Mishap,
    /// A proxy tries to connect to Redis.
    Connect,
    /// Others notice that the proxy of this number ended.
    Gone,
    /// A proxy wanted to be called.
    Proxy,
    /// A proxy hears a word of another.
    Hear,
    /// A proxy tells what it gathered.
    Tell,
    /// Proxies keep what is for those that start.
    Keep,
    /// Proxies look whether the way to others is whole.
    Look,
    /// A client leaves.
    Leave,
    /// A proxy is asked again about a request.
    Again,
    /// Loads are written down.
    Sample,
}

#[derive(Debug)]
pub(super) struct Events {
    heap: BinaryHeap<Reverse<(Instant, Kind, usize)>>,
    /// For when each server and proxy is in the heap already.
    servers: Vec<Option<Instant>>,
    proxies: Vec<Option<Instant>>,
}

impl Events {
    pub(super) fn new(servers: usize, proxies: usize) -> Self {
        Self { heap: BinaryHeap::new(), servers: vec![None; servers], proxies: vec![None; proxies] }
    }

    pub(super) fn push(&mut self, at: Instant, kind: Kind, which: usize) {
        self.heap.push(Reverse((at, kind, which)));
    }

    /// A server is to be called then. What it wanted before stays in the heap and comes to nothing.
    pub(super) fn wake_server(&mut self, server: usize, at: Option<Instant>) {
        if self.servers[server] != at {
            self.servers[server] = at;
            if let Some(at) = at {
                self.push(at, Kind::Server, server);
            }
        }
    }

    pub(super) fn wake_proxy(&mut self, proxy: usize, at: Option<Instant>) {
        if self.proxies[proxy] != at {
            self.proxies[proxy] = at;
            if let Some(at) = at {
                self.push(at, Kind::Proxy, proxy);
            }
        }
    }

    /// The next event, if it is no later than `until`.
    pub(super) fn pop_until(&mut self, until: Instant) -> Option<(Instant, Kind, usize)> {
        let Reverse((at, kind, which)) = *self.heap.peek()?;
        if at > until {
            return None;
        }
        self.heap.pop();
        match kind {
            Kind::Server if self.servers[which] == Some(at) => self.servers[which] = None,
            Kind::Proxy if self.proxies[which] == Some(at) => self.proxies[which] = None,
            Kind::Server
            | Kind::Fault
            | Kind::Link
            | Kind::Mishap
            | Kind::Connect
            | Kind::Gone
            | Kind::Tell
            | Kind::Keep
            | Kind::Look
            | Kind::Proxy
            | Kind::Hear
            | Kind::Leave
            | Kind::Again
            | Kind::Sample => {}
        }
        Some((at, kind, which))
    }
}
