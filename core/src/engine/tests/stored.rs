//! Requests that only some backends may answer: stored responses, keys, resolvers of names, models
//! that a backend lists no more.

use super::*;

fn stored<'a>(rig: &Rig, who: Who, response: &'a str) -> RequestMeta<'a> {
    let model = (who == Who::Backend).then_some("m");
    RequestMeta { who, model, response: Some(response), ..request(rig.now) }
}

/// Says 404 until nobody is left, and returns who was asked.
fn search(rig: &mut Rig, who: Who, response: &str) -> Vec<(u32, Reason)> {
    let asked = stored(rig, who, response);
    let mut route = forwarded(rig.ask(&asked));
    let mut tried = Vec::new();
    loop {
        assert_eq!(route.doubt == Doubt::Elsewhere, tried.is_empty());
        tried.push((route.backend.0, route.reason));
        match rig.engine.reroute(route.ticket, Failure::Elsewhere, rig.now) {
            Decision::Forward(next) => route = next,
            Decision::Refuse(_) => return tried,
            other @ (Decision::Answer(_)
            | Decision::Gather(_)
            | Decision::Status(_)
            | Decision::Shown(_)
            | Decision::Explained(_)
            | Decision::Later(_)
            | Decision::Accept) => {
                panic!("{other:?}")
            }
        }
    }
}

#[rstest]
#[case::retrieved(Who::Owner)]
#[case::gone_on_from(Who::Backend)]
fn a_response_nobody_knows_is_looked_for(#[case] who: Who) {
    let mut rig = Rig::serving(5, &["m"]);
    let tried = search(&mut rig, who, "resp_1");
    let expected: Vec<_> = (0..5).map(|id| (id, Reason::Search)).collect();
    assert_eq!(tried, expected);
}

#[rstest]
#[case::retrieved(Who::Owner)]
#[case::gone_on_from(Who::Backend)]
fn its_owner_is_asked_first(#[case] who: Who) {
    let mut rig = Rig::serving(4, &["m"]);
    rig.engine.owns(BackendId(2), "resp_1", rig.now);
    let tried = search(&mut rig, who, "resp_1");
    let others = [0, 1, 3].map(|id| (id, Reason::Search));
    assert_eq!(tried[0], (2, Reason::Owner));
    assert_eq!(tried[1..], others);
}

#[test]
fn an_owner_that_is_down_is_passed_over() {
    let mut rig = Rig::serving(3, &["m"]);
    rig.engine.owns(BackendId(1), "resp_1", rig.now);
    rig.down(1);
    let tried = search(&mut rig, Who::Owner, "resp_1");
    assert_eq!(tried, [(0, Reason::Search), (2, Reason::Search)]);
}

#[test]
fn a_response_is_looked_for_among_those_that_serve_the_model() {
    let mut rig = Rig::new(Config { upstreams: 1, ..Config::default() });
    rig.discover(&[0, 0, 0]);
    rig.up(0, &["other"]);
    rig.up(1, &["m"]);
    rig.up(2, &["m"]);
    let tried = search(&mut rig, Who::Backend, "resp_1");
    assert_eq!(tried, [(1, Reason::Search), (2, Reason::Search)]);
    let all = search(&mut rig, Who::Owner, "resp_1");
    assert_eq!(all.len(), 3);
}

#[test]
fn who_names_no_model_goes_on_where_the_response_is() {
    let mut rig = Rig::new(Config { upstreams: 1, ..Config::default() });
    rig.discover(&[0, 0]);
    rig.up(0, &["first"]);
    rig.up(1, &["m"]);
    rig.engine.owns(BackendId(1), "resp_1", rig.now);
    let asked = RequestMeta { response: Some("resp_1"), ..request(rig.now) };
    let route = forwarded(rig.ask(&asked));
    assert_eq!((route.backend, route.reason), (BackendId(1), Reason::Owner));
    rig.finish(route.ticket);
}

#[test]
fn a_search_goes_on_past_failures_and_does_not_hide_them() {
    let mut rig = Rig::serving(5, &["m"]);
    let asked = stored(&rig, Who::Owner, "resp_1");
    let mut route = forwarded(rig.ask(&asked));
    for (backend, why) in [
        (0, Failure::Elsewhere),
        (1, Failure::Elsewhere),
        (2, Failure::Connect),
        (3, Failure::Elsewhere),
    ] {
        assert_eq!(route.backend, BackendId(backend));
        route = forwarded(rig.engine.reroute(route.ticket, why, rig.now));
    }
    assert_eq!(route.backend, BackendId(4), "all are asked");
    let last = rig.engine.reroute(route.ticket, Failure::Elsewhere, rig.now);
    assert_eq!(refused(last), Refusal::Unasked, "one that could not be asked may keep it");
}

#[test]
fn nobody_is_left_to_ask() {
    let mut rig = Rig::serving(1, &["m"]);
    rig.down(0);
    let asked = stored(&rig, Who::Owner, "resp_1");
    assert_eq!(refused(rig.ask(&asked)), Refusal::Starting);
    let asked = stored(&rig, Who::Backend, "resp_1");
    assert_eq!(refused(rig.ask(&asked)), down("m"));
}

fn keyed(models: &[&str]) -> Result<Probe, ProbeError> {
    Ok(Probe { keyed: Some(true), ..healthy(models) })
}

#[test]
fn behind_keys_a_backend_says_who_may_see_the_models() {
    let mut rig = Rig::serving(2, &["m"]);
    assert_eq!(answered(rig.own(Who::Models)).0, 200);
    rig.probed(1, keyed(&["m"]));
    let route = forwarded(rig.own(Who::Models));
    assert_eq!(route.backend, BackendId(1));
    let Doubt::Key(answer) = &route.doubt else { panic!("{:?}", route.doubt) };
    assert_eq!(answer.status, 200);
    rig.finish(route.ticket);
    let wrong_method = RequestMeta { who: Who::Models, allow: Some("GET"), ..request(rig.now) };
    let route = forwarded(rig.ask(&wrong_method));
    assert_eq!(route.doubt, Doubt::None, "401 or 405, as it says");
    rig.finish(route.ticket);
    rig.up(1, &["m"]);
    assert_eq!(forwarded_or_answered(rig.own(Who::Models)), "forwarded", "not asked about keys");
    rig.probed(1, Ok(Probe { keyed: Some(false), ..healthy(&["m"]) }));
    assert_eq!(forwarded_or_answered(rig.own(Who::Models)), "answered");
    assert_eq!(answered(rig.ask(&wrong_method)).0, 405);
}

#[test]
fn who_does_not_list_to_us_may_list_to_the_client() {
    let mut rig = Rig::new(Config { upstreams: 1, ..Config::default() });
    rig.discover(&[0]);
    rig.probed(0, Ok(Probe { models: None, keyed: Some(true), ..healthy(&[]) }));
    let route = forwarded(rig.own(Who::Models));
    assert_eq!(route.doubt, Doubt::None);
    rig.finish(route.ticket);
}

fn forwarded_or_answered(decision: Decision) -> &'static str {
    match decision {
        Decision::Forward(route) => {
            let _ = route.ticket.redeem();
            "forwarded"
        }
        Decision::Answer(_) => "answered",
        Decision::Gather(_)
        | Decision::Status(_)
        | Decision::Shown(_)
        | Decision::Explained(_)
        | Decision::Refuse(_)
        | Decision::Later(_)
        | Decision::Accept => "neither",
    }
}

#[test]
fn behind_keys_a_backend_with_one_judges_unknown_models() {
    let mut rig = Rig::new(Config { upstreams: 1, ..Config::default() });
    rig.discover(&[0, 0]);
    rig.up(0, &["a"]);
    rig.probed(1, keyed(&["b"]));
    rig.sleep(500);
    let route = forwarded(rig.route(Some("c")));
    assert_eq!(route.backend, BackendId(1), "the list of models is not for everyone");
    assert!(matches!(route.doubt, Doubt::Unknown(_)));
    rig.finish(route.ticket);
}

#[test]
fn unknown_names_go_to_those_that_resolve_them() {
    let config = Config { upstreams: 2, forward_unknown: vec![1], ..Config::default() };
    let mut rig = Rig::new(config);
    rig.discover(&[0, 1, 1]);
    rig.up(0, &["a"]);
    rig.up(1, &["b"]);
    rig.up(2, &["b"]);
    let mut used = Vec::new();
    for _ in 0..2 {
        let route = rig.forward("adapter");
        assert_eq!(route.doubt, Doubt::None, "its 404 is the answer");
        used.push(route);
    }
    let mut ids: Vec<_> = used.iter().map(|route| route.backend.0).collect();
    ids.sort_unstable();
    assert_eq!(ids, [1, 2]);
    used.into_iter().for_each(|route| rig.finish(route.ticket));
    let route = rig.forward("a");
    assert_eq!(route.backend, BackendId(0));
    rig.finish(route.ticket);
    rig.down(1);
    rig.down(2);
    rig.sleep(2_000);
    let decision = rig.route(Some("adapter"));
    assert!(is_later(&decision), "without a resolver it is a name like any other: {decision:?}");
}

#[test]
fn a_model_that_a_backend_lists_no_more_is_asked_of_another() {
    let mut rig = Rig::serving(2, &["m"]);
    let route = rig.forward("m");
    let first = route.backend;
    assert_eq!(route.doubt, Doubt::Unlisted);
    let route = forwarded(rig.engine.reroute(route.ticket, Failure::Unlisted, rig.now));
    assert_ne!(route.backend, first);
    assert_eq!(rig.outputs(), [Output::Probe(first)], "it says at once what it serves now");
    assert_eq!(rig.state(first.0), State::Up);
    let last = rig.engine.reroute(route.ticket, Failure::Unlisted, rig.now);
    assert_eq!(refused(last), Refusal::NoAnswer);
}

#[test]
fn of_cards_that_disagree_the_first_counts_with_the_shortest_context() {
    let mut rig = Rig::serving(3, &["m"]);
    let card = |root: &str, length: u64| {
        let raw = format!(r#"{{"id":"m","root":"{root}","max_model_len":{length}}}"#);
        let (id, root) = ("m".to_string(), Some(root.to_string()));
        ModelCard { id, root, max_model_len: Some(length), raw, ..ModelCard::default() }
    };
    for (id, root, length) in [(0, "x", 4096), (1, "x", 1024), (2, "y", 2048)] {
        let models = Some(vec![card(root, length)]);
        rig.probed(id, Ok(Probe { models, ..healthy(&[]) }));
    }
    let expected =
        r#"{"object":"list","data":[{"id":"m","root":"x","max_model_len":1024}]}"#.to_string();
    assert_eq!(answered(rig.own(Who::Models)), (200, expected));
    rig.down(1);
    assert!(answered(rig.own(Who::Models)).1.contains(r#""max_model_len":2048"#));
}
