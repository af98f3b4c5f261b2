//! The timers of a thread: which moments are waited for, and by whom.
//!
//! Knows moments and wakers; does not know the time, which whoever turns the thread tells.

use super::Timer;
use crate::time::Instant;
use alloc::collections::BTreeMap;
use core::cell::{Cell, RefCell};
use core::future::Future;
use core::ops::Deref;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};

/// All timers of a thread that are set and have not rung.
#[derive(Debug, Default)]
pub struct Timers {
    set: RefCell<BTreeMap<Key, Option<Waker>>>,
    made: Cell<u64>,
}

/// Earliest first; of those at one moment, first who was set first.
type Key = (Instant, u64);

impl Timers {
    /// The first moment that is waited for.
    pub fn earliest(&self) -> Option<Instant> {
        self.set.borrow().keys().next().map(|(at, _)| *at)
    }

    /// Rings what is due.
    pub fn ring(&self, now: Instant) {
        while let Some(waker) = self.take_due(now) {
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    /// One at a time: whoever is woken may set another.
    fn take_due(&self, now: Instant) -> Option<Option<Waker>> {
        let mut set = self.set.borrow_mut();
        let first = set.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }

    fn insert(&self, at: Instant) -> Key {
        let number = self.made.get() + 1;
        self.made.set(number);
        self.set.borrow_mut().insert((at, number), None);
        (at, number)
    }

    fn remove(&self, key: Key) {
        let waker = self.set.borrow_mut().remove(&key);
        drop(waker);
    }

    fn poll(&self, key: Key, cx: &Context<'_>) -> Poll<()> {
        let mut set = self.set.borrow_mut();
        let Some(waker) = set.get_mut(&key) else { return Poll::Ready(()) };
        match waker {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            _ => *waker = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

/// A timer of such a table, which it holds as a runtime shares things: by `Rc`.
#[derive(Debug)]
pub struct Alarm<T: Deref<Target = Timers>> {
    timers: T,
    key: Option<Key>,
}

impl<T: Deref<Target = Timers>> Alarm<T> {
    /// One that is not set.
    pub const fn new(timers: T) -> Self {
        Self { timers, key: None }
    }

    fn unset(&mut self) {
        if let Some(key) = self.key.take() {
            self.timers.remove(key);
        }
    }
}

impl<T: Deref<Target = Timers>> Timer for Alarm<T> {
    fn set(&mut self, at: Instant) {
        self.unset();
        self.key = Some(self.timers.insert(at));
    }

    fn poll(&mut self, cx: &Context<'_>) -> Poll<()> {
        let Some(key) = self.key else { return Poll::Pending };
        let polled = self.timers.poll(key, cx);
        if polled.is_ready() {
            self.key = None;
        }
        polled
    }
}

impl<T: Deref<Target = Timers> + Unpin> Future for Alarm<T> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Timer::poll(&mut *self, cx)
    }
}

impl<T: Deref<Target = Timers>> Drop for Alarm<T> {
    fn drop(&mut self) {
        self.unset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::rc::Rc;

    fn at(micros: u64) -> Instant {
        Instant::from_micros(micros)
    }

    fn is_rung(alarm: &mut Alarm<Rc<Timers>>) -> bool {
        Timer::poll(alarm, &Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn they_ring_in_order_once_and_can_be_moved() {
        let timers = Rc::new(Timers::default());
        let [mut early, mut late, mut moved] = [(); 3].map(|()| Alarm::new(timers.clone()));
        early.set(at(5));
        late.set(at(20));
        moved.set(at(1_000));
        moved.set(at(5));
        assert_eq!(timers.earliest(), Some(at(5)));
        timers.ring(at(4));
        assert!(!is_rung(&mut early) && !is_rung(&mut moved) && !is_rung(&mut late));
        timers.ring(at(5));
        assert!(is_rung(&mut early) && is_rung(&mut moved) && !is_rung(&mut late));
        assert!(!is_rung(&mut early), "it rings once");
        assert_eq!(timers.earliest(), Some(at(20)));
        drop(late);
        assert_eq!(timers.earliest(), None);
    }

    #[test]
    fn who_waits_is_woken() {
        let timers = Rc::new(Timers::default());
        let mut alarm = Alarm::new(timers.clone());
        alarm.set(at(5));
        let woken = alloc::sync::Arc::new(Flag::default());
        let waker = Waker::from(woken.clone());
        assert!(Timer::poll(&mut alarm, &Context::from_waker(&waker)).is_pending());
        timers.ring(at(5));
        assert!(woken.0.load(core::sync::atomic::Ordering::Relaxed));
    }

    #[derive(Default)]
    struct Flag(core::sync::atomic::AtomicBool);

    impl alloc::task::Wake for Flag {
        fn wake(self: alloc::sync::Arc<Self>) {
            self.0.store(true, core::sync::atomic::Ordering::Relaxed);
        }
    }
}
