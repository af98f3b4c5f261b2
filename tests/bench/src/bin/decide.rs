//! What a decision costs: one call of `Engine::route`, `first_byte` and `finish`, the pauses that
//! other calls make, and the fingerprint. README.md says how to read it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;
use std::time::Instant;

use vllm_proxy_bench::Fault;
use vllm_proxy_bench::content::body;
use vllm_proxy_bench::engine::Bed;
use vllm_proxy_bench::prompts::{Prompts, Shared};
use vllm_proxy_bench::sample::Samples;
use vllm_proxy_core::fleet::{BackendId, Fact, PrefixIndex, Word};
use vllm_proxy_core::route::Fingerprint;
use vllm_proxy_core::time::Duration as Time;
use vllm_proxy_core::wire::scan::{Scanner, scan};

const USAGE: &str = "usage: decide [--rounds N] [--samples N] [--only NAME] [--flush]";

/// Microseconds that nothing done within one entry of the engine's lock may take.
const PAUSE_MAX: f64 = 100.0;

/// Tokens believed to be in a chunk.
const CHUNK_TOKENS: u32 = 128;

fn main() {
    if let Err(fault) = Options::parse(std::env::args().skip(1)).map(|options| measure(&options)) {
        eprintln!("decide: {fault}");
        std::process::exit(1);
    }
}

struct Options {
    rounds: usize,
    samples: usize,
    only: Option<String>,
    /// Whether the processor's caches are emptied before each call.
    flush: bool,
}

impl Options {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, Fault> {
        let mut options = Self { rounds: 20, samples: 400, only: None, flush: false };
        while let Some(name) = words.next() {
            let mut value = || words.next().ok_or(USAGE);
            match name.as_str() {
                "--rounds" => options.rounds = value()?.parse()?,
                "--samples" => options.samples = value()?.parse()?,
                "--only" => options.only = Some(value()?),
                "--flush" => options.flush = true,
                _ => return Err(USAGE.into()),
            }
        }
        Ok(options)
    }

    fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| name.contains(only.as_str()))
    }
}

fn measure(options: &Options) {
    println!("microseconds in the best of {} rounds (in the median of them)\n", options.rounds);
    println!("{:34}{:>16}{:>16}{:>16}{:>8}{:>9}", "call", "p50", "p99", "max", "allocs", "bytes");
    let all = &[("1k", 8), ("8k", 62), ("100k", 781), ("1M", 7_812)];
    decisions(options, ("64 backends", 64, 64 << 20), all);
    decisions(options, ("64, no room left", 64, 4 << 20), all);
    decisions(options, ("256 backends", 256, 64 << 20), &all[1..3]);
    decisions(options, ("4096 backends", 4_096, 96 << 20), &all[1..2]);
    sharing(options);
    pauses(options);
    fingerprints(options);
}

/// The calls of a request's life where there are other proxies, and what telling and hearing takes:
/// five requests to an update, as with a thousand a second and an update every 5 ms.
fn sharing(options: &Options) {
    if !options.wants("sharing") {
        return;
    }
    let (mut bed, mut other) = (Bed::sharing(64, 64 << 20, 1), Bed::sharing(64, 64 << 20, 2));
    let mut prompts = Prompts::new(7);
    fill(&mut bed, &mut prompts);
    bed.updates();
    let mut calls: [Call; 3] = Default::default();
    let mut telling: [Call; 4] = Default::default();
    let (mut bytes, mut told) = (Vec::new(), 0);
    for round in 0..=options.rounds {
        for at in 0..options.samples {
            let prompt = prompts.of(62, Shared::Half);
            bed.pass(Time::from_millis(1));
            request(&mut bed, &prompt, &mut calls);
            if at % 5 < 4 {
                continue;
            }
            for update in telling[0].time(|| bed.updates()) {
                let update = Word::Update(update);
                bytes.clear();
                telling[1].time(|| update.encode(&mut bytes));
                told += bytes.len();
                let read = telling[2].time(|| Word::decode(&bytes));
                let Ok(Word::Update(read)) = read else { panic!("it was just written") };
                telling[3].time(|| other.hear(&read));
            }
        }
        if round == 0 {
            told = 0;
        }
        calls.iter_mut().chain(&mut telling).for_each(|call| call.close(round > 0));
    }
    let names = ["route", "first byte", "finish"];
    calls.iter().zip(names).for_each(|(call, name)| call.tell(&format!("sharing, {name}")));
    let names = ["poll", "encode", "decode", "hear"];
    telling.iter().zip(names).for_each(|(call, name)| call.tell(&format!("sharing, {name}")));
    let requests = (options.rounds * options.samples).max(1);
    println!("sharing, bytes a request          {:>16}", told / requests);
    bed.settle();
    other.settle();
}

/// The calls of a request's life, by how long its prompt is (a name for that, and chunks) and what
/// it has in common with others.
fn decisions(
    options: &Options,
    (fleet, backends, bytes): (&str, usize, usize),
    lengths: &[(&str, u64)],
) {
    let all = [Shared::Nothing, Shared::Half, Shared::All];
    let cases = lengths.iter().flat_map(|&(tokens, length)| {
        all.map(|shared| (format!("{fleet}, {tokens} {}", word(shared)), length, shared))
    });
    let cases: Vec<_> = cases.filter(|(name, ..)| options.wants(name)).collect();
    if cases.is_empty() {
        return;
    }
    let mut bed = Bed::new(backends, bytes);
    let mut prompts = Prompts::new(7);
    fill(&mut bed, &mut prompts);
    let mut flush = Flush::new(options.flush);
    for (name, length, shared) in cases {
        let everywhere = shared == Shared::All;
        if everywhere && !bed.send_everywhere(&prompts.of(length, shared)) {
            println!("{name:34}{:>16}", "has no room");
            continue;
        }
        // A long prompt pushes out what many short ones left, and takes longer to make.
        let samples = options.samples.div_ceil((length as usize / 100).clamp(1, 20));
        let mut calls: [Call; 3] = Default::default();
        for round in 0..=options.rounds {
            for _ in 0..samples {
                let prompt = prompts.of(length, shared);
                bed.pass(Time::from_millis(2));
                flush.run();
                request(&mut bed, &prompt, &mut calls);
            }
            // The first round is there to warm up.
            calls.iter_mut().for_each(|call| call.close(round > 0));
        }
        calls[0].tell(&name);
        // The other two do not depend on the prompt.
        if length == 62 && shared == Shared::Half {
            calls[1].tell("  first byte");
            calls[2].tell("  finish");
        }
    }
    bed.settle();
}

const fn word(shared: Shared) -> &'static str {
    match shared {
        Shared::Nothing => "new",
        Shared::Half => "half known",
        Shared::All => "everywhere",
    }
}

/// Requests that fill the caches of 64 backends, with 250,000 pairs of a chunk and a backend, and
/// push about as much out of them again.
const FILLING: usize = 40_000;

fn fill(bed: &mut Bed, prompts: &mut Prompts) {
    for _ in 0..FILLING {
        let prompt = prompts.everyday();
        bed.pass(Time::from_millis(2));
        bed.send(&prompt);
    }
}

fn request(bed: &mut Bed, prompt: &Fingerprint, [route, first, finish]: &mut [Call; 3]) {
    let chosen = route.time(|| bed.route(prompt));
    bed.keep(chosen.ticket);
    if let Some(at) = bed.answering() {
        first.time(|| bed.first_byte(at));
    }
    if let Some(ticket) = bed.ending() {
        finish.time(|| bed.finish(ticket));
    }
}

/// Calls that are made now and then, each within one entry of the engine's lock.
fn pauses(options: &Options) {
    if !options.wants("pauses") {
        return;
    }
    let mut bed = Bed::new(64, 64 << 20);
    fill(&mut bed, &mut Prompts::new(7));
    let mut calls: [Call; 4] = Default::default();
    for round in 0..options.rounds {
        for at in 0..16 {
            // All that follows is of backends that have something, and nothing in hand.
            bed.settle();
            let number = round * 16 + at;
            let backend = BackendId(number as u32);
            bed.pass(Time::from_secs(20));
            calls[0].time(|| bed.probed(backend, false));
            bed.probed(backend, false);
            bed.pass(Time::from_secs(20));
            calls[1].time(|| bed.probed(backend, true));
            let specs = bed.specs(number + 1);
            calls[2].time(|| bed.discover(&specs));
            bed.answer_probes();
            calls[3].time(|| bed.timeout());
        }
        calls.iter_mut().for_each(|call| call.close(true));
    }
    let names = ["a probe fails", "a backend is up again", "one leaves, one comes", "time-out"];
    calls.iter().zip(names).for_each(|(call, name)| call.tell(&format!("pauses, {name}")));

    let mut call = Call::default();
    let mut bed = Bed::new(4_096, 64 << 20);
    for round in 0..options.rounds {
        for at in 0..8 {
            let specs = bed.specs(round * 8 + at + 1);
            call.time(|| bed.discover(&specs));
            bed.answer_probes();
        }
        call.close(true);
    }
    call.tell("pauses, one of 4096 leaves");

    let mut index = PrefixIndex::new(8 << 20, 3);
    // Without room for all it hears.
    let mut other = PrefixIndex::new(2 << 20, 4);
    let backends: Vec<_> = (0..64).map(BackendId).collect();
    backends.iter().for_each(|&id| assert!(index.join(id).is_some() && other.join(id).is_some()));
    let (mut prompts, mut told) = (Prompts::new(8), Vec::with_capacity(1 << 14));
    for at in 0..FILLING {
        told.clear();
        let backend = backends[at % 64];
        let chunks = prompts.everyday();
        index.insert(backend, chunks.chunks(), CHUNK_TOKENS, &mut told);
    }
    let mut calls: [Call; 5] = Default::default();
    let (mut facts, mut from) = (Vec::<Fact>::with_capacity(512), 0);
    for round in 0..options.rounds {
        for _ in 0..options.samples {
            facts.clear();
            from = calls[0].time(|| index.facts(from, &mut facts)).unwrap_or(0);
            calls[1].time(|| facts.iter().for_each(|&fact| other.merge(fact)));
            calls[2].time(|| index.sweep(usize::MAX));
        }
        let backend = backends[round % 64];
        calls[3].time(|| index.wipe(backend));
        calls[4].time(|| index.leave(backend));
        index.join(backend);
        calls.iter_mut().for_each(|call| call.close(true));
    }
    let names = ["a slice of facts", "256 facts heard", "a sweep", "a wipe", "a leave"];
    calls.iter().zip(names).for_each(|(call, name)| call.tell(&format!("pauses, {name}")));
}

/// How fast bodies of chat text are read, with and without the fingerprint.
fn fingerprints(options: &Options) {
    if !options.wants("fingerprint") {
        return;
    }
    println!(
        "\n{:34}{:>16}{:>16}{:>16}",
        "reading a body, GB/s", "fingerprint", "none", "more, us"
    );
    for (name, bytes) in
        [("2 KB", 2 << 10), ("64 KB", 64 << 10), ("400 KB", 400_000), ("4 MB", 4 << 20)]
    {
        let text = body(bytes, 5, true);
        let mut calls: [Call; 2] = Default::default();
        for _ in 0..options.rounds {
            for _ in 0..(options.samples * 2_048 / bytes).max(5) {
                calls[0].time(|| black_box(scan(black_box(&text))));
                calls[1].time(|| black_box(Scanner::plain().finish(black_box(&text))));
            }
            calls.iter_mut().for_each(|call| call.close(true));
        }
        let [marked, plain] = calls.each_ref().map(|call| call.samples.micros()[0].0);
        let speed = |micros: f64| bytes as f64 / micros / 1_000.0;
        println!(
            "{:34}{:>16.2}{:>16.2}{:>16.1}",
            format!("fingerprint, {name}"),
            speed(marked),
            speed(plain),
            marked - plain
        );
    }
}

/// Something larger than the processor's caches.
struct Flush(Vec<u8>);

impl Flush {
    fn new(wanted: bool) -> Self {
        Self(vec![1; if wanted { 64 << 20 } else { 0 }])
    }

    fn run(&mut self) {
        self.0.iter_mut().step_by(64).for_each(|byte| *byte = byte.wrapping_mul(3));
        black_box(&self.0);
    }
}

/// What was measured of one call.
#[derive(Default)]
struct Call {
    samples: Samples,
    calls: u64,
    allocations: u64,
    bytes: u64,
}

impl Call {
    fn time<R>(&mut self, call: impl FnOnce() -> R) -> R {
        let before = (ALLOCATIONS.get(), BYTES.get());
        let begin = Instant::now();
        let result = call();
        self.samples.push(begin.elapsed());
        self.calls += 1;
        self.allocations += ALLOCATIONS.get() - before.0;
        self.bytes += BYTES.get() - before.1;
        result
    }

    /// Ends a round, which counts or does not.
    fn close(&mut self, counts: bool) {
        if counts {
            self.samples.close();
        } else {
            *self = Self::default();
        }
    }

    fn tell(&self, name: &str) {
        let calls = self.calls.max(1);
        let times =
            self.samples.micros().map(|(least, median)| format!("{least:.1} ({median:.1})"));
        let [p50, p99, max] = times;
        let allocations = self.allocations as f64 / calls as f64;
        let long = if self.samples.micros()[1].0 > PAUSE_MAX { "  too long" } else { "" };
        println!(
            "{name:34}{p50:>16}{p99:>16}{max:>16}{allocations:>8.1}{:>9}{long}",
            self.bytes / calls
        );
    }
}

/// Counts what this thread asks for.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    static BYTES: Cell<u64> = const { Cell::new(0) };
}

fn count(bytes: usize) {
    ALLOCATIONS.set(ALLOCATIONS.get() + 1);
    BYTES.set(BYTES.get() + bytes as u64);
}

// SAFETY: all it does besides counting is done by the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;
