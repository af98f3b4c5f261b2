//! The open connections of clients, one set a thread, and how far its stop has come.
//!
//! Knows whom to wake when that changes; does not know what they carry.

use crate::exchange::Drain;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::task::{Context, Poll, Waker};

/// Which connections are open.
#[derive(Debug)]
pub struct Connections {
    drain: Cell<Drain>,
    places: RefCell<Places>,
    /// Whoever waits for the last one.
    emptied: RefCell<Option<Waker>>,
}

/// A place for each connection, with its waker once it has waited.
#[derive(Debug, Default)]
struct Places {
    wakers: Vec<Option<Waker>>,
    free: Vec<usize>,
}

impl Default for Connections {
    fn default() -> Self {
        Self {
            drain: Cell::new(Drain::Running),
            places: RefCell::default(),
            emptied: RefCell::default(),
        }
    }
}

impl Connections {
    /// How many are open.
    pub fn open(&self) -> usize {
        let places = self.places.borrow();
        places.wakers.len() - places.free.len()
    }

    /// How far the stop has come.
    pub const fn drain(&self) -> Drain {
        self.drain.get()
    }

    /// Tells all how far it has come.
    pub fn set_drain(&self, drain: Drain) {
        self.drain.set(drain);
        // Whoever is woken may come and go at once.
        let wakers: Vec<Waker> = self.places.borrow().wakers.iter().flatten().cloned().collect();
        for waker in wakers {
            waker.wake();
        }
    }

    /// Ready when none is open. One may wait at a time.
    pub fn poll_emptied(&self, cx: &Context<'_>) -> Poll<()> {
        if self.open() == 0 {
            return Poll::Ready(());
        }
        *self.emptied.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }

    /// One more, and its place until it leaves.
    pub(super) fn enter(&self) -> usize {
        let mut places = self.places.borrow_mut();
        places.free.pop().unwrap_or_else(|| {
            places.wakers.push(None);
            places.wakers.len() - 1
        })
    }

    /// One fewer.
    pub(super) fn leave(&self, place: usize) {
        let mut places = self.places.borrow_mut();
        let waker = places.wakers[place].take();
        places.free.push(place);
        drop(places);
        drop(waker);
        if self.open() == 0
            && let Some(waker) = self.emptied.take()
        {
            waker.wake();
        }
    }

    /// Ready when the stop has come further than `known`.
    pub(super) fn poll_drain(&self, place: usize, known: Drain, cx: &Context<'_>) -> Poll<Drain> {
        let drain = self.drain.get();
        if drain != known {
            return Poll::Ready(drain);
        }
        let waker = &mut self.places.borrow_mut().wakers[place];
        match waker {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            _ => *waker = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}
