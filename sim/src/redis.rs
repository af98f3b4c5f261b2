//! Redis in miniature: what is published there, what is kept, and what may happen to it.
//!
//! Owns who is connected, what waits, and the logs that are kept for proxies that start. Does not
//! know what words mean, or how long they are on their way.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use vllm_proxy_core::time::Duration;

/// What happens to Redis, or to the proxies around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mishap {
    /// It ends, with every connection and all that it kept.
    Killed,
    /// It is there again, empty.
    Started,
    /// It does nothing. What is told waits, and comes all at once afterwards.
    Hung,
    /// It goes on.
    GoesOn,
    /// What it kept is gone.
    Flushed,
    /// It keeps nothing more; what is published still comes.
    Full,
    /// There is room again.
    Roomy,
    /// Every word takes so much longer from now on.
    Slow(Duration),
    /// One proxy cannot reach it.
    CutOff(usize),
    /// It can again.
    Joined(usize),
    /// Somebody publishes what is no word.
    Garbage,
    /// A proxy ends, with all its requests.
    Dies(usize),
    /// It starts anew, under another number.
    Starts(usize),
    /// An operator has a proxy give a server nothing new.
    Drained(usize, usize),
    /// An operator has a proxy give it requests again.
    Undrained(usize, usize),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Up,
    Hung,
    Down,
}

/// What is kept of one backend: a log, and the one before it.
#[derive(Clone, Debug, Default)]
struct Log {
    last: Vec<Vec<u8>>,
    old: Vec<Vec<u8>>,
}

impl Log {
    fn bytes(&self) -> usize {
        self.last.iter().map(Vec::len).sum()
    }
}

/// The server. `T` is what is published.
#[derive(Debug)]
pub struct Redis<T> {
    state: State,
    full: bool,
    late: Duration,
    cut: BTreeSet<usize>,
    waiting: VecDeque<(usize, T)>,
    logs: BTreeMap<u64, Log>,
}

impl<T> Default for Redis<T> {
    fn default() -> Self {
        Self {
            state: State::Up,
            full: false,
            late: Duration::ZERO,
            cut: BTreeSet::new(),
            waiting: VecDeque::new(),
            logs: BTreeMap::new(),
        }
    }
}

impl<T> Redis<T> {
    /// Something happens to it. What is returned waited in it until now, and who told it.
    pub fn happen(&mut self, mishap: Mishap) -> Vec<(usize, T)> {
        match mishap {
            Mishap::Killed => {
                self.state = State::Down;
                self.waiting.clear();
                self.logs.clear();
            }
            Mishap::Started | Mishap::GoesOn => {
                self.state = State::Up;
                return self.waiting.drain(..).collect();
            }
            Mishap::Hung if self.state == State::Up => self.state = State::Hung,
            Mishap::Flushed => self.logs.clear(),
            Mishap::Full => self.full = true,
            Mishap::Roomy => self.full = false,
            Mishap::Slow(late) => self.late = late,
            Mishap::CutOff(proxy) => {
                self.cut.insert(proxy);
                self.waiting.retain(|(from, _)| *from != proxy);
            }
            Mishap::Joined(proxy) => {
                self.cut.remove(&proxy);
            }
            Mishap::Hung
            | Mishap::Garbage
            | Mishap::Dies(_)
            | Mishap::Starts(_)
            | Mishap::Drained(..)
            | Mishap::Undrained(..) => {}
        }
        Vec::new()
    }

    /// Whether a proxy can hold a connection to it.
    pub fn is_there(&self, proxy: usize) -> bool {
        self.state != State::Down && !self.cut.contains(&proxy)
    }

    /// How much longer than usual it takes.
    pub const fn late(&self) -> Duration {
        self.late
    }

    /// A proxy publishes something; it is returned if it comes to all who listen now.
    pub fn publish(&mut self, from: usize, what: T) -> Option<T> {
        if !self.is_there(from) {
            return None;
        }
        if self.state == State::Hung {
            self.waiting.push_back((from, what));
            return None;
        }
        Some(what)
    }

    /// A proxy appends to a backend's log. One that is longer than this becomes the old one.
    pub fn keep(&mut self, from: usize, backend: u64, entry: Vec<u8>, bytes_max: usize) {
        if !self.is_there(from) || self.state == State::Hung || self.full {
            return;
        }
        let log = self.logs.entry(backend).or_default();
        log.last.push(entry);
        if log.bytes() > bytes_max {
            log.old = std::mem::take(&mut log.last);
        }
    }

    /// What is kept of a backend, the oldest first.
    pub fn kept(&self, to: usize, backend: u64) -> impl Iterator<Item = &[u8]> {
        let answers = self.is_there(to) && self.state == State::Up;
        let log = self.logs.get(&backend).filter(|_| answers);
        log.into_iter().flat_map(|log| log.old.iter().chain(&log.last)).map(Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::nothing(&[], Some(7), true, 2)]
    #[case::killed(&[Mishap::Killed], None, false, 0)]
    #[case::started_again(&[Mishap::Killed, Mishap::Started], Some(7), true, 0)]
    #[case::hung(&[Mishap::Hung], None, true, 0)]
    #[case::goes_on(&[Mishap::Hung, Mishap::GoesOn], Some(7), true, 2)]
    #[case::a_dead_one_does_not_hang(&[Mishap::Killed, Mishap::Hung], None, false, 0)]
    #[case::flushed(&[Mishap::Flushed], Some(7), true, 0)]
    #[case::full(&[Mishap::Full], Some(7), true, 2)]
    #[case::cut_off(&[Mishap::CutOff(1)], None, false, 0)]
    #[case::another_is(&[Mishap::CutOff(0)], Some(7), true, 2)]
    #[case::joined(&[Mishap::CutOff(1), Mishap::Joined(1)], Some(7), true, 2)]
    fn what_happens_to_it(
        #[case] mishaps: &[Mishap],
        #[case] published: Option<u8>,
        #[case] there: bool,
        #[case] kept: usize,
    ) {
        let mut redis = Redis::default();
        redis.keep(0, 5, vec![1], 100);
        redis.keep(0, 5, vec![2], 100);
        for &mishap in mishaps {
            assert!(redis.happen(mishap).is_empty());
        }
        assert_eq!((redis.publish(1, 7), redis.is_there(1)), (published, there));
        assert_eq!(redis.kept(1, 5).count(), kept);
    }

    #[test]
    fn what_waits_comes_at_once() {
        let mut redis = Redis::default();
        redis.happen(Mishap::Hung);
        assert!((0..3).all(|from| redis.publish(from, from).is_none()));
        redis.happen(Mishap::CutOff(1));
        assert_eq!(redis.happen(Mishap::GoesOn), [(0, 0), (2, 2)]);
        assert_eq!(redis.happen(Mishap::GoesOn), []);
    }

    #[test]
    fn two_logs_are_kept_at_most() {
        let mut redis = Redis::<u8>::default();
        (0..10).for_each(|at| redis.keep(0, 5, vec![at; 10], 25));
        let kept: Vec<_> = redis.kept(0, 5).map(|entry| entry[0]).collect();
        assert_eq!(kept, [6, 7, 8, 9]);
        redis.happen(Mishap::Full);
        redis.keep(0, 5, vec![10; 10], 25);
        assert_eq!(redis.kept(0, 5).count(), 4);
        redis.happen(Mishap::Roomy);
        redis.keep(0, 5, vec![11; 10], 25);
        assert_eq!(redis.kept(0, 5).count(), 5);
        assert_eq!(redis.kept(0, 6).count(), 0);
    }
}
