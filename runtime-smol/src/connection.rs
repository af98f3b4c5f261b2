//! Drives one [`Exchange`]: carries out what it wants done, waits for whatever it is interested
//! in, tells it what happened, again.
//!
//! Knows sockets and outputs; decides nothing. No write is awaited alone: else an answer that
//! comes while the request is still being sent would not be seen, nor a client that leaves.

use crate::Core;
use crate::errands;
use crate::net::{self, Socket};
use crate::reactor::Timer;
use event_listener::EventListener;
use std::future::Future;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use vllm_proxy_core::exchange::{Drain, End, Exchange, Input, Output, Said, Side};
use vllm_proxy_core::fleet::BackendId;
use vllm_proxy_core::time::Instant;

/// Full reads of one side in a row, before other connections have their turn.
const READS_IN_A_ROW_MAX: usize = 8;

/// The connection to a backend.
enum Upstream {
    None,
    Connecting(BackendId, Pin<Box<dyn Future<Output = io::Result<Socket>>>>),
    Open(BackendId, Socket),
    /// Several at once.
    Errands(Pin<Box<dyn Future<Output = Vec<Said>>>>),
}

/// What ended a wait.
enum Woken {
    Connected(io::Result<Socket>),
    Gathered(Vec<Said>),
    Readable(Side),
    Writable(Side),
    /// The client will send nothing more, while nothing is read of it.
    Ended(End),
    Drained,
    Due,
}

/// One client connection and what belongs to it.
struct Connection {
    core: Rc<Core>,
    exchange: Exchange,
    client: Socket,
    upstream: Upstream,
    /// What the exchange relayed and the client has not taken yet.
    backlog: Vec<u8>,
    /// Sides that took no more at the last write.
    client_full: bool,
    upstream_full: bool,
    drain: Drain,
    drained: EventListener,
    timer: Timer,
    timer_at: Instant,
    /// It read as much in a row as it may: now it is the others' turn.
    yields: bool,
    /// The backend was read last.
    client_next: bool,
}

/// Serves a client until its connection is over.
pub(crate) async fn drive(core: Rc<Core>, client: Socket) {
    let now = core.clock.now();
    let exchange = Exchange::new(core.limits.clone(), now);
    let drained = core.drained.listen();
    let mut connection = Connection {
        exchange,
        client,
        upstream: Upstream::None,
        backlog: Vec::new(),
        client_full: false,
        upstream_full: false,
        drain: Drain::Running,
        drained,
        timer: core.reactor.timer(),
        timer_at: Instant::FAR,
        yields: false,
        client_next: false,
        core,
    };
    connection.check_drain(now);
    while connection.carry_out(&[]).is_continue() {
        connection.set_timer();
        if std::mem::take(&mut connection.yields) {
            connection.core.reactor.next_turn().await;
        }
        let woken = poll_fn(|cx| connection.poll_woken(cx)).await;
        if connection.tell(woken).is_break() {
            break;
        }
    }
}

type Flow = std::ops::ControlFlow<()>;

impl Connection {
    fn now(&self) -> Instant {
        self.core.clock.now()
    }

    fn handle(&mut self, input: Input<'_>) {
        let now = self.now();
        self.exchange.handle(input, now);
    }

    /// Carries out all that the exchange wants done. `read` is what it was last told.
    fn carry_out(&mut self, read: &[u8]) -> Flow {
        let core = self.core.clone();
        loop {
            let now = core.clock.now();
            let Some(output) = self.exchange.poll_output() else { return Flow::Continue(()) };
            let told = match output {
                Output::Relay { before, read: part } => {
                    let slices = [before, &read[part]];
                    match write_or_keep(&self.client, slices, &mut self.backlog) {
                        Ok(sent) => {
                            self.client_full |= !self.backlog.is_empty();
                            Input::Sent(Side::Client, sent)
                        }
                        Err(_) => Input::Closed(Side::Client, End::Reset),
                    }
                }
                Output::Send(Side::Client, _) if !self.backlog.is_empty() => continue,
                Output::Send(Side::Client, bytes) => {
                    match self.client.write(&[IoSlice::new(bytes)]) {
                        Ok(Some(sent)) => {
                            self.client_full = sent < bytes.len();
                            Input::Sent(Side::Client, sent)
                        }
                        Ok(None) => {
                            self.client_full = true;
                            continue;
                        }
                        Err(_) => Input::Closed(Side::Client, End::Reset),
                    }
                }
                Output::Send(Side::Upstream, bytes) => {
                    let Upstream::Open(_, socket) = &self.upstream else { continue };
                    match socket.write(&[IoSlice::new(bytes)]) {
                        Ok(Some(sent)) => {
                            self.upstream_full = sent < bytes.len();
                            Input::Sent(Side::Upstream, sent)
                        }
                        Ok(None) => {
                            self.upstream_full = true;
                            continue;
                        }
                        Err(_) => Input::Refused,
                    }
                }
                Output::Ask(meta) => {
                    Input::Routed(core.with_engine(|engine| engine.route(&meta, now)))
                }
                Output::AskAgain(ticket, why) => {
                    Input::Routed(core.with_engine(|engine| engine.reroute(ticket, why, now)))
                }
                Output::FirstByte(ticket) => {
                    core.with_engine(|engine| engine.first_byte(ticket, now));
                    continue;
                }
                Output::Owns(backend, id) => {
                    core.with_engine(|engine| engine.owns(backend, &id, now));
                    continue;
                }
                Output::Gather(errands, until) => {
                    let errands = errands::run(core.clone(), errands, until);
                    self.upstream = Upstream::Errands(Box::pin(errands));
                    continue;
                }
                Output::Heard(echoes, adapter) => {
                    core.with_engine(|engine| engine.heard(&echoes, adapter, now));
                    continue;
                }
                Output::Settle(ticket, outcome) => {
                    core.with_engine(|engine| engine.finish(ticket, outcome, now));
                    continue;
                }
                Output::Reserve(share, bytes) => {
                    Input::Reserved(core.with_engine(|engine| engine.reserve(share, bytes)))
                }
                Output::Unreserve(share) => {
                    core.with_engine(|engine| engine.release(share));
                    continue;
                }
                Output::Connect { backend, spec, fresh } => {
                    let idle = (!fresh).then(|| core.pool.take(backend, std::time::Instant::now()));
                    self.upstream_full = false;
                    match idle.flatten() {
                        Some(socket) => {
                            self.upstream = Upstream::Open(backend, socket);
                            Input::Connected { reused: true }
                        }
                        None => {
                            let connecting =
                                Box::pin(net::connect(core.reactor.clone(), spec.address.clone()));
                            self.upstream = Upstream::Connecting(backend, connecting);
                            continue;
                        }
                    }
                }
                Output::Release { reusable } => {
                    let released = std::mem::replace(&mut self.upstream, Upstream::None);
                    if let (Upstream::Open(backend, socket), true) = (released, reusable) {
                        core.pool.put(backend, socket, std::time::Instant::now());
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

    fn poll_woken(&mut self, cx: &mut Context<'_>) -> Poll<Woken> {
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
                if let Poll::Ready(said) = errands.as_mut().poll(cx) {
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
        if Pin::new(&mut self.drained).poll(cx).is_ready() {
            return Poll::Ready(Woken::Drained);
        }
        if Pin::new(&mut self.timer).poll(cx).is_ready() {
            return Poll::Ready(Woken::Due);
        }
        Poll::Pending
    }

    fn tell(&mut self, woken: Woken) -> Flow {
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
                    Err(error) if net::is_ours(&error) => Input::NoSocket,
                    Err(_) => Input::ConnectFailed,
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
                self.drained = self.core.drained.listen();
                // A request that is here already is heard before it is told that it is too late.
                if self.exchange.interest().client {
                    self.read(Side::Client)?;
                }
                self.check_drain(self.now());
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
        let core = self.core.clone();
        let mut buffer = core.buffer.borrow_mut();
        for reads in 1..=READS_IN_A_ROW_MAX {
            let socket = match (side, &self.upstream) {
                (Side::Client, _) => &self.client,
                (Side::Upstream, Upstream::Open(_, socket)) => socket,
                (
                    Side::Upstream,
                    Upstream::None | Upstream::Connecting(..) | Upstream::Errands(_),
                ) => break,
            };
            let bytes = match socket.read(&mut buffer) {
                Ok(None) => break,
                Ok(Some(0)) => {
                    self.handle(Input::Closed(side, End::Closed));
                    break;
                }
                Err(_) => {
                    self.handle(Input::Closed(side, End::Reset));
                    break;
                }
                Ok(Some(bytes)) => bytes,
            };
            self.handle(Input::Received(side, &buffer[..bytes]));
            self.carry_out(&buffer[..bytes])?;
            let interest = self.exchange.interest();
            let wanted = match side {
                Side::Client => interest.client,
                Side::Upstream => interest.upstream,
            };
            // A short read took all there was.
            if bytes < buffer.len() || !wanted {
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
        let input = match self.client.write(&[IoSlice::new(&self.backlog)]) {
            Ok(sent) => {
                let sent = sent.unwrap_or(0);
                self.backlog.drain(..sent);
                self.client_full = !self.backlog.is_empty();
                if self.backlog.is_empty() {
                    self.backlog = Vec::new();
                }
                Input::Sent(Side::Client, sent)
            }
            Err(_) => Input::Closed(Side::Client, End::Reset),
        };
        self.handle(input);
    }

    fn check_drain(&mut self, now: Instant) {
        let drain = self.core.drain.get();
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
            && let Some(at) = self.core.clock.at(wake.at)
        {
            self.timer.set(at);
            self.timer_at = wake.at;
        }
    }
}

impl Drop for Connection {
    /// However the task ends, the engine gets back what the exchange holds.
    fn drop(&mut self) {
        let now = self.now();
        if self.exchange.ends_by_close() {
            self.client.reset();
        }
        let (ticket, share) = self.exchange.abandon();
        if let Some((ticket, outcome)) = ticket {
            self.core.with_engine(|engine| engine.finish(ticket, outcome, now));
        }
        if share.bytes > 0 {
            self.core.with_engine(|engine| engine.release(share));
        }
        self.core.open.set(self.core.open.get() - 1);
    }
}

/// Sends both slices in one call and keeps what did not leave; says how much did.
fn write_or_keep(socket: &Socket, slices: [&[u8]; 2], backlog: &mut Vec<u8>) -> io::Result<usize> {
    let mut sent = 0;
    if backlog.is_empty() {
        let [before, read] = slices;
        sent = if before.is_empty() {
            socket.write(&[IoSlice::new(read)])?
        } else {
            socket.write(&[IoSlice::new(before), IoSlice::new(read)])?
        }
        .unwrap_or(0);
    }
    let mut skip = sent;
    for slice in slices {
        let skipped = skip.min(slice.len());
        backlog.extend_from_slice(&slice[skipped..]);
        skip -= skipped;
    }
    Ok(sent)
}
