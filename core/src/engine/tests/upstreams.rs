//! What becomes of numbers, and of all that hangs on them, when the operator names other upstreams.

use super::*;
use crate::fleet::Upstream;

/// Upstreams by their former numbers.
fn were(former: &[Option<u16>]) -> Vec<Upstream> {
    former.iter().map(|&was| Upstream { was, forwards_unknown: false }).collect()
}

/// Upstreams 0, 1 and 2 with a backend each, which list `a`, `b` and `c`.
fn three() -> Rig {
    let mut rig = Rig::new(Config { upstreams: 3, ..Config::default() });
    rig.discover(&[0, 1, 2]);
    for (id, model) in [(0, "a"), (1, "b"), (2, "c")] {
        rig.up(id, &[model]);
    }
    rig
}

fn renumber(rig: &mut Rig, upstreams: &[Upstream], backends: &[BackendSpec]) -> Vec<Output> {
    rig.handle(Input::Upstreams { upstreams, backends })
}

fn default(rig: &Rig) -> Option<String> {
    rig.engine.fleet.default_model().map(|name| name.to_string())
}

#[test]
fn who_stays_is_the_same_backend_under_another_number() {
    let mut rig = three();
    let held = rig.forward("c");
    let outputs = renumber(&mut rig, &were(&[Some(2), Some(0)]), &[spec(0, 2), spec(1, 0)]);
    assert_eq!(outputs, [Output::Forget(BackendId(1))]);
    assert_eq!(rig.engine.spec(BackendId(2)).map(|spec| spec.upstream), Some(0));
    assert_eq!(refused(rig.route(Some("b"))), down("b"));
    let again = rig.forward("c");
    assert_eq!(again.backend, held.backend);
    rig.finish(held.ticket);
    rig.finish(again.ticket);
}

#[rstest]
#[case::all_of_them_listed(&[Some(0), Some(1)], &[(0, 0), (1, 1)], true)]
#[case::others_moved_up(&[Some(1), Some(2)], &[(0, 1), (1, 2)], true)]
#[case::a_new_one_did_not(&[Some(0), Some(1), Some(2), None], &[(0, 0), (1, 1), (2, 2), (3, 3)], false)]
#[case::nor_one_that_nothing_resolves_to(&[Some(0), None], &[(0, 0)], false)]
// It took the number of one that had listed its models.
#[case::a_new_one_in_place_of_another(&[Some(0), None, Some(2)], &[(0, 0), (1, 3), (2, 2)], false)]
#[case::a_new_one_of_a_known_address(&[Some(0), None], &[(0, 0), (1, 1)], true)]
#[case::one_whose_backends_left(&[Some(1), Some(0)], &[(1, 0)], true)]
fn a_name_is_unknown_when_every_upstream_of_the_new_list_has_listed(
    #[case] former: &[Option<u16>],
    #[case] backends: &[(u16, u16)],
    #[case] known: bool,
) {
    let mut rig = three();
    let specs: Vec<_> = backends.iter().map(|&(at, port)| spec(at, port)).collect();
    renumber(&mut rig, &were(former), &specs);
    let decision = rig.route(Some("x"));
    if known {
        let route = forwarded(decision);
        rig.finish(route.ticket);
    } else {
        assert_eq!(refused(decision), Refusal::Starting);
    }
}

#[test]
fn nothing_is_unknown_of_no_upstream() {
    let mut rig = three();
    let gone = [0, 1, 2].map(|id| Output::Forget(BackendId(id)));
    assert_eq!(renumber(&mut rig, &[], &[]), gone);
    assert_eq!(refused(rig.route(Some("x"))), Refusal::Starting);
    assert_eq!(refused(rig.route(Some("a"))), down("a"), "it may come back");
    assert_eq!(refused(rig.route(None)), Refusal::Starting);
    // Back again, as a new one.
    let outputs = renumber(&mut rig, &were(&[None]), &[spec(0, 1)]);
    assert_eq!(outputs, [Output::Probe(BackendId(3))]);
    rig.up(3, &["b"]);
    assert_eq!(default(&rig).as_deref(), Some("b"));
}

#[rstest]
#[case::the_first_went(&[Some(1), Some(2)], &[(0, 1), (1, 2)], Some("b"))]
#[case::another_came_first(&[Some(2), Some(0)], &[(0, 2), (1, 0)], Some("c"))]
#[case::a_later_one_went(&[Some(0), Some(2)], &[(0, 0), (1, 2)], Some("a"))]
// It has not said yet what it serves.
#[case::a_new_one_came_first(&[None, Some(0)], &[(0, 3), (1, 0)], Some("a"))]
// Its upstream is still there, and may get others.
#[case::its_backend_left(&[Some(1), Some(0)], &[(1, 0)], Some("a"))]
#[case::its_backend_left_and_it_stays_first(&[Some(0), Some(1)], &[(1, 1)], Some("a"))]
#[case::all_went(&[], &[], None)]
fn the_default_model_is_the_first_one_of_the_new_list(
    #[case] former: &[Option<u16>],
    #[case] backends: &[(u16, u16)],
    #[case] expected: Option<&str>,
) {
    let mut rig = three();
    let specs: Vec<_> = backends.iter().map(|&(at, port)| spec(at, port)).collect();
    renumber(&mut rig, &were(former), &specs);
    assert_eq!(default(&rig).as_deref(), expected);
}

#[test]
fn a_new_first_upstream_decides_once_it_has_listed() {
    let mut rig = three();
    renumber(&mut rig, &were(&[None, Some(0)]), &[spec(0, 3), spec(1, 0)]);
    rig.up(0, &["a"]);
    assert_eq!(default(&rig).as_deref(), Some("a"));
    rig.up(3, &["d"]);
    assert_eq!(default(&rig).as_deref(), Some("d"));
    rig.up(0, &["a"]);
    assert_eq!(default(&rig).as_deref(), Some("d"));
}

#[test]
fn unknown_names_go_to_those_that_the_new_list_names() {
    let mut rig = three();
    rig.engine.config.forward_unknown = vec![0];
    let to = |rig: &mut Rig| {
        let route = forwarded(rig.route(Some("x")));
        let backend = route.backend.0;
        rig.finish(route.ticket);
        backend
    };
    assert_eq!(to(&mut rig), 0);
    // The same one by another number, and with a second one.
    let mut upstreams = were(&[Some(1), Some(0)]);
    upstreams[1].forwards_unknown = true;
    renumber(&mut rig, &upstreams, &[spec(0, 1), spec(1, 0)]);
    assert_eq!(to(&mut rig), 0);
    upstreams = were(&[Some(0), Some(1)]);
    upstreams[0].forwards_unknown = true;
    renumber(&mut rig, &upstreams, &[spec(0, 1), spec(1, 0)]);
    assert_eq!(to(&mut rig), 1);
    renumber(&mut rig, &were(&[Some(0), Some(1)]), &[spec(0, 1), spec(1, 0)]);
    let decision = rig.route(Some("x"));
    rig.unknown(decision, "x", &["b", "a"]);
}

#[test]
fn who_joins_before_the_first_round_ends_is_waited_for() {
    let mut rig = Rig::new(Config { upstreams: 1, ..Config::default() });
    rig.discover(&[0]);
    renumber(&mut rig, &were(&[Some(0), None]), &[spec(0, 0), spec(1, 1)]);
    rig.up(0, &["a"]);
    assert!(is_later(&rig.route(Some("b"))));
    rig.up(1, &["b"]);
    let route = rig.forward("b");
    rig.finish(route.ticket);
}
