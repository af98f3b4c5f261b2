//! Several proxies on one Redis, and what may happen to it and to them.

use crate::scene::{OURS, Scene, p90, within};
use rstest::rstest;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;
use vllm_proxy_core::config::Policy;
use vllm_proxy_core::time::Instant;
use vllm_proxy_sim::policies::{Proxy, Told};
use vllm_proxy_sim::redis::Mishap;
use vllm_proxy_sim::trace::Kind;
use vllm_proxy_sim::world::{Fate, Network, Outcome, Router};

const PROXIES: u64 = 3;

/// Words as a running proxy sends them: gathered for 5 ms, on their way for 1 to 2 ms.
fn near() -> Network {
    Network {
        gather: Duration::from_millis(5),
        jitter: Duration::from_millis(1),
        drained: Duration::from_secs(10),
        keeps: true,
        ..Network::with_lag(Duration::from_millis(1))
    }
}

fn calm() -> Scene {
    Scene::new(Kind::Tool, 3.0)
}

/// These happen when so many per cent of the requests came.
fn with(scene: &Scene, mishaps: &[(u32, Mishap)]) -> Network {
    let at = |percent| Instant::START + scene.workload.span() * percent / 100;
    let mishaps = mishaps.iter().map(|&(percent, mishap)| (at(percent), mishap));
    Network { mishaps: mishaps.collect(), ..near() }
}

fn hit(scene: &Scene, outcome: &Outcome) -> f64 {
    scene.summary(OURS, outcome).hit
}

#[track_caller]
fn agree(outcome: &Outcome, proxies: usize) {
    let shared = &outcome.shared;
    assert_eq!(shared.len(), proxies);
    assert!(shared.iter().all(|hash| *hash == shared[0] && *hash != 0), "{shared:x?}");
}

/// A proxy behind a Redis that fails serves all, as well as before, and in the end all know the
/// same again.
#[rstest]
#[case::nothing_happens(&[], [0.95, 1.08])]
#[case::killed_and_started_empty(&[(30, Mishap::Killed), (50, Mishap::Started)], [0.95, 1.25])]
#[case::restarted_at_once(&[(40, Mishap::Killed), (40, Mishap::Started)], [0.95, 1.08])]
#[case::hung(&[(30, Mishap::Hung), (50, Mishap::GoesOn)], [0.95, 1.25])]
#[case::flushed(&[(40, Mishap::Flushed)], [0.95, 1.08])]
#[case::full(&[(30, Mishap::Full), (60, Mishap::Roomy)], [0.95, 1.08])]
#[case::slow(
    &[(30, Mishap::Slow(Duration::from_millis(100))), (60, Mishap::Slow(Duration::ZERO))],
    [0.95, 1.2]
)]
#[case::one_is_cut_off(&[(30, Mishap::CutOff(1)), (50, Mishap::Joined(1))], [0.95, 1.2])]
#[case::garbage(&[(20, Mishap::Garbage), (60, Mishap::Garbage)], [0.95, 1.08])]
fn whatever_happens_to_redis_requests_go_on(
    #[case] mishaps: &[(u32, Mishap)],
    #[case] band: [f64; 2],
) {
    let scene = calm();
    let outcome = scene.several(PROXIES, &with(&scene, mishaps));
    assert!(outcome.records.iter().all(|one| one.fate == Fate::Done && one.attempts == 1));
    agree(&outcome, 3);
    within(p90(&outcome.records) / calm().p90(OURS), band);
}

#[test]
fn who_dies_takes_its_requests_along_and_nothing_else() {
    let scene = calm();
    let outcome = scene.several(PROXIES, &with(&scene, &[(50, Mishap::Dies(2))]));
    let died = Instant::START + scene.workload.span() / 2;
    let lost = outcome.records.iter().filter(|one| one.fate != Fate::Done);
    assert!(lost.clone().all(|one| one.fate == Fate::Broken && one.end == Some(died)));
    let lost = lost.count();
    assert!((1..60).contains(&lost), "{lost} were lost");
    // What it had in hand counts no more: the others know the same, and nobody has anything.
    agree(&outcome, 2);
    let late = outcome.records.iter().filter(|one| one.at > died + Duration::from_secs(3));
    within(p90(late) / calm().p90(OURS), [0.7, 0.95]);
}

/// What a proxy had in hand when it died is believed by all others to be there until its lease
/// ends, 3 s later. Then it is gone, and nothing else is.
#[test]
fn the_load_of_who_died_is_known_until_its_lease_ends() {
    /// Requests that come or end within the 7 ms until all know.
    const UNHEARD_MAX: i64 = 3;
    let scene = Scene::new(Kind::Tool, 5.0);
    let told: Vec<_> = (0..PROXIES).map(|_| Rc::new(RefCell::new(Told::default()))).collect();
    let proxy = |(at, told): (u64, &Rc<RefCell<Told>>)| -> Box<dyn Router> {
        Box::new(Proxy::new(Policy::CacheAware, 1 + at).telling(Rc::clone(told)))
    };
    let proxies = (0..).zip(&told).map(proxy).collect();
    let outcome = scene.together(proxies, &with(&scene, &[(50, Mishap::Dies(2))]));
    let died = Instant::START + scene.workload.span() / 2;
    let lost = outcome.records.iter().filter(|one| one.fate == Fate::Broken).count() as i64;
    assert!(lost > 5 * UNHEARD_MAX, "{lost} were lost");
    let in_hand = |now| {
        let open = |end: Option<Instant>| end.is_none_or(|end| now < end);
        outcome.records.iter().filter(|one| one.at <= now && open(one.end)).count() as i64
    };
    let after = |millis| died + Duration::from_millis(millis);
    let times = [
        (Instant::START..died, 0),
        (after(50)..after(2_900), lost),
        (after(3_100)..Instant::FAR, 0),
    ];
    for (at, (times, more)) in times.into_iter().enumerate() {
        for told in &told[..2] {
            let told = told.borrow();
            let sent = told.sent.iter().map(|sent| (sent, outcome.records[sent.id as usize].at));
            let sent: Vec<_> = sent.filter(|(_, at)| times.contains(at)).collect();
            assert!(sent.len() > 10, "{at}: {}", sent.len());
            for (sent, now) in sent {
                let believed = i64::from(sent.in_flight) - in_hand(now);
                let wrong = believed.abs_diff(more);
                assert!(wrong <= UNHEARD_MAX as u64, "{at}: {believed} too many at {now:?}");
            }
        }
    }
}

/// What one that died had told a Redis that hung comes to those who are connected when it goes on,
/// and not to whom starts then.
#[test]
fn what_waited_in_redis_is_heard_by_who_was_there() {
    let scene = calm();
    let mishaps = [
        (85, Mishap::Slow(Duration::from_secs(2))),
        (85, Mishap::Hung),
        (85, Mishap::CutOff(1)),
        (90, Mishap::Dies(0)),
        (95, Mishap::GoesOn),
        (95, Mishap::Joined(1)),
        (95, Mishap::Starts(0)),
        (95, Mishap::Slow(Duration::ZERO)),
    ];
    let outcome = scene.several(2, &with(&scene, &mishaps));
    agree(&outcome, 2);
}

#[test]
fn who_starts_anew_is_told_by_others() {
    let scene = calm();
    let mishaps = [(50, Mishap::Dies(2)), (52, Mishap::Starts(2))];
    let outcome = scene.several(PROXIES, &with(&scene, &mishaps));
    agree(&outcome, 3);
    let undisturbed = scene.several(PROXIES, &near());
    within(hit(&scene, &outcome) / hit(&scene, &undisturbed), [0.98, 1.01]);
}

/// Whoever starts is told by one that knows, not by another that starts at the same time.
#[test]
fn who_starts_together_is_told_by_the_third() {
    let scene = calm();
    let starts = [(80, Mishap::Dies(0)), (80, Mishap::Dies(1))];
    let mishaps = [&starts[..], &[(85, Mishap::Starts(0)), (85, Mishap::Starts(1))]].concat();
    let network = Network { keeps: false, ..with(&scene, &mishaps) };
    agree(&scene.several(PROXIES, &network), 3);
}

/// The only proxy starts anew, and what it knew is in Redis, or is not.
#[rstest]
#[case::kept(true, &[], [0.98, 1.01])]
#[case::not_kept(false, &[], [0.5, 0.75])]
#[case::flushed(true, &[(50, Mishap::Flushed)], [0.5, 0.75])]
#[case::full_from_the_start(true, &[(0, Mishap::Full)], [0.5, 0.75])]
fn the_only_one_starts_anew(
    #[case] keeps: bool,
    #[case] more: &[(u32, Mishap)],
    #[case] band: [f64; 2],
) {
    let scene = Scene::new(Kind::Conversation, 0.6);
    let mut mishaps = vec![(50, Mishap::Dies(0))];
    mishaps.extend(more);
    mishaps.push((50, Mishap::Starts(0)));
    let network = Network { keeps, ..with(&scene, &mishaps) };
    let restarted = scene.several(1, &network);
    let undisturbed = scene.several(1, &near());
    // Of what came in the next tenth.
    let span = scene.workload.span();
    let hit = |outcome: &Outcome| {
        let times = Instant::START + span / 2..Instant::START + span * 60 / 100;
        let some = outcome.records.iter().filter(|one| times.contains(&one.at));
        let usage = some.map(|one| (u64::from(one.usage.cached), u64::from(one.usage.prompt)));
        let (cached, prompt) = usage.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        cached as f64 / prompt as f64
    };
    within(hit(&restarted) / hit(&undisturbed), band);
}
