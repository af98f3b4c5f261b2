//! Health: how one backend is, and when it is asked next.
//!
//! Owns the states, their transitions and the waits between probes, and says which of them ask for
//! metrics, too. Does not know which models a
//! backend serves or what it has in hand, and sends nothing: whoever owns it turns
//! [`Health::ask`] into a probe.

use crate::rng::Rng;
use crate::time::{Duration, Instant};
use crate::wire::probe::{Finding, ProbeError};

/// Between two probes of a backend that is up.
const UP_INTERVAL: Duration = Duration::from_secs(5);
/// Between two probes of a suspect: soon enough that a dead backend is suspect for a second at
/// most, late enough that the second look is not part of the same hiccup.
const SUSPECT_INTERVAL: Duration = Duration::from_millis(500);
/// Before the first probe of a backend that went down; doubles up to [`DOWN_INTERVAL_MAX`].
const DOWN_INTERVAL_MIN: Duration = Duration::from_millis(500);
/// A model takes minutes to load, so nobody waits longer for this than for the model itself.
const DOWN_INTERVAL_MAX: Duration = Duration::from_secs(5);
/// Between two probes that traffic asks for. A backend that answers probes and resets requests
/// is not asked hundreds of times a second.
const ALARM_GAP: Duration = Duration::from_millis(100);
/// Between two probes that ask for metrics: a page of them is a hundred kilobytes and more, and
/// takes the server milliseconds.
const CACHE_INTERVAL: Duration = Duration::from_secs(30);
/// Probes in a row that must time out before a backend that is up becomes suspect: a vLLM in
/// a long prefill or a compilation answers late, and is worth waiting for.
const TIMEOUTS_MAX: u8 = 3;

/// How a backend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Never probed.
    Unknown,
    /// It answers.
    Up,
    /// Traffic or a probe met a failure that no second witness has confirmed.
    Suspect,
    /// Two witnesses found nobody there, or it said itself that its engine is dead.
    Down,
}

impl State {
    /// Whether requests may go there.
    pub(crate) const fn serves(self) -> bool {
        matches!(self, Self::Up | Self::Suspect)
    }

    /// The sentence that logs it, constant for each state.
    pub(crate) const fn message(self) -> &'static str {
        match self {
            Self::Unknown => "backend is unknown",
            Self::Up => "backend is up",
            Self::Suspect => "backend is suspect",
            Self::Down => "backend is down",
        }
    }
}

/// One backend's state and the timing of its probes.
///
/// Traffic is the first witness and probes are the second. What traffic reports makes a backend
/// suspect and never more: one client's reset is not proof. A probe that is refused, broken or
/// answered by anything but 200 makes an `Up` backend suspect and a suspect one `Down`. So
/// a backend that traffic cannot reach is down after one probe, an idle one after two. Only a 503
/// from `/health`, vLLM's own word that its engine is dead, needs no second witness. Time-outs
/// prove nothing: they never take a backend down that was ever up.
#[derive(Debug)]
pub(crate) struct Health {
    state: State,
    /// When `state` was entered.
    since: Instant,
    /// Why it is not up; nothing while it is, or was never probed.
    why: Option<Finding>,
    /// When the next probe is due, unless one is in flight.
    due: Instant,
    probing: bool,
    /// The probe in flight was sent before a failure that traffic reported: what it says of
    /// the backend's health may be older than that.
    overtaken: bool,
    /// The probe in flight was sent before a round that must ask everyone: ask again.
    repeat: bool,
    /// It was sent before traffic found something changed: ask again, not too soon.
    stale: bool,
    /// Probes in a row that timed out.
    timeouts: u8,
    /// How often the wait between probes was doubled.
    doublings: u32,
    /// When the last probe that traffic asked for was due.
    alarm: Option<Instant>,
    /// When a probe is to ask for metrics, at the earliest.
    cache_due: Instant,
    /// The probe in flight does.
    asks_cache: bool,
}

impl Health {
    /// A backend that nobody has asked yet; its first probe is due at once.
    pub(crate) const fn new(now: Instant) -> Self {
        Self {
            state: State::Unknown,
            since: now,
            why: None,
            due: now,
            probing: false,
            overtaken: false,
            repeat: false,
            stale: false,
            timeouts: 0,
            doublings: 0,
            alarm: None,
            cache_due: now,
            asks_cache: false,
        }
    }

    pub(crate) const fn state(&self) -> State {
        self.state
    }

    /// Why it is suspect or down.
    pub(crate) const fn why(&self) -> Option<Finding> {
        self.why
    }

    /// When to ask next; `None` while a probe is in flight.
    pub(crate) fn due(&self) -> Option<Instant> {
        (!self.probing).then_some(self.due)
    }

    /// Whether a probe is to be sent now; it is in flight from then on.
    pub(crate) fn ask(&mut self, now: Instant) -> bool {
        let due = !self.probing && self.due <= now;
        self.probing |= due;
        if due {
            self.asks_cache = self.cache_due <= now;
            if self.asks_cache {
                self.cache_due = now + CACHE_INTERVAL;
            }
        }
        due
    }

    /// Whether the probe that is to be sent now, or in flight, asks for metrics.
    pub(crate) const fn asks_cache(&self) -> bool {
        self.asks_cache
    }

    /// Asks for a probe that is sent now or later, never one that was sent before. Returns
    /// nothing: the round that wants it counts answers, see [`Health::probed`].
    pub(crate) fn hurry(&mut self, now: Instant) {
        self.repeat |= self.probing;
        self.due = self.due.min(now);
    }

    /// Traffic met a failure of the connection or of the server behind it.
    pub(crate) fn failed(&mut self, now: Instant) {
        if self.state != State::Up {
            return;
        }
        self.enter(State::Suspect, now);
        self.why = Some(Finding::Traffic);
        self.overtaken |= self.probing;
        self.alarm(now);
    }

    /// Traffic found that what the last probe learned is no longer true.
    pub(crate) fn changed(&mut self, now: Instant) {
        if self.state.serves() {
            self.stale |= self.probing;
            self.alarm(now);
        }
    }

    /// Traffic asks for a probe, unless one is due as soon anyway.
    fn alarm(&mut self, now: Instant) {
        let at = self.alarm.map_or(now, |last| now.max(last + ALARM_GAP));
        if !self.probing && at < self.due {
            self.alarm = Some(at);
            self.due = at;
        }
    }

    /// An answer came to a request sent at `sent`. It clears a suspicion that is older than the
    /// request: a server that shuts down still answers what it had taken before.
    pub(crate) fn answered(&mut self, sent: Instant, now: Instant) {
        if self.state == State::Suspect && sent >= self.since {
            self.timeouts = 0;
            self.enter(State::Up, now);
        }
    }

    /// A probe came back, with the status of `/health` or without. Returns whether it was sent
    /// before the round that wants an answer began, and therefore does not count there.
    pub(crate) fn probed(
        &mut self,
        result: Result<u16, &ProbeError>,
        now: Instant,
        rng: &mut Rng,
    ) -> bool {
        self.probing = false;
        self.asks_cache = false;
        if result != Ok(200) {
            // Whoever answers next may be another process.
            self.cache_due = now;
        }
        let overtaken = core::mem::take(&mut self.overtaken);
        let repeat = core::mem::take(&mut self.repeat);
        if result != Err(&ProbeError::Timeout) {
            self.timeouts = 0;
        }
        match (result, self.state) {
            (Ok(200), State::Suspect) if overtaken => {}
            (Ok(200), State::Unknown | State::Up | State::Suspect | State::Down) => {
                self.enter(State::Up, now);
            }
            (Err(ProbeError::Timeout), State::Up) => {
                self.timeouts = self.timeouts.saturating_add(1);
                if self.timeouts >= TIMEOUTS_MAX {
                    self.enter(State::Suspect, now);
                }
            }
            (Err(ProbeError::Timeout), State::Suspect) => {}
            (Ok(503), State::Up | State::Suspect) => self.enter(State::Down, now),
            (Ok(_) | Err(ProbeError::Connect | ProbeError::Broken), State::Up) => {
                self.enter(State::Suspect, now);
            }
            (Ok(_) | Err(_), State::Unknown | State::Suspect) => self.enter(State::Down, now),
            (Ok(_) | Err(_), State::Down) => self.doublings = self.doublings.saturating_add(1),
        }
        match result {
            Ok(200) => {}
            Ok(status) => self.found(Finding::Status(status)),
            Err(error) => self.found(error.into()),
        }
        let stale = core::mem::take(&mut self.stale);
        self.due = if overtaken || repeat { now } else { now + jittered(self.interval(), rng) };
        if stale {
            self.alarm(now);
        }
        repeat || stale
    }

    /// The last word counts, but for that of a probe that left its backend up.
    fn found(&mut self, finding: Finding) {
        if matches!(self.state, State::Suspect | State::Down) {
            self.why = Some(finding);
        }
    }

    fn enter(&mut self, state: State, now: Instant) {
        if state == State::Up {
            self.why = None;
        }
        if self.state != state {
            self.state = state;
            self.since = now;
            self.doublings = 0;
        }
    }

    fn interval(&self) -> Duration {
        match self.state {
            State::Up => UP_INTERVAL,
            State::Suspect => SUSPECT_INTERVAL,
            State::Unknown | State::Down => {
                let factor = 1_u32.checked_shl(self.doublings).unwrap_or(u32::MAX);
                DOWN_INTERVAL_MIN.saturating_mul(factor).min(DOWN_INTERVAL_MAX)
            }
        }
    }
}

/// `base` give or take a fifth, so that proxies started together do not probe together.
fn jittered(base: Duration, rng: &mut Rng) -> Duration {
    let micros = u64::try_from(base.as_micros()).unwrap_or(u64::MAX);
    let fifth = micros / 5;
    Duration::from_micros(micros - fifth + rng.below(2 * fifth + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use State::{Down, Suspect, Unknown, Up};
    use alloc::string::ToString;
    use rstest::rstest;

    /// What may happen to a backend.
    #[derive(Clone, Copy, Debug)]
    enum Event {
        /// A probe was answered with this status of `/health`.
        Says(u16),
        Refused,
        Broken,
        Silent,
        /// Traffic failed.
        Failed,
        /// Traffic was answered, by a request sent now.
        Answered,
    }
    use Event::{Answered, Broken, Failed, Refused, Says, Silent};

    /// Plays events a second apart, each probe asked for before it is answered.
    fn play(events: &[Event]) -> (Health, Rng, Instant) {
        let (mut now, mut rng) = (Instant::from_millis(1_000), Rng::new(1));
        let mut health = Health::new(now);
        for event in events {
            let result = match event {
                Says(status) => Ok(*status),
                Refused => Err(&ProbeError::Connect),
                Broken => Err(&ProbeError::Broken),
                Silent => Err(&ProbeError::Timeout),
                Failed => {
                    health.failed(now);
                    continue;
                }
                Answered => {
                    health.answered(now, now);
                    continue;
                }
            };
            now = now + Duration::from_secs(1);
            health.hurry(now);
            assert!(health.ask(now), "no two probes at once");
            assert!(!health.ask(now), "no two probes at once");
            assert_eq!(health.due(), None);
            health.probed(result, now, &mut rng);
        }
        (health, rng, now)
    }

    #[rstest]
    #[case::never_probed(&[], None)]
    #[case::up(&[Says(200)], None)]
    #[case::nobody_there(&[Refused], Some("no connection"))]
    #[case::another_server(&[Says(404)], Some("/health says 404"))]
    #[case::not_http(&[Broken], Some("no HTTP answer to /health"))]
    #[case::silent(&[Silent], Some("no answer to /health in time"))]
    #[case::a_request_failed(&[Says(200), Failed], Some("a request failed"))]
    #[case::and_a_probe(&[Says(200), Failed, Refused], Some("no connection"))]
    #[case::the_last_word(&[Refused, Says(503)], Some("/health says 503"))]
    #[case::one_late_answer(&[Says(200), Silent], None)]
    #[case::back(&[Refused, Says(200)], None)]
    #[case::answered(&[Says(200), Failed, Answered], None)]
    fn it_says_why_it_is_not_up(#[case] events: &[Event], #[case] expected: Option<&str>) {
        let why = play(events).0.why().map(|why| why.to_string());
        assert_eq!(why.as_deref(), expected);
    }

    #[rstest]
    #[case::nobody_asked(&[], Unknown)]
    #[case::good(&[Says(200)], Up)]
    #[case::never_seen_refused(&[Refused], Down)]
    #[case::never_seen_silent(&[Silent], Down)]
    #[case::never_seen_not_well(&[Says(404)], Down)]
    #[case::traffic_makes_suspect(&[Says(200), Failed], Suspect)]
    #[case::traffic_alone_never_takes_down(&[Says(200), Failed, Failed, Failed], Suspect)]
    #[case::traffic_and_probe_agree(&[Says(200), Failed, Refused], Down)]
    #[case::traffic_and_probe_disagree(&[Says(200), Failed, Says(200)], Up)]
    #[case::refused_once(&[Says(200), Refused], Suspect)]
    #[case::refused_twice(&[Says(200), Refused, Refused], Down)]
    #[case::broken_once(&[Says(200), Broken], Suspect)]
    #[case::broken_twice(&[Says(200), Broken, Broken], Down)]
    #[case::other_status_once(&[Says(200), Says(500)], Suspect)]
    #[case::other_status_twice(&[Says(200), Says(500), Says(404)], Down)]
    #[case::its_own_word_at_once(&[Says(200), Says(503)], Down)]
    #[case::its_own_word_when_suspect(&[Says(200), Failed, Says(503)], Down)]
    #[case::two_time_outs(&[Says(200), Silent, Silent], Up)]
    #[case::three_time_outs(&[Says(200), Silent, Silent, Silent], Suspect)]
    #[case::not_three_in_a_row(&[Says(200), Silent, Silent, Says(200), Silent, Silent], Up)]
    #[case::time_outs_never_take_down(&[Says(200), Failed, Silent, Silent, Silent, Silent], Suspect)]
    #[case::time_outs_do_not_lift(&[Refused, Silent], Down)]
    #[case::back(&[Refused, Refused, Says(200)], Up)]
    #[case::an_answer_clears(&[Says(200), Failed, Answered], Up)]
    #[case::an_answer_does_not_lift(&[Refused, Answered], Down)]
    #[case::an_answer_starts_the_count_anew(
        &[Says(200), Silent, Silent, Silent, Answered, Silent, Silent], Up
    )]
    fn states(#[case] events: &[Event], #[case] expected: State) {
        assert_eq!(play(events).0.state(), expected);
    }

    #[rstest]
    #[case::up(&[Says(200)], 5_000)]
    #[case::up_after_a_time_out(&[Says(200), Silent], 5_000)]
    #[case::suspect(&[Says(200), Refused], 500)]
    #[case::suspect_silent(&[Says(200), Failed, Silent], 500)]
    #[case::down(&[Refused], 500)]
    #[case::down_by_its_own_word(&[Says(200), Says(503)], 500)]
    #[case::second(&[Refused, Refused], 1_000)]
    #[case::third(&[Refused, Refused, Silent], 2_000)]
    #[case::fourth(&[Refused, Refused, Silent, Says(503)], 4_000)]
    #[case::fifth(&[Refused, Refused, Refused, Refused, Refused], 5_000)]
    #[case::down_again(&[Refused, Refused, Refused, Says(200), Says(503)], 500)]
    #[case::for_hours(&[Refused; 100], 5_000)]
    fn intervals(#[case] events: &[Event], #[case] millis: u64) {
        let (health, _, now) = play(events);
        let due = health.due().expect("no probe is in flight").since(now);
        let base = Duration::from_millis(millis);
        assert!(due >= base * 4 / 5 && due <= base * 6 / 5, "{due:?}");
    }

    #[test]
    fn jitter_uses_the_whole_fifth_and_no_more() {
        let (mut rng, base) = (Rng::new(3), Duration::from_secs(1));
        let drawn: alloc::vec::Vec<_> = (0..10_000).map(|_| jittered(base, &mut rng)).collect();
        let (min, max) = (drawn.iter().min().unwrap(), drawn.iter().max().unwrap());
        assert!(*min >= base * 4 / 5 && *min < base * 81 / 100, "{min:?}");
        assert!(*max <= base * 6 / 5 && *max > base * 119 / 100, "{max:?}");
    }

    #[test]
    fn traffic_asks_for_a_probe_at_once_but_not_without_end() {
        let (mut health, mut rng, now) = play(&[Says(200)]);
        health.failed(now);
        assert_eq!(health.due(), Some(now));
        assert!(health.ask(now));
        health.probed(Ok(200), now, &mut rng);
        assert_eq!(health.state(), Up);
        health.failed(now);
        assert_eq!(health.due(), Some(now + ALARM_GAP));
    }

    #[test]
    fn a_probe_that_a_failure_overtook_is_asked_again() {
        let (mut health, mut rng, now) = play(&[Says(200)]);
        health.hurry(now);
        assert!(health.ask(now));
        health.failed(now);
        health.probed(Ok(200), now, &mut rng);
        assert_eq!(health.state(), Suspect, "the answer may be older than the failure");
        assert!(health.ask(now));
        health.probed(Ok(200), now, &mut rng);
        assert_eq!(health.state(), Up);
    }

    #[test]
    fn an_answer_to_an_older_request_clears_nothing() {
        let (mut health, _, now) = play(&[Says(200)]);
        let later = now + Duration::from_secs(1);
        health.failed(later);
        health.answered(now, later);
        assert_eq!(health.state(), Suspect);
        health.answered(later, later);
        assert_eq!(health.state(), Up);
    }

    #[test]
    fn however_often_something_changes_the_next_change_is_seen_soon() {
        let (mut health, mut rng, mut now) = play(&[Says(200)]);
        for _ in 0..1_000 {
            health.changed(now);
        }
        assert!(health.due().expect("no probe is in flight") <= now + ALARM_GAP);
        assert!(health.ask(now));
        health.probed(Ok(200), now, &mut rng);
        now = now + Duration::from_millis(200);
        health.changed(now);
        assert_eq!(health.due(), Some(now));
    }

    #[test]
    fn changes_during_a_probe_ask_for_one_more_and_not_too_soon() {
        let (mut health, mut rng, now) = play(&[Says(200)]);
        health.changed(now);
        assert!(health.ask(now));
        for _ in 0..10 {
            health.changed(now);
        }
        let later = now + Duration::from_millis(1);
        assert!(health.probed(Ok(200), later, &mut rng), "what it learned may be old");
        assert_eq!(health.due(), Some(now + ALARM_GAP));
    }

    #[test]
    fn a_probe_sent_before_a_round_is_repeated_for_it() {
        let (mut health, mut rng, now) = play(&[Says(200)]);
        health.hurry(now);
        assert!(health.ask(now));
        health.hurry(now);
        assert!(health.probed(Ok(200), now, &mut rng), "too early for the round");
        assert!(health.ask(now));
        assert!(!health.probed(Ok(200), now, &mut rng));
    }
}
