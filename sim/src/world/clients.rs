//! How clients behave: who streams, who leaves, how many bytes make a token.

use crate::trace::Request;
use vllm_proxy_core::rng::{Rng, mix};
use vllm_proxy_core::time::Duration;

/// Bytes of a token on average.
const TOKEN_BYTES: f64 = 4.0;
/// Whoever leaves does so within this time.
const PATIENCE_MAX: Duration = Duration::from_secs(20);

/// What clients are like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clients {
    /// The part of them that asks for a stream.
    pub streaming: f64,
    /// The part of them that leaves at some moment within 20 s, if not answered by then.
    pub leaving: f64,
    /// By how much prompts differ in bytes a token: the sigma of a log-normal distribution.
    pub sigma: f64,
}

impl Default for Clients {
    /// All stream, none leaves, a token is 4 bytes.
    fn default() -> Self {
        Self { streaming: 1.0, leaving: 0.0, sigma: 0.0 }
    }
}

/// The one behind a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Client {
    pub(super) stream: bool,
    pub(super) patience: Option<Duration>,
    pub(super) prompt_bytes: u64,
    /// Which proxy it comes to.
    pub(super) lot: u32,
}

impl Clients {
    /// The client behind request `id`: the same whatever others there are.
    pub(super) fn draw(&self, request: &Request, seed: u64, id: usize) -> Client {
        let mut rng = Rng::new(mix(seed ^ mix(id as u64 + 1)));
        let mut unit = || (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        let stream = unit() < self.streaming;
        let leaves = unit() < self.leaving;
        let after = PATIENCE_MAX.mul_f64(unit());
        // Twelve of them vary as a normal distribution does, and need no logarithm.
        let normal = (0..12).map(|_| unit()).sum::<f64>() - 6.0;
        let bytes = f64::from(request.prompt) * TOKEN_BYTES * (self.sigma * normal).exp();
        Client {
            stream,
            patience: leaves.then_some(after),
            prompt_bytes: bytes.round() as u64,
            lot: (rng.next_u64() >> 32) as u32,
        }
    }
}
