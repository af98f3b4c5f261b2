//! Idle connections to backends, one pool a thread.
//!
//! Knows how old a connection is and whether it is still silent; does not know what it carried.

use super::Socket;
use crate::fleet::BackendId;
use crate::time::{Duration, Instant};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::cell::RefCell;

/// vLLM closes idle connections after 5 s (`VLLM_HTTP_TIMEOUT_KEEP_ALIVE`) and does not say so.
const IDLE_MAX: Duration = Duration::from_secs(4);
/// Beyond this many to one backend a connection is closed instead of kept.
const IDLE_PER_BACKEND_MAX: usize = 1_024;

/// How often a runtime calls [`Pool::sweep`].
pub const SWEEP_EVERY: Duration = Duration::from_secs(IDLE_MAX.as_secs() / 4);

/// Idle connections, newest last.
#[derive(Debug)]
pub struct Pool<S> {
    idle: RefCell<BTreeMap<BackendId, Vec<Idle<S>>>>,
}

#[derive(Debug)]
struct Idle<S> {
    socket: S,
    since: Instant,
}

impl<S> Default for Pool<S> {
    fn default() -> Self {
        Self { idle: RefCell::default() }
    }
}

impl<S: Socket> Pool<S> {
    /// The newest idle connection to a backend, if one is left that the backend has not closed.
    pub(super) fn take(&self, backend: BackendId, now: Instant) -> Option<S> {
        let mut idle = self.idle.borrow_mut();
        let sockets = idle.get_mut(&backend)?;
        while let Some(Idle { socket, since }) = sockets.pop() {
            if now.since(since) >= IDLE_MAX {
                // What lies below is older.
                sockets.clear();
                return None;
            }
            // Bytes that nobody asked for would be taken for the next answer.
            if socket.is_silent() {
                return Some(socket);
            }
        }
        None
    }

    /// Keeps a connection for the next request to this backend.
    pub(super) fn put(&self, backend: BackendId, socket: S, now: Instant) {
        let mut idle = self.idle.borrow_mut();
        let sockets = idle.entry(backend).or_default();
        if sockets.len() < IDLE_PER_BACKEND_MAX {
            sockets.push(Idle { socket, since: now });
        }
    }

    /// Closes what has been idle for too long.
    pub fn sweep(&self, now: Instant) {
        self.idle.borrow_mut().retain(|_, sockets| {
            sockets.retain(|idle| now.since(idle.since) < IDLE_MAX);
            !sockets.is_empty()
        });
    }
}
