//! The options that say how many proxies there are, how they hear of each other, and what may
//! happen to that.

use super::args::{count_to, milliseconds};
use super::mishap::Trouble;
use crate::usage::{Invalid, UsageError};
use std::time::Duration;
use vllm_proxy_sim::world::Network;

/// Proxies and the Redis between them.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Several proxies")]
pub(crate) struct Company {
    /// Proxies, which tell each other what they do; each request comes to one of them
    ///
    /// Of policies that are not this proxy's engine, only the counts of requests and tokens in
    /// flight are shared.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = count_to(63))]
    pub(super) proxies: usize,

    /// Milliseconds until a proxy hears what another told
    #[arg(long, value_name = "MS", default_value_t = 1.0, value_parser = milliseconds)]
    lag: f64,

    /// Milliseconds for which a proxy gathers what it tells; 0: it tells everything at once
    #[arg(long, value_name = "MS", default_value_t = 4.0, value_parser = milliseconds)]
    gather: f64,

    /// Proxies cannot hear each other, and know that
    #[arg(long, conflicts_with_all = ["lag", "gather", "redis_fault"])]
    isolated: bool,

    /// Something that happens to Redis or to a proxy: KIND@PERCENT or KIND@PERCENT-PERCENT;
    /// repeatable
    ///
    /// KIND is killed (Redis ends, and is there again, empty), hung (it does nothing, and then all
    /// that waits), flushed (what it kept is lost), full (it keeps nothing more), slow:MS (every
    /// word takes so much longer), cut:PROXY (one proxy cannot reach it), dies:PROXY (a proxy ends,
    /// with its requests) or restarts:PROXY (it starts again, and asks the others or Redis what
    /// they know). Proxies are numbered from 0. PERCENT is when it begins and ends: how much of the
    /// trace's time is over. What is given no end lasts; who restarts does so at once.
    #[arg(long, value_name = "FAULT", value_parser = Trouble::parse)]
    redis_fault: Vec<Trouble>,
}

impl Company {
    /// Checks what depends on several options.
    pub(super) fn check(&self) -> Result<(), UsageError> {
        let unknown = |proxy: &usize| *proxy >= self.proxies;
        let proxy = self.redis_fault.iter().find_map(|fault| fault.proxy().filter(unknown));
        let Some(proxy) = proxy else { return Ok(()) };
        let expected = match self.proxies {
            1 => "proxy 0, as --proxies is 1".to_owned(),
            proxies => format!("a proxy from 0 to {}", proxies - 1),
        };
        Err(UsageError::value("--redis-fault", &proxy.to_string(), &Invalid::expected(expected)))
    }

    /// What is between them, if anything, where requests come within `span`.
    pub(super) fn network(&self, span: Duration) -> Option<Network> {
        if self.proxies == 1 && self.redis_fault.is_empty() {
            return None;
        }
        if self.isolated {
            return Some(Network::none());
        }
        let millis = |millis: f64| Duration::from_micros((millis * 1_000.0).round() as u64);
        Some(Network {
            gather: millis(self.gather),
            mishaps: self.redis_fault.iter().flat_map(|fault| fault.within(span)).collect(),
            // What is kept is for those that start.
            keeps: self.redis_fault.iter().any(Trouble::restarts),
            ..Network::with_lag(millis(self.lag))
        })
    }
}
