//! The machine's time: the system's since the server started, less the time it stood still.

use std::cell::Cell;
use std::time::Duration;
use vllm_proxy_core::time::Instant;

/// A clock that can be stopped.
#[derive(Debug)]
pub(super) struct Clock {
    /// When it would have started had it never stood still.
    start: Cell<std::time::Instant>,
    /// What it shows while it stands still.
    stopped: Cell<Option<Instant>>,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self { start: Cell::new(std::time::Instant::now()), stopped: Cell::new(None) }
    }

    pub(super) fn now(&self) -> Instant {
        self.stopped.get().unwrap_or_else(|| Instant::START + self.start.get().elapsed())
    }

    pub(super) const fn is_stopped(&self) -> bool {
        self.stopped.get().is_some()
    }

    pub(super) fn stop(&self) {
        self.stopped.set(Some(self.now()));
    }

    /// Goes on from what it shows.
    pub(super) fn go(&self) {
        if let Some(shown) = self.stopped.take() {
            let ran = Duration::from_micros(shown.micros());
            let start = std::time::Instant::now().checked_sub(ran);
            self.start.set(start.unwrap_or_else(|| self.start.get()));
        }
    }

    /// When it will show `at`; never while it stands still.
    pub(super) fn due(&self, at: Instant) -> Option<std::time::Instant> {
        let start = (!self.is_stopped()).then(|| self.start.get())?;
        start.checked_add(Duration::from_micros(at.micros()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_clock_goes_on_from_where_it_stood() {
        let clock = Clock::new();
        clock.stop();
        let stood = clock.now();
        assert_eq!((clock.now(), clock.due(stood)), (stood, None));
        let before = std::time::Instant::now();
        clock.go();
        assert!(!clock.is_stopped() && clock.now() >= stood);
        assert!(clock.due(stood).is_some_and(|due| due >= before));
        clock.go();
        assert!(clock.now() >= stood, "it went already");
    }
}
