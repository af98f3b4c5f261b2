//! Obstacle: why a backend takes no requests, in a word.
//!
//! Owns the words. Whether it does is [`Backend::serves`]'s to say.

use super::{Backend, Fleet};
use crate::fleet::State;
use alloc::vec::Vec;

impl Backend {
    /// Why nothing is known of what it serves.
    pub(crate) fn unheard_of(&self) -> Option<&'static str> {
        match self.health.state() {
            _ if self.leaving => Some("leaving"),
            State::Unknown => Some("not-probed"),
            State::Up | State::Suspect | State::Down => None,
        }
    }

    /// Why it takes no requests; `None` if it does.
    pub(crate) fn obstacle(&self) -> Option<&'static str> {
        match self.health.state() {
            _ if self.serves() => None,
            State::Down => Some("down"),
            State::Up | State::Suspect => None,
            State::Unknown => self.unheard_of(),
        }
    }
}

impl Fleet {
    /// All backends: those that stay in the order of upstreams, then those that leave.
    pub(crate) fn everyone(&self) -> Vec<&Backend> {
        let mut everyone = self.staying();
        everyone.extend(self.backends.iter().filter(|backend| backend.leaving));
        everyone
    }
}
