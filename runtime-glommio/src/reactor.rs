//! Waiting: one ring and one table of timers a thread, turned from within glommio's executor.
//!
//! Knows descriptors, deadlines and what has arrived; does not know what is read or written. It
//! takes the place of glommio's own reactor on the data path, which turns three rings with 6.5
//! `io_uring_enter` and 0.9 `membarrier` each time that a paced event wakes it, whatever its
//! settings, and reads by a poll of the ring that a plain `recv` follows. Here a turn is one
//! `io_uring_enter`: it tells the kernel all that was asked for and waits, and what was received
//! lies in a buffer already. Sends through the ring, too, cost as much as plain ones.
//!
//! The executor never gets to park. Its last runnable task is always [`Reactor::drive`], which
//! turns the ring when nobody else could run; so a wait of ours is within one of its tasks, and its
//! own rings stay empty.
//!
//! # Who owns what is under way
//!
//! A connection may be dropped at any moment, between any two bytes. Nothing that the kernel reads
//! or writes belongs to it: buffers are the ring's, and a source that goes leaves its [`Line`] in
//! the table until the kernel has said the last word on all that was asked for by its name. Bytes
//! that come after are given back unread, and the name is nobody else's before that, so they can
//! reach nobody else. A descriptor is closed only after the kernel has heard of every operation
//! that names it, so that none can meet a stranger under a number that was used again. Writes are
//! plain `send`s that were done when they return: nothing of them is ever under way. What was
//! received and not asked for, because its reader waits for the other side, is kept in order, and
//! receiving ends when it is too much.

mod line;
mod pace;
mod source;
#[cfg(test)]
mod tests;

pub(crate) use source::Source;

use crate::clock::Clock;
use crate::ring::{Completion, Ring};
use line::{Kind, Line, wake};
use pace::Pace;
use rustix::fd::OwnedFd;
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use vllm_proxy_core::carry::{Alarm, Timer, Timers};

/// What may lie here of one peer before its receiving ends, until it was read. Buffers that arrive
/// in the same turn come on top.
const AHEAD_BYTES_MAX: usize = 64 << 10;
/// How often in a row the ring is not turned because somebody had work.
const SKIPPED_MAX: u32 = 4;
/// How long the kernel may gather completions before it wakes a busy thread. With 256 streams at
/// 20 ms an event cost 1.02 of what it costs without a ring (smol) when nothing was gathered, 0.86
/// with 100 us, 0.65 with 200 or 300 (medians of 3 rounds); it can come on top of the time to first
/// token, so no more than that.
const GATHER: Duration = Duration::from_micros(200);
/// How many completions end that at once: what waking costs is spread over enough by then.
const GATHERED_ENOUGH: usize = 8;
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
                if line.writable_by(completion.result) {
                    self.receive_anew(&line);
                }
                false
            }
        };
        if line.dropped.get() {
            self.forget(&line);
            return;
        }
        wake(if reads { &line.reader } else { &line.writer });
        if !line.arrived.borrow().is_empty() && !line.fresh.replace(true) {
            self.fresh.borrow_mut().push(line);
        }
    }

    /// Takes out of the ring's buffers what nobody has read since it came: there are few of them,
    /// and all of the thread's connections need them.
    fn keep_what_was_left(&self) {
        let mut fresh = self.fresh.take();
        for line in fresh.drain(..) {
            line.fresh.set(false);
            if line.keep() > AHEAD_BYTES_MAX {
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

    /// A connection is lost as far as its writer knows. A receive that goes on may never be told:
    /// with Linux 6.18 one in 60,000 connections was found so that were reset right behind an
    /// answer and watched for room as well. One that is asked for anew meets what is left of it.
    fn receive_anew(&self, line: &Line) {
        self.stop_receiving(line);
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
