//! Clients that do not stream, that leave, and whose texts are not what is expected.

use crate::scene::{OURS, Scene, within};
use rstest::rstest;
use std::cell::RefCell;
use std::rc::Rc;
use vllm_proxy_core::config::Policy;
use vllm_proxy_sim::policies::{Proxy, Told};
use vllm_proxy_sim::trace::Kind;
use vllm_proxy_sim::world::{Clients, Fate, Manner};

fn scene(clients: Clients) -> Scene {
    Scene::new(Kind::Tool, 3.0).clients(clients)
}

#[rstest]
#[case::nobody_streams(Clients { streaming: 0.0, ..Clients::default() }, [0.85, 1.25])]
#[case::a_half_streams(Clients { streaming: 0.5, ..Clients::default() }, [0.9, 1.25])]
#[case::texts_differ(Clients { sigma: 0.3, ..Clients::default() }, [0.9, 1.3])]
#[case::texts_differ_much(Clients { sigma: 0.5, ..Clients::default() }, [1.0, 1.7])]
fn not_as_expected(#[case] clients: Clients, #[case] band: [f64; 2]) {
    within(scene(clients).against_scene(&scene(Clients::default())), band);
}

#[test]
fn clients_leave_before_and_after_the_first_token() {
    // With answers of 2 s and more, some leave in their midst, some while they wait.
    let scene = Scene::new(Kind::Conversation, 1.6);
    let scene = scene.clients(Clients { leaving: 0.5, ..Clients::default() });
    let outcome = scene.outcome(OURS);
    let gone = outcome.records.iter().filter(|one| one.fate == Fate::Gone);
    let begun = gone.clone().filter(|one| one.first.is_some()).count();
    assert!(begun > 100 && gone.count() > begun, "{begun} left in the midst of an answer");
    let run = scene.summary(OURS, &outcome);
    assert_eq!((run.lost, run.done + run.gone), (0, run.requests));
    // Who leaves makes room.
    within(scene.against_scene(&Scene::new(Kind::Conversation, 1.6)), [0.85, 1.2]);
}

/// Two models on servers of their own, each with two adapters; all are asked the same things.
#[test]
fn what_one_model_or_adapter_has_cached_is_nothing_to_another() {
    let mut scene = Scene::of(Kind::Tool, 6, 1.0, 1_200);
    scene.clients.names = 6;
    scene.manners = (0..6)
        .map(|server| {
            let names = if server < 3 { 0..3 } else { 3..6 };
            Manner { names, ..Manner::default() }
        })
        .collect();
    let scene = scene.all(|server| server.kv_tokens = u64::MAX);
    let told = Rc::new(RefCell::new(Told::default()));
    let proxy = Proxy::new(Policy::CacheAware, 1).telling(Rc::clone(&told));
    let outcome = scene.play(Box::new(proxy));
    let mut promised = 0;
    for sent in &told.borrow().sent {
        let record = outcome.records[sent.id as usize];
        // Caches without limit keep all they are believed to.
        assert!(sent.promised <= u64::from(record.usage.cached) + 16, "{sent:?}: {record:?}");
        promised += sent.promised;
    }
    assert!(promised > 4_000_000, "{promised} tokens were found again");
    assert!(outcome.records.iter().all(|one| one.fate == Fate::Done));
}
