//! Departed: what backends counted that are gone, so that no count is lost between two scrapes.
//!
//! Owns the counts of addresses that nobody is at. Does not know who is.

use super::{Address, Backend, Fleet};
use crate::tally::Counts;
use crate::time::{Duration, Instant};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use log::info;

/// How long counts are told after their backend is gone. Prometheus scrapes every minute or more
/// often; a server that is restarted, or a pod's address that is used again, goes on counting
/// where it was.
const TOLD_FOR: Duration = Duration::from_secs(600);
/// Addresses remembered, each with a kilobyte of counts: those of a rolling restart of all but the
/// largest fleets.
const DEPARTED_MAX: usize = 1_024;

/// Counts of one address.
#[derive(Debug)]
struct Gone {
    counts: Counts,
    at: Instant,
    /// Which entry of the order is the last of this address.
    number: u64,
}

/// The addresses.
#[derive(Debug, Default)]
pub(crate) struct Departed {
    gone: BTreeMap<Address, Gone>,
    /// Who left when, the earliest first. One that came back, or left once more, may be there yet.
    order: VecDeque<(u64, Instant, Address)>,
    next: u64,
}

impl Departed {
    /// A backend is gone, with these counts.
    pub(super) fn keep(&mut self, address: &Address, counts: &Counts, now: Instant) {
        let gone = self.gone.entry(address.clone());
        let new = || Gone { counts: Counts::default(), at: now, number: 0 };
        let gone = gone.or_insert_with(new);
        gone.counts.merge(counts);
        (gone.at, gone.number) = (now, self.next);
        self.order.push_back((self.next, now, address.clone()));
        self.next += 1;
        while self.order.front().is_some_and(|(_, at, _)| {
            *at + TOLD_FOR <= now
                || self.gone.len() > DEPARTED_MAX
                || self.order.len() > 2 * DEPARTED_MAX
        }) {
            let Some((number, _, address)) = self.order.pop_front() else { return };
            if self.gone.get(&address).is_some_and(|gone| gone.number == number) {
                self.gone.remove(&address);
            }
        }
    }

    /// A backend comes to this address: it goes on with these counts.
    pub(super) fn take(&mut self, address: &Address, now: Instant) -> Counts {
        let gone = self.gone.remove(address).filter(|gone| now < gone.at + TOLD_FOR);
        gone.map(|gone| gone.counts).unwrap_or_default()
    }

    /// Addresses whose counts are told yet.
    pub(crate) fn told(&self, now: Instant) -> impl Iterator<Item = (&Address, &Counts)> {
        let told = self.gone.iter().filter(move |(_, gone)| now < gone.at + TOLD_FOR);
        told.map(|(address, gone)| (address, &gone.counts))
    }
}

impl Fleet {
    /// Backends that left and have requests in hand.
    pub(crate) fn leaving(&self) -> impl Iterator<Item = &Backend> {
        self.backends.iter().filter(|backend| backend.leaving)
    }

    /// A backend that is leaving was found again while it has requests in hand: what it counted
    /// goes on at the new one of its address, and what it will count is added to that.
    pub(super) fn returns(&mut self, at: usize, now: Instant) {
        let Some(backend) = self.backends.get_mut(at).filter(|one| !one.returned) else { return };
        backend.returned = true;
        let counts = core::mem::take(&mut backend.counts);
        self.departed.keep(&backend.spec.address, &counts, now);
    }

    /// Forgets the backends that left and have nothing in hand.
    pub(crate) fn sweep(&mut self, now: Instant) {
        let done: Vec<Backend> =
            self.backends.extract_if(.., |backend| backend.is_done()).collect();
        for backend in done {
            info!(backend:% = backend.id; "backend forgotten");
            self.to_forget.push_back(backend.id);
            self.left.remember(&backend);
            let address = &backend.spec.address;
            let living = |other: &&mut Backend| !other.leaving && other.spec.address == *address;
            match self.backends.iter_mut().filter(|_| backend.returned).find(living) {
                Some(living) => living.counts.merge(&backend.counts),
                None => self.departed.keep(address, &backend.counts, now),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tally::Ending;

    fn address(number: u16) -> Address {
        Address::Tcp(([127, 0, 0, 1], number).into())
    }

    fn counts(requests: u64) -> Counts {
        let mut counts = Counts::default();
        (0..requests).for_each(|_| counts.ended(None, Ending::Succeeded, 1));
        counts
    }

    fn told(departed: &Departed, now: Instant) -> Vec<(u16, u64)> {
        let number = |address: &Address| match address {
            Address::Tcp(address) => address.port(),
            Address::Unix(_) => 0,
        };
        let sum = |counts: &Counts| counts.endings().iter().sum();
        departed.told(now).map(|(address, counts)| (number(address), sum(counts))).collect()
    }

    #[test]
    fn counts_are_told_for_a_while() {
        let (mut departed, start) = (Departed::default(), Instant::START);
        departed.keep(&address(1), &counts(3), start);
        departed.keep(&address(2), &counts(4), start + Duration::from_secs(60));
        let end = start + TOLD_FOR;
        assert_eq!(told(&departed, end - Duration::from_micros(1)), [(1, 3), (2, 4)]);
        assert_eq!(told(&departed, end), [(2, 4)]);
        assert_eq!(departed.take(&address(1), end), Counts::default(), "it begins anew");
        assert_eq!(departed.take(&address(2), end), counts(4));
        assert_eq!(told(&departed, end), []);
    }

    #[test]
    fn who_leaves_twice_is_told_once() {
        let (mut departed, start) = (Departed::default(), Instant::START);
        departed.keep(&address(1), &counts(3), start);
        let later = start + Duration::from_secs(300);
        departed.keep(&address(1), &counts(2), later);
        departed.keep(&address(2), &counts(1), start + TOLD_FOR);
        assert_eq!(told(&departed, start + TOLD_FOR), [(1, 5), (2, 1)]);
        assert_eq!(told(&departed, later + TOLD_FOR), [(2, 1)]);
    }

    #[test]
    fn no_more_are_remembered_than_there_is_room_for() {
        let mut departed = Departed::default();
        for number in 0..3 * DEPARTED_MAX as u16 {
            departed.keep(&address(number), &counts(1), Instant::from_millis(number.into()));
        }
        let now = Instant::from_millis(4_000);
        assert_eq!(told(&departed, now).len(), DEPARTED_MAX);
        assert_eq!(told(&departed, now).first(), Some(&(2 * DEPARTED_MAX as u16, 1)));
        // Nor is it remembered for ever how often one left.
        (0..10 * DEPARTED_MAX).for_each(|_| departed.keep(&address(7), &counts(1), now));
        assert!(departed.order.len() <= 2 * DEPARTED_MAX);
        assert!(told(&departed, now).iter().any(|(number, _)| *number == 7));
    }
}
