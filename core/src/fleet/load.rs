//! Load: what one backend has in hand, in requests and thousandths of a token.
//!
//! Owns the sums and the queue of prompts being prefilled. Does not know why a request went here
//! or what the sums are worth (see [`route::cost`](crate::route::cost)).

use crate::fleet::learned::Pace;
use crate::fleet::peers::{Oldest, Others};
use crate::fleet::update::{Head, InHand, Lesson};
use crate::time::Instant;
use alloc::collections::{BTreeMap, BTreeSet};

/// What a backend has in hand at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Uncached prompt tokens sent there whose prefill has not ended, in thousandths.
    pub queued: i64,
    /// Prompt tokens of all requests in flight there, in thousandths.
    pub resident: i64,
    /// Requests in flight there.
    pub in_flight: u32,
}

/// The sums behind [`Standing`], kept so that they equal a recount of the live tickets and are
/// exactly zero when there are none.
#[derive(Clone, Debug, Default)]
pub(crate) struct Load {
    in_flight: u32,
    resident: i64,
    queued: i64,
    /// Requests without a first token, by the number of their dispatch: the first is the head.
    pending: BTreeMap<u64, Prefill>,
    /// When requests that do not stream leave `pending`. Their first token is not seen, so the
    /// end of their prefill is predicted.
    predicted: BTreeSet<(Instant, u64)>,
    /// The last first token, seen or predicted: the head's prefill began no earlier.
    last_first: Instant,
    pace: Pace,
    /// What other proxies have in hand there.
    pub(crate) others: Others,
}

#[derive(Clone, Debug)]
struct Prefill {
    uncached: i64,
    sent: Instant,
    predicted: Option<Instant>,
}

impl Prefill {
    const fn as_oldest(&self) -> Oldest {
        Oldest { sent: self.sent, uncached: self.uncached }
    }
}

impl Load {
    /// A request was sent there. `dispatch` numbers grow and are never used twice.
    pub(crate) fn add(
        &mut self,
        dispatch: u64,
        uncached: i64,
        prompt: i64,
        stream: bool,
        now: Instant,
    ) {
        let queued = self.standing(now).queued;
        let predicted =
            (!stream).then(|| now + self.pace.time_for(queued.saturating_add(uncached)));
        if let Some(at) = predicted {
            self.predicted.insert((at, dispatch));
        }
        self.pending.insert(dispatch, Prefill { uncached, sent: now, predicted });
        self.queued = self.queued.saturating_add(uncached);
        self.resident = self.resident.saturating_add(prompt);
        self.in_flight = self.in_flight.saturating_add(1);
    }

    /// A request's first token came; says what that taught.
    pub(crate) fn prefilled(&mut self, dispatch: u64, now: Instant) -> Option<Lesson> {
        // Told again, and later, it changes nothing: not even what runs out meanwhile.
        if !self.pending.contains_key(&dispatch) {
            return None;
        }
        self.expire(now);
        let oldest = self.others.oldest(self.oldest());
        let prefill = self.leave(dispatch)?;
        // Of an answer in one piece, nobody saw the first token.
        let tells = oldest == Some(prefill.as_oldest()) && prefill.predicted.is_none();
        let since = prefill.sent.max(self.others.last_first(self.last_first));
        self.last_first = self.last_first.max(now);
        tells.then(|| {
            let (work, time) = (prefill.uncached, now.since(since));
            self.pace.learn(work, time);
            Lesson::Pace { work, time }
        })
    }

    /// How fast it prefills, as far as it was learned.
    pub(crate) const fn pace(&self) -> Pace {
        self.pace
    }

    /// The same to be changed.
    pub(crate) const fn pace_mut(&mut self) -> &mut Pace {
        &mut self.pace
    }

    /// It is another process, maybe on another machine.
    pub(crate) fn forget_pace(&mut self) {
        self.pace = Pace::default();
    }

    /// A request that was added with this `prompt` is settled.
    pub(crate) fn remove(&mut self, dispatch: u64, prompt: i64, now: Instant) {
        // What has run out does so now, whether or not anybody asked in between.
        self.expire(now);
        self.leave(dispatch);
        self.resident = self.resident.saturating_sub(prompt);
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// What is in hand now, here and at other proxies.
    pub(crate) fn standing(&mut self, now: Instant) -> Standing {
        self.expire(now);
        self.sums(now)
    }

    /// The same as [`standing`](Self::standing), where nothing has run out since it was noted.
    pub(crate) fn sums(&self, now: Instant) -> Standing {
        // The head is being prefilled since it was sent or since its predecessor's first token.
        // It may be slower than believed, so a tenth of it always counts.
        let done = self.others.oldest(self.oldest()).map_or(0, |head| {
            let since = head.sent.max(self.others.last_first(self.last_first));
            self.pace.work_in(now.since(since)).min(head.uncached / 10 * 9)
        });
        Standing {
            queued: self.queued.saturating_add(self.others.queued()).saturating_sub(done),
            resident: self.resident.saturating_add(self.others.resident()),
            in_flight: self.in_flight.saturating_add(self.others.in_flight()),
        }
    }

    /// The same without noting what has run out, and how many have no first token. Copies it all:
    /// not for every request.
    pub(crate) fn seen(&self, now: Instant) -> (Standing, usize) {
        let mut copy = self.clone();
        let standing = copy.standing(now);
        (standing, copy.pending.len())
    }

    /// What is in hand here, for other proxies.
    pub(crate) fn told(&mut self, now: Instant) -> InHand {
        self.expire(now);
        let head = self.oldest();
        InHand {
            in_flight: self.in_flight,
            queued: self.queued,
            resident: self.resident,
            head: head.map(|Oldest { sent, uncached }| Head { age: now.since(sent), uncached }),
            first_token_age: (self.last_first > Instant::START).then(|| now.since(self.last_first)),
        }
    }

    /// What is in hand here: requests, queued and resident thousandths.
    pub(crate) fn own(&self) -> [i64; 3] {
        [self.in_flight.into(), self.queued, self.resident]
    }

    /// Requests in hand, for the one question that needs no time.
    pub(crate) const fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Whether nothing is in hand.
    pub(crate) const fn is_idle(&self) -> bool {
        self.in_flight == 0
    }

    fn oldest(&self) -> Option<Oldest> {
        self.pending.first_key_value().map(|(_, head)| head.as_oldest())
    }

    /// Notes what has run out by now.
    pub(crate) fn expire(&mut self, now: Instant) {
        while let Some(&(at, dispatch)) = self.predicted.first() {
            if at > now {
                break;
            }
            self.leave(dispatch);
            self.last_first = self.last_first.max(at);
        }
    }

    fn leave(&mut self, dispatch: u64) -> Option<Prefill> {
        let prefill = self.pending.remove(&dispatch)?;
        self.queued = self.queued.saturating_sub(prefill.uncached);
        if let Some(at) = prefill.predicted {
            self.predicted.remove(&(at, dispatch));
        }
        Some(prefill)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    /// A hundred milliseconds of prefill.
    const U: i64 = 800_000;

    fn at(millis: u64) -> Instant {
        Instant::from_millis(millis)
    }

    #[rstest]
    #[case::just_sent(0, 2 * U)]
    #[case::half_of_the_head(50, U + U / 2)]
    #[case::most_of_the_head(90, U + U / 10)]
    #[case::a_tenth_always_counts(500, U + U / 10)]
    fn the_head_makes_progress(#[case] millis: u64, #[case] queued: i64) {
        let mut load = Load::default();
        load.add(0, U, U, true, at(0));
        load.add(1, U, U, true, at(0));
        let expected = Standing { queued, resident: 2 * U, in_flight: 2 };
        assert_eq!(load.standing(at(millis)), expected);
    }

    #[test]
    fn the_next_head_begins_at_the_first_token_of_the_former() {
        let mut load = Load::default();
        load.add(0, U, U, true, at(0));
        load.add(1, U, U, true, at(0));
        load.prefilled(0, at(200));
        assert_eq!(load.standing(at(200)).queued, U);
        assert_eq!(load.standing(at(250)).queued, U / 2);
        // Told twice, or of a request that is not there, changes nothing.
        load.prefilled(0, at(250));
        load.prefilled(9, at(250));
        assert_eq!(load.standing(at(250)).queued, U / 2);
        assert_eq!(load.standing(at(250)).in_flight, 2);
    }

    #[rstest]
    #[case::sent(0, 3 * U)]
    #[case::before_the_first(99, 3 * U - U / 10 * 9)]
    #[case::the_first_is_over(100, 2 * U)]
    #[case::the_second_makes_progress(150, U + U / 2)]
    #[case::the_second_is_over(200, U)]
    // The third streams: only its first token ends it.
    #[case::long_after(5_000, U / 10)]
    fn answers_that_do_not_stream_are_prefilled_by_prediction(
        #[case] millis: u64,
        #[case] queued: i64,
    ) {
        let mut load = Load::default();
        load.add(0, U, U, false, at(0));
        load.add(1, U, U, false, at(0));
        load.add(2, U, U, true, at(0));
        let expected = Standing { queued, resident: 3 * U, in_flight: 3 };
        assert_eq!(load.standing(at(millis)), expected);
    }

    #[test]
    fn nothing_stays_when_all_are_settled() {
        let mut load = Load::default();
        for dispatch in 0..4 {
            load.add(dispatch, U, U, dispatch % 2 == 0, at(0));
        }
        load.prefilled(0, at(10));
        assert!(!load.is_idle());
        for dispatch in 0..4 {
            load.remove(dispatch, U, at(10));
        }
        assert!(load.is_idle());
        assert_eq!(load.standing(at(0)), Standing::default());
        assert!(load.pending.is_empty() && load.predicted.is_empty());
    }

    #[test]
    fn time_going_backwards_does_no_harm() {
        let mut load = Load::default();
        load.add(0, U, U, false, at(1_000));
        load.add(1, U, U, true, at(0));
        assert_eq!(load.standing(at(0)).queued, 2 * U);
        assert_eq!(load.standing(Instant::FAR).queued, U / 10);
    }
}
