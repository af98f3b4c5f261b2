//! A connection that both sides agreed to switch to a websocket: bytes cross as they are.
//!
//! Owns what the client sent until the backend takes it, and how the end of one side ends both.
//! Knows nothing of frames.

use super::deadlines::LINGER_MAX;
use super::realtime::Greeting;
use super::{End, Exchange, Order, Phase, Piece, shrink};
use crate::config::Limits;
use crate::route::Outcome;
use crate::time::{Instant, Wake};
use alloc::boxed::Box;

/// The status that says so.
pub(super) const SWITCHING: u16 = 101;

/// The way towards the backend; the other one is that of every answer.
///
/// What the backend has yet to take lies in [`Exchange::ahead`]: it is one read at most, since the
/// client is not read while there is any, or what it sent before it was told of the switch.
#[derive(Debug)]
pub(super) struct Pipe {
    /// How much of that the backend has taken.
    sent: usize,
    /// When it last took a byte, or was first asked to.
    asked_at: Instant,
    /// The client will send nothing more, in order.
    client_ended: bool,
    /// What the backend says first, where it is not for the client.
    greeting: Option<Box<Greeting>>,
}

impl Exchange {
    /// The backend switches: its head passes, unless we said one already, and from now on
    /// everything does.
    pub(super) fn switched(&mut self, head: &[u8], bytes: &[u8], from: usize, now: Instant) {
        let greeting = self.take_over().map(Box::new);
        if greeting.is_none() {
            self.out.extend_from_slice(head);
        }
        self.doubt = None;
        self.request.forget_bytes();
        self.give_back();
        self.orders.push_back(Order::FirstByte);
        self.phase = Phase::Piped(Pipe { sent: 0, asked_at: now, client_ended: false, greeting });
        self.piped_upstream_bytes(bytes, from);
    }

    pub(super) const fn is_piped(&self) -> bool {
        matches!(self.phase, Phase::Piped(_))
    }

    /// What the backend has yet to take.
    pub(super) fn piped(&self) -> &[u8] {
        match (&self.phase, &self.attempt) {
            (Phase::Piped(pipe), Some(_)) => self.ahead.get(pipe.sent..).unwrap_or_default(),
            _ => &[],
        }
    }

    /// Whether the client is to be read. While its bytes wait, it is not even asked whether it is
    /// still there: its last words may be behind them.
    pub(super) fn pipes_client(&self) -> bool {
        matches!(self.phase, Phase::Piped(Pipe { client_ended: false, .. }))
            && self.piped().is_empty()
    }

    /// Whether the backend is to be read, if the client reads.
    pub(super) const fn pipes_upstream(&self) -> bool {
        matches!(self.phase, Phase::Piped(Pipe { client_ended: false, .. }))
            && self.attempt.is_some()
    }

    pub(super) fn piped_upstream_bytes(&mut self, bytes: &[u8], mut from: usize) {
        if let Phase::Piped(pipe) = &mut self.phase
            && let Some(mut greeting) = pipe.greeting.take()
        {
            let (used, known) = greeting.read(&bytes[from..]);
            from += used;
            match known {
                None => pipe.greeting = Some(greeting),
                Some(true) => {}
                Some(false) => self.out.extend_from_slice(&greeting.into_said()),
            }
        }
        if from < bytes.len() {
            self.pieces.push_back(Piece { own_until: self.out.len(), read: from..bytes.len() });
        }
    }

    pub(super) fn piped_client_bytes(&mut self, bytes: &[u8], now: Instant) {
        let Phase::Piped(pipe) = &mut self.phase else { return };
        // Nobody is left to take them: they are read so that no reset destroys the last words.
        if self.attempt.as_ref().is_none_or(|attempt| attempt.refused) {
            return;
        }
        if self.ahead.len() == pipe.sent {
            pipe.asked_at = now;
        }
        self.ahead.extend_from_slice(bytes);
    }

    pub(super) fn piped_took(&mut self, bytes: usize, now: Instant) {
        let Phase::Piped(pipe) = &mut self.phase else { return };
        if bytes > 0 {
            pipe.asked_at = now;
        }
        pipe.sent += bytes;
        if pipe.sent >= self.ahead.len() {
            self.piped_dropped();
        }
    }

    /// The backend takes nothing more, but may have said something.
    pub(super) fn piped_refused(&mut self, now: Instant) {
        if let Phase::Piped(pipe) = &mut self.phase {
            pipe.asked_at = now;
            self.piped_dropped();
        }
    }

    fn piped_dropped(&mut self) {
        if let Phase::Piped(pipe) = &mut self.phase {
            pipe.sent = 0;
            self.ahead.clear();
            shrink(&mut self.ahead);
        }
    }

    pub(super) fn client_closed(&mut self, end: End) {
        match (&mut self.phase, end) {
            // What it sent before is on its way, and perhaps the word that it leaves.
            (Phase::Piped(pipe), End::Closed) => pipe.client_ended = true,
            _ => self.client_gone(false),
        }
    }

    /// The backend's end, however it came: the client still gets what was said.
    pub(super) fn piped_upstream_closed(&mut self, end: End) {
        self.piped_ends(match end {
            End::Closed => Outcome::done(SWITCHING),
            End::Reset => Outcome::Broken,
        });
    }

    pub(super) fn piped_timeout(&mut self) {
        self.piped_ends(Outcome::TimedOut);
    }

    fn piped_ends(&mut self, outcome: Outcome) {
        self.piped_dropped();
        self.drop_attempt(outcome);
    }

    /// When a backend that takes nothing counts as gone. One that says nothing does not: websockets
    /// are silent for long, and the kernel finds peers that vanished.
    pub(super) fn piped_due(&self, limits: &Limits) -> Option<Wake> {
        let Phase::Piped(pipe) = &self.phase else { return None };
        let attempt = self.attempt.as_ref()?;
        (attempt.refused || !self.piped().is_empty()).then(|| Wake {
            at: pipe.asked_at + limits.write_timeout,
            why: "the backend takes nothing",
        })
    }

    /// What follows when one side has ended and the other has all of it.
    pub(super) fn piped_advance(&mut self, now: Instant) {
        let Phase::Piped(pipe) = &self.phase else { return };
        let client_ended = pipe.client_ended;
        if self.unsent() > 0 || !self.piped().is_empty() {
            return;
        }
        match (client_ended, &self.attempt) {
            (true, _) => {
                self.drop_attempt(Outcome::done(SWITCHING));
                self.close(false);
            }
            (false, None) => {
                // A client that is in the middle of sending would lose the rest to a reset.
                self.phase =
                    Phase::Lingering { until: now + self.limits.linger, at_most: now + LINGER_MAX };
                self.orders.push_back(Order::Shutdown);
            }
            (false, Some(_)) => {}
        }
    }
}
