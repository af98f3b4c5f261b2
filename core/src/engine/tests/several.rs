//! Requests that several backends hear, and what is believed of a backend after them.

use super::*;
use crate::route::{AdapterChange, Change, Echo, Gathering, Narrow};
use crate::tally::Ending;

fn gathered(decision: Decision) -> Vec<u32> {
    match decision {
        Decision::Gather(Gathering { asked, .. }) => {
            asked.iter().map(|one| one.backend.0).collect()
        }
        other @ (Decision::Forward(_)
        | Decision::Answer(_)
        | Decision::Status(_)
        | Decision::Shown(_)
        | Decision::Explained(_)
        | Decision::Refuse(_)
        | Decision::Later(_)
        | Decision::Accept) => panic!("nobody is asked: {other:?}"),
    }
}

/// Backends 0 and 1 serve `a`, 1 and 2 serve `b`; 2 belongs to another upstream.
fn rig() -> Rig {
    let mut rig = Rig::new(Config { upstreams: 2, ..Config::default() });
    rig.discover(&[0, 0, 1]);
    rig.up(0, &["a"]);
    rig.up(1, &["a", "b", "lora<b"]);
    rig.up(2, &["b"]);
    rig
}

impl Rig {
    fn gather(&mut self, who: Who, narrow: &Narrow) -> Decision {
        let asked = RequestMeta { who, narrow: Some(narrow), ..request(self.now) };
        self.ask(&asked)
    }

    fn change(&mut self, backend: u32, change: Change) -> Vec<Output> {
        let echo = Echo { backend: BackendId(backend), result: Ok(Some(change)) };
        self.engine.heard(&[echo], None, self.now);
        self.outputs()
    }

    fn rests(&mut self, backend: u32, rests: Option<bool>) {
        self.probed(backend, Ok(Probe { rests, ..healthy(&["a"]) }));
    }
}

fn model(name: &str) -> Narrow {
    Narrow { model: Some(name.to_string()), backend: None }
}

fn backend(address: &str) -> Narrow {
    Narrow { model: None, backend: Some(address.to_string()) }
}

#[rstest]
#[case::all(Narrow::default(), &[0, 1, 2])]
#[case::of_a_model(model("b"), &[1, 2])]
#[case::of_an_adapter(model("lora"), &[1])]
#[case::one(backend("127.0.0.1:2"), &[2])]
#[case::both(Narrow { model: Some("b".to_string()), ..backend("127.0.0.1:1") }, &[1])]
fn a_request_means(#[case] narrow: Narrow, #[case] expected: &[u32]) {
    let mut rig = rig();
    for who in [Who::Each, Who::Every] {
        let decision = rig.gather(who, &narrow);
        assert_eq!(gathered(decision), expected);
    }
    assert!(rig.engine.tickets.is_empty());
}

#[test]
fn what_changes_backends_reaches_for_those_that_are_down_too() {
    let mut rig = rig();
    rig.down(1);
    let all = Narrow::default();
    let (each, every) = (rig.gather(Who::Each, &all), rig.gather(Who::Every, &all));
    assert_eq!(gathered(each), [0, 2]);
    assert_eq!(gathered(every), [0, 1, 2]);
}

#[test]
fn who_is_not_there_is_said() {
    let mut rig = rig();
    let known = ["127.0.0.1:0", "127.0.0.1:1", "127.0.0.1:2"].map(ToString::to_string).to_vec();
    let refusal = refused(rig.gather(Who::Every, &backend("127.0.0.1:9")));
    let expected = Refusal::UnknownBackend { backend: "127.0.0.1:9".to_string(), backends: known };
    assert_eq!(refusal, expected);
    let refusal = refused(rig.gather(Who::Every, &model("c")));
    let bases = vec!["a".to_string(), "b".to_string()];
    assert_eq!(refusal, Refusal::UnknownModel { model: "c".to_string(), bases });
}

#[test]
fn behind_keys_a_refusal_names_no_models() {
    let mut rig = rig();
    rig.probed(2, Ok(Probe { keyed: Some(true), ..healthy(&["b"]) }));
    let refusal = refused(rig.gather(Who::Every, &model("c")));
    assert_eq!(refusal, Refusal::UnknownModel { model: "c".to_string(), bases: Vec::new() });
}

#[test]
fn one_must_be_named_where_there_are_several() {
    let mut rig = rig();
    let decision = rig.gather(Who::Named, &model("b"));
    let backends = vec!["127.0.0.1:1".to_string(), "127.0.0.1:2".to_string()];
    assert_eq!(refused(decision), Refusal::Ambiguous { backends });
    let (named, only) = (backend("127.0.0.1:2"), model("lora"));
    let decision = rig.gather(Who::Named, &named);
    assert_eq!(gathered(decision), [2]);
    let decision = rig.gather(Who::Named, &only);
    assert_eq!(gathered(decision), [1]);
}

#[test]
fn an_adapter_is_unloaded_where_it_is_loaded() {
    let mut rig = rig();
    let (of_b, third) = (model("b"), backend("127.0.0.1:2"));
    let mut change = |adapter, narrow| {
        let who = Who::Every;
        let asked = RequestMeta {
            who,
            adapter,
            narrow,
            unloads: true,
            of_default: true,
            ..request(rig.now)
        };
        gathered(rig.ask(&asked))
    };
    assert_eq!(change(Some("lora"), None), [1]);
    assert_eq!(change(Some("nobody has it"), None), [0, 1], "of the default model");
    assert_eq!(change(None, None), [0, 1]);
    assert_eq!(change(None, Some(&of_b)), [1, 2]);
    assert_eq!(change(None, Some(&third)), [2]);
}

#[test]
fn nobody_up_is_not_ready_but_has_numbers() {
    let mut rig = rig();
    (0..3).for_each(|id| rig.down(id));
    let all = Narrow::default();
    assert_eq!(refused(rig.gather(Who::Each, &all)), Refusal::Starting);
    let asked = RequestMeta { who: Who::Each, facts: true, ..request(rig.now) };
    let Decision::Gather(Gathering { asked, facts: Some(facts) }) = rig.ask(&asked) else {
        panic!("no numbers");
    };
    assert!(asked.is_empty());
    assert!(
        facts.backends.iter().all(|backend| backend.standing.as_ref().is_some_and(|one| !one.up))
    );
    assert_eq!(facts.backends.len(), 3);
}

#[test]
fn numbers_are_counted() {
    let mut rig = Rig::serving(1, &["m"]);
    let (first, second, third) = (rig.forward("m"), rig.forward("m"), rig.forward("m"));
    rig.finish(first.ticket);
    rig.engine.finish(second.ticket, Outcome::Broken, rig.now);
    let lost = rig.engine.reroute(third.ticket, Failure::Lost, rig.now);
    assert_eq!(refused(lost), Refusal::NoAnswer);
    let held = rig.forward("m");
    let asked = RequestMeta { who: Who::Each, facts: true, ..request(rig.now) };
    let Decision::Gather(Gathering { facts: Some(facts), .. }) = rig.ask(&asked) else {
        panic!("no numbers");
    };
    let backend = &facts.backends[0];
    let endings = backend.counts.endings();
    assert_eq!([Ending::Succeeded, Ending::Broken].map(|one| endings[one as usize]), [1, 1]);
    assert_eq!((backend.counts.failures(), backend.in_flight), (1, Some(1)));
    rig.finish(held.ticket);
}

#[test]
fn a_backend_that_rests_is_spared_while_others_do_not() {
    let mut rig = Rig::serving(2, &["a"]);
    assert!(!rig.engine.asks_rest(BackendId(0)));
    assert_eq!(rig.change(0, Change::Rest), [Output::Probe(BackendId(0))]);
    assert!(rig.engine.asks_rest(BackendId(0)), "its own word is asked for");
    rig.rests(0, Some(true));
    for _ in 0..4 {
        let route = rig.forward("a");
        assert_eq!(route.backend, BackendId(1));
        rig.finish(route.ticket);
    }
    rig.down(1);
    let route = rig.forward("a");
    assert_eq!(route.backend, BackendId(0), "it says 503 in its own words");
    rig.finish(route.ticket);
    assert!(rig.engine.asks_rest(BackendId(0)), "for as long as it rests");
    rig.up(1, &["a"]);
    rig.rests(0, Some(false));
    assert!(!rig.engine.asks_rest(BackendId(0)));
    let used: Vec<_> = (0..2).map(|_| rig.forward("a")).collect();
    assert!(used.iter().any(|route| route.backend == BackendId(0)));
    used.into_iter().for_each(|route| rig.finish(route.ticket));
}

#[test]
fn a_backend_that_comes_back_does_not_rest() {
    let mut rig = Rig::serving(2, &["a"]);
    rig.change(0, Change::Rest);
    rig.rests(0, Some(true));
    rig.down(0);
    rig.up(0, &["a"]);
    assert!(!rig.engine.asks_rest(BackendId(0)));
}

#[test]
fn an_adapter_that_was_loaded_is_found_at_once() {
    let mut rig = Rig::serving(2, &["a"]);
    let decision = rig.route(Some("lora"));
    rig.unknown(decision, "lora", &["a"]);
    assert_eq!(rig.change(1, Change::Adapters), [Output::Probe(BackendId(1))]);
    assert!(is_later(&rig.route(Some("lora"))), "what the round learned is old");
    assert!(is_later(&rig.own(Who::Models)), "so is the list");
    rig.outputs();
    rig.up(0, &["a"]);
    rig.up(1, &["a", "lora<a"]);
    rig.up(1, &["a", "lora<a"]);
    let route = rig.forward("lora");
    assert_eq!(route.backend, BackendId(1));
    rig.finish(route.ticket);
    assert!(answered(rig.own(Who::Models)).1.contains("lora"));
}

#[test]
fn who_did_not_answer_is_suspected() {
    let mut rig = Rig::serving(1, &["a"]);
    let echo = |result| [Echo { backend: BackendId(0), result }];
    for harmless in [Failure::Timeout, Failure::Nonsense, Failure::Cut, Failure::NoSocket] {
        rig.engine.heard(&echo(Err(harmless)), None, rig.now);
        assert_eq!(rig.state(0), State::Up);
    }
    rig.engine.heard(&echo(Err(Failure::Connect)), None, rig.now);
    assert_eq!(rig.state(0), State::Suspect);
    rig.outputs();
}

fn loaded(name: &str, model: Option<&str>) -> AdapterChange {
    let load = Some(name.as_bytes().into());
    AdapterChange { name: name.to_string(), load, model: model.map(ToString::to_string) }
}

/// What a backend that comes back is told to load.
fn comes_back(rig: &mut Rig, id: u32, models: &[&str]) -> Vec<String> {
    rig.down(id);
    let outputs = rig.up(id, models).into_iter();
    let loads = outputs.filter_map(|output| match output {
        Output::Load(backend, load) => {
            assert_eq!(backend, BackendId(id));
            Some(String::from_utf8(load.to_vec()).expect("text"))
        }
        Output::Probe(_) | Output::Forget(_) => None,
    });
    loads.collect()
}

#[test]
fn who_comes_back_gets_the_adapters_of_its_models() {
    let mut rig = rig();
    rig.engine.heard(&[], Some(loaded("x", None)), rig.now);
    rig.engine.heard(&[], Some(loaded("y", Some("b"))), rig.now);
    assert_eq!(comes_back(&mut rig, 0, &["a"]), ["x"], "the default model's");
    assert_eq!(comes_back(&mut rig, 1, &["a", "b"]), ["x", "y"]);
    assert!(comes_back(&mut rig, 2, &["b", "y<b"]).is_empty(), "it has it");
    rig.discover(&[0, 0, 1, 0]);
    assert!(rig.up(3, &["a"]).iter().any(|output| matches!(output, Output::Load(..))), "it joins");
    let unloaded = AdapterChange { load: None, ..loaded("x", None) };
    rig.engine.heard(&[], Some(unloaded), rig.now);
    assert!(comes_back(&mut rig, 0, &["a"]).is_empty());
}

#[test]
fn adapters_are_remembered_within_bounds() {
    let mut rig = rig();
    for number in 0..2_000 {
        rig.engine.heard(&[], Some(loaded(&format!("x{number}"), None)), rig.now);
    }
    let long = AdapterChange { load: Some(vec![b' '; 1 << 20].into()), ..loaded("x1", None) };
    rig.engine.heard(&[], Some(long), rig.now);
    let loads = comes_back(&mut rig, 0, &["a"]);
    assert_eq!(loads.len(), 1_024);
    assert!(loads.iter().any(|load| load == "x1"));
}
