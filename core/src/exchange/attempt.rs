//! Attempt: one backend's try at a request: how far it got, and how much of its answer has come.
//!
//! Owns the books of what was sent. What bytes do to it is told by [`response`](super::response).

use super::After;
use super::events::FirstEvent;
use super::flow::Hold;
use crate::config::Limits;
use crate::fleet::{BackendId, BackendSpec};
use crate::route::{Reason, Route, Ticket};
use crate::time::{Instant, Wake};
use crate::wire::body::BodyReader;
use crate::wire::forward::ClientFraming;
use crate::wire::head::HeadEnd;
use crate::wire::response_id::IdFinder;
use crate::wire::usage::UsageReader;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    Connecting,
    Open { reused: bool },
}

/// What of an answer has come.
#[derive(Debug)]
pub(super) enum Stage {
    /// Its head is being read.
    Head,
    /// Its body is being read.
    Body {
        reader: BodyReader,
        framing: ClientFraming,
        status: u16,
        reusable: bool,
        after: After,
        hold: Hold,
    },
}

/// One backend's try at a request.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) backend: BackendId,
    pub(super) spec: Arc<BackendSpec>,
    pub(super) fresh: bool,
    /// Why it was chosen, what was promised of it, and how many were tried with it.
    pub(super) reason: Reason,
    pub(super) predicted_tokens: u64,
    pub(super) number: u32,
    pub(super) ticket: Option<Ticket>,
    pub(super) link: Link,
    /// Which part of the request's message is still to be sent.
    pub(super) wire: Range<usize>,
    pub(super) begun: bool,
    /// The backend takes no more bytes of the request.
    pub(super) refused: bool,
    pub(super) stage: Stage,
    /// The part of a head that came without its end.
    pub(super) head: Vec<u8>,
    pub(super) head_end: HeadEnd,
    pub(super) informational: u8,
    /// The answer as the client will get it, while it is held.
    pub(super) held: Vec<u8>,
    pub(super) first_event: FirstEvent,
    /// Looks for the id of a response that the backend keeps.
    pub(super) ids: Option<IdFinder>,
    /// Reads what the answer says it cost, if it may say that.
    pub(super) usage: Option<UsageReader>,
    /// When the backend last sent or took a byte, or was first asked to.
    pub(super) heard_at: Instant,
}

impl Attempt {
    pub(super) fn new(route: Route, wire: Range<usize>, now: Instant) -> Self {
        Self {
            backend: route.backend,
            spec: route.spec,
            fresh: route.fresh,
            reason: route.reason,
            predicted_tokens: route.predicted_tokens,
            number: route.attempt,
            ticket: Some(route.ticket),
            link: Link::Connecting,
            wire,
            begun: false,
            refused: false,
            stage: Stage::Head,
            head: Vec::new(),
            head_end: HeadEnd::default(),
            informational: 0,
            held: Vec::new(),
            first_event: FirstEvent::default(),
            ids: None,
            usage: None,
            heard_at: now,
        }
    }

    pub(super) fn connected(&mut self, reused: bool, now: Instant) {
        if self.link == Link::Connecting {
            self.link = Link::Open { reused };
            self.heard_at = now;
        }
    }

    pub(super) fn took(&mut self, bytes: usize, now: Instant) {
        if bytes > 0 {
            self.begun = true;
            self.heard_at = now;
            self.wire.start = (self.wire.start + bytes).min(self.wire.end);
        }
    }

    pub(super) const fn is_open(&self) -> bool {
        matches!(self.link, Link::Open { .. })
    }

    /// The part of the request that the backend has yet to take.
    pub(super) fn unsent(&self) -> Option<Range<usize>> {
        let send = self.is_open() && !self.refused && !self.wire.is_empty();
        send.then(|| self.wire.clone())
    }

    pub(super) fn deadline(&self, limits: &Limits) -> Option<Wake> {
        match self.link {
            Link::Connecting => Some(Wake {
                at: self.heard_at + limits.connect_timeout,
                why: "the backend does not accept",
            }),
            Link::Open { .. } => limits
                .http_timeout
                .map(|timeout| Wake { at: self.heard_at + timeout, why: "the backend is silent" }),
        }
    }

    pub(super) const fn has_begun_answer(&self) -> bool {
        matches!(self.stage, Stage::Body { hold: Hold::No, .. })
    }
}
