//! What all connections of one simulated server share: its options, engine, adapters, stored
//! responses, generators and counts.

use super::answers::{self, Answer};
use super::connection::Job;
use super::engine::Engine;
use super::power::Power;
use super::prompt;
use super::store::Store;
use super::{Adapter, Args, End};
use http_types::Method;
use smol::channel::Sender;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use vllm_proxy_core::rng::{Rng, mix};
use vllm_proxy_sim::faults::{Chances, Fault};

/// The label of requests counted by `http_requests_total`: handler, method, first digit of status.
type Handled = (&'static str, String, u16);

/// One simulated server.
#[derive(Debug)]
pub(super) struct Mock {
    pub(super) args: Args,
    pub(super) engine: Rc<Engine>,
    /// Whether the engine works at all.
    pub(super) power: Power,
    /// Adapters in the order in which they were loaded.
    pub(super) adapters: RefCell<Vec<Adapter>>,
    /// Responses kept for later requests.
    pub(super) responses: RefCell<Store>,
    pub(super) requests: RefCell<BTreeMap<Handled, u64>>,
    /// What `/weight_info` tells.
    pub(super) weight_version: RefCell<String>,
    /// When the server started, in seconds since 1970.
    pub(super) started: f64,
    /// What `/load` tells.
    load: Rc<Cell<u64>>,
    chances: Chances,
    /// Two generators: how many ids were made must not change which faults are drawn.
    faults: RefCell<Rng>,
    ids: RefCell<Rng>,
    /// Generation requests so far.
    generations: Cell<u64>,
    /// Takes work that belongs to no connection.
    background: Sender<Job>,
    ended: Sender<End>,
}

impl Mock {
    pub(super) fn new(mut args: Args, background: Sender<Job>, ended: Sender<End>) -> Self {
        let engine = Rc::new(Engine::new(args.machine()));
        // vLLM does not start where the longest request does not fit into the cache.
        args.max_model_len = args.max_model_len.min(args.kv_room());
        Self {
            power: Power::new(Rc::clone(&engine)),
            engine,
            adapters: RefCell::new(args.loras.clone()),
            responses: RefCell::default(),
            requests: RefCell::default(),
            weight_version: RefCell::new("default".to_owned()),
            started: answers::unix_time(),
            load: Rc::default(),
            chances: args.chances(),
            faults: RefCell::new(Rng::new(args.seed)),
            ids: RefCell::new(Rng::new(mix(args.seed))),
            generations: Cell::new(0),
            background,
            ended,
            args,
        }
    }

    /// The fault of the next generation request, if it has one.
    pub(super) fn draw(&self) -> Option<Fault> {
        self.generations.set(self.generations.get() + 1);
        if self.args.crash_at == Some(self.generations.get()) {
            return Some(Fault::Crash);
        }
        self.chances.draw(&mut self.faults.borrow_mut())
    }

    /// A new id, as the sixteen digits that vLLM's have.
    pub(super) fn hex(&self) -> String {
        format!("{:016x}", self.ids.borrow_mut().next_u64())
    }

    /// Tells apart configurations, as vLLM's does.
    pub(super) fn fingerprint(&self) -> String {
        let args = &self.args;
        let bytes = args.models.iter().flat_map(|model| model.bytes());
        let hash = bytes.fold(args.max_model_len.into(), |hash, byte| mix(hash ^ u64::from(byte)));
        format!("vllm-{}-{:08x}", args.version, hash as u32)
    }

    /// The name that answers hold for a request that names `model`, or 404.
    pub(super) fn serves(&self, model: Option<&str>) -> Result<String, Answer> {
        let args = &self.args;
        let model = model.unwrap_or_default();
        if args.denied_models.iter().any(|name| name == model) {
            return Err(self.unknown(model));
        }
        if model.is_empty() || self.is_base_model(model) {
            return Ok(args.canonical().to_owned());
        }
        if self.adapters.borrow().iter().any(|adapter| adapter.name == model) {
            return Ok(model.to_owned());
        }
        Err(self.unknown(model))
    }

    /// What keeps a request apart in the cache; `model` is as [`Mock::serves`] says it.
    pub(super) fn whose(&self, model: &str, salt: Option<&str>) -> u64 {
        let adapters = self.adapters.borrow();
        let adapter = adapters.iter().find(|adapter| adapter.name == model);
        let path = adapter.map_or("", |adapter| &adapter.path);
        prompt::whose(&[model, path, salt.unwrap_or_default()])
    }

    pub(super) fn is_base_model(&self, model: &str) -> bool {
        self.args.models.iter().any(|name| name == model)
    }

    pub(super) fn unknown(&self, model: &str) -> Answer {
        Answer::unknown_model(model, &self.args.models)
    }

    /// Counts an answer, where vLLM does.
    pub(super) fn count(&self, handler: &'static str, method: Method, status: u16) {
        if !matches!(handler, "/metrics" | "/health" | "/load" | "/ping" | "/version") {
            let key = (handler, method.to_string(), status / 100);
            *self.requests.borrow_mut().entry(key).or_default() += 1;
        }
    }

    /// What `/load` tells: 0 unless the server was told to count.
    pub(super) fn load(&self) -> u64 {
        if self.args.load_tracking { self.load.get() } else { 0 }
    }

    /// Counts a request in hand for as long as its result is kept.
    pub(super) fn carry(&self) -> Load {
        self.load.set(self.load.get() + 1);
        Load(Rc::clone(&self.load))
    }

    /// Does a job that goes on whoever leaves.
    pub(super) fn in_background(&self, job: Job) {
        // The channel is unbounded and its other half lives as long as the server.
        let _ = self.background.try_send(job);
    }

    /// Ends the server.
    pub(super) fn end(&self, why: End) {
        // Full when it is ending already.
        let _ = self.ended.try_send(why);
    }
}

/// One request in hand, as `/load` counts them.
#[derive(Debug)]
pub(super) struct Load(Rc<Cell<u64>>);

impl Drop for Load {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}
