//! What answers teach, and how far that may go.

use super::caching::{chat, rig};
use super::*;
use crate::route::{Held, Usage};
use crate::wire::probe::CacheReport;

impl Rig {
    fn held(&self, route: &Route) -> &Held {
        self.engine.tickets.get(&route.ticket.id()).expect("it is out")
    }

    /// A request that is answered at once, and what was believed of it. Of every thousand tokens
    /// of its prompt so many were `found`, if the answer says so.
    fn answered(&mut self, prompt: &Fingerprint, found: Option<u64>) -> Believed {
        let route = self.chats(prompt);
        let held = self.held(&route);
        let tokens = prompt.bytes() / 4;
        let believed = Believed {
            backend: held.backend,
            promised: held.promise.tokens,
            uncached: held.work.uncached / 1_000,
            prompt: held.work.prompt / 1_000,
        };
        let usage = Usage {
            prompt: tokens,
            cached: found.map(|found| tokens * found / 1_000),
            completion: 10,
        };
        self.used(route, usage);
        believed
    }

    fn used(&mut self, route: Route, usage: Usage) {
        let outcome = Outcome::Done { status: 200, usage: Some(usage) };
        self.engine.finish(route.ticket, outcome, self.now);
    }

    fn capacity(&self, id: u32) -> u64 {
        self.engine.fleet.index.as_ref().map_or(0, |index| index.capacity(BackendId(id)))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Believed {
    backend: BackendId,
    promised: u64,
    uncached: i64,
    prompt: i64,
}

/// Else a backend that lies would have its clock come round.
#[rstest]
#[case::an_answer(10, 10)]
#[case::a_long_one(1_000_000, 1_000_000)]
#[case::more_than_there_is(u64::MAX, 1 << 24)]
fn no_answer_adds_more_than_it_can_have(#[case] completion: u64, #[case] added: u64) {
    let mut rig = rig(1);
    rig.up(0, &["m"]);
    let inserted = |rig: &Rig| {
        let index = rig.engine.fleet.index.as_ref();
        index.map_or(0, |index| index.counter(BackendId(0), PrefixIndex::OWN))
    };
    for answers in 1..=100 {
        let route = rig.chats(&chat("cats", 4));
        let before = inserted(&rig);
        let cache = CacheReport { kv_tokens: Some(u64::MAX), ..CacheReport::default() };
        rig.probed(0, Ok(Probe { cache: Some(cache), ..healthy(&["m"]) }));
        rig.used(route, Usage { prompt: 1_000, completion, ..Usage::default() });
        assert_eq!(inserted(&rig) - before, added, "answer {answers}");
    }
}

#[test]
fn how_long_tokens_are_is_learned_for_each_model() {
    let mut rig = rig(1);
    rig.up(0, &["m", "n"]);
    let prompt = chat("cats", 4);
    let before = rig.answered(&prompt, None).prompt;
    assert_eq!(before, prompt.bytes() as i64 / 4);
    for _ in 0..500 {
        let route = rig.chats(&prompt);
        rig.used(route, Usage { prompt: prompt.bytes() / 2, ..Usage::default() });
    }
    let after = rig.answered(&prompt, None).prompt;
    assert!((before * 19 / 10..=before * 2).contains(&after), "{before} {after}");
    let meta = RequestMeta { model: Some("n"), prompt_bytes: 4_000, ..request(rig.now) };
    let route = forwarded(rig.ask(&meta));
    assert_eq!(rig.held(&route).work.prompt, 1_000_000);
    rig.finish(route.ticket);
}

#[test]
fn a_cache_that_keeps_no_promise_is_not_counted_on_until_it_does() {
    let mut rig = rig(1);
    let prompt = chat("cats", 8);
    rig.answered(&prompt, Some(0));
    let Believed { promised, uncached, prompt: tokens, .. } = rig.answered(&prompt, Some(0));
    assert!(promised > 0 && uncached < tokens / 10);
    for _ in 0..60 {
        rig.answered(&prompt, Some(0));
    }
    let lost = rig.answered(&prompt, Some(950));
    assert!(lost.uncached > tokens * 9 / 10, "{lost:?}");
    for _ in 0..60 {
        rig.answered(&prompt, Some(1_000));
    }
    let won = rig.answered(&prompt, Some(1_000));
    assert!(won.uncached < tokens / 10, "{won:?}");
}

#[rstest]
// The prompt was 2,000 tokens of 128 to a chunk: as promised, or the answer before it, too.
#[case::as_promised(950, false)]
#[case::none(0, true)]
fn capacity_is_corrected(#[case] found: u64, #[case] shrinks: bool) {
    let mut rig = rig(1);
    let prompt = chat("cats", 4);
    let before = rig.capacity(0);
    rig.answered(&prompt, Some(found));
    assert_eq!(rig.capacity(0), before, "nothing was promised");
    rig.answered(&prompt, Some(found));
    assert_eq!(rig.capacity(0) < before, shrinks);
}

/// A text of tokens twice as long as the model's others is half as many, and so is what is cached.
#[test]
fn long_tokens_break_no_promise() {
    let mut rig = rig(1);
    let prompt = chat("cats", 8);
    let (capacity, tokens) = (rig.capacity(0), prompt.bytes() / 8);
    for _ in 0..8 {
        let route = rig.chats(&prompt);
        let cached = if rig.held(&route).promise.tokens > 0 { tokens / 32 * 32 } else { 0 };
        rig.used(route, Usage { prompt: tokens, cached: Some(cached), completion: 0 });
    }
    assert!(rig.capacity(0) >= capacity);
    let kept = rig.answered(&prompt, Some(1_000));
    assert!(kept.uncached * 10 < kept.prompt, "{kept:?}");
}

/// vLLM caches answers as well, and the next turn contains them: that says nothing of the size.
#[test]
fn an_answer_found_in_the_next_turn_is_no_larger_cache() {
    let mut rig = rig(1);
    rig.answered(&chat("cats", 1), Some(0));
    let before = rig.capacity(0);
    let next = rig.answered(&chat("cats", 4), Some(900));
    assert!(next.promised > 0 && next.promised * 2 < chat("cats", 4).bytes() / 4);
    assert_eq!(rig.capacity(0), before * 1_002 / 1_000);
}

#[test]
fn what_was_believed_gone_and_is_found_is_a_larger_cache() {
    let mut rig = rig(1);
    let report = CacheReport { kv_tokens: Some(4_000), ..CacheReport::default() };
    rig.probed(0, Ok(Probe { cache: Some(report), ..healthy(&["m"]) }));
    assert_eq!(rig.capacity(0), 5_000);
    for subject in ["cats", "dogs", "birds", "fish"] {
        rig.answered(&chat(subject, 4), Some(0));
    }
    let again = rig.answered(&chat("cats", 4), Some(1_000));
    assert_eq!(again.promised, 0);
    assert_eq!(rig.capacity(0), 5_100);
}

#[test]
fn metrics_stand_in_for_answers_that_do_not_say() {
    let mut rig = rig(1);
    let prompt = chat("cats", 8);
    let mut queries = 0;
    let mut look = |rig: &mut Rig, hits| {
        let report =
            CacheReport { queries: Some(queries), hits: Some(hits), ..CacheReport::default() };
        rig.probed(0, Ok(Probe { cache: Some(report), ..healthy(&["m"]) }));
        queries += 50_000;
    };
    look(&mut rig, 0);
    for _ in 0..8 {
        for _ in 0..20 {
            rig.answered(&prompt, None);
        }
        look(&mut rig, 0);
    }
    let lost = rig.answered(&prompt, None);
    assert!(lost.uncached > lost.prompt * 9 / 10, "{lost:?}");
}

#[test]
fn a_slow_backend_is_given_less() {
    let mut rig = rig(2);
    let mut counts = [0; 2];
    let mut prompts = 0..;
    for _ in 0..400 {
        // Two long prompts at a time, which nobody has cached.
        let mut routes: Vec<Route> =
            (0..3).map(|_| rig.chats(&chat(&format!("subject {:?}", prompts.next()), 6))).collect();
        // Backend 0 takes twice as long for each.
        for (id, millis) in [(1, 400), (0, 400)] {
            rig.sleep(millis);
            let (done, rest) = routes.into_iter().partition(|route| route.backend.0 == id);
            routes = rest;
            let done: Vec<Route> = done;
            for route in done {
                rig.engine.first_byte(&route.ticket, rig.now);
                counts[id as usize] += 1;
                rig.finish(route.ticket);
            }
        }
    }
    let pace = |id| rig.engine.fleet.backend(BackendId(id)).expect("known").load.pace().nanos();
    assert!(pace(0) > pace(1) * 12 / 10, "{} {}", pace(0), pace(1));
    assert!(counts[0] < counts[1], "{counts:?}");
    rig.down(0);
    rig.up(0, &["m"]);
    assert_eq!(rig.engine.fleet.backend(BackendId(0)).expect("known").load.pace().nanos(), 125_000);
}

#[rstest]
#[case::nothing(Usage::default())]
#[case::all(Usage { prompt: u64::MAX, cached: Some(u64::MAX), completion: u64::MAX })]
#[case::more_cached_than_prompted(Usage { prompt: 1, cached: Some(u64::MAX), completion: 0 })]
#[case::nothing_prompted(Usage { prompt: 0, cached: Some(7), completion: u64::MAX })]
fn whatever_usage_says_all_stays_in_its_bounds(#[case] usage: Usage) {
    let mut rig = rig(2);
    let capacity = rig.capacity(0);
    let prompt = chat("cats", 8);
    let tokens = prompt.bytes() as i64 / 4;
    for _ in 0..2_000 {
        let route = rig.chats(&prompt);
        let work = rig.held(&route).work;
        // Between 1.5 and 8 bytes a token.
        assert!((tokens * 1_000 / 2..=tokens * 8_000 / 3).contains(&work.prompt), "{work:?}");
        assert!((16_000..=work.prompt).contains(&work.uncached), "{work:?}");
        rig.engine.first_byte(&route.ticket, rig.now);
        rig.used(route, usage);
        for id in 0..2 {
            assert!((capacity / 10..=capacity * 2).contains(&rig.capacity(id)));
        }
    }
}
