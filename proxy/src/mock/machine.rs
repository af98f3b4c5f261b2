//! The simulated hardware in real time: drives the simulator's [`Vllm`] by the clock, and keeps for
//! each sequence when it came in and when each of its tokens was made.
//!
//! Knows no requests of several sequences, and no texts. Goes step by step, since every token is to
//! leave when it is made.

use super::clock::Clock;
use event_listener::{Event, EventListener};
use smol::Timer;
use smol::future::FutureExt;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use vllm_proxy_core::time::Instant;
use vllm_proxy_sim::reply::Reply;
use vllm_proxy_sim::vllm::{self, Gauges, Job, Options, Vllm};

/// Tokens of a block: vLLM's default on GPUs.
pub(super) const BLOCK_TOKENS: u32 = 16;

/// A prompt with its answer, as the machine needs them.
#[derive(Clone, Debug)]
pub(super) struct Sequence {
    pub(super) reply: Reply,
    /// Tokens of the prompt.
    pub(super) prompt: u32,
    /// What each full block of the prompt holds.
    pub(super) blocks: Rc<[u64]>,
    /// The same of the blocks behind them, once the answer is there.
    pub(super) answer: Vec<u64>,
}

/// How a sequence fares in the machine.
#[derive(Debug)]
pub(super) struct Course {
    id: u64,
    prompt: u32,
    entered: Cell<Option<Entered>>,
    made: RefCell<Vec<Instant>>,
    /// Told of all that is new here.
    news: Rc<Event>,
}

/// That a sequence came into the batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entered {
    pub(super) at: Instant,
    /// Tokens of its prompt that were found in the cache.
    pub(super) cached: u32,
}

impl Course {
    /// Tokens of the prompt.
    pub(super) const fn prompt(&self) -> u32 {
        self.prompt
    }

    pub(super) const fn entered(&self) -> Option<Entered> {
        self.entered.get()
    }

    /// When token `index` was made, if it is.
    pub(super) fn made(&self, index: u32) -> Option<Instant> {
        self.made.borrow().get(index as usize).copied()
    }
}

/// The hardware and what is in it.
#[derive(Debug)]
pub(super) struct Machine {
    options: Options,
    vllm: RefCell<Vllm>,
    clock: Clock,
    inside: RefCell<BTreeMap<u64, Rc<Course>>>,
    submitted: Cell<u64>,
    queries: Cell<u64>,
    hits: Cell<u64>,
    /// Told when its next deadline is another one.
    changed: Event,
}

impl Machine {
    pub(super) fn new(options: Options) -> Self {
        let options = Options { leap_max: 1, ..options };
        Self {
            options,
            vllm: RefCell::new(Vllm::new(options)),
            clock: Clock::new(),
            inside: RefCell::default(),
            submitted: Cell::new(0),
            queries: Cell::new(0),
            hits: Cell::new(0),
            changed: Event::new(),
        }
    }

    /// Goes on for ever: what it makes is told to those who wait for it.
    pub(super) async fn work(&self) {
        loop {
            let change = self.changed.listen();
            self.catch_up();
            let next = self.vllm.borrow().poll_timeout();
            self.until(next, change).await;
        }
    }

    /// Waits for a moment or for news, whichever comes first; as long as the clock stands still for
    /// news only.
    pub(super) async fn until(&self, at: Option<Instant>, news: EventListener) {
        match at.and_then(|at| self.clock.due(at)) {
            None => news.await,
            Some(due) => {
                let due = async {
                    Timer::at(due).await;
                };
                due.or(news).await;
            }
        }
    }

    pub(super) fn now(&self) -> Instant {
        self.clock.now()
    }

    pub(super) const fn is_frozen(&self) -> bool {
        self.clock.is_stopped()
    }

    /// Stops in the midst of a step, or goes on with it.
    pub(super) fn freeze(&self, frozen: bool) {
        if frozen {
            self.clock.stop();
        } else {
            self.clock.go();
        }
        self.changed.notify(usize::MAX);
    }

    /// Takes sequences into the queue, all at once; whatever becomes of them is told to `news`.
    pub(super) fn submit(&self, all: Vec<Sequence>, news: &Rc<Event>) -> Vec<(Reply, Rc<Course>)> {
        self.catch_up();
        let now = self.now();
        let submit = |one: Sequence| (one.reply, self.submit_one(one, Rc::clone(news), now));
        let submitted = all.into_iter().map(submit).collect();
        self.collect(now);
        self.changed.notify(usize::MAX);
        submitted
    }

    fn submit_one(&self, one: Sequence, news: Rc<Event>, now: Instant) -> Rc<Course> {
        let id = self.submitted.get();
        self.submitted.set(id + 1);
        let output = one.reply.tokens();
        // Only audio can be longer than the context, and with it than the cache.
        let room = u32::try_from(self.options.kv_tokens).unwrap_or(u32::MAX);
        let prompt = one.prompt.min(room.saturating_sub(output)).max(1);
        let course = Rc::new(Course {
            id,
            prompt: one.prompt,
            entered: Cell::new(None),
            made: RefCell::default(),
            news,
        });
        self.inside.borrow_mut().insert(id, Rc::clone(&course));
        let answer = one.answer.into();
        let job = Job { id, blocks: one.blocks.as_ref().into(), prompt, output, answer };
        let taken = self.vllm.borrow_mut().submit(job, now);
        taken.expect("the context is no longer than the cache, and the prompt was made to fit");
        course
    }

    /// Nobody waits for it any longer.
    pub(super) fn abort(&self, course: &Course) {
        if self.inside.borrow_mut().remove(&course.id).is_some() {
            self.vllm.borrow_mut().abort(course.id, self.now());
            self.changed.notify(usize::MAX);
        }
    }

    /// Forgets all prefixes; whoever is in the batch begins anew.
    pub(super) fn forget(&self) {
        self.vllm.borrow_mut().forget_all();
        self.changed.notify(usize::MAX);
    }

    pub(super) fn gauges(&self) -> Gauges {
        self.vllm.borrow().gauges()
    }

    pub(super) fn preemptions(&self) -> u64 {
        self.vllm.borrow().preemptions()
    }

    /// Prompt tokens that were looked for in the cache, and those of them that were found.
    pub(super) const fn lookups(&self) -> (u64, u64) {
        (self.queries.get(), self.hits.get())
    }

    pub(super) const fn options(&self) -> &Options {
        &self.options
    }

    /// Does all that is due, each step at its time.
    fn catch_up(&self) {
        let now = self.now();
        loop {
            let next = self.vllm.borrow().poll_timeout();
            let Some(at) = next.filter(|at| *at <= now) else { return };
            self.vllm.borrow_mut().handle_timeout(at);
            self.collect(at);
        }
    }

    /// Tells everybody what the machine has done.
    fn collect(&self, at: Instant) {
        let mut inside = self.inside.borrow_mut();
        let mut vllm = self.vllm.borrow_mut();
        for one in vllm.batch() {
            if let Some(course) = inside.get(&one.id) {
                self.note(course, one.cached, one.made, at);
            }
        }
        while let Some(event) = vllm.poll_event() {
            if let vllm::Event::Done(id, usage) = event
                && let Some(course) = inside.remove(&id)
            {
                self.note(&course, usage.cached, usage.completion, at);
            }
        }
    }

    fn note(&self, course: &Course, cached: u32, made: u32, at: Instant) {
        let enters = course.entered.get().is_none();
        if enters {
            course.entered.set(Some(Entered { at, cached }));
            if self.options.prefix_caching {
                self.queries.set(self.queries.get() + u64::from(course.prompt));
                self.hits.set(self.hits.get() + u64::from(cached));
            }
        }
        let mut times = course.made.borrow_mut();
        if enters || times.len() < made as usize {
            times.resize(made as usize, at);
            course.news.notify(usize::MAX);
        }
    }
}
