//! Renumber: what stays true of upstreams when the operator names others.
//!
//! Owns how numbers of the former list become numbers of the new one. Does not know what an
//! upstream is called, nor who belongs to it.

use super::{BackendSpec, Fleet};
use crate::time::Instant;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// An upstream of a new list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Upstream {
    /// Its number in the list before, if it stood there.
    pub was: Option<u16>,
    /// Whether it accepts model names it does not list.
    pub forwards_unknown: bool,
}

impl Fleet {
    /// The operator names other upstreams, and these are the backends of all of them.
    pub(crate) fn renumber(&mut self, upstreams: &[Upstream], specs: &[BackendSpec], now: Instant) {
        let numbered = || (0_u16..).zip(upstreams);
        // Who listed its models under a former number has done so, whoever of it is left.
        let listed = numbered()
            .filter(|(_, upstream)| upstream.was.is_some_and(|was| self.listed.contains(&was)))
            .map(|(number, _)| number)
            .collect();
        self.listed = listed;
        self.discovered(specs, now);
        if let Some(mut first) = self.first_model.take() {
            let stays = self.backend(first.place.1).filter(|backend| !backend.leaving);
            let place = match stays {
                Some(backend) => Some(backend.place()),
                None => numbered()
                    .find(|(_, upstream)| upstream.was == Some(first.place.0))
                    .map(|(number, _)| (number, first.place.1)),
            };
            self.first_model = place.map(|place| {
                first.place = place;
                first
            });
        }
        let lists = self.staying().into_iter();
        let lists: Vec<_> =
            lists.map(|backend| (backend.place(), Arc::clone(&backend.models))).collect();
        for (place, models) in lists {
            if let Some(first) = models.first() {
                self.consider_first(place, &first.id);
            }
        }
    }
}
