//! A naive index: a map of last touches by an endless clock, in which everything is looked up anew.

use super::*;
use alloc::collections::BTreeMap;
use proptest::prelude::*;

const BACKENDS: usize = 11;

#[derive(Default)]
struct Model {
    /// Tokens inserted, by backend.
    clocks: [u64; BACKENDS],
    /// Ticks at the last touch that was told.
    stamps: BTreeMap<(usize, u64), u64>,
    /// Tokens inserted at the last touch, told or not.
    touches: BTreeMap<(usize, u64), u64>,
}

impl Model {
    fn age(&self, backend: usize, chunk: u64) -> Option<u64> {
        let stamp = self.stamps.get(&(backend, chunk))?;
        Some(self.clocks[backend].saturating_sub(stamp * 16))
    }

    fn is_valid(&self, backend: usize, chunk: u64, capacity: u64) -> bool {
        self.age(backend, chunk).is_some_and(|age| age < capacity)
    }

    fn leading(&self, backend: usize, chunks: &[u64], capacity: u64) -> usize {
        chunks.iter().take_while(|&&chunk| self.is_valid(backend, chunk, capacity)).count()
    }

    fn insert(&mut self, backend: usize, chunks: &[u64], capacity: u64, most: u64) -> Vec<u64> {
        let missing = chunks.iter().filter(|&&chunk| !self.is_valid(backend, chunk, capacity));
        let tokens = missing.count() as u64 * u64::from(CHUNK_TOKENS);
        self.clocks[backend] += tokens.min(most);
        let mut told = Vec::new();
        for &chunk in chunks {
            if self.age(backend, chunk).is_none_or(|age| age >= capacity / 8) {
                self.stamps.insert((backend, chunk), self.clocks[backend] / 16);
                told.push(chunk);
            }
            self.touches.insert((backend, chunk), self.clocks[backend]);
        }
        told
    }

    fn forget(&mut self, backend: usize) {
        self.stamps.retain(|&(of, _), _| of != backend);
    }
}

#[derive(Clone, Debug)]
enum Operation {
    Insert(Prompt),
    Grew(u64),
    Feedback { predicted: u64, cached: u64 },
    Heard { of: Prompt, ticks: u64 },
    Others(u64),
    Wipe,
    Replace,
    Sweep(usize),
}

/// Some chunks of one of four families, from a fork on of one of four branches.
#[derive(Clone, Debug)]
struct Prompt {
    family: u64,
    branch: u64,
    fork: u64,
    length: u64,
}

impl Prompt {
    fn chunks(&self) -> Vec<u64> {
        // Behind a fork all chunks are others, even those of the same branch from another fork on.
        let branch = 1_000 * (self.branch + 1) + 10_000 * self.fork;
        let chunk = |at| if at < self.fork { at } else { at + branch };
        (0..self.length).map(|at| mix(self.family << 40 | chunk(at))).collect()
    }
}

prop_compose! {
    fn prompts()(family in 0_u64..4, branch in 0_u64..4, fork in 0_u64..4, length in 0_u64..40)
        -> Prompt
    {
        Prompt { family, branch, fork: fork * 9, length }
    }
}

fn operations() -> impl Strategy<Value = Operation> {
    prop_oneof![
        12 => prompts().prop_map(Operation::Insert),
        3 => (0_u64..3_000).prop_map(Operation::Grew),
        2 => (0_u64..5_000, 0_u64..5_000)
            .prop_map(|(predicted, cached)| Operation::Feedback { predicted, cached }),
        2 => (prompts(), 0_u64..2_500).prop_map(|(of, ticks)| Operation::Heard { of, ticks }),
        2 => (0_u64..3_000).prop_map(Operation::Others),
        1 => Just(Operation::Wipe),
        1 => Just(Operation::Replace),
        4 => (0_usize..600).prop_map(Operation::Sweep),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn the_index_is_its_model(
        capacities in prop::collection::vec(
            prop::sample::select(&[0_u64, 300, 1_000, 5_000, 20_000][..]), BACKENDS),
        operations in prop::collection::vec((0..BACKENDS, operations(), prompts()), 1..150),
        seed in any::<u64>(),
        begin in prop::sample::select(&[0_u64, 5, (1 << 36) - 3_000][..]),
    ) {
        let mut index = PrefixIndex::new(400 * 1024, seed);
        let mut model = Model::default();
        let mut ids: Vec<BackendId> = (0..BACKENDS as u32).map(BackendId).collect();
        let mut next = ids.len() as u32;
        let mut others = [begin; BACKENDS];
        for (backend, &id) in ids.iter().enumerate() {
            index.join(id).expect("there is room");
            index.set_capacity(id, Some(capacities[backend]));
            index.merge_counter(id, 1, begin);
            model.clocks[backend] = begin;
        }
        let mut matches = index.scratch();
        for (backend, operation, asked) in operations {
            let id = ids[backend];
            let capacity = index.capacity(id);
            let start = capacities[backend] * 5 / 4;
            match operation {
                Operation::Insert(prompt) => {
                    let chunks = prompt.chunks();
                    let mut told = Vec::new();
                    let inserted = index.insert(id, &chunks, CHUNK_TOKENS, &mut told);
                    let expected = model.insert(backend, &chunks, capacity, 2 * start);
                    prop_assert_eq!(told, expected);
                    let stamp = (model.clocks[backend] / 16) as u32;
                    prop_assert_eq!(inserted.expect("it has joined").stamp, stamp);
                }
                Operation::Grew(tokens) => {
                    index.grew(id, tokens);
                    model.clocks[backend] += tokens.min(2 * start);
                }
                Operation::Feedback { predicted, cached } => {
                    index.feedback(id, predicted, cached, CHUNK_TOKENS);
                    let capacity = index.capacity(id);
                    prop_assert!(capacity >= start / 10 && capacity <= start * 2);
                }
                Operation::Heard { of, ticks } => {
                    // From a little ahead of the clock to long ago.
                    let stamp = (model.clocks[backend] / 16 + 20).saturating_sub(ticks);
                    for chunk in of.chunks() {
                        index.merge(Fact { backend: id, chunk, stamp: stamp as u32 });
                        let age = model.clocks[backend].saturating_sub(stamp * 16);
                        if age < 2 * start {
                            let known = model.stamps.entry((backend, chunk)).or_insert(stamp);
                            *known = stamp.max(*known);
                        }
                    }
                }
                Operation::Others(tokens) => {
                    others[backend] += tokens;
                    index.merge_counter(id, 1, others[backend]);
                    model.clocks[backend] += tokens;
                }
                Operation::Wipe => {
                    index.wipe(id);
                    model.forget(backend);
                }
                Operation::Replace => {
                    index.leave(id);
                    ids[backend] = BackendId(next);
                    next += 1;
                    index.join(ids[backend]).expect("there is room");
                    index.set_capacity(ids[backend], Some(capacities[backend]));
                    model.forget(backend);
                    model.clocks[backend] = 0;
                    others[backend] = 0;
                }
                Operation::Sweep(count) => {
                    index.sweep(count);
                }
            }
            let chunks = asked.chunks();
            index.matches(&chunks, &mut matches);
            for (backend, &id) in ids.iter().enumerate() {
                let slot = index.join(id).expect("it has joined");
                let found = matches.at(slot);
                let capacity = index.capacity(id);
                // What others told may have gaps: then it is the end of what is held after some.
                let held = |at: usize| model.is_valid(backend, chunks[at], capacity);
                let gapless = model.leading(backend, &chunks, capacity);
                prop_assert!(found >= gapless, "backend {}: {} of {}", backend, found, gapless);
                prop_assert!(found == 0 || held(found - 1), "backend {}: {}", backend, found);
                prop_assert!(found == chunks.len() || !held(found), "backend {}", backend);
            }
        }
        prop_assert_eq!(index.evicted(), 0);
    }

    /// Touches are only noted once in an eighth of the capacity. What that makes of an exact LRU
    /// is one of seven eighths to eight eighths of it.
    #[test]
    fn it_is_nearly_an_exact_lru(
        prompts in prop::collection::vec(prompts(), 1..200),
        capacity in 1_000_u64..20_000,
    ) {
        let mut index = PrefixIndex::new(256 * 1024, 1);
        let id = BackendId(0);
        let slot = index.join(id).expect("there is room");
        index.set_capacity(id, Some(capacity));
        let capacity = index.capacity(id);
        let mut model = Model::default();
        let mut matches = index.scratch();
        for prompt in prompts {
            let chunks = prompt.chunks();
            index.insert(id, &chunks, CHUNK_TOKENS, &mut Vec::new());
            model.insert(0, &chunks, capacity, 2 * capacity);
            for (&(_, chunk), touch) in &model.touches {
                let age = model.clocks[0] - touch;
                index.matches(&[chunk], &mut matches);
                let held = matches.at(slot) == 1;
                prop_assert!(!held || age < capacity, "{} of {}", age, capacity);
                prop_assert!(held || age + 16 >= capacity * 7 / 8, "{} of {}", age, capacity);
            }
        }
    }
}
