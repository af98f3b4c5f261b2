//! Favourite: the backend to which proxies that cannot hear each other send alike prompts.
//!
//! Owns nothing; knows hashes only. What a favourite is worth is the score's to say.

use crate::fleet::{BackendId, BackendName};
use crate::rng::mix;

/// Of the backends, the part that must hold a chunk for it to be popular: more than one in so
/// many.
const POPULAR: usize = 2;

/// The place of the first of a prompt's chunks that is not popular, where so many leading chunks of
/// it are held by each backend.
///
/// What many hold says nothing of where to go: all prompts may begin alike. What few hold is what
/// proxies should agree on.
pub(crate) fn first_unpopular(matched: &mut [usize]) -> usize {
    let place = matched.len() / POPULAR;
    if place >= matched.len() {
        return 0;
    }
    let (_, chunks, _) = matched.select_nth_unstable_by(place, |one, other| other.cmp(one));
    *chunks
}

/// The backend ranked first for a chunk, by a hash of both: every proxy ranks alike, and one
/// backend more or less changes nothing among the others.
pub(crate) fn favourite(
    chunk: u64,
    backends: impl Iterator<Item = (BackendId, BackendName)>,
) -> Option<BackendId> {
    let rank = |(id, name): (BackendId, BackendName)| (mix(mix(chunk).wrapping_add(name.0)), id);
    backends.map(rank).max().map(|(_, id)| id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use rstest::rstest;

    #[rstest]
    #[case::nobody(&[], 0)]
    #[case::nobody_holds_it(&[0, 0, 0, 0], 0)]
    #[case::half_of_them(&[9, 9, 0, 0], 0)]
    #[case::more_than_half(&[9, 7, 8, 0], 7)]
    #[case::all(&[9, 9, 9, 9], 9)]
    #[case::the_only_one(&[5], 5)]
    fn what_most_hold_is_popular(#[case] matched: &[usize], #[case] expected: usize) {
        assert_eq!(first_unpopular(&mut matched.to_vec()), expected);
    }

    #[test]
    fn favourites_are_spread_and_stay() {
        let backends =
            |count| (0..count).map(|id: u32| (BackendId(9 - id), BackendName(id.into())));
        let mut counts = Vec::from([0; 8]);
        for chunk in 0..8_000 {
            let of_eight = favourite(chunk, backends(8)).expect("there is somebody");
            let of_seven = favourite(chunk, backends(7)).expect("there is somebody");
            assert!(of_seven == of_eight || of_eight == BackendId(2));
            counts[9 - of_eight.0 as usize] += 1;
        }
        assert!(counts.iter().all(|count| (900..1_100).contains(count)), "{counts:?}");
        assert_eq!(favourite(1, backends(0)), None);
    }
}
