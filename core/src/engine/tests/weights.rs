//! Backends that are to get more of the work than others.

use super::*;

/// Backends of these weights, up and listing `m` and, but for the last one, `n`.
fn weighing(policy: Policy, weights: &[u16]) -> Rig {
    let mut rig = Rig::new(Config { policy, upstreams: 1, ..Config::default() });
    label(&mut rig, weights);
    for id in 0..weights.len() as u32 {
        let models: &[_] = if id as usize + 1 < weights.len() { &["m", "n"] } else { &["m"] };
        rig.up(id, models);
    }
    rig
}

fn label(rig: &mut Rig, weights: &[u16]) {
    let specs: Vec<_> = (0..)
        .zip(weights)
        .map(|(port, &weight)| {
            let labels = Labels { weight, ..Labels::default() };
            BackendSpec { labels, ..spec(0, port) }
        })
        .collect();
    rig.handle(Input::Discovered(&specs));
}

/// How many of so many requests in hand at once each backend has.
fn shares(rig: &mut Rig, requests: usize, backends: usize) -> Vec<usize> {
    let held: Vec<_> = (0..requests).map(|_| rig.forward("m")).collect();
    let mut counts = vec![0; backends];
    held.iter().for_each(|route| counts[route.backend.0 as usize] += 1);
    held.into_iter().for_each(|route| rig.finish(route.ticket));
    counts
}

#[rstest]
#[case::alike(&[100, 100, 100], &[12, 12, 12])]
#[case::alike_and_light(&[7, 7, 7], &[12, 12, 12])]
#[case::one_of_twice_the_weight(&[200, 100, 100], &[18, 9, 9])]
#[case::one_of_half_the_weight(&[100, 100, 50], &[14, 14, 8])]
fn work_in_hand_goes_by_weight(
    #[values(Policy::LeastLoad, Policy::CacheAware)] policy: Policy,
    #[case] weights: &[u16],
    #[case] expected: &[usize],
) {
    let counts = shares(&mut weighing(policy, weights), 36, 3);
    for (count, expected) in counts.iter().zip(expected) {
        assert!(count.abs_diff(*expected) <= 1, "{counts:?}");
    }
}

#[rstest]
#[case::alike(&[50, 50, 50], &[12, 12, 12])]
#[case::different(&[200, 100, 100], &[18, 9, 9])]
fn turns_go_by_weight(#[case] weights: &[u16], #[case] expected: &[usize]) {
    let mut rig = weighing(Policy::RoundRobin, weights);
    assert_eq!(shares(&mut rig, 36, 3), expected);
}

#[test]
fn each_model_has_its_turns_by_weight() {
    let mut rig = weighing(Policy::RoundRobin, &[100, 100, 300]);
    let mut chosen = |model| {
        let route = rig.forward(model);
        rig.finish(route.ticket);
        route.backend.0
    };
    // Those of `n` weigh alike, whatever others do.
    let order: Vec<_> = (0..6).map(|_| chosen("n")).collect();
    assert_eq!(order, [0, 1, 0, 1, 0, 1]);
    let heavy = (0..10).filter(|_| chosen("m") == 2).count();
    assert_eq!(heavy, 6);
}

#[test]
fn a_weight_may_change() {
    let mut rig = weighing(Policy::RoundRobin, &[100, 100]);
    assert_eq!(shares(&mut rig, 12, 2), [6, 6]);
    label(&mut rig, &[300, 100]);
    assert_eq!(rig.engine.spec(BackendId(0)).map(|spec| spec.labels.weight), Some(300));
    assert_eq!(shares(&mut rig, 12, 2), [9, 3]);
    label(&mut rig, &[100, 100]);
    assert_eq!(shares(&mut rig, 12, 2), [6, 6]);
}
