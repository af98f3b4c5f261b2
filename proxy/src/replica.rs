//! Replicas: how proxies on one Redis database hear of each other.
//!
//! Owns the threads that talk to Redis and what they know of the way there. What is told, and what
//! becomes of what is heard, is the engine's. No request waits for anything here: the engine
//! gathers what there is to tell, bounded, and whoever lends it only rings a bell.
//!
//! Three threads, each with a connection of its own, since each waits for something else:
//!
//! - [`tell`] publishes what the engine gathered, at most every 4 ms, and never awaits a reply.
//! - [`hear`] is subscribed to the same channel and gives the engine what comes. A proxy hears its
//!   own words, too: that they come back says that the way is whole, and how long it takes.
//! - [`keep`] appends what was placed where to a log a backend, for a proxy that starts when nobody
//!   is there to tell it, and reads these logs at its own start.
//!
//! Facts are published, not written to a stream: of 600 words a second to three listeners, a stream
//! took twice the processor time of Redis (81 us a word against 42) and came twice as late (0.29 ms
//! against 0.14), and a Redis whose memory is full refuses it.
//!
//! **Bounded.** A connection each, 50 KB of Redis together. Publishing: a beat a second when idle,
//! at most 250 batches a second however much happens, of one word as a rule; a snapshot, at most
//! one in 5 s, adds up to eight. Whoever listens too slowly is cut off by Redis
//! (`client-output-buffer-limit`, 32 MB) and asks for a snapshot when it is back. Logs: see
//! [`keep`]. Attempts to connect: one a second and thread, and what is wrong is logged once.
//!
//! **A secret stays here.** The library is never given the password, but in the one command that
//! needs it ([`connect`]), and no answer to that is repeated in a log or a status.
//!
//! What is in Redis, all beneath `vllm-proxy:1:`, where 1 is the version of the format:
//!
//! | | |
//! |---|---|
//! | channel `vllm-proxy:1:{db}` | words ([`Word`](vllm_proxy_core::fleet::Word)); channels know no databases |
//! | string `vllm-proxy:1:kept:{backend}`, and `..:old` | the logs, see [`keep`] |
//! | string `vllm-proxy:1:kept` | a mark that the logs are as they were left |
//! | string `vllm-proxy:1:probe:{proxy}` | nothing, for a moment: what the user may do is tried |
//! | string `vllm-proxy:1:kept:mending` | who appends all it knows, for as long as that takes |

mod connect;
mod hear;
mod keep;
mod tell;
#[cfg(test)]
mod tests;
mod way;

use crate::redis_url::RedisUrl;
use crate::shared::SharedEngine;
use std::sync::Arc;
use std::{io, thread};
use vllm_proxy_core::fleet::ProxyId;
use way::Way;

/// Whether somebody said where Redis is, or it was looked for where it often is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Named {
    /// Other proxies are to be expected there.
    Yes,
    /// Most likely this proxy is the only one, unless Redis turns out to be there.
    No,
}

/// A thread's name, and what it runs.
type Part = (&'static str, fn(&Way));

/// Starts the threads, which run as long as the process.
pub(crate) fn start(
    shared: Arc<SharedEngine>,
    url: RedisUrl,
    named: Named,
    own: ProxyId,
) -> io::Result<()> {
    let way = Arc::new(Way::new(shared, url, named, own));
    let parts: [Part; 3] =
        [("redis-hear", hear::run), ("redis-tell", tell::run), ("redis-keep", keep::run)];
    for (name, run) in parts {
        let way = Arc::clone(&way);
        thread::Builder::new().name(name.to_owned()).spawn(move || run(&way))?;
    }
    Ok(())
}
