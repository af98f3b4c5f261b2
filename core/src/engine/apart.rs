//! Apart: how proxies keep out of each other's way while they have not heard of each other yet.
//!
//! Owns how much they should, and where each of them is at home. Does not know what that is worth:
//! it is a part of a request's own prefill (see [`route::cost`](crate::route::cost)).
//!
//! Whoever hears of others late takes the same backend for the least loaded as they do, and large
//! prompts that nobody holds pile up there. So every backend is the home of one of the proxies,
//! drawn by a hash of both, and costs all others more. How much follows from how many requests the
//! others are likely to have sent without having been heard: none, and nothing, at no distance or
//! without any others. What a backend has cached stays cheap for all, as it leaves no prefill to be
//! charged for.

use super::Engine;
use crate::fleet::{BackendName, ProxyId};
use crate::rng::mix;
use crate::time::{Duration, Instant};

/// Most of a request's prefill that it costs more abroad, in thousandths.
const ABROAD_MAX: u64 = 1_000;
/// At so many unheard requests half of that, in thousandths of a request.
const HALF_UNHEARD: u64 = 2_000;

/// Of so many gaps between requests the mean is kept, roughly.
const GAPS: u64 = 16;
/// No gap is longer. Who was idle for a while is as fast as before soon.
const GAP_MAX: Duration = Duration::from_secs(1);

/// How fast requests come here.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pulse {
    last: Option<Instant>,
    /// Gaps seen, up to as many as count.
    gaps: u64,
    gap_micros: u64,
}

impl Pulse {
    /// A request is sent.
    pub(super) fn sent(&mut self, now: Instant) {
        if let Some(last) = self.last {
            let gap = micros(now.since(last)).min(micros(GAP_MAX));
            self.gaps = (self.gaps + 1).min(GAPS);
            // The first ones count at once: it is at the start that prompts are new.
            self.gap_micros = (self.gap_micros * (self.gaps - 1) + gap) / self.gaps;
        }
        self.last = Some(now);
    }

    /// How many requests come in a while, in thousandths.
    fn in_time(&self, time: Duration, now: Instant) -> u64 {
        let idle =
            self.last.filter(|_| self.gaps > 0).map_or(u64::MAX, |last| micros(now.since(last)));
        micros(time).saturating_mul(1_000) / self.gap_micros.max(idle).max(1)
    }
}

impl Engine {
    /// How much of its prefill a request costs more abroad now, in thousandths. Whoever asks finds
    /// every backend marked that is at home here.
    pub(super) fn abroad(&mut self, now: Instant) -> u16 {
        let Some(sharing) = &mut self.sharing else { return 0 };
        let Some(lag) = sharing.way.lag() else { return 0 };
        // The others are likely to be as busy as this one.
        let unheard = sharing.pulse.in_time(lag, now).saturating_mul(sharing.peers.alive() as u64);
        let abroad = unheard.saturating_mul(ABROAD_MAX) / unheard.saturating_add(HALF_UNHEARD);
        if abroad == 0 {
            return 0;
        }
        // Not for every request: with all others that would be thousands of hashes.
        let changes = Some(sharing.peers.changes());
        if sharing.homes != changes {
            sharing.homes = changes;
            for backend in self.fleet.backends_mut() {
                let name = backend.shared.name;
                let home = is_home(name, sharing.own, sharing.peers.all_alive());
                backend.shared.abroad = !home;
            }
        }
        u16::try_from(abroad).unwrap_or(u16::MAX)
    }
}

/// Whether a backend is at home at this proxy, among these others.
fn is_home(backend: BackendName, own: ProxyId, mut others: impl Iterator<Item = ProxyId>) -> bool {
    let claim = |proxy: ProxyId| mix(mix(proxy.0).wrapping_add(backend.0));
    let own = claim(own);
    others.all(|other| claim(other) < own)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use rstest::rstest;

    fn at(millis: u64) -> Instant {
        Instant::from_millis(millis)
    }

    #[rstest]
    #[case::nothing_yet(0, 10, 100, 0)]
    #[case::one(1, 10, 100, 0)]
    #[case::two(2, 10, 100, 10_000)]
    #[case::many(1_000, 10, 100, 10_000)]
    #[case::at_once(1_000, 0, 100, 100_000_000)]
    #[case::no_time(1_000, 10, 0, 0)]
    fn the_pulse_says_how_many_come(
        #[case] count: u64,
        #[case] gap: u64,
        #[case] millis: u64,
        #[case] expected: u64,
    ) {
        let mut pulse = Pulse::default();
        (0..count).for_each(|one| pulse.sent(at(one * gap)));
        let now = at(count.saturating_sub(1) * gap);
        assert_eq!(pulse.in_time(Duration::from_millis(millis), now), expected);
    }

    #[test]
    fn who_is_idle_expects_little_of_others() {
        let mut pulse = Pulse::default();
        (0..1_000).for_each(|one| pulse.sent(at(one * 10)));
        let lag = Duration::from_millis(100);
        assert_eq!(pulse.in_time(lag, at(9_990 + 1_000)), 100);
        // A gap that long counts a sixteenth, as any other.
        pulse.sent(at(9_990 + 1_000));
        assert_eq!(pulse.in_time(lag, at(9_990 + 1_000)), 1_391);
        assert_eq!(pulse.in_time(lag, Instant::FAR), 0);
    }

    #[test]
    fn every_backend_is_somebodys_home_and_homes_are_spread() {
        let others = |own| (0..4).filter(move |&other| other != own).map(ProxyId);
        let mut counts = [0; 4];
        for backend in (0..4_000).map(|name| BackendName(mix(name))) {
            let at_home = |own: &u64| is_home(backend, ProxyId(*own), others(*own));
            let homes: Vec<_> = (0..4).filter(at_home).collect();
            let [home] = homes[..] else { panic!("one proxy is at home there: {homes:?}") };
            counts[home as usize] += 1;
        }
        assert!(counts.iter().all(|count| (900..1_100).contains(count)), "{counts:?}");
        assert!(is_home(BackendName(1), ProxyId(1), core::iter::empty()), "nobody else is there");
    }
}
