//! What waits to be appended to the logs, bounded.
//!
//! Does not know when it is taken, or what becomes of it.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use vllm_proxy_core::fleet::{About, Update};

/// Chunks that wait to be appended, as many as the engine lets wait: 512 KB.
const CHUNKS_MAX: usize = 1 << 16;

/// What waits to be appended.
#[derive(Debug, Default)]
pub(crate) struct Kept(Mutex<Waiting>);

#[derive(Debug, Default)]
pub(super) struct Waiting {
    pub(super) abouts: VecDeque<About>,
    chunks: usize,
    /// Whether something was dropped: a snapshot mends it.
    pub(super) dropped: bool,
}

impl Kept {
    /// This proxy tells others so. What of it must be kept waits for the next tick; if Redis takes
    /// nothing, the oldest is dropped.
    pub(crate) fn note(&self, update: &Update) {
        let lasting = |about: &&About| !about.placed.is_empty() || !about.owned.is_empty();
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for about in update.about.iter().filter(lasting) {
            let (placed, owned) = (about.placed.clone(), about.owned.clone());
            waiting.chunks += size(about);
            let base = About::of(about.backend, about.generation);
            waiting.abouts.push_back(About { placed, owned, ..base });
        }
        while waiting.chunks > CHUNKS_MAX
            && let Some(oldest) = waiting.abouts.pop_front()
        {
            waiting.chunks -= size(&oldest);
            waiting.dropped = true;
        }
    }

    pub(super) fn take(&self) -> Waiting {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Hashes in it.
pub(super) fn size(about: &About) -> usize {
    about.placed.iter().map(|placed| placed.chunks.len()).sum::<usize>() + about.owned.len()
}
