//! The front end for hosts with io_uring: one glommio executor pinned to each core, with a ring of
//! its own, a listener of its own on the shared port (`SO_REUSEPORT`) and a pool of idle
//! connections to backends. Nothing but the engine is shared between threads.
//!
//! It has sockets, timers and wake-ups, and decides nothing: what is done with them is said by
//! [`carry`](vllm_proxy_core::carry), and no condition here looks at a header, a status, a model, a
//! backend's health or the number of attempts.
//!
//! How bytes and descriptors are kept from whoever left is told where they are: in `reactor` and
//! `ring`.

#![deny(unsafe_code)]

mod check;
mod clock;
mod connection;
mod listener;
mod net;
mod reactor;
mod ring;

pub use check::{Unusable, check};
pub use clock::Clock;

use async_channel::Receiver;
use futures_lite::future;
use glommio::{LocalExecutorBuilder, Placement};
use net::Socket;
use reactor::{Reactor, Source};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::thread::{CpuSet, sched_getaffinity};
use std::cell::Cell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use vllm_proxy_core::carry::{Connections, Pool, SWEEP_EVERY};
use vllm_proxy_core::config::Limits;
use vllm_proxy_core::engine::Lend;
use vllm_proxy_core::exchange::Drain;

/// Entries of the rings that glommio makes for itself, which stay empty: as few as it takes.
const RING_DEPTH: usize = 8;
/// How often glommio would have a task let others run. Ours do so by themselves, and its timer
/// would only wake the thread.
const PREEMPT: Duration = Duration::from_secs(24 * 3_600);

/// What [`run`] needs.
#[derive(Debug)]
pub struct Config {
    /// One bound listener a thread, which does not block.
    pub listeners: Vec<TcpListener>,
    /// The limits of every exchange.
    pub limits: Limits,
    /// The clock that all that talk to the engine share.
    pub clock: Clock,
    /// How long, after a stop, new connections are still taken.
    pub drain_grace: Duration,
    /// How long, after the grace, open requests may take.
    pub drain_timeout: Duration,
}

/// What one thread's connections share.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) limits: Arc<Limits>,
    pub(crate) clock: Clock,
    pub(crate) reactor: Rc<Reactor>,
    pub(crate) pool: Pool<Socket>,
    pub(crate) connections: Connections,
    pub(crate) drain_grace: Duration,
    pub(crate) drain_timeout: Duration,
    engine: Arc<dyn Lend>,
    stop: Source,
}

impl Core {
    /// Waits for the stop.
    async fn stopped(&self) {
        poll_fn(|cx| self.stop.poll_readable(cx)).await;
    }
}

/// Serves until `stop` closes, then drains. One thread a listener, each pinned to a core of those
/// that this process may use; the caller's waits for them.
///
/// # Errors
///
/// A thread could not be started, or its rings not be set up.
pub fn run(config: Config, engine: Arc<dyn Lend>, stop: Receiver<Infallible>) -> io::Result<()> {
    let limits = Arc::new(config.limits);
    let allowed = sched_getaffinity(None)?;
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect();
    let mut threads = Vec::with_capacity(config.listeners.len());
    for (index, listener) in config.listeners.into_iter().enumerate() {
        let (limits, engine) = (limits.clone(), engine.clone());
        let event = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let stopping = event.try_clone()?;
        let core = move |reactor: Rc<Reactor>| Core {
            stop: reactor.watch(stopping),
            reactor,
            limits,
            clock: config.clock,
            pool: Pool::default(),
            connections: Connections::default(),
            drain_grace: config.drain_grace,
            drain_timeout: config.drain_timeout,
            engine,
        };
        let cpu = cores[index % cores.len()];
        let (ready, started) = mpsc::channel();
        let thread = thread::Builder::new()
            .name(format!("proxy-{index}"))
            .spawn(move || serve(cpu, config.clock, core, listener, ready))?;
        if started.recv().is_err() {
            return joined(thread);
        }
        threads.push((thread, event));
    }
    // Nothing is ever sent: the channel closes. glommio's wakers are for its own threads alone, so
    // each is told by an event that its ring watches.
    let _ = stop.recv_blocking();
    for (_, event) in &threads {
        rustix::io::write(event, &1_u64.to_ne_bytes())?;
    }
    threads.into_iter().try_for_each(|(thread, _)| joined(thread))
}

fn joined(thread: JoinHandle<io::Result<()>>) -> io::Result<()> {
    thread.join().map_err(|_| io::Error::other("a thread of the front end panicked"))?
}

/// One thread.
fn serve(
    cpu: usize,
    clock: Clock,
    core: impl FnOnce(Rc<Reactor>) -> Core + 'static,
    listener: TcpListener,
    ready: Sender<()>,
) -> io::Result<()> {
    let executor = LocalExecutorBuilder::new(Placement::Fixed(cpu))
        .io_memory(0)
        .ring_depth(RING_DEPTH)
        .preempt_timer(PREEMPT)
        .make()
        .map_err(|error| no_ring(error.into()))?;
    executor.run(async move {
        let core = Rc::new(core(Reactor::new(clock).map_err(no_ring)?));
        // Fails if nobody waits for it any more.
        let _ = ready.send(());
        let reactor = core.reactor.clone();
        let served = Rc::new(Cell::new(false));
        let serving = {
            let (core, served) = (core.clone(), served.clone());
            async move {
                future::or(listener::serve(core.clone(), listener), sweep(&core)).await;
                served.set(true);
            }
        };
        glommio::spawn_local(reactor.task(Box::pin(serving))).detach();
        reactor.drive(|| served.get()).await;
        // Connections that outlived the drain timeout settle what they hold as they are dropped.
        reactor.end(|| core.connections.set_drain(Drain::Closing)).await;
        Ok(())
    })
}

/// Memory that others lock while this starts is what [`check`] cannot foresee.
fn no_ring(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) if code == Errno::NOMEM.raw_os_error() => io::Error::other(check::used_up()),
        _ => error,
    }
}

/// Closes connections to backends that have been idle for too long, for ever.
async fn sweep(core: &Core) {
    loop {
        core.reactor.after(SWEEP_EVERY).await;
        core.pool.sweep(core.clock.now());
    }
}
