//! Tally: what is counted of requests, and the words in which it is told.
//!
//! Plain data that is added to, a few integers a request, and copied where it is told. Does not
//! know who counts, what follows from it, or how it looks: for that see
//! [`wire::facts`](crate::wire::facts) and [`wire::status`](crate::wire::status).
//!
//! Invariant: a request that came to an end is counted once: in [`Counts`] of the backend that had
//! the last word, as a [`Refused`] one, or as [`Own`].

mod counts;
mod histogram;
mod recent;
mod words;

pub use counts::{Counts, Tokens, rows_max};
pub use histogram::{Histogram, ROUTING_BOUNDS};
pub use recent::{Recent, Summary};
pub use words::{Ending, Fault, Own, Refused};

/// Counts of a whole process, since it began. What a backend counted stays in them when it is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Totals {
    /// Requests that ended with a backend's word, by how they ended.
    pub endings: [u64; Ending::ALL.len()],
    /// Attempts after which another was made, by why.
    pub retries: [u64; Fault::ALL.len()],
    /// Attempts that failed, stale connections apart.
    pub failures: u64,
    /// Requests that the proxy refused, by why.
    pub refused: [u64; Refused::ALL.len()],
    /// Requests that the proxy answered itself.
    pub own: [u64; Own::ALL.len()],
    /// How long it took to decide where a request goes, or that it goes nowhere.
    pub routing: Histogram<{ ROUTING_BOUNDS.len() }>,
    /// Entries of the log that were never written.
    pub log_entries_dropped: u64,
}

impl Default for Totals {
    fn default() -> Self {
        Self {
            endings: Default::default(),
            retries: Default::default(),
            failures: 0,
            refused: Default::default(),
            own: Default::default(),
            routing: Histogram::new(&ROUTING_BOUNDS),
            log_entries_dropped: 0,
        }
    }
}
