//! What is counted of requests, and where.

use super::*;
use crate::route::Usage;
use crate::tally::{Ending, Fault, Own, Refused};
use crate::wire::facts::{BackendFacts, Facts};

impl Rig {
    fn page(&self) -> Facts {
        self.engine.facts(&self.engine.fleet.staying(), self.now)
    }

    /// By address and model, how requests ended, where there were any.
    fn requests(&self) -> Vec<(String, String, &'static str, u64)> {
        let mut told = Vec::new();
        for one in self.page().backends {
            for (model, counts) in one.counts.by_model() {
                let endings = Ending::ALL.into_iter().filter(|one| counts[*one as usize] > 0);
                told.extend(endings.map(|ending| {
                    let count = counts[ending as usize];
                    (one.address.to_string(), model.to_string(), ending.as_str(), count)
                }));
            }
        }
        told
    }

    fn refused(&self, why: Refused) -> u64 {
        self.engine.totals().refused[why as usize]
    }

    fn at(&self, port: u16) -> Option<BackendFacts> {
        let address = spec(0, port).address;
        self.page().backends.into_iter().find(|one| one.address == address)
    }

    fn end(&mut self, route: Route, outcome: Outcome) {
        self.engine.finish(route.ticket, outcome, self.now);
    }
}

fn told(
    port: u16,
    model: &str,
    word: &'static str,
    count: u64,
) -> (String, String, &'static str, u64) {
    (format!("127.0.0.1:{port}"), model.to_string(), word, count)
}

#[test]
fn requests_are_counted_by_model_backend_and_end() {
    let mut rig = Rig::serving(1, &["m", "lora<m"]);
    for (model, outcome) in [
        ("m", Outcome::done(200)),
        ("m", Outcome::done(200)),
        ("lora", Outcome::done(400)),
        ("m", Outcome::done(101)),
        ("m", Outcome::ClientGone),
        ("m", Outcome::Broken),
        ("lora", Outcome::TimedOut),
    ] {
        let route = rig.forward(model);
        rig.end(route, outcome);
    }
    let expected = [
        told(0, "m", "1xx", 1),
        told(0, "m", "2xx", 2),
        told(0, "m", "client_gone", 1),
        told(0, "m", "broken", 1),
        told(0, "lora", "4xx", 1),
        told(0, "lora", "timeout", 1),
    ];
    assert_eq!(rig.requests(), expected);
}

#[test]
fn names_that_nobody_lists_make_no_series() {
    let mut rig = Rig::serving(1, &["m"]);
    let before = String::from_utf8(rig.page().text()).expect("text").lines().count();
    for number in 0..10_000 {
        let name = format!("unheard of {number}");
        let mut decision = rig.route(Some(&name));
        if let Decision::Later(_) = decision {
            rig.up(0, &["m"]);
            rig.sleep(3_000);
            decision = rig.route(Some(&name));
        }
        match decision {
            Decision::Forward(route) => rig.end(route, Outcome::done(404)),
            Decision::Refuse(_) => {}
            other @ (Decision::Answer(_)
            | Decision::Explained(_)
            | Decision::Status(_)
            | Decision::Shown(_)
            | Decision::Gather(_)
            | Decision::Accept
            | Decision::Later(_)) => panic!("{other:?}"),
        }
    }
    let page = String::from_utf8(rig.page().text()).expect("text");
    assert_eq!(page.lines().count(), before);
    assert!(!page.contains("unheard"));
    let judged: u64 = rig.requests().iter().map(|(.., count)| count).sum();
    assert_eq!(judged + rig.refused(Refused::UnknownModel), 10_000);
    assert!(rig.requests().iter().all(|(_, model, ..)| model == "other"));
}

#[test]
fn the_first_byte_is_counted_from_the_request_on() {
    let mut rig = Rig::serving(2, &["m"]);
    let route = rig.forward("m");
    rig.sleep(300);
    let first = route.backend.0 as u16;
    let Decision::Forward(route) = rig.engine.reroute(route.ticket, Failure::Lost, rig.now) else {
        panic!("another would do")
    };
    rig.sleep(100);
    rig.engine.first_byte(&route.ticket, rig.now);
    rig.sleep(50);
    rig.engine.first_byte(&route.ticket, rig.now);
    rig.sleep(600);
    let second = route.backend.0 as u16;
    rig.end(route, Outcome::done(200));
    let counts = rig.at(second).expect("it is there").counts;
    assert_eq!((counts.first_byte.count(), counts.first_byte.sum_micros()), (1, 400_000));
    assert_eq!((counts.duration.count(), counts.duration.sum_micros()), (1, 1_050_000));
    let counts = rig.at(first).expect("it is there").counts;
    assert_eq!((counts.first_byte.count(), counts.duration.count()), (0, 0));
    assert_eq!((counts.faults[Fault::Lost as usize], counts.failures()), (1, 1));
    assert_eq!(rig.engine.totals().retries[Fault::Lost as usize], 1);
}

#[rstest]
#[case::in_one_piece(Outcome::done(200), 1, 1)]
#[case::a_websocket(Outcome::done(101), 1, 0)]
#[case::nothing_came(Outcome::ClientGone, 0, 1)]
fn an_end_may_be_the_beginning(
    #[case] outcome: Outcome,
    #[case] first_bytes: u64,
    #[case] durations: u64,
) {
    let mut rig = Rig::serving(1, &["m"]);
    let route = rig.forward("m");
    rig.sleep(70);
    rig.end(route, outcome);
    let counts = rig.at(0).expect("it is there").counts;
    assert_eq!((counts.first_byte.count(), counts.duration.count()), (first_bytes, durations));
    assert_eq!(counts.first_byte.sum_micros(), 70_000 * first_bytes);
}

#[test]
fn the_last_answer_counts_where_it_came_from() {
    let mut rig = Rig::serving(2, &["m"]);
    let route = rig.forward("m");
    let first = route.backend.0 as u16;
    let again = rig.engine.reroute(route.ticket, Failure::Status(503), rig.now);
    let Decision::Forward(route) = again else { panic!("another would do: {again:?}") };
    let last = rig.engine.reroute(route.ticket, Failure::Connect, rig.now);
    assert!(matches!(last, Decision::Refuse(_)));
    assert_eq!(rig.requests(), [told(first, "m", "5xx", 1)], "that is what the client got");
    assert_eq!(rig.engine.totals().refused, [0; Refused::ALL.len()]);
    // None gave one.
    let mut rig = Rig::serving(1, &["m"]);
    let route = rig.forward("m");
    rig.engine.reroute(route.ticket, Failure::Timeout, rig.now);
    assert_eq!((rig.requests(), rig.refused(Refused::Timeout)), (vec![], 1));
}

#[rstest]
#[case::closed(true, Outcome::done(101), 0)]
#[case::reset_by_the_client(true, Outcome::ClientGone, 0)]
#[case::reset_by_the_backend(true, Outcome::Broken, 0)]
#[case::ended_with_the_process(true, Outcome::TimedOut, 0)]
#[case::refused(true, Outcome::done(403), 1)]
#[case::no_websocket(false, Outcome::ClientGone, 1)]
fn how_long_somebody_talks_is_no_duration(
    #[case] websocket: bool,
    #[case] outcome: Outcome,
    #[case] durations: u64,
) {
    let mut rig = Rig::serving(1, &["m"]);
    let asked = RequestMeta { model: Some("m"), websocket, ..request(rig.now) };
    let Decision::Forward(route) = rig.ask(&asked) else { panic!("it is up") };
    rig.engine.first_byte(&route.ticket, rig.now);
    rig.sleep(3_600_000);
    rig.end(route, outcome);
    let counts = rig.at(0).expect("it is there").counts;
    assert_eq!((counts.first_byte.count(), counts.duration.count()), (1, durations));
}

#[test]
fn what_the_proxy_answers_itself_is_counted() {
    let mut rig = Rig::new(Config { upstreams: 1, ..Config::default() });
    rig.discover(&[0]);
    rig.up(0, &["m"]);
    rig.own(Who::Health);
    rig.own(Who::Models);
    rig.own(Who::Status);
    rig.ask(&RequestMeta { who: Who::Each, facts: true, ..request(rig.now) });
    let own = rig.engine.totals().own;
    assert_eq!([Own::Answer, Own::Status, Own::Merged].map(|one| own[one as usize]), [2, 1, 1]);
    rig.down(0);
    rig.route(Some("m"));
    assert_eq!(rig.refused(Refused::ModelDown), 1);
    rig.engine.declined(431);
    assert_eq!(rig.refused(Refused::TooLarge), 1);
    rig.engine.routed(Duration::from_micros(30));
    assert_eq!(rig.engine.totals().routing.sum_micros(), 30);
    rig.handle(Input::LogDropped(5));
    rig.handle(Input::LogDropped(7));
    assert_eq!(rig.engine.totals().log_entries_dropped, 7);
}

#[test]
fn parts_of_prompts_are_of_the_same_prompts() {
    let mut rig = Rig::serving(1, &["m"]);
    for usage in [
        None,
        Some(Usage { prompt: 1_000, cached: None, completion: 1 }),
        Some(Usage { prompt: 1_000, cached: Some(600), completion: 1 }),
        Some(Usage { prompt: 100, cached: Some(600), completion: 1 }),
    ] {
        let route = rig.forward("m");
        rig.end(route, Outcome::Done { status: 200, usage });
    }
    let counts = rig.at(0).expect("it is there").counts;
    assert_eq!((counts.tokens.prompt, counts.tokens.reported), (1_100, 700));
    assert!(counts.tokens.predicted <= counts.tokens.prompt);
    assert!(counts.sent_tokens >= 4 * 100, "what was sent is estimated: {}", counts.sent_tokens);
}

#[test]
fn counts_outlive_their_backend_and_go_on_when_it_is_back() {
    let mut rig = Rig::serving(2, &["m"]);
    for _ in 0..4 {
        let route = rig.forward("m");
        rig.end(route, Outcome::done(200));
    }
    let of = |rig: &Rig| rig.at(1).map(|one| one.counts.endings()[Ending::Succeeded as usize]);
    let before = of(&rig).expect("it is there");
    rig.discover(&[0]);
    let gone = rig.at(1).expect("it is told yet");
    assert_eq!((gone.standing, gone.in_flight), (None, None), "what it has now is nothing");
    assert_eq!(of(&rig), Some(before));
    rig.sleep(599_999);
    assert_eq!(of(&rig), Some(before));
    rig.discover(&[0, 0]);
    rig.up(2, &["m"]);
    assert_eq!(of(&rig), Some(before));
    assert_eq!(rig.page().backends.len(), 2);
    rig.discover(&[0]);
    rig.sleep(600_000);
    assert_eq!(of(&rig), None);
    rig.discover(&[0, 0]);
    assert_eq!(of(&rig), Some(0), "that long ago is forgotten");
}

#[test]
fn an_address_that_is_back_before_its_requests_end_has_one_series() {
    let mut rig = Rig::serving(1, &["m"]);
    let (first, second) = (rig.forward("m"), rig.forward("m"));
    rig.end(first, Outcome::done(200));
    let of = |rig: &Rig| {
        let page = rig.page();
        assert_eq!(page.backends.len(), 1);
        let one = &page.backends[0];
        (one.in_flight, one.counts.endings()[Ending::Succeeded as usize])
    };
    rig.discover(&[]);
    assert_eq!(of(&rig), (Some(1), 1));
    rig.discover(&[0]);
    rig.up(1, &["m"]);
    assert_eq!(of(&rig), (Some(1), 1));
    let third = rig.forward("m");
    assert_eq!(of(&rig), (Some(2), 1));
    rig.end(third, Outcome::done(200));
    assert_eq!(of(&rig), (Some(1), 2));
    rig.end(second, Outcome::done(200));
    assert_eq!(of(&rig), (Some(0), 3), "the first one is gone, and nothing it counted is");
    rig.sleep(700_000);
    assert_eq!(of(&rig), (Some(0), 3));
    // Once more, with another beside it.
    let fourth = rig.forward("m");
    rig.discover(&[]);
    rig.discover(&[0]);
    rig.discover(&[]);
    assert_eq!(of(&rig), (Some(1), 3));
    rig.end(fourth, Outcome::done(200));
    assert_eq!(of(&rig), (None, 4));
}
