//! The way to other proxies: what the threads of this module know together, and what they tell the
//! engine of it.
//!
//! Owns when the way counts as whole, what follows when it becomes so, and what is logged. Does not
//! talk to Redis.

use super::Named;
use super::keep::Kept;
use crate::redis_url::{Redis, RedisUrl};
use crate::shared::SharedEngine;
use std::collections::BTreeMap;
use std::mem::discriminant;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use vllm_proxy_core::engine::{Company, Engine, Input, Lend, Link, ReplicaReport};
use vllm_proxy_core::fleet::ProxyId;

/// How long own words may not come back before the way counts as lost. They are told once a second
/// at least, and others forget a proxy after the same time.
const SILENCE_MAX: Duration = Duration::from_secs(3);

/// How often another proxy is asked for all that it knows, at most.
const ASK_GAP: Duration = Duration::from_secs(5);

/// How long whoever is asked may take to begin to answer: he may have told all just before.
const ANSWER_MAX: Duration = Duration::from_secs(7);

/// How often this proxy tells all that it knows, at most, however many ask and however often
/// connections break. Else what many tell at once could make Redis drop the connections of those
/// who cannot read it as fast, upon which all would be told again, without end.
const SNAPSHOT_GAP: Duration = Duration::from_secs(5);

/// How often the engine is told of the way though nothing changed.
const REPORT_GAP: Duration = Duration::from_secs(1);

/// How often another reason for the same trouble is logged, at most.
const REASON_GAP: Duration = Duration::from_secs(60);

/// The threads, as those in which something can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Hear,
    Tell,
    Keep,
}

/// What the thread that tells has to do beside the engine's updates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Orders {
    /// To tell all that the engine knows.
    pub(super) snapshot: bool,
    /// To ask another proxy to do so.
    pub(super) ask: bool,
}

/// What the threads share.
#[derive(Debug)]
pub(super) struct Way {
    pub(super) shared: Arc<SharedEngine>,
    pub(super) url: RedisUrl,
    pub(super) own: ProxyId,
    pub(super) channel: String,
    pub(super) kept: Kept,
    named: Named,
    state: Mutex<State>,
    /// Held while the engine is told what was seen: the last one to look is the last one to tell.
    looking: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    /// Whether and since when all that is published comes here.
    subscribed: Option<Instant>,
    /// When an own word last came back, on this subscription.
    echo: Option<Instant>,
    /// The same on the one before, which broke.
    echo_before: Option<Instant>,
    /// An own word that is on its way, and since when.
    sent: Option<(u64, Instant)>,
    lag: Option<Duration>,
    link: Option<Link>,
    /// Since when it is whole, or was last.
    whole: Option<Instant>,
    /// When what failed last at keeping was begun.
    kept: Option<Instant>,
    /// How often words did not come back: connections from before then are not to be trusted.
    silences: u64,
    orders: Orders,
    asked: Option<Instant>,
    /// Who was asked and has told nothing yet.
    awaited: Option<(ProxyId, Instant)>,
    /// Whether a subscription broke, so that what came meanwhile is missed.
    lapsed: bool,
    /// When a snapshot was begun.
    told_all: Option<Instant>,
    company: Company,
    trouble: BTreeMap<Part, String>,
    lost_batches: u64,
    unreadable: u64,
    reported: Option<Instant>,
    logged: Option<(Entry, Instant)>,
    /// Whether there was a connection to publish on before.
    published: bool,
    /// Whether the way was ever whole, so that there may be others.
    others: bool,
}

impl Way {
    pub(super) fn new(
        shared: Arc<SharedEngine>,
        url: RedisUrl,
        named: Named,
        own: ProxyId,
    ) -> Self {
        let channel = format!("vllm-proxy:1:{}", url.db);
        let (kept, state, looking) = (Kept::default(), Mutex::default(), Mutex::default());
        Self { shared, url, own, channel, kept, named, state, looking }
    }

    /// The subscription holds: what is published from now on comes here.
    pub(super) fn subscribed(&self, now: Instant) {
        let mut state = self.lock();
        state.subscribed = Some(now);
        state.trouble.remove(&Part::Hear);
    }

    /// Something is wrong with a part.
    pub(super) fn trouble(&self, part: Part, reason: String, now: Instant) {
        let mut state = self.lock();
        if part == Part::Hear {
            state.subscribed = None;
            // One that is soon replaced leaves the way whole.
            if let Some(echo) = state.echo.take() {
                state.echo_before = Some(echo);
                state.lapsed = true;
            }
        }
        let news = state.trouble.insert(part, reason.clone()) != Some(reason);
        if news {
            state.reported = None;
        }
        drop(state);
        self.look(now);
    }

    /// Nothing can be kept, by an attempt that was begun then. Whatever was wrong before the way
    /// was whole may be mended: it is told of only if it goes wrong once more.
    pub(super) fn keeps_nothing(&self, reason: String, begun: Instant, now: Instant) {
        self.lock().kept = Some(begun);
        self.trouble(Part::Keep, reason, now);
    }

    /// A part works again.
    pub(super) fn works(&self, part: Part) {
        if self.lock().trouble.remove(&part).is_some() {
            log::debug!(part:?; "Redis works again");
        }
    }

    /// An own word leaves. Of those on their way one at a time is measured.
    pub(super) fn sent(&self, number: u64, now: Instant) {
        let mut state = self.lock();
        if state.sent.is_none_or(|(_, since)| now.duration_since(since) > SILENCE_MAX) {
            state.sent = Some((number, now));
        }
    }

    /// An own word came back.
    pub(super) fn echo(&self, number: u64, now: Instant) {
        let mut state = self.lock();
        state.echo = Some(now);
        if let Some((sent, since)) = state.sent
            && sent <= number
        {
            state.sent = None;
            if sent == number {
                state.lag = Some(now.duration_since(since));
            }
        }
    }

    /// Whether what is published comes back, and did so on this subscription.
    pub(super) fn is_whole(&self) -> bool {
        let state = self.lock();
        state.link == Some(Link::Whole) && state.echo.is_some()
    }

    /// Whether it is not known yet if the way is whole, and would be now.
    pub(super) fn is_unknown(&self) -> bool {
        let state = self.lock();
        state.echo.is_some() && state.link != Some(Link::Whole)
    }

    /// What was to be told did not leave.
    pub(super) fn lost_batch(&self) {
        self.lock().lost_batches += 1;
    }

    /// A connection to publish on is there. What was published on the one before may be lost. The
    /// first one loses nothing: what was to be told so far is waiting, or counted as dropped.
    pub(super) fn publishes(&self) {
        let mut state = self.lock();
        state.trouble.remove(&Part::Tell);
        state.orders.snapshot |= state.published;
        state.published = true;
    }

    /// Something that is no word was heard.
    pub(super) fn unreadable(&self) {
        self.lock().unreadable += 1;
    }

    /// Another proxy wants to be told all.
    pub(super) fn asked(&self) {
        self.lock().orders.snapshot = true;
    }

    /// What there is to do, which is taken with it. Who asks another must find one, or say so by
    /// [`unasked`](Self::unasked).
    pub(super) fn take_orders(&self) -> Orders {
        std::mem::take(&mut self.lock().orders)
    }

    /// Nobody was there to be asked.
    pub(super) fn unasked(&self) {
        self.lock().orders.ask = true;
    }

    /// This proxy is being asked.
    pub(super) fn asks(&self, proxy: ProxyId, now: Instant) {
        self.lock().awaited = Some((proxy, now));
    }

    /// A proxy tells a part of all that it knows.
    pub(super) fn answers(&self, proxy: ProxyId) {
        let mut state = self.lock();
        state.awaited = state.awaited.filter(|(awaited, _)| *awaited != proxy);
    }

    /// Whether all may be told now; if so, it is.
    pub(super) fn tells_all(&self, now: Instant) -> bool {
        let mut state = self.lock();
        let may = state.told_all.is_none_or(|last| now.duration_since(last) >= SNAPSHOT_GAP);
        if may {
            state.told_all = Some(now);
        }
        may
    }

    /// How often the way fell silent: a connection that was made before it last did may be dead.
    pub(super) fn silences(&self) -> u64 {
        self.lock().silences
    }

    /// Looks whether the way is whole, and tells the engine if that changed. `false`: own words do
    /// not come back though somebody listens, so that both connections are to be made anew.
    pub(super) fn look(&self, now: Instant) -> bool {
        let _looking = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.lock();
        let silent = state.is_silent(now);
        let link = if silent { Some(Link::Lost) } else { state.echo.map(|_| Link::Whole) };
        // Just subscribed: not known yet.
        let link = link.or(state.link);
        if silent && state.subscribed.take().is_some() {
            (state.echo, state.echo_before) = (None, None);
            state.silences += 1;
        }
        let changed = state.link != link;
        state.link = link;
        if changed && link == Some(Link::Whole) {
            // What others said meanwhile was not heard here; and where not for the first time, they
            // may have missed what was said here.
            state.orders.ask = true;
            state.orders.snapshot |= state.others;
            state.whole = Some(now);
            (state.asked, state.lapsed) = (Some(now), false);
            state.others = true;
        }
        let due = state.reported.is_none_or(|last| now.duration_since(last) >= REPORT_GAP);
        let report = (changed || due).then(|| state.report(now));
        let entry = state.entry(now);
        // Where Redis was only looked for and never found, no other proxy is missed.
        let expected = state.others || self.named == Named::Yes;
        drop(state);
        if let Some((link, _)) = link.filter(|_| changed).zip(expected.then_some(())) {
            self.shared.tell(Input::Link(link));
        }
        if let Some(report) = report {
            self.shared.tell(Input::Replica(report));
            self.mind(now);
        }
        if let Some(entry) = entry {
            self.log(&entry);
        }
        !silent
    }

    /// What was missed is asked for, of another if who was asked is gone; what was dropped is told
    /// by a snapshot.
    fn mind(&self, now: Instant) {
        let asks = |engine: &mut Engine| (engine.company(), engine.peer());
        let (company, peer) = (&*self.shared as &dyn Lend).with(asks);
        let mut state = self.lock();
        state.orders.snapshot |= company.dropped > state.company.dropped;
        state.company.dropped = company.dropped;
        let unanswered = state.awaited.is_some_and(|(proxy, asked)| {
            peer != Some(proxy) || now.duration_since(asked) >= ANSWER_MAX
        });
        let patient = state.asked.is_some_and(|asked| now.duration_since(asked) < ASK_GAP);
        // Others may have been deaf at the same time: by now they hear again.
        let listens = |since| now.duration_since(since) >= REPORT_GAP;
        let lapsed = state.lapsed && state.subscribed.is_some_and(listens);
        if lapsed {
            state.lapsed = false;
            state.orders.snapshot = true;
        }
        let missed = company.missed > state.company.missed;
        if unanswered || lapsed || (missed && !patient) {
            state.orders.ask = true;
            (state.asked, state.awaited) = (Some(now), None);
            state.company.missed = company.missed;
        }
    }

    fn log(&self, entry: &Entry) {
        let redis = Redis::At(self.url.clone());
        match entry {
            Entry::Works => log::info!(redis:%; "sharing with other proxies through Redis"),
            Entry::Fails(reason) => log::warn!(
                redis:%, reason = reason.as_str();
                "Redis cannot be used: requests are routed by what this proxy knows"
            ),
            Entry::Lacks(reason) => log::warn!(
                redis:%, reason = reason.as_str();
                "nothing is kept in Redis for proxies that start"
            ),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether own words do not come back.
    fn is_silent(&self, now: Instant) -> bool {
        match self.echo.or(self.subscribed).max(self.echo_before) {
            Some(heard) => now.duration_since(heard) > SILENCE_MAX,
            // Whoever tries to listen for the first time knows soon whether it can, however soon
            // another part is in trouble.
            None => self.link.is_some() || self.trouble.contains_key(&Part::Hear),
        }
    }

    /// Why the way is not whole.
    fn reason(&self) -> Option<&str> {
        let known = [Part::Hear, Part::Tell].iter().find_map(|part| self.trouble.get(part));
        match self.link {
            Some(Link::Lost) => {
                Some(known.map_or("what is published does not come back", String::as_str))
            }
            Some(Link::Whole) | None => None,
        }
    }

    fn report(&mut self, now: Instant) -> ReplicaReport {
        self.reported = Some(now);
        let reason = self.reason().or(self.trouble.get(&Part::Keep).map(String::as_str));
        ReplicaReport {
            connected: self.link == Some(Link::Whole),
            lag: self.lag.filter(|_| self.link == Some(Link::Whole)),
            lost_batches: self.lost_batches,
            unreadable: self.unreadable,
            reason: reason.map(Into::into),
        }
    }

    /// What is to be logged now, if anything: that it works, that it does not and why, each once;
    /// another reason for the same trouble now and then.
    fn entry(&mut self, now: Instant) -> Option<Entry> {
        let entry = match (self.reason(), self.link) {
            (Some(reason), _) => Entry::Fails(reason.to_owned()),
            (None, Some(Link::Whole)) => match self.trouble.get(&Part::Keep) {
                Some(_) if self.kept <= self.whole => return None,
                Some(reason) => Entry::Lacks(reason.clone()),
                None => Entry::Works,
            },
            (None, Some(Link::Lost) | None) => return None,
        };
        let news = match &self.logged {
            None => true,
            Some((last, _)) if *last == entry => false,
            Some((last, at)) => {
                discriminant(last) != discriminant(&entry) || now.duration_since(*at) > REASON_GAP
            }
        };
        news.then(|| {
            self.logged = Some((entry.clone(), now));
            entry
        })
    }
}

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    Works,
    Fails(String),
    /// It works, but for the logs.
    Lacks(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    /// Seconds at which the way was whole again, and at which what failed to keep was begun.
    #[rstest]
    #[case::begun_before(2, 1, None)]
    #[case::begun_at_the_same_time(2, 2, None)]
    #[case::begun_behind(2, 3, Some(Entry::Lacks("wrong".to_owned())))]
    fn what_may_be_mended_is_not_told(
        #[case] whole: u64,
        #[case] begun: u64,
        #[case] expected: Option<Entry>,
    ) {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut state = State {
            link: Some(Link::Whole),
            whole: Some(at(whole)),
            kept: Some(at(begun)),
            trouble: BTreeMap::from([(Part::Keep, "wrong".to_owned())]),
            logged: Some((Entry::Fails("wrong".to_owned()), start)),
            ..State::default()
        };
        assert_eq!(state.entry(at(4)), expected);
        state.trouble.clear();
        assert_eq!(state.entry(at(5)), Some(Entry::Works));
    }
}
