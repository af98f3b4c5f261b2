//! Drives one [`Exchange`]: carries out what it wants done, waits for whatever it is interested
//! in, tells it what happened, again.
//!
//! Knows sockets and outputs; decides nothing. No write is awaited alone: else an answer that
//! comes while the request is still being sent would not be seen, nor a client that leaves.

use super::{Connecting, Errands, Host, Lost, Read, Socket, Timer, Unconnected};
use crate::engine::Engine;
use crate::exchange::{Drain, End, Exchange, Input, Output, Said, Side};
use crate::fleet::BackendId;
use crate::route::Decision;
use crate::time::{Duration, Instant};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::future::Future;
use core::ops::ControlFlow;
use core::pin::Pin;
use core::task::{Context, Poll, ready};

/// Full reads of one side in a row, before other connections have their turn.
const READS_IN_A_ROW_MAX: usize = 8;

/// The connection to a backend.
enum Upstream<H: Host> {
    None,
    Connecting(BackendId, Connecting<H::Socket>),
    Open(BackendId, H::Socket),
    /// Several at once.
    Errands(Box<Errands<H>>),
}

/// What ended a wait.
enum Woken<S> {
    Connected(Result<S, Unconnected>),
    Gathered(Vec<Said>),
    Readable(Side),
    Writable(Side),
    /// The client will send nothing more, while nothing is read of it.
    Ended(End),
    Drained,
    Due,
}

/// One client connection and what belongs to it; ends when that is over.
///
/// Dropped before, it settles with the engine what its exchange holds.
pub struct Carrier<H: Host> {
    host: H,
    exchange: Exchange,
    client: H::Socket,
    upstream: Upstream<H>,
    /// What the exchange relayed and the client has not taken yet.
    backlog: Vec<u8>,
    /// Sides that took no more at the last write.
    client_full: bool,
    upstream_full: bool,
    drain: Drain,
    /// Among the thread's connections.
    place: usize,
    timer: H::Timer,
    timer_at: Instant,
    /// All that is wanted is done.
    waits: bool,
    /// It read as much in a row as it may: now it is the others' turn.
    yields: bool,
    /// The backend was read last.
    client_next: bool,
    /// How long the last decision took, if the engine does not know it yet.
    routed_in: Option<Duration>,
}

type Flow = ControlFlow<()>;

impl<H: Host> Carrier<H> {
    /// Serves a client that was just accepted.
    pub fn new(host: H, client: H::Socket) -> Self {
        let now = host.now();
        let mut carrier = Self {
            exchange: Exchange::new(host.limits().clone(), now),
            client,
            upstream: Upstream::None,
            backlog: Vec::new(),
            client_full: false,
            upstream_full: false,
            drain: Drain::Running,
            place: host.connections().enter(),
            timer: host.timer(),
            timer_at: Instant::FAR,
            waits: false,
            yields: false,
            client_next: false,
            routed_in: None,
            host,
        };
        carrier.check_drain(now);
        carrier
    }

    fn handle(&mut self, input: Input<'_>) {
        let now = self.host.now();
        self.exchange.handle(input, now);
    }

    /// Carries out all that the exchange wants done. `read` is what it was last told.
    fn carry_out(&mut self, read: &[u8]) -> Flow {
        let host = &self.host;
        let routed_in = &mut self.routed_in;
        loop {
            let Some(output) = self.exchange.poll_output() else { return Flow::Continue(()) };
            let now = host.now();
            let told = match output {
                Output::Relay { before, read: part } => {
                    let slices = [before, &read[part]];
                    match write_or_keep(&self.client, slices, &mut self.backlog) {
                        Ok(sent) => {
                            self.client_full |= !self.backlog.is_empty();
                            Input::Sent(Side::Client, sent)
                        }
                        Err(Lost) => Input::Closed(Side::Client, End::Reset),
                    }
                }
                Output::Send(Side::Client, _) if !self.backlog.is_empty() => continue,
                Output::Send(Side::Client, bytes) => match self.client.write([bytes, &[]]) {
                    Ok(sent) => {
                        self.client_full = sent < bytes.len();
                        if sent == 0 {
                            continue;
                        }
                        Input::Sent(Side::Client, sent)
                    }
                    Err(Lost) => Input::Closed(Side::Client, End::Reset),
                },
                Output::Send(Side::Upstream, bytes) => {
                    let Upstream::Open(_, socket) = &self.upstream else { continue };
                    match socket.write([bytes, &[]]) {
                        Ok(sent) => {
                            self.upstream_full = sent < bytes.len();
                            if sent == 0 {
                                continue;
                            }
                            Input::Sent(Side::Upstream, sent)
                        }
                        Err(Lost) => Input::Refused,
                    }
                }
                Output::Ask(meta) => {
                    let decision = ask(host, routed_in, |engine| engine.route(&meta, now));
                    if matches!(decision, Decision::Forward(_) | Decision::Refuse(_)) {
                        *routed_in = Some(host.now().since(now));
                    }
                    Input::Routed(decision)
                }
                Output::AskAgain(ticket, why) => {
                    Input::Routed(host.with_engine(|engine| engine.reroute(ticket, why, now)))
                }
                Output::FirstByte(ticket) => {
                    ask(host, routed_in, |engine| engine.first_byte(ticket, now));
                    continue;
                }
                Output::Owns(backend, id) => {
                    host.with_engine(|engine| engine.owns(backend, &id, now));
                    continue;
                }
                Output::Gather(errands, until) => {
                    let errands = Errands::new(host.clone(), errands, until);
                    self.upstream = Upstream::Errands(Box::new(errands));
                    continue;
                }
                Output::Heard(echoes, adapter) => {
                    host.with_engine(|engine| engine.heard(&echoes, adapter, now));
                    continue;
                }
                Output::Settle(ticket, outcome) => {
                    ask(host, routed_in, |engine| engine.finish(ticket, outcome, now));
                    continue;
                }
                Output::Declined(status) => {
                    ask(host, routed_in, |engine| engine.declined(status));
                    continue;
                }
                Output::Shown(text) => {
                    host.with_engine(|engine| engine.show(text, now));
                    continue;
                }
                Output::Reserve(share, bytes) => {
                    Input::Reserved(host.with_engine(|engine| engine.reserve(share, bytes)))
                }
                Output::Unreserve(share) => {
                    host.with_engine(|engine| engine.release(share));
                    continue;
                }
                Output::Connect { backend, spec, fresh } => {
                    let idle = (!fresh).then(|| host.pool().take(backend, now));
                    self.upstream_full = false;
                    match idle.flatten() {
                        Some(socket) => {
                            self.upstream = Upstream::Open(backend, socket);
                            Input::Connected { reused: true }
                        }
                        None => {
                            let connecting = host.connect(&spec.address);
                            self.upstream = Upstream::Connecting(backend, connecting);
                            continue;
                        }
                    }
                }
                Output::Release { reusable } => {
                    let released = core::mem::replace(&mut self.upstream, Upstream::None);
                    if let (Upstream::Open(backend, socket), true) = (released, reusable) {
                        host.pool().put(backend, socket, now);
                    }
                    continue;
                }
                Output::Shutdown => {
                    self.client.shutdown();
                    continue;
                }
                Output::Close { reset } => {
                    if reset {
                        self.client.reset();
                    }
                    return Flow::Break(());
                }
            };
            self.exchange.handle(told, now);
        }
    }

    fn poll_woken(&mut self, cx: &mut Context<'_>) -> Poll<Woken<H::Socket>> {
        let interest = self.exchange.interest();
        // Or a backend that always has something to say would keep a client from being heard.
        if self.client_next && interest.client && self.client.poll_readable(cx).is_ready() {
            return Poll::Ready(Woken::Readable(Side::Client));
        }
        match &mut self.upstream {
            Upstream::Connecting(_, connecting) => {
                if let Poll::Ready(connected) = connecting.as_mut().poll(cx) {
                    return Poll::Ready(Woken::Connected(connected));
                }
            }
            Upstream::Open(_, socket) => {
                if interest.upstream && socket.poll_readable(cx).is_ready() {
                    return Poll::Ready(Woken::Readable(Side::Upstream));
                }
                if self.upstream_full && socket.poll_writable(cx).is_ready() {
                    return Poll::Ready(Woken::Writable(Side::Upstream));
                }
            }
            Upstream::Errands(errands) => {
                if let Poll::Ready(said) = Pin::new(errands).poll(cx) {
                    return Poll::Ready(Woken::Gathered(said));
                }
            }
            Upstream::None => {}
        }
        if interest.client {
            if self.client.poll_readable(cx).is_ready() {
                return Poll::Ready(Woken::Readable(Side::Client));
            }
        } else if interest.client_end {
            if self.client.poll_ended(cx).is_ready() {
                return Poll::Ready(Woken::Ended(End::Closed));
            }
        } else if self.client.poll_failed(cx).is_ready() {
            return Poll::Ready(Woken::Ended(End::Reset));
        }
        if self.client_full && self.client.poll_writable(cx).is_ready() {
            return Poll::Ready(Woken::Writable(Side::Client));
        }
        if self.host.connections().poll_drain(self.place, self.drain, cx).is_ready() {
            return Poll::Ready(Woken::Drained);
        }
        self.timer.poll(cx).map(|()| Woken::Due)
    }

    fn tell(&mut self, woken: Woken<H::Socket>) -> Flow {
        match woken {
            Woken::Connected(connected) => {
                let Upstream::Connecting(backend, _) = self.upstream else {
                    return Flow::Continue(());
                };
                let input = match connected {
                    Ok(socket) => {
                        self.upstream = Upstream::Open(backend, socket);
                        Input::Connected { reused: false }
                    }
                    Err(Unconnected::Ours) => Input::NoSocket,
                    Err(Unconnected::Theirs) => Input::ConnectFailed,
                };
                self.handle(input);
            }
            Woken::Readable(side) => {
                self.client_next = side == Side::Upstream;
                return self.read(side);
            }
            Woken::Gathered(said) => {
                self.upstream = Upstream::None;
                self.handle(Input::Gathered(said));
            }
            Woken::Writable(Side::Client) => self.flush(),
            Woken::Writable(Side::Upstream) => {
                self.upstream_full = false;
                self.handle(Input::Writable(Side::Upstream));
            }
            Woken::Ended(end) => self.handle(Input::Closed(Side::Client, end)),
            Woken::Drained => {
                // A request that is here already is heard before it is told that it is too late.
                if self.exchange.interest().client {
                    self.read(Side::Client)?;
                }
                self.check_drain(self.host.now());
            }
            Woken::Due => {
                self.timer_at = Instant::FAR;
                self.handle(Input::Timeout);
            }
        }
        Flow::Continue(())
    }

    /// Reads a side until it has nothing more, and carries out what follows from each read.
    fn read(&mut self, side: Side) -> Flow {
        for reads in 1..=READS_IN_A_ROW_MAX {
            let socket = match (side, &self.upstream) {
                (Side::Client, _) => &self.client,
                (Side::Upstream, Upstream::Open(_, socket)) => socket,
                (
                    Side::Upstream,
                    Upstream::None | Upstream::Connecting(..) | Upstream::Errands(_),
                ) => break,
            };
            let (bytes, more) = match socket.read() {
                Ok(Read::Nothing) => break,
                Ok(Read::Some { bytes, more }) => (bytes, more),
                Ok(Read::End) => {
                    self.handle(Input::Closed(side, End::Closed));
                    break;
                }
                Err(Lost) => {
                    self.handle(Input::Closed(side, End::Reset));
                    break;
                }
            };
            self.handle(Input::Received(side, &bytes));
            self.carry_out(&bytes)?;
            let interest = self.exchange.interest();
            let wanted = match side {
                Side::Client => interest.client,
                Side::Upstream => interest.upstream,
            };
            if !more || !wanted {
                break;
            }
            self.yields = reads == READS_IN_A_ROW_MAX;
        }
        Flow::Continue(())
    }

    /// Sends what the client left over, and says that there is room.
    fn flush(&mut self) {
        self.client_full = false;
        if self.backlog.is_empty() {
            return self.handle(Input::Writable(Side::Client));
        }
        let input = match self.client.write([&self.backlog, &[]]) {
            Ok(sent) => {
                self.backlog.drain(..sent);
                self.client_full = !self.backlog.is_empty();
                if self.backlog.is_empty() {
                    self.backlog = Vec::new();
                }
                Input::Sent(Side::Client, sent)
            }
            Err(Lost) => Input::Closed(Side::Client, End::Reset),
        };
        self.handle(input);
    }

    fn check_drain(&mut self, now: Instant) {
        let drain = self.host.connections().drain();
        if drain != self.drain {
            self.drain = drain;
            self.exchange.handle(Input::Drain(drain), now);
        }
    }

    /// The exchange's deadline moves with every byte; the timer is touched only when it must ring
    /// earlier than it would.
    fn set_timer(&mut self) {
        if let Some(wake) = self.exchange.poll_timeout()
            && wake.at < self.timer_at
        {
            self.timer.set(wake.at);
            self.timer_at = wake.at;
        }
    }
}

/// Nothing in it is pinned: what it waits for is boxed, or asked anew.
impl<H: Host> Unpin for Carrier<H> {}

impl<H: Host> Future for Carrier<H> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if !self.waits {
                if self.carry_out(&[]).is_break() {
                    return Poll::Ready(());
                }
                self.set_timer();
                self.waits = true;
                if core::mem::take(&mut self.yields) {
                    self.host.next_turn(cx);
                    return Poll::Pending;
                }
            }
            let woken = ready!(self.poll_woken(cx));
            self.waits = false;
            if self.tell(woken).is_break() {
                return Poll::Ready(());
            }
        }
    }
}

impl<H: Host> Drop for Carrier<H> {
    /// However the task ends, the engine gets back what the exchange holds.
    fn drop(&mut self) {
        let now = self.host.now();
        if self.exchange.ends_by_close() {
            self.client.reset();
        }
        let (ticket, share) = self.exchange.abandon();
        if let Some((ticket, outcome)) = ticket {
            self.host.with_engine(|engine| engine.finish(ticket, outcome, now));
        }
        if share.bytes > 0 {
            self.host.with_engine(|engine| engine.release(share));
        }
        self.host.connections().leave(self.place);
    }
}

/// Asks the engine, and tells it how long it took the last time: no call is made for that alone.
fn ask<H: Host, R>(
    host: &H,
    routed_in: &mut Option<Duration>,
    visit: impl FnOnce(&mut Engine) -> R,
) -> R {
    let routed_in = routed_in.take();
    host.with_engine(|engine| {
        if let Some(time) = routed_in {
            engine.routed(time);
        }
        visit(engine)
    })
}

/// Sends both slices in one call and keeps what did not leave; says how much did.
fn write_or_keep<S: Socket>(
    socket: &S,
    slices: [&[u8]; 2],
    backlog: &mut Vec<u8>,
) -> Result<usize, Lost> {
    let sent = if backlog.is_empty() { socket.write(slices)? } else { 0 };
    let mut skip = sent;
    for slice in slices {
        let skipped = skip.min(slice.len());
        backlog.extend_from_slice(&slice[skipped..]);
        skip -= skipped;
    }
    Ok(sent)
}
