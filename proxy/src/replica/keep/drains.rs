//! Which backends operators had drained, kept in their logs.
//!
//! Each frame of a log says so with whatever else it holds. But nothing is placed at a backend that
//! is drained, so that it is said for its own sake, too. Does not know what a drain means.

use super::{Keeping, RENEWAL, Trouble};
use redis::Connection;
use std::time::Instant;
use vllm_proxy_core::fleet::{About, BackendName};

impl Keeping<'_> {
    /// Appends what was ordered since the last time; of those that are drained now and then once
    /// more, since a log vanishes to which nobody appends.
    pub(super) fn append_drains(&mut self, connection: &mut Connection) -> Result<(), Trouble> {
        let now = Instant::now();
        let mut drains: Vec<(BackendName, u64)> = self.engine(|engine| engine.drains().collect());
        drains.retain(|(name, changes)| {
            self.drains.get(name).is_none_or(|(kept, at)| {
                let is_drained = changes % 2 == 1;
                kept != changes || (is_drained && now.duration_since(*at) >= RENEWAL)
            })
        });
        if drains.is_empty() {
            return Ok(());
        }
        // Before they are appended: who fails loses all.
        self.drains.extend(drains.iter().map(|&(name, changes)| (name, (changes, now))));
        let bare = drains.iter().map(|&(name, _)| About::of(name, 0));
        self.append(connection, bare.collect())
    }
}
