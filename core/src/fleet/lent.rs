//! Lent: the backends and what is believed of their caches, while a model is lent as well.
//!
//! Owns nothing; does not know the names.

use super::{Backend, PrefixIndex, find};
use crate::fleet::BackendId;
use crate::fleet::order::place;
use alloc::vec::Vec;

/// The backends alone, lent while a model is.
pub(crate) struct Backends<'a> {
    pub(super) backends: &'a mut Vec<Backend>,
    pub(super) index: Option<&'a PrefixIndex>,
}

impl Backends<'_> {
    pub(crate) fn find(&self, id: BackendId) -> Option<&Backend> {
        let at = place(self.backends, id, |backend| backend.id).ok()?;
        self.backends.get(at)
    }

    pub(crate) fn find_mut(&mut self, id: BackendId) -> Option<&mut Backend> {
        find(self.backends, id)
    }

    /// Whether a backend that holds so many leading chunks is believed to have dropped others.
    pub(crate) fn has_expired(&self, id: BackendId, chunks: &[u64], leading: usize) -> bool {
        self.index.is_some_and(|index| index.has_expired(id, chunks, leading))
    }

    /// Tokens that a backend has lately computed for the first time.
    pub(crate) fn fresh(&self, id: BackendId) -> u64 {
        self.index.map_or(0, |index| index.fresh(id))
    }
}
