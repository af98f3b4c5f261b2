//! The engine as its callers see it, one file a subject.

mod accounting;
mod caching;
mod counting;
mod draining;
mod explaining;
mod knowledge;
mod learning;
mod membership;
mod metrics;
mod realtime;
mod retries;
mod several;
mod sharing;
mod status;
mod stored;
mod upstreams;
mod way;
mod weights;

use super::*;
use crate::config::Policy;
use crate::fleet::{Address, Labels, State};
use crate::route::{Doubt, Fingerprint, Retry, Route};
use crate::wire::probe::ModelCard;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use rstest::rstest;

/// An engine, a clock, and a runtime that does nothing by itself.
struct Rig {
    engine: Engine,
    now: Instant,
}

impl Rig {
    /// Checks that a model counts as unknown: the first backend of the default model, which has one
    /// base name, judges the request, and we say better if there are others.
    fn unknown(&mut self, decision: Decision, model: &str, bases: &[&str]) {
        let route = forwarded(decision);
        let refusal = Refusal::UnknownModel {
            model: model.to_string(),
            bases: bases.iter().map(ToString::to_string).collect(),
        };
        let several = bases.len() > 1;
        assert_eq!(route.doubt, if several { Doubt::Unknown(refusal) } else { Doubt::None });
        self.finish(route.ticket);
    }

    fn new(config: Config) -> Self {
        let now = Instant::from_millis(10_000);
        Self { engine: Engine::new(config, 1, now), now }
    }

    /// Backends 0.. of one upstream, all up and listing these models.
    fn serving(count: u32, models: &[&str]) -> Self {
        let mut rig = Self::new(Config { upstreams: 1, ..Config::default() });
        rig.discover(&vec![0; count as usize]);
        for id in 0..count {
            rig.up(id, models);
        }
        rig
    }

    /// Says that these upstreams, by number, have one backend each, at ports counted from 0.
    fn discover(&mut self, upstreams: &[u16]) -> Vec<Output> {
        let specs: Vec<_> = (0..).zip(upstreams).map(|(port, &at)| spec(at, port)).collect();
        self.handle(Input::Discovered(&specs))
    }

    fn handle(&mut self, input: Input<'_>) -> Vec<Output> {
        self.engine.handle(input, self.now);
        self.outputs()
    }

    fn outputs(&mut self) -> Vec<Output> {
        core::iter::from_fn(|| self.engine.poll_output()).collect()
    }

    fn probed(&mut self, id: u32, result: Result<Probe, ProbeError>) -> Vec<Output> {
        self.handle(Input::Probed(BackendId(id), result))
    }

    fn up(&mut self, id: u32, models: &[&str]) -> Vec<Output> {
        self.probed(id, Ok(healthy(models)))
    }

    /// Takes a backend down by its own word.
    fn down(&mut self, id: u32) {
        self.probed(id, Ok(Probe { health: 503, ..Probe::default() }));
    }

    /// Makes a backend suspect, as traffic does.
    fn suspect(&mut self, id: u32) {
        self.engine.fleet.failed(BackendId(id), self.now);
        self.outputs();
    }

    fn state(&self, id: u32) -> State {
        self.engine.fleet.backend(BackendId(id)).expect("it is known").health.state()
    }

    fn sleep(&mut self, millis: u64) {
        self.now = self.now + Duration::from_millis(millis);
    }

    fn ask(&mut self, request: &RequestMeta<'_>) -> Decision {
        self.engine.route(request, self.now)
    }

    /// Asks for a model now.
    fn route(&mut self, model: Option<&str>) -> Decision {
        let request = RequestMeta { model, ..request(self.now) };
        self.ask(&request)
    }

    /// Asks for a model that must be served.
    fn forward(&mut self, model: &str) -> Route {
        forwarded(self.route(Some(model)))
    }

    fn own(&mut self, who: Who) -> Decision {
        let request = RequestMeta { who, ..request(self.now) };
        self.ask(&request)
    }

    fn finish(&mut self, ticket: Ticket) {
        self.engine.finish(ticket, Outcome::done(200), self.now);
    }
}

fn spec(upstream: u16, port: u16) -> BackendSpec {
    BackendSpec {
        upstream,
        address: Address::Tcp(([127, 0, 0, 1], port).into()),
        authority: format!("upstream{upstream}"),
        prefix: String::new(),
        labels: Labels::default(),
    }
}

fn healthy(models: &[&str]) -> Probe {
    Probe { health: 200, models: Some(cards(models)), ..Probe::default() }
}

/// Cards by name; `a<b` is the adapter `a` of `b`.
fn cards(names: &[&str]) -> Vec<ModelCard> {
    let card = |name: &&str| {
        let (id, parent) = match name.split_once('<') {
            Some((id, parent)) => (id, Some(parent.to_string())),
            None => (*name, None),
        };
        let raw = format!(r#"{{"id":"{id}"}}"#);
        ModelCard { id: id.to_string(), parent, raw, ..ModelCard::default() }
    };
    names.iter().map(card).collect()
}

static NO_PROMPT: Fingerprint = Fingerprint::new();

fn request(since: Instant) -> RequestMeta<'static> {
    RequestMeta { prompt_bytes: 400, ..RequestMeta::of_prompt(&NO_PROMPT, since) }
}

#[track_caller]
fn forwarded(decision: Decision) -> Route {
    match decision {
        Decision::Forward(route) => route,
        other @ (Decision::Answer(_)
        | Decision::Gather(_)
        | Decision::Status(_)
        | Decision::Shown(_)
        | Decision::Explained(_)
        | Decision::Refuse(_)
        | Decision::Later(_)
        | Decision::Accept) => {
            panic!("not forwarded: {other:?}")
        }
    }
}

#[track_caller]
fn refused(decision: Decision) -> Refusal {
    match decision {
        Decision::Refuse(refusal) => refusal,
        other @ (Decision::Answer(_)
        | Decision::Gather(_)
        | Decision::Status(_)
        | Decision::Shown(_)
        | Decision::Explained(_)
        | Decision::Forward(_)
        | Decision::Later(_)
        | Decision::Accept) => {
            panic!("not refused: {other:?}")
        }
    }
}

#[track_caller]
fn answered(decision: Decision) -> (u16, String) {
    match decision {
        Decision::Answer(answer) => (answer.status, String::from_utf8(answer.body).expect("text")),
        other @ (Decision::Refuse(_)
        | Decision::Gather(_)
        | Decision::Status(_)
        | Decision::Shown(_)
        | Decision::Explained(_)
        | Decision::Forward(_)
        | Decision::Later(_)
        | Decision::Accept) => {
            panic!("not answered: {other:?}")
        }
    }
}

fn is_later(decision: &Decision) -> bool {
    matches!(decision, Decision::Later(_))
}

fn down(model: &str) -> Refusal {
    Refusal::ModelDown { model: model.to_string() }
}

#[test]
fn a_request_goes_to_a_backend_of_its_model() {
    let mut rig = Rig::new(Config { upstreams: 2, ..Config::default() });
    rig.discover(&[0, 1]);
    rig.up(0, &["a"]);
    rig.up(1, &["b", "b-alias", "lora<b"]);
    for (model, backend) in [("a", 0), ("b", 1), ("b-alias", 1), ("lora", 1)] {
        let route = rig.forward(model);
        assert_eq!((route.backend, route.reason), (BackendId(backend), Reason::Only));
        assert_eq!(*route.spec, spec(backend as u16, backend as u16));
        assert!(!route.fresh);
        rig.finish(route.ticket);
    }
}

#[test]
fn names_are_compared_exactly() {
    let mut rig = Rig::serving(1, &["Org/Model"]);
    for name in ["org/model", "Org/Model ", "Model", "Org/Model/"] {
        rig.sleep(2_000);
        assert!(is_later(&rig.route(Some(name))), "{name}");
        rig.up(0, &["Org/Model"]);
        let decision = rig.route(Some(name));
        rig.unknown(decision, name, &["Org/Model"]);
    }
}

#[test]
fn least_work_is_in_hand_of_who_is_chosen() {
    let mut rig = Rig::serving(3, &["m"]);
    let mut seen: Vec<_> = (0..3).map(|_| rig.forward("m")).collect();
    let mut chosen: Vec<_> = seen.iter().map(|route| route.backend.0).collect();
    chosen.sort_unstable();
    assert_eq!(chosen, [0, 1, 2]);
    assert!(seen.iter().all(|route| route.reason == Reason::LeastWork));
    let free = seen.remove(1);
    rig.finish(free.ticket);
    let next = rig.forward("m");
    assert_eq!(next.backend, free.backend);
    for route in seen.into_iter().chain([next]) {
        rig.finish(route.ticket);
    }
}

#[test]
fn round_robin_takes_turns_model_by_model() {
    let policy = Policy::RoundRobin;
    let mut rig = Rig::new(Config { policy, upstreams: 1, ..Config::default() });
    rig.discover(&[0, 0, 0]);
    rig.up(0, &["a", "b"]);
    rig.up(1, &["a"]);
    rig.up(2, &["a", "b"]);
    let chosen = |rig: &mut Rig, model| {
        let route = rig.forward(model);
        assert_eq!(route.reason, Reason::Turn);
        rig.finish(route.ticket);
        route.backend.0
    };
    let order = ["a", "b", "a", "a", "b", "a", "b"].map(|model| chosen(&mut rig, model));
    assert_eq!(order, [0, 0, 1, 2, 2, 0, 0]);
    rig.down(1);
    assert_eq!([chosen(&mut rig, "a"), chosen(&mut rig, "a")], [2, 0]);
}

#[test]
fn suspects_are_chosen_only_if_nobody_is_up() {
    let mut rig = Rig::serving(2, &["m"]);
    rig.suspect(0);
    for _ in 0..10 {
        let route = rig.forward("m");
        assert_eq!((route.backend, route.reason), (BackendId(1), Reason::Only));
        rig.finish(route.ticket);
    }
    rig.suspect(1);
    let route = rig.forward("m");
    assert_eq!(route.reason, Reason::LeastWork);
    rig.finish(route.ticket);
}

#[test]
fn a_request_that_must_not_be_sent_twice_gets_a_fresh_connection() {
    let mut rig = Rig::serving(1, &["m"]);
    let request = RequestMeta { retry: Retry::Never, model: Some("m"), ..request(rig.now) };
    let route = forwarded(rig.ask(&request));
    assert!(route.fresh);
    rig.finish(route.ticket);
}

#[rstest]
#[case::within(100, &[40, 60], true)]
#[case::beyond(100, &[40, 61], false)]
#[case::alone_it_may_be_larger(100, &[500], true)]
#[case::not_beside_another(100, &[1, 500], false)]
#[case::nothing_beside_a_larger_one(100, &[500, 1], false)]
#[case::unlimited(0, &[u64::MAX / 2, u64::MAX / 2], true)]
#[case::no_overflow(0, &[u64::MAX, 1], false)]
fn bodies_have_a_budget(#[case] body_memory: u64, #[case] bodies: &[u64], #[case] last: bool) {
    let mut rig = Rig::new(Config { body_memory, ..Config::default() });
    let mut reserve = |&bytes| rig.engine.reserve(Share::default(), bytes);
    let granted: Vec<_> = bodies.iter().map(&mut reserve).collect();
    assert_eq!(granted.last().map(Option::is_some), Some(last));
    assert!(granted[..granted.len() - 1].iter().all(Option::is_some));
    for share in granted.into_iter().flatten() {
        rig.engine.release(share);
    }
    assert_eq!(rig.engine.body_bytes, 0);
    rig.engine.release(Share { bytes: 1, overdraft: false });
    assert_eq!(rig.engine.body_bytes, 0);
}

#[test]
fn of_bodies_that_grow_one_at_a_time_may_overdraw() {
    let mut rig = Rig::new(Config { body_memory: 100, ..Config::default() });
    let mut take = |share, bytes| rig.engine.reserve(share, bytes);
    let first = take(Share::default(), 50).expect("there is room");
    let second = take(Share::default(), 50).expect("there is room");
    assert_eq!(take(Share::default(), 1), None, "a new body waits");
    let first = take(first, 50).expect("the overdraft is free");
    assert_eq!(first, Share { bytes: 100, overdraft: true });
    assert_eq!(take(second, 50), None, "the overdraft is taken");
    let first = take(first, 100).expect("it goes on");
    rig.engine.release(first);
    let second = rig.engine.reserve(second, 50).expect("there is room again");
    assert_eq!(second, Share { bytes: 100, overdraft: false });
    let second = rig.engine.reserve(second, 500).expect("no other body is held");
    rig.engine.release(second);
    assert_eq!((rig.engine.body_bytes, rig.engine.overdrawn), (0, false));
}
