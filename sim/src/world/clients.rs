//! How clients behave: who streams, who leaves, how many bytes make a token.

use crate::trace::Request;
use vllm_proxy_core::rng::{Rng, mix};
use vllm_proxy_core::time::Duration;

/// Bytes of a token on average, in thousandths.
const TOKEN_BYTES_MILLI: f64 = 4_000.0;
/// Whoever leaves does so within this time.
const PATIENCE_MAX: Duration = Duration::from_secs(20);

/// What clients are like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clients {
    /// The part of them that asks for a stream.
    pub streaming: f64,
    /// The part of them that leaves at some moment within 20 s, if not answered by then.
    pub leaving: f64,
    /// By how much texts differ in bytes a token: the sigma of a log-normal distribution. Prompts
    /// with the same second block are one text.
    pub sigma: f64,
    /// How many names of models and adapters they use, one by one as often as another: the same
    /// text under another name is another prompt.
    pub names: u32,
}

impl Default for Clients {
    /// All stream, none leaves, a token is 4 bytes, there is one model.
    fn default() -> Self {
        Self { streaming: 1.0, leaving: 0.0, sigma: 0.0, names: 1 }
    }
}

/// The one behind a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Client {
    pub(super) stream: bool,
    pub(super) patience: Option<Duration>,
    pub(super) token_bytes_milli: u64,
    /// Which proxy it comes to.
    pub(super) lot: u32,
    pub(super) name: u32,
}

impl Clients {
    /// The client behind request `id`: the same whatever others there are.
    pub(super) fn draw(&self, request: &Request, seed: u64, id: usize) -> Client {
        let mut rng = Rng::new(mix(seed ^ mix(id as u64 + 1)));
        let stream = unit(&mut rng) < self.streaming;
        let leaves = unit(&mut rng) < self.leaving;
        let after = PATIENCE_MAX.mul_f64(unit(&mut rng));
        Client {
            stream,
            patience: leaves.then_some(after),
            token_bytes_milli: self.token_bytes_milli(request, seed),
            lot: (rng.next_u64() >> 32) as u32,
            name: rng.below(u64::from(self.names)) as u32,
        }
    }

    fn token_bytes_milli(&self, request: &Request, seed: u64) -> u64 {
        // What all prompts of a trace begin with would make them all one text.
        let text = request.blocks.get(1).or(request.blocks.first()).copied().unwrap_or(0);
        let mut rng = Rng::new(mix(seed ^ mix(text)));
        // Twelve of them vary as a normal distribution does, and need no logarithm.
        let normal = (0..12).map(|_| unit(&mut rng)).sum::<f64>() - 6.0;
        (TOKEN_BYTES_MILLI * (self.sigma * normal).exp()).round().max(1.0) as u64
    }
}

/// A number from 0 to 1, 1 apart: 53 bits, all that a float can hold.
fn unit(rng: &mut Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}
