//! What an operator decides, as plain data that is valid once constructed.
//!
//! Knows nothing of options, variables or defaults of the command line: `proxy` turns those into
//! this, once, at the edge.

use crate::time::Duration;
use alloc::string::String;
use alloc::vec::Vec;

/// How a backend is chosen among those that serve the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// As [`LeastLoad`](Self::LeastLoad), but what a backend is believed to have cached of the
    /// prompt is no work.
    #[default]
    CacheAware,
    /// The backend with the least work in hand.
    LeastLoad,
    /// Each in turn.
    RoundRobin,
}

/// What the [`Engine`](crate::engine::Engine) needs to know.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// How a backend is chosen.
    pub policy: Policy,
    /// The model of requests that name none; `None`: the first model of the first upstream.
    pub default_model: Option<String>,
    /// How many upstreams the operator named. An [`upstream`](crate::fleet::BackendSpec::upstream)
    /// number is below it. This and [`forward_unknown`](Self::forward_unknown) change with the list
    /// of upstreams, if that does.
    pub upstreams: u16,
    /// The budget of all request bodies held at once, in bytes.
    pub body_memory: u64,
    /// Numbers of the upstreams that accept model names they do not list.
    pub forward_unknown: Vec<u16>,
    /// The budget of the prefix index, in bytes; 0 where no policy asks it.
    pub index_memory: usize,
    /// This proxy's number among those that tell each other facts, drawn by chance whenever the
    /// process starts; `None` if it tells nobody anything.
    pub proxy: Option<u64>,
    /// What runs.
    pub build: Build,
    /// Microseconds from the Unix epoch to [`Instant::START`](crate::time::Instant::START): for
    /// telling when the process began.
    pub epoch_micros: u64,
}

/// Which program runs: where several do, an operator wants to know which is which.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Build {
    /// Its version.
    pub version: &'static str,
    /// The commit that it was built from; empty if that is not known.
    pub commit: &'static str,
    /// What it was built with.
    pub features: &'static [&'static str],
    /// The runtime that it runs on.
    pub runtime: &'static str,
}

/// What a listener shows of the proxy itself: everything below `/proxy/`, and why it chose as it
/// did. What is not shown is a path like any other, and some backend's to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// How the proxy and its backends are.
    pub reads: bool,
    /// What changes that: only where nobody comes who is not an operator.
    pub acts: bool,
    /// Why a backend was chosen. It tells whether somebody else sent the same prompt before.
    pub explains: bool,
}

impl Access {
    /// All there is, for operators.
    pub const ADMIN: Self = Self { reads: true, acts: true, explains: true };
}

impl Default for Access {
    /// What may be read where there is no other address for it.
    fn default() -> Self {
        Self { reads: true, acts: false, explains: false }
    }
}

/// The limits of one [`Exchange`](crate::exchange::Exchange). The defaults are the documented ones.
#[derive(Clone, Debug)]
pub struct Limits {
    /// A request head and, separately, a trailer section, in bytes; more is 431.
    pub head_bytes_max: usize,
    /// Header lines of a request; more is 431.
    pub headers_max: usize,
    /// A request target, in bytes; more is 414.
    pub target_bytes_max: usize,
    /// The head of a backend's answer, in bytes; more is 502. vLLM puts a `metadata` header of
    /// one entry per input on `encoding_format=bytes` answers, so this is large.
    pub response_head_bytes_max: usize,
    /// A request body, in bytes; more is 413.
    pub body_bytes_max: u64,
    /// How long a backend that owes bytes may send none; then 504. `None`: for ever.
    pub http_timeout: Option<Duration>,
    /// How long a client may take for a request head, from its first byte.
    pub head_timeout: Duration,
    /// How long a client may pause within a body; then 408.
    pub body_timeout: Duration,
    /// How long a connection may stay open between requests.
    pub keep_alive: Duration,
    /// How long a client may take no byte of an answer; then it counts as gone.
    pub write_timeout: Duration,
    /// How long a connection to a backend may take to be made.
    pub connect_timeout: Duration,
    /// How long, after an answer that ends the connection, a client may pause while its bytes are
    /// still read and dropped, so that a reset does not destroy the answer on its way (RFC 9112
    /// section 9.6).
    pub linger: Duration,
    /// Whether prompts are told apart by what they begin with: costs up to a microsecond a
    /// kilobyte, for a policy that asks for it.
    pub fingerprints: bool,
    /// Microseconds from the Unix epoch to [`Instant::START`](crate::time::Instant::START): for
    /// the `date` of our own answers only.
    pub epoch_micros: u64,
    /// What is shown of the proxy itself.
    pub access: Access,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_bytes_max: 64 << 10,
            headers_max: 256,
            target_bytes_max: 32 << 10,
            response_head_bytes_max: 2 << 20,
            body_bytes_max: 256 << 20,
            http_timeout: Some(Duration::from_secs(3_600)),
            head_timeout: Duration::from_secs(60),
            body_timeout: Duration::from_secs(60),
            keep_alive: Duration::from_secs(75),
            write_timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(5),
            linger: Duration::from_secs(2),
            fingerprints: false,
            epoch_micros: 0,
            access: Access::default(),
        }
    }
}
