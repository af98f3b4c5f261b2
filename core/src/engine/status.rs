//! What the proxy says of itself: numbers for `/metrics`.
//!
//! Copies plain data: how it looks is [`wire::facts`](crate::wire::facts)'s.

use super::Engine;
use super::several::address;
use crate::fleet::Backend;
use crate::wire::facts::{BackendFacts, Facts, SharingFacts};

impl Engine {
    /// Numbers of this moment.
    pub(super) fn facts(&self, everyone: &[&Backend]) -> Facts {
        let backends = everyone.iter().map(|backend| BackendFacts {
            address: address(backend),
            up: backend.serves(),
            in_flight: u64::from(backend.load.in_flight()),
            in_flight_elsewhere: u64::from(backend.load.others.in_flight()),
            answers: backend.counts.answers,
            failures: backend.counts.failures,
            broken: backend.counts.broken,
            unheard: backend.counts.unheard,
            promised_tokens: backend.counts.promised_tokens,
            cached_tokens: backend.counts.cached_tokens,
        });
        let (backends, sharing) = (backends.collect(), self.sharing_facts());
        Facts { backends, body_bytes: self.body_bytes, sharing }
    }

    fn sharing_facts(&self) -> Option<SharingFacts> {
        let (sharing, report) = (self.sharing.as_ref()?, self.reported()?);
        let company = self.company();
        Some(SharingFacts {
            proxy: sharing.own.0,
            alive: company.alive,
            alone: self.is_cut_off(),
            missed: company.missed,
            connected: report.connected,
            lag: report.lag,
            lost_batches: report.lost_batches,
            unreadable: report.unreadable,
            reason: report.reason.clone(),
        })
    }
}
