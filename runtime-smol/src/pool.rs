//! Idle connections to backends, one pool a thread.
//!
//! Knows how old a connection is and whether it is still silent; does not know what it carried.

use crate::net::Socket;
use std::cell::RefCell;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use vllm_proxy_core::fleet::BackendId;

/// vLLM closes idle connections after 5 s (`VLLM_HTTP_TIMEOUT_KEEP_ALIVE`) and does not say so.
pub(crate) const IDLE_MAX: Duration = Duration::from_secs(4);
/// Beyond this many to one backend a connection is closed instead of kept.
const IDLE_PER_BACKEND_MAX: usize = 1_024;

/// Idle connections, newest last.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    idle: RefCell<HashMap<BackendId, Vec<Idle>>>,
}

#[derive(Debug)]
struct Idle {
    socket: Socket,
    since: Instant,
}

impl Pool {
    /// The newest idle connection to a backend, if one is left that the backend has not closed.
    pub(crate) fn take(&self, backend: BackendId, now: Instant) -> Option<Socket> {
        let mut idle = self.idle.borrow_mut();
        let sockets = idle.get_mut(&backend)?;
        while let Some(Idle { socket, since }) = sockets.pop() {
            if now.duration_since(since) >= IDLE_MAX {
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
    pub(crate) fn put(&self, backend: BackendId, socket: Socket, now: Instant) {
        let mut idle = self.idle.borrow_mut();
        let sockets = idle.entry(backend).or_default();
        if sockets.len() < IDLE_PER_BACKEND_MAX {
            sockets.push(Idle { socket, since: now });
        }
    }

    /// Closes what has been idle for too long.
    pub(crate) fn sweep(&self, now: Instant) {
        self.idle.borrow_mut().retain(|_, sockets| {
            sockets.retain(|idle| now.duration_since(idle.since) < IDLE_MAX);
            !sockets.is_empty()
        });
    }
}
