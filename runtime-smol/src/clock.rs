//! The core's time to the process's clock and back.
//!
//! Owns the moment that the core calls zero; knows nothing of what is timed.

use crate::reactor;
use std::task::{Context, Poll};
use std::time::Instant as Clocked;
use vllm_proxy_core::carry::Timer;
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

/// Rings at moments of the core.
#[derive(Debug)]
pub(crate) struct Alarm {
    clock: Clock,
    timer: reactor::Timer,
}

impl Alarm {
    /// One that is not set.
    pub(crate) const fn new(clock: Clock, timer: reactor::Timer) -> Self {
        Self { clock, timer }
    }
}

impl Timer for Alarm {
    fn set(&mut self, at: Instant) {
        match self.clock.at(at) {
            Some(at) => self.timer.set(at),
            None => self.timer.unset(),
        }
    }

    fn poll(&mut self, cx: &Context<'_>) -> Poll<()> {
        self.timer.poll_rung(cx)
    }
}
