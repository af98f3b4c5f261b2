//! What a request would come to, and that nothing comes of the question.

use super::caching::{chat, rig as caching_rig};
use super::*;
use crate::fleet::{About, BackendName, InHand, ProxyId, Update};
use crate::route::{Explained, Outlook, Terms, cost};

impl Rig {
    fn explain(&mut self, request: &RequestMeta<'_>) -> Explained {
        let asked = RequestMeta { dry_run: true, ..*request };
        let decision = self.ask(&asked);
        let Decision::Explained(explained) = decision else {
            panic!("not explained: {decision:?}");
        };
        *explained
    }

    fn explain_model(&mut self, model: Option<&str>) -> Explained {
        let request = RequestMeta { model, ..request(self.now) };
        self.explain(&request)
    }

    /// All that choices follow from and that others are told.
    fn believes(&mut self) -> (u64, Vec<Output>, Vec<Update>) {
        let updates = core::iter::from_fn(|| self.engine.poll_update()).collect();
        (self.engine.state_hash(self.now), self.outputs(), updates)
    }
}

fn excluded(explained: &Explained) -> Vec<Option<&'static str>> {
    explained.backends.iter().map(|known| known.excluded).collect()
}

fn refusal(explained: &Explained) -> &Refusal {
    let Outlook::Refuse(refusal) = &explained.outlook else { panic!("{:?}", explained.outlook) };
    refusal
}

/// Four backends among other proxies that can be heard or not, by a policy.
fn among_others(policy: Policy, link: Link) -> Rig {
    let index_memory = if policy == Policy::CacheAware { 1 << 20 } else { 0 };
    let config = Config { policy, upstreams: 1, index_memory, ..Config::default() };
    let mut rig = Rig::new(Config { proxy: Some(7), ..config });
    rig.discover(&[0; 4]);
    (0..4).for_each(|id| drop(rig.up(id, &["m"])));
    rig.handle(Input::Link(Link::Whole));
    let in_hand = InHand { in_flight: 1, queued: 4_000, resident: 9_999, ..InHand::default() };
    let about =
        About { in_hand: Some(in_hand), ..About::of(BackendName::of(&spec(0, 1).address), 0) };
    let (proxy, lengths) = (ProxyId(8), Vec::new());
    rig.handle(Input::Heard(&Update { proxy, number: 1, about: vec![about], lengths }));
    let lag = Some(Duration::from_millis(20));
    rig.handle(Input::Replica(ReplicaReport { lag, ..ReplicaReport::default() }));
    rig.handle(Input::Link(link));
    rig
}

#[rstest]
fn what_is_explained_is_what_happens_and_changes_nothing(
    #[values(Policy::CacheAware, Policy::LeastLoad, Policy::RoundRobin)] policy: Policy,
    #[values(Link::Whole, Link::Lost)] link: Link,
) {
    let (mut asked, mut silent) = (among_others(policy, link), among_others(policy, link));
    let mut open: Vec<[Route; 2]> = Vec::new();
    for step in 0..120_usize {
        let prompt = chat(["cats", "dogs", "birds"][step % 3], 1 + step % 5);
        let request = RequestMeta {
            model: Some("m"),
            prompt: &prompt,
            prompt_bytes: prompt.bytes(),
            stream: step % 2 == 0,
            ..request(asked.now)
        };
        // Time alone is told as well.
        for rig in [&mut asked, &mut silent] {
            rig.engine.handle(Input::Timeout, rig.now);
        }
        let before = asked.believes();
        assert_eq!(before, silent.believes(), "step {step}");
        let explained = asked.explain(&request);
        assert_eq!(explained, asked.explain(&request), "step {step}: asked again");
        let after = (before.0, Vec::new(), Vec::new());
        assert_eq!(asked.believes(), after, "step {step}");
        let pair = [forwarded(asked.ask(&request)), forwarded(silent.ask(&request))];
        for route in &pair {
            let would = Outlook::Forward {
                backend: route.backend,
                reason: route.reason,
                predicted_tokens: route.predicted_tokens,
                judges: None,
            };
            assert_eq!(explained.outlook, would, "step {step}");
        }
        let question = explained.question.expect("there are costs");
        let best = explained.candidates.iter().map(|(candidate, _)| candidate);
        let best = best.min_by(|one, other| question.compare(one, other)).expect("somebody is up");
        assert_eq!(best.backend, pair[0].backend, "step {step}");
        for (candidate, _) in &explained.candidates {
            let whole = cost(question.work, question.request, question.fastest, candidate).work;
            assert_eq!(Terms::of(question.work, question.fastest, candidate).sum(), whole);
        }
        if step % 7 == 0 {
            let [one, other] = pair.map(|route| route.ticket);
            let one = forwarded(asked.engine.reroute(one, Failure::Status(503), asked.now));
            let other = forwarded(silent.engine.reroute(other, Failure::Status(503), silent.now));
            assert_eq!((one.backend, one.attempt), (other.backend, 2), "step {step}");
            open.push([one, other]);
        } else {
            open.push(pair);
        }
        if open.len() > 9 {
            let [one, other] = open.swap_remove(step % 9);
            asked.engine.first_byte(&one.ticket, asked.now);
            silent.engine.first_byte(&other.ticket, silent.now);
            asked.finish(one.ticket);
            silent.finish(other.ticket);
        }
        asked.sleep(37);
        silent.sleep(37);
    }
    for [one, other] in open {
        asked.finish(one.ticket);
        silent.finish(other.ticket);
    }
}

#[test]
fn what_is_cached_is_predicted_for_each() {
    let mut rig = caching_rig(3);
    let prompt = chat("cats", 4);
    let route = rig.chats(&prompt);
    let (first, predicted) = (route.backend, route.predicted_tokens);
    assert_eq!((predicted, route.attempt), (0, 1));
    rig.engine.first_byte(&route.ticket, rig.now);
    rig.finish(route.ticket);
    let bytes = prompt.bytes();
    let request = request(rig.now);
    let request = RequestMeta { model: Some("m"), prompt: &prompt, prompt_bytes: bytes, ..request };
    let explained = rig.explain(&request);
    let tokens = prompt.chunks().len() as u64 * 128;
    let predicted = |backend| if backend == first { tokens } else { 0 };
    let seen: Vec<_> =
        explained.candidates.iter().map(|(one, tokens)| (one.backend, *tokens)).collect();
    assert_eq!(seen, [0, 1, 2].map(BackendId).map(|id| (id, predicted(id))));
    assert_eq!((explained.prompt_bytes, explained.prompt_tokens), (bytes, bytes / 4));
    assert_eq!(explained.chunks, prompt.chunks().len());
    let route = rig.chats(&prompt);
    let chosen = (route.backend, route.reason, route.predicted_tokens);
    assert_eq!(chosen, (first, Reason::Cached, tokens));
    rig.finish(route.ticket);
}

#[test]
fn whoever_is_not_chosen_among_has_a_reason() {
    let mut rig = Rig::new(Config { upstreams: 2, ..Config::default() });
    rig.discover(&[0, 0, 0, 0, 1, 1]);
    for id in [0, 1, 2, 4] {
        rig.up(id, &["a"]);
    }
    rig.up(5, &["b"]);
    rig.down(1);
    rig.suspect(2);
    let mut both = [rig.forward("a"), rig.forward("a")];
    both.sort_by_key(|route| route.backend);
    let [leaving, other] = both;
    assert_eq!((leaving.backend, other.backend), (BackendId(0), BackendId(4)));
    rig.finish(other.ticket);
    let stay: Vec<_> = [0, 1, 2, 3, 4, 5].map(|port| spec(u16::from(port > 3), port)).into();
    rig.handle(Input::Discovered(&stay[1..]));
    let explained = rig.explain_model(Some("a"));
    let order: Vec<_> = explained.backends.iter().map(|known| known.backend.0).collect();
    assert_eq!(order, [1, 2, 3, 4, 5, 0]);
    let words =
        [Some("down"), None, Some("not-probed"), None, Some("other-model"), Some("leaving")];
    assert_eq!(excluded(&explained), words);
    let states: Vec<_> = explained.backends.iter().map(|known| known.state).collect();
    assert_eq!(states, ["down", "suspect", "unknown", "up", "up", "up"]);
    assert_eq!(explained.backends[5].in_flight, 1);
    let reluctance = explained.candidates.iter().map(|(one, _)| (one.backend.0, one.reluctance));
    assert_eq!(reluctance.collect::<Vec<_>>(), [(2, 1), (4, 0)]);
    rig.finish(leaving.ticket);
}

#[test]
fn a_refusal_is_what_a_client_would_get() {
    let mut rig = Rig::new(Config { upstreams: 2, ..Config::default() });
    let explained = rig.explain_model(None);
    assert_eq!(
        (refusal(&explained), explained.waits_for),
        (&Refusal::Starting, Some("first-probes"))
    );
    rig.discover(&[0, 1]);
    rig.up(0, &["a"]);
    rig.up(1, &["b"]);
    rig.down(1);
    let explained = rig.explain_model(Some("b"));
    assert_eq!((refusal(&explained), explained.waits_for), (&down("b"), None));
    assert_eq!(excluded(&explained), [Some("other-model"), Some("down")]);
    assert_eq!(refused(rig.route(Some("b"))), down("b"));
}

#[test]
fn nobody_is_asked_for_a_name_that_nobody_lists() {
    let mut rig = Rig::new(Config { upstreams: 2, ..Config::default() });
    rig.discover(&[0, 1]);
    rig.up(0, &["a"]);
    rig.up(1, &["b"]);
    rig.sleep(2_000);
    let judged = |explained: &Explained| {
        let Outlook::Forward { backend, judges, .. } = &explained.outlook else {
            panic!("{:?}", explained.outlook);
        };
        let bases = vec!["a".to_string(), "b".to_string()];
        let unknown = Refusal::UnknownModel { model: "x".to_string(), bases };
        assert_eq!((*backend, judges), (BackendId(0), &Some(unknown)));
    };
    for _ in 0..2 {
        let explained = rig.explain_model(Some("x"));
        assert_eq!(
            (explained.waits_for, &explained.asked),
            (Some("model-lists"), &Some("x".into()))
        );
        assert_eq!(explained.model.as_deref(), Some("a"), "whose backend judges");
        judged(&explained);
        assert_eq!(rig.outputs(), [], "no probe is sent for it");
    }
    assert!(is_later(&rig.route(Some("x"))), "the lists are asked for");
    assert_eq!(rig.outputs().len(), 2);
    rig.up(0, &["a"]);
    rig.up(1, &["b"]);
    let explained = rig.explain_model(Some("x"));
    assert_eq!(explained.waits_for, None);
    judged(&explained);
    let decision = rig.route(Some("x"));
    rig.unknown(decision, "x", &["a", "b"]);
}

#[rstest]
#[case::every(Who::Every, Outlook::Gather(vec![BackendId(0), BackendId(1)]), [None, None])]
#[case::health(Who::Health, Outlook::Answer(Some(200)), [Some("not-asked"); 2])]
#[case::status(Who::Status, Outlook::Answer(None), [Some("not-asked"); 2])]
#[case::stored(
    Who::Owner,
    Outlook::Forward {
        backend: BackendId(0), reason: Reason::Search, predicted_tokens: 0, judges: None
    },
    [None, None]
)]
fn whatever_needs_no_choice_is_explained_too(
    #[case] who: Who,
    #[case] outlook: Outlook,
    #[case] words: [Option<&'static str>; 2],
) {
    let mut rig = Rig::serving(2, &["m"]);
    let before = rig.believes();
    let request = RequestMeta { who, response: Some("resp_1"), ..request(rig.now) };
    let explained = rig.explain(&request);
    assert_eq!((&explained.outlook, explained.question), (&outlook, None));
    assert_eq!(excluded(&explained), words);
    assert_eq!(rig.believes(), before);
}

#[test]
fn only_backends_that_ask_for_keys_judge() {
    let mut rig = Rig::new(Config { upstreams: 1, ..Config::default() });
    rig.discover(&[0, 0]);
    rig.up(0, &["m"]);
    rig.probed(1, Ok(Probe { keyed: Some(true), ..healthy(&["m"]) }));
    let explained = rig.explain_model(Some("x"));
    assert_eq!(excluded(&explained), [Some("no-key"), None]);
    assert_eq!(explained.candidates.len(), 1);
    let Outlook::Forward { judges: Some(Refusal::UnknownModel { bases, .. }), .. } =
        explained.outlook
    else {
        panic!("{:?}", explained.outlook);
    };
    assert!(bases.is_empty(), "which models there are is not for everyone");
}
