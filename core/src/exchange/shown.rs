//! Showing how the proxy is, as text that may be long and that many may ask for at once.
//!
//! Owns how text that others have as well stands among an exchange's own bytes: a reader who takes
//! nothing holds no copy of it. Who keeps it for the next reader, and how long, is not known here.

use super::{Exchange, Order};
use crate::config::Limits;
use crate::exchange::Drain;
use crate::route::Who;
use crate::time::{Duration, Instant};
use crate::wire::answers::Answer;
use crate::wire::status::{LONG_BYTES, Status};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// Text that others have as well.
#[derive(Debug)]
pub(super) struct Inset {
    /// How many of our own bytes go before it.
    at: usize,
    text: Arc<Vec<u8>>,
    sent: usize,
}

impl Exchange {
    /// How it stands, of which the text has to be made yet.
    pub(super) fn status(&mut self, status: &Status, now: Instant) {
        let text = Arc::new(status.text());
        if text.len() > LONG_BYTES {
            self.orders.push_back(Order::Shown(Arc::clone(&text)));
        }
        self.shown(text, now);
    }

    /// How it stands, or stood a moment ago.
    pub(super) fn shown(&mut self, text: Arc<Vec<u8>>, now: Instant) {
        if self.request.rule().who == Who::Events {
            return self.watched(text, now);
        }
        let len = text.len();
        self.say(&Answer::json(200, Vec::new()), Some(len), false, now);
        self.inset(text);
    }

    /// Puts text behind all that is to be sent so far.
    pub(super) fn inset(&mut self, text: Arc<Vec<u8>>) {
        if text.len() > LONG_BYTES {
            self.inset = Some(Box::new(Inset { at: self.out.len(), text, sent: 0 }));
        } else {
            self.out.extend_from_slice(&text);
        }
    }

    /// What of it has not left.
    pub(super) fn inset_unsent(&self) -> &[u8] {
        self.inset.as_ref().and_then(|inset| inset.text.get(inset.sent..)).unwrap_or_default()
    }

    /// The next of our bytes for the client, up to the inset, within it or behind it.
    pub(super) fn next_unsent(&self) -> &[u8] {
        match &self.inset {
            Some(inset) if self.out_sent < inset.at => &self.out[self.out_sent..inset.at],
            Some(inset) if inset.sent < inset.text.len() => self.inset_unsent(),
            Some(_) | None => &self.out[self.out_sent..],
        }
    }

    /// So many of them have left.
    pub(super) fn own_sent(&mut self, mut bytes: usize) {
        if let Some(inset) = &mut self.inset {
            let before = bytes.min(inset.at.saturating_sub(self.out_sent));
            self.out_sent += before;
            let within = (bytes - before).min(inset.text.len() - inset.sent);
            inset.sent += within;
            bytes -= before + within;
        }
        self.out_sent = (self.out_sent + bytes).min(self.out.len());
    }

    /// How long a client that owes reading may take nothing.
    pub(super) fn patience(&self, limits: &Limits) -> Duration {
        // The process stops, and nobody who only watches holds that up.
        let watches = self.request.is_watched && self.drain == Drain::Closing;
        if watches { limits.linger } else { limits.write_timeout }
    }
}
