//! Owners: which backend keeps a stored response.
//!
//! vLLM keeps stored responses in the memory of one process and says where by nothing but the
//! answer that created them. Owns that knowledge, bounded in number and age. Does not know whether
//! the backend is still there; whoever finds nobody asks the others.

use crate::fleet::BackendId;
use crate::time::{Duration, Instant};
use alloc::collections::{BTreeMap, VecDeque};

/// Responses remembered; at 40 to 80 bytes each that is 5 MB at most. What is older than so many
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
    owners: BTreeMap<u64, (BackendId, Instant)>,
    /// By age, oldest first. One remembered anew is in it twice, and goes when the later one does.
    order: VecDeque<(Instant, u64)>,
}

impl Owners {
    /// The response of this id is kept there.
    pub(crate) fn remember(&mut self, id: &str, backend: BackendId, now: Instant) {
        let key = hash(id);
        if let Some((owner, since)) = self.owners.get_mut(&key)
            && now.since(*since) < RENEWED
        {
            *owner = backend;
            return;
        }
        self.owners.insert(key, (backend, now));
        self.order.push_back((now, key));
        while self.order.len() > OWNERS_MAX
            || self.order.front().is_some_and(|(since, _)| now.since(*since) > AGE_MAX)
        {
            let Some((since, key)) = self.order.pop_front() else { return };
            if self.owners.get(&key).is_some_and(|(_, latest)| *latest == since) {
                self.owners.remove(&key);
            }
        }
    }

    /// Who keeps it, as far as is known.
    pub(crate) fn find(&self, id: &str, now: Instant) -> Option<BackendId> {
        let (backend, since) = self.owners.get(&hash(id))?;
        (now.since(*since) <= AGE_MAX).then_some(*backend)
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
