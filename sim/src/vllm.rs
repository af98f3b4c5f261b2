//! One vLLM server in miniature, without HTTP: paged KV cache, continuous batching, chunked
//! prefill, preemption.
//!
//! Follows the scheduler of vLLM V1: running requests first, then the queue in its order; a prompt
//! is taken in when all of it fits; leading full blocks that are found are not computed, but the
//! last token always is; when blocks run out the request taken in last is thrown out and begins
//! anew. Does not know where requests come from, nor the proxy. A step's length is
//! [`Gpu`]'s.
//!
//! As long as a step changes nothing but the number of tokens made, many are taken in one leap. A
//! machine that leaps and one that goes step by step say the same things at the same times.

mod gpu;
mod ideal;
mod leap;
mod pool;
#[cfg(test)]
mod tests;
mod words;

pub use gpu::Gpu;
pub use ideal::ideal_hits;
pub use words::{Event, Gauges, Job, Options, Progress, TooLong, Usage};

use leap::Leap;
use pool::{BlockIndex, Pool};
use std::collections::VecDeque;
use vllm_proxy_core::time::{Duration, Instant};

#[derive(Debug)]
struct Sequence {
    job: Job,
    /// Tokens of the answer made so far.
    made: u32,
    /// Tokens whose KV is there.
    computed: u32,
    /// Tokens that were there when it was taken in: up to here it is prefill.
    prefill: u32,
    /// Blocks it uses, in order.
    blocks: Vec<BlockIndex>,
    /// How many of them others can find.
    told: usize,
    /// What it found when it was first taken in.
    cached: Option<u32>,
    /// Tokens of the step under way.
    scheduled: u32,
    aborted: bool,
}

impl Sequence {
    const fn tokens(&self) -> u32 {
        self.job.prompt + self.made
    }

    const fn left(&self) -> u32 {
        self.job.output - self.made
    }
}

/// The server.
#[derive(Debug)]
pub struct Vllm {
    options: Options,
    pool: Pool,
    running: Vec<Sequence>,
    waiting: VecDeque<Sequence>,
    leap: Option<Leap>,
    events: VecDeque<Event>,
    /// Nanoseconds in which it computed.
    busy: u64,
    preemptions: u64,
    /// Prompt tokens looked up in the cache since it was started, and those of them found.
    looked_up: (u64, u64),
    /// Until when it does nothing, in nanoseconds.
    stalled: u64,
}

impl Vllm {
    /// An idle server with an empty cache.
    pub fn new(options: Options) -> Self {
        let limit = (options.kv_tokens != u64::MAX).then(|| {
            let blocks = options.kv_tokens / u64::from(options.block_tokens);
            usize::try_from(blocks).unwrap_or(usize::MAX)
        });
        Self {
            options,
            pool: Pool::new(limit),
            running: Vec::new(),
            waiting: VecDeque::new(),
            leap: None,
            events: VecDeque::new(),
            busy: 0,
            preemptions: 0,
            looked_up: (0, 0),
            stalled: 0,
        }
    }

    /// Takes a request into the queue.
    pub fn submit(&mut self, mut job: Job, now: Instant) -> Result<(), TooLong> {
        job.output = job.output.max(1);
        job.prompt = job.prompt.max(1);
        if self.blocks_for(job.prompt + job.output) > self.pool.limit() {
            return Err(TooLong);
        }
        self.waiting.push_back(Sequence {
            job,
            made: 0,
            computed: 0,
            prefill: 0,
            blocks: Vec::new(),
            told: 0,
            cached: None,
            scheduled: 0,
            aborted: false,
        });
        self.interrupt(now);
        Ok(())
    }

    /// Whoever asked is gone. What is under way in this step is finished all the same.
    pub fn abort(&mut self, id: u64, now: Instant) {
        self.waiting.retain(|one| one.job.id != id);
        if let Some(one) = self.running.iter_mut().find(|one| one.job.id == id) {
            one.aborted = true;
            self.interrupt(now);
        }
    }

    /// When [`Vllm::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.leap.map(|leap| Instant::from_micros(leap.end().div_ceil(1_000)))
    }

    /// A deadline of [`Vllm::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(leap) = self.leap
            && leap.end() <= nanos(now)
        {
            self.leap = None;
            self.busy += leap.end() - leap.began;
            self.finish(leap.steps);
            self.begin(leap.end());
        }
    }

    /// What it says next.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Loses all requests and all of its cache, as a process that ends.
    pub fn restart(&mut self) {
        let (busy, preemptions) = (self.busy, self.preemptions);
        *self = Self { busy, preemptions, ..Self::new(self.options) };
    }

    /// Forgets all prefixes that nobody uses.
    pub fn forget(&mut self) {
        self.pool.forget();
    }

    /// Forgets all prefixes, those in use too: whoever is in the batch begins anew.
    pub fn forget_all(&mut self) {
        while let Some(mut last) = self.running.pop() {
            if last.aborted {
                self.free(&mut last);
            } else {
                self.running.push(last);
                self.throw_out_the_last();
            }
        }
        self.forget();
    }

    /// How far each request in the batch is, in the order in which they came in.
    pub fn batch(&self) -> impl Iterator<Item = Progress> {
        self.running.iter().map(|one| Progress {
            id: one.job.id,
            cached: one.cached.unwrap_or(0),
            made: one.made,
        })
    }

    /// Begins no step before `until`.
    pub fn stall(&mut self, until: Instant, now: Instant) {
        self.stalled = nanos(until);
        if let Some(leap) = &mut self.leap {
            leap.cut(nanos(now));
        }
    }

    /// What its metrics say.
    pub fn gauges(&self) -> Gauges {
        let limit = self.pool.limit();
        let kv_permille = u32::try_from(self.pool.used() as u128 * 1_000 / limit as u128);
        Gauges {
            waiting: self.waiting.len(),
            running: self.running.len(),
            kv_permille: kv_permille.unwrap_or(1_000),
        }
    }

    /// How many tokens of a prompt it would not have to compute now.
    pub fn cached(&self, blocks: &[u64], prompt: u32) -> u32 {
        let full = (prompt / self.options.block_tokens) as usize;
        let hits = self.hits(blocks.iter().take(full).copied(), prompt);
        u32::try_from(hits).unwrap_or(u32::MAX).saturating_mul(self.options.block_tokens)
    }

    /// Whether it looks for prefixes.
    pub const fn looks_for_prefixes(&self) -> bool {
        self.options.prefix_caching
    }

    /// For how long it has computed.
    pub const fn busy(&self) -> Duration {
        Duration::from_nanos(self.busy)
    }

    /// How often it threw a request out.
    pub const fn preemptions(&self) -> u64 {
        self.preemptions
    }

    /// Prompt tokens looked up in the cache since it was started, and those of them found.
    pub const fn looked_up(&self) -> (u64, u64) {
        self.looked_up
    }

    /// Requests in the queue and in the batch.
    pub fn in_flight(&self) -> usize {
        self.waiting.len() + self.running.len()
    }

    /// Blocks in use, and what requests say of that; equal, and zero when there are none.
    pub fn accounts(&self) -> (usize, usize) {
        let held = self.running.iter().chain(&self.waiting).map(|one| one.blocks.len()).sum();
        (self.pool.users(), held)
    }

    /// Something is to be looked at as soon as the step under way is over.
    fn interrupt(&mut self, now: Instant) {
        match &mut self.leap {
            Some(leap) => leap.cut(nanos(now)),
            None => self.begin(nanos(now)),
        }
    }

    fn blocks_for(&self, tokens: u32) -> usize {
        tokens.div_ceil(self.options.block_tokens) as usize
    }

    /// Leading full blocks that are found; never the one with the last of all tokens.
    fn hits(&self, contents: impl Iterator<Item = u64>, tokens: u32) -> usize {
        if !self.options.prefix_caching {
            return 0;
        }
        let full = tokens.saturating_sub(1) / self.options.block_tokens;
        let full = contents.take(full as usize);
        full.take_while(|&content| self.pool.find(content).is_some()).count()
    }

    /// Begins a step at `at`, if there is something to do.
    fn begin(&mut self, at: u64) {
        let at = at.max(self.stalled);
        let gpu = self.options.gpu;
        let mut budget = gpu.tokens_max;
        let mut time = gpu.fixed_ns;
        let mut prefills = false;
        let mut decodes = 0;
        let mut thrown_out = false;
        let mut index = 0;
        while index < self.running.len() {
            let one = &self.running[index];
            let tokens = (one.tokens() - one.computed).min(budget);
            let need = self.blocks_for(one.computed + tokens);
            while self.pool.available() < need.saturating_sub(self.running[index].blocks.len()) {
                self.throw_out_the_last();
                thrown_out = true;
                if index == self.running.len() {
                    break;
                }
            }
            if index == self.running.len() {
                break;
            }
            self.grow(index, need);
            let one = &mut self.running[index];
            one.scheduled = tokens;
            budget -= tokens;
            if one.computed < one.prefill {
                prefills = true;
                time += gpu.prefill(u64::from(one.computed), u64::from(tokens));
            } else if tokens > 0 {
                decodes += 1;
                time += gpu.decode(u64::from(one.tokens()));
            }
            index += 1;
        }
        while budget > 0 && !thrown_out && self.running.len() < gpu.requests_max {
            let Some(mut one) = self.waiting.pop_front() else { break };
            if !self.take_in(&mut one) {
                self.waiting.push_front(one);
                break;
            }
            prefills = true;
            one.scheduled = (one.prefill - one.computed).min(budget);
            budget -= one.scheduled;
            time += gpu.prefill(u64::from(one.computed), u64::from(one.scheduled));
            self.running.push(one);
        }
        if self.running.is_empty() {
            return;
        }
        // After a step that threw somebody out the queue is looked at again.
        let changes = prefills || thrown_out || decodes < self.running.len();
        let steps = if changes { 1 } else { self.alike() };
        let growth = gpu.context_ns * decodes as u64;
        self.leap = Some(Leap { began: at, steps, first: time, growth });
    }

    /// How many steps will be like this one, in which all decode: until one has its last token or
    /// fills a block that others may look for, or blocks run out.
    fn alike(&self) -> u64 {
        let size = self.options.block_tokens;
        // Of two that fill blocks alike the first one is found.
        let until_full = |one: &Sequence| match one.job.answer.len() {
            0 => u32::MAX,
            _ => size - one.computed % size,
        };
        let least = self.running.iter().map(|one| one.left().min(until_full(one)));
        let least = least.min().unwrap_or(1);
        let most = u64::from(least).min(self.options.leap_max).max(1);
        let fits = |steps: u64| {
            let more = u32::try_from(steps - 1).unwrap_or(u32::MAX);
            let need = |one: &Sequence| {
                self.blocks_for(one.tokens() + more).saturating_sub(one.blocks.len())
            };
            self.running.iter().map(need).sum::<usize>() <= self.pool.available()
        };
        if fits(most) {
            return most;
        }
        let (mut fit, mut unfit) = (1, most);
        while fit + 1 < unfit {
            let middle = fit + (unfit - fit) / 2;
            if fits(middle) {
                fit = middle;
            } else {
                unfit = middle;
            }
        }
        fit
    }

    /// Ends that many equal steps.
    fn finish(&mut self, steps: u64) {
        let more = u32::try_from(steps - 1).unwrap_or(u32::MAX);
        for index in 0..self.running.len() {
            let one = &mut self.running[index];
            one.computed += one.scheduled;
            if one.scheduled > 0 && one.computed == one.tokens() {
                one.made += 1 + more;
                one.computed += more;
                if one.made == 1 && !one.aborted {
                    self.events.push_back(Event::First(one.job.id));
                }
            }
            // All before the first is let go of, as it would have been step by step.
            let need = self.blocks_for(self.running[index].computed);
            self.grow(index, need);
            self.tell(index);
        }
        let mut index = 0;
        while index < self.running.len() {
            let one = &self.running[index];
            if one.aborted || one.left() == 0 {
                let mut one = self.running.remove(index);
                self.free(&mut one);
                if !one.aborted {
                    let usage = Usage {
                        prompt: one.job.prompt,
                        cached: one.cached.unwrap_or(0),
                        completion: one.made,
                    };
                    self.events.push_back(Event::Done(one.job.id, usage));
                }
            } else {
                index += 1;
            }
        }
    }

    /// Gives a running request blocks for tokens of its answer; they were counted before.
    fn grow(&mut self, index: usize, need: usize) {
        while self.running[index].blocks.len() < need {
            let Some(block) = self.pool.take(None) else { break };
            self.running[index].blocks.push(block);
        }
    }

    /// Lets others find the blocks that an answer has filled.
    fn tell(&mut self, index: usize) {
        let one = &mut self.running[index];
        if one.job.answer.is_empty() || !self.options.prefix_caching {
            return;
        }
        let full = (one.computed / self.options.block_tokens) as usize;
        for place in one.told..full.min(one.blocks.len()) {
            if let Some(content) = one.job.content(self.options.block_tokens, place) {
                self.pool.fill(one.blocks[place], content);
            }
        }
        one.told = one.told.max(full);
    }

    /// Takes a request out of the queue if all that it has so far fits.
    fn take_in(&mut self, one: &mut Sequence) -> bool {
        let tokens = one.tokens();
        let size = self.options.block_tokens;
        let contents = || (0..).map_while(|place| one.job.content(size, place));
        let hits = self.hits(contents(), tokens);
        let found = || contents().take(hits).filter_map(|content| self.pool.find(content));
        let idle = found().filter(|&block| self.pool.is_free(block)).count();
        let need = self.blocks_for(tokens);
        if self.pool.available() < (need - hits).saturating_add(idle) {
            return false;
        }
        let found: Vec<_> = found().collect();
        one.blocks.reserve(need);
        for block in found {
            self.pool.share(block);
            one.blocks.push(block);
        }
        let full = (tokens / size) as usize;
        for place in hits..need {
            let content = one.job.content(size, place);
            let content = content.filter(|_| place < full && self.options.prefix_caching);
            one.blocks.extend(self.pool.take(content));
        }
        one.told = full;
        one.prefill = tokens;
        one.computed = u32::try_from(hits).unwrap_or(0) * self.options.block_tokens;
        // Who was thrown out is not counted again.
        if one.cached.is_none() && self.options.prefix_caching {
            self.looked_up.0 += u64::from(tokens);
            self.looked_up.1 += u64::from(one.computed);
        }
        one.cached.get_or_insert(one.computed);
        true
    }

    fn throw_out_the_last(&mut self) {
        let Some(mut last) = self.running.pop() else { return };
        self.free(&mut last);
        last.computed = 0;
        last.scheduled = 0;
        self.preemptions += 1;
        self.waiting.push_front(last);
    }

    /// Lets go of a request's blocks, the last first. What it did not get to compute nobody else
    /// has found, since no other prompt is taken in before all of this one is in a step.
    fn free(&mut self, one: &mut Sequence) {
        let whole = (one.computed / self.options.block_tokens) as usize;
        for (index, block) in one.blocks.drain(..).enumerate().rev() {
            if index >= whole {
                self.pool.spoil(block);
            }
            self.pool.release(block);
        }
    }
}

const fn nanos(at: Instant) -> u64 {
    at.micros().saturating_mul(1_000)
}
