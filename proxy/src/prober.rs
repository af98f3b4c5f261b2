//! The prober: carries out what the engine orders, tells it the time, and tells it which upstreams
//! there are and which addresses their names stand for.
//!
//! Decides nothing: which backend is asked and when is the engine's, what an answer means too. How
//! a backend is asked is told by [`ask`], how names are looked up by [`resolve`], what they stand
//! for by [`list`], where the list comes from by [`watch`](mod@watch). A thread of its
//! own, since it is never in a hurry and must not hold up who is.

mod ask;
mod list;
mod resolve;
mod watch;

use crate::secret::Secret;
use crate::shared::{Order, SharedEngine};
use crate::upstreams::Upstreams;
use ask::{Also, Asked};
use list::List;
use smol::channel::Receiver;
use smol::future::FutureExt;
use smol::{LocalExecutor, Timer};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use vllm_proxy_core::engine::{Input, Lend, Output};
use vllm_proxy_core::fleet::{Address, BackendId};
use vllm_proxy_core::route::Change;
use vllm_proxy_core::time::Instant;
use vllm_proxy_core::wire::probe::ProbeError;

/// The engine is told the time no more often, whatever it asks for.
const TIME_MIN: Duration = Duration::from_millis(1);

/// Where the prober learns who is to be asked.
pub(crate) struct Finding {
    pub(crate) upstreams: Upstreams,
    /// How long an answer of a name server counts.
    pub(crate) interval: Duration,
    /// The operator wants all of it looked at again.
    pub(crate) asked: Receiver<()>,
}

/// Starts the thread, which runs as long as the process.
pub(crate) fn start(
    shared: Arc<SharedEngine>,
    orders: Receiver<Order>,
    finding: Finding,
    key: Option<Secret>,
) -> io::Result<()> {
    let run = move || {
        let executor = Rc::new(LocalExecutor::new());
        smol::block_on(executor.run(async {
            let Finding { upstreams, interval, asked } = finding;
            let list = List::start(&executor, &shared, interval, upstreams.list());
            executor.spawn(watch::watch(list, upstreams, asked)).detach();
            let key = key.map(Arc::new);
            let refused = Rc::default();
            let prober = Prober { executor: Rc::clone(&executor), shared, key, refused };
            prober.run(orders).await;
        }));
    };
    thread::Builder::new().name("prober".to_owned()).spawn(run)?;
    Ok(())
}

struct Prober {
    executor: Rc<LocalExecutor<'static>>,
    shared: Arc<SharedEngine>,
    key: Option<Arc<Secret>>,
    refused: Rc<Refused>,
}

impl Prober {
    /// Ends when the engine is gone.
    async fn run(self, orders: Receiver<Order>) {
        let mut deadline = self.shared.time_out();
        loop {
            let order = async { Some(orders.recv().await) };
            let time = async {
                self.sleep_until(deadline).await;
                None
            };
            match order.or(time).await {
                Some(Ok(Order::Output(Output::Probe(backend)))) => self.probe(backend),
                // Idle connections to it end by themselves, in seconds.
                Some(Ok(Order::Output(Output::Forget(backend)))) => self.refused.forget(backend),
                Some(Ok(Order::Output(Output::Load(backend, load)))) => self.load(backend, load),
                Some(Ok(Order::Earlier(at))) => {
                    deadline = Some(deadline.map_or(at, |deadline| deadline.min(at)));
                }
                Some(Err(_)) => return,
                None => deadline = self.shared.time_out(),
            }
        }
    }

    async fn sleep_until(&self, deadline: Option<Instant>) {
        let clock = self.shared.clock();
        match deadline.and_then(|at| clock.to_system(at.max(clock.now() + TIME_MIN))) {
            Some(at) => drop(Timer::at(at).await),
            None => smol::future::pending().await,
        }
    }

    /// Has a backend load an adapter that it lacks, beside everything else.
    fn load(&self, backend: BackendId, load: Arc<[u8]>) {
        let (shared, key) = (Arc::clone(&self.shared), self.key.clone());
        let load = async move {
            let mut spec = None;
            shared.lend(&mut |engine| spec = engine.spec(backend).cloned());
            let Some(spec) = spec else { return };
            let told = AssertUnwindSafe(ask::load(&spec, key.as_deref(), &load)).catch_unwind();
            match told.await.unwrap_or(Err(ProbeError::Broken)) {
                Ok(status) if (200..300).contains(&status) => {
                    log::info!(backend:%; "adapter loaded again");
                    shared.changed(backend, Change::Adapters);
                }
                Ok(status) => log::warn!(backend:%, status; "adapter cannot be loaded again"),
                Err(error) => log::warn!(backend:%, error:?; "adapter cannot be loaded again"),
            }
        };
        self.executor.spawn(load).detach();
    }

    /// Asks a backend how it is, beside everything else.
    fn probe(&self, backend: BackendId) {
        let (shared, key) = (Arc::clone(&self.shared), self.key.clone());
        let refused = Rc::clone(&self.refused);
        let probe = async move {
            let (mut spec, mut also) = (None, Also::default());
            shared.lend(&mut |engine| {
                spec = engine.spec(backend).cloned();
                also.rest = engine.asks_rest(backend);
                also.cache = engine.asks_cache(backend);
            });
            let Some(spec) = spec else { return };
            // A library that panics over an odd answer must not end all probing.
            let asked =
                AssertUnwindSafe(ask::backend(&spec, key.as_deref(), also)).catch_unwind().await;
            let asked = asked.unwrap_or(Err(ProbeError::Broken));
            log::trace!(backend:%, answered = asked.is_ok(); "probed");
            if let Ok(Asked { models_status: Some(status), .. }) = asked {
                refused.tell(backend, &spec.address, status);
            }
            shared.tell(Input::Probed(backend, asked.map(|asked| asked.probe)));
        };
        self.executor.spawn(probe).detach();
    }
}

/// Backends that answer but refuse to list their models, with the status of the refusal. They look
/// healthy and get no request, so the operator is told: once, not at each probe.
#[derive(Default)]
struct Refused(RefCell<BTreeMap<BackendId, u16>>);

impl Refused {
    fn tell(&self, backend: BackendId, address: &Address, status: u16) {
        if !self.is_new(backend, status) {
            return;
        }
        if status == 401 {
            log::warn!(
                backend:%, address:%;
                "backend asks for a key to list its models: VLLM_PXY_BACKEND_KEY is not set or wrong"
            );
        } else {
            log::warn!(backend:%, address:%, status; "backend does not list its models");
        }
    }

    /// Whether this status is a refusal, and not the one before.
    fn is_new(&self, backend: BackendId, status: u16) -> bool {
        let mut refused = self.0.borrow_mut();
        if status == 200 {
            refused.remove(&backend);
            return false;
        }
        refused.insert(backend, status) != Some(status)
    }

    fn forget(&self, backend: BackendId) {
        self.0.borrow_mut().remove(&backend);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_once() {
        let refused = Refused::default();
        let (a, b) = (BackendId(0), BackendId(1));
        let told = [
            (a, 401, true),
            (a, 401, false),
            (b, 401, true),
            (a, 404, true),
            (a, 200, false),
            (a, 404, true),
            (b, 401, false),
        ];
        for (backend, status, expected) in told {
            assert_eq!(refused.is_new(backend, status), expected, "{backend} {status}");
        }
        refused.forget(b);
        assert!(refused.is_new(b, 401));
    }
}
