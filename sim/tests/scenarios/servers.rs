//! Servers that end, leave, come back, forget, stall, are slow, small or not to be believed.

use crate::scene::{FEWEST, OURS, Scene, p90, within};
use rstest::rstest;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;
use vllm_proxy_core::config::Policy;
use vllm_proxy_core::time::Instant;
use vllm_proxy_sim::policies::{Proxy, Sent, Told};
use vllm_proxy_sim::trace::Kind;
use vllm_proxy_sim::world::{Change, Clients, Fate, Fault, Tells};

fn calm() -> Scene {
    Scene::new(Kind::Tool, 3.0)
}

#[test]
fn one_fails_and_returns_cold() {
    let scene = calm().fault(50, 0, Change::Down).fault(70, 0, Change::Up);
    within(scene.against_scene(&calm()), [0.9, 1.3]);
}

#[test]
fn who_waits_at_one_that_fails_is_answered_by_another() {
    let scene = Scene::new(Kind::Conversation, 1.5).fault(50, 0, Change::Down);
    let scene = scene.clients(Clients { streaming: 0.2, ..Clients::default() });
    let outcome = scene.outcome(OURS);
    let lost = outcome.records.iter().filter(|one| one.fate != Fate::Done);
    assert!(lost.clone().all(|one| one.fate == Fate::Broken && one.first.is_some()));
    let again = outcome.records.iter().filter(|one| one.attempts > 1).count();
    let lost = lost.count();
    assert!((1..30).contains(&lost) && again > 0, "{lost} were lost, {again} tried again");
}

#[test]
fn one_joins_cold() {
    let scene = calm().fault(0, 7, Change::Leave).fault(50, 7, Change::Join);
    within(scene.against_scene(&calm()), [0.9, 1.35]);
}

#[test]
fn one_is_drained() {
    let scene = calm().fault(50, 3, Change::Leave);
    let outcome = scene.outcome(OURS);
    // What it had in hand it answers, and nothing is tried twice.
    assert!(outcome.records.iter().all(|one| one.fate == Fate::Done && one.attempts == 1));
    let left = Instant::START + scene.workload.span() / 2;
    let late = outcome.records.iter().filter(|one| one.at > left);
    assert!(late.clone().all(|one| one.server != Some(3)));
    within(p90(late) / calm().p90(OURS), [0.65, 1.1]);
}

#[rstest]
#[case::it_ends(Change::Down, Change::Up, [0.9, 1.35], 200)]
#[case::its_name_goes(Change::Leave, Change::Join, [0.9, 1.35], 0)]
fn one_flaps_every_five_seconds(
    #[case] away: Change,
    #[case] back: Change,
    #[case] band: [f64; 2],
    #[case] lost_max: usize,
) {
    let mut scene = calm();
    let times = scene.workload.span().as_secs() / 5;
    for (at, change) in (1..times).zip([away, back].into_iter().cycle()) {
        scene.faults.push(Fault { at: Instant::from_millis(at * 5_000), server: 2, change });
    }
    let run = scene.run(OURS);
    assert!(run.lost <= lost_max && run.done + run.lost == run.requests, "{run:?}");
    within(scene.against_scene(&calm()), band);
}

/// Its process was replaced by another one at the same address, so quickly that no probe saw it:
/// what it is believed to hold is unlearned from what its answers say.
#[test]
fn one_is_restarted_unseen_and_unlearned_within_fifty_requests() {
    let scene = calm().fault(50, 0, Change::Forget);
    let told = Rc::new(RefCell::new(Told::default()));
    let proxy = Proxy::new(Policy::CacheAware, 1).telling(Rc::clone(&told));
    let outcome = scene.play(Box::new(proxy));
    let restart = Instant::START + scene.workload.span() / 2;
    let told = told.borrow();
    let there = told.sent.iter().filter(|sent| {
        sent.server == 0 && outcome.records[sent.id as usize].at > restart && sent.promised > 0
    });
    let there: Vec<_> = there.collect();
    let kept = |sent: &[&Sent]| {
        let cached = |sent: &&Sent| outcome.records[sent.id as usize].usage.cached;
        let cached = |sent| f64::from(cached(sent)).min(sent.promised as f64);
        let promised: u64 = sent.iter().map(|sent| sent.promised).sum();
        sent.iter().map(cached).sum::<f64>() / promised as f64
    };
    within(kept(&there[..10]), [0.0, 0.8]);
    within(kept(&there[50..100]), [0.93, 1.0]);
    within(
        p90(&outcome.records[1_700..]) / p90(&calm().outcome(OURS).records[1_700..]),
        [0.9, 1.2],
    );
}

#[test]
fn half_of_the_servers_lose_their_caches() {
    let scene = (0..4).fold(calm(), |scene, server| scene.fault(50, server, Change::Forget));
    within(scene.against_scene(&calm()), [0.95, 1.5]);
}

#[test]
fn one_stalls_for_ten_seconds() {
    let scene = calm().fault(50, 3, Change::Stall(Duration::from_secs(10)));
    within(scene.against(FEWEST), [0.05, 0.1]);
    within(scene.against_scene(&calm()), [0.9, 1.25]);
}

#[rstest]
#[case::nothing_repeats(Kind::Unique, 0.9, [0.55, 0.9])]
#[case::conversation(Kind::Conversation, 1.1, [0.3, 0.5])]
#[case::tool(Kind::Tool, 3.0, [0.01, 0.02])]
fn half_of_the_servers_are_half_as_fast(
    #[case] kind: Kind,
    #[case] rate: f64,
    #[case] band: [f64; 2],
) {
    let scene = Scene::new(kind, rate).first(4, |server| server.gpu = server.gpu.at_speed(50));
    within(scene.against(FEWEST), band);
}

#[rstest]
#[case::conversation(Kind::Conversation, 1.2, [0.7, 1.05])]
#[case::the_same_prefixes_again_and_again(Kind::Tool, 1.0, [0.5, 0.9])]
fn no_server_looks_for_prefixes(#[case] kind: Kind, #[case] rate: f64, #[case] band: [f64; 2]) {
    let scene = Scene::new(kind, rate).all(|server| server.prefix_caching = false);
    let run = scene.run(OURS);
    assert_eq!(run.hit, 0.0);
    within(scene.against(FEWEST), band);
    // Nobody is sent more than his share for what he does not hold.
    within(run.busy_max_of_mean, [1.0, 1.15]);
}

/// Where no answer says what was cached the configuration in the metrics may: look-ups are not
/// counted then.
#[rstest]
#[case::said_by_metrics(true, [0.5, 0.9])]
#[case::nobody_can_tell(false, [1.0, 1.6])]
fn no_server_looks_for_prefixes_and_no_answer_says_so(
    #[case] metrics: bool,
    #[case] band: [f64; 2],
) {
    let mut scene = Scene::new(Kind::Tool, 1.0).tells(Tells::Nothing);
    scene.manners.iter_mut().for_each(|manner| manner.counts = metrics);
    let scene = scene.all(|server| server.prefix_caching = false);
    within(scene.against(FEWEST), band);
}

/// Caches are far smaller than is believed, and no answer says so: the counters of metrics may.
#[rstest]
#[case::told(Tells::Truth, false, [0.04, 0.1])]
#[case::counted(Tells::Nothing, true, [0.04, 0.1])]
#[case::neither(Tells::Nothing, false, [0.04, 0.1])]
fn caches_are_small(#[case] tells: Tells, #[case] counts: bool, #[case] band: [f64; 2]) {
    let mut scene = Scene::new(Kind::Tool, 1.5).tells(tells);
    scene.manners.iter_mut().for_each(|manner| manner.counts = counts);
    within(scene.all(|server| server.kv_tokens = 50_000).against(FEWEST), band);
}

/// The cache is a quarter of what is believed, or four times that.
#[rstest]
#[case::a_quarter(100_000, [0.55, 0.95], [1.3, 2.2])]
#[case::four_times(1_600_000, [0.35, 0.6], [0.85, 1.15])]
fn caches_are_not_what_is_believed(
    #[case] kv_tokens: u64,
    #[case] against_fewest: [f64; 2],
    #[case] of_calm: [f64; 2],
) {
    let calm = Scene::new(Kind::Conversation, 1.5);
    let scene = calm.clone().all(|server| server.kv_tokens = kv_tokens);
    within(scene.against(FEWEST), against_fewest);
    within(scene.against_scene(&calm), of_calm);
}

/// What is said may be of no use; it must not make things worse than knowing nothing.
#[rstest]
#[case::nothing(Tells::Nothing, [0.06, 0.1])]
#[case::not_what_was_cached(Tells::NotWhatWasCached, [0.06, 0.1])]
#[case::zeros(Tells::Zeros, [0.05, 0.1])]
#[case::the_most_there_is(Tells::Most, [0.1, 0.8])]
#[case::more_cached_than_there_is(Tells::MoreCachedThanPrompt, [0.06, 0.1])]
#[case::none_cached(Tells::NoneCached, [0.1, 0.6])]
#[case::noise(Tells::Noise, [0.1, 0.8])]
fn answers_do_not_say_what_they_cost(#[case] tells: Tells, #[case] band: [f64; 2]) {
    within(calm().tells(tells).against(FEWEST), band);
}

#[test]
fn one_lies_among_honest_ones() {
    let mut scene = calm().tells(Tells::Truth);
    scene.manners[0].tells = Tells::Most;
    within(scene.against_scene(&calm()), [0.95, 1.4]);
}
