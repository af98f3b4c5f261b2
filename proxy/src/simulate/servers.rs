//! The options that say what simulated servers are like: how many, how fast, how truthful.

use super::args::{count_to, positive};
use super::fault::Planned;
use crate::usage::{Invalid, UsageError};
use std::time::Duration;
use vllm_proxy_sim::trace::Workload;
use vllm_proxy_sim::vllm::{Gpu, Options};
use vllm_proxy_sim::world::{Fault, Manner, Tells};

/// What `--usage` takes.
const TELLS: [(&str, Tells); 8] = [
    ("true", Tells::Truth),
    ("none", Tells::Nothing),
    ("uncached", Tells::NotWhatWasCached),
    ("zeros", Tells::Zeros),
    ("most", Tells::Most),
    ("more-cached", Tells::MoreCachedThanPrompt),
    ("none-cached", Tells::NoneCached),
    ("noise", Tells::Noise),
];

/// Servers and what happens to them.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Servers")]
pub(crate) struct Servers {
    /// Servers; several numbers, separated by commas, are simulated one after another
    #[arg(
        short = 'n', long, value_name = "N", default_value = "8", value_delimiter = ',',
        value_parser = count_to(256)
    )]
    pub(super) backends: Vec<usize>,

    /// The first N servers run at half speed
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "speed")]
    slow: usize,

    /// How fast servers are, in per cent of the hardware: one for each, from the first again when
    /// there are more servers
    #[arg(long, value_name = "PERCENTS", value_delimiter = ',', value_parser = count_to(1_000))]
    speed: Vec<usize>,

    /// No server looks for prefixes
    #[arg(long)]
    no_prefix_caching: bool,

    /// Metrics say nothing of KV caches: not how many tokens fit in, not how many were found
    #[arg(long)]
    no_cache_metrics: bool,

    /// What answers say of their cost: true, none, uncached (all but what was cached), or one of
    /// the lies zeros, most, more-cached, none-cached and noise
    #[arg(long, value_name = "KIND", default_value = "true", value_parser = tells)]
    usage: Tells,

    /// Something that happens to a server: KIND:SERVER@PERCENT; repeatable
    ///
    /// KIND is down (it ends), up (it is back, with an empty cache), forget (its cache is lost),
    /// stall (it does nothing for 10 s), leave (it is drained: its name goes, it answers what it
    /// has), join (its name is back) or flap (it ends and is back every 5 s from then on). Servers
    /// are numbered from 0, PERCENT is when: how much of the trace's time is over.
    #[arg(long, value_name = "FAULT", value_parser = Planned::parse)]
    fault: Vec<Planned>,

    #[command(flatten)]
    hardware: Hardware,
}

/// The constants of a simulated server, each of which may be another.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Hardware")]
struct Hardware {
    /// The hardware with an 8B model whose constants are used where no option says otherwise: h100
    /// or a100
    #[arg(long, value_name = "NAME", default_value = "h100", value_parser = gpu)]
    gpu: String,

    /// Tokens that each KV cache holds; 0: without limit [h100: 400000, a100: 400000]
    #[arg(long, value_name = "N")]
    kv_tokens: Option<u64>,

    /// Milliseconds of each step, whatever is in it [h100: 7, a100: 12]
    #[arg(long, value_name = "MS", value_parser = positive)]
    step_ms: Option<f64>,

    /// Prompt tokens a second while prompts are short [h100: 16000, a100: 8000]
    #[arg(long, value_name = "N", value_parser = positive)]
    prefill_rate: Option<f64>,

    /// Microseconds that each request in a step adds [h100: 30, a100: 50]
    #[arg(long, value_name = "US", value_parser = positive)]
    decode_us: Option<f64>,

    /// Microseconds that each 1000 tokens of their contexts add [h100: 56, a100: 85]
    #[arg(long, value_name = "US", value_parser = positive)]
    context_us: Option<f64>,

    /// Tokens of a step at most, of prompts and answers [h100: 8192, a100: 2048]
    #[arg(long, value_name = "N", value_parser = count_to(1 << 24))]
    max_num_batched_tokens: Option<usize>,

    /// Requests in a step at most [h100: 256, a100: 256]
    #[arg(long, value_name = "N", value_parser = count_to(1 << 16))]
    max_num_seqs: Option<usize>,
}

impl Servers {
    /// Checks what depends on several options.
    pub(super) fn check(&self) -> Result<(), UsageError> {
        let least = self.backends.iter().copied().min().unwrap_or(1);
        let Some(fault) = self.fault.iter().find(|fault| fault.server >= least) else {
            return Ok(());
        };
        let expected = format!("a server from 0 to {}", least - 1);
        let server = fault.server.to_string();
        Err(UsageError::value("--fault", &server, &Invalid::expected(expected)))
    }

    /// What so many servers are started with.
    pub(super) fn options(&self, count: usize, workload: &Workload) -> Vec<Options> {
        let gpu = self.hardware.gpu();
        let speed = |index: usize| match self.speed.len() {
            0 if index < self.slow => 50,
            0 => 100,
            speeds => self.speed[index % speeds] as u64,
        };
        let server = |index| Options {
            kv_tokens: self.hardware.kv_tokens(),
            prefix_caching: !self.no_prefix_caching,
            ..Options::new(gpu.at_speed(speed(index)), workload.block_tokens)
        };
        (0..count).map(server).collect()
    }

    /// What they say of themselves.
    pub(super) fn manners(&self, count: usize) -> Vec<Manner> {
        let counts = !self.no_cache_metrics;
        let kv_tokens = counts.then(|| self.hardware.kv_tokens());
        vec![Manner { tells: self.usage, kv_tokens, counts, ..Manner::default() }; count]
    }

    pub(super) fn faults(&self, span: Duration) -> Vec<Fault> {
        self.fault.iter().flat_map(|fault| fault.within(span)).collect()
    }

    /// Tokens that so many caches hold together.
    pub(super) fn memory(&self, count: usize) -> u64 {
        self.hardware.kv_tokens().saturating_mul(count as u64)
    }

    pub(super) fn gpu(&self) -> &str {
        &self.hardware.gpu
    }
}

impl Hardware {
    fn gpu(&self) -> Gpu {
        let named = Gpu::named(&self.gpu).unwrap_or(Gpu::H100);
        let nanos = |given: Option<f64>, unit: f64, named: u64| {
            given.map_or(named, |given| (given * unit).round() as u64)
        };
        Gpu {
            fixed_ns: nanos(self.step_ms, 1e6, named.fixed_ns),
            prefill_ns: nanos(self.prefill_rate.map(f64::recip), 1e9, named.prefill_ns),
            decode_ns: nanos(self.decode_us, 1e3, named.decode_ns),
            context_ns: nanos(self.context_us, 1.0, named.context_ns),
            tokens_max: self
                .max_num_batched_tokens
                .and_then(|tokens| u32::try_from(tokens).ok())
                .unwrap_or(named.tokens_max),
            requests_max: self.max_num_seqs.unwrap_or(named.requests_max),
            kv_tokens: self.kv_tokens(),
        }
    }

    fn kv_tokens(&self) -> u64 {
        match self.kv_tokens {
            None => Gpu::named(&self.gpu).unwrap_or(Gpu::H100).kv_tokens,
            Some(0) => u64::MAX,
            Some(tokens) => tokens,
        }
    }
}

fn gpu(name: &str) -> Result<String, &'static str> {
    Gpu::named(name).map(|_| name.to_owned()).ok_or("h100 or a100")
}

fn tells(name: &str) -> Result<Tells, String> {
    let found = TELLS.iter().find(|(known, _)| *known == name).map(|(_, tells)| *tells);
    found.ok_or_else(|| format!("one of {}", TELLS.map(|(name, _)| name).join(", ")))
}
