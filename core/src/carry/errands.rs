//! Runs errands: questions to several backends at once, each on a connection of its own.
//!
//! Knows sockets and time; what is asked and what the answers mean is the exchange's. Dropped
//! with the client's connection, and all of theirs with it, so that nobody works for who has left.

use super::{Connecting, Host, Lost, Read, Socket, Timer, Unconnected};
use crate::exchange::{End, Errand, Said};
use crate::time::Instant;
use alloc::vec::Vec;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, ready};

/// Reads and writes in a row, before other connections have their turn.
const STEPS_IN_A_ROW_MAX: usize = 8;

/// Errands side by side: ends when the last has, or at the moment that was set.
pub struct Errands<H: Host> {
    host: H,
    until: Instant,
    under_way: Vec<UnderWay<H>>,
    said: Vec<Said>,
}

/// One of them.
struct UnderWay<H: Host> {
    errand: Errand,
    timer: H::Timer,
    way: Way<H::Socket>,
}

/// How far it has come.
enum Way<S> {
    Connecting(Connecting<S>),
    Talking(Talk<S>),
}

/// A connection on which it is run.
struct Talk<S> {
    socket: S,
    /// The backend takes no more.
    refused: bool,
    /// Since others had their turn.
    steps: usize,
    waits: Option<Wait>,
}

/// Nothing is there to be read.
struct Wait {
    /// Nor is there room for what is yet to be sent.
    to_write: bool,
}

impl<H: Host> Errands<H> {
    /// Begins them all.
    pub fn new(host: H, errands: Vec<Errand>, until: Instant) -> Self {
        let now = host.now();
        let begin = |errand: Errand| {
            let mut timer = host.timer();
            timer.set(until.min(now + errand.limits().connect_timeout));
            let way = Way::Connecting(host.connect(&errand.spec().address));
            UnderWay { errand, timer, way }
        };
        let under_way: Vec<_> = errands.into_iter().map(begin).collect();
        let said = Vec::with_capacity(under_way.len());
        Self { host, until, under_way, said }
    }
}

impl<H: Host> Unpin for Errands<H> {}

impl<H: Host> Future for Errands<H> {
    type Output = Vec<Said>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Vec<Said>> {
        let Self { host, until, under_way, said } = self.get_mut();
        under_way.retain_mut(|one| match one.poll(host, *until, cx) {
            Poll::Ready(one) => {
                said.push(one);
                false
            }
            Poll::Pending => true,
        });
        if under_way.is_empty() { Poll::Ready(core::mem::take(said)) } else { Poll::Pending }
    }
}

impl<H: Host> UnderWay<H> {
    fn poll(&mut self, host: &H, until: Instant, cx: &mut Context<'_>) -> Poll<Said> {
        if let Way::Connecting(connecting) = &mut self.way
            && let Poll::Ready(connected) = connecting.as_mut().poll(cx)
        {
            let socket = match connected {
                Ok(socket) => socket,
                Err(Unconnected::Ours) => return Poll::Ready(self.errand.no_socket()),
                Err(Unconnected::Theirs) => return Poll::Ready(self.errand.unconnected()),
            };
            self.timer.set(until);
            self.way = Way::Talking(Talk { socket, refused: false, steps: 0, waits: None });
        }
        if let Way::Talking(talk) = &mut self.way
            && let Poll::Ready(said) = talk.poll(host, &mut self.errand, cx)
        {
            return Poll::Ready(said.unwrap_or_else(|Lost| self.errand.closed(End::Reset)));
        }
        ready!(self.timer.poll(cx));
        Poll::Ready(match self.way {
            Way::Connecting(_) => self.errand.unconnected(),
            Way::Talking(_) => self.errand.timed_out(),
        })
    }
}

impl<S: Socket> Talk<S> {
    fn poll(
        &mut self,
        host: &impl Host,
        errand: &mut Errand,
        cx: &Context<'_>,
    ) -> Poll<Result<Said, Lost>> {
        loop {
            if let Some(Wait { to_write }) = self.waits {
                let readable = self.socket.poll_readable(cx).is_ready();
                let writable = to_write && self.socket.poll_writable(cx).is_ready();
                if !(readable || writable) {
                    self.steps = 0;
                    return Poll::Pending;
                }
                self.waits = None;
            }
            if self.steps == STEPS_IN_A_ROW_MAX {
                // The others first, and whoever counts the time.
                self.steps = 0;
                host.next_turn(cx);
                return Poll::Pending;
            }
            self.steps += 1;
            let unsent = errand.unsent();
            let mut to_write = !self.refused && unsent.iter().any(|part| !part.is_empty());
            if to_write {
                match self.socket.write(unsent) {
                    Ok(0) => {}
                    Ok(bytes) => {
                        errand.sent(bytes);
                        continue;
                    }
                    // What it may have answered is still to be read.
                    Err(Lost) => (self.refused, to_write) = (true, false),
                }
            }
            let (said, more) = match self.socket.read()? {
                Read::Nothing => (None, false),
                Read::Some { bytes, more } => (errand.received(&bytes), more),
                Read::End => (Some(errand.closed(End::Closed)), false),
            };
            if let Some(said) = said {
                return Poll::Ready(Ok(said));
            }
            if !more {
                self.waits = Some(Wait { to_write });
            }
        }
    }
}
