//! The process's one engine behind its lock, and the process's clock.
//!
//! Carries nothing out: orders go to whoever has the other end of the channel, the prober.

use crate::logging;
use smol::channel::{self, Receiver, Sender};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant as SystemInstant};
use vllm_proxy_core::engine::{Engine, Input, Lend, Output};
use vllm_proxy_core::fleet::BackendId;
use vllm_proxy_core::route::{Change, Echo};
use vllm_proxy_core::time::Instant;

/// Moments of the core are counted from here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: SystemInstant,
}

impl Clock {
    /// A clock whose moments count from `start`.
    pub(crate) const fn since(start: SystemInstant) -> Self {
        Self { start }
    }

    pub(crate) fn now(self) -> Instant {
        let micros = self.start.elapsed().as_micros();
        Instant::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
    }

    /// `None` if it is too far away to matter.
    pub(crate) fn to_system(self, moment: Instant) -> Option<SystemInstant> {
        self.start.checked_add(moment.since(Instant::START))
    }
}

/// What the prober is to do.
#[derive(Debug)]
pub(crate) enum Order {
    /// What the engine wants done.
    Output(Output),
    /// The engine wants to be told the time earlier than it said last.
    Earlier(Instant),
}

/// Wakes the thread that tells other proxies what the engine has to say.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    rung: AtomicBool,
    thread: OnceLock<Thread>,
}

impl Bell {
    /// Rings, once until it is answered: a wake-up a batch, not one a request.
    fn ring(&self) {
        if !self.rung.load(Ordering::Relaxed)
            && !self.rung.swap(true, Ordering::AcqRel)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }

    /// This thread is the one to wake.
    pub(crate) fn answered_here(&self) {
        let _ = self.thread.set(thread::current());
    }

    /// Waits until it rings, for so long at most.
    pub(crate) fn wait(&self, limit: Duration) {
        if !self.rung.load(Ordering::Acquire) {
            thread::park_timeout(limit);
        }
    }

    /// What comes from now on rings again.
    pub(crate) fn hush(&self) {
        self.rung.store(false, Ordering::Release);
    }
}

/// The engine, for every thread.
#[derive(Debug)]
pub(crate) struct SharedEngine {
    state: Mutex<State>,
    /// Unbounded: the engine orders at most a probe a backend at a time, and whoever lends it must
    /// not wait.
    orders: Sender<Order>,
    bell: Bell,
    clock: Clock,
}

#[derive(Debug)]
struct State {
    engine: Engine,
    /// The earliest deadline that the other end of the channel knows of.
    armed: Option<Instant>,
}

impl SharedEngine {
    pub(crate) fn new(engine: Engine, clock: Clock) -> (Self, Receiver<Order>) {
        let (orders, received) = channel::unbounded();
        let state = Mutex::new(State { engine, armed: None });
        (Self { state, orders, bell: Bell::default(), clock }, received)
    }

    pub(crate) const fn clock(&self) -> Clock {
        self.clock
    }

    /// What rings when there is something to tell other proxies.
    pub(crate) const fn bell(&self) -> &Bell {
        &self.bell
    }

    /// Tells the engine what happened.
    pub(crate) fn tell(&self, input: Input<'_>) {
        let now = self.clock.now();
        (self as &dyn Lend).with(|engine| engine.handle(input, now));
    }

    /// Tells the engine what it had changed in a backend.
    pub(crate) fn changed(&self, backend: BackendId, change: Change) {
        let now = self.clock.now();
        let echo = Echo { backend, result: Ok(Some(change)) };
        (self as &dyn Lend).with(|engine| engine.heard(&[echo], None, now));
    }

    /// Tells the engine the time, and returns when it wants to be told again.
    pub(crate) fn time_out(&self) -> Option<Instant> {
        self.tell(Input::LogDropped(logging::dropped()));
        self.tell(Input::Timeout);
        let mut state = self.lock();
        state.armed = state.engine.poll_timeout().map(|wake| wake.at);
        state.armed
    }

    /// Counts how long it took if somebody else was there. Costs nothing else.
    fn lock_as_one_of_many(&self) -> MutexGuard<'_, State> {
        match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                let start = SystemInstant::now();
                let mut state = self.lock();
                state.engine.waited(start.elapsed());
                state
            }
        }
    }

    /// A panic within the engine is a bug; refusing every later request would be a worse one.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lend for SharedEngine {
    fn lend(&self, visit: &mut dyn FnMut(&mut Engine)) {
        let mut state = self.lock_as_one_of_many();
        visit(&mut state.engine);
        // Within the lock, so that orders leave in the engine's order. Sending fails only when the
        // prober is gone, which is when the process ends.
        while let Some(output) = state.engine.poll_output() {
            let _ = self.orders.try_send(Order::Output(output));
        }
        let rings = state.engine.has_update();
        if let Some(at) = state.engine.poll_timeout().map(|wake| wake.at)
            && state.armed.is_none_or(|armed| at < armed)
        {
            state.armed = Some(at);
            let _ = self.orders.try_send(Order::Earlier(at));
        }
        // Whoever is woken by it wants the engine, too.
        drop(state);
        if rings {
            self.bell.ring();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use vllm_proxy_core::config::Config;
    use vllm_proxy_core::fleet::{Address, BackendSpec, Labels};

    fn shared() -> (Arc<SharedEngine>, Receiver<Order>) {
        let config = Config { upstreams: 1, body_memory: 1 << 20, ..Config::default() };
        let engine = Engine::new(config, 1, Instant::START);
        let (shared, orders) = SharedEngine::new(engine, Clock::since(SystemInstant::now()));
        (Arc::new(shared), orders)
    }

    #[test]
    fn outputs_become_orders() {
        let (shared, orders) = shared();
        let spec = BackendSpec {
            upstream: 0,
            address: Address::Tcp(([127, 0, 0, 1], 8000).into()),
            authority: "a:8000".to_owned(),
            prefix: String::new(),
            labels: Labels::default(),
        };
        shared.tell(Input::Discovered(&[spec]));
        let received: Vec<_> = std::iter::from_fn(|| orders.try_recv().ok()).collect();
        assert!(
            received.iter().any(|order| matches!(order, Order::Output(Output::Probe(_)))),
            "{received:?}"
        );
    }

    #[test]
    fn a_panic_leaves_the_engine_usable() {
        let (shared, _orders) = shared();
        let broken = Arc::clone(&shared);
        let visit = move || broken.lend(&mut |_| panic!("a bug"));
        assert!(thread::spawn(visit).join().is_err());
        let mut visited = false;
        shared.lend(&mut |_| visited = true);
        assert!(visited);
    }
}
