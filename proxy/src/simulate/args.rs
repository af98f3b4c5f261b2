//! The options of `simulate`, and what they mean.

use super::company::Company;
use super::servers::Servers;
use crate::usage::{Invalid, UsageError};
use std::path::PathBuf;
use std::time::Duration;
use vllm_proxy_sim::policies::{self, Named};
use vllm_proxy_sim::report::Bounds;
use vllm_proxy_sim::trace::{Bursts, Kind, MOONCAKE_BLOCK, Workload, generate};
use vllm_proxy_sim::world::{Clients, Setup};

/// Requests that are made up, unless told otherwise.
const MADE_UP: usize = 6_000;
/// Within what time requests come at once in bursts.
const BURST: Duration = Duration::from_secs(3);

const AFTER_HELP: &str = "\
Traffic that is made up:
  tool          40 tools with system prompts of 600 to 16,000 tokens, some far more popular than
                others; a quarter of the sessions are agents that take several steps
  uniform       40 prefixes of 2,000 tokens, all equally popular
  conversation  chats that grow turn by turn
  hot           all share one prefix of 8,000 tokens
  zipf-flip     200 tenants whose popularity turns round half-way
  unique        no two prompts begin alike
  short         the same, most of about 1,000 tokens

Columns:
  TTFT, e2e  seconds until the first and the last token
  TPOT       time from token to token after the first
  hit        the part of all prompt tokens that was found in KV caches; the same as part of what one
             cache of all the memory would find, and of what one without limit would find
  busy       how long the busiest server computed, in means of all
  lost       requests cut off, or without an answer

Examples:
  vllm-proxy simulate tool --rate 4.2
  vllm-proxy simulate conversation_trace.jsonl --rate 0.55 --policy least-load,llmd-affinity,smg
  vllm-proxy simulate tool --rate 3 --fault down:0@50 --fault up:0@70
  vllm-proxy simulate tool --rate 3 --proxies 3 --redis-fault killed@40-60
  vllm-proxy simulate recorded.jsonl --block-tokens 16 --kv-tokens 262144
  vllm-proxy simulate hot --backends 16 --json
  vllm-proxy simulate unique --rate 0.8 --plot pictures

How many GPUs it takes: name the traffic of all servers together, and some numbers of servers. It
is the first number for which the times to first token will do.
  vllm-proxy simulate conversation --total-rate 12 -n 4,6,8,12 --policy cache-aware
Another GPU or model: what a step takes, how fast prompts are computed and how much fits.
  vllm-proxy simulate tool --step-ms 20 --prefill-rate 6000 --kv-tokens 150000 -n 8,16

The simulated server is vLLM in miniature (paged KV cache, continuous batching, chunked prefill,
preemption). It ranks policies; it does not predict the milliseconds of a real cluster. The same
command line prints the same bytes.";

/// Replay a request trace against simulated servers, and compare policies.
///
/// Each policy routes the same requests in a world of its own, in virtual time. No network, no GPU.
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP)]
pub(crate) struct Args {
    /// A file, or the name of traffic that is made up: tool, uniform, conversation, hot, zipf-flip,
    /// unique or short
    ///
    /// A file is a trace as Mooncake published them (JSON lines with timestamp, input_length,
    /// output_length and hash_ids, and, if known, output_hash_ids: those of the blocks that the
    /// answer fills, the first of them the one that the prompt began) or as Azure did in 2023 (CSV
    /// with TIMESTAMP, ContextTokens and GeneratedTokens).
    #[arg(value_name = "TRACE")]
    given: Option<String>,

    // Filled in from `given` when all is checked.
    #[arg(skip)]
    pub(super) trace: String,

    /// Policies to compare, separated by commas; `all` for all
    #[arg(
        short, long = "policy", value_name = "NAMES", value_delimiter = ',',
        default_value = "cache-aware,least-load,round-robin", value_parser = policy,
        long_help = policy_help(), help_heading = "What is compared"
    )]
    policy: Vec<Choice>,

    // Filled in from `policy` when all is checked.
    #[arg(skip)]
    pub(super) policies: Vec<&'static Named>,

    #[command(flatten)]
    pub(super) company: Company,

    #[command(flatten)]
    servers: Servers,

    /// Requests a second and server; the trace's time is compressed or stretched to it
    #[arg(
        short, long, value_name = "R", default_value_t = 0.5, value_parser = positive,
        help_heading = "Traffic"
    )]
    rate: f64,

    /// Requests a second of all servers together, however many there are
    #[arg(
        long, value_name = "R", value_parser = positive, conflicts_with = "rate",
        help_heading = "Traffic"
    )]
    total_rate: Option<f64>,

    /// Only the first N requests [default: 6000 if made up, else all]
    #[arg(long, value_name = "N", value_parser = count_to(10_000_000), help_heading = "Traffic")]
    requests: Option<usize>,

    /// Tokens that each of a trace's hash_ids stands for, and a block of a cache [default: 512]
    #[arg(
        long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536),
        help_heading = "Traffic"
    )]
    block_tokens: Option<u32>,

    /// Requests of 3 s come at once
    ///
    /// Some traces tell the time in steps of 3 s. Without this their requests are spread evenly;
    /// with it their steps are compressed as the rest of their time is.
    #[arg(long, help_heading = "Traffic")]
    bursts: bool,

    /// The part of clients that ask for streams
    #[arg(
        long, value_name = "PART", default_value_t = 1.0, value_parser = part,
        help_heading = "Traffic"
    )]
    streaming: f64,

    /// The part of clients that leave, at some moment within 20 s
    #[arg(
        long, value_name = "PART", default_value_t = 0.0, value_parser = part,
        help_heading = "Traffic"
    )]
    leaving: f64,

    /// By how much texts differ in bytes a token: sigma of a log-normal distribution
    #[arg(
        long, value_name = "SIGMA", default_value_t = 0.0, value_parser = sigma,
        help_heading = "Traffic"
    )]
    sigma: f64,

    /// What all chance follows from
    #[arg(short, long, value_name = "N", default_value_t = 1, help_heading = "Traffic")]
    pub(super) seed: u64,

    /// Print JSON
    #[arg(long, help_heading = "Output")]
    pub(super) json: bool,

    /// Draw into this directory: time to first token by policy, and each server's load over time
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub(super) plot: Option<PathBuf>,

    /// Policies simulated at the same time [default: the cores available]
    #[arg(short, long, value_name = "N", value_parser = count_to(256), help_heading = "Output")]
    pub(super) jobs: Option<usize>,
}

/// So many servers, and what is asked of them.
pub(super) struct Fleet {
    pub(super) backends: usize,
    /// Requests a second and server.
    pub(super) rate: f64,
    pub(super) workload: Workload,
}

/// What `--policy` names.
#[derive(Clone, Copy, Debug)]
enum Choice {
    One(&'static Named),
    All,
}

impl Args {
    /// Reads or makes the traffic of each fleet, and checks what depends on several options.
    pub(super) fn fleets(&mut self) -> Result<Vec<Fleet>, UsageError> {
        let names = Kind::ALL.map(|(name, _)| name).join(", ");
        let Some(trace) = &self.given else {
            let line = format!("missing TRACE: expected a file, or one of {names}");
            return Err(UsageError::new(line));
        };
        self.trace.clone_from(trace);
        for choice in &self.policy {
            let chosen = match choice {
                Choice::One(named) => std::slice::from_ref(*named),
                Choice::All => policies::ALL,
            };
            for named in chosen {
                if !self.policies.iter().any(|one| one.name == named.name) {
                    self.policies.push(named);
                }
            }
        }
        self.servers.check()?;
        self.company.check()?;
        let sized = |block_tokens| match self.block_tokens {
            Some(tokens) if tokens != block_tokens => {
                let expected = Invalid::expected("a trace with hash_ids for it".to_owned());
                Err(UsageError::value("--block-tokens", &tokens.to_string(), &expected))
            }
            Some(_) | None => Ok(()),
        };
        let fleet = |workload: &dyn Fn(f64) -> Workload| {
            let sizes = self.servers.backends.iter();
            let fleet = |&backends: &usize| {
                let all = self.total_rate.unwrap_or(self.rate * backends as f64);
                Fleet { backends, rate: all / backends as f64, workload: workload(all) }
            };
            sizes.map(fleet).collect::<Vec<_>>()
        };
        if let Ok(kind) = self.trace.parse::<Kind>() {
            let count = self.requests.unwrap_or(MADE_UP);
            let made_up = |rate| generate(kind, count, rate, self.seed).at_rate(rate);
            let in_bursts = |rate| made_up(rate).in_bursts(BURST);
            let fleets = if self.bursts { fleet(&in_bursts) } else { fleet(&made_up) };
            sized(fleets.first().map_or(0, |fleet| fleet.workload.block_tokens))?;
            return Ok(fleets);
        }
        let wrong = |why: &dyn std::fmt::Display| {
            let expected = format!("a trace, or one of {names} ({why})");
            UsageError::value("TRACE", &self.trace, &Invalid::expected(expected))
        };
        let text = std::fs::read_to_string(&self.trace).map_err(|error| wrong(&error))?;
        let bursts = if self.bursts { Bursts::Keep } else { Bursts::Spread };
        let block_tokens = self.block_tokens.unwrap_or(MOONCAKE_BLOCK);
        let workload = Workload::read(&text, bursts, block_tokens);
        let workload = workload.map_err(|error| wrong(&error))?;
        sized(workload.block_tokens)?;
        let workload = workload.first(self.requests.unwrap_or(usize::MAX));
        Ok(fleet(&|rate| workload.clone().at_rate(rate)))
    }

    pub(super) fn setup<'a>(&self, fleet: &'a Fleet) -> Setup<'a> {
        let Fleet { backends, workload, .. } = fleet;
        Setup {
            manners: self.servers.manners(*backends),
            clients: Clients {
                streaming: self.streaming,
                leaving: self.leaving,
                sigma: self.sigma,
                ..Clients::default()
            },
            faults: self.servers.faults(workload.span()),
            network: self.company.network(workload.span()),
            seed: self.seed,
            ..Setup::new(self.servers.options(*backends, workload), workload)
        }
    }

    pub(super) fn bounds(&self, fleet: &Fleet) -> Bounds {
        let Fleet { backends, workload, .. } = fleet;
        let all = self.servers.memory(*backends);
        Bounds { pool: workload.hits_of_one_cache(all), inf: workload.hits_of_one_cache(u64::MAX) }
    }

    pub(super) fn gpu(&self) -> &str {
        self.servers.gpu()
    }
}

fn policy(name: &str) -> Result<Choice, String> {
    if name == "all" {
        return Ok(Choice::All);
    }
    policies::named(name).map(Choice::One).ok_or_else(|| {
        let names: Vec<_> = policies::ALL.iter().map(|one| one.name).take(3).collect();
        format!("all, {} or another that --help names", names.join(", "))
    })
}

fn policy_help() -> String {
    let mut help = "Policies to compare, separated by commas; `all` for all\n\n".to_owned();
    for one in policies::ALL {
        help.push_str(&format!("{:<20}{}\n", one.name, one.about));
    }
    help
}

pub(super) fn count_to(most: usize) -> impl Fn(&str) -> Result<usize, String> + Clone {
    move |text| {
        text.parse()
            .ok()
            .filter(|count| (1..=most).contains(count))
            .ok_or_else(|| format!("a number from 1 to {most}"))
    }
}

pub(super) fn positive(text: &str) -> Result<f64, &'static str> {
    let rate = text.parse().ok().filter(|rate: &f64| *rate > 0.0 && *rate <= 1e6);
    rate.ok_or("a number above 0")
}

pub(super) fn milliseconds(text: &str) -> Result<f64, &'static str> {
    let lag = text.parse().ok().filter(|lag: &f64| (0.0..=60_000.0).contains(lag));
    lag.ok_or("a number from 0 to 60000")
}

fn part(text: &str) -> Result<f64, &'static str> {
    text.parse().ok().filter(|part| (0.0..=1.0).contains(part)).ok_or("a number from 0 to 1")
}

fn sigma(text: &str) -> Result<f64, &'static str> {
    text.parse().ok().filter(|part| (0.0..=3.0).contains(part)).ok_or("a number from 0 to 3")
}
