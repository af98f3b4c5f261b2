//! Seeded chaos: the sums against a naive recount, and one seed against itself.

use super::*;
use crate::fleet::Standing;
use crate::rng::Rng;

/// An open ticket, as a page of plain arithmetic sees it.
struct Open {
    ticket: Ticket,
    backend: u32,
    bytes: u64,
    sent: u64,
    /// When its prompt leaves the queue, if it does not stream.
    predicted: Option<u64>,
    first_byte: bool,
}

/// The naive model: every open ticket in the order of dispatch.
#[derive(Default)]
struct Naive {
    open: Vec<Open>,
    /// By backend: the last first token, seen or predicted, of whoever was pending.
    last_first: BTreeMap<u32, u64>,
    /// By backend: nanoseconds a token. Learned by the engine, whose tests of that are elsewhere.
    pace: BTreeMap<u32, i64>,
}

impl Naive {
    fn tokens(bytes: u64) -> i64 {
        (bytes * 250) as i64
    }

    /// Ends what prediction ends until now, in the order of the predictions.
    fn expire(&mut self, now: u64) {
        for open in self.open.iter_mut().filter(|open| !open.first_byte) {
            if let Some(at) = open.predicted.filter(|&at| at <= now) {
                open.first_byte = true;
                let last = self.last_first.entry(open.backend).or_default();
                *last = at.max(*last);
            }
        }
    }

    fn standing(&mut self, backend: u32, now: u64) -> Standing {
        self.expire(now);
        let here = self.open.iter().filter(|open| open.backend == backend);
        let prompt = here.clone().map(|open| Self::tokens(open.bytes)).sum();
        let waiting = here.clone().filter(|open| !open.first_byte);
        let uncached = |open: &Open| Self::tokens(open.bytes).max(16_000);
        let queued: i64 = waiting.clone().map(uncached).sum();
        let done = waiting.clone().next().map_or(0, |head| {
            let since = head.sent.max(self.last_first.get(&backend).copied().unwrap_or(0));
            let pace = self.pace.get(&backend).copied().unwrap_or(125_000);
            (now.saturating_sub(since) as i64 * 1_000_000 / pace).min(uncached(head) / 10 * 9)
        });
        Standing { queued: queued - done, resident: prompt, in_flight: here.count() as u32 }
    }

    fn add(&mut self, route: Route, bytes: u64, stream: bool, now: u64) {
        let backend = route.backend.0;
        let queued = self.standing(backend, now).queued + Self::tokens(bytes).max(16_000);
        let predicted = (!stream).then(|| {
            now + (queued * self.pace.get(&backend).copied().unwrap_or(125_000) / 1_000_000) as u64
        });
        let ticket = route.ticket;
        self.open.push(Open { ticket, backend, bytes, sent: now, predicted, first_byte: false });
    }

    fn first_byte(&mut self, at: usize, now: u64) {
        self.expire(now);
        let open = &mut self.open[at];
        if !open.first_byte {
            open.first_byte = true;
            let last = self.last_first.entry(open.backend).or_default();
            *last = now.max(*last);
        }
    }
}

/// Plays seeded traffic and faults on one engine, comparing its sums with the recount after each
/// step; returns everything that it decided and ordered.
fn play(seed: u64, policy: Policy, steps: u32) -> Vec<String> {
    let mut rng = Rng::new(seed);
    let mut rig = Rig::new(Config { policy, upstreams: 2, ..Config::default() });
    rig.engine = Engine::new(rig.engine.config.clone(), seed, rig.now);
    let mut naive = Naive::default();
    let mut trace = Vec::new();
    let mut asked_for = 0;
    let mut note = |rig: &mut Rig, what: String| {
        trace.push(format!("{what} {:?} {:?}", rig.outputs(), rig.engine.poll_timeout()));
    };
    rig.discover(&[0, 0, 1, 1]);
    for id in 0..4 {
        rig.up(id, &["a", "b"]);
    }
    for _ in 0..steps {
        rig.now = rig.now + Duration::from_micros(rng.below(20_000));
        let now = rig.now.micros();
        let some = rng.below(naive.open.len() as u64) as usize;
        let none_open = naive.open.is_empty();
        match rng.below(100) {
            0..45 => {
                let (stream, bytes) = (rng.below(2) == 0, rng.below(20_000));
                let retry = if rng.below(4) == 0 { Retry::Never } else { Retry::BeforeFirstByte };
                let model = Some(["a", "b", "unheard of"][rng.below(3) as usize]);
                let asked =
                    RequestMeta { model, stream, prompt_bytes: bytes, retry, ..request(rig.now) };
                let decision = rig.ask(&asked);
                asked_for += u64::from(!matches!(decision, Decision::Later(_)));
                note(&mut rig, format!("{decision:?}"));
                if let Decision::Forward(route) = decision {
                    naive.add(route, bytes, stream, now);
                }
            }
            45..60 if !none_open => {
                rig.engine.first_byte(&naive.open[some].ticket, rig.now);
                naive.first_byte(some, now);
            }
            60..80 if !none_open => {
                naive.expire(now);
                let open = naive.open.remove(some);
                let outcome =
                    [Outcome::done(200), Outcome::ClientGone, Outcome::Broken, Outcome::TimedOut]
                        [rng.below(4) as usize];
                rig.engine.finish(open.ticket, outcome, rig.now);
            }
            80..92 if !none_open => {
                naive.expire(now);
                let open = naive.open.remove(some);
                let why = [
                    Failure::Connect,
                    Failure::Stale,
                    Failure::Lost,
                    Failure::Cut,
                    Failure::Nonsense,
                    Failure::Status(503),
                    Failure::Timeout,
                ][rng.below(7) as usize];
                let stream = open.predicted.is_none();
                let decision = rig.engine.reroute(open.ticket, why, rig.now);
                note(&mut rig, format!("{decision:?}"));
                if let Decision::Forward(route) = decision {
                    naive.add(route, open.bytes, stream, now);
                }
            }
            92..98 => {
                let result = [
                    Ok(healthy(&["a", "b"])),
                    Ok(healthy(&["a"])),
                    Ok(Probe { health: 503, ..Probe::default() }),
                    Err(ProbeError::Connect),
                    Err(ProbeError::Timeout),
                ];
                let at = [0, 0, 0, 1, 2, 3, 4][rng.below(7) as usize];
                let outputs = rig.probed(rng.below(8) as u32, result[at].clone());
                note(&mut rig, format!("{outputs:?}"));
            }
            98 => {
                let count = 2 + rng.below(3) as usize;
                let outputs = rig.discover(&[0, 0, 1, 1][..count]);
                note(&mut rig, format!("{outputs:?}"));
            }
            _ => {
                rig.engine.handle(Input::Timeout, rig.now);
            }
        }
        note(&mut rig, String::new());
        let paces = rig.engine.fleet.backends().iter();
        naive.pace = paces.map(|backend| (backend.id.0, backend.load.pace().nanos())).collect();
        check(&mut rig, &mut naive);
    }
    for open in naive.open.drain(..) {
        rig.engine.finish(open.ticket, Outcome::done(200), rig.now);
    }
    check(&mut rig, &mut naive);
    assert!(rig.engine.tickets.is_empty());
    // Each request ended once, whatever became of its backends.
    let Totals { endings, refused, own, .. } = rig.engine.totals();
    let ended: u64 = endings.iter().chain(refused).chain(own).sum();
    assert_eq!(ended, asked_for);
    let facts = rig.engine.facts(&rig.engine.fleet.staying(), rig.now);
    let told = facts.backends.iter().flat_map(|one| one.counts.endings());
    assert_eq!(told.sum::<u64>(), endings.iter().sum::<u64>(), "none is lost with its backend");
    for id in 0..rig.engine.next_ticket {
        if let Some(backend) = rig.engine.fleet.backend_mut(BackendId(id as u32)) {
            assert_eq!(backend.load.standing(rig.now), Standing::default());
        }
    }
    trace
}

#[track_caller]
fn check(rig: &mut Rig, naive: &mut Naive) {
    let now = rig.now;
    assert_eq!(rig.engine.tickets.len(), naive.open.len());
    for open in &naive.open {
        assert!(rig.engine.spec(BackendId(open.backend)).is_some(), "a ticket keeps its backend");
    }
    for id in 0..64 {
        if let Some(backend) = rig.engine.fleet.backend_mut(BackendId(id)) {
            let expected = naive.standing(id, now.micros());
            assert_eq!(backend.load.standing(now), expected, "backend {id}");
        }
    }
}

#[rstest]
#[case::least_load(Policy::LeastLoad)]
#[case::round_robin(Policy::RoundRobin)]
fn the_sums_equal_a_recount(#[case] policy: Policy) {
    for seed in 0..40 {
        play(seed, policy, 500);
    }
}

#[test]
fn one_seed_is_one_trace() {
    let first = play(7, Policy::LeastLoad, 2_000);
    assert_eq!(first, play(7, Policy::LeastLoad, 2_000));
    assert_ne!(first, play(8, Policy::LeastLoad, 2_000));
    assert!(first.iter().any(|line| line.contains("Forward")));
    assert!(first.iter().any(|line| line.contains("Forget")));
}

proptest::proptest! {
    /// Absurd prompts at absurd times: nothing overflows, and nothing stays.
    #[test]
    fn nothing_stays_whatever_is_asked(
        requests in proptest::collection::vec(
            (proptest::prelude::any::<u64>(), proptest::prelude::any::<u64>(), 0_u8..4),
            0..60,
        ),
    ) {
        let mut rig = Rig::serving(3, &["m"]);
        let mut open = Vec::new();
        for (bytes, micros, what) in requests {
            rig.now = Instant::from_micros(micros);
            let meta = RequestMeta {
                model: Some("m"),
                prompt_bytes: bytes,
                stream: what % 2 == 0,
                ..request(rig.now)
            };
            let route = forwarded(rig.ask(&meta));
            if what == 3 {
                rig.engine.first_byte(&route.ticket, rig.now);
            }
            open.push(route.ticket);
        }
        for ticket in open {
            rig.finish(ticket);
        }
        for id in 0..3 {
            let backend = rig.engine.fleet.backend_mut(BackendId(id)).expect("it is known");
            proptest::prop_assert_eq!(backend.load.standing(rig.now), Standing::default());
        }
    }
}
