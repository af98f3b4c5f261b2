//! Whatever clients and backends say: the bytes, the clamps and the order of things stay.

use super::*;
use rstest::rstest;

/// 64 backends that hold more chunks than there is room for.
fn flooded() -> PrefixIndex {
    let mut index = index(1 << 20, 64, 1_000_000);
    for number in 0..1_500 {
        insert(&mut index, number % 64, &prompt(u64::from(number), 60));
    }
    index
}

#[test]
fn unique_prompts_push_each_other_out() {
    let before = index(1 << 20, 64, 1_000_000).bytes();
    let index = flooded();
    assert_eq!(index.bytes(), before);
    assert!(index.bytes() <= 1 << 20);
    assert_eq!(index.len(), index.len_max());
    assert_eq!(index.evicted() + index.len() as u64, 90_000);
    // The last ones are whole, but for what a sample took by chance.
    let whole =
        (1_400..1_500).filter(|&n| leading(&index, n % 64, &prompt(n.into(), 60)) == 60).count();
    assert!(whole > 90, "{whole} of 100");
}

#[test]
fn what_is_used_survives_a_flood() {
    let mut index = index(1 << 20, 4, 1_000_000);
    let hot = prompt(1 << 20, 60);
    let mut lost = 0;
    for number in 0..4_000_u32 {
        insert(&mut index, number % 4, &prompt(number.into(), 40));
        if number % 64 == 0 {
            lost += insert(&mut index, 0, &hot).0.new_chunks;
        }
    }
    assert!(index.evicted() > 100_000, "{}", index.evicted());
    assert!(lost < 60 + 60, "{lost} of {} touches", 60 * 4_000 / 64);
}

#[test]
fn the_dead_go_before_the_living() {
    let mut index = index(1 << 20, 2, 100_000_000);
    let living = prompt(1, 60);
    insert(&mut index, 0, &living);
    for number in 0..index.len_max() as u64 / 60 - 1 {
        insert(&mut index, 1, &prompt(10 + number, 60));
    }
    assert!(index.len() > index.len_max() - 120 && index.evicted() == 0);
    index.wipe(BackendId(1));
    for number in 0..100 {
        insert(&mut index, 0, &prompt(1_000_000 + number, 60));
    }
    assert!(index.evicted() > 0);
    assert_eq!(leading(&index, 0, &living), 60);
}

#[rstest]
#[case::none(0)]
#[case::one_chunk(128)]
fn a_prompt_larger_than_the_cache(#[case] capacity: u64) {
    let mut index = index(1 << 20, 1, 100_000);
    index.set_capacity(BackendId(0), Some(capacity));
    let chunks = prompt(1, 200);
    for _ in 0..3 {
        let (inserted, told) = insert(&mut index, 0, &chunks);
        // It was touched as a whole and not since: what fits is valid until the next token.
        let held = if capacity == 0 { 0 } else { 200 };
        assert_eq!(leading(&index, 0, &chunks), held);
        assert!(capacity != 0 || (inserted.new_chunks, told.len()) == (200, 200));
        index.grew(BackendId(0), 1_000);
        assert_eq!(leading(&index, 0, &chunks), 0);
    }
    assert!(index.len() <= 200);
}

#[test]
fn long_prompts_are_looked_at_up_to_a_limit() {
    // 10 MB of 512 bytes to a chunk.
    let chunks = prompt(1, 20_480);
    let mut index = index(1 << 20, 2, 4_000_000);
    let (inserted, told) = insert(&mut index, 1, &chunks);
    assert_eq!((inserted.new_chunks, told.len()), (CHUNKS_MAX, 768));
    assert_eq!(inserted.inserted_tokens, 8_192 * 128);
    let mut matches = index.scratch();
    index.matches(&chunks, &mut matches);
    assert_eq!(matches.longest(), CHUNKS_MAX);
}

#[test]
fn one_prefix_on_all_backends_of_the_largest_fleet() {
    let mut index = PrefixIndex::new(48 << 20, 3);
    let backends = BACKENDS_MAX as u32;
    let slots: Vec<Slot> =
        (0..backends).map(|id| index.join(BackendId(id)).expect("room")).collect();
    assert_eq!(slots[4_095], Slot(4_095));
    assert_eq!(index.join(BackendId(backends)), None);
    let chunks = prompt(1, 20);
    let share = |id: u32| (id % 21) as usize;
    for id in 0..backends {
        insert(&mut index, id, &chunks[..share(id)]);
    }
    let mut matches = index.scratch();
    index.matches(&chunks, &mut matches);
    for (id, &slot) in (0..).zip(&slots) {
        assert_eq!(matches.at(slot), share(id), "backend {id}");
    }
    index.leave(BackendId(70));
    assert_eq!(index.join(BackendId(backends)), Some(slots[70]));
    index.matches(&chunks, &mut matches);
    assert_eq!((matches.at(slots[70]), matches.at(slots[71])), (0, share(71)));
}

#[test]
fn backends_without_room_hold_nothing() {
    for bytes in [0, 1, 100, 4_096, 20_000] {
        let mut index = PrefixIndex::new(bytes, 0);
        assert!(index.bytes() <= bytes, "{} of {bytes}", index.bytes());
        let joined = (0..10).filter(|&id| index.join(BackendId(id)).is_some()).count();
        assert!(joined <= 2, "{joined} of {bytes}");
        let mut told = Vec::new();
        index.insert(BackendId(0), &prompt(1, 100), CHUNK_TOKENS, &mut told);
        index.sweep(100);
        index.wipe(BackendId(0));
        index.matches(&prompt(1, 100), &mut Matches::default());
        assert!(index.len() <= index.len_max() && index.bytes() <= bytes);
        let mut facts = Vec::new();
        index.facts(0, &mut facts);
        assert!(facts.len() <= index.len());
    }
}

#[test]
fn chosen_hashes_make_no_long_search() {
    // All that a client may want to meet in one place: equal low bits, equal high bits, hardly
    // any bits at all, and the same one over and over.
    let mut index = index(1 << 20, 8, 10_000_000);
    let kinds: [fn(u64) -> u64; 4] = [|n| n, |n| n << 40, |n| n.reverse_bits(), |_| 0];
    for (backend, kind) in (0..).zip(kinds) {
        let chunks: Vec<u64> = (0..6_000).map(kind).collect();
        for chunks in chunks.chunks(100) {
            insert(&mut index, backend, chunks);
            assert_eq!(leading(&index, backend, chunks), 100);
        }
    }
    assert_eq!((index.len(), index.evicted()), (18_001, 0));
    assert!(index.table.longest_way() < 64, "{}", index.table.longest_way());
}

#[test]
fn absurd_numbers_leave_everything_in_its_place() {
    let mut index = index(1 << 20, 2, 100_000);
    let (mad, sane) = (BackendId(0), BackendId(1));
    insert(&mut index, 1, &prompt(1, 10));
    let chunks = prompt(2, 100);
    for _ in 0..50 {
        index.grew(mad, u64::MAX);
        index.insert(mad, &chunks, u32::MAX, &mut Vec::new());
        index.insert(mad, &chunks, 0, &mut Vec::new());
        for (predicted, cached) in [(u64::MAX, 0), (0, u64::MAX), (u64::MAX, u64::MAX), (0, 0)] {
            index.feedback(mad, predicted, cached, u32::MAX);
            index.feedback(mad, predicted, cached, 0);
            let capacity = index.capacity(mad);
            assert!((10_000..=200_000).contains(&capacity), "{capacity}");
        }
        assert_eq!(leading(&index, 0, &chunks), 100);
    }
    assert!(index.fresh(mad) > 0);
    index.merge_counter(mad, 1, u64::MAX);
    index.merge_counter(mad, 2, u64::MAX);
    index.merge(Fact { backend: mad, chunk: 5, stamp: u32::MAX });
    index.merge(Fact { backend: mad, chunk: 5, stamp: 0 });
    index.set_capacity(mad, Some(u64::MAX));
    insert(&mut index, 0, &chunks);
    index.grew(mad, u64::MAX);
    index.wipe(mad);
    assert_eq!(leading(&index, 0, &chunks), 0);
    assert_eq!(leading(&index, 1, &prompt(1, 10)), 10);
    assert_eq!(index.capacity(sane), 100_000);
}

#[test]
fn pairs_take_few_bytes() {
    for bytes in [4 << 20, 10 << 20, 100 << 20] {
        let index = PrefixIndex::new(bytes, 0);
        let each = index.bytes() * 10 / index.len_max();
        assert!(each <= 235, "{each} tenths of a byte in {bytes}");
        assert!(index.bytes() > bytes / 100 * 99);
    }
}
