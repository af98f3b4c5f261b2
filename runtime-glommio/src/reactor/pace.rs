//! Whether a thread is busy.
//!
//! Counts what completes, and for how many; does not know what becomes of it.

use std::cell::Cell;
use std::time::Duration;
use vllm_proxy_core::time::Instant;

/// How long a thread is watched to tell whether it is busy.
const WATCHED: Duration = Duration::from_millis(5);
/// Completions within that time that make it busy: more than one falls into a gathering.
const BUSY_COMPLETIONS: u32 = 32;
/// Sources that they must be from. A few peers that wait for each other's answers would only be
/// kept waiting.
const BUSY_SOURCES: u32 = 16;

/// Whether a thread has so much to do that the kernel should gather some of it before it wakes the
/// thread.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    since: Instant,
    /// Which time of watching this is; 0 before the first.
    number: u32,
    completions: u32,
    sources: u32,
    pub(super) is_busy: bool,
}

impl Pace {
    pub(super) fn turn(&mut self, now: Instant) {
        if now.since(self.since) >= WATCHED {
            // Who was waiting for long has been idle, however much came at its end.
            let is_recent = now.since(self.since) < 2 * WATCHED;
            self.is_busy =
                is_recent && self.completions >= BUSY_COMPLETIONS && self.sources >= BUSY_SOURCES;
            (self.since, self.completions, self.sources) = (now, 0, 0);
            self.number = self.number.wrapping_add(1).max(1);
        }
    }

    pub(super) fn count(&mut self, counted: &Cell<u32>) {
        self.completions += 1;
        self.sources += u32::from(counted.replace(self.number) != self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::busy(64, 64, 5, true)]
    #[case::too_few_completions(31, 31, 5, false)]
    #[case::too_few_peers(500, 8, 5, false)]
    #[case::after_a_pause(64, 64, 10, false)]
    fn a_busy_thread_is_told_from_others(
        #[case] completions: u32,
        #[case] sources: u32,
        #[case] millis: u64,
        #[case] is_busy: bool,
    ) {
        let mut pace = Pace::default();
        let start = Instant::from_millis(1_000);
        pace.turn(start);
        let counted: Vec<_> = (0..sources).map(|_| Cell::new(0)).collect();
        for number in 0..completions {
            pace.count(&counted[(number % sources) as usize]);
        }
        pace.turn(start + Duration::from_micros(4_999));
        assert!(!pace.is_busy, "it has not been watched for long enough");
        pace.turn(start + Duration::from_millis(millis));
        assert_eq!(pace.is_busy, is_busy);
        pace.turn(start + Duration::from_millis(millis + 5));
        assert!(!pace.is_busy, "nothing came since");
    }
}
