//! Names: every model name the fleet knows, and which backends list it.
//!
//! Owns the index from a name to its backends, and the memory of names whose backends are gone.
//! Does not know whether a backend is up.

use crate::fleet::turns::Turns;
use crate::fleet::{Average, BackendId, TokenLength};
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// Names remembered after the last backend that listed them left. Each costs its length and about
/// 200 bytes; a fleet that forgets more than this has gone through many thousand adapters, and
/// the oldest of them are asked for no more.
const REMEMBERED_MAX: usize = 10_000;

/// Names of which other proxies told how long their tokens are, before any backend listed them: for
/// who has just started and asks.
const HEARD_MAX: usize = 1_024;

/// Why a backend no longer has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// It lists its models without this one: an adapter was unloaded, another model is served.
    Unlisted,
    /// It left the fleet, and may come back.
    Left,
}

/// What is known of one name.
#[derive(Debug, Default)]
pub(crate) struct Model {
    /// The backends that list it, or listed it when they were last heard, in order.
    pub(crate) holders: Vec<BackendId>,
    /// Whose turn it is among them.
    pub(crate) turns: Turns,
    /// How long its tokens are, as answers tell.
    pub(crate) token_length: TokenLength,
    /// Where the weights are from, by the word of whoever listed it first.
    root: Option<Arc<str>>,
    /// Its place in the order of being remembered without a holder.
    remembered: Option<u64>,
}

/// The index and the memory.
#[derive(Debug, Default)]
pub(crate) struct Names {
    models: BTreeMap<Arc<str>, Model>,
    remembered: BTreeMap<u64, Arc<str>>,
    next: u64,
    /// How long the tokens of names are that nobody lists yet.
    heard: BTreeMap<Arc<str>, TokenLength>,
}

impl Names {
    /// What is known of a name, with the copy of it that requests share.
    pub(crate) fn find(&mut self, name: &str) -> Option<(Arc<str>, &mut Model)> {
        let shared = Arc::clone(self.models.get_key_value(name)?.0);
        Some((shared, self.models.get_mut(name)?))
    }

    /// Whether any backend lists the name or ever did.
    pub(crate) fn knows(&self, name: &str) -> bool {
        self.models.contains_key(name)
    }

    /// The backends of a name.
    pub(crate) fn holders(&self, name: &str) -> &[BackendId] {
        self.models.get(name).map_or(&[], |model| &model.holders)
    }

    /// How long the tokens of a model of this name are.
    pub(crate) fn token_length(&self, name: &str) -> TokenLength {
        self.models.get(name).map_or_else(TokenLength::default, |model| model.token_length)
    }

    /// Another proxy says how long the tokens of a model of this name are.
    pub(crate) fn hear_length(&mut self, name: &Arc<str>, length: Average) {
        if let Some(model) = self.models.get_mut(name) {
            model.token_length.merge(length);
        } else if self.heard.len() < HEARD_MAX || self.heard.contains_key(name) {
            self.heard.entry(Arc::clone(name)).or_default().merge(length);
        }
    }

    /// A backend lists a name, for weights from there. Says whether others list it for other
    /// weights.
    pub(crate) fn add(&mut self, name: &str, root: Option<&str>, backend: BackendId) -> bool {
        let model = match self.models.get_mut(name) {
            Some(model) => model,
            None => {
                let token_length = self.heard.remove(name).unwrap_or_default();
                let model = Model { token_length, ..Model::default() };
                self.models.entry(Arc::from(name)).or_insert(model)
            }
        };
        if let Some(order) = model.remembered.take() {
            self.remembered.remove(&order);
        }
        let others = model.holders.iter().any(|&holder| holder != backend);
        let differs = others && model.root.as_deref() != root;
        if !others {
            model.root = root.map(Arc::from);
        }
        if let Err(at) = model.holders.binary_search(&backend) {
            model.holders.insert(at, backend);
        }
        differs
    }

    /// A backend lost a name.
    pub(crate) fn remove(&mut self, name: &str, backend: BackendId, why: Lost) {
        let Some((shared, model)) = self.find(name) else {
            return;
        };
        let Ok(at) = model.holders.binary_search(&backend) else {
            return;
        };
        model.holders.remove(at);
        model.turns.forget(backend);
        if !model.holders.is_empty() {
            return;
        }
        match why {
            Lost::Unlisted => {
                self.models.remove(name);
            }
            Lost::Left => {
                let order = self.next;
                if let Some(model) = self.models.get_mut(name) {
                    model.remembered = Some(order);
                }
                self.next += 1;
                self.remembered.insert(order, shared);
                self.trim();
            }
        }
    }

    fn trim(&mut self) {
        while self.remembered.len() > REMEMBERED_MAX {
            if let Some((_, oldest)) = self.remembered.pop_first() {
                self.models.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    const A: BackendId = BackendId(3);
    const B: BackendId = BackendId(7);

    #[test]
    fn one_name_of_two_models_is_told() {
        let mut names = Names::default();
        assert!(!names.add("m", Some("x"), A));
        assert!(!names.add("m", Some("x"), B));
        assert!(names.add("m", Some("y"), BackendId(9)));
        assert!(names.add("m", None, B), "it changed its mind");
        for backend in [A, BackendId(9)] {
            names.remove("m", backend, Lost::Unlisted);
        }
        assert!(!names.add("m", Some("z"), B), "it is alone");
    }

    #[test]
    fn what_was_heard_of_a_name_waits_for_it() {
        let mut names = Names::default();
        let length = |value| Average { samples: 3, value };
        names.hear_length(&Arc::from("m"), length(2_000));
        names.hear_length(&Arc::from("m"), length(3_000));
        assert!(!names.knows("m"));
        names.add("m", None, A);
        assert_eq!(names.token_length("m").told(), length(3_000));
        names.hear_length(&Arc::from("m"), length(4_000));
        assert_eq!(names.token_length("m").told(), length(4_000));
        for number in 0..=HEARD_MAX {
            names.hear_length(&Arc::from(format!("m{number}")), length(2_000));
        }
        assert_eq!(names.heard.len(), HEARD_MAX);
        names.add("m0", None, A);
        assert_eq!(names.heard.len(), HEARD_MAX - 1);
    }

    #[test]
    fn holders_are_in_order_and_once() {
        let mut names = Names::default();
        for backend in [B, A, B] {
            names.add("m", None, backend);
        }
        assert_eq!(names.holders("m"), [A, B]);
        assert_eq!(names.holders("other"), []);
    }

    #[test]
    fn a_name_that_the_last_holder_unlists_is_unknown() {
        let mut names = Names::default();
        names.add("m", None, A);
        names.add("m", None, B);
        names.remove("m", A, Lost::Unlisted);
        assert!(names.knows("m"));
        names.remove("m", A, Lost::Unlisted);
        assert_eq!(names.holders("m"), [B]);
        names.remove("m", B, Lost::Unlisted);
        assert!(!names.knows("m"));
    }

    #[test]
    fn a_name_whose_last_holder_left_is_remembered() {
        let mut names = Names::default();
        names.add("m", None, A);
        names.remove("m", A, Lost::Left);
        assert!(names.knows("m"));
        assert_eq!(names.holders("m"), []);
        names.add("m", None, B);
        assert!(names.remembered.is_empty());
        names.remove("m", B, Lost::Unlisted);
        assert!(!names.knows("m"));
    }

    #[test]
    fn the_memory_is_bounded_and_forgets_the_oldest() {
        let mut names = Names::default();
        names.add("held", None, A);
        for number in 0..=REMEMBERED_MAX {
            let name = format!("m{number}");
            names.add(&name, None, B);
            names.remove(&name, B, Lost::Left);
        }
        assert_eq!(names.remembered.len(), REMEMBERED_MAX);
        assert_eq!(names.models.len(), REMEMBERED_MAX + 1);
        assert!(!names.knows("m0") && names.knows("m1") && names.knows("held"));
    }
}
