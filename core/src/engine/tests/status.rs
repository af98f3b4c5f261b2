//! What the proxy says of itself.

use super::*;
use crate::fleet::{About, BackendName, InHand, ProxyId, Update};
use crate::route::{Act, Gathering, Narrow};
use crate::wire::facts::{BackendFacts, Facts, SharingFacts};
use crate::wire::status::{LONG_BYTES, Status};

impl Rig {
    fn status(&mut self) -> Status {
        let decision = self.own(Who::Status);
        let Decision::Status(status) = decision else { panic!("not a status: {decision:?}") };
        *status
    }

    fn facts(&mut self) -> Facts {
        let asked = RequestMeta { who: Who::Each, facts: true, ..request(self.now) };
        let decision = self.ask(&asked);
        let Decision::Gather(Gathering { facts, .. }) = decision else {
            panic!("not gathered: {decision:?}");
        };
        *facts.expect("they were asked for")
    }
}

fn sharing() -> Rig {
    let config = Config { upstreams: 1, index_memory: 1 << 20, ..Config::default() };
    let mut rig = Rig::new(Config { proxy: Some(7), ..config });
    rig.discover(&[0, 0]);
    rig.up(0, &["m", "lora<m"]);
    rig.up(1, &["m"]);
    rig
}

/// Another proxy's word of what it has at the second backend.
fn word(number: u64, in_flight: u32) -> Update {
    let in_hand = InHand { in_flight, queued: 4_000, resident: 9_999, ..InHand::default() };
    let name = BackendName::of(&spec(0, 1).address);
    let about = vec![About { in_hand: Some(in_hand), ..About::of(name, 0) }];
    Update { proxy: ProxyId(8), number, about, lengths: Vec::new() }
}

#[test]
fn what_is_in_flight_is_told_apart_by_who_has_it() {
    let mut rig = sharing();
    rig.handle(Input::Heard(&word(1, 3)));
    let route = rig.forward("m");
    assert_eq!(route.backend, BackendId(0), "the other has more to do");
    let status = rig.status();
    let counts = |one: &crate::wire::status::BackendStatus| {
        (one.in_flight, one.in_flight_elsewhere, one.queued_tokens, one.resident_tokens)
    };
    let backends: Vec<_> = status.backends.iter().map(counts).collect();
    assert_eq!(backends, [(1, 0, 100, 100), (0, 3, 4, 9)]);
    let facts = rig.facts();
    let elsewhere = |one: &BackendFacts| one.standing.as_ref().map(|one| one.in_flight_elsewhere);
    let counts: Vec<_> = facts.backends.iter().map(|one| (one.in_flight, elsewhere(one))).collect();
    assert_eq!(counts, [(Some(1), Some(0)), (Some(0), Some(3))]);
    // What a proxy had is gone with it.
    rig.sleep(3_000);
    rig.finish(route.ticket);
    assert!(rig.status().backends.iter().all(|one| one.in_flight + one.in_flight_elsewhere == 0));
}

#[test]
fn how_it_stands_with_others_is_told() {
    let mut rig = sharing();
    rig.handle(Input::Heard(&word(1, 0)));
    rig.handle(Input::Heard(&word(100, 0)));
    let report = ReplicaReport {
        connected: true,
        lag: Some(Duration::from_millis(2)),
        lost_batches: 3,
        unreadable: 4,
        reason: Some("so".into()),
    };
    rig.handle(Input::Replica(report));
    let expected = SharingFacts {
        proxy: 7,
        alive: 1,
        alone: false,
        missed: 35,
        dropped_chunks: 0,
        connected: true,
        lag: Some(Duration::from_millis(2)),
        lost_batches: 3,
        unreadable: 4,
        reason: Some("so".into()),
    };
    assert_eq!(rig.status().sharing.as_ref(), Some(&expected));
    assert_eq!(rig.facts().sharing, Some(expected));
    rig.handle(Input::Link(Link::Lost));
    assert!(rig.status().sharing.is_some_and(|sharing| sharing.alone));
}

#[test]
fn backends_are_told_of_in_every_state() {
    let mut rig = sharing();
    rig.discover(&[0, 0, 0, 0]);
    rig.suspect(1);
    rig.probed(2, Ok(Probe { keyed: Some(true), ..healthy(&["secret"]) }));
    let status = rig.status();
    let states: Vec<_> = status.backends.iter().map(|one| one.state).collect();
    assert_eq!(states, ["up", "suspect", "up", "unknown"]);
    let names = |one: &crate::wire::status::BackendStatus| {
        one.models
            .as_ref()
            .map(|cards| cards.iter().map(|card| card.id.clone()).collect::<Vec<_>>())
    };
    let models: Vec<_> = status.backends.iter().map(names).collect();
    let named = |names: &[&str]| Some(names.iter().map(ToString::to_string).collect());
    assert_eq!(models, [named(&["m", "lora"]), named(&["m"]), None, named(&[])]);
    assert!(status.backends.iter().all(|one| one.cache_tokens.is_some_and(|tokens| tokens > 0)));
    assert_eq!(status.index.map(|index| index.entries), Some(0));
    // Nobody waits to hear that nothing is known yet, or that the end is near.
    let mut rig = Rig::new(Config { upstreams: 1, ..Config::default() });
    rig.handle(Input::Drain);
    let status = rig.status();
    assert!(status.draining && status.backends.is_empty());
    assert_eq!((status.sharing, status.index), (None, None));
    assert_eq!(status.now, rig.now);
    assert_eq!(answered(rig.own(Who::Live)).0, 200);
}

/// Whether whoever asks now is told what was told before.
fn is_same(rig: &mut Rig, text: &Arc<Vec<u8>>) -> bool {
    matches!(rig.own(Who::Status), Decision::Shown(shown) if Arc::ptr_eq(&shown, text))
}

#[test]
fn long_text_is_told_to_all_until_it_is_old() {
    let mut rig = Rig::serving(2, &["m"]);
    let short = Arc::new(vec![b' '; LONG_BYTES]);
    rig.engine.show(Arc::clone(&short), rig.now);
    assert!(!is_same(&mut rig, &short), "it is made in no time");
    let long = Arc::new(vec![b' '; LONG_BYTES + 1]);
    rig.engine.show(Arc::clone(&long), rig.now);
    rig.sleep(1_999);
    assert!(is_same(&mut rig, &long));
    rig.sleep(1);
    rig.handle(Input::Timeout);
    assert_eq!(Arc::strong_count(&long), 1, "nobody keeps it");
    assert!(!is_same(&mut rig, &long));
}

#[test]
fn what_an_operator_changed_is_told_at_once() {
    let mut rig = Rig::serving(2, &["m"]);
    let long = Arc::new(vec![b' '; LONG_BYTES + 1]);
    let address = spec(0, 1).address.to_string();
    let narrow = Narrow { backend: Some(address), model: None };
    for (act, same) in [(Act::Drain, false), (Act::Drain, true), (Act::Undrain, false)] {
        rig.engine.show(Arc::clone(&long), rig.now);
        let order = RequestMeta { who: Who::Acts(act), narrow: Some(&narrow), ..request(rig.now) };
        assert_eq!(answered(rig.ask(&order)).0, 200);
        assert_eq!(is_same(&mut rig, &long), same, "{act:?}");
    }
    rig.engine.show(Arc::clone(&long), rig.now);
    rig.handle(Input::Drain);
    assert!(!is_same(&mut rig, &long));
}
