//! Where the bytes of an answer go: on to the client, or into what is held; and what the client
//! has yet to take of them.
//!
//! Knows neither heads nor framing, nor why an answer is held.

use super::{Exchange, KEPT_CAPACITY_MAX, Piece};
use crate::time::Instant;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::ops::Range;

/// What keeps an answer from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    /// Nothing: it has begun.
    No,
    /// The first byte of its body, since until then another backend may be tried.
    FirstByte,
    /// The first event of its body, while that may be an error.
    FirstEvent,
    /// All of it: it is an error that another backend may do better than.
    Whole,
}

/// Where an answer's bytes go: on to the client, or into what is held.
pub(super) struct Flow<'a> {
    pub(super) held: &'a mut Vec<u8>,
    pub(super) out: &'a mut Vec<u8>,
    pub(super) pieces: &'a mut VecDeque<Piece>,
    pub(super) hold: Hold,
}

impl Flow<'_> {
    /// Lets go what is held: nothing more is.
    pub(super) fn begin(&mut self) {
        self.out.append(self.held);
        self.hold = Hold::No;
    }

    /// Where bytes of our own go.
    pub(super) fn own(&mut self) -> &mut Vec<u8> {
        if self.hold == Hold::No { self.out } else { self.held }
    }

    /// Passes on a part of what was read.
    pub(super) fn read(&mut self, bytes: &[u8], read: Range<usize>) {
        if read.is_empty() {
        } else if self.hold == Hold::No {
            self.pieces.push_back(Piece { own_until: self.out.len(), read });
        } else {
            self.held.extend_from_slice(&bytes[read]);
        }
    }
}

impl Exchange {
    /// Our bytes and the runtime's that have not left towards the client.
    pub(super) fn unsent(&self) -> usize {
        let read: usize = self.pieces.iter().map(|piece| piece.read.len()).sum();
        self.in_hand + self.out.len() - self.out_sent + read + self.inset_unsent().len()
    }

    pub(super) fn client_owes_reading(&self) -> bool {
        self.unsent() > 0
    }

    pub(super) fn client_took(&mut self, bytes: usize, now: Instant) {
        self.offered_client = false;
        if bytes > 0 {
            self.client_at = now;
        }
        let relayed = bytes.min(self.in_hand);
        self.in_hand -= relayed;
        self.own_sent(bytes - relayed);
        if self.unsent() == 0 {
            self.out.clear();
            self.out_sent = 0;
            self.inset = None;
            shrink(&mut self.out);
            // A slow client is not the backend's fault.
            if let Some(attempt) = &mut self.attempt {
                attempt.heard_at = now;
            }
        }
    }
}

/// Gives back a buffer that grew for one large message.
pub(super) fn shrink(buffer: &mut Vec<u8>) {
    if buffer.capacity() > KEPT_CAPACITY_MAX {
        *buffer = Vec::new();
    }
}
