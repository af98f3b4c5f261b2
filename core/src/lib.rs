//! The deciding half of vLLM Proxy, without any I/O.
//!
//! Two state machines know everything and can do nothing: the [`Engine`](engine::Engine) decides,
//! an [`Exchange`](exchange::Exchange) carries one client connection. A runtime can do everything
//! and decides nothing. Between them, a [`Carrier`](carry::Carrier) does on the sockets of whatever
//! runtime what an exchange wants. A process has one engine, behind a lock that is held for
//! microseconds, and some cores: a thread, an executor and a listener each.
//!
//! ```text
//!           bytes, now                 questions, answers
//!  client <============> Exchange <=====================> Engine <---> prober, replicas
//!  backend <===========>    (one a connection)               (one a process)
//!                     \______________ Carrier _____________/
//!                                        |  sockets, timers, wake-ups
//!                                     runtime
//! ```
//!
//! # The way of a request
//!
//! listener -> [`exchange`]: the head is parsed ([`wire::head`]), the body is followed to its end
//! ([`wire::body`]) and scanned ([`wire::scan`]: what it asks for, and its prompt's
//! [`Fingerprint`](route::Fingerprint)) -> [`engine`]: which backends serve the model, are up and
//! not drained ([`fleet`]), which of them has the least work in hand ([`route`]); that is a plan
//! first (`engine::plan`), and a [`Ticket`](route::Ticket) once it is carried out -> the head is
//! made anew ([`wire::forward`]) and goes to the backend with the body in one call -> the answer's
//! head is held until the first byte of its body, then everything passes as it comes, and how it
//! ended is [counted](tally::Counts).
//!
//! What all backends are to hear goes to each as an errand of its own, and [`wire::merge`] makes
//! one answer of theirs. Where backend and client switch to a websocket, bytes pass both ways from
//! then on. One that names its model in its first message ([`wire::websocket`]) is accepted here if
//! that matters.
//!
//! # What lives where
//!
//! - [`time`], [`rng`]: an `Instant` without `now()`, chance without entropy.
//! - [`config`]: plain data, valid once constructed; what a listener [shows](config::Access) is a
//!   part of it.
//! - [`tally`]: what is counted of requests, as plain data that is added to: counts, histograms,
//!   the last minute, and the words by which they are told apart.
//! - [`wire`]: bytes to values and back. Knows nothing of backends.
//! - [`fleet`]: what we know of the backends. Does not choose. Each is told of by a
//!   [spec](fleet::BackendSpec) with its [labels](fleet::Labels); `drain` knows who is to get no
//!   new requests, `turns` whose turn it is where weights differ, `renumber` who is who when the
//!   list of upstreams changes, `departed` what those had counted that are gone.
//! - [`route`]: how we choose, and the words in which it is asked, answered and
//!   [explained](route::Explained).
//! - [`engine`]: the front door of the deciding half. `choose` makes a `plan` and changes nothing;
//!   `explain` makes the same one and drops it; `count` and `drain` own what is counted when, and
//!   what operators order; `status` copies numbers.
//! - [`exchange`]: the life of one client connection. `watch` paces an answer that never ends,
//!   `explaining` knows who is told why, `explained` words it, `ending` gives up what was held.
//! - [`carry`]: what drives it, alike in every runtime, and what a runtime is asked for.
//!
//! # What operators see and say
//!
//! Everything below `/proxy/` is a row of the table of [routes](wire::routes) like any other, and
//! an exchange serves it as any request. A listener's [`Access`](config::Access) says what of
//! it is there: what is read, what acts, what explains. What is not shown is a path that some
//! backend may know.
//!
//! - **Reads.** There may be thousands of backends, and the lock is held for microseconds: the
//!   engine copies numbers into plain data, and the exchange makes text of them without the lock:
//!   Prometheus's ([`wire::facts`]), JSON ([`wire::status`]), and the same once a second as events
//!   for the page ([`wire::page`]), one event under way at most.
//! - **Acts.** [`Act`](route::Act)s of operators go to the engine, which says how it stands then
//!   ([`wire::drained`]). A page of elsewhere may not have a browser ask for one
//!   ([`wire::origin`]).
//! - **Explains.** A client that may ask is told by headers which way its request went
//!   ([`wire::way`]). An operator is told what a request [would come to](route::Explained), with
//!   every term of every cost.
//!
//! # Which backends there are
//!
//! Whoever looks names up tells the whole list, every time
//! ([`Input::Discovered`](engine::Input::Discovered)); the fleet finds out what is new and what is
//! gone, and what is gone leaves when its last ticket is settled. When the operator names other
//! upstreams, their numbers change, so [`Input::Upstreams`](engine::Input::Upstreams) says who had
//! which before. What belongs to an address rather than to a process outlives an absence: that it
//! is drained, and for a while what it counted.
//!
//! # Several proxies
//!
//! Engines of several processes decide as one, since each tells the others what it does. The core
//! says what is told and what becomes of it; on which way words travel is the runtime's affair
//! (the product's is Redis). There are five parts to it:
//!
//! - **Updates.** What changes is gathered, and [`poll_update`](engine::Engine::poll_update) makes
//!   an [`Update`](fleet::Update) of it whenever somebody comes for it, every few milliseconds at
//!   most: what is in hand at each backend, as it stands then; chunks that were placed; losses of
//!   caches; stored responses; how often operators had each drained or undrained; what answers
//!   taught. It goes to whoever listens at that moment, as a [`Word`](fleet::Word), and is kept
//!   nowhere. Others are told by [`Input::Heard`](engine::Input::Heard).
//! - **Beats and leases.** Every second each says again what it has in hand, or at least that it
//!   lives. Who is silent for 3 s is forgotten, with all that.
//! - **Snapshots.** Updates are numbered. Who misses some, or was out of hearing, asks
//!   [one that lives](engine::Engine::peer) by a [`Word`](fleet::Word), and is told everything in
//!   [pages](engine::Engine::snapshot); who may not have been heard tells everything unasked.
//! - **Logs.** What was placed where, which responses are stored, and how backends
//!   [stand](engine::Engine::stand) and were [drained](engine::Engine::drains), is also kept beside
//!   the way, for one that starts when nobody is there to ask; as much as
//!   [their caches hold](engine::Engine::kept_chunks). It is heard like a snapshot.
//! - **The link.** [`Input::Link`](engine::Input::Link) says whether what is told is heard. While
//!   it is [lost](engine::Link::Lost) though there are others, an engine decides alone: among
//!   backends that it would find about as good, a hash of how the prompt begins chooses, the same
//!   in every proxy.
//!
//! Backends are known to all by a [hash of their address](fleet::BackendName). Whether one is up
//! is not told: each sees that for itself.
//!
//! # Driving an exchange
//!
//! Tell it what happened, carry out all that it wants done, wait for what it is interested in. A
//! [`Carrier`](carry::Carrier) does that over sockets; by hand it looks so:
//!
//! ```
//! use std::sync::Arc;
//! use vllm_proxy_core::config::{Config, Limits};
//! use vllm_proxy_core::engine::Engine;
//! use vllm_proxy_core::exchange::{Exchange, Input, Output, Side};
//! use vllm_proxy_core::time::Instant;
//!
//! let now = Instant::START;
//! let mut engine = Engine::new(Config::default(), 7, now);
//! let mut exchange = Exchange::new(Arc::new(Limits::default()), now);
//! let mut sent = Vec::new();
//!
//! exchange.handle(Input::Received(Side::Client, b"GET /health HTTP/1.1\r\n\r\n"), now);
//! while let Some(output) = exchange.poll_output() {
//!     let told = match output {
//!         Output::Send(Side::Client, bytes) => {
//!             sent.extend_from_slice(bytes);
//!             Input::Sent(Side::Client, bytes.len())
//!         }
//!         Output::Ask(request) => Input::Routed(engine.route(&request, now)),
//!         _ => continue,
//!     };
//!     exchange.handle(told, now);
//! }
//! assert!(sent.starts_with(b"HTTP/1.1 400 Bad Request\r\n"), "the Host is missing");
//! ```
//!
//! # Invariants
//!
//! **Invariant: no I/O.** The crate is `no_std` with `alloc` and forbids unsafe code: it cannot
//! name a socket, a clock or a thread, and the compiler says so: [`carry`] gets them by traits.
//! There is no `async fn`, no `Rc` and no lock: `&mut self` is the lock, and what connections of
//! one thread share lies in cells.
//!
//! **Invariant: the same inputs give the same outputs,** on every machine: time is an argument,
//! chance comes from a seed, hash maps are not iterated, costs are integers.
//!
//! **Invariant: a [`Ticket`](route::Ticket) is settled exactly once.** It is not `Clone`, and
//! dropping an open one fails a debug assertion, so that load cannot leak. However a connection's
//! task ends, [`Carrier`](carry::Carrier) settles what
//! [`Exchange::abandon`](exchange::Exchange::abandon) gives back.
//!
//! **Invariant: a choice is made before anything follows from it,** so that whoever wants to know
//! [what a request would come to](route::Explained) is told by the same code, and nothing comes of
//! the question.
//!
//! **Invariant: only the engine tries again,** and never after a byte of an answer's body reached
//! the client. A [`Failure`](route::Failure) says how far the request got.
//!
//! **Invariant: bytes belong to the runtime.** The core borrows what was read, and
//! [`Relay`](exchange::Output::Relay) says which part of it goes on. It keeps requests, within
//! [`Limits`](config::Limits); of an answer it keeps what is listed in [`exchange`].
//!
//! **Invariant: what other proxies tell is rumour.** [`Update`](fleet::Update)s that come late,
//! twice, in another order or not at all may worsen a choice and never fail a request. They
//! introduce no backend and take none away. Whatever bytes came for a [`Word`](fleet::Word), no
//! number in it is taken so far that those after it no longer count.
//!
//! **Invariant: what is told are states, never changes of states.** The later one counts, by its
//! number, its generation or its stamp. So who heard the same, in whatever order and however often,
//! knows the same, and who heard a snapshot knows as much as its teller;
//! [`shared_hash`](engine::Engine::shared_hash) says whether it is so.
//!
//! **Invariant: nobody waits for another proxy.** To decide, an engine needs to hear nothing. What
//! nobody comes for is gathered within bounds, and then the oldest is dropped and
//! [counted](engine::Company::dropped).
//!
//! **Invariant: heads are sent from what was parsed,** never copied; what we do not understand we
//! never forward.
//!
//! **Invariant: everything has a limit,** in [`Limits`](config::Limits) or as a constant beside
//! its user, with the reason for it.
//!
//! **Invariant: imports point one way:** [`wire`], [`fleet`], [`route`], [`engine`]; [`exchange`]
//! beside them sees only `wire` and the words of `route`; [`carry`] brings both together. The words
//! of `route` (who may answer, why not, what a prompt is, what an answer cost) are plain data that
//! what reads and writes them in `wire` names, too.

#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod carry;
pub mod config;
pub mod engine;
pub mod exchange;
pub mod fleet;
pub mod rng;
pub mod route;
pub mod tally;
pub mod time;
pub mod wire;
