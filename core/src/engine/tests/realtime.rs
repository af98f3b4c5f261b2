//! Websockets that name their model when they are open: who accepts them, who takes them.

use super::*;

/// Backends of one upstream that are up, each with its models: `a b|c` are two.
fn rig(listed: &str) -> Rig {
    let mut rig = Rig::new(Config { upstreams: 1, ..Config::default() });
    rig.discover(&vec![0; listed.split('|').count()]);
    for (id, models) in (0..).zip(listed.split('|')) {
        rig.up(id, &models.split(' ').collect::<Vec<_>>());
    }
    rig
}

fn named(rig: &mut Rig, model: &str) -> Decision {
    let who = Who::Realtime;
    let request = RequestMeta { who, model: Some(model), ..request(rig.now) };
    rig.ask(&request)
}

#[rstest]
#[case::one("a")]
#[case::same("a b|a b")]
#[case::other_order("a b|b a")]
#[case::other_adapters("a x<a|a y<a")]
fn who_serves_the_same_takes_it_nameless(#[case] listed: &str) {
    let mut rig = rig(listed);
    let route = forwarded(rig.own(Who::Realtime));
    rig.finish(route.ticket);
}

#[rstest]
#[case::different("a|b")]
#[case::more("a|a b")]
fn where_it_matters_the_proxy_accepts(#[case] listed: &str) {
    let mut rig = rig(listed);
    assert!(matches!(rig.own(Who::Realtime), Decision::Accept));
    let route = forwarded(named(&mut rig, "b"));
    assert_eq!(route.backend, BackendId(1));
    rig.finish(route.ticket);
    // An empty name is the default model's.
    let route = forwarded(named(&mut rig, ""));
    rig.finish(route.ticket);
}

#[test]
fn who_is_down_does_not_count() {
    let mut rig = rig("a|b");
    rig.down(0);
    let route = forwarded(named(&mut rig, "b"));
    rig.finish(route.ticket);
    assert_eq!(refused(named(&mut rig, "a")), down("a"));
}

#[test]
fn nobody_judges_an_unknown_name() {
    let mut rig = rig("a|b");
    let models = vec!["a".to_string(), "b".to_string()];
    let expected = Refusal::UnknownModel { model: "x".to_string(), bases: models };
    assert_eq!(refused(named(&mut rig, "x")), expected);
}

#[test]
fn it_waits_for_the_first_round() {
    let mut rig = Rig::new(Config { upstreams: 1, ..Config::default() });
    rig.discover(&[0, 0]);
    rig.up(0, &["a"]);
    assert!(is_later(&rig.own(Who::Realtime)));
    rig.up(1, &["b"]);
    assert!(matches!(rig.own(Who::Realtime), Decision::Accept));
    let mut rig = Rig::new(Config { upstreams: 1, ..Config::default() });
    rig.discover(&[0]);
    rig.down(0);
    assert_eq!(refused(rig.own(Who::Realtime)), Refusal::Starting);
}
