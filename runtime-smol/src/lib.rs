//! The default front end: smol's executor, one thread a core, each with a `LocalExecutor`, an
//! edge-triggered reactor, a listener of its own on the shared port (`SO_REUSEPORT`) and a pool of
//! idle connections to backends. Nothing but the engine is shared between threads.
//!
//! It has sockets, timers and wake-ups, and decides nothing: what is done with them is said by
//! [`carry`](vllm_proxy_core::carry), and no condition here looks at a header, a status, a model, a
//! backend's health or the number of attempts.

#![forbid(unsafe_code)]

mod clock;
mod connection;
mod listener;
mod net;
mod reactor;

pub use clock::Clock;

use net::Socket;
use reactor::Reactor;
use smol::LocalExecutor;
use smol::channel::Receiver;
use std::convert::Infallible;
use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use vllm_proxy_core::carry::{Connections, Pool, SWEEP_EVERY};
use vllm_proxy_core::config::Limits;
use vllm_proxy_core::engine::Lend;

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
    stop: Receiver<Infallible>,
}

impl Core {
    /// Waits for the stop.
    async fn stopped(&self) {
        // Nothing is ever sent: the channel closes.
        let _ = self.stop.recv().await;
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
            connections: Connections::default(),
            drain_grace: config.drain_grace,
            drain_timeout: config.drain_timeout,
            engine,
            stop,
        };
        let name = format!("proxy-{index}");
        threads.push(
            thread::Builder::new()
                .name(name)
                .spawn(move || serve(Rc::new(core(Reactor::new(config.clock)?)), listener))?,
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
                core.reactor.after(SWEEP_EVERY).await;
                core.pool.sweep(core.clock.now());
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
