//! The simulated engine: which requests are in it, and how much was done so far.
//!
//! Knows no HTTP and no JSON. What happens when lies in the machine's files; a request's time here
//! is a [`Run`]. An engine that is told to abort lets requests end early, as vLLM's does.

use super::machine::{Course, Machine, Sequence};
use super::metrics::{Histogram, LATENCY, TTFT};
use super::run::{Pace, Run};
use event_listener::Event;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use vllm_proxy_sim::reply::Finish;
use vllm_proxy_sim::vllm::Options;

/// What the engine has done: the source of `/metrics`.
#[derive(Debug)]
pub(super) struct Counts {
    pub(super) prompt_tokens: Cell<u64>,
    /// Those of them that were found in the cache.
    pub(super) cached_tokens: Cell<u64>,
    pub(super) generation_tokens: Cell<u64>,
    pub(super) stopped: Cell<u64>,
    pub(super) cut_short: Cell<u64>,
    pub(super) aborted: Cell<u64>,
    pub(super) ttft: RefCell<Histogram>,
    pub(super) latency: RefCell<Histogram>,
}

fn add(cell: &Cell<u64>, amount: u64) {
    cell.set(cell.get() + amount);
}

/// A request in the engine, as others see it.
#[derive(Debug)]
struct Admitted {
    /// What clients call it.
    id: String,
    courses: Vec<Rc<Course>>,
    /// Whether it is to end.
    aborted: Rc<Cell<bool>>,
    news: Rc<Event>,
}

/// One engine, shared by all requests of its server.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) counts: Counts,
    pub(super) machine: Machine,
    /// The requests in the engine, in the order in which they came.
    runs: RefCell<BTreeMap<u64, Admitted>>,
    /// How many were ever admitted.
    admitted: Cell<u64>,
    /// Told when a request has left.
    left: Event,
}

impl Engine {
    pub(super) fn new(options: Options) -> Self {
        Self {
            counts: Counts {
                prompt_tokens: Cell::new(0),
                cached_tokens: Cell::new(0),
                generation_tokens: Cell::new(0),
                stopped: Cell::new(0),
                cut_short: Cell::new(0),
                aborted: Cell::new(0),
                ttft: RefCell::new(Histogram::new(TTFT)),
                latency: RefCell::new(Histogram::new(LATENCY)),
            },
            machine: Machine::new(options),
            runs: RefCell::default(),
            admitted: Cell::new(0),
            left: Event::new(),
        }
    }

    /// Ends the requests whose id is chosen; says how many.
    pub(super) fn abort(&self, chosen: impl Fn(&str) -> bool) -> usize {
        let runs = self.runs.borrow();
        let chosen = runs.values().filter(|run| chosen(&run.id));
        let end = |run: &Admitted| {
            run.aborted.set(true);
            run.courses.iter().for_each(|course| self.machine.abort(course));
            run.news.notify(usize::MAX);
        };
        chosen.map(end).count()
    }

    /// Holds every request where it is, or lets all go on.
    pub(super) fn freeze(&self, frozen: bool) {
        self.machine.freeze(frozen);
        self.runs.borrow().values().for_each(|run| {
            run.news.notify(usize::MAX);
        });
    }

    /// Whether no request is in it.
    pub(super) fn is_idle(&self) -> bool {
        self.runs.borrow().is_empty()
    }

    /// Waits until all its requests have ended.
    pub(super) async fn idle(&self) {
        loop {
            let change = self.left.listen();
            if self.is_idle() {
                return;
            }
            change.await;
        }
    }

    /// Sequences in the batch: those that do not wait.
    ///
    /// One that is being said slower than the machine would still counts, as does one whose fault
    /// is to stop half-way.
    pub(super) fn running(&self) -> usize {
        let inside: usize = self.runs.borrow().values().map(|run| run.courses.len()).sum();
        inside.saturating_sub(self.waiting())
    }

    /// Sequences that wait for room in the batch.
    pub(super) fn waiting(&self) -> usize {
        self.machine.gauges().waiting
    }

    /// Takes a request in with all its sequences.
    pub(super) fn admit(
        self: &Rc<Self>,
        id: &str,
        prompt_tokens: u32,
        sequences: Vec<Sequence>,
        pace: Pace,
    ) -> Run {
        add(&self.admitted, 1);
        let number = self.admitted.get();
        let aborted = Rc::new(Cell::new(false));
        let news = Rc::new(Event::new());
        let inside = self.machine.submit(sequences, &news);
        let admitted = Admitted {
            id: id.to_owned(),
            courses: inside.iter().map(|(_, course)| Rc::clone(course)).collect(),
            aborted: Rc::clone(&aborted),
            news: Rc::clone(&news),
        };
        self.runs.borrow_mut().insert(number, admitted);
        Run::new(Rc::clone(self), number, (aborted, news), prompt_tokens, inside, pace)
    }

    /// A sequence has its first token.
    pub(super) fn begun(&self, course: &Course, after: f64) {
        let cached = course.entered().map_or(0, |entered| entered.cached);
        add(&self.counts.prompt_tokens, course.prompt().into());
        add(&self.counts.cached_tokens, cached.into());
        self.counts.ttft.borrow_mut().observe(after);
    }

    /// A sequence has a token more.
    pub(super) fn said(&self, finish: Option<Finish>, after: f64) {
        let counts = &self.counts;
        add(&counts.generation_tokens, 1);
        match finish {
            None => return,
            Some(Finish::Stop) => add(&counts.stopped, 1),
            Some(Finish::Length) => add(&counts.cut_short, 1),
            // No reply is made to end so; those that do are counted when they leave.
            Some(Finish::Abort) => {}
        }
        counts.latency.borrow_mut().observe(after);
    }

    /// A request has left, with so many sequences that had not ended.
    pub(super) fn leave(&self, number: u64, unfinished: u64) {
        add(&self.counts.aborted, unfinished);
        if let Some(run) = self.runs.borrow_mut().remove(&number) {
            run.courses.iter().for_each(|course| self.machine.abort(course));
        }
        self.left.notify(usize::MAX);
    }
}
