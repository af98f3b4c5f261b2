//! Matches: of how much of a prompt each backend holds the beginning.
//!
//! Owns the room for the answer, so that asking takes none, and the search. Does not know chunks or
//! backends, only places of marks and slots.
//!
//! Whoever was sent a mark was sent all before it, so matches are found by halving: a prompt of
//! 8,192 chunks that 64 backends hold takes a hundred questions instead of 65,000. In between there
//! may be one that is gone, for want of room or since it was touched a little earlier, and whether
//! such a one is met is chance: what is found is a mark that is held with one behind it that is
//! not, and never less than what is held without a gap.

use crate::fleet::prefix::{Slot, marks};
use alloc::vec;
use alloc::vec::Vec;

/// Slots whose entries of one chunk lie together in the table.
///
/// With fewer, more places are looked at for a prompt's first chunk; with more, chunks that
/// everybody holds make longer clusters.
pub(super) const GROUP: usize = 8;

/// How many of a prompt's leading chunks each backend holds; filled by
/// [`PrefixIndex::matches`](crate::fleet::PrefixIndex::matches) and used again and again.
#[derive(Clone, Debug, Default)]
pub struct Matches {
    leading: Vec<u32>,
    searches: Vec<Search>,
}

/// Some slots of a group whose matches are looked for together, between two marks.
#[derive(Clone, Copy, Debug)]
struct Search {
    group: u16,
    /// As bits; never none.
    slots: u8,
    /// They hold the mark before this one,
    from: u16,
    /// and not this one, unless it is behind the last.
    to: u16,
}

impl Search {
    /// Most hold nothing at all, so the first mark is asked for first.
    const fn middle(self) -> u16 {
        if self.from == 0 { 0 } else { self.from.midpoint(self.to) }
    }

    const fn is_over(self) -> bool {
        self.from == self.to
    }
}

impl Matches {
    pub(super) fn new(slots: usize) -> Self {
        // There are never more searches than slots, each of which is in one.
        Self { leading: vec![0; slots], searches: Vec::with_capacity(slots) }
    }

    /// Leading chunks that the backend in this slot holds.
    pub fn at(&self, slot: Slot) -> usize {
        self.leading.get(usize::from(slot.0)).map_or(0, |&leading| leading as usize)
    }

    /// The best there is.
    pub fn longest(&self) -> usize {
        self.leading.iter().max().map_or(0, |&leading| leading as usize)
    }

    /// Searches for everybody in these groups, among so many marks.
    pub(super) fn begin(&mut self, groups: &[u8], marks: u16) {
        self.leading.clear();
        self.leading.resize(groups.len() * GROUP, 0);
        self.searches.clear();
        if marks > 0 {
            let groups = (0..).zip(groups).filter(|(_, slots)| **slots != 0);
            let search = |(group, &slots)| Search { group, slots, from: 0, to: marks };
            self.searches.extend(groups.map(search));
        }
    }

    /// Asks once for each search who of a group holds the mark in its middle. Says whether any
    /// goes on.
    ///
    /// All are asked before any is asked again: no answer has to wait for the one before.
    pub(super) fn halve(&mut self, holders: impl Fn(u16, u16) -> u8) -> bool {
        for at in 0..self.searches.len() {
            let search = self.searches[at];
            let middle = search.middle();
            let found = search.slots & holders(middle, search.group);
            let holding = Search { slots: found, from: middle + 1, ..search };
            let lacking = Search { slots: search.slots & !found, to: middle, ..search };
            self.searches[at] = if found == 0 { lacking } else { holding };
            if found != 0 && lacking.slots != 0 {
                self.searches.push(lacking);
            }
        }
        let leading = &mut self.leading;
        self.searches.retain(|search| {
            if search.is_over() {
                credit(leading, search);
            }
            !search.is_over()
        });
        !self.searches.is_empty()
    }
}

fn credit(leading: &mut [u32], search: &Search) {
    let chunks = marks::reach(search.from.into()) as u32;
    let mut slots = search.slots;
    while slots != 0 {
        let at = usize::from(search.group) * GROUP + slots.trailing_zeros() as usize;
        if let Some(leading) = leading.get_mut(at) {
            *leading = chunks;
        }
        slots &= slots - 1;
    }
}
