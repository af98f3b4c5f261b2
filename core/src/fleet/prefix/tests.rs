//! The index against a naive model, against hostile input, and against other proxies' indexes.

mod hostile;
mod model;
mod replicas;

use super::*;
use rstest::rstest;

const CHUNK_TOKENS: u32 = 128;

/// An index with backends 0 to `backends - 1`, each of which believes in `capacity` tokens.
fn index(bytes: usize, backends: u32, capacity: u64) -> PrefixIndex {
    let mut index = PrefixIndex::new(bytes, 7);
    for id in 0..backends {
        assert!(index.join(BackendId(id)).is_some(), "no room for backend {id}");
        // A quarter more is believed than said.
        index.set_capacity(BackendId(id), Some(capacity / 5 * 4));
    }
    index
}

/// `count` chunks of a prompt that shares nothing with another.
fn prompt(number: u64, count: u64) -> Vec<u64> {
    (0..count).map(|at| mix(number << 32 | at)).collect()
}

fn insert(index: &mut PrefixIndex, backend: u32, chunks: &[u64]) -> (Inserted, Vec<u64>) {
    let mut told = Vec::new();
    let inserted = index.insert(BackendId(backend), chunks, CHUNK_TOKENS, &mut told);
    (inserted.expect("the backend has joined"), told)
}

/// The leading chunks that a backend holds; asks for shorter prompts as well.
fn leading(index: &PrefixIndex, backend: u32, chunks: &[u64]) -> usize {
    let slot = index.slots[index.find(BackendId(backend)).expect("it has joined")].1;
    let mut matches = index.scratch();
    let mut ask = |length: usize| {
        let marked = Marked::new(&chunks[..length.min(chunks.len())]);
        let held = |mark: &u16| {
            let entry = index.entry(slot.0, marked.chunk(*mark));
            entry.is_some_and(|entry| index.is_valid(entry))
        };
        index.matches(marked.chunks, &mut matches);
        let found = marks::count(matches.at(slot)) as u16;
        // An end of what is held, and no less than what is held without a gap.
        assert!(found == 0 || held(&(found - 1)), "{found} of {length} are not held");
        assert!(found == marked.count || !held(&found), "{found} of {length} are not all");
        let gapless = (0..marked.count).take_while(held).count();
        assert!(usize::from(found) >= gapless, "{found} of {length}, {gapless} without a gap");
        // Without gaps shorter prompts match as far as they go.
        (matches.at(slot), usize::from(found) == gapless)
    };
    let (leading, gapless) = ask(chunks.len());
    for length in [0, 1, leading, leading + 1, chunks.len() / 2] {
        let reached = marks::reach(marks::count(length.min(chunks.len())));
        let (shorter, _) = ask(length);
        assert!(!gapless || shorter == leading.min(reached), "not closed under prefixes");
    }
    leading
}

#[test]
fn a_prompt_is_held_where_it_was_sent() {
    let mut index = index(1 << 20, 20, 10_000);
    let chunks = prompt(1, 10);
    let (inserted, told) = insert(&mut index, 3, &chunks);
    let expected = Inserted { stamp: 80, inserted_tokens: 1_280, new_chunks: 10 };
    assert_eq!((inserted, &told), (expected, &chunks));
    insert(&mut index, 17, &chunks[..4]);
    let other = [&chunks[..6], &prompt(2, 3)].concat();
    for (backend, leads) in [(3, 6), (17, 4), (4, 0)] {
        assert_eq!(leading(&index, backend, &other), leads);
    }
    let mut matches = index.scratch();
    index.matches(&chunks, &mut matches);
    assert_eq!(matches.longest(), 10);
    index.matches(&[], &mut matches);
    assert_eq!(matches.longest(), 0);
    assert_eq!(index.len(), 14);
}

/// What lies before a chunk that is held was there when it came, and an LRU drops tails first.
#[test]
fn a_gap_is_met_by_chance_and_filled() {
    let mut index = index(1 << 20, 1, 10_000);
    let chunks = prompt(1, 10);
    insert(&mut index, 0, &chunks[..4]);
    insert(&mut index, 0, &chunks[5..]);
    assert_eq!(leading(&index, 0, &chunks), 10);
    assert_eq!(leading(&index, 0, &chunks[..8]), 4);
    let (inserted, told) = insert(&mut index, 0, &chunks);
    assert_eq!((inserted.new_chunks, &told[..]), (1, &chunks[4..5]));
    assert_eq!(leading(&index, 0, &chunks[..8]), 8);
}

#[test]
fn of_long_prompts_marks_are_held_and_told() {
    let mut index = index(1 << 20, 2, 4_000_000);
    let chunks = prompt(1, 1_005);
    let (inserted, told) = insert(&mut index, 0, &chunks);
    // 512 and 61 of eight are all but 5.
    assert_eq!((inserted.new_chunks, inserted.inserted_tokens), (1_000, 128_000));
    assert_eq!((told.len(), told[512], told[572]), (573, chunks[519], chunks[999]));
    for (length, leads) in [(512, 512), (513, 512), (700, 696), (991, 984), (1_005, 1_000)] {
        assert_eq!(leading(&index, 0, &chunks[..length]), leads, "of {length}");
    }
    let longer = [&chunks[..], &prompt(2, 500)].concat();
    assert_eq!(leading(&index, 0, &longer), 1_000);
    let (inserted, told) = insert(&mut index, 0, &longer);
    assert_eq!((inserted.new_chunks, told.len()), (504, 33));
    assert_eq!(leading(&index, 0, &longer), 1_504);
}

#[rstest]
#[case::within_a_mark(1_000, 1_008, false)]
#[case::more_than_a_mark(1_000, 1_009, true)]
#[case::of_a_short_one(100, 102, true)]
#[case::one_chunk_of_a_short_one(100, 101, false)]
fn what_no_mark_tells_teaches_nothing(
    #[case] predicted: u64,
    #[case] cached: u64,
    #[case] learnt: bool,
) {
    let mut index = index(1 << 20, 1, 10_000);
    let tokens = u64::from(CHUNK_TOKENS);
    index.feedback(BackendId(0), predicted * tokens, cached * tokens, CHUNK_TOKENS);
    assert_eq!(index.capacity(BackendId(0)) >= 10_200, learnt);
}

#[test]
fn the_mark_behind_a_match_tells_whether_there_was_more() {
    let mut index = index(1 << 20, 1, 128_000);
    let chunks = prompt(1, 800);
    insert(&mut index, 0, &chunks[..700]);
    let id = BackendId(0);
    assert!(!index.has_expired(id, &chunks, 696));
    index.grew(id, 100_000);
    // The first 600 are touched again, the others not.
    insert(&mut index, 0, &chunks[..600]);
    index.grew(id, 40_000);
    assert_eq!(leading(&index, 0, &chunks), 600);
    assert!(index.has_expired(id, &chunks, 600));
    assert!(!index.has_expired(id, &chunks, 696), "there was nothing");
    assert!(!index.has_expired(id, &chunks[..607], 600), "it does not go so far");
    assert!(!index.has_expired(BackendId(7), &chunks, 600));
}

#[test]
fn what_was_not_touched_for_a_capacity_is_gone() {
    let mut index = index(1 << 20, 2, 10_000);
    let [old, hot] = [prompt(1, 10), prompt(2, 10)];
    insert(&mut index, 0, &old);
    insert(&mut index, 0, &hot);
    insert(&mut index, 1, &old);
    for number in 0..7 {
        insert(&mut index, 0, &prompt(10 + number, 8));
        insert(&mut index, 0, &hot);
    }
    assert_eq!(leading(&index, 0, &old), 10);
    // An answer takes room, too: 1,280 + 7 * 1,024 + 1,552 tokens came after `old`.
    assert_eq!(index.grew(BackendId(0), 1_552), Some(11_280));
    assert_eq!(leading(&index, 0, &old), 0);
    assert_eq!(leading(&index, 0, &hot), 10);
    assert_eq!(leading(&index, 1, &old), 10, "another backend has a clock of its own");
}

#[test]
fn a_touch_is_told_once_in_an_eighth_of_the_capacity() {
    let mut index = index(1 << 20, 1, 16_000);
    let chunks = prompt(1, 3);
    insert(&mut index, 0, &chunks);
    for (number, told_again) in (0..).zip([false, false, true, false, false, true]) {
        insert(&mut index, 0, &prompt(10 + number, 6));
        let (inserted, told) = insert(&mut index, 0, &chunks);
        assert_eq!(inserted.new_chunks, 0);
        assert_eq!(told, if told_again { &chunks[..] } else { &[] }, "after {number}");
    }
}

#[test]
fn capacity_decides_and_learns() {
    let mut index = index(1 << 20, 1, 10_000);
    let chunks = prompt(1, 10);
    insert(&mut index, 0, &chunks);
    index.grew(BackendId(0), 9_800);
    assert_eq!(leading(&index, 0, &chunks), 10);
    index.feedback(BackendId(0), 1_280, 0, CHUNK_TOKENS);
    assert_eq!(index.capacity(BackendId(0)), 9_500);
    assert_eq!(leading(&index, 0, &chunks), 0);
    // What is not valid now may be so again: it was not swept.
    assert_eq!(sweep_all(&mut index), 0);
    for _ in 0..3 {
        index.feedback(BackendId(0), 0, 1_000, CHUNK_TOKENS);
    }
    assert_eq!(leading(&index, 0, &chunks), 10);
    index.grew(BackendId(0), 10_200);
    assert_eq!((sweep_all(&mut index), index.len()), (10, 0));
}

#[test]
fn a_wiped_backend_holds_nothing() {
    let mut index = index(1 << 20, 3, 100_000);
    let chunks = prompt(1, 10);
    for backend in 0..3 {
        insert(&mut index, backend, &chunks);
    }
    index.feedback(BackendId(1), 1_000, 0, CHUNK_TOKENS);
    index.wipe(BackendId(1));
    for (backend, leads) in [(0, 10), (1, 0), (2, 10)] {
        assert_eq!(leading(&index, backend, &chunks), leads);
    }
    assert_eq!(index.capacity(BackendId(1)), 100_000);
    assert_eq!(index.fresh(BackendId(1)), 0);
    // What it holds afterwards counts, and its clock has gone on.
    let (inserted, told) = insert(&mut index, 1, &chunks[..5]);
    assert_eq!((inserted.inserted_tokens, told.len()), (1_920, 5));
    assert_eq!(leading(&index, 1, &chunks), 5);
}

#[test]
fn generations_come_round_without_harm() {
    let mut index = index(1 << 16, 2, 100_000);
    insert(&mut index, 0, &prompt(1, 10));
    insert(&mut index, 1, &prompt(1, 10));
    for _ in 0..1 << 16 {
        index.wipe(BackendId(0));
    }
    assert_eq!(leading(&index, 0, &prompt(1, 10)), 0);
    assert_eq!(leading(&index, 1, &prompt(1, 10)), 10);
    assert_eq!(index.len(), 10);
}

#[test]
fn slots_are_used_again_by_strangers() {
    let mut index = index(1 << 20, 12, 100_000);
    let chunks = prompt(1, 10);
    let slot = index.join(BackendId(9)).expect("it has joined");
    for backend in 0..12 {
        insert(&mut index, backend, &chunks);
    }
    index.leave(BackendId(9));
    index.leave(BackendId(9));
    let mut matches = index.scratch();
    index.matches(&chunks, &mut matches);
    assert_eq!(matches.at(slot), 0);
    assert_eq!(index.join(BackendId(40)), Some(slot));
    assert_eq!(index.capacity(BackendId(40)), 500_000);
    assert_eq!(leading(&index, 40, &chunks), 0);
    assert_eq!(leading(&index, 8, &chunks), 10);
    assert_eq!(index.counter(BackendId(40), PrefixIndex::OWN), 0);
}

#[test]
fn nobody_is_told_of_backends_that_are_not_there() {
    let mut index = index(1 << 20, 1, 100_000);
    let (before, mut told) = (index.state_hash(hash_of), Vec::new());
    let stranger = BackendId(5);
    assert_eq!(index.insert(stranger, &prompt(1, 3), CHUNK_TOKENS, &mut told), None);
    assert_eq!(index.grew(stranger, 5), None);
    index.feedback(stranger, 5, 0, CHUNK_TOKENS);
    index.set_capacity(stranger, Some(5));
    index.merge(Fact { backend: stranger, chunk: 1, stamp: 1 });
    index.merge_counter(stranger, 1, 5);
    index.merge_counter(BackendId(0), PROXIES_MAX, 5);
    index.wipe(stranger);
    index.leave(stranger);
    assert_eq!((index.capacity(stranger), index.counter(stranger, 0)), (0, 0));
    assert_eq!((index.fresh(stranger), index.len(), told.len()), (0, 0, 0));
    assert_eq!(index.state_hash(hash_of), before);
}

#[test]
fn what_is_new_counts_everybodys_tokens() {
    let mut index = index(1 << 20, 2, 100_000);
    let backend = BackendId(0);
    insert(&mut index, 0, &prompt(1, 10));
    insert(&mut index, 0, &prompt(1, 10));
    index.grew(backend, 20);
    // The first that is heard of a proxy may be a whole life's.
    index.merge_counter(backend, 1, 50_000);
    index.merge_counter(backend, 1, 50_100);
    index.merge_counter(backend, 1, 50_050);
    assert_eq!(index.fresh(backend), 1_400);
    // As many as fit into both, of which one is said to have room for 80,000.
    index.grew(BackendId(1), 160_000);
    assert_eq!(index.fresh(backend), 700);
}

fn hash_of(backend: BackendId) -> u64 {
    mix(u64::from(backend.0))
}

fn sweep_all(index: &mut PrefixIndex) -> usize {
    (0..=index.bytes() / size_of::<Entry>() / SLICE).map(|_| index.sweep(usize::MAX)).sum()
}
