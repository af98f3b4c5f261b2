//! Orders: what an exchange has yet to say, and what it keeps for that.
//!
//! Plain data, without behaviour.

use super::errand::Errand;
use crate::fleet::BackendId;
use crate::route::{AdapterChange, Echo, Failure, Outcome, Share, Ticket};
use crate::time::Instant;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

/// What [`Exchange::poll_output`](super::Exchange::poll_output) has yet to say.
#[derive(Debug)]
pub(super) enum Order {
    Reserve(u64),
    Unreserve(Share),
    Ask,
    AskAgain(Ticket, Failure),
    FirstByte,
    Owns(BackendId, String),
    Settle(Ticket, Outcome),
    Declined(u16),
    Shown(Arc<Vec<u8>>),
    Gather(Vec<Errand>, Instant),
    Heard(Vec<Echo>, Option<AdapterChange>),
    Connect,
    Release { reusable: bool },
    Shutdown,
    Close { reset: bool },
}

/// A part of the bytes last read, and how much of our own goes before it.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) own_until: usize,
    pub(super) read: Range<usize>,
}

/// How a connection ends behind the answer under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    NextRequest,
    Close,
    Linger,
    Reset,
}

/// An answer that may be passed if no other backend gives one.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) bytes: Vec<u8>,
    pub(super) after: After,
}
