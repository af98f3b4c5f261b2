//! Ending: what is given up where a connection, or an attempt, ends before its time.
//!
//! Knows what may still be held and who is owed it. Does not know why it ends.

use super::{Exchange, Order, Phase};
use crate::route::{Outcome, Share, Ticket};

impl Exchange {
    /// Gives up what is still held, because the connection's task ends: the ticket to settle, with
    /// how it ended, and the share to give back to the budget of bodies.
    pub fn abandon(&mut self) -> (Option<(Ticket, Outcome)>, Share) {
        let held = self.attempt.as_mut().and_then(|attempt| attempt.ticket.take());
        let mut ticket = held.map(|ticket| (ticket, Outcome::TimedOut));
        let mut share = self.request.unreserve();
        // Whoever drains outputs finds nothing here; a task may end between two of them.
        for order in self.orders.drain(..) {
            match order {
                Order::Settle(settled, outcome) => ticket = Some((settled, outcome)),
                Order::AskAgain(failed, _) => ticket = Some((failed, Outcome::TimedOut)),
                Order::Unreserve(more) => {
                    share.bytes += more.bytes;
                    share.overdraft |= more.overdraft;
                }
                Order::Reserve(_)
                | Order::Ask
                | Order::FirstByte
                | Order::Owns(..)
                | Order::Declined(_)
                | Order::Shown(_)
                | Order::Gather(..)
                | Order::Heard(..)
                | Order::Connect
                | Order::Release { .. }
                | Order::Shutdown
                | Order::Close { .. } => {}
            }
        }
        self.phase = Phase::Closed;
        (ticket, share)
    }

    pub(super) fn client_gone(&mut self, reset: bool) {
        if matches!(self.phase, Phase::Closed) {
            return;
        }
        self.withdraw();
        self.drop_attempt(Outcome::ClientGone);
        if matches!(self.phase, Phase::Gathering(_)) {
            self.orders.push_back(Order::Release { reusable: false });
        }
        self.give_back();
        self.close(reset);
    }

    /// Takes back the questions that nobody waits for any more, since their answers would bring
    /// what would have to be given back at once. A write that fails is told before them.
    pub(super) fn withdraw(&mut self) {
        for order in core::mem::take(&mut self.orders) {
            match order {
                Order::Reserve(_) | Order::Ask | Order::Connect | Order::Gather(..) => {}
                Order::AskAgain(ticket, _) => {
                    self.orders.push_back(Order::Settle(ticket, Outcome::ClientGone));
                }
                Order::Unreserve(_)
                | Order::FirstByte
                | Order::Owns(..)
                | Order::Heard(..)
                | Order::Declined(_)
                | Order::Shown(_)
                | Order::Settle(..)
                | Order::Release { .. }
                | Order::Shutdown
                | Order::Close { .. } => self.orders.push_back(order),
            }
        }
    }

    /// Ends an attempt whose answer will not be passed on.
    pub(super) fn drop_attempt(&mut self, outcome: Outcome) {
        let Some(attempt) = self.attempt.take() else { return };
        // Also while it is being connected to: the runtime drops what is under way.
        self.orders.push_back(Order::Release { reusable: false });
        if let Some(ticket) = attempt.ticket {
            self.orders.push_back(Order::Settle(ticket, outcome));
        }
    }

    pub(super) fn close(&mut self, reset: bool) {
        self.phase = Phase::Closed;
        self.pieces.clear();
        self.out.clear();
        self.out_sent = 0;
        self.inset = None;
        self.orders.push_back(Order::Close { reset });
    }
}
