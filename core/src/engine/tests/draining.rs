//! Backends that operators have drained: what they get all the same, and what others are told.

use super::*;
use crate::fleet::Labels;
use crate::route::{Act, Gathering, Narrow};

impl Rig {
    /// An operator orders something of a backend, by whatever name.
    fn order(&mut self, act: Act, backend: Option<&str>) -> Decision {
        let narrow = Narrow { backend: backend.map(ToOwned::to_owned), model: None };
        let order = RequestMeta { who: Who::Acts(act), narrow: Some(&narrow), ..request(self.now) };
        self.ask(&order)
    }

    #[track_caller]
    fn drain(&mut self, id: u32) {
        let address = spec(0, id as u16).address.to_string();
        assert_eq!(answered(self.order(Act::Drain, Some(&address))).0, 200);
    }

    #[track_caller]
    fn undrain(&mut self, id: u32) {
        let address = spec(0, id as u16).address.to_string();
        assert_eq!(answered(self.order(Act::Undrain, Some(&address))).0, 200);
    }

    /// Who takes so many requests, one after another.
    fn takers(&mut self, count: usize) -> Vec<u32> {
        let routes: Vec<_> = (0..count).map(|_| self.forward("m")).collect();
        let mut takers: Vec<_> = routes.iter().map(|route| route.backend.0).collect();
        routes.into_iter().for_each(|route| self.finish(route.ticket));
        takers.sort_unstable();
        takers.dedup();
        takers
    }

    fn refusal(&mut self, model: Option<&str>) -> Refusal {
        self.sleep(2_000);
        refused(self.route(model))
    }
}

fn drained(model: &str) -> Refusal {
    Refusal::Drained { model: Some(model.to_string()) }
}

/// Asks for a model as one who has waited for the lists to be refreshed.
fn impatient(rig: &mut Rig, model: &str) -> Decision {
    let since = rig.now;
    rig.sleep(3_000);
    rig.ask(&RequestMeta { model: Some(model), ..request(since) })
}

#[rstest]
#[case::cache_aware(Policy::CacheAware)]
#[case::least_load(Policy::LeastLoad)]
#[case::in_turn(Policy::RoundRobin)]
fn a_drained_backend_gets_nothing_new_until_it_is_undrained(#[case] policy: Policy) {
    let mut rig =
        Rig::new(Config { policy, upstreams: 1, index_memory: 1 << 20, ..Config::default() });
    rig.discover(&[0, 0, 0]);
    (0..3).for_each(|id| drop(rig.up(id, &["m"])));
    assert_eq!(rig.takers(9), [0, 1, 2]);
    rig.drain(1);
    assert_eq!(rig.takers(9), [0, 2]);
    // Rather a suspect than one of which an operator spoke.
    rig.suspect(0);
    rig.suspect(2);
    assert_eq!(rig.takers(9), [0, 2]);
    rig.suspect(0);
    rig.suspect(2);
    rig.undrain(1);
    assert_eq!(rig.takers(3), [1]);
}

#[test]
fn what_it_has_goes_on_and_is_told() {
    let mut rig = Rig::serving(2, &["m"]);
    let held: Vec<_> = (0..4).map(|_| rig.forward("m")).collect();
    let address = spec(0, 1).address.to_string();
    let told = |in_flight: u32| {
        let rest = format!(r#""in_flight":{in_flight},"in_flight_elsewhere":0}}"#);
        (200, format!(r#"{{"address":"{address}","draining":true,"by_label":false,{rest}"#))
    };
    // Whoever says it again hears how far it is.
    for held in held {
        let there = rig.engine.fleet.backend(BackendId(1)).map(|one| one.load.in_flight());
        let expected = told(there.expect("it is there"));
        assert_eq!(answered(rig.order(Act::Drain, Some(&address))), expected);
        rig.finish(held.ticket);
    }
    assert_eq!(answered(rig.order(Act::Drain, Some(&address))), told(0));
    // It is looked after as any other: it goes down, and comes back drained.
    rig.down(1);
    assert_eq!(rig.state(1), State::Down);
    rig.up(1, &["m"]);
    assert_eq!((rig.state(1), rig.takers(4)), (State::Up, vec![0]));
}

#[test]
fn who_is_drained_is_not_told_to_take_requests() {
    let mut rig = Rig::serving(2, &["m"]);
    let mut models = |drained| {
        rig.drain(drained);
        let decision = rig.own(Who::Status);
        let Decision::Status(status) = decision else { panic!("not a status: {decision:?}") };
        let json: serde_json::Value = serde_json::from_slice(&status.text()).expect("it is JSON");
        json["models"].clone()
    };
    assert_eq!(models(0), serde_json::json!([{ "name": "m", "up": 1, "known": 2 }]));
    assert_eq!(models(1), serde_json::json!([{ "name": "m", "up": 0, "known": 2 }]));
}

#[test]
fn second_tries_do_not_go_there() {
    let mut rig = Rig::serving(2, &["m"]);
    let route = rig.forward("m");
    let other = 1 - route.backend.0;
    rig.drain(other);
    let last = rig.engine.reroute(route.ticket, Failure::Connect, rig.now);
    assert_eq!(refused(last), drained("m"), "that is why there is nobody");
    // The same of one that was drained after it had got the request.
    let mut rig = Rig::serving(3, &["m"]);
    let route = rig.forward("m");
    let first = route.backend.0;
    rig.drain(first);
    let route = forwarded(rig.engine.reroute(route.ticket, Failure::Lost, rig.now));
    assert_ne!(route.backend.0, first);
    rig.finish(route.ticket);
}

#[test]
fn the_last_one_of_a_model_is_drained_when_an_operator_says_so() {
    let mut rig = Rig::new(Config { upstreams: 1, ..Config::default() });
    rig.discover(&[0, 0, 0]);
    rig.up(0, &["a"]);
    rig.up(1, &["m"]);
    rig.up(2, &["m"]);
    rig.down(2);
    rig.drain(1);
    assert_eq!(rig.refusal(Some("m")), drained("m"));
    assert_eq!(answered(rig.own(Who::Health)).0, 200, "another model is served");
    let models = answered(rig.own(Who::Models)).1;
    assert!(models.contains(r#""a""#) && !models.contains(r#""m""#), "{models}");
    // Of two reasons the one that is a backend's own.
    rig.down(1);
    assert_eq!(rig.refusal(Some("m")), down("m"));
    rig.up(1, &["m"]);
    // The default stays what it was.
    rig.drain(0);
    assert_eq!(rig.refusal(None), drained("a"));
    for (who, expected) in [(Who::Models, 503), (Who::Version, 503), (Who::Health, 503)] {
        let status = match rig.own(who) {
            Decision::Refuse(refusal) => {
                assert_eq!(refusal, Refusal::Drained { model: None });
                refusal.status()
            }
            other @ (Decision::Answer(_)
            | Decision::Forward(_)
            | Decision::Gather(_)
            | Decision::Status(_)
            | Decision::Shown(_)
            | Decision::Explained(_)
            | Decision::Later(_)
            | Decision::Accept) => answered(other).0,
        };
        assert_eq!(status, expected, "{who:?}");
    }
    rig.undrain(1);
    assert_eq!(answered(rig.own(Who::Health)).0, 200);
}

#[test]
fn names_that_nobody_lists_stay_unknown_while_all_are_drained() {
    let mut rig = Rig::serving(1, &["m"]);
    rig.drain(0);
    let unknown = Refusal::UnknownModel { model: "x".to_string(), bases: vec![] };
    assert_eq!(refused(impatient(&mut rig, "x")), unknown, "who is drained says what it lists");
}

#[test]
fn it_is_asked_for_what_it_alone_keeps() {
    let mut rig = Rig::serving(3, &["m"]);
    rig.engine.owns(BackendId(1), "resp_1", rig.now);
    (0..3).for_each(|id| rig.drain(id));
    for (who, model) in [(Who::Owner, None), (Who::Backend, Some("m")), (Who::Backend, None)] {
        let asked = RequestMeta { who, model, response: Some("resp_1"), ..request(rig.now) };
        let route = forwarded(rig.ask(&asked));
        assert_eq!((route.backend, route.reason), (BackendId(1), Reason::Owner), "{who:?}");
        rig.finish(route.ticket);
    }
    let asked = RequestMeta { who: Who::Owner, response: Some("resp_2"), ..request(rig.now) };
    let route = forwarded(rig.ask(&asked));
    assert_eq!((route.backend, route.reason), (BackendId(0), Reason::Search));
    rig.finish(route.ticket);
}

#[rstest]
#[case::numbers(Who::Each)]
#[case::administration(Who::Every)]
fn what_goes_to_all_goes_there_too(#[case] who: Who) {
    let mut rig = Rig::serving(2, &["m"]);
    rig.drain(0);
    let Decision::Gather(Gathering { asked, .. }) = rig.own(who) else { panic!("it is for all") };
    assert_eq!(asked.iter().map(|one| one.backend.0).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn who_asks_for_a_key_and_who_resolves_names_are_drained_as_well() {
    let config = Config { upstreams: 2, forward_unknown: vec![1], ..Config::default() };
    let mut rig = Rig::new(config);
    rig.discover(&[0, 1]);
    rig.up(0, &["a"]);
    rig.probed(1, Ok(Probe { keyed: Some(true), ..healthy(&["b"]) }));
    rig.drain(1);
    assert_eq!(answered(rig.own(Who::Models)).0, 200, "nobody is left who asks for a key");
    let route = forwarded(impatient(&mut rig, "x"));
    assert_eq!(route.backend, BackendId(0), "nobody is left who may know the name");
    rig.finish(route.ticket);
}

#[rstest]
#[case::address(Some("10.0.0.1:8000"), Ok("10.0.0.1:8000"))]
#[case::ip_6(Some("[::1]:8000"), Ok("[::1]:8000"))]
#[case::socket(Some("unix:/run/vllm"), Ok("unix:/run/vllm"))]
#[case::upstream(Some("One:8000"), Ok("10.0.0.1:8000"))]
#[case::second_upstream_of_an_address(Some("also:8000"), Ok("10.0.0.1:8000"))]
#[case::upstream_of_several(
    Some("two"),
    Err((400, "`two` is several backends. Name one by its address: 10.0.0.2:80, [::1]:8000."))
)]
#[case::unknown(
    Some("10.0.0.9:80"),
    Err((404, "There is no backend `10.0.0.9:80`. Backends: 10.0.0.1:8000, 10.0.0.2:80,"))
)]
#[case::no_port(Some("10.0.0.1"), Err((404, "There is no backend `10.0.0.1`.")))]
#[case::nothing(None, Err((400, "Name a backend by the query parameter `backend`")))]
fn a_backend_is_named_by_its_address_or_its_upstream(
    #[case] wanted: Option<&str>,
    #[case] expected: Result<&str, (u16, &str)>,
) {
    let mut rig = Rig::new(Config { upstreams: 4, ..Config::default() });
    let tcp = |text: &str| Address::Tcp(text.parse().expect("an address"));
    let one = |upstream, address, authority: &str| BackendSpec {
        upstream,
        address,
        authority: authority.to_string(),
        prefix: String::new(),
        labels: Labels::default(),
    };
    rig.handle(Input::Discovered(&[
        one(0, tcp("10.0.0.1:8000"), "one:8000"),
        one(1, tcp("10.0.0.2:80"), "two"),
        one(1, tcp("[::1]:8000"), "two"),
        one(2, Address::Unix("/run/vllm".to_string()), "localhost"),
        one(3, tcp("10.0.0.1:8000"), "also:8000"),
    ]));
    let draining = |rig: &Rig| {
        let drains = rig.engine.fleet.backends().iter().filter(|one| one.drain.is_on());
        drains.map(|one| one.spec.address.to_string()).collect::<Vec<_>>()
    };
    match (rig.order(Act::Drain, wanted), expected) {
        (Decision::Answer(answer), Ok(address)) => {
            assert_eq!((answer.status, draining(&rig)), (200, vec![address.to_string()]));
        }
        (Decision::Answer(answer), Err((status, words))) => {
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            assert!(answer.status == status && text.contains(words), "{text}");
            assert!(draining(&rig).is_empty());
        }
        (Decision::Refuse(refusal), Err((status, words))) => {
            let answer = refusal.answer(crate::wire::answers::Shape::OpenAi);
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            assert!(answer.status == status && text.contains(words), "{text}");
            assert!(draining(&rig).is_empty());
        }
        (other, expected) => panic!("{other:?} is not {expected:?}"),
    }
}

/// The same backends again, and which of them a label drains.
fn labelled(rig: &mut Rig, labels: &[bool]) {
    let labelled = |(port, &drain): (u16, &bool)| BackendSpec {
        labels: Labels { drain, ..Labels::default() },
        ..spec(0, port)
    };
    let specs: Vec<_> = (0..).zip(labels).map(labelled).collect();
    rig.handle(Input::Discovered(&specs));
}

#[test]
fn a_label_drains_as_long_as_it_is_there() {
    let mut rig = Rig::new(Config { upstreams: 1, ..Config::default() });
    labelled(&mut rig, &[true, false]);
    (0..2).for_each(|id| drop(rig.up(id, &["m"])));
    assert_eq!(rig.takers(4), [1]);
    let address = spec(0, 0).address.to_string();
    let (status, text) = answered(rig.order(Act::Undrain, Some(&address)));
    assert!(status == 409 && text.contains("by its label"), "{text}");
    assert_eq!(rig.takers(4), [1], "nothing changed");
    let (status, text) = answered(rig.order(Act::Drain, Some(&address)));
    assert!(status == 200 && text.contains(r#""by_label":true"#), "{text}");
    labelled(&mut rig, &[false, true]);
    assert_eq!(rig.refusal(Some("m")), drained("m"), "the one by an order, the other by a label");
    rig.undrain(0);
    assert_eq!(rig.takers(4), [0]);
    labelled(&mut rig, &[false, false]);
    assert_eq!(rig.takers(4), [0, 1]);
}

#[test]
fn of_two_labels_for_one_address_the_one_that_drains_counts() {
    let mut rig = Rig::new(Config { upstreams: 2, ..Config::default() });
    let drain = Labels { drain: true, ..Labels::default() };
    rig.handle(Input::Discovered(&[
        spec(0, 0),
        BackendSpec { labels: drain, ..spec(1, 0) },
        spec(1, 1),
    ]));
    (0..2).for_each(|id| drop(rig.up(id, &["m"])));
    assert_eq!(rig.takers(4), [1]);
}

#[test]
fn an_address_stays_drained_though_it_leaves_for_a_while() {
    let mut rig = Rig::serving(2, &["m"]);
    rig.drain(1);
    rig.discover(&[0]);
    rig.discover(&[0, 0]);
    rig.up(2, &["m"]);
    assert_eq!(rig.takers(4), [0]);
    // Also if it is back before the last request of its former life has ended.
    rig.undrain(1);
    let held: Vec<_> = (0..2).map(|_| rig.forward("m")).collect();
    rig.drain(1);
    rig.discover(&[0]);
    rig.discover(&[0, 0]);
    rig.up(3, &["m"]);
    assert_eq!(rig.takers(4), [0]);
    held.into_iter().for_each(|route| rig.finish(route.ticket));
    assert_eq!(rig.takers(4), [0]);
    rig.undrain(1);
    rig.discover(&[0]);
    rig.discover(&[0, 0]);
    rig.up(4, &["m"]);
    assert_eq!(rig.takers(4), [0, 4], "an order that was taken back stays so");
}

#[test]
fn who_is_drained_is_told() {
    let mut rig = Rig::serving(2, &["m"]);
    rig.drain(1);
    let Decision::Status(status) = rig.own(Who::Status) else { panic!("it is asked for") };
    let told: Vec<_> = status.backends.iter().map(|one| (one.state, one.draining)).collect();
    assert_eq!(told, [("up", false), ("up", true)]);
    let asked = RequestMeta { who: Who::Each, facts: true, ..request(rig.now) };
    let Decision::Gather(Gathering { facts: Some(facts), .. }) = rig.ask(&asked) else {
        panic!("they are asked for");
    };
    let told = facts.backends.iter().map(|one| {
        let standing = one.standing.as_ref().expect("it has not left");
        (standing.up, standing.draining)
    });
    assert_eq!(told.collect::<Vec<_>>(), [(true, false), (true, true)]);
}
