//! Who exists: joining, leaving, coming back, and being probed.

use super::*;

#[test]
fn new_backends_are_probed_at_once_and_ids_are_never_used_twice() {
    let mut rig = Rig::new(Config { upstreams: 1, ..Config::default() });
    let probe = |id| Output::Probe(BackendId(id));
    assert_eq!(rig.discover(&[0, 0]), [probe(0), probe(1)]);
    assert_eq!(rig.discover(&[0, 0]), [], "the same list again says nothing new");
    assert_eq!(rig.discover(&[0]), [Output::Forget(BackendId(1))]);
    assert!(rig.engine.spec(BackendId(1)).is_none());
    assert_eq!(rig.discover(&[0, 0]), [probe(2)]);
    assert_eq!(rig.engine.spec(BackendId(2)).map(|spec| (**spec).clone()), Some(spec(0, 1)));
}

#[test]
fn equal_addresses_are_one_backend_and_the_first_spec_wins() {
    let mut rig = Rig::new(Config { upstreams: 2, ..Config::default() });
    rig.handle(Input::Discovered(&[spec(0, 1), spec(1, 1), spec(1, 2)]));
    assert_eq!(rig.engine.spec(BackendId(0)).map(|spec| spec.upstream), Some(0));
    assert_eq!(
        rig.engine.spec(BackendId(1)).map(|spec| spec.address.clone()),
        Some(spec(1, 2).address)
    );
    assert!(rig.engine.spec(BackendId(2)).is_none());
    // The first upstream no longer resolves to it: the same backend is reached as the second's.
    assert_eq!(rig.handle(Input::Discovered(&[spec(1, 1), spec(1, 2)])), []);
    assert_eq!(rig.engine.spec(BackendId(0)).map(|spec| spec.upstream), Some(1));
}

#[test]
fn who_leaves_is_forgotten_when_its_last_ticket_is_settled() {
    let mut rig = Rig::serving(1, &["m"]);
    let (first, second) = (rig.forward("m"), rig.forward("m"));
    assert_eq!(rig.discover(&[]), []);
    assert_eq!(refused(rig.route(Some("m"))), down("m"), "remembered, and out of choice");
    assert!(rig.engine.spec(BackendId(0)).is_some(), "requests in hand may still need it");
    rig.finish(first.ticket);
    assert_eq!(rig.outputs(), []);
    rig.engine.first_byte(&second.ticket, rig.now);
    rig.finish(second.ticket);
    assert_eq!(rig.outputs(), [Output::Forget(BackendId(0))]);
    assert!(rig.engine.spec(BackendId(0)).is_none());
    assert_eq!(rig.engine.poll_timeout(), None);
}

#[test]
fn a_reroute_may_be_the_last_ticket_too() {
    let mut rig = Rig::serving(1, &["m"]);
    let route = rig.forward("m");
    rig.discover(&[]);
    let stale = forwarded(rig.engine.reroute(route.ticket, Failure::Stale, rig.now));
    assert_eq!(rig.outputs(), [], "the same backend again");
    assert_eq!(
        refused(rig.engine.reroute(stale.ticket, Failure::Lost, rig.now)),
        Refusal::NoAnswer
    );
    assert_eq!(rig.outputs(), [Output::Forget(BackendId(0))]);
}

#[test]
fn who_comes_back_while_it_leaves_is_another_backend() {
    let mut rig = Rig::serving(1, &["m"]);
    let route = rig.forward("m");
    rig.discover(&[]);
    assert_eq!(rig.discover(&[0]), [Output::Probe(BackendId(1))]);
    rig.up(1, &["m"]);
    let other = rig.forward("m");
    assert_eq!(other.backend, BackendId(1));
    rig.finish(other.ticket);
    rig.finish(route.ticket);
    assert_eq!(rig.outputs(), [Output::Forget(BackendId(0))]);
}

#[test]
fn who_left_counts_what_it_has_in_hand_until_that_is_settled() {
    let mut rig = Rig::serving(2, &["m"]);
    let held: Vec<_> = (0..4).map(|_| rig.forward("m")).collect();
    let in_hand = |rig: &Rig, id| {
        let backend = rig.engine.fleet.backend(BackendId(id));
        backend.map(|backend| backend.load.own())
    };
    let before = in_hand(&rig, 0).expect("it is there");
    assert_eq!(before[0], 2);
    assert_eq!(rig.handle(Input::Discovered(&[spec(0, 1)])), []);
    assert_eq!(in_hand(&rig, 0), Some(before), "leaving settles nothing");
    // Back at once, with what the former one has in hand still open: a new one, that has nothing.
    assert_eq!(rig.discover(&[0, 0]), [Output::Probe(BackendId(2))]);
    rig.up(2, &["m"]);
    assert_eq!((in_hand(&rig, 0), in_hand(&rig, 2)), (Some(before), Some([0; 3])));
    let next = rig.forward("m");
    assert_eq!(next.backend, BackendId(2));
    let (leaving, others): (Vec<_>, Vec<_>) =
        held.into_iter().partition(|route| route.backend == BackendId(0));
    others.into_iter().for_each(|route| rig.finish(route.ticket));
    for (settled, route) in leaving.into_iter().enumerate() {
        rig.finish(route.ticket);
        let left = in_hand(&rig, 0).map(|own| own[0]);
        assert_eq!(left, (settled == 0).then_some(1), "gone with the last one");
    }
    assert_eq!(rig.outputs(), [Output::Forget(BackendId(0))]);
    assert_eq!(in_hand(&rig, 2).map(|own| own[0]), Some(1), "it is the other's");
    rig.finish(next.ticket);
    assert_eq!(in_hand(&rig, 2), Some([0; 3]));
}

#[test]
fn answers_for_nobody_are_ignored() {
    let mut rig = Rig::serving(1, &["m"]);
    let route = rig.forward("m");
    rig.discover(&[]);
    for id in [0, 1, u32::MAX] {
        assert_eq!(rig.up(id, &["other"]), []);
    }
    assert!(!rig.engine.fleet.knows("other"));
    rig.finish(route.ticket);
}

#[test]
fn the_deadline_is_the_next_probe() {
    let mut rig = Rig::new(Config { upstreams: 1, ..Config::default() });
    assert_eq!(rig.engine.poll_timeout(), None);
    rig.discover(&[0, 0]);
    assert_eq!(rig.engine.poll_timeout(), None, "both are being probed");
    rig.up(0, &["m"]);
    rig.probed(1, Err(ProbeError::Connect));
    let wake = rig.engine.poll_timeout().expect("two probes are due");
    assert!(wake.at > rig.now && wake.at <= rig.now + Duration::from_millis(600), "{wake:?}");
    assert_eq!(rig.handle(Input::Timeout), [], "too early");
    rig.now = wake.at;
    assert_eq!(rig.handle(Input::Timeout), [Output::Probe(BackendId(1))]);
    assert_eq!(rig.handle(Input::Timeout), [], "never two probes of one backend");
    let wake = rig.engine.poll_timeout().expect("one is due");
    assert!(wake.at > rig.now + Duration::from_secs(3), "{wake:?}");
}

#[rstest]
#[case::connect(Failure::Connect, State::Suspect)]
#[case::lost(Failure::Lost, State::Suspect)]
#[case::cut(Failure::Cut, State::Suspect)]
#[case::nonsense(Failure::Nonsense, State::Suspect)]
#[case::stale(Failure::Stale, State::Up)]
#[case::error(Failure::Status(500), State::Up)]
#[case::overload(Failure::Status(503), State::Up)]
#[case::error_event(Failure::ErrorEvent, State::Up)]
#[case::timeout(Failure::Timeout, State::Up)]
fn what_counts_against_a_backend(#[case] why: Failure, #[case] expected: State) {
    let mut rig = Rig::serving(1, &["m"]);
    let route = rig.forward("m");
    let decision = rig.engine.reroute(route.ticket, why, rig.now);
    assert_eq!(rig.state(0), expected);
    let probes = if expected == State::Suspect { &[Output::Probe(BackendId(0))][..] } else { &[] };
    assert_eq!(rig.outputs(), probes);
    if let Decision::Forward(route) = decision {
        rig.finish(route.ticket);
    }
}

#[rstest]
#[case::done(Outcome::done(200), State::Up)]
#[case::client_error(Outcome::done(400), State::Up)]
#[case::server_error(Outcome::done(500), State::Up)]
#[case::client_gone(Outcome::ClientGone, State::Up)]
#[case::timed_out(Outcome::TimedOut, State::Up)]
#[case::broken(Outcome::Broken, State::Suspect)]
fn what_an_outcome_says(#[case] outcome: Outcome, #[case] expected: State) {
    let mut rig = Rig::serving(1, &["m"]);
    let route = rig.forward("m");
    rig.engine.finish(route.ticket, outcome, rig.now);
    assert_eq!(rig.state(0), expected);
}

#[test]
fn an_answer_of_a_suspect_clears_it() {
    let mut rig = Rig::serving(1, &["m"]);
    let old = rig.forward("m");
    rig.sleep(1);
    rig.suspect(0);
    rig.engine.first_byte(&old.ticket, rig.now);
    assert_eq!(rig.state(0), State::Suspect, "sent before the suspicion");
    let new = rig.forward("m");
    rig.engine.first_byte(&new.ticket, rig.now);
    assert_eq!(rig.state(0), State::Up);
    rig.finish(old.ticket);
    rig.finish(new.ticket);
}

#[test]
fn who_was_just_found_is_waited_for_where_nobody_else_is() {
    let mut rig = Rig::serving(1, &["m"]);
    rig.handle(Input::Discovered(&[spec(0, 7)]));
    let since = rig.now;
    for who in [Who::Backend, Who::Health, Who::Models, Who::Version] {
        assert!(matches!(rig.own(who), Decision::Later(_)), "{who:?}");
    }
    let asks = |rig: &mut Rig| rig.ask(&RequestMeta { model: Some("m"), ..request(since) });
    assert!(matches!(asks(&mut rig), Decision::Later(_)));
    rig.up(1, &["m"]);
    let route = forwarded(asks(&mut rig));
    assert_eq!(route.backend, BackendId(1));
    rig.finish(route.ticket);
    // Nobody waits for a newcomer while another would do.
    rig.handle(Input::Discovered(&[spec(0, 7), spec(0, 8)]));
    assert_eq!(answered(rig.own(Who::Models)).0, 200);
    let route = rig.forward("m");
    assert_eq!(route.backend, BackendId(1));
    rig.finish(route.ticket);
}

#[test]
fn nobody_waits_for_long_nor_for_who_is_drained_or_does_not_answer() {
    let mut rig = Rig::serving(1, &["m"]);
    rig.handle(Input::Discovered(&[spec(0, 7)]));
    let since = rig.now;
    rig.sleep(2_000);
    let late = rig.ask(&RequestMeta { model: Some("m"), ..request(since) });
    assert_eq!(refused(late), down("m"));
    rig.down(1);
    assert_eq!(refused(rig.route(Some("m"))), down("m"), "it was asked");
    let drain = Labels { drain: true, ..Labels::default() };
    rig.handle(Input::Discovered(&[BackendSpec { labels: drain, ..spec(0, 8) }]));
    assert_eq!(refused(rig.route(Some("m"))), down("m"));
}

/// Streams that are held count as much as short requests that wait for their prefill: newcomers
/// and those who were there before get even work, and not each the same number of streams.
#[test]
fn newcomers_get_an_even_share_of_streams_and_of_short_requests() {
    let mut rig = Rig::new(Config {
        policy: Policy::CacheAware,
        upstreams: 1,
        index_memory: 1 << 20,
        ..Config::default()
    });
    rig.discover(&[0, 0]);
    (0..2).for_each(|id| drop(rig.up(id, &["m"])));
    let (mut held, mut short) = (Vec::new(), Vec::new());
    let mut per_backend = [0; 4];
    for number in 0..32 {
        if number == 8 {
            rig.discover(&[0, 0, 0, 0]);
            (2..4).for_each(|id| drop(rig.up(id, &["m"])));
        }
        while short.len() < 3 {
            let asked = RequestMeta { model: Some("m"), stream: false, ..request(rig.now) };
            short.push(forwarded(rig.ask(&asked)));
        }
        let route = rig.forward("m");
        rig.engine.first_byte(&route.ticket, rig.now);
        per_backend[route.backend.0 as usize] += 1;
        held.push(route);
        let done = short.remove(0);
        rig.finish(done.ticket);
    }
    let now = rig.now;
    let backends = rig.engine.fleet.backends_mut().iter_mut();
    let standings = backends.map(|backend| backend.load.standing(now));
    let works = standings.map(|sum| i64::from(sum.in_flight) * 100_000 + sum.queued);
    let works: Vec<_> = works.collect();
    let (least, most) = (works.iter().min().copied(), works.iter().max().copied());
    // The work of one short request: 100 tokens of prompt, and 100 for being there.
    assert!(most.zip(least).is_some_and(|(most, least)| most - least <= 200_000), "{works:?}");
    assert!(per_backend.iter().all(|count| (6..=10).contains(count)), "{per_backend:?}");
    held.into_iter().chain(short).for_each(|route| rig.finish(route.ticket));
}
