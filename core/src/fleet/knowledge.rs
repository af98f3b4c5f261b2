//! Knowledge: what the whole fleet serves, and whether that is known yet.
//!
//! Owns the answers drawn from all backends' lists together: the default model, the merged list,
//! the version. Does not know how an answer looks on the wire.

use super::{Backend, Fleet, Lost, find};
use crate::fleet::{BackendId, State, TokenLength};
use crate::time::Instant;
use crate::wire::probe::ModelCard;
use alloc::borrow::{Cow, ToOwned};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cmp::Ordering;
use log::{info, warn};

/// The first model of the first upstream that has listed any.
#[derive(Debug)]
pub(super) struct FirstModel {
    /// The backend whose word it is, by its place in lists.
    pub(super) place: (u16, BackendId),
    name: Arc<str>,
}

impl Fleet {
    /// Takes a backend's list of models in place of its former one.
    pub(super) fn list(&mut self, id: BackendId, cards: Vec<ModelCard>) {
        let Some(backend) = find(&mut self.backends, id) else {
            return;
        };
        let former = core::mem::replace(&mut backend.models, cards.into());
        let ids = |cards: &[ModelCard]| cards.iter().map(|card| card.id.clone()).collect();
        // vLLM writes `created` and permission ids anew at each call: only names tell a change.
        if !former.iter().map(|card| &card.id).eq(backend.models.iter().map(|card| &card.id)) {
            let (old, new): (BTreeSet<String>, BTreeSet<String>) =
                (ids(&former), ids(&backend.models));
            let mut clashes = 0;
            for card in backend.models.iter().filter(|card| !old.contains(&card.id)) {
                clashes += u32::from(self.names.add(&card.id, card.root.as_deref(), id));
            }
            if clashes > 0 {
                // A mistake that no request would tell: some would be answered by the one model,
                // some by the other.
                warn!(backend:% = id, names = clashes; "others serve other models by these names");
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
    pub(super) fn consider_first(&mut self, place: (u16, BackendId), name: &str) {
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

    /// Whether somebody was found who may take requests as soon as he has said what he serves.
    pub(crate) fn any_newcomer(&self) -> bool {
        self.backends.iter().any(|backend| {
            !backend.leaving && !backend.drain.is_on() && backend.health.state() == State::Unknown
        })
    }

    /// Whether every one of so many upstreams has listed its models at some time.
    pub(crate) fn all_listed(&self, upstreams: u16) -> bool {
        self.listed.range(..upstreams).count() == usize::from(upstreams)
    }

    /// Whether any backend lists this name or ever did.
    pub(crate) fn knows(&self, name: &str) -> bool {
        self.names.knows(name)
    }

    /// Whether a backend of this name is up beyond doubt, and takes new requests.
    pub(crate) fn has_up(&self, name: &str) -> bool {
        let mut holders = self.names.holders(name).iter().filter_map(|&id| self.backend(id));
        holders.any(|backend| backend.is_up() && backend.takes())
    }

    /// Whether any backend answers, if only what it keeps.
    pub(crate) fn any_serves(&self) -> bool {
        self.backends.iter().any(Backend::serves)
    }

    /// Whether it makes no difference, to a request for any base model, who takes it.
    pub(crate) fn serves_alike(&self) -> bool {
        let mut serving = self.backends.iter().filter(|backend| backend.takes());
        let names =
            |backend: &Backend| backend.bases().map(ToOwned::to_owned).collect::<BTreeSet<_>>();
        let Some(first) = serving.next().map(names) else { return true };
        serving.all(|backend| names(backend) == first)
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

    /// Whether [`refreshed`](Self::refreshed) would say that it is under way.
    pub(crate) fn would_refresh(&self, now: Instant) -> bool {
        let mut staying = self.backends.iter().filter(|backend| !backend.leaving);
        let begins = !self.rounds.is_fresh(now)
            && staying.any(|backend| backend.health.state() != State::Down);
        self.rounds.running() || begins
    }

    /// The cards of all backends that take requests: each name once, base names first, then in
    /// the order of upstreams, backends and their lists. The first card of a name counts, with
    /// the smallest `max_model_len` of all: a longer prompt is not accepted everywhere.
    pub(crate) fn cards(&self) -> Vec<Listed<'_>> {
        let mut places: BTreeMap<&str, usize> = BTreeMap::new();
        let mut cards: Vec<Listed<'_>> = Vec::new();
        for card in self.taking().iter().flat_map(|backend| backend.models.iter()) {
            match places.get(card.id.as_str()) {
                Some(&place) => {
                    let listed = &mut cards[place];
                    listed.length = listed.length.min(card.max_model_len.or(listed.length));
                }
                None => {
                    places.insert(&card.id, cards.len());
                    cards.push(Listed { card, length: card.max_model_len });
                }
            }
        }
        cards.sort_by_key(|listed| listed.card.parent.is_some());
        cards
    }

    /// Whether any backend that takes requests asks for a key.
    pub(crate) fn any_keyed(&self) -> bool {
        self.backends.iter().any(|backend| backend.keyed && backend.takes())
    }

    /// Whether any backend of these upstreams takes requests.
    pub(crate) fn resolves(&self, upstreams: &[u16]) -> bool {
        !upstreams.is_empty()
            && self.backends.iter().any(|backend| backend.is_of(upstreams) && backend.takes())
    }

    /// Who comes back, or joins, gets the adapters of its models that it does not list.
    pub(super) fn restore(&mut self, id: BackendId) {
        let lacks = |name: &str| !self.names.holders(name).contains(&id);
        let missing = self.adapters.iter().filter(|(name, loaded)| {
            self.names.holders(&loaded.model).contains(&id) && lacks(name)
        });
        let missing: Vec<_> = missing.map(|(_, loaded)| (id, Arc::clone(&loaded.load))).collect();
        self.to_load.extend(missing);
    }

    /// The next adapter to be loaded.
    pub(crate) fn poll_load(&mut self) -> Option<(BackendId, Arc<[u8]>)> {
        self.to_load.pop_front()
    }

    /// A backend was told to load or unload an adapter: what it listed is old.
    pub(crate) fn doubt_list(&mut self, id: BackendId) {
        self.rounds.stale();
        if let Some(backend) = self.backend_mut(id) {
            backend.list_is_old = true;
        }
    }

    /// Whether any list that counts is known to be old. Its backend is being asked.
    pub(crate) fn any_list_is_old(&self) -> bool {
        self.backends.iter().any(|backend| backend.list_is_old && backend.takes())
    }

    /// The lowest version among the backends that take requests; the first of equal ones.
    pub(crate) fn version(&self) -> Option<&str> {
        let taking = self.taking();
        let versions = taking.into_iter().filter_map(|backend| backend.version.as_deref());
        versions.min_by(|a, b| compare_versions(a, b))
    }

    /// All backends that have not left, in the order of upstreams.
    pub(crate) fn staying(&self) -> Vec<&Backend> {
        let mut staying: Vec<&Backend> =
            self.backends.iter().filter(|backend| !backend.leaving).collect();
        staying.sort_by_key(|backend| backend.place());
        staying
    }

    /// How long a model's tokens are, as far as it is learned.
    pub(crate) fn token_length(&self, name: &str) -> TokenLength {
        self.names.token_length(name)
    }

    /// The backends that list a name.
    pub(crate) fn holders(&self, name: &str) -> &[BackendId] {
        self.names.holders(name)
    }

    fn taking(&self) -> Vec<&Backend> {
        let mut taking: Vec<&Backend> =
            self.backends.iter().filter(|backend| backend.takes()).collect();
        taking.sort_by_key(|backend| backend.place());
        taking
    }
}

impl Backend {
    /// Its base names and aliases, in its order.
    pub(crate) fn bases(&self) -> impl Iterator<Item = &str> {
        self.models.iter().filter(|card| card.parent.is_none()).map(|card| card.id.as_str())
    }
}

/// A card of the merged list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Listed<'a> {
    card: &'a ModelCard,
    /// The smallest of all that list it.
    length: Option<u64>,
}

impl<'a> Listed<'a> {
    pub(crate) fn id(&self) -> &'a str {
        &self.card.id
    }

    pub(crate) const fn is_base(&self) -> bool {
        self.card.parent.is_none()
    }

    /// As JSON.
    pub(crate) fn text(&self) -> Cow<'a, str> {
        self.card.with_length(self.length)
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
