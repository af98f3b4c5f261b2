//! Waiting: one edge-triggered epoll and one table of timers a thread, and the room that all of the
//! thread's reads share.
//!
//! Knows descriptors and deadlines; does not know what is read or written. It takes the place of
//! async-io's reactor on the data path, which arms a descriptor anew for each wait and re-arms a
//! timerfd and an eventfd at each turn: 3.8 `epoll_ctl`, a `timerfd_settime` and a `read` per
//! request, all gone here. A descriptor is registered once, and its readiness remembered.

use crate::clock::Clock;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::ops::Deref;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;
use vllm_proxy_core::carry::{Alarm, Timer, Timers};

/// Events taken from the kernel at a time.
const EVENTS_MAX: usize = 256;
/// What one read takes at most. Large bodies and bursts of events cross in few calls, and a slow
/// client holds back no more than this of an answer.
const READ_BYTES_MAX: usize = 64 << 10;
/// Which event tells of a wake-up by another thread; no source has this key.
const NOTIFIED: u64 = u64::MAX;

/// One thread's reactor.
#[derive(Debug)]
pub(crate) struct Reactor {
    epoll: OwnedFd,
    notifier: Arc<Notifier>,
    sources: RefCell<Sources>,
    clock: Clock,
    timers: Rc<Timers>,
    /// Who lets all others go first, until the next turn.
    yielding: RefCell<Vec<Waker>>,
    /// Where all connections of the thread read to, one at a time; empty while it is lent.
    room: RefCell<Box<[u8]>>,
}

#[derive(Debug, Default)]
struct Sources {
    slots: Vec<Option<Rc<Readiness>>>,
    free: Vec<usize>,
}

/// What is known of one descriptor. A hint: it may say that a read brings something when it does
/// not, never the other way round.
#[derive(Debug, Default)]
struct Readiness {
    readable: Cell<bool>,
    writable: Cell<bool>,
    /// The peer closed its half, or there was an error: each read says so, without a new event.
    ended: Cell<bool>,
    /// There was an error: the connection is lost, whatever is left to read.
    failed: Cell<bool>,
    reader: RefCell<Option<Waker>>,
    writer: RefCell<Option<Waker>>,
}

/// A descriptor that is watched, from its registration to its drop.
#[derive(Debug)]
pub(crate) struct Source {
    fd: OwnedFd,
    key: usize,
    readiness: Rc<Readiness>,
    reactor: Rc<Reactor>,
}

impl Reactor {
    pub(crate) fn new(clock: Clock) -> io::Result<Rc<Self>> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let flags = EventFlags::IN | EventFlags::ET;
        epoll::add(&epoll, &event, EventData::new_u64(NOTIFIED), flags)?;
        let notifier =
            Notifier { notified: AtomicBool::new(false), sleeping: AtomicBool::new(false), event };
        Ok(Rc::new(Self {
            epoll,
            notifier: Arc::new(notifier),
            sources: RefCell::default(),
            clock,
            timers: Rc::default(),
            yielding: RefCell::default(),
            room: RefCell::default(),
        }))
    }

    /// Watches a descriptor, which must not block.
    pub(crate) fn watch(self: &Rc<Self>, fd: OwnedFd) -> io::Result<Source> {
        let readiness = Rc::new(Readiness::default());
        let mut sources = self.sources.borrow_mut();
        let key = sources.free.pop().unwrap_or_else(|| {
            sources.slots.push(None);
            sources.slots.len() - 1
        });
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        if let Err(error) = epoll::add(&self.epoll, &fd, EventData::new_u64(key as u64), flags) {
            sources.free.push(key);
            return Err(error.into());
        }
        sources.slots[key] = Some(readiness.clone());
        Ok(Source { fd, key, readiness, reactor: self.clone() })
    }

    /// Runs a future, and whatever it drives, to its end.
    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        let waker = Waker::from(self.notifier.clone());
        let mut cx = Context::from_waker(&waker);
        let mut events = Vec::with_capacity(EVENTS_MAX);
        loop {
            self.notifier.notified.store(false, Ordering::SeqCst);
            if let Poll::Ready(result) = future.as_mut().poll(&mut cx) {
                return result;
            }
            self.turn(&mut events);
        }
    }

    /// Waits for events unless there is work already, and wakes whom they concern.
    fn turn(&self, events: &mut Vec<Event>) {
        let notifier = &self.notifier;
        notifier.sleeping.store(true, Ordering::SeqCst);
        let yielding = self.yielding.take();
        let busy = !yielding.is_empty() || notifier.notified.load(Ordering::SeqCst);
        let timeout = if busy {
            Some(Duration::ZERO)
        } else {
            self.timers.earliest().map(|at| at.since(self.clock.now()))
        };
        let timespec = timeout.map(|timeout| Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        events.clear();
        let waited =
            epoll::wait(&self.epoll, rustix::buffer::spare_capacity(events), timespec.as_ref());
        notifier.sleeping.store(false, Ordering::SeqCst);
        match waited {
            // Nothing else can go wrong with a descriptor of ours.
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => log::error!(error:% = error; "waiting for events failed"),
        }
        let sources = self.sources.borrow();
        for event in events.iter() {
            let key = event.data.u64();
            if key == NOTIFIED {
                notifier.clear();
                continue;
            }
            let slot = usize::try_from(key).ok().and_then(|key| sources.slots.get(key));
            if let Some(Some(readiness)) = slot {
                readiness.tell(event.flags);
            }
        }
        drop(sources);
        if self.timers.earliest().is_some() {
            self.timers.ring(self.clock.now());
        }
        for waker in yielding {
            waker.wake();
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

impl Readiness {
    fn tell(&self, flags: EventFlags) {
        let ended = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
        if flags.intersects(ended) {
            self.ended.set(true);
        }
        if flags.intersects(EventFlags::ERR) {
            self.failed.set(true);
        }
        if flags.intersects(ended | EventFlags::IN) {
            self.readable.set(true);
            wake(&self.reader);
        }
        if flags.intersects(EventFlags::OUT | EventFlags::HUP | EventFlags::ERR) {
            self.writable.set(true);
            wake(&self.writer);
        }
    }
}

fn wake(waiting: &RefCell<Option<Waker>>) {
    if let Some(waker) = waiting.borrow_mut().take() {
        waker.wake();
    }
}

fn wait(ready: &Cell<bool>, waiting: &RefCell<Option<Waker>>, cx: &Context<'_>) -> Poll<()> {
    if ready.get() {
        return Poll::Ready(());
    }
    let mut waiting = waiting.borrow_mut();
    match &*waiting {
        Some(waker) if waker.will_wake(cx.waker()) => {}
        _ => *waiting = Some(cx.waker().clone()),
    }
    Poll::Pending
}

impl Source {
    /// Ready when a read may bring something, or the end.
    pub(crate) fn poll_readable(&self, cx: &Context<'_>) -> Poll<()> {
        wait(&self.readiness.readable, &self.readiness.reader, cx)
    }

    /// Ready when a write may take something, or fail.
    pub(crate) fn poll_writable(&self, cx: &Context<'_>) -> Poll<()> {
        wait(&self.readiness.writable, &self.readiness.writer, cx)
    }

    /// Ready when the peer closed its half or is gone, whatever is to be read before that.
    pub(crate) fn poll_ended(&self, cx: &Context<'_>) -> Poll<()> {
        wait(&self.readiness.ended, &self.readiness.reader, cx)
    }

    /// Ready when the connection is lost. Wakes the same task as [`Source::poll_ended`].
    pub(crate) fn poll_failed(&self, cx: &Context<'_>) -> Poll<()> {
        wait(&self.readiness.failed, &self.readiness.reader, cx)
    }

    /// Whether a read may bring something, as far as the last turn saw.
    pub(crate) fn is_readable(&self) -> bool {
        self.readiness.readable.get()
    }

    /// Reads once, into the room that the thread's reads share. `None` if there is nothing to be
    /// had; no bytes at the end.
    pub(crate) fn read(
        &self,
        mut call: impl FnMut(&OwnedFd, &mut [u8]) -> rustix::io::Result<usize>,
    ) -> io::Result<Option<Bytes>> {
        let mut room = self.reactor.room.take();
        if room.is_empty() {
            // The first read of all, or one while another's bytes are still looked at.
            room = vec![0; READ_BYTES_MAX].into_boxed_slice();
        }
        let mut bytes = Bytes { reactor: self.reactor.clone(), room, len: 0 };
        let read = self.try_read(bytes.room.len(), |fd| call(fd, &mut bytes.room))?;
        Ok(read.map(|len| {
            bytes.len = len;
            bytes
        }))
    }

    /// Tries a call that takes at most `wanted` bytes. `None` if there is nothing to be had.
    pub(crate) fn try_read(
        &self,
        wanted: usize,
        call: impl FnMut(&OwnedFd) -> rustix::io::Result<usize>,
    ) -> io::Result<Option<usize>> {
        let read = tried(&self.fd, call)?;
        // Less than was asked for means that there was no more (epoll(7), question 9), but not
        // that there is no end behind it.
        if read.is_none_or(|read| read < wanted && !self.readiness.ended.get()) {
            self.readiness.readable.set(false);
        }
        Ok(read)
    }

    /// Tries a call that gives at most `wanted` bytes. `None` if none were taken.
    pub(crate) fn try_write(
        &self,
        wanted: usize,
        call: impl FnMut(&OwnedFd) -> rustix::io::Result<usize>,
    ) -> io::Result<Option<usize>> {
        let written = tried(&self.fd, call)?;
        if written.is_none_or(|written| written < wanted) {
            self.readiness.writable.set(false);
        }
        Ok(written)
    }
}

/// What a read brought, in the room that the thread's reads share.
#[derive(Debug)]
pub(crate) struct Bytes {
    reactor: Rc<Reactor>,
    room: Box<[u8]>,
    len: usize,
}

impl Bytes {
    /// Whether there was no room for more.
    pub(crate) fn is_full(&self) -> bool {
        self.len == self.room.len()
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.room[..self.len]
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        self.reactor.room.replace(std::mem::take(&mut self.room));
    }
}

impl AsFd for Source {
    fn as_fd(&self) -> rustix::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Source {
    /// The close that follows takes the descriptor out of the epoll.
    fn drop(&mut self) {
        let mut sources = self.reactor.sources.borrow_mut();
        sources.slots[self.key] = None;
        sources.free.push(self.key);
    }
}

fn tried<T>(
    fd: &OwnedFd,
    mut call: impl FnMut(&OwnedFd) -> rustix::io::Result<T>,
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

/// Wakes the thread, from wherever it is called.
#[derive(Debug)]
struct Notifier {
    notified: AtomicBool,
    sleeping: AtomicBool,
    event: OwnedFd,
}

impl Notifier {
    fn clear(&self) {
        // Edge-triggered: an unread count would not hurt, but this one is ours to take.
        let _ = rustix::io::read(&self.event, &mut [0; 8]);
    }
}

impl Wake for Notifier {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let first = !self.notified.swap(true, Ordering::SeqCst);
        if first && self.sleeping.load(Ordering::SeqCst) {
            // Fails only when the count is full, which wakes as well.
            let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    fn reactor() -> Rc<Reactor> {
        Reactor::new(Clock::new(std::time::Instant::now())).expect("a reactor")
    }

    fn pair(reactor: &Rc<Reactor>) -> (Source, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        ours.set_nonblocking(true).expect("a socket");
        (reactor.watch(ours.into()).expect("watched"), theirs)
    }

    fn read(source: &Source, wanted: usize) -> Option<usize> {
        let mut buffer = vec![0; wanted];
        source.try_read(wanted, |fd| rustix::io::read(fd, &mut buffer[..])).expect("no error")
    }

    #[test]
    fn bytes_and_the_end_behind_them_are_both_seen() {
        let reactor = reactor();
        let (source, mut theirs) = pair(&reactor);
        theirs.write_all(b"abc").expect("written");
        drop(theirs);
        reactor.block_on(poll_fn(|cx| source.poll_readable(cx)));
        assert_eq!(read(&source, 100), Some(3));
        reactor.block_on(poll_fn(|cx| source.poll_readable(cx)));
        assert_eq!(read(&source, 100), Some(0));
    }

    #[test]
    fn an_end_that_comes_after_the_bytes_were_read_is_seen() {
        let reactor = reactor();
        let (source, mut theirs) = pair(&reactor);
        theirs.write_all(b"abc").expect("written");
        reactor.block_on(poll_fn(|cx| source.poll_readable(cx)));
        assert_eq!(read(&source, 100), Some(3));
        assert!(!source.is_readable());
        drop(theirs);
        reactor.block_on(poll_fn(|cx| source.poll_readable(cx)));
        assert_eq!(read(&source, 100), Some(0));
    }

    #[test]
    fn a_full_read_leaves_the_source_readable() {
        let reactor = reactor();
        let (source, mut theirs) = pair(&reactor);
        theirs.write_all(b"abcdef").expect("written");
        reactor.block_on(poll_fn(|cx| source.poll_readable(cx)));
        assert_eq!(read(&source, 3), Some(3));
        assert!(source.is_readable());
        assert_eq!(read(&source, 4), Some(3));
        assert!(!source.is_readable());
        assert_eq!(read(&source, 4), None);
    }

    #[test]
    fn a_full_source_becomes_writable_when_the_peer_reads() {
        let reactor = reactor();
        let (source, mut theirs) = pair(&reactor);
        let chunk = [0; 4096];
        let mut written = 0;
        while let Some(more) =
            source.try_write(chunk.len(), |fd| rustix::io::write(fd, &chunk)).expect("no error")
        {
            written += more;
        }
        let reader = std::thread::spawn(move || {
            theirs.read_exact(&mut vec![0; written]).expect("read");
            theirs
        });
        reactor.block_on(poll_fn(|cx| source.poll_writable(cx)));
        reader.join().expect("joined");
    }

    #[test]
    fn a_timer_ends_a_wait() {
        let reactor = reactor();
        let before = reactor.clock.now();
        reactor.block_on(reactor.after(Duration::from_millis(5)));
        assert!(reactor.clock.now().since(before) >= Duration::from_millis(5));
    }

    #[test]
    fn another_thread_can_wake_it() {
        let reactor = reactor();
        let (sender, receiver) = smol::channel::bounded(1);
        let thread = std::thread::spawn(move || sender.send_blocking(7));
        assert_eq!(reactor.block_on(receiver.recv()), Ok(7));
        assert!(thread.join().is_ok());
    }

    #[test]
    fn who_yields_lets_descriptors_go_first() {
        let reactor = reactor();
        let (source, mut theirs) = pair(&reactor);
        theirs.write_all(b"x").expect("written");
        reactor.block_on(async {
            assert!(!source.is_readable());
            let mut yielded = false;
            poll_fn(|cx| {
                if std::mem::replace(&mut yielded, true) {
                    return Poll::Ready(());
                }
                reactor.next_turn(cx);
                Poll::Pending
            })
            .await;
            assert!(source.is_readable());
        });
    }

    #[test]
    fn slots_are_used_again() {
        let reactor = reactor();
        for _ in 0..3 {
            let (first, _theirs) = pair(&reactor);
            let (second, _others) = pair(&reactor);
            drop((first, second));
        }
        assert_eq!(reactor.sources.borrow().slots.len(), 2);
    }
}
