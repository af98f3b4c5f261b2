//! Draining: what operators order, and what is said where nobody is left to take a request.
//!
//! Knows whom an order means. Who may give one is not known here (see [`routes`]), nor what follows
//! from it for choices (see [`fleet`](crate::fleet)).
//!
//! [`routes`]: crate::wire::routes

use super::Engine;
use super::several::address;
use crate::fleet::{BackendId, BackendName};
use crate::route::{Act, Decision, Narrow, Refusal};
use crate::time::Instant;
use crate::wire::drained::{self, Drained};
use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;

impl Engine {
    /// An operator orders something of one backend. The answer says how it stands then, whether
    /// that is a change or not.
    pub(super) fn act(&mut self, act: Act, narrow: Option<&Narrow>, now: Instant) -> Decision {
        let Some(wanted) = narrow.and_then(|narrow| narrow.backend.as_deref()) else {
            return Decision::Answer(drained::nameless(&self.addresses()));
        };
        let id = match self.find(wanted)[..] {
            [id] => id,
            [] => {
                let (backend, backends) = (wanted.to_owned(), self.addresses());
                return Decision::Refuse(Refusal::UnknownBackend { backend, backends });
            }
            ref several => {
                let several = several.iter().filter_map(|&id| self.fleet.backend(id));
                let several: Vec<_> = several.map(address).collect();
                return Decision::Answer(drained::ambiguous(wanted, &several));
            }
        };
        let held = self.fleet.backend(id).is_some_and(|backend| backend.drain.is_labelled());
        let changed = match act {
            Act::Drain => self.fleet.drain(id),
            Act::Undrain if held => return Decision::Answer(drained::held(wanted)),
            Act::Undrain => self.fleet.undrain(id),
        };
        if changed {
            self.tell_of(id);
            self.shown.change();
        }
        let Some(backend) = self.fleet.backend_mut(id) else {
            return Decision::Refuse(Refusal::Starting);
        };
        backend.load.expire(now);
        let told = Drained {
            address: address(backend),
            draining: backend.drain.is_on(),
            by_label: held,
            in_flight: backend.load.in_flight(),
            in_flight_elsewhere: backend.load.others.in_flight(),
        };
        Decision::Answer(told.answer())
    }

    /// Whom an operator means: by an address or, if he named an upstream, all that it resolves to.
    fn find(&self, wanted: &str) -> Vec<BackendId> {
        let mut found = self.fleet.staying();
        found.retain(|backend| address(backend) == wanted);
        if found.is_empty() {
            found = self.fleet.called(wanted);
        }
        found.into_iter().map(|backend| backend.id).collect()
    }

    fn addresses(&self) -> Vec<String> {
        self.fleet.staying().into_iter().map(address).collect()
    }

    /// Why nobody takes a request for a model that is known.
    pub(super) fn unserved(&self, model: &str) -> Refusal {
        let drained = self.fleet.is_drained(model);
        let model = model.to_owned();
        if drained { Refusal::Drained { model: Some(model) } } else { Refusal::ModelDown { model } }
    }

    /// Why nobody takes any request.
    pub(super) fn unready(&self) -> Refusal {
        if self.fleet.any_drained() && !self.fleet.any_takes() {
            Refusal::Drained { model: None }
        } else {
            Refusal::Starting
        }
    }

    /// How often operators had backends drained or undrained, for those of which they did, by what
    /// all proxies call them: to be kept for proxies that start. None without other proxies.
    pub fn drains(&self) -> impl Iterator<Item = (BackendName, u64)> + '_ {
        // One that is leaving may have the name of another, which is the one that hears orders.
        let names = self.sharing.iter().flat_map(|sharing| &sharing.names);
        let changes = |id| self.fleet.backend(id).map_or(0, |backend| backend.drain.changes());
        let drains = names.map(move |(&name, &id)| (name, changes(id)));
        drains.filter(|(_, changes)| *changes > 0)
    }
}
