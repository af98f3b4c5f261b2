//! The product's binary over real sockets, between hand-made clients and hand-made backends that
//! do what ours never would: every byte is seen, and every wait is bounded.
//!
//! One suite over all runtimes, see [`proxy::Runtime`]. Nothing here uses the proxy's own codec or
//! its mock, so that no mistake is made twice. `cargo test -p vllm-proxy --test end_to_end`; what
//! tests measured is told by `-- --nocapture`. A test that fails shows the proxy's log; with
//! `VLLM_PXY_TEST_VERBOSE=1` that tells of requests, too.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "all of this is tests, though clippy only knows functions with #[test] as such"
)]

#[path = "end_to_end/backend.rs"]
mod backend;
#[path = "end_to_end/browser.rs"]
mod browser;
#[path = "end_to_end/company.rs"]
mod company;
#[path = "end_to_end/folder.rs"]
mod folder;
#[path = "end_to_end/keyed.rs"]
mod keyed;
#[path = "end_to_end/names.rs"]
mod names;
#[path = "patience.rs"]
mod patience;
#[path = "end_to_end/proxy.rs"]
mod proxy;
#[path = "end_to_end/redis.rs"]
mod redis;
#[path = "end_to_end/sockets.rs"]
mod sockets;
#[path = "end_to_end/wire.rs"]
mod wire;

#[path = "end_to_end/abandoned.rs"]
mod abandoned;
#[path = "end_to_end/counts.rs"]
mod counts;
#[path = "end_to_end/discovery.rs"]
mod discovery;
#[path = "end_to_end/draining.rs"]
mod draining;
#[path = "end_to_end/events.rs"]
mod events;
#[path = "end_to_end/explaining.rs"]
mod explaining;
#[path = "end_to_end/failing.rs"]
mod failing;
#[path = "end_to_end/framing.rs"]
mod framing;
#[path = "end_to_end/hostile.rs"]
mod hostile;
#[path = "end_to_end/kept.rs"]
mod kept;
#[path = "end_to_end/leaving.rs"]
mod leaving;
#[path = "end_to_end/many.rs"]
mod many;
#[path = "end_to_end/memory.rs"]
mod memory;
#[path = "end_to_end/operators.rs"]
mod operators;
#[path = "end_to_end/page.rs"]
mod page;
#[path = "end_to_end/realtime.rs"]
mod realtime;
#[path = "end_to_end/redis_unusable.rs"]
mod redis_unusable;
#[path = "end_to_end/redis_urls.rs"]
mod redis_urls;
#[cfg(feature = "glommio")]
#[path = "end_to_end/refused.rs"]
mod refused;
#[path = "end_to_end/relay.rs"]
mod relay;
#[path = "end_to_end/replicas.rs"]
mod replicas;
#[path = "end_to_end/replicas_faults.rs"]
mod replicas_faults;
#[path = "end_to_end/routing.rs"]
mod routing;
#[path = "end_to_end/several.rs"]
mod several;
#[path = "end_to_end/status.rs"]
mod status;
#[path = "end_to_end/stopping.rs"]
mod stopping;
#[path = "end_to_end/stored.rs"]
mod stored;
#[path = "end_to_end/strict.rs"]
mod strict;
#[path = "end_to_end/upgrade.rs"]
mod upgrade;
#[path = "end_to_end/upstreams_file.rs"]
mod upstreams_file;
#[path = "end_to_end/watching.rs"]
mod watching;
