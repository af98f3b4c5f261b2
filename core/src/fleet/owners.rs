//! Owners: which backend keeps a stored response.
//!
//! vLLM keeps stored responses in the memory of one process and says where by nothing but the
//! answer that created them. Owns that knowledge, bounded in number and age, and how two proxies'
//! knowledge becomes one. Does not know whether the backend is still there; whoever finds nobody
//! asks the others.

use crate::fleet::update::{BackendName, Owned};
use crate::fleet::{BackendId, Fleet};
use crate::time::{Duration, Instant};
use alloc::collections::{BTreeMap, BTreeSet};

/// Responses remembered; at 50 to 100 bytes each that is 6 MB at most. What is older than so many
/// others is asked of every backend in turn.
const OWNERS_MAX: usize = 1 << 16;
/// How long one is remembered. Conversations are gone on with within the day or not at all.
const AGE_MAX: Duration = Duration::from_secs(24 * 3_600);

/// One that is named again within this counts as named then.
const RENEWED: Duration = Duration::from_secs(60);

/// Backends by the hash of a response's id.
///
/// Ids are told apart by 64 bits: should two be alike, one of them is looked for in the wrong
/// place, not found, and asked of the others.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    owners: BTreeMap<u64, Owner>,
    /// By age, oldest first.
    order: BTreeSet<(Instant, u64)>,
}

/// Who keeps a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) backend: BackendId,
    /// How often it turned out to be another one. Of two proxies' words the one with more of these
    /// is the younger, however long each was on its way.
    pub(crate) moves: u32,
    /// When it was named last.
    pub(crate) since: Instant,
}

impl Owner {
    /// The same for other proxies.
    pub(crate) fn told(self, response: u64, now: Instant) -> Owned {
        Owned { response, moves: self.moves, age: now.since(self.since) }
    }
}

impl Owners {
    /// The response of this id is kept there. Returns its hash and what is known of it now, unless
    /// that was known.
    pub(crate) fn remember(
        &mut self,
        id: &str,
        backend: BackendId,
        now: Instant,
    ) -> Option<(u64, Owner)> {
        let response = hash(id);
        let mut moves = 0;
        if let Some(known) = self.owners.get(&response) {
            if known.backend == backend && now.since(known.since) < RENEWED {
                return None;
            }
            moves = known.moves.saturating_add((known.backend != backend).into());
        }
        let owner = Owner { backend, moves, since: now };
        self.put(response, owner, now);
        Some((response, owner))
    }

    /// Another proxy's word. The younger one counts, of equally young ones that of the backend
    /// with the greater name: what is known does not depend on the order of words.
    pub(crate) fn merge(
        &mut self,
        response: u64,
        owner: Owner,
        name: impl Fn(BackendId) -> Option<BackendName>,
        now: Instant,
    ) {
        if now.since(owner.since) > AGE_MAX {
            return;
        }
        if let Some(known) = self.owners.get(&response) {
            let rank = |owner: &Owner| (owner.moves, name(owner.backend));
            let same = known.backend == owner.backend && known.moves == owner.moves;
            if rank(known) > rank(&owner) || (same && known.since >= owner.since) {
                return;
            }
        }
        self.put(response, owner, now);
    }

    /// Who keeps it, as far as is known.
    pub(crate) fn find(&self, id: &str, now: Instant) -> Option<BackendId> {
        let owner = self.owners.get(&hash(id))?;
        (now.since(owner.since) <= AGE_MAX).then_some(owner.backend)
    }

    /// All that are remembered, from this hash on, ascending.
    pub(crate) fn from(&self, response: u64, now: Instant) -> impl Iterator<Item = (u64, Owner)> {
        let owners = self.owners.range(response..).map(|(response, owner)| (*response, *owner));
        owners.filter(move |(_, owner)| now.since(owner.since) <= AGE_MAX)
    }

    fn put(&mut self, response: u64, owner: Owner, now: Instant) {
        if let Some(former) = self.owners.insert(response, owner) {
            self.order.remove(&(former.since, response));
        }
        self.order.insert((owner.since, response));
        while self.order.len() > OWNERS_MAX
            || self.order.first().is_some_and(|(since, _)| now.since(*since) > AGE_MAX)
        {
            let Some((_, response)) = self.order.pop_first() else { return };
            self.owners.remove(&response);
        }
    }
}

impl Fleet {
    /// Another proxy says what a backend keeps.
    pub(super) fn hear_owned(&mut self, backend: BackendId, owned: &[Owned], now: Instant) {
        let (backends, owners) = (&self.backends, &mut self.owners);
        let name = |id| {
            let at = super::place(backends, id, |backend| backend.id).ok()?;
            Some(backends[at].shared.name)
        };
        for &Owned { response, moves, age } in owned {
            owners.merge(response, Owner { backend, moves, since: now - age }, name, now);
        }
    }
}

/// FNV-1a with a finish that spreads every byte over all bits. Not seeded: ids are chosen by
/// vLLM, and who chooses his own to collide loses the way to his own response only.
fn hash(id: &str) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in id.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ hash >> 33
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use alloc::vec::Vec;

    const A: BackendId = BackendId(3);
    const B: BackendId = BackendId(7);

    #[test]
    fn the_latest_word_counts() {
        let mut owners = Owners::default();
        let now = Instant::from_millis(5);
        owners.remember("resp_1", A, now);
        owners.remember("resp_2", A, now);
        owners.remember("resp_1", B, now);
        assert_eq!(owners.find("resp_1", now), Some(B));
        assert_eq!(owners.find("resp_2", now), Some(A));
        assert_eq!(owners.find("resp_3", now), None);
    }

    fn name(id: BackendId) -> Option<BackendName> {
        (id != BackendId(9)).then_some(BackendName(id.0.into()))
    }

    #[test]
    fn words_merge_in_any_order() {
        let now = Instant::from_millis(100_000_000);
        let at = |secs: u64| now - Duration::from_secs(secs);
        let word = |backend, moves, secs| Owner { backend, moves, since: at(secs) };
        let words = [
            word(A, 0, 50),
            word(B, 0, 60),
            word(A, 1, 900),
            word(A, 1, 30),
            // Too old, and of a backend that is gone.
            word(B, 7, 86_401),
            word(BackendId(9), 1, 0),
        ];
        for turn in 0..words.len() {
            let mut owners = Owners::default();
            for step in 0..2 * words.len() {
                // Every word twice, from each of them on, forwards and backwards.
                let step = if turn % 2 == 0 { step } else { 2 * words.len() - step };
                owners.merge(5, words[(turn + step) % words.len()], name, now);
            }
            let all: Vec<_> = owners.from(0, now).collect();
            assert_eq!(all, [(5, word(A, 1, 30))], "from {turn}");
            assert_eq!(owners.order.len(), 1);
        }
    }

    #[test]
    fn what_was_heard_is_not_told_again_and_what_moved_is() {
        let mut owners = Owners::default();
        let now = Instant::from_millis(100_000);
        let (response, told) = owners.remember("resp_1", A, now).expect("it is new");
        assert_eq!(told, Owner { backend: A, moves: 0, since: now });
        assert_eq!(owners.remember("resp_1", A, now), None);
        let mut other = Owners::default();
        other.merge(response, told, name, now);
        assert_eq!(other.remember("resp_1", A, now), None);
        let moved = Owner { backend: B, moves: 1, since: now };
        assert_eq!(other.remember("resp_1", B, now), Some((response, moved)));
        owners.merge(response, moved, name, now);
        owners.merge(response, told, name, now);
        assert_eq!(owners.find("resp_1", now), Some(B));
        let later = now + RENEWED;
        let renewed = Owner { since: later, ..moved };
        assert_eq!(owners.remember("resp_1", B, later), Some((response, renewed)));
    }

    #[test]
    fn old_ones_are_forgotten() {
        let mut owners = Owners::default();
        let now = Instant::START;
        owners.remember("old", A, now);
        owners.remember("renewed", A, now);
        let later = now + Duration::from_secs(3_600);
        owners.remember("renewed", B, later);
        let at_last = now + AGE_MAX + Duration::from_secs(1);
        assert_eq!(owners.find("old", at_last), None);
        assert_eq!(owners.find("renewed", at_last), Some(B));
        owners.remember("new", A, at_last);
        assert_eq!(owners.owners.len(), 2);
        assert_eq!(owners.order.len(), 2);
    }

    #[test]
    fn their_number_is_bounded() {
        let mut owners = Owners::default();
        let now = Instant::START;
        for number in 0..OWNERS_MAX + 10 {
            owners.remember(
                &format!("resp_{number}"),
                A,
                now + Duration::from_micros(number as u64),
            );
        }
        let end = now + Duration::from_secs(1);
        assert!(owners.owners.len() <= OWNERS_MAX && owners.order.len() <= OWNERS_MAX);
        assert_eq!(owners.find("resp_9", end), None);
        assert_eq!(owners.find("resp_10", end), Some(A));
    }

    #[test]
    fn one_that_is_named_over_and_over_takes_no_room() {
        let mut owners = Owners::default();
        let mut now = Instant::START;
        for _ in 0..2 * OWNERS_MAX {
            owners.remember("same", A, now);
            now = now + Duration::from_secs(1);
        }
        assert!(owners.order.len() < OWNERS_MAX / 10, "{}", owners.order.len());
        assert_eq!(owners.find("same", now), Some(A));
    }
}
