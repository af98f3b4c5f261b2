//! Clocks: how far each proxy has moved a backend's clock on, and what else proxies know of a
//! cache as a whole.
//!
//! A clock is the sum of what proxies inserted, each of which counts by itself: counters merge by
//! the greater number, and their sum cannot run ahead by hearing twice. Does not know who these
//! proxies are.

use super::PrefixIndex;
use crate::fleet::{BackendId, Capacity};

impl PrefixIndex {
    /// Another proxy's word, or an older one of this proxy: it has inserted so many tokens there
    /// so far. Proxies from 64 on are not heard.
    pub fn merge_counter(&mut self, backend: BackendId, proxy: usize, inserted_tokens: u64) {
        let known = self.counter(backend, proxy) > 0;
        self.raise_counter(backend, proxy, inserted_tokens, known);
    }

    /// The same, told by a third. What `rest` stands for may have held it until now, as who told of
    /// that did not know the proxy any more: it is taken from there, since a clock that runs ahead
    /// by all that one proxy ever inserted makes everything old, for all who then hear of that
    /// clock. If it was not there, the clock is behind until it is
    /// [heard of](Self::merge_clock).
    pub fn merge_told_counter(
        &mut self,
        backend: BackendId,
        proxy: usize,
        rest: usize,
        tokens: u64,
    ) {
        if let Some(at) = self.slot(backend)
            && let Ok([counter, rest]) = self.counters[at].get_disjoint_mut([proxy, rest])
            && *counter == 0
        {
            *counter = tokens.min(*rest);
            *rest -= *counter;
        }
        self.merge_counter(backend, proxy, tokens);
    }

    /// The same of a proxy that was listened to from its start, so that all it inserted is new.
    pub fn merge_whole_counter(&mut self, backend: BackendId, proxy: usize, inserted_tokens: u64) {
        self.raise_counter(backend, proxy, inserted_tokens, true);
    }

    /// Another proxy's word: all proxies together inserted so many tokens there. What is missing
    /// to that here counts as inserted by `proxy`, who stands for all that are not known.
    pub fn merge_clock(&mut self, backend: BackendId, proxy: usize, tokens: u64) {
        let missing = tokens.saturating_sub(self.clock(backend));
        let counter = self.counter(backend, proxy).saturating_add(missing);
        self.raise_counter(backend, proxy, counter, false);
    }

    /// Another proxy's word: so many tokens count as new there.
    pub fn merge_fresh(&mut self, backend: BackendId, tokens: u64) {
        if let Some(at) = self.slot(backend) {
            self.caches[at].merge_fresh(tokens, self.turnover.step());
        }
    }

    /// How large a backend's cache is, for other proxies; `None` if nothing is known of that.
    pub fn told_capacity(&self, backend: BackendId) -> Option<Capacity> {
        self.slot(backend).and_then(|at| self.caches[at].told())
    }

    /// Another proxy's word: a backend's cache is so large.
    pub fn merge_capacity(&mut self, backend: BackendId, capacity: Capacity) {
        if let Some(at) = self.slot(backend)
            && self.caches[at].merge_capacity(capacity)
        {
            self.look(at);
            self.sum_up();
        }
    }

    /// Tokens a proxy has inserted at a backend, as far as is known.
    pub fn counter(&self, backend: BackendId, proxy: usize) -> u64 {
        let counters = self.slot(backend).map(|at| &self.counters[at]);
        counters.and_then(|counters| counters.get(proxy)).copied().unwrap_or(0)
    }

    /// Tokens inserted at a backend, by all proxies together.
    pub fn clock(&self, backend: BackendId) -> u64 {
        self.slot(backend).map_or(0, |at| self.caches[at].inserted())
    }

    /// A proxy's number is given to another, which has inserted nothing yet. What the former one
    /// inserted counts as inserted by `heir`: clocks never go back.
    pub fn replace_proxy(&mut self, proxy: usize, heir: usize) {
        for counters in &mut self.counters {
            let left = counters.get_mut(proxy).map_or(0, core::mem::take);
            if let Some(counter) = counters.get_mut(heir) {
                *counter = counter.saturating_add(left);
            }
        }
    }

    fn raise_counter(&mut self, backend: BackendId, proxy: usize, tokens: u64, known: bool) {
        let Some(at) = self.slot(backend) else { return };
        let Some(counter) = self.counters[at].get_mut(proxy) else { return };
        let more = tokens.saturating_sub(*counter);
        *counter += more;
        let unused = self.caches[at].inserted() == 0;
        let counted = self.caches[at].hear(more, known, self.turnover.step());
        if unused {
            self.sum_up();
        }
        self.turnover.turn(counted);
        self.look(at);
    }
}
