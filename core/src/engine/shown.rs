//! Shown: what was said last of how the proxy is, where that is long.
//!
//! Whoever asks meanwhile gets the same text. With thousands of backends it is megabytes, which
//! neither as many readers as come are to hold each, nor the engine to be stopped for each time.
//! Does not know how it is worded.

use super::Engine;
use crate::route::Decision;
use crate::time::Instant;
use crate::wire::status::{LONG_BYTES, every};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// The text, and when it was made.
#[derive(Debug, Default)]
pub(super) struct Shown(Option<(Arc<Vec<u8>>, Instant)>);

impl Shown {
    /// An operator changed what it says: he is to see that at once.
    pub(super) fn change(&mut self) {
        self.0 = None;
    }

    /// Nobody keeps what is old.
    pub(super) fn expire(&mut self, now: Instant) {
        if self.0.as_ref().is_some_and(|(text, at)| *at + every(text.len()) <= now) {
            self.0 = None;
        }
    }
}

impl Engine {
    /// What whoever asks how it stands is told.
    pub(super) fn tell_status(&mut self, now: Instant) -> Decision {
        self.shown.expire(now);
        match &self.shown.0 {
            Some((text, _)) => Decision::Shown(Arc::clone(text)),
            None => Decision::Status(Box::new(self.status(now))),
        }
    }

    /// Text was made of what was told just now.
    pub fn show(&mut self, text: Arc<Vec<u8>>, now: Instant) {
        if text.len() > LONG_BYTES {
            self.shown = Shown(Some((text, now)));
        }
    }
}
