//! The way from proxy to proxy: late, unreliable, or cut.
//!
//! Owns what is on its way. Does not know what it says.

use super::Word;
use crate::redis::Mishap;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use vllm_proxy_core::rng::Rng;
use vllm_proxy_core::time::{Duration, Instant};

/// How proxies hear of each other.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Network {
    /// How long every word takes.
    pub lag: Duration,
    /// How much longer it may take, by chance: later words may come before earlier ones.
    pub jitter: Duration,
    /// The part of all words that is lost.
    pub lost: f64,
    /// The part of those that come twice.
    pub doubled: f64,
    /// From when to when nobody hears anybody, one after another; proxies know. Afterwards each
    /// tells the others all that it knows.
    pub cuts: Vec<(Instant, Instant)>,
    /// For how long a proxy gathers what it tells; then all of it leaves at once.
    pub gather: Duration,
    /// What happens to Redis and to proxies.
    pub mishaps: Vec<(Instant, Mishap)>,
    /// Whether proxies keep in Redis what one that starts must know.
    pub keeps: bool,
    /// For how long the world goes on when all requests are over, so that proxies hear the rest.
    pub drained: Duration,
}

impl Network {
    /// Every word comes after this time, once and in order.
    pub fn with_lag(lag: Duration) -> Self {
        Self { lag, ..Self::default() }
    }

    /// Nobody ever hears anybody.
    pub fn none() -> Self {
        Self { cuts: vec![(Instant::START, Instant::FAR)], ..Self::default() }
    }

    /// Whether it is cut.
    pub(super) fn is_cut(&self, now: Instant) -> bool {
        self.cuts.iter().any(|&(from, until)| from <= now && now < until)
    }
}

/// What is published.
#[derive(Clone, Debug)]
pub(super) enum Parcel {
    /// A word as proxies write it, or what is none.
    Bytes(Vec<u8>),
    /// What other routers share.
    Counts(Word),
}

/// Something on its way to one proxy.
#[derive(Clone, Debug)]
pub(super) struct Letter {
    pub(super) to: usize,
    /// Over which of its connections.
    pub(super) connection: (u64, usize),
    pub(super) parcel: Rc<Parcel>,
}

/// What is on its way.
#[derive(Debug)]
pub(super) struct Post {
    rng: Rng,
    letters: BTreeMap<usize, Letter>,
    next: usize,
    /// What takes no time, in order.
    due: VecDeque<Letter>,
}

impl Post {
    pub(super) const fn new(seed: u64) -> Self {
        Self { rng: Rng::new(seed), letters: BTreeMap::new(), next: 0, due: VecDeque::new() }
    }

    /// When a word sent now comes: never, once or twice.
    pub(super) fn times(
        &mut self,
        network: &Network,
        late: Duration,
        now: Instant,
    ) -> [Option<Instant>; 2] {
        if network.is_cut(now) {
            return [None; 2];
        }
        let mut chance =
            |part: f64| part > 0.0 && (self.rng.below(1 << 32) as f64) < part * 2_f64.powi(32);
        let (lost, doubled) = (chance(network.lost), chance(network.doubled));
        let jitter = u64::try_from(network.jitter.as_micros()).unwrap_or(u64::MAX);
        let mut time = || now + network.lag + late + Duration::from_micros(self.rng.below(jitter));
        [(!lost).then(&mut time), (!lost && doubled).then(&mut time)]
    }

    /// Keeps a letter, under the number that is returned.
    pub(super) fn send(&mut self, letter: Letter) -> usize {
        self.letters.insert(self.next, letter);
        self.next += 1;
        self.next - 1
    }

    pub(super) fn arrive(&mut self, number: usize) -> Option<Letter> {
        self.letters.remove(&number)
    }

    /// A letter that takes no time.
    pub(super) fn hand_over(&mut self, letter: Letter) {
        self.due.push_back(letter);
    }

    pub(super) fn handed_over(&mut self) -> Option<Letter> {
        self.due.pop_front()
    }
}
