//! The core's time to the process's clock and back.
//!
//! Owns the moment that the core calls zero; knows nothing of what is timed.

use std::time::Instant as Clocked;
use vllm_proxy_core::time::{Duration, Instant};

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

    /// When the process's clock will say `at`; `None` if it never will.
    pub fn at(&self, at: Instant) -> Option<Clocked> {
        self.start.checked_add(Duration::from_micros(at.micros()))
    }
}
