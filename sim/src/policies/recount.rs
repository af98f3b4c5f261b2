//! The engine's sums once more, from a plain list of what it sent: a page of naive arithmetic that
//! is run beside it, and that panics where the two differ.

use crate::world::Live;
use std::collections::BTreeMap;
use vllm_proxy_core::engine::{Engine, View};
use vllm_proxy_core::fleet::{BackendId, Standing};
use vllm_proxy_core::route::Work;
use vllm_proxy_core::time::{Duration, Instant};

/// A request in hand.
#[derive(Clone, Copy, Debug)]
struct Open {
    id: u64,
    backend: BackendId,
    work: Work,
    sent: Instant,
    /// When its prefill is believed to be over, if nobody will see that.
    predicted: Option<Instant>,
    /// Its first token came, or was predicted.
    prefilled: bool,
}

/// All requests in hand, in the order in which they were sent.
#[derive(Debug, Default)]
pub(super) struct Recount {
    open: Vec<Open>,
    /// The last first token of each backend.
    last_first: BTreeMap<BackendId, Instant>,
}

impl Recount {
    /// A request is sent to a backend, which is believed to take so many nanoseconds a token, and
    /// counted as so much.
    pub(super) fn sent(
        &mut self,
        id: u64,
        (backend, pace): (BackendId, i64),
        work: Work,
        stream: bool,
        now: Instant,
    ) {
        assert!(self.open.iter().all(|one| one.id != id), "request {id} is sent once at a time");
        let queued = self.standing(backend, pace, now).queued + work.uncached;
        let micros = i128::from(queued) * i128::from(pace) / 1_000_000;
        let micros = u64::try_from(micros).expect("queues are never negative");
        let predicted = (!stream).then(|| now + Duration::from_micros(micros));
        self.open.push(Open { id, backend, work, sent: now, predicted, prefilled: false });
    }

    /// The first byte of its answer came.
    pub(super) fn first_byte(&mut self, id: u64, now: Instant) {
        if !self.open.iter().any(|one| one.id == id && !one.prefilled) {
            return;
        }
        self.expire(now);
        let one = self.open.iter_mut().find(|one| one.id == id && !one.prefilled);
        if let Some(one) = one {
            one.prefilled = true;
            let backend = one.backend;
            self.passed(backend, now);
        }
    }

    /// It is over there.
    pub(super) fn over(&mut self, id: u64, now: Instant) {
        self.expire(now);
        self.open.retain(|one| one.id != id);
    }

    fn passed(&mut self, backend: BackendId, at: Instant) {
        let last = self.last_first.entry(backend).or_insert(at);
        *last = at.max(*last);
    }

    fn expire(&mut self, now: Instant) {
        let mut passed = Vec::new();
        for one in self.open.iter_mut().filter(|one| !one.prefilled) {
            if let Some(at) = one.predicted.filter(|at| *at <= now) {
                one.prefilled = true;
                passed.push((one.backend, at));
            }
        }
        passed.into_iter().for_each(|(backend, at)| self.passed(backend, at));
    }

    fn standing(&self, backend: BackendId, pace: i64, now: Instant) -> Standing {
        let mut seen = Self { open: self.open.clone(), last_first: self.last_first.clone() };
        seen.expire(now);
        let here = || seen.open.iter().filter(|one| one.backend == backend);
        let waiting = || here().filter(|one| !one.prefilled);
        let queued: i64 = waiting().map(|one| one.work.uncached).sum();
        let progress = waiting().next().map_or(0, |head| {
            let last = seen.last_first.get(&backend).copied().unwrap_or(Instant::START);
            let micros = now.since(head.sent.max(last)).as_micros() as i64;
            (micros * 1_000_000 / pace).min(head.work.uncached / 10 * 9)
        });
        Standing {
            queued: queued - progress,
            resident: here().map(|one| one.work.prompt).sum(),
            in_flight: u32::try_from(here().count()).unwrap_or(u32::MAX),
        }
    }

    fn pending(&self, backend: BackendId, now: Instant) -> usize {
        let expired = |one: &&Open| one.prefilled || one.predicted.is_some_and(|at| at <= now);
        self.open.iter().filter(|one| one.backend == backend && !expired(one)).count()
    }

    /// Compares what the engine believes with the count, and the count with what there is.
    pub(super) fn check(&self, engine: &Engine, live: &[Live], now: Instant) {
        let mut own: Vec<_> = self.open.iter().map(|one| one.id).collect();
        own.sort_unstable();
        assert!(own.into_iter().eq(live.iter().map(|live| live.id)), "tickets are what is live");
        for live in live.iter().filter(|live| live.begun) {
            let one = self.open.iter().find(|one| one.id == live.id);
            assert!(one.is_some_and(|one| one.prefilled), "what began is queued no more");
        }
        let mut counted = 0;
        for view in engine.views(now) {
            let View { backend, in_hand, pending, pace, .. } = view;
            assert_eq!(in_hand, self.standing(backend, pace, now), "{backend:?} at {now:?}");
            assert_eq!(pending, self.pending(backend, now), "{backend:?} at {now:?}");
            assert!(pending <= in_hand.in_flight as usize && in_hand.queued >= 0, "{view:?}");
            assert!(in_hand.in_flight > 0 || in_hand == Standing::default(), "{view:?}");
            counted += in_hand.in_flight as usize;
        }
        assert_eq!(counted, self.open.len(), "who has something in hand is not forgotten");
    }
}

/// What the choice of one backend would cost, term by term.
#[derive(Clone, Copy, Debug)]
pub(super) struct Price {
    pub(super) backend: BackendId,
    reluctance: u8,
    /// Q + u, which is when its answer would begin.
    queue: i128,
    /// All that is work.
    work: i128,
    fresh: i128,
    pace: i128,
}

impl Price {
    /// Of a backend of which so much of the prompt is believed to be cached.
    pub(super) fn of(view: &View, work: Work, cached: i64) -> Self {
        let uncached = i128::from((work.prompt - cached).max(16_000));
        let n = i128::from(view.in_hand.in_flight);
        let queue = i128::from(view.in_hand.queued) + uncached;
        let resident = i128::from(view.in_hand.resident) / 50;
        Self {
            backend: view.backend,
            reluctance: view.reluctance,
            queue,
            work: queue + uncached * n / 10 + resident + 100_000 * n,
            fresh: i128::from(view.fresh) * 3,
            pace: i128::from(view.pace),
        }
    }

    /// Checks that this one, which was chosen, is the cheapest of `all`.
    pub(super) fn check(&self, all: &[Self]) {
        let paces = || all.iter().map(|one| one.pace);
        let (fast, slow) = (paces().min().unwrap_or(1), paces().max().unwrap_or(1));
        let differ = slow * 100 > fast * 120;
        let scaled = |work, pace| if differ { work * pace / fast } else { work };
        for other in all {
            assert!(self.reluctance <= other.reluctance, "{self:?} was chosen before {other:?}");
            if self.reluctance == other.reluctance {
                let own = scaled(self.work, self.pace) + self.fresh;
                let others = scaled(other.work, other.pace) + other.fresh;
                assert!(own <= others, "{self:?} was chosen before {other:?}");
                // Nobody stands idle beside a queue that is longer than what it saves.
                let queue = scaled(self.queue, self.pace) + self.fresh;
                assert!(queue <= others, "{self:?} was chosen before {other:?}");
            }
        }
    }
}
