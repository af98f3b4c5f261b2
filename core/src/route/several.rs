//! The words of requests that several backends hear: who is meant, who is asked, what it changed.
//!
//! Plain data, without behaviour.

use crate::fleet::{BackendId, BackendSpec};
use crate::route::Failure;
use crate::wire::facts::Facts;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// Which of all backends a request means. vLLM ignores unknown query parameters and headers, so
/// both go on to the backends as they came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Narrow {
    /// Those that serve this model: query parameter `vllm_proxy_model`, or header
    /// `x-vllm-proxy-model`.
    pub model: Option<String>,
    /// The one at this address: query parameter `vllm_proxy_backend`, or header
    /// `x-vllm-proxy-backend`.
    pub backend: Option<String>,
}

/// What an administrative request changes in a backend that answers it with success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Whether it sleeps or is paused: it must be asked how it is now.
    Rest,
    /// Its prefix cache is empty.
    Cache,
    /// Its adapters: it must be asked for its models.
    Adapters,
    /// Its weights, and with them all that it had cached.
    Weights,
}

/// What a request did to an adapter, on backends that answered it with success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterChange {
    /// Which one.
    pub name: String,
    /// The body of the request that loaded it; `None`: it was unloaded.
    pub load: Option<Arc<[u8]>>,
    /// The model that the request was narrowed to.
    pub model: Option<String>,
}

/// One backend that is to be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Which one.
    pub backend: BackendId,
    /// Where and how to reach it.
    pub spec: Arc<BackendSpec>,
}

/// Whom to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gathering {
    /// In the order of upstreams. None only where the proxy has something to say by itself.
    pub asked: Vec<Asked>,
    /// What the proxy itself adds to metrics.
    pub facts: Option<Box<Facts>>,
}

/// What became of one backend's part in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo {
    /// Whose.
    pub backend: BackendId,
    /// What changed there, if it answered.
    pub result: Result<Option<Change>, Failure>,
}
