//! Proxies that tell each other end up knowing the same, however they hear it.

use super::*;
use crate::rng::Rng;

const PROXIES: usize = 3;
const BACKENDS: u32 = 10;

/// What one proxy tells the others of one insertion.
#[derive(Clone)]
struct Told {
    by: usize,
    backend: BackendId,
    stamp: u32,
    chunks: Vec<u64>,
    inserted_tokens: u64,
}

fn proxies() -> Vec<PrefixIndex> {
    // Seeds are no part of what they agree on.
    (0..PROXIES as u64 + 1)
        .map(|seed| {
            let mut index = PrefixIndex::new(512 * 1024, seed);
            for id in 0..BACKENDS {
                index.join(BackendId(id)).expect("there is room");
                index.set_capacity(BackendId(id), Some(40_000));
            }
            index
        })
        .collect()
}

/// Each proxy is 0 to itself and numbers the others in an order of its own.
fn number(of: usize, at: usize) -> usize {
    (of + 2 * (PROXIES + 1) - at) % (PROXIES + 1)
}

fn hear(index: &mut PrefixIndex, at: usize, told: &Told, rng: &mut Rng) {
    let counter_first = rng.below(2) == 0;
    for now in [counter_first, !counter_first] {
        if now {
            let proxy = number(told.by, at);
            index.merge_counter(told.backend, proxy, told.inserted_tokens);
        } else {
            for &chunk in &told.chunks {
                index.merge(Fact { backend: told.backend, chunk, stamp: told.stamp });
            }
        }
    }
}

/// Traffic at three proxies that hear of each other late, twice and out of order. Returns them
/// after the last word was heard, and a fourth that heard nothing.
fn play(seed: u64) -> (Vec<PrefixIndex>, Vec<Told>) {
    let mut rng = Rng::new(seed);
    let mut proxies = proxies();
    let mut log: Vec<Told> = Vec::new();
    let mut pending: Vec<(usize, Told)> = Vec::new();
    let mut pick = Rng::new(seed + 1);
    for _ in 0..600 {
        let by = pick.below(PROXIES as u64) as usize;
        let backend = BackendId(pick.below(u64::from(BACKENDS)) as u32);
        let mut chunks = prompt(pick.below(6), 5 + pick.below(20));
        chunks.extend(prompt(100 + pick.below(40), pick.below(30)));
        let mut told = Vec::new();
        let inserted = proxies[by].insert(backend, &chunks, CHUNK_TOKENS, &mut told);
        let inserted = inserted.expect("it has joined");
        let mut words = Vec::from([(inserted.stamp, told, inserted.inserted_tokens)]);
        if let Some(tokens) = proxies[by].grew(backend, pick.below(500)) {
            words.push((0, Vec::new(), tokens));
        }
        for (stamp, chunks, inserted_tokens) in words {
            let told = Told { by, backend, stamp, chunks, inserted_tokens };
            pending.extend((0..PROXIES).filter(|&at| at != by).map(|at| (at, told.clone())));
            log.push(told);
        }
        proxies[by].sweep(rng.below(300) as usize);
        // Some are heard, some of them twice.
        while rng.below(5) < 4 && !pending.is_empty() {
            let next = rng.below(pending.len() as u64) as usize;
            let (at, told) = pending[next].clone();
            hear(&mut proxies[at], at, &told, &mut rng);
            if rng.below(3) > 0 {
                pending.swap_remove(next);
            }
        }
    }
    while let Some(next) = (!pending.is_empty()).then(|| rng.below(pending.len() as u64)) {
        let (at, told) = pending.swap_remove(next as usize);
        hear(&mut proxies[at], at, &told, &mut rng);
    }
    (proxies, log)
}

fn hashes(proxies: &[PrefixIndex]) -> Vec<u64> {
    proxies.iter().map(|index| index.state_hash(hash_of)).collect()
}

#[test]
fn any_order_and_doubles_end_in_the_same_state() {
    for seed in 0..10 {
        let (mut proxies, log) = play(seed);
        let mut rng = Rng::new(seed);
        // One hears everything afterwards, backwards; then all hear all of it once more.
        for told in log.iter().rev() {
            hear(&mut proxies[PROXIES], PROXIES, told, &mut rng);
        }
        let before = hashes(&proxies);
        assert!(before.iter().all(|hash| *hash == before[0]), "seed {seed}: {before:x?}");
        for (at, index) in proxies.iter_mut().enumerate() {
            assert_eq!(index.evicted(), 0);
            for told in &log {
                hear(index, at, told, &mut rng);
            }
        }
        assert_eq!(hashes(&proxies), before);
        for asked in (0..6).map(|family| prompt(family, 25)) {
            for backend in 0..BACKENDS {
                let leads = leading(&proxies[0], backend, &asked);
                assert!(proxies.iter().all(|index| leading(index, backend, &asked) == leads));
            }
        }
    }
}

#[test]
fn a_snapshot_is_as_good_as_having_heard_everything() {
    let (mut proxies, _) = play(77);
    let mut facts = Vec::new();
    let mut next = Some(0);
    while let Some(from) = next {
        let before = facts.len();
        next = proxies[1].facts(from, &mut facts);
        assert!(facts.len() - before <= SLICE);
    }
    let (heard, newcomer) = proxies.split_at_mut(PROXIES);
    for &fact in &facts {
        newcomer[0].merge(fact);
    }
    for backend in (0..BACKENDS).map(BackendId) {
        for proxy in 0..PROXIES {
            let tokens = heard[1].counter(backend, number(proxy, 1));
            newcomer[0].merge_counter(backend, number(proxy, PROXIES), tokens);
        }
    }
    let hashes = hashes(&proxies);
    assert_eq!(hashes[PROXIES], hashes[1]);
    assert!(facts.len() > 500, "{}", facts.len());
}

#[test]
fn the_state_hash_sees_every_difference() {
    let mut index = index(1 << 20, 2, 10_000);
    let mut seen = Vec::from([index.state_hash(hash_of)]);
    let fact = Fact { backend: BackendId(0), chunk: 5, stamp: 3 };
    for fact in [
        fact,
        Fact { backend: BackendId(1), ..fact },
        Fact { chunk: 6, ..fact },
        Fact { stamp: 4, ..fact },
    ] {
        index.merge(fact);
        seen.push(index.state_hash(hash_of));
    }
    index.merge_counter(BackendId(1), 5, 1);
    seen.push(index.state_hash(hash_of));
    index.wipe(BackendId(1));
    seen.push(index.state_hash(hash_of));
    let mut distinct = seen.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), seen.len());
    index.merge(Fact { stamp: 2, ..fact });
    assert_eq!(Some(&index.state_hash(hash_of)), seen.last(), "an older word is no news");
}
