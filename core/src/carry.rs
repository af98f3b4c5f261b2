//! Carry: what drives exchanges, on the sockets of whatever runtime.
//!
//! A [`Carrier`] carries out what one [`Exchange`](crate::exchange::Exchange) wants done. What it
//! needs of a runtime is asked for by [`Host`], [`Socket`] and [`Timer`]: sockets whose reads and
//! writes are tried at once, and wakers for whoever waits. Owns what connections of a thread have
//! in common: the [`Pool`] of idle ones to backends and the [`Connections`] that are open. Does not
//! know descriptors, rings or clocks, and decides nothing.

mod carrier;
mod connections;
mod errands;
mod pool;
#[cfg(test)]
mod tests;
mod timers;

pub use carrier::Carrier;
pub use connections::Connections;
pub use errands::Errands;
pub use pool::{Pool, SWEEP_EVERY};
pub use timers::{Alarm, Timers};

use crate::config::Limits;
use crate::engine::Engine;
use crate::fleet::Address;
use crate::time::{Duration, Instant};
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::future::Future;
use core::ops::Deref;
use core::pin::Pin;
use core::task::{Context, Poll};

/// How long data may stay unacknowledged before the kernel gives a peer up. Not shorter than the
/// time a client may take no byte, since a full window counts here too.
pub const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(60);
/// After what silence the kernel asks whether a peer is still there.
pub const KEEPALIVE_AFTER: Duration = Duration::from_secs(30);
/// How soon it asks again if nothing comes back.
pub const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
/// After how many questions without an answer the peer is gone.
pub const KEEPALIVE_TRIES: u32 = 3;

/// A connected stream of a runtime. Dropped, it is closed.
pub trait Socket {
    /// What a read brought; its memory goes back to the runtime when it is dropped.
    type Bytes: Deref<Target = [u8]>;

    /// Reads what is there.
    ///
    /// # Errors
    ///
    /// The connection is lost.
    fn read(&self) -> Result<Read<Self::Bytes>, Lost>;

    /// Writes what fits of both, in one call, and says how many bytes that were. Fewer than were
    /// given: it is full, and [`poll_writable`](Self::poll_writable) says when it no longer is.
    ///
    /// # Errors
    ///
    /// The connection is lost, or the peer takes nothing more; it may have said something.
    fn write(&self, slices: [&[u8]; 2]) -> Result<usize, Lost>;

    /// Ready when a read may bring something; a hint, not a promise. Asked only while bytes are
    /// wanted.
    fn poll_readable(&self, cx: &Context<'_>) -> Poll<()>;

    /// Ready when the peer will send nothing more, though bytes may be left to read.
    fn poll_ended(&self, cx: &Context<'_>) -> Poll<()>;

    /// Ready when the connection was reset, or lost otherwise.
    fn poll_failed(&self, cx: &Context<'_>) -> Poll<()>;

    /// Ready when a write may take something, or fail; a hint, not a promise.
    fn poll_writable(&self, cx: &Context<'_>) -> Poll<()>;

    /// Whether nothing came, no end either, as far as is known.
    fn is_silent(&self) -> bool;

    /// Closes the sending half. What is still read may be a peer's last words.
    fn shutdown(&self);

    /// Makes the close that follows a reset.
    fn reset(&self);
}

/// What a read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read<B> {
    /// Nothing is there.
    Nothing,
    /// Bytes. Not empty.
    Some {
        /// Which.
        bytes: B,
        /// Whether there may be more right now.
        more: bool,
    },
    /// The peer will send nothing more.
    End,
}

/// The connection is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost;

/// Why there is no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unconnected {
    /// There is no descriptor, port or memory for one here, which says nothing of the peer.
    Ours,
    /// Nobody is there who takes it.
    Theirs,
}

/// A connection that is being made.
pub type Connecting<S> = Pin<Box<dyn Future<Output = Result<S, Unconnected>>>>;

/// One thread of a runtime, as its connections see it. A clone is the same thread.
pub trait Host: Clone {
    /// What it carries bytes over.
    type Socket: Socket;
    /// What it waits with.
    type Timer: Timer;

    /// The time now.
    fn now(&self) -> Instant;

    /// Lends the engine for one call.
    fn with_engine<R>(&self, visit: impl FnOnce(&mut Engine) -> R) -> R;

    /// Connects to a backend; for as long as it takes, unless it is dropped.
    fn connect(&self, address: &Address) -> Connecting<Self::Socket>;

    /// A timer that is not set.
    fn timer(&self) -> Self::Timer;

    /// Wakes after all others that can run now had their turn, descriptors and timers too.
    fn next_turn(&self, cx: &Context<'_>);

    /// The idle connections to backends.
    fn pool(&self) -> &Pool<Self::Socket>;

    /// The connections of clients.
    fn connections(&self) -> &Connections;

    /// The limits of every exchange.
    fn limits(&self) -> &Arc<Limits>;
}

/// Rings once for each time it is set.
pub trait Timer {
    /// Rings at `at`, and no more when it was to ring. A moment that never comes never rings.
    fn set(&mut self, at: Instant);

    /// Ready when it rings; for ever pending while it is not set.
    fn poll(&mut self, cx: &Context<'_>) -> Poll<()>;
}
