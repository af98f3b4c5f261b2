//! Where the bytes of an answer go: on to the client, or into what is held.
//!
//! Knows neither heads nor framing, nor why an answer is held.

use super::Piece;
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
