//! Adapters: which LoRA adapters clients have loaded, so that a backend that restarts or joins gets
//! them, too.
//!
//! vLLM keeps adapters that were loaded while it runs in its memory only. Owns what was asked for,
//! and for which model. Does not know who lists what.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use log::warn;

/// Adapters remembered; each costs its request, of some hundred bytes.
const ADAPTERS_MAX: usize = 1_024;
/// Longest request remembered. vLLM's has four short fields.
const LOAD_BYTES_MAX: usize = 64 << 10;

/// One adapter.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// The body of the request that loaded it.
    pub(crate) load: Arc<[u8]>,
    /// The model whose backends it was sent to.
    pub(crate) model: Arc<str>,
}

/// The adapters, by name.
#[derive(Debug, Default)]
pub(crate) struct Adapters {
    loaded: BTreeMap<String, Loaded>,
}

impl Adapters {
    /// Backends of `model` did as a client asked: to load it by this request, or to unload it.
    pub(crate) fn changed(&mut self, name: String, load: Option<Arc<[u8]>>, model: Arc<str>) {
        let Some(load) = load else {
            self.loaded.remove(&name);
            return;
        };
        let known = self.loaded.contains_key(&name);
        if load.len() > LOAD_BYTES_MAX || (!known && self.loaded.len() >= ADAPTERS_MAX) {
            warn!(adapter = name.as_str(); "too much to remember an adapter");
            return;
        }
        self.loaded.insert(name, Loaded { load, model });
    }

    /// All of them, by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Loaded)> {
        self.loaded.iter().map(|(name, loaded)| (name.as_str(), loaded))
    }
}
