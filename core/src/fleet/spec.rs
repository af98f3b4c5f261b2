//! Specs: which backends there are to be, as whoever looks their names up tells it.
//!
//! Plain data; knows nothing of how they are.

use alloc::string::String;
use core::fmt;
use core::net::SocketAddr;

/// One vLLM server, for as long as this process lives: numbers are never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendId(pub u32);

impl fmt::Display for BackendId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a backend listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// An IP address and a port.
    Tcp(SocketAddr),
    /// A Unix socket, by its path.
    Unix(String),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{path}"),
        }
    }
}

/// Where and how to reach a backend.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendSpec {
    /// Which of the operator's upstreams it came from; they are numbered in the order given.
    pub upstream: u16,
    /// Where it listens. Two specs of one address are one backend.
    pub address: Address,
    /// `Host` for requests that brought none: the upstream's `host[:port]`.
    pub authority: String,
    /// Path prefix of the upstream, put before each target: empty, or `/p` without a final slash.
    pub prefix: String,
    /// What the operator says of it, besides.
    pub labels: Labels,
}

/// What the operator says of an upstream's backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Labels {
    /// How much one of them does, in hundredths of what others do; not 0.
    pub weight: u16,
    /// Whether they are to get no new requests.
    pub drain: bool,
}

impl Default for Labels {
    fn default() -> Self {
        Self { weight: 100, drain: false }
    }
}
