//! What is answered while little is known, and what the proxy answers by itself.

use super::*;

fn fleet_of(upstreams: &[u16]) -> Rig {
    let count = upstreams.iter().max().map_or(0, |max| max + 1);
    let mut rig = Rig::new(Config { upstreams: count, ..Config::default() });
    rig.discover(upstreams);
    rig
}

#[test]
fn requests_wait_for_the_first_round_in_steps_of_20_ms() {
    let mut rig = fleet_of(&[0, 1]);
    let asked = RequestMeta { model: Some("m"), ..request(rig.now) };
    let Decision::Later(at) = rig.ask(&asked) else { panic!("it must wait") };
    assert_eq!(at, rig.now + Duration::from_millis(20));
    rig.sleep(1_999);
    assert!(is_later(&rig.ask(&asked)));
    rig.sleep(1);
    assert_eq!(refused(rig.ask(&asked)), Refusal::Starting);
    // Each request has 2 s of its own.
    assert!(is_later(&rig.route(Some("m"))));
}

#[test]
fn requests_wait_before_anything_was_discovered() {
    let mut rig = Rig::new(Config { upstreams: 1, ..Config::default() });
    let asked = request(rig.now);
    assert!(is_later(&rig.ask(&asked)));
    rig.sleep(2_000);
    assert_eq!(refused(rig.ask(&asked)), Refusal::Starting);
}

#[test]
fn who_can_be_served_does_not_wait() {
    let mut rig = fleet_of(&[0, 1]);
    rig.up(1, &["b"]);
    let route = rig.forward("b");
    rig.finish(route.ticket);
    assert!(is_later(&rig.route(Some("a"))), "its backend may be the one not heard yet");
    assert!(is_later(&rig.route(None)), "the first upstream's model is not known yet");
    rig.up(0, &["a"]);
    for model in [Some("a"), None, Some("")] {
        let route = forwarded(rig.route(model));
        assert_eq!(route.backend, BackendId(0));
        rig.finish(route.ticket);
    }
}

#[test]
fn a_first_round_of_nobody_is_over() {
    let mut rig = fleet_of(&[]);
    rig.engine.config.upstreams = 1;
    assert_eq!(refused(rig.route(Some("m"))), Refusal::Starting);
    assert_eq!(answered(rig.own(Who::Health)).0, 503);
}

#[test]
fn who_joins_the_first_round_is_waited_for() {
    let mut rig = fleet_of(&[0]);
    rig.discover(&[0, 0]);
    rig.up(0, &["m"]);
    assert!(is_later(&rig.route(Some("other"))));
    rig.up(1, &["other"]);
    let route = rig.forward("other");
    rig.finish(route.ticket);
}

#[test]
fn who_leaves_the_first_round_is_not_waited_for() {
    let mut rig = fleet_of(&[0, 0]);
    rig.up(0, &["m"]);
    assert!(is_later(&rig.own(Who::Models)));
    rig.discover(&[0]);
    assert_eq!(answered(rig.own(Who::Models)).0, 200);
}

#[test]
fn no_name_is_unknown_while_an_upstream_never_listed() {
    let mut rig = fleet_of(&[0, 1]);
    rig.up(0, &["a"]);
    rig.probed(1, Err(ProbeError::Connect));
    assert_eq!(refused(rig.route(Some("b"))), Refusal::Starting);
    // Up, but its list is not to be had: a key is demanded, for one.
    rig.probed(1, Ok(Probe { health: 200, ..Probe::default() }));
    assert_eq!(refused(rig.route(Some("b"))), Refusal::Starting);
    rig.up(1, &["c"]);
    let decision = rig.route(Some("b"));
    rig.unknown(decision, "b", &["a", "c"]);
    // Once is enough: what it served is remembered while it is down.
    rig.down(1);
    let decision = rig.route(Some("b"));
    rig.unknown(decision, "b", &["a"]);
    assert_eq!(refused(rig.route(Some("c"))), down("c"));
}

#[test]
fn who_knows_no_model_is_not_healthy() {
    let mut rig = fleet_of(&[0]);
    // Up, and all that it would be sent is refused.
    rig.probed(0, Ok(Probe { health: 200, keyed: Some(true), ..Probe::default() }));
    assert_eq!(refused(rig.route(Some("m"))), Refusal::Starting);
    assert_eq!(answered(rig.own(Who::Health)).0, 503);
    rig.up(0, &["m"]);
    assert_eq!(answered(rig.own(Who::Health)).0, 200);
    // What it served is remembered.
    rig.probed(0, Ok(Probe { health: 200, keyed: Some(true), ..Probe::default() }));
    assert_eq!(answered(rig.own(Who::Health)).0, 200);
}

#[test]
fn one_address_of_two_upstreams_lists_for_both() {
    let mut rig = Rig::new(Config { upstreams: 2, ..Config::default() });
    let asked = rig.handle(Input::Discovered(&[spec(0, 1), spec(1, 1)]));
    assert_eq!(asked, [Output::Probe(BackendId(0))]);
    rig.up(0, &["a"]);
    let decision = rig.route(Some("b"));
    rig.unknown(decision, "b", &["a"]);
}

#[test]
fn the_lists_are_refreshed_before_a_name_is_unknown() {
    let mut rig = Rig::serving(2, &["m"]);
    rig.sleep(1_500);
    let first = RequestMeta { model: Some("lora"), ..request(rig.now) };
    assert!(is_later(&rig.ask(&first)));
    assert_eq!(rig.outputs(), [Output::Probe(BackendId(0)), Output::Probe(BackendId(1))]);
    rig.up(0, &["m"]);
    rig.sleep(20);
    // One who comes in the round shares it.
    assert!(is_later(&rig.route(Some("wrong"))));
    assert_eq!(rig.outputs(), []);
    rig.up(1, &["m", "lora<m"]);
    let route = forwarded(rig.ask(&first));
    assert_eq!(route.backend, BackendId(1));
    rig.finish(route.ticket);
    let decision = rig.route(Some("wrong"));
    rig.unknown(decision, "wrong", &["m"]);
    // A round is fresh for a second.
    rig.sleep(999);
    let decision = rig.route(Some("wrong"));
    rig.unknown(decision, "wrong", &["m"]);
    assert_eq!(rig.outputs(), []);
    rig.sleep(1);
    assert!(is_later(&rig.route(Some("wrong"))));
    assert_eq!(rig.outputs().len(), 2);
}

#[test]
fn a_probe_sent_before_the_refresh_does_not_count() {
    let mut rig = Rig::serving(1, &["m"]);
    rig.sleep(10_000);
    assert_eq!(rig.handle(Input::Timeout), [Output::Probe(BackendId(0))]);
    assert!(is_later(&rig.route(Some("lora"))));
    assert_eq!(rig.outputs(), [], "never two probes of one backend");
    assert_eq!(rig.up(0, &["m"]), [Output::Probe(BackendId(0))]);
    assert!(is_later(&rig.route(Some("lora"))));
    rig.up(0, &["m", "lora<m"]);
    let route = rig.forward("lora");
    rig.finish(route.ticket);
}

#[test]
fn a_refresh_is_waited_for_2_s_at_most() {
    let mut rig = Rig::serving(1, &["m"]);
    rig.sleep(5_000);
    let asked = RequestMeta { model: Some("x"), ..request(rig.now) };
    assert!(is_later(&rig.ask(&asked)));
    rig.sleep(2_000);
    let decision = rig.ask(&asked);
    rig.unknown(decision, "x", &["m"]);
}

#[test]
fn a_refresh_does_not_ask_who_is_down() {
    let mut rig = Rig::serving(2, &["m"]);
    rig.down(1);
    rig.sleep(1_500);
    assert!(is_later(&rig.route(Some("x"))));
    // Backend 1 is probed for its own sake.
    rig.up(0, &["m"]);
    let decision = rig.route(Some("x"));
    rig.unknown(decision, "x", &["m"]);
}

#[test]
fn nothing_is_unknown_while_nobody_is_up() {
    let mut rig = Rig::serving(1, &["m"]);
    rig.down(0);
    assert_eq!(refused(rig.route(Some("x"))), Refusal::Starting);
    assert_eq!(refused(rig.route(Some("m"))), down("m"));
}

#[test]
fn an_adapter_that_was_unloaded_is_unknown() {
    let mut rig = Rig::serving(1, &["m", "lora<m"]);
    rig.up(0, &["m"]);
    let decision = rig.route(Some("lora"));
    rig.unknown(decision, "lora", &["m"]);
}

#[test]
fn adapters_are_no_valid_aliases() {
    let mut rig = fleet_of(&[0, 1]);
    rig.up(0, &["a", "lora<a"]);
    rig.up(1, &["b", "a"]);
    let decision = rig.route(Some("x"));
    rig.unknown(decision, "x", &["a", "b"]);
}

#[test]
fn the_operators_default_comes_first() {
    let default_model = Some("b".to_string());
    let mut rig = Rig::new(Config { default_model, upstreams: 2, ..Config::default() });
    rig.discover(&[0, 1]);
    rig.up(0, &["a"]);
    assert!(is_later(&rig.route(None)));
    rig.up(1, &["b"]);
    let route = forwarded(rig.route(None));
    assert_eq!(route.backend, BackendId(1));
    rig.finish(route.ticket);
    rig.down(1);
    assert_eq!(refused(rig.route(None)), down("b"));
}

#[test]
fn the_default_model_does_not_flap() {
    let mut rig = fleet_of(&[0, 0, 1]);
    rig.probed(0, Err(ProbeError::Connect));
    rig.probed(1, Err(ProbeError::Connect));
    assert!(is_later(&rig.route(None)), "the round runs");
    rig.up(2, &["c"]);
    let default = |rig: &Rig| rig.engine.fleet.default_model().map(|name| name.to_string());
    assert_eq!(default(&rig).as_deref(), Some("c"), "the only one known");
    rig.up(1, &["b"]);
    assert_eq!(default(&rig).as_deref(), Some("b"), "an earlier upstream");
    rig.up(0, &["a", "b"]);
    assert_eq!(default(&rig).as_deref(), Some("a"), "an earlier backend");
    rig.up(1, &["b"]);
    rig.down(0);
    rig.up(1, &["b"]);
    assert_eq!(refused(rig.route(None)), down("a"));
    rig.up(0, &["a2"]);
    assert_eq!(default(&rig).as_deref(), Some("a2"), "it serves another model now");
}

#[test]
fn when_the_first_backend_left_its_upstream_decides() {
    let mut rig = fleet_of(&[0, 0, 1]);
    for (id, model) in [(0, "a"), (1, "b"), (2, "c")] {
        rig.up(id, &[model]);
    }
    let specs = [spec(0, 1), spec(1, 2)];
    rig.handle(Input::Discovered(&specs));
    rig.up(2, &["c"]);
    assert_eq!(refused(rig.route(None)), down("a"), "a later upstream does not take over");
    rig.up(1, &["b"]);
    let route = forwarded(rig.route(None));
    assert_eq!(route.backend, BackendId(1));
    rig.finish(route.ticket);
}

#[test]
fn nothing_to_default_to() {
    let mut rig = Rig::serving(1, &[]);
    assert_eq!(refused(rig.route(None)), Refusal::Starting);
}

#[test]
fn health_is_that_of_the_best_backend() {
    let mut rig = fleet_of(&[0, 0]);
    let asked = RequestMeta { who: Who::Health, ..request(rig.now) };
    assert!(is_later(&rig.ask(&asked)));
    rig.probed(0, Err(ProbeError::Connect));
    assert!(is_later(&rig.ask(&asked)));
    rig.up(1, &["m"]);
    assert_eq!(answered(rig.ask(&asked)), (200, String::new()));
    rig.suspect(1);
    assert_eq!(answered(rig.ask(&asked)).0, 200);
    rig.down(1);
    assert_eq!(answered(rig.ask(&asked)), (503, String::new()));
    rig.up(1, &["m"]);
    rig.handle(Input::Drain);
    assert_eq!(answered(rig.ask(&asked)), (503, String::new()));
    let route = rig.forward("m");
    rig.finish(route.ticket);
}

#[test]
fn models_are_merged_in_a_stable_order() {
    let mut rig = fleet_of(&[1, 0, 0]);
    rig.up(0, &["c", "c-lora<c", "a"]);
    rig.up(1, &["a", "a-lora<a"]);
    assert!(is_later(&rig.own(Who::Models)), "a list that is not complete is not given");
    rig.up(2, &["b", "a-lora<b", "b-lora<b"]);
    let list = |names: &[&str]| {
        let names: Vec<_> = names.iter().map(|name| format!(r#"{{"id":"{name}"}}"#)).collect();
        (200, format!(r#"{{"object":"list","data":[{}]}}"#, names.join(",")))
    };
    let all = ["a", "b", "c", "a-lora", "b-lora", "c-lora"];
    assert_eq!(answered(rig.own(Who::Models)), list(&all));
    rig.suspect(0);
    assert_eq!(answered(rig.own(Who::Models)), list(&all));
    rig.down(1);
    assert_eq!(
        answered(rig.own(Who::Models)),
        list(&["b", "c", "a", "a-lora", "b-lora", "c-lora"])
    );
    rig.down(0);
    rig.down(2);
    assert_eq!(refused(rig.own(Who::Models)), Refusal::Starting);
}

#[test]
fn the_first_card_of_a_name_is_kept_as_it_is() {
    let mut rig = fleet_of(&[0, 0]);
    for (id, len) in [(0, 4_096), (1, 2_048)] {
        let raw = format!(r#"{{"id":"m","max_model_len":{len},"x":1.0}}"#);
        let models = Some(vec![ModelCard { id: "m".to_string(), raw, ..ModelCard::default() }]);
        rig.probed(id, Ok(Probe { health: 200, models, ..Probe::default() }));
    }
    let expected = r#"{"object":"list","data":[{"id":"m","max_model_len":4096,"x":1.0}]}"#;
    assert_eq!(answered(rig.own(Who::Models)).1, expected);
}

#[test]
fn a_probe_without_models_leaves_the_former_list() {
    let mut rig = Rig::serving(1, &["m"]);
    rig.down(0);
    rig.probed(0, Ok(Probe { health: 200, ..Probe::default() }));
    let route = rig.forward("m");
    rig.finish(route.ticket);
}

#[test]
fn the_version_is_the_lowest() {
    let mut rig = fleet_of(&[0, 0, 0]);
    assert!(is_later(&rig.own(Who::Version)));
    for (id, version) in [(0, "0.33.0"), (1, "0.9.2"), (2, "0.10.0")] {
        let version = Some(version.to_string());
        rig.probed(id, Ok(Probe { version, ..healthy(&["m"]) }));
    }
    assert_eq!(answered(rig.own(Who::Version)), (200, r#"{"version":"0.9.2"}"#.to_string()));
    rig.up(1, &["m"]);
    assert_eq!(answered(rig.own(Who::Version)).1, r#"{"version":"0.9.2"}"#, "not asked again");
    rig.down(1);
    assert_eq!(answered(rig.own(Who::Version)).1, r#"{"version":"0.10.0"}"#);
    rig.up(1, &["m"]);
    assert_eq!(answered(rig.own(Who::Version)).1, r#"{"version":"0.10.0"}"#, "another process");
    rig.down(0);
    rig.down(2);
    assert_eq!(refused(rig.own(Who::Version)), Refusal::Starting);
}
