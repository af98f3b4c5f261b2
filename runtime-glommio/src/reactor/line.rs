//! What is known of one descriptor, and what was received from it.
//!
//! Knows what the kernel was asked for and what it said; asks for nothing itself.

use crate::ring::{Bytes, Completion};
use rustix::event::PollFlags;
use rustix::io::Errno;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};

/// How many buffers are received one by one after one that was filled.
const BULK_READS: u8 = 16;

/// What is asked for by the name of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// All that arrives, again and again.
    Receive,
    /// Once, when it may be read: for what is not received from.
    Readable,
    /// Whenever there is room.
    Writable,
    /// When the peer has ended, or is lost.
    End,
}

impl Kind {
    pub(super) const ALL: [Self; 4] = [Self::Receive, Self::Readable, Self::Writable, Self::End];
}

/// What is known of one descriptor, for as long as the kernel may say something of it.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) key: usize,
    /// Received and not read.
    pub(super) arrived: RefCell<VecDeque<Bytes>>,
    /// There is nothing more to be received.
    pub(super) ended: Cell<bool>,
    /// The peer has ended, whatever is left to be received.
    pub(super) hung_up: Cell<bool>,
    /// The connection is lost.
    pub(super) failed: Cell<bool>,
    pub(super) readable: Cell<bool>,
    pub(super) writable: Cell<bool>,
    /// What the kernel was asked for and has not said the last word on.
    pub(super) asked: [Cell<bool>; Kind::ALL.len()],
    /// How often the kernel had heard all when it was asked last.
    pub(super) asked_at: Cell<u64>,
    /// Receiving is to end.
    pub(super) cancelled: Cell<bool>,
    /// More comes at a time than a buffer takes: it is received buffer by buffer, each when the one
    /// before has been read, so that who does not read fills its peer's memory and not ours. For
    /// how many more, unless one is filled again.
    pub(super) bulk: Cell<u8>,
    /// Something arrived since the last turn.
    pub(super) fresh: Cell<bool>,
    /// Its source is gone.
    pub(super) dropped: Cell<bool>,
    /// When it was counted last by who watches how busy the thread is.
    pub(super) counted: Cell<u32>,
    pub(super) reader: RefCell<Option<Waker>>,
    pub(super) writer: RefCell<Option<Waker>>,
}

impl Line {
    pub(super) fn new(key: usize) -> Self {
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
            fresh: Cell::new(false),
            dropped: Cell::new(false),
            counted: Cell::new(0),
            reader: RefCell::default(),
            writer: RefCell::default(),
        }
    }

    pub(super) fn name(&self, kind: Kind) -> u64 {
        (self.key * Kind::ALL.len() + kind as usize) as u64
    }

    pub(super) fn is_asked(&self, kind: Kind) -> bool {
        self.asked[kind as usize].get()
    }

    pub(super) fn received(&self, completion: Completion) {
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

    /// The kernel says that the peer has ended, to whoever asked for whatever.
    pub(super) fn ended_by(&self, result: Result<u32, Errno>) {
        let events = events(result);
        if events.intersects(PollFlags::ERR) {
            self.failed.set(true);
        } else if !events.is_empty() {
            self.hung_up.set(true);
        }
    }

    /// What the kernel says to who waits for room; whether it is that nobody is there any more.
    pub(super) fn writable_by(&self, result: Result<u32, Errno>) -> bool {
        let lost = PollFlags::ERR | PollFlags::HUP;
        if result.is_err() || events(result).intersects(PollFlags::OUT | lost) {
            self.writable.set(true);
        } else {
            self.ended_by(result);
        }
        events(result).intersects(lost)
    }

    /// Takes what arrived out of the ring's buffers, and says how much it is.
    pub(super) fn keep(&self) -> usize {
        let mut arrived = self.arrived.borrow_mut();
        let Some(first) = arrived.pop_front() else { return 0 };
        let kept = first.kept_with(arrived.drain(..));
        let len = kept.len();
        arrived.push_back(kept);
        len
    }
}

fn events(result: Result<u32, Errno>) -> PollFlags {
    PollFlags::from_bits_truncate(result.unwrap_or_default() as u16)
}

pub(super) fn wake(waiting: &RefCell<Option<Waker>>) {
    if let Some(waker) = waiting.borrow_mut().take() {
        waker.wake();
    }
}

pub(super) fn wait(ready: bool, waiting: &RefCell<Option<Waker>>, cx: &Context<'_>) -> Poll<()> {
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
