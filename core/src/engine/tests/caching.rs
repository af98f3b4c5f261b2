//! What backends are believed to have cached, and what that does to a choice.

use super::*;
use crate::wire::scan::scan;

/// Backends 0.. of one model, chosen by what they have cached.
pub(super) fn rig(count: u32) -> Rig {
    let policy = Policy::CacheAware;
    let config = Config { policy, upstreams: 1, index_memory: 1 << 20, ..Config::default() };
    let mut rig = Rig::new(config);
    rig.discover(&vec![0; count as usize]);
    for id in 0..count {
        rig.up(id, &["m"]);
    }
    rig
}

/// A chat of so many turns of 2 KB about a subject.
pub(super) fn chat(subject: &str, turns: usize) -> Fingerprint {
    let turn = |number: usize| {
        let text = format!("{subject} {number} ").repeat(2_000 / (subject.len() + 3));
        format!(r#"{{"role":"user","content":"{text}"}}"#)
    };
    let messages: Vec<_> = (0..turns).map(turn).collect();
    scan(format!(r#"{{"model":"m","messages":[{}]}}"#, messages.join(",")).as_bytes()).fingerprint
}

impl Rig {
    pub(super) fn chats(&mut self, prompt: &Fingerprint) -> Route {
        let meta = RequestMeta {
            model: Some("m"),
            prompt,
            prompt_bytes: prompt.bytes(),
            ..request(self.now)
        };
        forwarded(self.ask(&meta))
    }

    /// A request that is done at once.
    fn chatted(&mut self, prompt: &Fingerprint) -> (u32, Reason) {
        let route = self.chats(prompt);
        let chosen = (route.backend.0, route.reason);
        self.engine.first_byte(&route.ticket, self.now);
        self.finish(route.ticket);
        chosen
    }
}

#[test]
fn a_conversation_stays_where_it_is_cached() {
    let mut rig = rig(4);
    for subject in ["cats", "dogs", "birds", "fish", "snails"] {
        let (first, _) = rig.chatted(&chat(subject, 1));
        for turns in 2..6 {
            assert_eq!(rig.chatted(&chat(subject, turns)), (first, Reason::Cached), "{subject}");
        }
    }
}

#[test]
fn a_prompt_in_the_queue_counts_as_cached_but_not_at_any_price() {
    let mut rig = rig(4);
    let prompt = chat("cats", 4);
    let used: Vec<Route> = (0..400).map(|_| rig.chats(&prompt)).collect();
    let mut by_backend = [0; 4];
    used.iter().for_each(|route| by_backend[route.backend.0 as usize] += 1);
    assert!(by_backend.iter().all(|count| *count > 50), "a hot prompt spreads: {by_backend:?}");
    used.into_iter().for_each(|route| rig.finish(route.ticket));
}

#[rstest]
#[case::it_was_restarted(|rig: &mut Rig| { rig.down(0); rig.up(0, &["m"]); })]
#[case::its_cache_was_reset(|rig: &mut Rig| {
    let result = Ok(Some(crate::route::Change::Cache));
    rig.engine.heard(&[crate::route::Echo { backend: BackendId(0), result }], None, rig.now);
})]
#[case::it_sleeps(|rig: &mut Rig| {
    rig.probed(0, Ok(Probe { rests: Some(true), ..healthy(&["m"]) }));
    rig.probed(0, Ok(Probe { rests: Some(false), ..healthy(&["m"]) }));
})]
fn what_is_gone_is_not_believed(#[case] goes: fn(&mut Rig)) {
    let mut rig = rig(1);
    let prompt = chat("cats", 3);
    rig.chatted(&prompt);
    let cached = |rig: &mut Rig| {
        let route = rig.chats(&prompt);
        let held = rig.engine.tickets.get(&route.ticket.id()).expect("it is out");
        let cached = held.work.uncached < held.work.prompt;
        rig.finish(route.ticket);
        cached
    };
    assert!(cached(&mut rig));
    goes(&mut rig);
    assert!(!cached(&mut rig), "nothing is left");
    assert!(cached(&mut rig), "it is computed anew");
}

#[test]
fn other_policies_ask_for_nothing() {
    let mut rig = Rig::serving(2, &["m"]);
    let prompt = chat("cats", 3);
    for _ in 0..4 {
        assert_ne!(rig.chatted(&prompt).1, Reason::Cached);
    }
    assert!(rig.engine.fleet.index.is_none());
}

#[test]
fn a_second_try_goes_where_most_of_it_is_cached_among_the_others() {
    let mut rig = rig(3);
    let prompt = chat("cats", 4);
    let (first, _) = rig.chatted(&prompt);
    let route = rig.chats(&prompt);
    assert_eq!(route.backend.0, first);
    let route = forwarded(rig.engine.reroute(route.ticket, Failure::Status(503), rig.now));
    let second = route.backend.0;
    assert_ne!(second, first);
    rig.finish(route.ticket);
    let route = rig.chats(&prompt);
    let route = forwarded(rig.engine.reroute(route.ticket, Failure::Status(503), rig.now));
    assert!([first, second].contains(&route.backend.0), "where it was computed before");
    rig.finish(route.ticket);
}
