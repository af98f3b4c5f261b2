//! Watching: an answer of events that tells how the proxy is, again and again, until somebody
//! leaves.
//!
//! Owns when the next event is due. Knows nothing of what it says.
//!
//! There is never more than one event under way: a client that reads slowly gets fewer of them, and
//! one that reads nothing is gone like any other.

use super::{After, Drain, Exchange, Order, Phase};
use crate::time::{Duration, Instant};
use crate::wire::forward;
use crate::wire::status::Status;

/// How often there is an event: as often as people look. Each costs a copy of what the engine
/// knows.
const EVERY: Duration = Duration::from_secs(1);
/// Events longer than this come as much less often: a megabyte a second would be more than what a
/// fleet answers. The page knows it as well, so that it does not take itself for cut off.
pub(super) const EVERY_BYTES: usize = 256 << 10;

impl Exchange {
    /// How it stands, as the next event.
    pub(super) fn watched(&mut self, status: &Status, now: Instant) {
        let chunked = self.request.minor > 0;
        if !self.request.is_watched {
            self.request.is_watched = true;
            let unix_micros = forward::unix_micros(self.limits.epoch_micros, now);
            forward::own_events(&mut self.out, chunked, unix_micros / 1_000_000);
        }
        let json = status.answer().body;
        const BEFORE: &[u8] = b"data: ";
        const BEHIND: &[u8] = b"\n\n";
        let len = BEFORE.len() + json.len() + BEHIND.len();
        if chunked {
            forward::chunk_size(&mut self.out, len as u64);
        }
        for part in [BEFORE, &json, BEHIND] {
            self.out.extend_from_slice(part);
        }
        if chunked {
            self.out.extend_from_slice(b"\r\n");
        }
        let times = u32::try_from(len / EVERY_BYTES).unwrap_or(u32::MAX).saturating_add(1);
        self.phase = Phase::Watching(now + EVERY.saturating_mul(times));
        if self.drain == Drain::Closing {
            self.watch_ends(now);
        }
    }

    /// The next event is due.
    pub(super) fn watch(&mut self) {
        self.phase = Phase::Asked;
        self.orders.push_back(Order::Ask);
    }

    /// The process stops: nobody who only watches holds that up.
    pub(super) fn watch_ends(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Watching(_)) {
            if self.request.minor > 0 {
                self.out.extend_from_slice(b"0\r\n\r\n");
            }
            self.answered(After::Close, now);
        }
    }
}
