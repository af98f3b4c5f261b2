//! A thread without a runtime: sockets that do what the test says, a clock that it sets.

use crate::carry::{
    Carrier, Connecting, Connections, Host, Lost, Pool, Read, Socket, Timer, Unconnected,
};
use crate::config::Limits;
use crate::engine::Engine;
use crate::exchange::tests::harness::{lists, unprobed};
use crate::exchange::tests::texts::shown;
use crate::fleet::Address;
use crate::route::Share;
use crate::time::{Duration, Instant};
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use core::cell::{Cell, RefCell};
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};
use std::boxed::Box;
use std::format;
use std::rc::Rc;
use std::string::String;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Wake, Waker};
use std::vec::Vec;

/// What the pieces of a request's body may take together.
pub(super) const BODY_MEMORY: u64 = 64;

/// The other end of a socket, in the test's hand.
#[derive(Debug)]
pub(super) struct Peer {
    /// What it said and nobody read yet.
    pub(super) said: RefCell<VecDeque<u8>>,
    /// How much of that one read brings.
    pub(super) piece: Cell<usize>,
    pub(super) ended: Cell<bool>,
    pub(super) lost: Cell<bool>,
    /// What it still takes.
    pub(super) room: Cell<usize>,
    /// Writes fail, though reads do not.
    pub(super) deaf: Cell<bool>,
    /// All that it was sent.
    pub(super) heard: RefCell<Vec<u8>>,
    pub(super) is_shut: Cell<bool>,
    pub(super) is_reset: Cell<bool>,
    pub(super) is_closed: Cell<bool>,
}

impl Peer {
    fn new() -> Rc<Self> {
        Rc::new(Self {
            said: RefCell::default(),
            piece: Cell::new(usize::MAX),
            ended: Cell::default(),
            lost: Cell::default(),
            room: Cell::new(usize::MAX),
            deaf: Cell::default(),
            heard: RefCell::default(),
            is_shut: Cell::default(),
            is_reset: Cell::default(),
            is_closed: Cell::default(),
        })
    }

    pub(super) fn says(&self, bytes: impl AsRef<[u8]>) {
        self.said.borrow_mut().extend(bytes.as_ref());
    }

    pub(super) fn heard(&self) -> String {
        shown(&*self.heard.borrow())
    }

    fn readable(&self) -> bool {
        !self.said.borrow().is_empty() || self.ended.get() || self.lost.get()
    }
}

/// The end that is carried over.
#[derive(Debug)]
pub(super) struct Plug(Rc<Peer>);

impl Drop for Plug {
    fn drop(&mut self) {
        self.0.is_closed.set(true);
    }
}

const fn when(ready: bool) -> Poll<()> {
    if ready { Poll::Ready(()) } else { Poll::Pending }
}

impl Socket for Plug {
    type Bytes = Box<[u8]>;

    fn read(&self) -> Result<Read<Box<[u8]>>, Lost> {
        let Peer { said, piece, ended, lost, .. } = &*self.0;
        let mut said = said.borrow_mut();
        if lost.get() {
            return Err(Lost);
        }
        let len = said.len().min(piece.get());
        if len > 0 {
            let bytes = said.drain(..len).collect();
            return Ok(Read::Some { bytes, more: len == piece.get() });
        }
        Ok(if ended.get() { Read::End } else { Read::Nothing })
    }

    fn write(&self, slices: [&[u8]; 2]) -> Result<usize, Lost> {
        let Peer { room, deaf, lost, heard, .. } = &*self.0;
        let given = slices.concat();
        assert!(!given.is_empty(), "a write of nothing");
        if deaf.get() || lost.get() {
            return Err(Lost);
        }
        let taken = given.len().min(room.get());
        room.set(room.get() - taken);
        heard.borrow_mut().extend_from_slice(&given[..taken]);
        Ok(taken)
    }

    fn poll_readable(&self, _: &Context<'_>) -> Poll<()> {
        when(self.0.readable())
    }

    fn poll_ended(&self, _: &Context<'_>) -> Poll<()> {
        when(self.0.ended.get() || self.0.lost.get())
    }

    fn poll_failed(&self, _: &Context<'_>) -> Poll<()> {
        when(self.0.lost.get())
    }

    fn poll_writable(&self, _: &Context<'_>) -> Poll<()> {
        when(self.0.room.get() > 0 || self.0.deaf.get() || self.0.lost.get())
    }

    fn is_silent(&self) -> bool {
        !self.0.readable()
    }

    fn shutdown(&self) {
        self.0.is_shut.set(true);
    }

    fn reset(&self) {
        self.0.is_reset.set(true);
    }
}

/// What becomes of a connection that is being made, once the test says so.
type Dialled = Rc<RefCell<Option<Result<Plug, Unconnected>>>>;

#[derive(Debug)]
struct Dial(Dialled);

impl Future for Dial {
    type Output = Result<Plug, Unconnected>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.borrow_mut().take().map_or(Poll::Pending, Poll::Ready)
    }
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) now: Cell<Instant>,
    pub(super) engine: RefCell<Engine>,
    pub(super) pool: Pool<Plug>,
    pub(super) connections: Connections,
    limits: Arc<Limits>,
    /// Connections that are being made, in order.
    dials: RefCell<VecDeque<(String, Dialled)>>,
    /// How often somebody let all others go first.
    pub(super) turns: Cell<usize>,
}

#[derive(Clone, Debug)]
pub(super) struct Thread(pub(super) Rc<World>);

impl Host for Thread {
    type Socket = Plug;
    type Timer = Alarm;

    fn now(&self) -> Instant {
        self.0.now.get()
    }

    fn with_engine<R>(&self, visit: impl FnOnce(&mut Engine) -> R) -> R {
        let mut engine = self.0.engine.borrow_mut();
        let result = visit(&mut engine);
        while engine.poll_output().is_some() {}
        result
    }

    fn connect(&self, address: &Address) -> Connecting<Plug> {
        let dialled = Dialled::default();
        self.0.dials.borrow_mut().push_back((format!("{address}"), dialled.clone()));
        Box::pin(Dial(dialled))
    }

    fn timer(&self) -> Alarm {
        Alarm { world: self.0.clone(), at: None }
    }

    fn next_turn(&self, _: &Context<'_>) {
        self.0.turns.set(self.0.turns.get() + 1);
    }

    fn pool(&self) -> &Pool<Plug> {
        &self.0.pool
    }

    fn connections(&self) -> &Connections {
        &self.0.connections
    }

    fn limits(&self) -> &Arc<Limits> {
        &self.0.limits
    }
}

#[derive(Debug)]
pub(super) struct Alarm {
    world: Rc<World>,
    at: Option<Instant>,
}

impl Timer for Alarm {
    fn set(&mut self, at: Instant) {
        self.at = Some(at);
    }

    fn poll(&mut self, _: &Context<'_>) -> Poll<()> {
        let rings = self.at.is_some_and(|at| at <= self.world.now.get());
        if rings {
            self.at = None;
        }
        when(rings)
    }
}

/// Counts how often somebody was woken.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicUsize);

impl Count {
    pub(super) fn so_far(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// One client's connection on a thread of its own.
pub(super) struct Scene {
    pub(super) world: Rc<World>,
    pub(super) client: Rc<Peer>,
    pub(super) woken: Arc<Count>,
    carrier: Option<Carrier<Thread>>,
}

impl Scene {
    /// So many backends of the model `m`, chosen in turn.
    pub(super) fn new(backends: u32) -> Self {
        let now = Instant::START + Duration::from_secs(1_000);
        let mut engine = unprobed(backends, BODY_MEMORY, now);
        for id in 0..backends {
            lists(&mut engine, id, "m", now);
        }
        let world = Rc::new(World {
            now: Cell::new(now),
            engine: RefCell::new(engine),
            pool: Pool::default(),
            connections: Connections::default(),
            limits: Arc::default(),
            dials: RefCell::default(),
            turns: Cell::default(),
        });
        let client = Peer::new();
        let carrier = Carrier::new(Thread(world.clone()), Plug(client.clone()));
        let mut scene = Self { world, client, woken: Arc::default(), carrier: Some(carrier) };
        scene.run();
        scene
    }

    /// Lets it run until it waits.
    pub(super) fn run(&mut self) {
        let waker = Waker::from(self.woken.clone());
        for _ in 0..100_000 {
            let Some(carrier) = &mut self.carrier else { return };
            let turns = self.world.turns.get();
            match Pin::new(carrier).poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(()) => self.leave(),
                Poll::Pending if self.world.turns.get() == turns => return,
                Poll::Pending => {}
            }
        }
        panic!("it never waits");
    }

    pub(super) fn client_says(&mut self, bytes: impl AsRef<[u8]>) {
        self.client.says(bytes);
        self.run();
    }

    /// A peer takes as much at a time as it is given room for, until nothing is left for it.
    pub(super) fn flow(&mut self, peer: &Peer, room: usize) {
        loop {
            let before = peer.heard.borrow().len();
            peer.room.set(room);
            self.run();
            if peer.heard.borrow().len() == before {
                return;
            }
        }
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.world.now.set(self.world.now.get() + time);
        self.run();
    }

    /// Makes the first connection that is being made, and says to whom.
    #[track_caller]
    pub(super) fn connect(&mut self) -> (String, Rc<Peer>) {
        let peer = Peer::new();
        let address = self.dialled(Ok(Plug(peer.clone())));
        (address, peer)
    }

    /// The same, with a peer that takes nothing yet.
    #[track_caller]
    pub(super) fn connect_full(&mut self) -> (String, Rc<Peer>) {
        let peer = Peer::new();
        peer.room.set(0);
        let address = self.dialled(Ok(Plug(peer.clone())));
        (address, peer)
    }

    #[track_caller]
    pub(super) fn fail(&mut self, why: Unconnected) -> String {
        self.dialled(Err(why))
    }

    #[track_caller]
    fn dialled(&mut self, result: Result<Plug, Unconnected>) -> String {
        let first = self.world.dials.borrow_mut().pop_front();
        let (address, dialled) = first.expect("nobody asked for a connection");
        *dialled.borrow_mut() = Some(result);
        self.run();
        address
    }

    /// Connections that are still waited for.
    pub(super) fn dialling(&self) -> usize {
        let dials = self.world.dials.borrow();
        dials.iter().filter(|(_, dialled)| Rc::strong_count(dialled) > 1).count()
    }

    pub(super) fn is_over(&self) -> bool {
        self.carrier.is_none()
    }

    /// The task is dropped.
    pub(super) fn leave(&mut self) {
        self.carrier = None;
    }

    pub(super) fn in_flight(&self) -> u32 {
        let engine = self.world.engine.borrow();
        engine.views(self.world.now.get()).map(|view| view.in_hand.in_flight).sum()
    }

    /// Whether somebody holds bytes of the budget of bodies.
    pub(super) fn reserved(&self) -> bool {
        let mut engine = self.world.engine.borrow_mut();
        match engine.reserve(Share::default(), BODY_MEMORY) {
            Some(share) => {
                engine.release(share);
                false
            }
            None => true,
        }
    }

    /// Nothing is left of it.
    #[track_caller]
    pub(super) fn nothing_held(&self) {
        assert!(self.is_over() && self.client.is_closed.get(), "it is not over");
        assert_eq!(self.in_flight(), 0, "a ticket");
        assert!(!self.reserved(), "bytes of a body");
        assert_eq!(self.world.connections.open(), 0, "a place");
        assert_eq!(self.dialling(), 0, "a connection that is being made");
    }
}
