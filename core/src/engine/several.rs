//! Requests that several backends hear: whom they mean, and what follows from what was answered.
//!
//! Knows the fleet; what the answers say and how they become one is told by
//! [`merge`](crate::wire::merge).

use super::Engine;
use crate::fleet::{Backend, BackendId};
use crate::route::{
    AdapterChange, Asked, Change, Decision, Echo, Failure, Gathering, Narrow, Refusal, RequestMeta,
    Who,
};
use crate::time::Instant;
use alloc::boxed::Box;
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;
use log::info;

impl Engine {
    /// Says whom a request means.
    pub(super) fn gather(&self, request: &RequestMeta<'_>, now: Instant) -> Decision {
        let everyone = self.fleet.staying();
        let none = Narrow::default();
        let narrow = request.narrow.unwrap_or(&none);
        let mut meant = match self.meant(&everyone, narrow) {
            Ok(meant) => meant,
            Err(refusal) => return Decision::Refuse(refusal),
        };
        // An adapter is unloaded where it is loaded.
        let loaded = request.unloads.then_some(request.adapter).flatten();
        let loaded = loaded.map_or(&[][..], |adapter| self.fleet.holders(adapter));
        if meant.iter().any(|backend| loaded.contains(&backend.id)) {
            meant.retain(|backend| loaded.contains(&backend.id));
        } else if request.of_default
            && *narrow == none
            && let Some(default) = self.default_name()
        {
            let holders = self.fleet.holders(&default);
            meant.retain(|backend| holders.contains(&backend.id));
        }
        let facts = request.facts.then(|| Box::new(self.facts(&everyone, now)));
        match request.who {
            // Nobody misses what a backend that is down would have said.
            Who::Each => meant.retain(|backend| backend.serves()),
            Who::Named if meant.len() > 1 => {
                let backends = meant.iter().map(|backend| address(backend)).collect();
                return Decision::Refuse(Refusal::Ambiguous { backends });
            }
            Who::Named
            | Who::Every
            | Who::Backend
            | Who::Owner
            | Who::Realtime
            | Who::Health
            | Who::Models
            | Who::Version
            | Who::Live
            | Who::Status
            | Who::Events
            | Who::Page
            | Who::Acts(_)
            | Who::Explain => {}
        }
        if meant.is_empty() && facts.is_none() {
            return Decision::Refuse(Refusal::Starting);
        }
        let asked = meant
            .iter()
            .map(|backend| Asked { backend: backend.id, spec: Arc::clone(&backend.spec) });
        Decision::Gather(Gathering { asked: asked.collect(), facts })
    }

    /// Those of all backends that a request means.
    fn meant<'a>(
        &self,
        everyone: &[&'a Backend],
        narrow: &Narrow,
    ) -> Result<Vec<&'a Backend>, Refusal> {
        let mut meant = everyone.to_vec();
        if let Some(wanted) = &narrow.backend {
            meant.retain(|backend| address(backend) == *wanted);
            if meant.is_empty() {
                return Err(Refusal::UnknownBackend {
                    backend: wanted.clone(),
                    backends: everyone.iter().map(|backend| address(backend)).collect(),
                });
            }
        }
        if let Some(model) = &narrow.model {
            let holders = self.fleet.holders(model);
            meant.retain(|backend| holders.contains(&backend.id));
            if meant.is_empty() && self.fleet.any_keyed() {
                // Which models there are is not for everyone.
                return Err(Refusal::UnknownModel { model: model.clone(), bases: Vec::new() });
            }
            if meant.is_empty() {
                return Err(self.unknown_model(model));
            }
        }
        Ok(meant)
    }

    /// What became of a gathering's parts, and of which adapter. Anyone can send such requests, so
    /// only a backend's own success counts.
    pub fn heard(&mut self, echoes: &[Echo], adapter: Option<AdapterChange>, now: Instant) {
        self.share_time(now);
        if let Some(AdapterChange { name, load, model }) = adapter
            && let Some(model) = model.map(Arc::from).or_else(|| self.default_name())
        {
            self.fleet.adapters.changed(name, load, model);
        }
        for echo in echoes {
            match echo.result {
                Ok(None) => {}
                Ok(Some(change)) => self.changed(echo.backend, change, now),
                // A client can ask for more than we take in: that is nobody's fault.
                Err(Failure::Connect | Failure::Lost) => {
                    self.fleet.failed(echo.backend, now);
                    self.count_unheard(echo.backend);
                }
                Err(_) => self.count_unheard(echo.backend),
            }
        }
    }

    fn count_unheard(&mut self, backend: BackendId) {
        if let Some(backend) = self.fleet.backend_mut(backend) {
            backend.counts.unheard += 1;
        }
    }

    fn changed(&mut self, id: BackendId, change: Change, now: Instant) {
        let Some(backend) = self.fleet.backend_mut(id) else { return };
        match change {
            Change::Rest => {
                backend.rest.doubt();
                backend.shared.changed();
            }
            Change::Adapters => {
                backend.shared.changed();
                self.fleet.doubt_list(id);
            }
            Change::Cache | Change::Weights => {
                backend.shared.cleared();
                backend.doubt_learned();
                self.fleet.index.iter_mut().for_each(|index| index.wipe(id));
                self.tell_of(id);
                return info!(backend:% = id, change:?; "what it had cached is gone");
            }
        }
        self.tell_of(id);
        self.fleet.changed(id, now);
    }
}

/// By which name requests, metrics and errors know a backend.
pub(super) fn address(backend: &Backend) -> alloc::string::String {
    backend.spec.address.to_string()
}
