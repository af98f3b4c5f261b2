//! Questions to several backends, each on a connection of its own.

use super::thread::{Peer, Scene};
use crate::carry::Unconnected;
use crate::exchange::tests::texts::{OK, http, shown};
use crate::time::Duration;
use rstest::rstest;
use std::rc::Rc;
use std::string::String;
use std::vec::Vec;

const SLEEP: &str = "POST /sleep?level=1 HTTP/1.1|Host: h|Content-Length: 0||";

/// Several are being connected to.
fn asked(backends: u32) -> Scene {
    let mut scene = Scene::new(backends);
    scene.client_says(http(SLEEP));
    assert_eq!(scene.dialling(), backends as usize);
    scene
}

/// All are connected to.
fn connected(backends: u32) -> (Scene, Vec<Rc<Peer>>) {
    let mut scene = asked(backends);
    let peers = (0..backends).map(|_| scene.connect().1).collect();
    (scene, peers)
}

/// The answer is a failure that says how many there were.
#[track_caller]
fn failed(scene: &Scene, status: &str, of: &str) {
    let heard: String = scene.client.heard();
    assert!(heard.starts_with(status) && heard.contains(of), "{heard}");
}

#[rstest]
#[case::whole(usize::MAX)]
#[case::byte_by_byte(1)]
#[case::by_seven(7)]
fn all_are_asked_and_answer_in_any_order(#[case] piece: usize) {
    let (mut scene, peers) = connected(3);
    for at in [2, 0, 1] {
        let peer = peers[at].clone();
        assert_eq!(peer.heard(), SLEEP);
        assert!(scene.client.heard.borrow().is_empty(), "before all have answered");
        peer.piece.set(piece);
        peer.says(OK);
        scene.run();
        assert!(peer.is_closed.get());
    }
    assert_eq!(scene.client.heard(), shown(OK));
    assert_eq!(scene.world.turns.get() > 0, piece == 1, "long answers give others a turn");
}

#[test]
fn a_request_is_sent_as_it_is_taken() {
    let mut scene = asked(1);
    let (_, peer) = scene.connect_full();
    assert!(peer.heard.borrow().is_empty());
    scene.flow(&peer, 7);
    assert_eq!(peer.heard(), SLEEP);
    peer.says(OK);
    scene.run();
    assert_eq!(scene.client.heard(), shown(OK));
}

#[test]
fn one_that_takes_nothing_may_have_answered() {
    let mut scene = asked(1);
    let (_, peer) = scene.connect_full();
    peer.room.set(10);
    scene.run();
    peer.says(OK);
    peer.deaf.set(true);
    scene.run();
    assert_eq!(scene.client.heard(), shown(OK));
}

#[rstest]
#[case::refused(Unconnected::Theirs, "HTTP/1.1 502 ", "1 of 2")]
#[case::no_descriptor(Unconnected::Ours, "HTTP/1.1 503 ", "busy")]
fn one_that_cannot_be_reached_is_told(
    #[case] why: Unconnected,
    #[case] status: &str,
    #[case] of: &str,
) {
    let mut scene = asked(2);
    scene.fail(why);
    let (_, other) = scene.connect();
    other.says(OK);
    scene.run();
    failed(&scene, status, of);
}

#[test]
fn one_that_is_lost_is_told() {
    let (mut scene, peers) = connected(2);
    peers[0].says(OK);
    peers[1].lost.set(true);
    scene.run();
    failed(&scene, "HTTP/1.1 502", "1 of 2");
}

#[test]
fn connecting_has_a_limit_of_its_own() {
    let mut scene = asked(2);
    let (_, reached) = scene.connect();
    scene.pass(Duration::from_secs(4));
    assert_eq!(scene.dialling(), 1);
    scene.pass(Duration::from_secs(1));
    assert_eq!(scene.dialling(), 0);
    assert!(!reached.is_closed.get());
    reached.says(OK);
    scene.run();
    failed(&scene, "HTTP/1.1 502", "1 of 2");
}

#[test]
fn the_moment_ends_all() {
    let (mut scene, peers) = connected(2);
    peers[0].says(OK);
    scene.pass(Duration::from_secs(3_599));
    assert!(scene.client.heard.borrow().is_empty());
    scene.pass(Duration::from_secs(1));
    failed(&scene, "HTTP/1.1 50", "1 of 2");
    assert!(peers.iter().all(|peer| peer.is_closed.get()));
}

#[test]
fn a_client_that_leaves_takes_all_back() {
    let mut scene = asked(2);
    let (_, peer) = scene.connect();
    scene.client.ended.set(true);
    scene.run();
    assert!(peer.is_closed.get());
    scene.nothing_held();
}
