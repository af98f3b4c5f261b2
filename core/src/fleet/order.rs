//! Order: where one backend lies in a list that ascends by their ids.
//!
//! Knows how ids are given; does not know what the list is of.

use crate::fleet::BackendId;

/// Where a backend lies, or else where it would.
///
/// Every decision asks for each candidate several times. Ids are given in order and never again, so
/// that as long as nobody in between left it lies as far behind the first as its number does.
pub(super) fn place<T>(
    list: &[T],
    id: BackendId,
    id_of: impl Fn(&T) -> BackendId,
) -> Result<usize, usize> {
    let ahead = list.first().and_then(|first| id.0.checked_sub(id_of(first).0));
    if let Some(at) = ahead.and_then(|ahead| usize::try_from(ahead).ok())
        && list.get(at).is_some_and(|one| id_of(one) == id)
    {
        return Ok(at);
    }
    list.binary_search_by_key(&id, id_of)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use rstest::rstest;

    #[rstest]
    #[case::nobody(&[])]
    #[case::from_the_start(&[0, 1, 2, 3])]
    #[case::the_first_ones_left(&[7, 8, 9])]
    #[case::some_left(&[3, 4, 7, 9, 10])]
    #[case::the_last_there_can_be(&[3, u32::MAX])]
    fn it_is_where_a_search_finds_it(#[case] ids: &[u32]) {
        let list: Vec<_> = ids.iter().map(|&id| BackendId(id)).collect();
        for id in (0..12).chain([u32::MAX - 1, u32::MAX]).map(BackendId) {
            assert_eq!(place(&list, id, |one| *one), list.binary_search(&id), "{id}");
        }
    }
}
