//! Drain: backends that are to get no new requests, since an operator says so.
//!
//! Owns who is drained, and by whose word. Does not know who may say it, nor what a request is that
//! a drained backend gets all the same.
//!
//! **A drain belongs to an address**, and lasts until it is taken back: whether the backend goes
//! down, comes back as another process, or leaves the upstreams' names and is found there again,
//! as a server does that is replaced. One that a label holds lasts as long as the label.
//!
//! **Invariant: proxies agree.** How often an address was drained or undrained only grows, and the
//! greater number counts: it is drained while that is odd. Of orders that cross, each of which was
//! followed where it was given, all follow the same in the end.

use crate::fleet::{Backend, BackendId, BackendName, Fleet};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use log::info;

/// Addresses remembered that nobody lists any more. Each was drained by an operator once.
const LEFT_MAX: usize = 4_096;

/// Whether one backend is drained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Drain {
    /// How often operators changed it, at all proxies.
    changes: u64,
    /// Whether a label says so.
    label: bool,
}

impl Drain {
    /// Whether the backend is to get no new requests.
    pub(crate) const fn is_on(self) -> bool {
        self.label || self.is_ordered()
    }

    /// Whether an operator's label holds it.
    pub(crate) const fn is_labelled(self) -> bool {
        self.label
    }

    /// How often operators changed it.
    pub(crate) const fn changes(self) -> u64 {
        self.changes
    }

    const fn is_ordered(self) -> bool {
        self.changes % 2 == 1
    }

    /// As it is to be, whatever it was; says whether that is a change.
    const fn order(&mut self, drained: bool) -> bool {
        let news = self.is_ordered() != drained;
        // Nobody gives so many orders, and no proxy believes that somebody did.
        self.changes = self.changes.saturating_add(news as u64);
        news
    }

    /// Somebody knows of so many changes; says whether it is another state now.
    fn merge(&mut self, changes: u64) -> bool {
        let before = self.is_ordered();
        self.changes = self.changes.max(changes);
        self.is_ordered() != before
    }
}

/// What is remembered of addresses that left.
#[derive(Debug, Default)]
pub(super) struct Left(BTreeMap<BackendName, u64>);

impl Left {
    /// A backend is forgotten.
    pub(super) fn remember(&mut self, backend: &Backend) {
        if backend.drain.changes == 0 {
            return;
        }
        if self.0.len() >= LEFT_MAX {
            self.0.pop_first();
        }
        self.0.insert(backend.shared.name, backend.drain.changes);
    }
}

impl Backend {
    /// Whether it takes new requests of its models.
    pub(crate) fn takes(&self) -> bool {
        self.serves() && !self.drain.is_on()
    }

    /// Its upstreams' labels say whether it is to be drained.
    pub(super) fn label(&mut self, drained: bool) {
        if self.drain.label != drained {
            self.drain.label = drained;
            self.tell_drain(drained, "label");
        }
    }

    /// Logs a change, and whose word it was.
    fn tell_drain(&self, drained: bool, by: &str) {
        let (backend, address) = (self.id, &self.spec.address);
        // The one may be undrained, and the other hold it all the same.
        let draining = self.drain.is_on();
        if drained {
            info!(backend:%, address:%, by, draining; "backend drained");
        } else {
            info!(backend:%, address:%, by, draining; "backend undrained");
        }
    }
}

impl Fleet {
    /// An operator of this proxy wants a backend drained; says whether that is a change.
    pub(crate) fn drain(&mut self, id: BackendId) -> bool {
        self.order_drain(id, true)
    }

    /// An operator of this proxy wants a backend to take requests; says whether that is a change.
    pub(crate) fn undrain(&mut self, id: BackendId) -> bool {
        self.order_drain(id, false)
    }

    fn order_drain(&mut self, id: BackendId, drained: bool) -> bool {
        let Some(backend) = self.backend_mut(id) else { return false };
        let news = backend.drain.order(drained);
        if news {
            backend.tell_drain(drained, "operator here");
        }
        news
    }

    /// Another proxy knows of so many changes.
    pub(super) fn hear_drain(&mut self, id: BackendId, changes: u64) {
        if let Some(backend) = self.backend_mut(id)
            && backend.drain.merge(changes)
        {
            backend.tell_drain(backend.drain.is_ordered(), "another proxy");
        }
    }

    /// A backend was found: its address may have been drained before it left.
    pub(super) fn welcome_drain(&mut self, backend: &mut Backend) {
        let name = backend.shared.name;
        let leaving = self.backends.iter().filter(|one| one.shared.name == name);
        let before = leaving.map(|one| one.drain.changes).max().unwrap_or(0);
        if backend.drain.merge(self.left.0.remove(&name).unwrap_or(0).max(before)) {
            backend.tell_drain(true, "before it left");
        }
    }

    /// Backends of the upstreams that are called so, in the order of upstreams.
    pub(crate) fn called(&self, name: &str) -> Vec<&Backend> {
        let named = self.authorities.iter().filter(|(_, own)| own.eq_ignore_ascii_case(name));
        let upstreams: Vec<u16> = named.map(|(&number, _)| number).collect();
        let mut everyone = self.staying();
        everyone.retain(|backend| backend.is_of(&upstreams));
        everyone
    }

    /// Whether any backend takes new requests.
    pub(crate) fn any_takes(&self) -> bool {
        self.backends.iter().any(Backend::takes)
    }

    /// Whether any of them has said of which models. One that never did, since it asks for a key
    /// that is not known here, gets none.
    pub(crate) fn any_ready(&self) -> bool {
        self.backends.iter().any(|backend| backend.takes() && backend.ever_listed)
    }

    /// Whether a backend of this name would take requests, were it not drained.
    pub(crate) fn is_drained(&self, name: &str) -> bool {
        let mut holders = self.names.holders(name).iter().filter_map(|&id| self.backend(id));
        holders.any(|backend| backend.serves() && backend.drain.is_on())
    }

    /// The same of any backend.
    pub(crate) fn any_drained(&self) -> bool {
        self.backends.iter().any(|backend| backend.serves() && backend.drain.is_on())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::never(&[], (false, 0))]
    #[case::drained(&[true], (true, 1))]
    #[case::twice_is_once(&[true, true], (true, 1))]
    #[case::and_back(&[true, false], (false, 2))]
    #[case::back_from_nothing(&[false, false], (false, 0))]
    #[case::again(&[true, false, true], (true, 3))]
    fn an_order_counts_where_it_changes_something(
        #[case] orders: &[bool],
        #[case] expected: (bool, u64),
    ) {
        let mut drain = Drain::default();
        for &drained in orders {
            let before = drain.is_on();
            assert_eq!(drain.order(drained), before != drained);
            assert_eq!(drain.is_on(), drained);
        }
        assert_eq!((drain.is_on(), drain.changes()), expected);
    }

    #[rstest]
    #[case::older(3, 2, false)]
    #[case::equal(3, 3, false)]
    #[case::undrained_since(3, 4, true)]
    #[case::and_drained_again(3, 5, false)]
    fn the_greater_number_counts(#[case] own: u64, #[case] heard: u64, #[case] news: bool) {
        let mut drain = Drain { changes: own, label: false };
        assert_eq!(drain.merge(heard), news);
        assert_eq!(drain.changes(), own.max(heard));
    }

    #[test]
    fn orders_that_cross_end_alike() {
        for orders in 0..64_u32 {
            let mut both = [Drain::default(); 2];
            let bits: Vec<bool> = (0..6).map(|bit| orders >> bit & 1 == 1).collect();
            for (at, &drained) in bits.iter().enumerate() {
                both[at % 2].order(drained);
            }
            let [mut one, mut other] = both;
            one.merge(both[1].changes());
            other.merge(both[0].changes());
            assert_eq!(one, other, "{bits:?}");
        }
    }

    #[test]
    fn what_a_label_holds_is_drained_whatever_is_ordered() {
        let mut drain = Drain { changes: 0, label: true };
        assert!(drain.is_on() && !drain.order(false) && drain.is_labelled());
        assert!(drain.order(true) && drain.is_on());
        drain.label = false;
        assert!(drain.is_on(), "the order stays");
    }
}
