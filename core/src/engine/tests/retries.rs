//! Second tries, and what is said when there is none.

use super::*;
use Failure::{Connect, Cut, Lost, Nonsense, Stale, Status, Timeout};

/// Fails one request again and again, and returns who was tried and the refusal.
fn fail(rig: &mut Rig, retry: Retry, failures: &[Failure]) -> (Vec<u32>, Option<Refusal>) {
    let asked = RequestMeta { retry, model: Some("m"), ..request(rig.now) };
    let mut route = forwarded(rig.ask(&asked));
    let mut tried = vec![route.backend.0];
    for &why in failures {
        match rig.engine.reroute(route.ticket, why, rig.now) {
            Decision::Forward(next) => {
                assert_eq!(next.fresh, why == Stale || retry == Retry::Never);
                assert_eq!(next.reason == Reason::Stale, why == Stale);
                tried.push(next.backend.0);
                route = next;
            }
            Decision::Refuse(refusal) => {
                assert!(rig.engine.tickets.is_empty());
                return (tried, Some(refusal));
            }
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
    rig.finish(route.ticket);
    (tried, None)
}

#[rstest]
#[case::connect_3_attempts(&[Connect, Connect, Connect], 3, Some(Refusal::NoAnswer))]
#[case::connect_then_good(&[Connect, Connect], 3, None)]
#[case::lost(&[Lost, Lost], 2, Some(Refusal::NoAnswer))]
#[case::cut(&[Cut, Lost], 2, Some(Refusal::NoAnswer))]
#[case::nonsense(&[Nonsense, Nonsense], 2, Some(Refusal::NoAnswer))]
#[case::overloaded(&[Status(503), Status(503)], 2, Some(Refusal::NoAnswer))]
#[case::error_then_good(&[Status(500)], 2, None)]
#[case::timeout(&[Timeout], 1, Some(Refusal::TimedOut))]
#[case::timeout_after_another(&[Lost, Timeout], 2, Some(Refusal::TimedOut))]
fn others_are_tried(
    #[case] failures: &[Failure],
    #[case] attempts: usize,
    #[case] expected: Option<Refusal>,
) {
    let mut rig = Rig::serving(5, &["m"]);
    let (mut tried, refusal) = fail(&mut rig, Retry::BeforeFirstByte, failures);
    assert_eq!(refusal, expected);
    assert_eq!(tried.len(), attempts);
    tried.sort_unstable();
    tried.dedup();
    assert_eq!(tried.len(), attempts, "nobody is tried twice");
}

#[rstest]
#[case::connect(&[Connect, Connect, Connect], 3, Some(Refusal::NoAnswer))]
#[case::lost(&[Lost], 1, Some(Refusal::NoAnswer))]
#[case::error(&[Status(503)], 1, Some(Refusal::NoAnswer))]
#[case::stale_cannot_be(&[Stale], 1, Some(Refusal::NoAnswer))]
#[case::timeout(&[Timeout], 1, Some(Refusal::TimedOut))]
fn what_must_not_be_sent_twice(
    #[case] failures: &[Failure],
    #[case] attempts: usize,
    #[case] expected: Option<Refusal>,
) {
    let mut rig = Rig::serving(5, &["m"]);
    let (tried, refusal) = fail(&mut rig, Retry::Never, failures);
    assert_eq!((tried.len(), refusal), (attempts, expected));
}

#[test]
fn a_stale_connection_is_tried_again_on_the_same_backend() {
    let mut rig = Rig::serving(3, &["m"]);
    let (tried, refusal) = fail(&mut rig, Retry::BeforeFirstByte, &[Stale, Connect, Stale]);
    assert_eq!(refusal, None);
    assert_eq!((tried[0], tried[2]), (tried[1], tried[3]));
    assert_ne!(tried[1], tried[2]);
}

#[rstest]
#[case::connect(Connect, down("m"))]
#[case::lost(Lost, Refusal::NoAnswer)]
#[case::cut(Cut, Refusal::NoAnswer)]
#[case::nonsense(Nonsense, Refusal::NoAnswer)]
#[case::status(Status(500), Refusal::NoAnswer)]
#[case::timeout(Timeout, Refusal::TimedOut)]
fn the_only_backend_fails(#[case] why: Failure, #[case] expected: Refusal) {
    let mut rig = Rig::serving(1, &["m"]);
    assert_eq!(fail(&mut rig, Retry::BeforeFirstByte, &[why]).1, Some(expected));
}

#[test]
fn all_of_a_model_refuse_connections() {
    let mut rig = Rig::serving(2, &["m"]);
    let (tried, refusal) = fail(&mut rig, Retry::BeforeFirstByte, &[Connect, Connect]);
    assert_eq!((tried.len(), refusal), (2, Some(down("m"))));
}

#[test]
fn suspects_are_tried_when_nobody_else_is_left_and_the_down_never() {
    let mut rig = Rig::serving(4, &["m"]);
    rig.suspect(1);
    rig.suspect(2);
    rig.down(2);
    rig.down(3);
    let (tried, refusal) = fail(&mut rig, Retry::BeforeFirstByte, &[Connect, Connect]);
    assert_eq!((tried, refusal), (vec![0, 1], Some(down("m"))));
}

#[test]
fn a_request_keeps_its_number_and_its_work_moves_along() {
    let mut rig = Rig::serving(2, &["m"]);
    let route = rig.forward("m");
    let (id, first) = (route.ticket.id(), route.backend);
    let next = forwarded(rig.engine.reroute(route.ticket, Lost, rig.now));
    assert_eq!(next.ticket.id(), id);
    let in_flight = |rig: &mut Rig, id| {
        let backend = rig.engine.fleet.backend_mut(id).expect("it is known");
        backend.load.standing(rig.now).in_flight
    };
    assert_eq!((in_flight(&mut rig, first), in_flight(&mut rig, next.backend)), (0, 1));
    rig.finish(next.ticket);
    assert_eq!(in_flight(&mut rig, next.backend), 0);
}

#[test]
fn unknown_tickets_change_nothing() {
    let mut rig = Rig::serving(1, &["m"]);
    let stray = Ticket::issue(99);
    rig.engine.first_byte(&stray, rig.now);
    assert_eq!(refused(rig.engine.reroute(stray, Connect, rig.now)), Refusal::NoAnswer);
    rig.engine.finish(Ticket::issue(99), Outcome::Broken, rig.now);
    assert_eq!(rig.state(0), State::Up);
    assert_eq!(rig.outputs(), []);
}

#[test]
fn the_model_may_vanish_between_two_tries() {
    let mut rig = Rig::serving(2, &["m"]);
    let route = rig.forward("m");
    rig.up(0, &["other"]);
    rig.up(1, &["other"]);
    assert_eq!(refused(rig.engine.reroute(route.ticket, Lost, rig.now)), Refusal::NoAnswer);
}
