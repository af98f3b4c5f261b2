//! Waiting: one ring and one table of timers a thread, turned from within glommio's executor.
//!
//! Knows descriptors, deadlines and what has arrived; does not know what is read or written. It
//! takes the place of glommio's own reactor on the data path, which turns three rings with 2.7
//! `io_uring_enter` and a `membarrier` per relayed event, and reads by a poll of the ring that a
//! plain `recv` follows. Here a turn is one `io_uring_enter`: it tells the kernel all that was asked
//! for and waits, and what was received lies in a buffer already.
//!
//! The executor never gets to park. Its last runnable task is always [`Reactor::drive`], which turns
//! the ring when nobody else could run; so a wait of ours is within one of its tasks, and its own
//! rings stay empty.
//!
//! # Who owns what is under way
//!
//! A connection may be dropped at any moment, between any two bytes. Nothing that the kernel reads
//! or writes belongs to it: buffers are the ring's, and a source that goes leaves its [`Line`] in the
//! table until the kernel has said the last word on all that was asked for by its name. Bytes that
//! come after are given back unread, and the name is nobody else's before that, so they can reach
//! nobody else. A descriptor is closed only after the kernel has heard of every operation that names
//! it, so that none can meet a stranger under a number that was used again. Writes are plain
//! `send`s that were done when they return: nothing of them is ever under way. What was received and
//! not asked for, because its reader waits for the other side, is kept in order, and receiving ends
//! when it is too much.

#[cfg(test)]
mod tests;

use crate::clock::Clock;
use crate::ring::{Bytes, Completion, Ring};
use rustix::event::PollFlags;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use vllm_proxy_core::carry::{Alarm, Lost, Read, Timer, Timers};
use vllm_proxy_core::time::Instant;

/// What may lie here of one peer before its receiving ends, until it was read. Buffers that arrive
/// in the same turn come on top.
const AHEAD_BYTES_MAX: usize = 64 << 10;
/// How often in a row the ring is not turned because somebody had work.
const SKIPPED_MAX: u32 = 4;
/// How many buffers are received one by one after one that was filled.
const BULK_READS: u8 = 16;
/// How long the kernel may gather completions before it wakes a busy thread. With 256 streams at
/// 20 ms an event cost 1.02 of what it costs without a ring (smol) when nothing was gathered, 0.86
/// with 100 us, 0.65 with 200 and 0.66 with 300; it can come on top of the time to first token, so
/// no more than that.
const GATHER: Duration = Duration::from_micros(200);
/// How many completions end that at once: what waking costs is spread over enough by then.
const GATHERED_ENOUGH: usize = 8;
/// How long a thread is watched to tell whether it is busy.
const WATCHED: Duration = Duration::from_millis(5);
/// Completions within that time that make it busy: more than one falls into a gathering.
const BUSY_COMPLETIONS: u32 = 32;
/// Sources that they must be from. A few peers that wait for each other's answers would only be
/// kept waiting.
const BUSY_SOURCES: u32 = 16;

/// What is asked for by the name of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// All that arrives, again and again.
    Receive,
    /// Once, when it may be read: for what is not received from.
    Readable,
    Writable,
    /// Once, when the peer has ended, or is lost.
    End,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Receive, Self::Readable, Self::Writable, Self::End];
}

/// The name of what the kernel is to say nothing of, unless it fails, which concerns nobody.
const NOBODY: u64 = u64::MAX;

/// One thread's reactor.
#[derive(Debug)]
pub(crate) struct Reactor {
    ring: Ring,
    clock: Clock,
    timers: Rc<Timers>,
    lines: RefCell<Lines>,
    completions: RefCell<Vec<Completion>>,
    /// Whose bytes lie in buffers of the ring since the last turn.
    fresh: RefCell<Vec<Rc<Line>>>,
    /// Descriptors to be closed once the kernel has heard of what names them.
    closing: RefCell<Vec<OwnedFd>>,
    /// How often the kernel has heard all that was asked for.
    heard: Cell<u64>,
    /// It is to hear soon that sources are gone, or their connections would stay open.
    hurries: Cell<bool>,
    /// Who lets all others go first, until the next turn.
    yielding: RefCell<Vec<Waker>>,
    /// A task was run since the reactor looked last.
    worked: Cell<bool>,
    /// Tasks are to end, whatever they are at.
    over: Cell<bool>,
    pace: Cell<Pace>,
}

#[derive(Debug, Default)]
struct Lines {
    slots: Vec<Option<Rc<Line>>>,
    free: Vec<usize>,
}

/// What is known of one descriptor, for as long as the kernel may say something of it.
#[derive(Debug)]
struct Line {
    key: usize,
    /// Received and not read.
    arrived: RefCell<VecDeque<Bytes>>,
    /// There is nothing more to be received.
    ended: Cell<bool>,
    /// The peer has ended, whatever is left to be received.
    hung_up: Cell<bool>,
    /// The connection is lost.
    failed: Cell<bool>,
    readable: Cell<bool>,
    writable: Cell<bool>,
    /// What the kernel was asked for and has not said the last word on.
    asked: [Cell<bool>; Kind::ALL.len()],
    /// How often the kernel had heard all when it was asked last.
    asked_at: Cell<u64>,
    /// Receiving is to end.
    cancelled: Cell<bool>,
    /// More comes at a time than a buffer takes: it is received buffer by buffer, each when the one
    /// before has been read, so that who does not read fills its peer's memory and not ours. For
    /// how many more, unless one is filled again.
    bulk: Cell<u8>,
    /// Its source is gone.
    dropped: Cell<bool>,
    /// When it was counted last by who watches how busy the thread is.
    counted: Cell<u32>,
    reader: RefCell<Option<Waker>>,
    writer: RefCell<Option<Waker>>,
}

/// A descriptor that is watched, from its registration to its drop.
#[derive(Debug)]
pub(crate) struct Source {
    fd: Option<OwnedFd>,
    line: Rc<Line>,
    reactor: Rc<Reactor>,
}

impl Reactor {
    /// For the calling thread, which alone may use it.
    pub(crate) fn new(clock: Clock) -> io::Result<Rc<Self>> {
        Ok(Rc::new(Self {
            ring: Ring::new()?,
            clock,
            timers: Rc::default(),
            lines: RefCell::default(),
            completions: RefCell::default(),
            fresh: RefCell::default(),
            closing: RefCell::default(),
            heard: Cell::new(0),
            hurries: Cell::new(false),
            yielding: RefCell::default(),
            worked: Cell::new(true),
            over: Cell::new(false),
            pace: Cell::default(),
        }))
    }

    /// Watches a descriptor, which must not block.
    pub(crate) fn watch(self: &Rc<Self>, fd: OwnedFd) -> Source {
        let mut lines = self.lines.borrow_mut();
        let key = lines.free.pop().unwrap_or_else(|| {
            lines.slots.push(None);
            lines.slots.len() - 1
        });
        let line = Rc::new(Line::new(key));
        lines.slots[key] = Some(line.clone());
        Source { fd: Some(fd), line, reactor: self.clone() }
    }

    /// A task of this thread's executor: the reactor waits only when none could run. It ends at the
    /// latest when [`Reactor::drive`] does.
    pub(crate) fn task<F: Future<Output = ()> + Unpin>(self: &Rc<Self>, future: F) -> Task<F> {
        Task { reactor: self.clone(), future: Some(future) }
    }

    /// Turns until `is_done`.
    pub(crate) async fn drive(&self, is_done: impl Fn() -> bool) {
        let mut skipped = 0;
        poll_fn(|cx| {
            if is_done() {
                return Poll::Ready(());
            }
            // Whoever ran may have woken others, who stand in the queue behind this. If somebody
            // always has work, the ring turns all the same.
            let worked = self.worked.take();
            skipped = if worked { skipped + 1 } else { 0 };
            if !worked || skipped > SKIPPED_MAX {
                self.turn(worked);
                skipped = 0;
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    /// Has every task that is woken from now on end, and lets those run that were.
    pub(crate) async fn end(&self, wake_all: impl FnOnce()) {
        self.over.set(true);
        self.worked.set(true);
        wake_all();
        self.drive(|| !self.worked.get()).await;
    }

    /// Waits for completions unless there is work already, and wakes whom they concern.
    fn turn(&self, has_work: bool) {
        self.keep_what_was_left();
        let yielding = self.yielding.take();
        let now = self.clock.now();
        let busy = self.hurries.take() || has_work || !yielding.is_empty();
        let limit = if busy {
            Some(Duration::ZERO)
        } else {
            self.timers.earliest().map(|at| at.since(now))
        };
        let gather = self.pace.get().is_busy.then_some((GATHER, GATHERED_ENOUGH));
        match self.ring.enter(limit, gather) {
            Ok(true) => {
                self.heard.set(self.heard.get() + 1);
                self.closing.borrow_mut().clear();
            }
            // The kernel wants its completions to be taken before it hears more.
            Ok(false) => self.hurries.set(true),
            Err(error) => log::error!(error:% = error; "waiting for events failed"),
        }
        let mut completions = self.completions.take();
        self.ring.completions(&mut completions);
        let now = self.clock.now();
        let mut pace = self.pace.get();
        pace.turn(now);
        for completion in completions.drain(..) {
            if let Some((line, kind)) = self.whose(completion.name) {
                pace.count(&line.counted);
                self.tell(line, kind, completion);
            }
        }
        self.pace.set(pace);
        self.completions.replace(completions);
        self.timers.ring(now);
        for waker in yielding {
            waker.wake();
        }
    }

    /// Whom a name means, and what of it.
    fn whose(&self, name: u64) -> Option<(Rc<Line>, Kind)> {
        if name == NOBODY {
            return None;
        }
        let name = usize::try_from(name).ok()?;
        let kinds = Kind::ALL.len();
        let line = self.lines.borrow().slots.get(name / kinds)?.clone()?;
        Some((line, Kind::ALL[name % kinds]))
    }

    fn tell(&self, line: Rc<Line>, kind: Kind, completion: Completion) {
        if !completion.more {
            line.asked[kind as usize].set(false);
        }
        let reads = match kind {
            Kind::Receive => {
                line.received(completion);
                if line.bulk.get() > 0 {
                    self.stop_receiving(&line);
                }
                true
            }
            Kind::Readable => {
                line.readable.set(true);
                true
            }
            Kind::End => {
                line.ended_by(completion.result);
                true
            }
            Kind::Writable => {
                line.writable.set(true);
                false
            }
        };
        if line.dropped.get() {
            self.forget(&line);
            return;
        }
        wake(if reads { &line.reader } else { &line.writer });
        if !line.arrived.borrow().is_empty() {
            self.fresh.borrow_mut().push(line);
        }
    }

    /// Takes out of the ring's buffers what nobody has read since it came: there are few of them,
    /// and all of the thread's connections need them.
    fn keep_what_was_left(&self) {
        let mut fresh = self.fresh.take();
        for line in fresh.drain(..) {
            let kept: usize = line.arrived.borrow_mut().iter_mut().map(Bytes::keep).sum();
            if kept > AHEAD_BYTES_MAX {
                self.stop_receiving(&line);
            }
        }
        self.fresh.replace(fresh);
    }

    /// Until it is asked for again.
    fn stop_receiving(&self, line: &Line) {
        if line.is_asked(Kind::Receive) && !line.cancelled.replace(true) {
            self.ring.cancel(line.name(Kind::Receive), NOBODY);
        }
    }

    /// Frees the name of a source that is gone, if the kernel has nothing more to say of it.
    fn forget(&self, line: &Line) {
        line.arrived.borrow_mut().clear();
        if !line.asked.iter().any(Cell::get) {
            let mut lines = self.lines.borrow_mut();
            lines.slots[line.key] = None;
            lines.free.push(line.key);
        }
    }

    /// Wakes after the others: whatever is ready now, descriptors and timers too.
    pub(crate) fn next_turn(&self, cx: &Context<'_>) {
        self.yielding.borrow_mut().push(cx.waker().clone());
    }

    /// A timer that rings after `delay`.
    pub(crate) fn after(&self, delay: Duration) -> Alarm<Rc<Timers>> {
        let mut timer = self.timer();
        timer.set(self.clock.now() + delay);
        timer
    }

    /// A timer that is not set.
    pub(crate) fn timer(&self) -> Alarm<Rc<Timers>> {
        Alarm::new(self.timers.clone())
    }
}

/// Whether a thread has so much to do that the kernel should gather some of it before it wakes the
/// thread.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    since: Instant,
    /// Which time of watching this is; 0 before the first.
    number: u32,
    completions: u32,
    sources: u32,
    is_busy: bool,
}

impl Pace {
    fn turn(&mut self, now: Instant) {
        if now.since(self.since) >= WATCHED {
            // Who was waiting for long has been idle, however much came at its end.
            let is_recent = now.since(self.since) < 2 * WATCHED;
            self.is_busy =
                is_recent && self.completions >= BUSY_COMPLETIONS && self.sources >= BUSY_SOURCES;
            (self.since, self.completions, self.sources) = (now, 0, 0);
            self.number = self.number.wrapping_add(1).max(1);
        }
    }

    fn count(&mut self, counted: &Cell<u32>) {
        self.completions += 1;
        self.sources += u32::from(counted.replace(self.number) != self.number);
    }
}

/// See [`Reactor::task`].
#[derive(Debug)]
pub(crate) struct Task<F> {
    reactor: Rc<Reactor>,
    future: Option<F>,
}

impl<F: Future<Output = ()> + Unpin> Future for Task<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.reactor.worked.set(true);
        if self.reactor.over.get() {
            self.future = None;
        }
        match &mut self.future {
            Some(future) => Pin::new(future).poll(cx),
            None => Poll::Ready(()),
        }
    }
}

fn wake(waiting: &RefCell<Option<Waker>>) {
    if let Some(waker) = waiting.borrow_mut().take() {
        waker.wake();
    }
}

fn wait(ready: bool, waiting: &RefCell<Option<Waker>>, cx: &Context<'_>) -> Poll<()> {
    if ready {
        return Poll::Ready(());
    }
    let mut waiting = waiting.borrow_mut();
    match &*waiting {
        Some(waker) if waker.will_wake(cx.waker()) => {}
        _ => *waiting = Some(cx.waker().clone()),
    }
    Poll::Pending
}

impl Line {
    fn new(key: usize) -> Self {
        Self {
            key,
            arrived: RefCell::default(),
            ended: Cell::new(false),
            hung_up: Cell::new(false),
            failed: Cell::new(false),
            readable: Cell::new(false),
            writable: Cell::new(true),
            asked: Default::default(),
            asked_at: Cell::new(0),
            cancelled: Cell::new(false),
            bulk: Cell::new(0),
            dropped: Cell::new(false),
            counted: Cell::new(0),
            reader: RefCell::default(),
            writer: RefCell::default(),
        }
    }

    fn name(&self, kind: Kind) -> u64 {
        (self.key * Kind::ALL.len() + kind as usize) as u64
    }

    fn is_asked(&self, kind: Kind) -> bool {
        self.asked[kind as usize].get()
    }

    fn received(&self, completion: Completion) {
        if !completion.more {
            self.cancelled.set(false);
        }
        match (completion.result, completion.bytes) {
            (Ok(1..), Some(bytes)) => {
                let bulk = self.bulk.get().saturating_sub(1);
                self.bulk.set(if bytes.is_full() { BULK_READS } else { bulk });
                self.arrived.borrow_mut().push_back(bytes);
            }
            (Ok(_), _) => self.ended.set(true),
            // It ended for now: buffers ran out, or it was cancelled. Who wants more asks again.
            (Err(Errno::NOBUFS | Errno::CANCELED | Errno::AGAIN | Errno::INTR), _) => {}
            (Err(_), _) => self.failed.set(true),
        }
    }

    fn ended_by(&self, result: Result<u32, Errno>) {
        match result.map(|events| PollFlags::from_bits_truncate(events as u16)) {
            Ok(events) if events.intersects(PollFlags::ERR) => self.failed.set(true),
            Ok(_) => self.hung_up.set(true),
            Err(_) => {}
        }
    }
}

impl Source {
    fn raw(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }

    /// Whether it is to be asked for: it was not yet.
    fn asks(&self, kind: Kind) -> bool {
        let asks = !self.line.asked[kind as usize].replace(true);
        if asks {
            self.line.asked_at.set(self.reactor.heard.get());
        }
        asks
    }

    fn ask(&self, kind: Kind, events: PollFlags) {
        if self.asks(kind) {
            self.reactor.ring.poll(self.raw(), events.bits().into(), self.line.name(kind));
        }
    }

    /// Has what arrives received from now on.
    pub(crate) fn receive(&self) {
        if self.asks(Kind::Receive) {
            let (fd, name) = (self.raw(), self.line.name(Kind::Receive));
            if self.line.bulk.get() > 0 {
                self.reactor.ring.receive_bulk(fd, name);
            } else {
                self.reactor.ring.receive(fd, name);
            }
        }
    }

    /// Takes what was received first.
    pub(crate) fn read(&self) -> Result<Read<Bytes>, Lost> {
        let mut arrived = self.line.arrived.borrow_mut();
        match arrived.pop_front() {
            Some(bytes) => Ok(Read::Some { bytes, more: !arrived.is_empty() }),
            None if self.line.failed.get() => Err(Lost),
            None if self.line.ended.get() => Ok(Read::End),
            None => Ok(Read::Nothing),
        }
    }

    /// Ready when something was received, or the end.
    pub(crate) fn poll_received(&self, cx: &Context<'_>) -> Poll<()> {
        let line = &self.line;
        let over = line.ended.get() || line.failed.get();
        let ready = over || !line.arrived.borrow().is_empty();
        if !ready {
            self.receive();
        }
        wait(ready, &line.reader, cx)
    }

    /// Ready when a descriptor that nothing is received from may be read.
    pub(crate) fn poll_readable(&self, cx: &Context<'_>) -> Poll<()> {
        if !self.line.readable.get() {
            self.ask(Kind::Readable, PollFlags::IN);
        }
        wait(self.line.readable.get(), &self.line.reader, cx)
    }

    /// Ready when a write may take something, or fail.
    pub(crate) fn poll_writable(&self, cx: &Context<'_>) -> Poll<()> {
        if !self.line.writable.get() {
            self.ask(Kind::Writable, PollFlags::OUT);
        }
        wait(self.line.writable.get(), &self.line.writer, cx)
    }

    /// Ready when the peer closed its half or is gone, whatever is to be read before that.
    pub(crate) fn poll_ended(&self, cx: &Context<'_>) -> Poll<()> {
        let line = &self.line;
        let ready = line.ended.get() || line.hung_up.get() || line.failed.get();
        // Receiving says so, too.
        if !ready && !line.is_asked(Kind::Receive) {
            self.ask(Kind::End, PollFlags::RDHUP);
        }
        wait(ready, &line.reader, cx)
    }

    /// Ready when the connection is lost. Wakes the same task as [`Source::poll_ended`].
    pub(crate) fn poll_failed(&self, cx: &Context<'_>) -> Poll<()> {
        let line = &self.line;
        // After both halves were closed there is nothing more to be said, again and again.
        if !line.failed.get() && !line.is_asked(Kind::Receive) && !line.hung_up.get() {
            self.ask(Kind::End, PollFlags::empty());
        }
        wait(line.failed.get(), &line.reader, cx)
    }

    /// Whether nothing came, as far as the last turn saw.
    pub(crate) fn is_silent(&self) -> bool {
        let line = &self.line;
        if line.ended.get() || line.failed.get() || !line.arrived.borrow().is_empty() {
            return false;
        }
        if line.is_asked(Kind::Receive) {
            return true;
        }
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let is_silent = rustix::net::recv(self.as_fd(), &mut [0; 1], flags) == Err(Errno::AGAIN);
        self.receive();
        is_silent
    }

    /// Tries a call that reads. `None` if there is nothing to be had.
    pub(crate) fn try_read<T>(
        &self,
        call: impl FnMut(BorrowedFd<'_>) -> rustix::io::Result<T>,
    ) -> io::Result<Option<T>> {
        let read = tried(self.as_fd(), call)?;
        if read.is_none() {
            self.line.readable.set(false);
        }
        Ok(read)
    }

    /// Tries a call that gives at most `wanted` bytes. `None` if none were taken.
    pub(crate) fn try_write(
        &self,
        wanted: usize,
        call: impl FnMut(BorrowedFd<'_>) -> rustix::io::Result<usize>,
    ) -> io::Result<Option<usize>> {
        let written = tried(self.as_fd(), call)?;
        if written.is_none_or(|written| written < wanted) {
            self.line.writable.set(false);
        }
        Ok(written)
    }
}

fn tried<T>(
    fd: BorrowedFd<'_>,
    mut call: impl FnMut(BorrowedFd<'_>) -> rustix::io::Result<T>,
) -> io::Result<Option<T>> {
    loop {
        return match call(fd) {
            Ok(done) => Ok(Some(done)),
            Err(Errno::AGAIN) => Ok(None),
            Err(Errno::INTR) => continue,
            Err(error) => Err(error.into()),
        };
    }
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_ref().expect("it goes with the source").as_fd()
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let line = &self.line;
        line.dropped.set(true);
        self.reactor.stop_receiving(line);
        for kind in [Kind::Readable, Kind::Writable, Kind::End] {
            if line.is_asked(kind) {
                self.reactor.ring.cancel(line.name(kind), NOBODY);
            }
        }
        self.reactor.forget(line);
        self.reactor.hurries.set(true);
        if line.asked_at.get() == self.reactor.heard.get() {
            self.reactor.closing.borrow_mut().extend(self.fd.take());
        }
    }
}
