//! Matches: of how much of a prompt each backend holds the beginning.
//!
//! Owns the room for the answer, so that asking takes none. Does not know chunks or backends, only
//! slots.

use crate::fleet::prefix::Slot;
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
    survivors: Vec<Survivors>,
}

/// Those of a group who hold all chunks so far, as bits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Survivors {
    pub(super) group: u16,
    pub(super) slots: u8,
}

impl Matches {
    pub(super) fn new(slots: usize) -> Self {
        Self { leading: vec![0; slots], survivors: Vec::with_capacity(slots.div_ceil(GROUP)) }
    }

    /// Leading chunks that the backend in this slot holds.
    pub fn at(&self, slot: Slot) -> usize {
        self.leading.get(usize::from(slot.0)).map_or(0, |&leading| leading as usize)
    }

    /// The best there is.
    pub fn longest(&self) -> usize {
        self.leading.iter().max().map_or(0, |&leading| leading as usize)
    }

    /// Begins with everybody in these groups.
    pub(super) fn begin(&mut self, groups: &[u8]) {
        self.leading.clear();
        self.leading.resize(groups.len() * GROUP, 0);
        self.survivors.clear();
        let groups = (0..).zip(groups).filter(|(_, slots)| **slots != 0);
        self.survivors.extend(groups.map(|(group, &slots)| Survivors { group, slots }));
    }

    /// Groups of which anyone is left.
    pub(super) fn survivors(&self) -> impl Iterator<Item = u16> {
        self.survivors.iter().map(|survivors| survivors.group)
    }

    /// Asks who of each group holds the next chunk, the `depth`th. Says whether anyone is left.
    pub(super) fn narrow(&mut self, depth: u32, held: impl Fn(u16) -> u8) -> bool {
        let leading = &mut self.leading;
        self.survivors.retain_mut(|survivors| {
            let left = survivors.slots & held(survivors.group);
            credit(leading, survivors.group, survivors.slots & !left, depth);
            survivors.slots = left;
            left != 0
        });
        !self.survivors.is_empty()
    }

    /// Those who are left hold all there was.
    pub(super) fn end(&mut self, depth: u32) {
        for survivors in self.survivors.drain(..) {
            credit(&mut self.leading, survivors.group, survivors.slots, depth);
        }
    }
}

fn credit(leading: &mut [u32], group: u16, mut slots: u8, depth: u32) {
    while slots != 0 {
        let at = usize::from(group) * GROUP + slots.trailing_zeros() as usize;
        if let Some(leading) = leading.get_mut(at) {
            *leading = depth;
        }
        slots &= slots - 1;
    }
}
