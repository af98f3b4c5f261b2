//! Knowledge: what the whole fleet serves, and whether that is known yet.
//!
//! Owns the answers drawn from all backends' lists together: the default model, the merged list,
//! the version. Does not know how an answer looks on the wire.

use super::{Backend, Fleet, Lost, find};
use crate::fleet::{BackendId, State};
use crate::time::Instant;
use crate::wire::probe::ModelCard;
use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cmp::Ordering;
use log::info;

/// The first model of the first upstream that has listed any.
#[derive(Debug)]
pub(super) struct FirstModel {
    /// The backend whose word it is, by its place in lists.
    place: (u16, BackendId),
    name: Arc<str>,
}

impl Fleet {
    /// Takes a backend's list of models in place of its former one.
    pub(super) fn list(&mut self, id: BackendId, mut cards: Vec<ModelCard>) {
        let Some(backend) = find(&mut self.backends, id) else {
            return;
        };
        core::mem::swap(&mut backend.models, &mut cards);
        let former = cards;
        let ids = |cards: &[ModelCard]| cards.iter().map(|card| card.id.clone()).collect();
        // vLLM writes `created` and permission ids anew at each call: only names tell a change.
        if !former.iter().map(|card| &card.id).eq(backend.models.iter().map(|card| &card.id)) {
            let (old, new): (BTreeSet<String>, BTreeSet<String>) =
                (ids(&former), ids(&backend.models));
            for name in new.difference(&old) {
                self.names.add(name, id);
            }
            for name in old.difference(&new) {
                self.names.remove(name, id, Lost::Unlisted);
            }
            info!(backend:% = id, models = new.len(); "models changed");
        }
        backend.ever_listed = true;
        self.listed.extend(&backend.upstreams);
        let place = backend.place();
        let first = backend.models.first().map(|card| card.id.clone());
        if let Some(first) = first {
            self.consider_first(place, &first);
        }
    }

    /// The first backend of the first upstream decides, for as long as it exists, whether it is
    /// up or not: a default that moved to another model with each restart would be worse than
    /// one that is down. When it has left, its upstream's others or an earlier upstream may.
    fn consider_first(&mut self, place: (u16, BackendId), name: &str) {
        let stands = self.first_model.as_ref().is_some_and(|first| {
            let left = self.backend(first.place.1).is_none_or(|backend| backend.leaving);
            let earlier = if left { place.0 > first.place.0 } else { place > first.place };
            earlier || (place == first.place && *first.name == *name)
        });
        if stands {
            return;
        }
        if self.first_model.as_ref().is_none_or(|first| *first.name != *name) {
            info!(model = name; "default model changed");
        }
        self.first_model = Some(FirstModel { place, name: Arc::from(name) });
    }

    /// The first model of the first upstream, as far as it is known. While the first round runs,
    /// an upstream that has not answered may yet come before it.
    pub(crate) fn default_model(&self) -> Option<Arc<str>> {
        let first = self.first_model.as_ref()?;
        let certain = first.place.0 == 0 || !self.rounds.first_unfinished();
        certain.then(|| Arc::clone(&first.name))
    }

    /// Whether the first round of probes has yet to end.
    pub(crate) const fn first_round_unfinished(&self) -> bool {
        self.rounds.first_unfinished()
    }

    /// Whether every one of so many upstreams has listed its models at some time.
    pub(crate) fn all_listed(&self, upstreams: u16) -> bool {
        self.listed.range(..upstreams).count() == usize::from(upstreams)
    }

    /// Whether any backend lists this name or ever did.
    pub(crate) fn knows(&self, name: &str) -> bool {
        self.names.knows(name)
    }

    /// Whether a backend of this name is up beyond doubt.
    pub(crate) fn has_up(&self, name: &str) -> bool {
        let mut holders = self.names.holders(name).iter().filter_map(|&id| self.backend(id));
        holders.any(|backend| backend.health.state() == State::Up)
    }

    /// Whether any backend takes requests.
    pub(crate) fn any_serves(&self) -> bool {
        self.backends.iter().any(Backend::serves)
    }

    /// Sees that every list is fresh; false while that is under way. Backends that are down are
    /// not waited for: they would make a wrong name cost a connection's time-out.
    pub(crate) fn refreshed(&mut self, now: Instant) -> bool {
        if !self.rounds.running() && !self.rounds.is_fresh(now) {
            let mut everyone = Vec::new();
            for backend in &mut self.backends {
                let state = backend.health.state();
                if backend.leaving || state == State::Down {
                    continue;
                }
                if state.serves() {
                    backend.health.hurry(now);
                }
                everyone.push(backend.id);
            }
            self.rounds.begin(everyone, now);
            self.ask(now);
        }
        !self.rounds.running()
    }

    /// The cards of all backends that take requests: each name once, base names first, then in
    /// the order of upstreams, backends and their lists.
    pub(crate) fn cards(&self) -> Vec<&ModelCard> {
        let mut seen = BTreeSet::new();
        let serving = self.serving();
        let cards = serving.iter().flat_map(|backend| &backend.models);
        let mut cards: Vec<&ModelCard> = cards.filter(|card| seen.insert(&card.id)).collect();
        cards.sort_by_key(|card| card.parent.is_some());
        cards
    }

    /// The lowest version among the backends that take requests; the first of equal ones.
    pub(crate) fn version(&self) -> Option<&str> {
        let serving = self.serving();
        let versions = serving.into_iter().filter_map(|backend| backend.version.as_deref());
        versions.min_by(|a, b| compare_versions(a, b))
    }

    fn serving(&self) -> Vec<&Backend> {
        let mut serving: Vec<&Backend> =
            self.backends.iter().filter(|backend| backend.serves()).collect();
        serving.sort_by_key(|backend| backend.place());
        serving
    }
}

/// Compares dotted versions by the numbers that their parts begin with; a part without one, and
/// a part that is not there, count as zero.
pub(super) fn compare_versions(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.split('.'), b.split('.'));
    loop {
        match (a.next(), b.next()) {
            (None, None) => return Ordering::Equal,
            (a, b) => match number(a).cmp(&number(b)) {
                Ordering::Equal => {}
                unequal @ (Ordering::Less | Ordering::Greater) => return unequal,
            },
        }
    }
}

fn number(part: Option<&str>) -> u64 {
    let digits = part.unwrap_or("").bytes().take_while(u8::is_ascii_digit);
    digits.fold(0, |sum, digit| sum.saturating_mul(10).saturating_add(u64::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::compare_versions;
    use core::cmp::Ordering::{Equal, Greater, Less};
    use rstest::rstest;

    #[rstest]
    #[case::equal("0.33.0", "0.33.0", Equal)]
    #[case::by_number_not_by_text("0.9.2", "0.33.0", Less)]
    #[case::first_part_first("1.0", "0.99.99", Greater)]
    #[case::missing_part("0.33", "0.33.0", Equal)]
    #[case::missing_part_is_zero("0.33", "0.33.1", Less)]
    #[case::text_after_the_number("0.33.1rc2", "0.33.1+cu129", Equal)]
    #[case::no_number("dev", "0.1", Less)]
    #[case::more_digits_than_a_number_holds("0.99999999999999999999999", "0.33", Greater)]
    #[case::nothing("", "", Equal)]
    fn versions(#[case] a: &str, #[case] b: &str, #[case] expected: core::cmp::Ordering) {
        assert_eq!(compare_versions(a, b), expected);
        assert_eq!(compare_versions(b, a), expected.reverse());
    }
}
