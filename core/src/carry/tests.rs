//! Carriers over scripted sockets: what each side hears, in which order, and what is left.

mod errands;
mod thread;

use super::{Pool, Unconnected};
use crate::exchange::Drain;
use crate::exchange::tests::texts::{OK, POST, http, shown};
use crate::time::Duration;
use alloc::sync::Arc;
use core::task::{Context, Poll};
use rstest::rstest;
use std::format;
use std::task::Waker;
use thread::{Count, Scene};

/// The head of an answer with 9 bytes of a body.
const NINE: &str = "HTTP/1.1 200 OK|content-length: 9||";

/// A request whose backend has it and says nothing yet.
fn asked() -> (Scene, std::rc::Rc<thread::Peer>) {
    let mut scene = Scene::new(1);
    scene.client_says(POST);
    let (_, backend) = scene.connect();
    assert_eq!(backend.heard(), shown(POST));
    (scene, backend)
}

#[rstest]
#[case::whole(usize::MAX)]
#[case::byte_by_byte(1)]
#[case::by_seven(7)]
fn a_request_and_its_answer_cross(#[case] piece: usize) {
    let mut scene = Scene::new(1);
    let client = scene.client.clone();
    client.piece.set(piece);
    scene.client_says(POST);
    assert_eq!(scene.in_flight(), 1);
    let (address, backend) = scene.connect_full();
    assert_eq!(address, "10.0.0.0:80");
    backend.piece.set(piece);
    scene.flow(&backend, piece);
    assert_eq!(backend.heard(), shown(POST));
    assert!(client.heard.borrow().is_empty());
    client.room.set(0);
    backend.says(OK);
    scene.flow(&client, piece);
    assert_eq!(client.heard(), shown(OK));
    assert_eq!(scene.in_flight(), 0);
    let totals = scene.world.engine.borrow().totals().clone();
    assert_eq!(totals.routing.count(), 1, "the engine was told how long it took");
    assert!(!scene.reserved() && !scene.is_over() && !backend.is_closed.get());
}

#[test]
fn a_client_that_takes_no_more_gets_all_in_order() {
    let (mut scene, backend) = asked();
    let client = scene.client.clone();
    client.room.set(20);
    backend.says(http(&format!("{NINE}abc")));
    scene.run();
    assert_eq!(client.heard.borrow().len(), 20);
    // Nothing more is read for it.
    backend.says("def");
    scene.run();
    assert_eq!(backend.said.borrow().len(), 3);
    client.room.set(7);
    scene.run();
    assert_eq!(backend.said.borrow().len(), 3);
    backend.says("ghi");
    scene.flow(&client, 1);
    assert_eq!(client.heard(), format!("{NINE}abcdefghi"));
    assert_eq!(scene.in_flight(), 0);
}

#[test]
fn a_client_that_can_be_sent_nothing_is_gone() {
    let (mut scene, backend) = asked();
    scene.client.deaf.set(true);
    backend.says(http(&format!("{NINE}abc")));
    scene.run();
    assert!(backend.is_closed.get());
    scene.nothing_held();
}

#[test]
fn a_client_is_lost_that_had_not_taken_all() {
    let (mut scene, backend) = asked();
    scene.client.room.set(20);
    backend.says(http(&format!("{NINE}abc")));
    scene.run();
    scene.client.deaf.set(true);
    scene.run();
    assert!(backend.is_closed.get());
    scene.nothing_held();
}

#[test]
fn a_backend_that_takes_no_more_may_have_answered() {
    let mut scene = Scene::new(1);
    scene.client_says(POST);
    let early = "HTTP/1.1 413 X|content-length: 2|connection: close||no";
    let (_, backend) = scene.connect_full();
    backend.room.set(10);
    scene.run();
    backend.deaf.set(true);
    backend.says(http(early));
    scene.run();
    assert_eq!(scene.client.heard(), "HTTP/1.1 413 X|content-length: 2||no");
    assert_eq!(scene.in_flight(), 0);
    assert!(backend.is_closed.get() && !scene.is_over());
}

#[rstest]
#[case::in_order(false)]
#[case::by_a_reset(true)]
fn a_client_that_leaves_takes_the_backend_along(#[case] reset: bool) {
    let (mut scene, backend) = asked();
    if reset { &scene.client.lost } else { &scene.client.ended }.set(true);
    scene.run();
    assert!(backend.is_closed.get());
    scene.nothing_held();
}

#[test]
fn a_client_that_leaves_ends_what_is_being_connected() {
    let mut scene = Scene::new(1);
    scene.client_says(POST);
    assert_eq!(scene.dialling(), 1);
    scene.client.ended.set(true);
    scene.run();
    scene.nothing_held();
}

#[rstest]
#[case::in_an_upload("upload", 0)]
#[case::connecting("connecting", 1)]
#[case::waiting("waiting", 1)]
#[case::in_an_answer("answer", 1)]
fn what_is_held_is_settled_when_the_task_is_dropped(#[case] phase: &str, #[case] tickets: u32) {
    let mut scene = match phase {
        "upload" => {
            let mut scene = Scene::new(1);
            scene.client_says(&POST[..POST.len() - 1]);
            scene
        }
        "connecting" => {
            let mut scene = Scene::new(1);
            scene.client_says(POST);
            scene
        }
        _ => {
            let (mut scene, backend) = asked();
            if phase == "answer" {
                backend.says(http(&format!("{NINE}abc")));
                scene.run();
            }
            scene
        }
    };
    assert_eq!(scene.in_flight(), tickets);
    assert_eq!(scene.reserved(), phase != "answer");
    scene.leave();
    assert!(!scene.client.is_reset.get());
    scene.nothing_held();
}

/// To an old client the end of the connection is the end of the answer.
#[test]
fn an_answer_that_is_cut_by_a_drop_ends_as_broken() {
    let mut scene = Scene::new(1);
    scene.client_says(POST.replace("HTTP/1.1", "HTTP/1.0"));
    let (_, backend) = scene.connect();
    backend.says(http("HTTP/1.1 200 OK|transfer-encoding: chunked||3|abc|"));
    scene.run();
    assert!(scene.client.heard().ends_with("||abc"));
    scene.leave();
    assert!(scene.client.is_reset.get());
    scene.nothing_held();
}

#[test]
fn connections_are_used_again_while_they_are_young_and_silent() {
    let (mut scene, backend) = asked();
    backend.says(OK);
    scene.run();
    for age in [0, 3] {
        scene.pass(Duration::from_secs(age));
        scene.client_says(POST);
        assert_eq!(scene.dialling(), 0);
        backend.says(OK);
        scene.run();
    }
    assert_eq!(backend.heard(), shown(POST.repeat(3)));
    assert_eq!(scene.client.heard(), shown(OK.repeat(3)));
    // One that said something unasked is closed, one that is old, too.
    backend.says("x");
    scene.client_says(POST);
    assert!(backend.is_closed.get());
    let (_, fresh) = scene.connect();
    fresh.says(OK);
    scene.run();
    scene.pass(Duration::from_secs(4));
    assert!(!fresh.is_closed.get());
    scene.client_says(POST);
    assert!(fresh.is_closed.get());
    assert_eq!(scene.dialling(), 1);
}

#[test]
fn idle_connections_are_swept() {
    let (mut scene, backend) = asked();
    backend.says(OK);
    scene.run();
    let now = scene.world.now.get();
    scene.world.pool.sweep(now + Duration::from_secs(3));
    assert!(!backend.is_closed.get());
    scene.world.pool.sweep(now + Duration::from_secs(4));
    assert!(backend.is_closed.get());
    assert_eq!(format!("{:?}", scene.world.pool), format!("{:?}", Pool::<thread::Plug>::default()));
}

#[test]
fn one_that_refuses_is_passed_over() {
    let mut scene = Scene::new(2);
    scene.client_says(POST);
    assert_eq!(scene.fail(Unconnected::Theirs), "10.0.0.0:80");
    let (address, backend) = scene.connect();
    assert_eq!(address, "10.0.0.1:80");
    backend.says(OK);
    scene.run();
    assert_eq!(scene.client.heard(), shown(OK));
}

#[test]
fn a_lack_of_descriptors_is_no_fault_of_a_backend() {
    let mut scene = Scene::new(2);
    scene.client_says(POST);
    let serving = |scene: &Scene| {
        let engine = scene.world.engine.borrow();
        engine.views(scene.world.now.get()).filter(|view| view.reluctance == 0).count()
    };
    let before = serving(&scene);
    scene.fail(Unconnected::Ours);
    assert_eq!(serving(&scene), before);
    assert!(scene.client.heard().starts_with("HTTP/1.1 503 "), "{}", scene.client.heard());
    assert_eq!(scene.dialling(), 0);
}

/// Of a backend that always has something to say, so much is read and then others have a turn,
/// and the client is heard in between.
#[test]
fn who_talks_without_an_end_lets_others_go_first() {
    let (mut scene, backend) = asked();
    backend.piece.set(10);
    backend.says(http(&format!("HTTP/1.1 200 OK|content-length: 500||{}", "x".repeat(500))));
    scene.run();
    assert!(scene.client.heard().ends_with(&"x".repeat(500)));
    assert!(scene.world.turns.get() >= 6, "{} turns", scene.world.turns.get());
}

#[test]
fn deadlines_ring() {
    let mut scene = Scene::new(1);
    scene.client_says(&POST[..20]);
    scene.pass(Duration::from_secs(59));
    assert!(!scene.is_over());
    scene.pass(Duration::from_secs(1));
    scene.pass(Duration::from_secs(10));
    scene.nothing_held();
}

#[test]
fn a_stop_wakes_whoever_waits_and_the_last_one_tells() {
    let (mut scene, backend) = asked();
    backend.says(OK);
    scene.run();
    let emptied = Arc::new(Count::default());
    let waker = Waker::from(emptied.clone());
    let world = scene.world.clone();
    let is_empty = || world.connections.poll_emptied(&Context::from_waker(&waker));
    assert_eq!(is_empty(), Poll::Pending);

    let woken = scene.woken.so_far();
    world.connections.set_drain(Drain::Grace);
    assert_eq!(scene.woken.so_far(), woken + 1);
    scene.run();
    assert!(!scene.is_over());

    // What is here already is heard before it is too late.
    scene.client.says(POST);
    world.connections.set_drain(Drain::Closing);
    assert_eq!(scene.woken.so_far(), woken + 2);
    scene.run();
    backend.says(OK);
    scene.run();
    assert!(scene.client.heard().contains("connection: close"), "{}", scene.client.heard());
    assert_eq!(emptied.so_far(), 1);
    assert_eq!(is_empty(), Poll::Ready(()));
    scene.nothing_held();
}
