//! The process's clock, as the core counts it.
//!
//! Owns the moment that the core calls zero; knows nothing of what is timed.

use std::time::Instant as Clocked;
use vllm_proxy_core::time::Instant;

/// The process's monotonic clock, as the core counts it.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Clocked,
}

impl Clock {
    /// A clock whose zero is `start`. All that talk to one engine must share it.
    pub const fn new(start: Clocked) -> Self {
        Self { start }
    }

    /// The time now.
    pub fn now(&self) -> Instant {
        Instant::START + self.start.elapsed()
    }
}
