//! The default front end: smol's executor, one thread a core, each with a `LocalExecutor`, an
//! edge-triggered reactor, a listener of its own on the shared port (`SO_REUSEPORT`) and a pool of
//! idle connections to backends. Nothing but the [`Engine`] is shared between threads.
//!
//! It carries bytes and decides nothing: no condition here looks at a header, a status, a model, a
//! backend's health or the number of attempts.

#![forbid(unsafe_code)]

mod clock;
mod connection;
mod errands;
mod listener;
mod net;
mod pool;
mod reactor;

pub use clock::Clock;

use event_listener::Event;
use pool::Pool;
use reactor::Reactor;
use smol::LocalExecutor;
use smol::channel::Receiver;
use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use vllm_proxy_core::config::Limits;
use vllm_proxy_core::engine::{Engine, Lend};
use vllm_proxy_core::exchange::Drain;

/// What one read takes at most. Large bodies and bursts of events cross in few calls, and a slow
/// client holds back no more than this of an answer.
const READ_BYTES_MAX: usize = 64 << 10;

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
    pub(crate) pool: Pool,
    /// Where all connections of a thread read to, one at a time: bytes are passed on before
    /// anything else is read.
    pub(crate) buffer: RefCell<Box<[u8]>>,
    /// Connections that are open.
    pub(crate) open: Cell<usize>,
    pub(crate) drain: Cell<Drain>,
    /// Tells connections that `drain` changed.
    pub(crate) drained: Event,
    pub(crate) drain_grace: Duration,
    pub(crate) drain_timeout: Duration,
    engine: Arc<dyn Lend>,
    stop: Receiver<Infallible>,
}

impl Core {
    /// Lends the engine for one call.
    pub(crate) fn with_engine<R>(&self, visit: impl FnOnce(&mut Engine) -> R) -> R {
        self.engine.with(visit)
    }

    /// Waits for the stop.
    async fn stopped(&self) {
        // Nothing is ever sent: the channel closes.
        let _ = self.stop.recv().await;
    }

    fn set_drain(&self, drain: Drain) {
        self.drain.set(drain);
        self.drained.notify(usize::MAX);
    }

    /// Waits until no connection is open.
    async fn emptied(&self) {
        while self.open.get() > 0 {
            self.reactor.after(Duration::from_millis(10)).await;
        }
    }
}

/// Serves until `stop` closes, then drains. One thread a listener; the caller's waits for them.
///
/// # Errors
///
/// A thread could not be started, or its listener not be watched.
pub fn run(config: Config, engine: Arc<dyn Lend>, stop: Receiver<Infallible>) -> io::Result<()> {
    let limits = Arc::new(config.limits);
    let mut threads = Vec::with_capacity(config.listeners.len());
    for (index, listener) in config.listeners.into_iter().enumerate() {
        let (limits, engine, stop) = (limits.clone(), engine.clone(), stop.clone());
        let core = move |reactor| Core {
            reactor,
            limits,
            clock: config.clock,
            pool: Pool::default(),
            buffer: RefCell::new(vec![0; READ_BYTES_MAX].into_boxed_slice()),
            open: Cell::new(0),
            drain: Cell::new(Drain::Running),
            drained: Event::new(),
            drain_grace: config.drain_grace,
            drain_timeout: config.drain_timeout,
            engine,
            stop,
        };
        let name = format!("proxy-{index}");
        threads.push(
            thread::Builder::new()
                .name(name)
                .spawn(move || serve(Rc::new(core(Reactor::new()?)), listener))?,
        );
    }
    for thread in threads {
        thread.join().map_err(|_| io::Error::other("a thread of the front end panicked"))??;
    }
    Ok(())
}

/// One thread.
fn serve(core: Rc<Core>, listener: TcpListener) -> io::Result<()> {
    let reactor = core.reactor.clone();
    let executor = Rc::new(LocalExecutor::new());
    let sweeper = {
        let core = core.clone();
        executor.spawn(async move {
            loop {
                core.reactor.after(pool::IDLE_MAX / 4).await;
                core.pool.sweep(Instant::now());
            }
        })
    };
    // A task of its own: what `run` is given is polled whenever the executor turns.
    let serving = executor.spawn(listener::serve(core, listener, executor.clone()));
    let served = reactor.block_on(executor.run(serving));
    // Connections that outlived the drain timeout settle what they hold as they are dropped.
    drop(sweeper);
    drop(executor);
    served
}
