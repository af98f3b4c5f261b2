//! The ring: what is asked of the kernel, what it says, and the memory that it writes to.
//!
//! The one file with unsafe code. It keeps three promises to the kernel. Memory that it may write
//! to (buffers of received bytes, the queue in which they are given to it) belongs to the ring and
//! not to who waits: it is freed only after all that was asked has been cancelled or done. Nothing
//! else is ever lent to it: an operation here carries numbers only. And a buffer is in one hand at
//! a time: given to the kernel, or within one [`Bytes`], which gives it back when dropped.
//!
//! There are as many buffers as one turn fills on a busy thread, and all its connections share
//! them. Where none is left, receiving ends and is asked for again, at the cost of one completion;
//! what is not read within its turn is copied out of them.
//!
//! Knows operations and buffers; does not know who waits for which.

#![allow(unsafe_code)]

use io_uring::types::{BufRingEntry, CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use rustix::fd::RawFd;
use rustix::io::Errno;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::mem;
use std::ops::Deref;
use std::ptr::{self, NonNull};
use std::rc::Rc;
use std::slice;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

/// Operations that may be asked for before the kernel is told; more are told in several calls.
const ENTRIES: u32 = 512;
/// Completions that may wait; the kernel keeps more by itself, at a higher cost.
const COMPLETIONS: u32 = 4_096;
/// Buffers that all that arrives is received into: most events, and requests of a few KiB.
const SMALL: Size = Size { group: 0, first: 0, count: 256, bytes: 4 << 10 };
/// Buffers for more, so that it crosses in few calls.
const LARGE: Size = Size { group: 1, first: 256, count: 16, bytes: 64 << 10 };
const PAGE: usize = 4_096;

/// A group of buffers.
#[derive(Clone, Copy, Debug)]
struct Size {
    group: u16,
    /// Its first number; numbers of groups are different.
    first: u16,
    /// How many there are, a power of two.
    count: u16,
    /// What each takes.
    bytes: usize,
}

/// One thread's ring.
pub(crate) struct Ring {
    ring: RefCell<IoUring>,
    small: Rc<Buffers>,
    large: Rc<Buffers>,
    /// Linux 6.12 lets who waits say how long at least.
    gathers: bool,
}

/// What the kernel says of an operation.
#[derive(Debug)]
pub(crate) struct Completion {
    /// What the operation was named when it was asked for.
    pub(crate) name: u64,
    /// How many bytes, or which events.
    pub(crate) result: Result<u32, Errno>,
    /// The operation goes on, and will say more.
    pub(crate) more: bool,
    /// What was received.
    pub(crate) bytes: Option<Bytes>,
}

impl Ring {
    /// A ring for the calling thread, which alone may use it.
    pub(crate) fn new() -> io::Result<Self> {
        let ring: IoUring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            // Or the kernel's own work would be forgotten by who does not wait.
            .setup_taskrun_flag()
            .setup_clamp()
            .setup_cqsize(COMPLETIONS)
            .build(ENTRIES)?;
        let gathers = ring.params().is_feature_min_timeout();
        let [small, large] = [SMALL, LARGE].map(|size| Rc::new(Buffers::new(size)));
        let own = Self { ring: RefCell::new(ring), small, large, gathers };
        for buffers in [&own.small, &own.large] {
            let Size { group, count, .. } = buffers.size;
            let entries = buffers.entries.as_ptr() as u64;
            let ring = own.ring.borrow();
            // SAFETY: the entries are aligned to a page, as many as said, and outlive the
            // registration: they are freed after `Drop` has ended it, or never.
            unsafe { ring.submitter().register_buf_ring_with_flags(entries, count, group, 0)? };
        }
        Ok(own)
    }

    /// Asks for an operation.
    fn push(&self, entry: squeue::Entry, name: u64) {
        let entry = entry.user_data(name);
        let mut ring = self.ring.borrow_mut();
        // SAFETY: no operation here points to memory but to buffers by the name of their group.
        while unsafe { ring.submission().push(&entry) }.is_err() {
            let _ = ring.submit();
        }
    }

    /// Has what arrives put into small buffers, again and again until it ends or is cancelled, or
    /// there are none.
    pub(crate) fn receive(&self, fd: RawFd, name: u64) {
        self.push(opcode::RecvMulti::new(Fd(fd), SMALL.group).build(), name);
    }

    /// Has what arrives put into a large buffer, once.
    pub(crate) fn receive_bulk(&self, fd: RawFd, name: u64) {
        // The kernel chooses where.
        let into = (ptr::null_mut(), LARGE.bytes as u32);
        let entry = opcode::Recv::new(Fd(fd), into.0, into.1).buf_group(LARGE.group).build();
        self.push(entry.flags(squeue::Flags::BUFFER_SELECT), name);
    }

    /// Has these events told, once or as they come. The kernel adds that the peer has ended or the
    /// connection is lost, whatever was asked for.
    pub(crate) fn poll(&self, fd: RawFd, events: u32, again: bool, name: u64) {
        self.push(opcode::PollAdd::new(Fd(fd), events).multi(again).build(), name);
    }

    /// Ends what was asked for by that name. It says so itself; this says something only if there
    /// is no such thing.
    pub(crate) fn cancel(&self, name: u64, own: u64) {
        let cancel = opcode::AsyncCancel::new(name).build();
        self.push(cancel.flags(squeue::Flags::SKIP_SUCCESS), own);
    }

    /// Tells the kernel all that was asked for, and waits until it says something, for so long at
    /// most (`None`: for ever; zero: not at all). Whether it has heard all. To `gather` is to wait
    /// for so long, or for so many completions, before the first of them ends the wait.
    pub(crate) fn enter(
        &self,
        limit: Option<Duration>,
        gather: Option<(Duration, usize)>,
    ) -> io::Result<bool> {
        let mut ring = self.ring.borrow_mut();
        let submitter = ring.submitter();
        let entered = match limit {
            Some(Duration::ZERO) => submitter.submit(),
            Some(limit) => {
                let limit = Timespec::from(limit);
                let args = SubmitArgs::new().timespec(&limit);
                match gather.filter(|_| self.gathers) {
                    Some((time, enough)) => {
                        let micros = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
                        submitter.submit_with_args(enough, &args.min_wait_usec(micros))
                    }
                    None => submitter.submit_with_args(1, &args),
                }
            }
            None => submitter.submit_and_wait(1),
        };
        if let Err(error) = entered {
            match error.raw_os_error() {
                // Time is up, a signal came, or completions must be taken first.
                Some(ETIME | EINTR | EBUSY | EAGAIN) => {}
                _ => return Err(error),
            }
        }
        Ok(ring.submission().is_empty())
    }

    /// Takes what the kernel has said.
    pub(crate) fn completions(&self, into: &mut Vec<Completion>) {
        let mut ring = self.ring.borrow_mut();
        for entry in ring.completion() {
            let flags = entry.flags();
            let result = match u32::try_from(entry.result()) {
                Ok(result) => Ok(result),
                Err(_) => Err(Errno::from_raw_os_error(-entry.result())),
            };
            let bytes = cqueue::buffer_select(flags).map(|number| {
                let buffers = if number < LARGE.first { &self.small } else { &self.large };
                let length = *result.as_ref().unwrap_or(&0);
                Bytes::Lent(Lent { buffers: buffers.clone(), number, length })
            });
            into.push(Completion {
                name: entry.user_data(),
                result,
                more: cqueue::more(flags),
                bytes,
            });
        }
    }
}

const ETIME: i32 = Errno::TIME.raw_os_error();
const EINTR: i32 = Errno::INTR.raw_os_error();
const EBUSY: i32 = Errno::BUSY.raw_os_error();
const EAGAIN: i32 = Errno::AGAIN.raw_os_error();

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("small", &self.small)
            .field("large", &self.large)
            .finish_non_exhaustive()
    }
}

impl Drop for Ring {
    /// Nothing is in flight, nor are buffers the kernel's, when their memory goes.
    fn drop(&mut self) {
        let ring = self.ring.get_mut();
        let _ = ring.submit();
        let submitter = ring.submitter();
        let cancelled = match submitter.register_sync_cancel(None, CancelBuilder::any()) {
            Err(error) if error.raw_os_error() != Some(ENOENT) => Err(error),
            _ => [SMALL, LARGE]
                .into_iter()
                .try_for_each(|size| submitter.unregister_buf_ring(size.group)),
        };
        if cancelled.is_err() {
            // Memory that the kernel may still write to is not given to anybody else.
            mem::forget([self.small.clone(), self.large.clone()]);
        }
    }
}

const ENOENT: i32 = Errno::NOENT.raw_os_error();

/// Received bytes. Those in a buffer of the ring give it back to the kernel when they are dropped.
#[derive(Debug)]
pub(crate) enum Bytes {
    Lent(Lent),
    Kept(Vec<u8>),
}

impl Bytes {
    /// Whether the buffer that they came in had no room for more.
    pub(crate) fn is_full(&self) -> bool {
        match self {
            Self::Lent(lent) => lent.length as usize >= lent.buffers.size.bytes,
            Self::Kept(_) => false,
        }
    }

    /// The same bytes and these behind them, in no buffer of the ring.
    pub(crate) fn kept_with(self, more: impl Iterator<Item = Self>) -> Self {
        let mut all = match self {
            Self::Lent(lent) => lent.to_vec(),
            Self::Kept(kept) => kept,
        };
        for bytes in more {
            all.extend_from_slice(&bytes);
        }
        Self::Kept(all)
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Lent(lent) => lent,
            Self::Kept(kept) => kept,
        }
    }
}

/// Bytes in a buffer of the ring.
pub(crate) struct Lent {
    buffers: Rc<Buffers>,
    number: u16,
    length: u32,
}

impl Deref for Lent {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let length = (self.length as usize).min(self.buffers.size.bytes);
        let start = self.buffers.start(self.number);
        // SAFETY: the kernel names a buffer that it was given, and writes no more to it.
        unsafe { slice::from_raw_parts(start.as_ptr(), length) }
    }
}

impl fmt::Debug for Lent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lent").field("number", &self.number).field("length", &self.length).finish()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.buffers.give(self.number);
    }
}

/// The memory of a group of buffers, and the queue in which they are given to the kernel.
struct Buffers {
    size: Size,
    entries: NonNull<BufRingEntry>,
    memory: NonNull<u8>,
    tail: Cell<u16>,
}

impl fmt::Debug for Buffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffers").field("tail", &self.tail).finish_non_exhaustive()
    }
}

impl Size {
    fn entries_layout(self) -> Layout {
        Self::layout(usize::from(self.count) * size_of::<BufRingEntry>())
    }

    fn memory_layout(self) -> Layout {
        Self::layout(usize::from(self.count) * self.bytes)
    }

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes, PAGE).expect("a page is a power of two")
    }
}

fn allocate(layout: Layout) -> NonNull<u8> {
    // SAFETY: no layout here is empty.
    let memory = unsafe { alloc_zeroed(layout) };
    NonNull::new(memory).unwrap_or_else(|| handle_alloc_error(layout))
}

impl Buffers {
    fn new(size: Size) -> Self {
        let entries = allocate(size.entries_layout()).cast();
        let memory = allocate(size.memory_layout());
        let buffers = Self { size, entries, memory, tail: Cell::new(0) };
        for number in 0..size.count {
            buffers.give(size.first + number);
        }
        buffers
    }

    /// Where a buffer of this group begins.
    fn start(&self, number: u16) -> NonNull<u8> {
        let place = usize::from((number - self.size.first) % self.size.count);
        // SAFETY: places are below the number of buffers that were allocated.
        unsafe { self.memory.add(place * self.size.bytes) }
    }

    /// Gives a buffer to the kernel.
    fn give(&self, number: u16) {
        let tail = self.tail.get();
        let slot = usize::from(tail % self.size.count);
        // SAFETY: slots are below the number of entries that were allocated. The kernel reads one
        // only once the tail, written last, says that it is there; and there are no more buffers
        // than entries, so that none which it has not read is overwritten.
        unsafe {
            let entry = self.entries.add(slot).as_mut();
            entry.set_addr(self.start(number).as_ptr() as u64);
            entry.set_len(self.size.bytes as u32);
            entry.set_bid(number);
            let shared = BufRingEntry::tail(self.entries.as_ptr()).cast::<AtomicU16>();
            let tail = tail.wrapping_add(1);
            (*shared).store(tail, Ordering::Release);
            self.tail.set(tail);
        }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: allocated as they are freed; the ring has seen to it that they are nobody's.
        unsafe {
            dealloc(self.entries.as_ptr().cast(), self.size.entries_layout());
            dealloc(self.memory.as_ptr(), self.size.memory_layout());
        }
    }
}
