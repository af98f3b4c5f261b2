//! The words of an exchange: what it hears and what it wants done.
//!
//! Plain data, without behaviour.

use super::errand::{Errand, Said};
use crate::fleet::{BackendId, BackendSpec};
use crate::route::{AdapterChange, Decision, Echo, Failure, Outcome, RequestMeta, Share, Ticket};
use crate::time::Instant;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

/// One end of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Who sent the request.
    Client,
    /// The backend that was chosen for it.
    Upstream,
}

/// How a side's bytes ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// In order: it closed its sending half.
    Closed,
    /// By a reset or another error.
    Reset,
}

/// How far a stop has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Drain {
    /// Not asked for.
    Running,
    /// Answers say `Connection: close`; new requests are still taken.
    Grace,
    /// Connections without a request are closed; no further request is taken.
    Closing,
}

/// What an exchange hears.
#[derive(Debug)]
pub enum Input<'a> {
    /// Bytes came from a side. Not empty.
    Received(Side, &'a [u8]),
    /// So many bytes of what was to be sent have left.
    Sent(Side, usize),
    /// A side that took no more takes bytes again.
    Writable(Side),
    /// A side will send nothing more.
    Closed(Side, End),
    /// The backend takes no more bytes: what it may have answered is still to be read.
    Refused,
    /// The answer to [`Output::Reserve`].
    Reserved(Option<Share>),
    /// The answer to [`Output::Ask`] or [`Output::AskAgain`].
    Routed(Decision),
    /// The answer to [`Output::Connect`]: there is a connection, new or reused.
    Connected {
        /// Whether it had carried an exchange before.
        reused: bool,
    },
    /// The answer to [`Output::Connect`]: there is none to be had.
    ConnectFailed,
    /// The answer to [`Output::Connect`]: there is no descriptor, port or memory for one here.
    NoSocket,
    /// The answer to [`Output::Gather`]: what each of them came to.
    Gathered(Vec<Said>),
    /// The process was told to stop.
    Drain(Drain),
    /// A deadline of [`Exchange::poll_timeout`](super::Exchange::poll_timeout) may have passed.
    Timeout,
}

/// What an exchange wants done.
#[derive(Debug)]
pub enum Output<'a> {
    /// Take so many bytes more from the budget of request bodies than this request holds, and say
    /// [`Input::Reserved`].
    Reserve(Share, u64),
    /// Give a share back.
    Unreserve(Share),
    /// Ask the engine, and say [`Input::Routed`].
    Ask(RequestMeta<'a>),
    /// The backend failed: ask the engine for another, and say [`Input::Routed`].
    AskAgain(Ticket, Failure),
    /// Tell the engine that the answer has begun.
    FirstByte(&'a Ticket),
    /// Tell the engine that this backend keeps the response of this id.
    Owns(BackendId, String),
    /// Tell the engine how the ticket ended.
    Settle(Ticket, Outcome),
    /// Tell the engine that a request was refused, with this status, before its end was read.
    Declined(u16),
    /// Tell the engine how it stands, as text: the next readers of it get the same.
    Shown(Arc<Vec<u8>>),
    /// Run all these errands side by side, each on a connection of its own, and say
    /// [`Input::Gathered`] when all have ended or the moment has come. [`Output::Release`] drops
    /// them.
    Gather(Vec<Errand>, Instant),
    /// Tell the engine what became of them, and of which adapter.
    Heard(Vec<Echo>, Option<AdapterChange>),
    /// Connect to a backend, by an idle connection unless a fresh one is wanted, and say
    /// [`Input::Connected`] or [`Input::ConnectFailed`].
    Connect {
        /// To which.
        backend: BackendId,
        /// Where it is.
        spec: &'a Arc<BackendSpec>,
        /// Whether an idle connection will not do.
        fresh: bool,
    },
    /// Try once to send this to a side, and say [`Input::Sent`] of what left. If not all of it
    /// did, say [`Input::Writable`] when there is room; the rest is offered again then.
    Send(Side, &'a [u8]),
    /// Send `before`, then this part of the bytes just received from the backend, to the client.
    /// What does not leave at once is the runtime's to keep, in order, and to report by
    /// [`Input::Sent`] when it leaves.
    Relay {
        /// Bytes of the exchange's own.
        before: &'a [u8],
        /// A part of the bytes of the last [`Input::Received`].
        read: Range<usize>,
    },
    /// The backend's connection is over for this exchange.
    Release {
        /// Whether another exchange may use it; otherwise it must be closed at once.
        reusable: bool,
    },
    /// Close the sending half towards the client; its bytes are still read, for a moment.
    Shutdown,
    /// The connection is over.
    Close {
        /// Whether it must end as broken: by a reset, since for this client the end of the
        /// connection would be a proper end of the answer.
        reset: bool,
    },
}

/// Which sides to read. What is to be written is said by [`Output::Send`] and [`Output::Relay`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    /// Whether to read from the client.
    pub client: bool,
    /// Whether to say [`Input::Closed`] when the client leaves, though it is not read. If it is
    /// neither read nor this, only of an end that was a reset.
    pub client_end: bool,
    /// Whether to read from the backend.
    pub upstream: bool,
}
