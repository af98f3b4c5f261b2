//! Ways to choose a server: ours, the plain ones, and those that other routers publish.
//!
//! The names are those of the command line. What is not the real engine is a [`Policy`] behind a
//! [`Peer`], which counts for it what any proxy can count.

mod bounded_hash;
mod dynamo;
mod engine;
mod fingerprint;
mod index;
mod least_requests;
mod llmd_affinity;
mod llmd_weighted;
mod loadaware;
mod peer;
mod power_of_two;
mod recount;
mod reference;
mod round_robin;
mod smg;
#[cfg(test)]
mod tests;
mod twin;
mod watch;

pub use engine::{Proxy, Sent, Told};
pub use fingerprint::fingerprint;
pub(crate) use fingerprint::of_name;
use llmd_affinity::Tokens;
pub use peer::{Candidate, Peer, Policy};
pub use reference::{Reference, Weights};
pub use twin::{Agreement, Twin};

use crate::world::Router;
use std::time::Duration;
use vllm_proxy_core::config;

/// One that can be chosen by name.
#[derive(Clone, Copy)]
pub struct Named {
    /// Its name.
    pub name: &'static str,
    /// What it does, in half a line.
    pub about: &'static str,
    make: fn(u64) -> Box<dyn Router>,
}

impl Named {
    /// One proxy that routes by it.
    pub fn router(&self, seed: u64) -> Box<dyn Router> {
        (self.make)(seed)
    }
}

impl std::fmt::Debug for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Named").field(&self.name).finish()
    }
}

fn peer(policy: impl Policy + 'static) -> Box<dyn Router> {
    Box::new(Peer::new(policy))
}

const SECOND: Duration = Duration::from_secs(1);

/// All of them.
pub const ALL: &[Named] = &[
    Named {
        name: "cache-aware",
        about: "this proxy's engine: what is cached is no work",
        make: |seed| Box::new(Proxy::new(config::Policy::CacheAware, seed)),
    },
    Named {
        name: "least-load",
        about: "this proxy's engine: the least work in hand",
        make: |seed| Box::new(Proxy::new(config::Policy::LeastLoad, seed)),
    },
    Named {
        name: "round-robin",
        about: "this proxy's engine: each in turn",
        make: |seed| Box::new(Proxy::new(config::Policy::RoundRobin, seed)),
    },
    Named {
        name: "reference",
        about: "the score of this proxy as it is specified, with an exact index",
        make: |seed| peer(Reference::new(Weights::default(), seed)),
    },
    Named {
        name: "reference-trust",
        about: "the same, matches discounted by what was kept of promises of late",
        make: |seed| peer(Reference::new(Weights { trust: true, ..Weights::default() }, seed)),
    },
    Named {
        name: "peer-round-robin",
        about: "each in turn, by the simulator itself",
        make: |_| peer(round_robin::RoundRobin::default()),
    },
    Named {
        name: "least-requests",
        about: "the fewest requests in flight",
        make: |seed| peer(least_requests::LeastRequests::new(seed)),
    },
    Named {
        name: "power-of-two",
        about: "the one of two drawn by chance that has fewer requests",
        make: |seed| peer(power_of_two::PowerOfTwo::new(seed)),
    },
    Named {
        name: "bounded-hash",
        about: "consistent hashing of the prompt's beginning, loads bounded at 1.25",
        make: |_| peer(bounded_hash::BoundedHash::new()),
    },
    Named {
        name: "smg",
        about: "smg cache_aware 0.5/32/1.1",
        make: |_| peer(smg::CacheAware::new(0.5, 32, 1.1)),
    },
    Named {
        name: "smg-0.3",
        about: "smg cache_aware 0.3/64/1.5",
        make: |_| peer(smg::CacheAware::new(0.3, 64, 1.5)),
    },
    Named {
        name: "loadaware-0.5",
        about: "production-stack loadaware, beta 0.5",
        make: |_| peer(loadaware::LoadAware::new(0.5)),
    },
    Named {
        name: "loadaware-1",
        about: "production-stack loadaware, beta 1",
        make: |_| peer(loadaware::LoadAware::new(1.0)),
    },
    Named {
        name: "llmd-affinity",
        about: "llm-d prefix affinity filter (18 s) and token load",
        make: |seed| peer(llmd_affinity::Affinity::new(18.0, Tokens::Uncached, seed)),
    },
    Named {
        name: "llmd-affinity-5s",
        about: "the same, 5 s",
        make: |seed| peer(llmd_affinity::Affinity::new(5.0, Tokens::Uncached, seed)),
    },
    Named {
        name: "llmd-affinity-held",
        about: "18 s, whole prompts counted until their answers end",
        make: |seed| peer(llmd_affinity::Affinity::new(18.0, Tokens::Prompts, seed)),
    },
    Named {
        name: "llmd-weighted-50ms",
        about: "llm-d scorers prefix 3, queue 2, KV 2; metrics every 50 ms",
        make: |seed| peer(llmd_weighted::Weighted::new(Duration::from_millis(50), seed)),
    },
    Named {
        name: "llmd-weighted-1s",
        about: "the same, metrics every second",
        make: |seed| peer(llmd_weighted::Weighted::new(SECOND, seed)),
    },
    Named {
        name: "dynamo-1",
        about: "Dynamo's cost, overlap weight 1",
        make: |_| peer(dynamo::Dynamo::new(1.0)),
    },
    Named {
        name: "dynamo-2",
        about: "Dynamo's cost, overlap weight 2",
        make: |_| peer(dynamo::Dynamo::new(2.0)),
    },
];

/// The one of this name.
pub fn named(name: &str) -> Option<&'static Named> {
    ALL.iter().find(|one| one.name == name)
}
