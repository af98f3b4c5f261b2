//! `vllm-proxy server`: puts the parts together, runs them, and stops them.
//!
//! Knows which parts there are and who holds which; what each does is its own affair.

use crate::config::{Globals, Runtime, Server, policy_name};
use crate::prober::Finding;
use crate::redis_url::Redis;
use crate::shared::{Clock, SharedEngine};
use crate::values::Host;
use crate::{listen, logging, memory, prober, replica, stop, version};
use smol::channel;
use std::collections::hash_map::RandomState;
use std::convert::Infallible;
use std::hash::BuildHasher;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant as SystemInstant, SystemTime};
use std::{io, process, thread};
use vllm_proxy_core::config::{Access, Build, Config, Limits, Policy};
use vllm_proxy_core::engine::{Engine, Input, Lend};
use vllm_proxy_core::fleet::ProxyId;

/// What operators have at least, when all others are done: time for any answer to be read, and less
/// than supervisors are told to allow beyond the grace and the timeout.
const OPERATORS_MIN: Duration = Duration::from_secs(3);

/// Serves until a signal stops it. The error is one line, without what the log has said.
pub(crate) fn run(globals: &Globals, mut server: Server) -> Result<(), String> {
    // Before all else, since it would end the process: one who starts a proxy may have it reload at
    // once, and a name to listen on may take its time.
    let (again, asked) = channel::bounded(1);
    let again = move || {
        // One that waits to be heard is as good as two.
        let _ = again.try_send(());
    };
    stop::on_hangup(again).map_err(|error| format!("cannot await signals: {error}"))?;

    let threads = server.threads.or_else(|| thread::available_parallelism().ok());
    let threads = threads.map_or(1, std::num::NonZero::get);
    let body_memory = server.body_memory.unwrap_or_else(|| memory::available() / 4);
    #[cfg(feature = "glommio")]
    if server.runtime == Runtime::Glommio {
        let more = usize::from(server.admin.is_some());
        vllm_proxy_glommio::check(threads, more).map_err(refused)?;
    }
    let listeners = listen(&server.host, server.port, threads)?;
    let admin =
        server.admin.as_ref().map(|admin| listen(&admin.host, admin.port, 1)).transpose()?;

    let start = SystemInstant::now();
    let epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let upstreams = server.upstreams;
    let redis = match &globals.redis {
        Redis::Off => None,
        Redis::At(url) => Some(url.clone()),
    };
    // Numbers and counters begin anew with each process, and so does its name among proxies.
    let own = RandomState::new().hash_one((process::id(), epoch));
    let unknown = (0..).zip(upstreams.list()).filter(|(_, one)| one.forward_unknown);
    let config = Config {
        policy: server.policy,
        default_model: server.default_model.clone(),
        // The number of upstreams was limited as they were read.
        upstreams: u16::try_from(upstreams.list().len()).unwrap_or(u16::MAX),
        body_memory,
        forward_unknown: unknown.map(|(number, _)| number).collect(),
        index_memory: if server.policy == Policy::CacheAware {
            usize::try_from(server.index_memory).unwrap_or(usize::MAX)
        } else {
            0
        },
        proxy: redis.is_some().then_some(own),
        build: Build {
            version: version::NUMBER,
            commit: version::COMMIT,
            features: version::FEATURES,
            runtime: server.runtime.name(),
        },
        epoch_micros: u64::try_from(epoch.as_micros()).unwrap_or_default(),
    };
    let reads = admin.is_none();
    let access = Access { reads, explains: server.explain, ..Access::default() };
    let limits = Limits {
        access,
        body_bytes_max: server.max_body,
        http_timeout: globals.http_timeout,
        fingerprints: server.policy == Policy::CacheAware,
        epoch_micros: u64::try_from(epoch.as_micros()).unwrap_or_default(),
        ..Limits::default()
    };
    let clock = Clock::since(start);
    // Proxies that start together must not jitter together.
    let seed = RandomState::new().hash_one(process::id());
    let (shared, orders) = SharedEngine::new(Engine::new(config, seed, clock.now()), clock);
    let shared = Arc::new(shared);

    let (stopping, stop) = channel::bounded::<Infallible>(1);
    let draining = Arc::clone(&shared);
    let stopped = Arc::new(OnceLock::new());
    let stops = Arc::clone(&stopped);
    let first = move || {
        log::info!("stopping");
        let _ = stops.set(SystemInstant::now());
        draining.tell(Input::Drain);
        drop(stopping);
    };
    stop::on_signals(first, cut_short).map_err(|error| format!("cannot await signals: {error}"))?;

    let names: Vec<_> = upstreams.list().iter().map(|one| one.upstream.to_string()).collect();
    log::info!(
        version = env!("CARGO_PKG_VERSION"),
        upstreams = names.join(" ").as_str(),
        policy = policy_name(server.policy),
        runtime = server.runtime.name(),
        threads,
        redis:% = globals.redis,
        max_body = server.max_body,
        body_memory;
        "starting"
    );
    if let Some(address) = address_of(admin.as_deref().unwrap_or_default()) {
        log::info!(address:%; "listening for operators");
    }
    if let Some(address) = address_of(&listeners) {
        log::info!(address:%; "listening");
    }

    let finding = Finding { upstreams, interval: server.resolve_interval, asked };
    prober::start(Arc::clone(&shared), orders, finding, server.backend_key.take())
        .map_err(|error| format!("cannot start the prober: {error}"))?;
    if let Some(url) = redis {
        replica::start(Arc::clone(&shared), url, globals.redis_named, ProxyId(own))
            .map_err(|error| format!("cannot start the threads for Redis: {error}"))?;
    }
    let times = Times { start, grace: server.drain_grace, timeout: server.drain_timeout };
    let operators = admin.map(|listeners| {
        let limits = Limits { access: Access::ADMIN, ..limits.clone() };
        let engine = Arc::clone(&shared);
        Operators::serve(server.runtime, listeners, limits, times, engine)
            .map_err(|error| format!("cannot start the thread for operators: {error}"))
    });
    let operators = operators.transpose()?;
    front_end(server.runtime, listeners, limits, times, shared, stop)
        .map_err(|error| format!("cannot serve: {error}"))?;
    if let Some(operators) = operators {
        let spent = stopped.get().map_or(Duration::ZERO, SystemInstant::elapsed);
        operators.end(times.grace.saturating_add(times.timeout).saturating_sub(spent));
    }
    log::info!("stopped");
    Ok(())
}

fn address_of(listeners: &[TcpListener]) -> Option<SocketAddr> {
    listeners.first().and_then(|listener| listener.local_addr().ok())
}

/// What operators are served by, beside everything else and for longer: they want to see how it
/// stops, too.
struct Operators {
    stop: channel::Sender<Infallible>,
    ended: mpsc::Receiver<Infallible>,
}

impl Operators {
    fn serve(
        runtime: Runtime,
        listeners: Vec<TcpListener>,
        limits: Limits,
        times: Times,
        engine: Arc<dyn Lend>,
    ) -> io::Result<Self> {
        let (stop, stopped) = channel::bounded(1);
        let (end, ended) = mpsc::channel::<Infallible>();
        // Whoever stops the process has waited for the grace by then.
        let times = Times { grace: Duration::ZERO, ..times };
        let run = move || {
            if let Err(error) = front_end(runtime, listeners, limits, times, engine, stopped) {
                log::error!(error:%; "operators are not served any more");
            }
            drop(end);
        };
        thread::Builder::new().name("operators".to_owned()).spawn(run)?;
        Ok(Self { stop, ended })
    }

    /// All others are done. What operators asked for is answered, within what is left of a stop.
    fn end(self, left: Duration) {
        drop(self.stop);
        if self.ended.recv_timeout(left.max(OPERATORS_MIN)) == Err(RecvTimeoutError::Timeout) {
            log::warn!("the drain timeout passed: open connections of operators are closed");
        }
    }
}

/// When moments begin to count, and how long a stop takes.
#[derive(Clone, Copy)]
struct Times {
    start: SystemInstant,
    grace: Duration,
    timeout: Duration,
}

/// What to say where io_uring is refused.
#[cfg(feature = "glommio")]
fn refused(why: vllm_proxy_glommio::Unusable) -> String {
    let way_out = if cfg!(feature = "smol") {
        "`--runtime smol` works anywhere"
    } else {
        "a build with smol works anywhere"
    };
    format!("cannot run on glommio: {why}; {way_out}")
}

/// Where the runtime takes over, until all connections are done.
fn front_end(
    runtime: Runtime,
    listeners: Vec<TcpListener>,
    limits: Limits,
    times: Times,
    engine: Arc<dyn Lend>,
    stop: channel::Receiver<Infallible>,
) -> io::Result<()> {
    match runtime {
        #[cfg(feature = "smol")]
        Runtime::Smol => {
            let config = vllm_proxy_smol::Config {
                listeners,
                limits,
                clock: vllm_proxy_smol::Clock::new(times.start),
                drain_grace: times.grace,
                drain_timeout: times.timeout,
            };
            vllm_proxy_smol::run(config, engine, stop)
        }
        #[cfg(feature = "glommio")]
        Runtime::Glommio => {
            let config = vllm_proxy_glommio::Config {
                listeners,
                limits,
                clock: vllm_proxy_glommio::Clock::new(times.start),
                drain_grace: times.grace,
                drain_timeout: times.timeout,
            };
            vllm_proxy_glommio::run(config, engine, stop)
        }
    }
}

/// One listener a thread.
fn listen(host: &Host, port: u16, threads: usize) -> Result<Vec<TcpListener>, String> {
    let failed = |error: io::Error| {
        let taken = error.kind() == io::ErrorKind::AddrInUse;
        let reason = if taken { "the port is taken".to_owned() } else { error.to_string() };
        format!("cannot listen on {host}:{port}: {reason}")
    };
    let address = match host {
        Host::Ip(ip) => SocketAddr::new(*ip, port),
        Host::Name(name) => {
            let addresses: Vec<_> =
                (name.as_str(), port).to_socket_addrs().map_err(failed)?.collect();
            // As for upstreams: IPv4 if there is any.
            let four = addresses.iter().find(|address| address.is_ipv4());
            let found = four.or(addresses.first()).copied();
            found.ok_or_else(|| failed(io::Error::other("the name has no address")))?
        }
    };
    listen::bind_patiently(address, threads).map_err(failed)
}

/// Each request in flight takes two descriptors, and the usual soft limit is 1024.
pub(crate) fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        log::warn!(error:%; "the descriptor limit cannot be raised");
    }
}

/// The second signal: whoever sent it waits no longer.
fn cut_short() {
    log::warn!("cut short by a second signal");
    logging::flush();
    process::exit(crate::FAILED.into());
}
