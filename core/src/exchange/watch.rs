//! Watching: an answer of events that tells how the proxy is, again and again, until somebody
//! leaves.
//!
//! Owns when the next event is due. Knows nothing of what it says.
//!
//! There is never more than one event under way: a client that reads slowly gets fewer of them, and
//! one that reads nothing is gone like any other.

use super::{After, Drain, Exchange, Order, Phase};
use crate::time::Instant;
use crate::wire::forward;
use crate::wire::status::every;
use alloc::sync::Arc;
use alloc::vec::Vec;

impl Exchange {
    /// How it stands, as the next event.
    pub(super) fn watched(&mut self, text: Arc<Vec<u8>>, now: Instant) {
        let chunked = self.request.minor > 0;
        if !self.request.is_watched {
            self.request.is_watched = true;
            let unix_micros = forward::unix_micros(self.limits.epoch_micros, now);
            forward::own_events(&mut self.out, chunked, unix_micros / 1_000_000);
        }
        const BEFORE: &[u8] = b"data: ";
        const BEHIND: &[u8] = b"\n\n";
        let len = text.len();
        if chunked {
            forward::chunk_size(&mut self.out, (BEFORE.len() + len + BEHIND.len()) as u64);
        }
        self.out.extend_from_slice(BEFORE);
        self.inset(text);
        self.out.extend_from_slice(BEHIND);
        if chunked {
            self.out.extend_from_slice(b"\r\n");
        }
        self.phase = Phase::Watching(now + every(len));
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
