//! What the engine believes, to be looked at: for tests that count it once more.
//!
//! Invariant: looking changes nothing, not even what has run out by `now` and was not noticed yet.

use super::Engine;
use super::choose::reluctance;
use crate::fleet::{BackendId, PrefixIndex, Standing};
use crate::rng::mix;
use crate::route::{Ticket, Work};
use crate::tally::Totals;
use crate::time::Instant;
use alloc::vec::Vec;

/// What is believed of one backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Which one.
    pub backend: BackendId,
    /// Whether new requests may go there.
    pub serves: bool,
    /// How gladly it is given requests; see
    /// [`Candidate::reluctance`](crate::route::Candidate::reluctance).
    pub reluctance: u8,
    /// What it has in hand.
    pub in_hand: Standing,
    /// Requests in hand there whose first token did not come yet.
    pub pending: usize,
    /// Tokens that its cache is believed to hold; 0 if nobody asks.
    pub capacity: u64,
    /// Prompt tokens that it has lately computed for the first time.
    pub fresh: u64,
    /// How long a token of a prompt takes there, in nanoseconds.
    pub pace: i64,
    /// What part of a promise its cache keeps, in thousandths.
    pub kept: i64,
}

impl Engine {
    /// What is believed of each backend, by id: those that left and have requests in hand, too.
    pub fn views(&self, now: Instant) -> impl Iterator<Item = View> {
        let index = self.fleet.index.as_ref();
        self.fleet.backends().iter().map(move |backend| {
            let (in_hand, pending) = backend.load.seen(now);
            View {
                backend: backend.id,
                serves: backend.takes(),
                reluctance: reluctance(backend),
                in_hand,
                pending,
                capacity: index.map_or(0, |index| index.capacity(backend.id)),
                fresh: index.map_or(0, |index| index.fresh(backend.id)),
                pace: backend.load.pace().nanos(),
                kept: backend.trust.kept(),
            }
        })
    }

    /// What was counted since the process began.
    pub const fn totals(&self) -> &Totals {
        &self.totals
    }

    /// What a request in hand was counted as when it was sent.
    pub fn work(&self, ticket: &Ticket) -> Option<Work> {
        self.tickets.get(&ticket.id()).map(|held| held.work)
    }

    /// How many of a prompt's leading chunks each backend is believed to have cached, by id.
    /// Allocates: not for every request.
    pub fn matched(&self, chunks: &[u64]) -> Vec<(BackendId, usize)> {
        let mut matches = self.fleet.index.as_ref().map(PrefixIndex::scratch).unwrap_or_default();
        if let Some(index) = &self.fleet.index {
            index.matches(chunks, &mut matches);
        }
        let matched = |slot| matches.at(slot);
        let backends = self.fleet.backends().iter();
        backends.map(|backend| (backend.id, backend.slot.map_or(0, matched))).collect()
    }

    /// How long a token of a model's prompts is believed to be, in thousandths of a byte.
    pub fn token_bytes_milli(&self, model: &str) -> i64 {
        self.fleet.token_length(model).milli()
    }

    /// Who has which prefixes, if the policy asks.
    pub const fn index(&self) -> Option<&PrefixIndex> {
        self.fleet.index.as_ref()
    }

    /// A sum of all that choices follow from. Two engines with the same past have the same.
    pub fn state_hash(&self, now: Instant) -> u64 {
        let mut hash = mix(self.next_ticket) ^ mix(self.next_dispatch);
        let mut add = |part: u64| hash = mix(hash.wrapping_add(part));
        for view in self.views(now) {
            let View { backend, serves, reluctance, in_hand, pending, .. } = view;
            let Standing { queued, resident, in_flight } = in_hand;
            let states = [u64::from(serves), u64::from(reluctance), pending as u64];
            let sums = [queued.cast_unsigned(), resident.cast_unsigned(), u64::from(in_flight)];
            add(u64::from(backend.0));
            let learned = [view.pace, view.kept].map(i64::cast_unsigned);
            let learned = learned.into_iter().chain([view.capacity, view.fresh]);
            states.into_iter().chain(sums).chain(learned).for_each(&mut add);
        }
        for card in self.fleet.cards() {
            add(self.token_bytes_milli(card.id()).cast_unsigned());
        }
        for (&id, held) in &self.tickets {
            let work = [held.work.uncached, held.work.prompt].map(i64::cast_unsigned);
            [id, u64::from(held.backend.0), held.dispatch]
                .into_iter()
                .chain(work)
                .for_each(&mut add);
        }
        let index = self.fleet.index.as_ref();
        add(index.map_or(0, |index| index.state_hash(|backend| backend.0.into())));
        hash
    }
}
