//! The simulated engine: who reads a prompt, who speaks, how much was done so far.
//!
//! Knows no HTTP and no JSON. A [`Run`] is one request's time in the engine; dropping it early is
//! the abort; an engine that is told to abort lets it end early, as vLLM's does. There is no batch
//! limit and no cache: prompts are read one at a time, and everyone whose prompt is read speaks at
//! full speed.

use super::metrics::{Histogram, LATENCY, TTFT};
use event_listener::Event;
use smol::Timer;
use smol::future::FutureExt;
use smol::lock::Mutex;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Instant;
use vllm_proxy_sim::reply::{Finish, Pace, Reply};

/// What the engine has done and is doing: the source of `/metrics`.
#[derive(Debug)]
pub(super) struct Counts {
    /// Sequences whose prompt is being read or that speak.
    pub(super) running: Cell<u64>,
    /// Sequences that wait for an earlier prompt to be read.
    pub(super) waiting: Cell<u64>,
    /// Tokens of all running sequences.
    pub(super) resident: Cell<u64>,
    pub(super) prompt_tokens: Cell<u64>,
    pub(super) generation_tokens: Cell<u64>,
    pub(super) stopped: Cell<u64>,
    pub(super) cut_short: Cell<u64>,
    pub(super) aborted: Cell<u64>,
    pub(super) ttft: RefCell<Histogram>,
    pub(super) latency: RefCell<Histogram>,
}

/// A request in the engine, as others see it.
#[derive(Debug)]
struct Admitted {
    /// What clients call it.
    id: String,
    /// Whether it is to end.
    aborted: Rc<Cell<bool>>,
}

/// One engine, shared by all requests of its server.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) counts: Counts,
    /// Held while a prompt is read.
    reading: Mutex<()>,
    /// The requests in the engine, in the order in which they came.
    runs: RefCell<BTreeMap<u64, Admitted>>,
    /// How many were ever admitted.
    admitted: Cell<u64>,
    /// Nobody says a word meanwhile.
    frozen: Cell<bool>,
    /// Told when anything changed that somebody may wait for.
    changed: Event,
}

fn add(cell: &Cell<u64>, amount: u64) {
    cell.set(cell.get() + amount);
}

fn take(cell: &Cell<u64>, amount: u64) {
    cell.set(cell.get().saturating_sub(amount));
}

impl Engine {
    pub(super) fn new() -> Self {
        Self {
            counts: Counts {
                running: Cell::new(0),
                waiting: Cell::new(0),
                resident: Cell::new(0),
                prompt_tokens: Cell::new(0),
                generation_tokens: Cell::new(0),
                stopped: Cell::new(0),
                cut_short: Cell::new(0),
                aborted: Cell::new(0),
                ttft: RefCell::new(Histogram::new(TTFT)),
                latency: RefCell::new(Histogram::new(LATENCY)),
            },
            reading: Mutex::new(()),
            runs: RefCell::default(),
            admitted: Cell::new(0),
            frozen: Cell::new(false),
            changed: Event::new(),
        }
    }

    /// Ends the requests whose id is chosen; says how many.
    pub(super) fn abort(&self, chosen: impl Fn(&str) -> bool) -> usize {
        let runs = self.runs.borrow();
        let chosen = runs.values().filter(|run| chosen(&run.id));
        let count = chosen.map(|run| run.aborted.set(true)).count();
        self.changed.notify(usize::MAX);
        count
    }

    /// Holds every request where it is, or lets all go on.
    pub(super) fn freeze(&self, frozen: bool) {
        self.frozen.set(frozen);
        self.changed.notify(usize::MAX);
    }

    /// Whether no request is in it.
    pub(super) fn is_idle(&self) -> bool {
        self.runs.borrow().is_empty()
    }

    /// Waits until all its requests have ended.
    pub(super) async fn idle(&self) {
        self.until(|| self.is_idle()).await;
    }

    async fn until(&self, reached: impl Fn() -> bool) {
        loop {
            let change = self.changed.listen();
            if reached() {
                return;
            }
            change.await;
        }
    }

    /// Takes a request in: `replies` are its sequences, which end together as one batch.
    pub(super) fn admit(
        self: &Rc<Self>,
        id: &str,
        prompt_tokens: u32,
        replies: Vec<Reply>,
        pace: Pace,
    ) -> Run {
        add(&self.counts.waiting, replies.len() as u64);
        add(&self.admitted, 1);
        let number = self.admitted.get();
        let aborted = Rc::new(Cell::new(false));
        let admitted = Admitted { id: id.to_owned(), aborted: Rc::clone(&aborted) };
        self.runs.borrow_mut().insert(number, admitted);
        Run {
            engine: Rc::clone(self),
            number,
            aborted,
            prompt_tokens,
            pace,
            admitted: Instant::now(),
            stage: Stage::Waiting,
            resident: 0,
            step: 0,
            next: 0,
            finished: 0,
            left: 0,
            replies,
        }
    }
}

/// One token of one sequence.
#[derive(Clone, Copy, Debug)]
pub(super) struct Token {
    /// Which sequence.
    pub(super) choice: usize,
    /// How many it has now.
    pub(super) count: u32,
    pub(super) text: &'static str,
    /// With its last token: why it ends.
    pub(super) finish: Option<Finish>,
}

impl Token {
    /// How many it counts as: the end of what was aborted is none.
    pub(super) const fn tokens(self) -> u32 {
        if matches!(self.finish, Some(Finish::Abort)) { 0 } else { 1 }
    }
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    Waiting,
    Reading,
    Speaking { since: Instant },
}

/// One request in the engine.
#[derive(Debug)]
pub(super) struct Run {
    engine: Rc<Engine>,
    number: u64,
    aborted: Rc<Cell<bool>>,
    prompt_tokens: u32,
    replies: Vec<Reply>,
    pace: Pace,
    admitted: Instant,
    stage: Stage,
    resident: u64,
    /// Index of the token that each sequence says next, and of the sequence whose turn it is.
    step: u32,
    next: usize,
    finished: u64,
    /// Sequences that have been told of their abort.
    left: usize,
}

impl Run {
    pub(super) fn replies(&self) -> &[Reply] {
        &self.replies
    }

    pub(super) const fn prompt_tokens(&self) -> u32 {
        self.prompt_tokens
    }

    /// The next token when it is due; `None` after the last. If it is aborted, each sequence that
    /// has not ended ends with an empty one.
    pub(super) async fn next(&mut self) -> Option<Token> {
        let (engine, aborted) = (Rc::clone(&self.engine), Rc::clone(&self.aborted));
        if !aborted.get() {
            let abort = async {
                engine.until(|| aborted.get()).await;
                None
            };
            let token = self.due().or(abort).await;
            if token.is_some() || !aborted.get() {
                return token;
            }
        }
        self.leave()
    }

    /// The end of the next sequence that was cut off.
    fn leave(&mut self) -> Option<Token> {
        while let Some(reply) = self.replies.get(self.left) {
            let choice = self.left;
            self.left += 1;
            let said = if choice < self.next { self.step + 1 } else { self.step };
            if said < reply.tokens() {
                let finish = Some(Finish::Abort);
                return Some(Token { choice, count: said, text: "", finish });
            }
        }
        None
    }

    async fn due(&mut self) -> Option<Token> {
        let since = match self.stage {
            Stage::Speaking { since } => since,
            Stage::Waiting | Stage::Reading => self.read().await,
        };
        loop {
            let Some(reply) = self.replies.get(self.next).copied() else {
                self.next = 0;
                self.step += 1;
                if self.replies.iter().all(|reply| reply.tokens() <= self.step) {
                    return None;
                }
                let due = since + self.pace.token(self.step);
                if due > Instant::now() {
                    Timer::at(due).await;
                } else {
                    // A burst, or a late step: others get their turn in between.
                    smol::future::yield_now().await;
                }
                continue;
            };
            if self.step < reply.tokens() {
                let engine = Rc::clone(&self.engine);
                engine.until(|| !engine.frozen.get()).await;
                self.next += 1;
                return Some(self.say(self.next - 1, reply));
            }
            self.next += 1;
        }
    }

    /// Waits for its turn, reads the prompt and comes to the first token.
    async fn read(&mut self) -> Instant {
        let engine = Rc::clone(&self.engine);
        let counts = &engine.counts;
        let sequences = self.replies.len() as u64;
        let turn = engine.reading.lock().await;
        take(&counts.waiting, sequences);
        add(&counts.running, sequences);
        self.stage = Stage::Reading;
        self.hold(self.prompt_tokens.into());
        let prefill = self.pace.prefill(self.prompt_tokens);
        if !prefill.is_zero() {
            Timer::after(prefill).await;
        }
        drop(turn);
        if !self.pace.base.is_zero() {
            Timer::after(self.pace.base).await;
        }
        add(&counts.prompt_tokens, self.prompt_tokens.into());
        counts.ttft.borrow_mut().observe(self.admitted.elapsed().as_secs_f64());
        let since = Instant::now();
        self.stage = Stage::Speaking { since };
        since
    }

    fn say(&mut self, choice: usize, reply: Reply) -> Token {
        let count = self.step + 1;
        let finish = (count == reply.tokens()).then(|| reply.finish());
        self.hold(1);
        let counts = &self.engine.counts;
        add(&counts.generation_tokens, 1);
        match finish {
            None => {}
            Some(Finish::Stop) => add(&counts.stopped, 1),
            Some(Finish::Length) => add(&counts.cut_short, 1),
            // No reply is made to end so; those that do are counted when they leave.
            Some(Finish::Abort) => {}
        }
        if finish.is_some() {
            self.finished += 1;
            counts.latency.borrow_mut().observe(self.admitted.elapsed().as_secs_f64());
        }
        Token { choice, count, text: reply.token(self.step), finish }
    }

    fn hold(&mut self, tokens: u64) {
        self.resident += tokens;
        add(&self.engine.counts.resident, tokens);
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let counts = &self.engine.counts;
        let sequences = self.replies.len() as u64;
        match self.stage {
            Stage::Waiting => take(&counts.waiting, sequences),
            Stage::Reading | Stage::Speaking { .. } => take(&counts.running, sequences),
        }
        take(&counts.resident, self.resident);
        add(&counts.aborted, sequences - self.finished);
        self.engine.runs.borrow_mut().remove(&self.number);
        self.engine.changed.notify(usize::MAX);
    }
}
