//! Setup: everything that a run follows from.

use super::{Clients, Manner, Network};
use crate::trace::Workload;
use crate::vllm::Options;
use vllm_proxy_core::time::{Duration, Instant};

/// What happens to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It ends, with everything it had.
    Down,
    /// It is there again, with an empty cache.
    Up,
    /// Its cache is lost, and nobody is told.
    Forget,
    /// It does nothing for a while.
    Stall(Duration),
    /// No name resolves to it any more: it answers what it has, and gets nothing new.
    Leave,
    /// A name resolves to it again.
    Join,
}

/// A change and when and where it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// When.
    pub at: Instant,
    /// Which server.
    pub server: usize,
    /// What.
    pub change: Change,
}

/// Everything a run follows from.
#[derive(Clone, Debug)]
pub struct Setup<'a> {
    /// How the servers were started.
    pub servers: Vec<Options>,
    /// What they say of themselves, in the same order; who is missing here does as usual.
    pub manners: Vec<Manner>,
    /// What clients ask for.
    pub workload: &'a Workload,
    /// How clients behave.
    pub clients: Clients,
    /// What happens to servers.
    pub faults: Vec<Fault>,
    /// How proxies hear of each other; `None`: not at all, and they do not know of each other.
    pub network: Option<Network>,
    /// For all chance in it.
    pub seed: u64,
    /// Whether to check all that must hold after each event, which takes long.
    pub checked: bool,
}

impl<'a> Setup<'a> {
    /// Such servers and clients of whom nothing special is known, to whom nothing happens.
    pub fn new(servers: Vec<Options>, workload: &'a Workload) -> Self {
        Self {
            servers,
            manners: Vec::new(),
            workload,
            clients: Clients::default(),
            faults: Vec::new(),
            network: None,
            seed: 1,
            checked: false,
        }
    }
}
