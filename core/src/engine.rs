//! Engine: the front door of the deciding half. It owns the fleet and answers requests.
//!
//! Does not know bytes of HTTP, sockets, clocks or threads: facts and `now` go in, decisions and
//! orders come out. After every call, drain [`Engine::poll_output`]; now and then, where there are
//! other proxies, [`Engine::poll_update`].

mod apart;
mod choose;
mod count;
mod drain;
mod explain;
mod learn;
mod plan;
mod several;
mod share;
mod shown;
mod status;
#[cfg(test)]
mod tests;
mod view;
mod way;

pub use view::View;

pub use share::{Company, Page};
pub use way::{Link, ReplicaReport};

use crate::config::{Config, Policy};
use crate::fleet::{
    BackendId, BackendSpec, Fleet, Matches, PrefixIndex, ProxyId, Update, Upstream,
};
use crate::route::{
    Decision, Failure, Held, KNOWLEDGE_WAIT, Next, Outcome, Pool, Reason, Refusal, RequestMeta,
    Share, Ticket, Who,
};
use crate::tally::Totals;
use crate::time::{Duration, Instant, Wake};
use crate::wire::answers::Answer;
use crate::wire::page;
use crate::wire::probe::{Probe, ProbeError};
use crate::wire::status::Waits;
use alloc::borrow::ToOwned;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use log::debug;
use plan::{Seen, Verdict};
use share::Sharing;
use shown::Shown;

/// How soon a request that waits for knowledge asks again. Far below what a person or a health
/// check notices, and 2 s of it are a hundred calls.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// What the engine hears.
#[derive(Debug)]
pub enum Input<'a> {
    /// The whole list of backends, as the upstreams' names resolve now. The first upstream's come
    /// first. What is new is probed; what is missing leaves when its last ticket is settled.
    Discovered(&'a [BackendSpec]),
    /// The operator names other upstreams, in this order, and these are the backends of all of
    /// them, as above. Numbers change: who stays says by [`Upstream::was`] which it had.
    Upstreams {
        /// Every upstream there is now.
        upstreams: &'a [Upstream],
        /// The backends, with the new numbers.
        backends: &'a [BackendSpec],
    },
    /// An answer to [`Output::Probe`].
    Probed(BackendId, Result<Probe, ProbeError>),
    /// Another proxy tells something. What it has in hand counts for 3 s from its last word on.
    Heard(&'a Update),
    /// How it stands with the way to other proxies.
    Link(Link),
    /// What was seen of that way; the last one holds.
    Replica(ReplicaReport),
    /// So many entries of the log were never written since the process began.
    LogDropped(u64),
    /// The process was told to stop: `/health` says 503 from now on.
    Drain,
    /// A deadline of [`Engine::poll_timeout`] may have passed.
    Timeout,
}

/// What the engine wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Ask this backend how it is, then say [`Input::Probed`], whatever comes of it.
    Probe(BackendId),
    /// This backend is gone: idle connections to it may be closed.
    Forget(BackendId),
    /// This backend lacks an adapter that clients have loaded: send it this body, to
    /// `/v1/load_lora_adapter`, and say by [`Engine::heard`] what came of it.
    Load(BackendId, Arc<[u8]>),
}

/// The deciding machine.
///
/// **Who is eligible.** Backends that list the model, are up and not drained by an operator, whose
/// word holds even where nobody else is left. Only if there is none, suspects: a GPU fleet has few
/// backends of a model, and a connection that is refused costs a client less than an error does, so
/// a suspicion never empties a model. Backends that are down are never tried: two witnesses found
/// nobody there, and a probe at most 6 s later finds out when that ends. The same holds for second
/// tries, whatever failed before; how often a request is tried at all is what protects engines from
/// a request that kills them.
///
/// **When a request waits.** While its model cannot be served and the first round of probes runs,
/// or one that was found since has yet to be asked, and while the lists are refreshed because its
/// model is unknown; together never longer than [`KNOWLEDGE_WAIT`] from [`RequestMeta::since`].
///
/// Invariant: what a backend has in hand equals a recount of the open tickets, and is zero when
/// there is none.
#[derive(Debug)]
pub struct Engine {
    config: Config,
    fleet: Fleet,
    tickets: BTreeMap<u64, Held>,
    next_ticket: u64,
    next_dispatch: u64,
    body_bytes: u64,
    /// Whether a request holds the overdraft.
    overdrawn: bool,
    /// Room for a question to the prefix index, and for what an answer of its would tell others.
    matches: Matches,
    told: Vec<u64>,
    /// What is shared with other proxies, if anything.
    sharing: Option<Sharing>,
    draining: bool,
    waits: Waits,
    totals: Totals,
    shown: Shown,
}

impl Engine {
    /// An engine without backends. The same seed and the same calls give the same decisions.
    pub fn new(config: Config, seed: u64, now: Instant) -> Self {
        let fleet = Fleet::new(seed, config.index_memory);
        let matches = fleet.index.as_ref().map_or_else(Matches::default, PrefixIndex::scratch);
        Self {
            sharing: config.proxy.map(|proxy| Sharing::new(ProxyId(proxy), now)),
            config,
            fleet,
            matches,
            told: Vec::new(),
            tickets: BTreeMap::new(),
            next_ticket: 0,
            next_dispatch: 0,
            body_bytes: 0,
            overdrawn: false,
            draining: false,
            waits: Waits::default(),
            totals: Totals::default(),
            shown: Shown::default(),
        }
    }

    /// Who takes a request.
    fn decide(&mut self, request: &RequestMeta<'_>, now: Instant) -> Decision {
        self.share_time(now);
        if request.dry_run {
            return Decision::Explained(Box::new(self.explain(request, now)));
        }
        let patient = now < request.since + KNOWLEDGE_WAIT;
        match self.plan(request, patient, now) {
            Verdict::Say(decision) => decision,
            Verdict::Send(plan) => match self.carry_out(plan, now) {
                Some(route) => Decision::Forward(route),
                None => Decision::Refuse(Refusal::NoAnswer),
            },
        }
    }

    /// What a request comes to. One that is patient waits for what is about to be known.
    fn plan(&mut self, request: &RequestMeta<'_>, patient: bool, now: Instant) -> Verdict {
        let unsure = patient && self.fleet.first_round_unfinished();
        // Behind keys a backend judges the method, too: 401 comes before 405.
        let keyed = request.who == Who::Models && self.fleet.any_keyed();
        if let Some(allow) = request.allow
            && !keyed
        {
            return Verdict::Say(Decision::Answer(Answer::method_not_allowed(allow)));
        }
        Verdict::Say(match request.who {
            Who::Realtime if request.model.is_none() && unsure => later(now),
            Who::Realtime if request.model.is_none() && !self.fleet.serves_alike() => {
                Decision::Accept
            }
            Who::Backend | Who::Realtime => return self.forward(request, patient, unsure, now),
            Who::Owner | Who::Each | Who::Every | Who::Named if unsure => later(now),
            Who::Owner => return self.search(request, None, now),
            Who::Each | Who::Every | Who::Named => self.gather(request, now),
            Who::Health if self.draining => Decision::Answer(Answer::empty(503)),
            Who::Health if self.fleet.any_ready() => Decision::Answer(Answer::empty(200)),
            Who::Health | Who::Models | Who::Version if unsure => later(now),
            Who::Health | Who::Models | Who::Version
                if patient && !self.fleet.any_takes() && self.fleet.any_newcomer() =>
            {
                later(now)
            }
            Who::Health => Decision::Answer(Answer::empty(503)),
            Who::Models if patient && self.fleet.any_list_is_old() => later(now),
            Who::Models if self.fleet.any_takes() => {
                let cards = self.fleet.cards();
                // Who could not list its models to us may list them to the client.
                let answer = (!keyed || !cards.is_empty())
                    .then(|| Answer::models(cards.iter().map(|card| card.text())));
                match answer {
                    Some(answer) if !keyed => Decision::Answer(answer),
                    answer => return self.ask_keyed(request, answer, now),
                }
            }
            Who::Live => Decision::Answer(Answer::empty(200)),
            Who::Page => Decision::Answer(page::answer()),
            Who::Status | Who::Events => self.tell_status(now),
            // Whoever asks what it would be told learns that it is told this.
            Who::Explain => Decision::Answer(Answer::empty(200)),
            Who::Acts(act) => self.act(act, request.narrow, now),
            Who::Models => Decision::Refuse(self.unready()),
            Who::Version => match self.fleet.version() {
                Some(version) => Decision::Answer(Answer::version(version)),
                None => Decision::Refuse(self.unready()),
            },
        })
    }

    /// Gives a ticket back because its backend failed before anything of an answer reached the
    /// client, and asks who takes the request now. The ticket is settled whatever the answer; a
    /// [`Decision::Refuse`] means that the last answer a backend gave is the one to pass, if any.
    ///
    /// At most three backends are tried, and at most two of them see the request: a failure to
    /// connect delivers nothing, everything else may have. Nobody is tried twice, but for an idle
    /// connection that was stale.
    pub fn reroute(&mut self, ticket: Ticket, why: Failure, now: Instant) -> Decision {
        self.share_time(now);
        let id = ticket.redeem();
        let Some(mut held) = self.tickets.remove(&id) else {
            return Decision::Refuse(Refusal::NoAnswer);
        };
        debug!(request = id, backend:% = held.backend, why:?; "attempt failed");
        if let Some(backend) = self.fleet.backend_mut(held.backend) {
            backend.load.remove(held.dispatch, held.work.prompt, now);
        }
        self.tell_of(held.backend);
        match why {
            Failure::Connect | Failure::Lost | Failure::Cut | Failure::Nonsense => {
                self.fleet.failed(held.backend, now);
            }
            // It lists what it serves: whatever changed, it says so now.
            Failure::Unlisted => self.fleet.changed(held.backend, now),
            // A stale connection says nothing of the server, a time-out may be a long prefill,
            // and 500 or 503 may be the request's own fault or back-pressure.
            Failure::NoSocket
            | Failure::Stale
            | Failure::Status(_)
            | Failure::ErrorEvent
            | Failure::Elsewhere
            | Failure::Timeout => {}
        }
        let failed = held.backend;
        let last = self.count_fault(&mut held, why, now);
        let model = held.pool.model().map(ToOwned::to_owned);
        let again = why == Failure::Stale && !held.fresh;
        if matches!(held.pool, Pool::Search { .. }) && why != Failure::Elsewhere && !again {
            held.tried.push(failed);
        }
        let unasked = held.tried.len() > 0;
        let next = match held.next(why) {
            Next::Same => {
                self.send(id, Held { fresh: true, ..held }, Reason::Stale, &Seen::default(), now)
            }
            Next::Other => {
                let plan = self.choose(id, held, Seen::new(false), now);
                plan.and_then(|plan| self.carry_out(plan, now))
            }
            Next::GiveUp => None,
        };
        if let Some(route) = next {
            self.count_retry(why);
            self.settle(failed, now);
            return Decision::Forward(route);
        }
        let refusal = match why {
            Failure::Timeout => Refusal::TimedOut,
            Failure::NoSocket => Refusal::Busy,
            Failure::Elsewhere if unasked => Refusal::Unasked,
            Failure::Elsewhere => Refusal::NoAnswer,
            Failure::Connect => match model {
                Some(model) if !self.fleet.has_up(&model) => self.unserved(&model),
                Some(_) | None => Refusal::NoAnswer,
            },
            Failure::Stale
            | Failure::Lost
            | Failure::Cut
            | Failure::Nonsense
            | Failure::Unlisted
            | Failure::ErrorEvent
            | Failure::Status(_) => Refusal::NoAnswer,
        };
        self.count_last(last, &refusal, now);
        self.settle(failed, now);
        Decision::Refuse(refusal)
    }

    /// The first byte of the answer's body came: the prompt is prefilled.
    pub fn first_byte(&mut self, ticket: &Ticket, now: Instant) {
        self.share_time(now);
        let Some(held) = self.tickets.get_mut(&ticket.id()) else {
            return;
        };
        let first = !core::mem::replace(&mut held.begun, true);
        let waited = first.then(|| now.since(held.since));
        let (backend, sent) = (held.backend, held.sent);
        let known = self.fleet.backend_mut(backend);
        let lesson = known.and_then(|known| known.load.prefilled(held.dispatch, now));
        self.count_first_byte(backend, waited, now);
        self.fleet.answered(backend, sent, now);
        self.tell_lesson(backend, lesson);
        self.tell_of(backend);
    }

    /// Settles a ticket.
    pub fn finish(&mut self, ticket: Ticket, outcome: Outcome, now: Instant) {
        self.share_time(now);
        let id = ticket.redeem();
        let Some(held) = self.tickets.remove(&id) else {
            return;
        };
        debug!(request = id, backend:% = held.backend, outcome:?; "settled");
        if let Some(backend) = self.fleet.backend_mut(held.backend) {
            backend.load.remove(held.dispatch, held.work.prompt, now);
        }
        self.count_end(&held, outcome, now);
        match outcome {
            Outcome::Done { usage, .. } => {
                self.fleet.answered(held.backend, held.sent, now);
                if let Some(usage) = usage {
                    self.learn(&held, usage, now);
                }
            }
            Outcome::Broken => self.fleet.failed(held.backend, now),
            Outcome::ClientGone | Outcome::TimedOut => {}
        }
        self.tell_of(held.backend);
        self.settle(held.backend, now);
    }

    /// A backend keeps the response of this id: what is said about it goes there.
    pub fn owns(&mut self, backend: BackendId, response: &str, now: Instant) {
        self.share_time(now);
        if let Some((response, owner)) = self.fleet.owners.remember(response, backend, now) {
            self.tell_owned(response, owner);
        }
    }

    /// Takes `bytes` more from the budget of request bodies for a request that holds `share`, and
    /// says what it holds then; `None` if they are not to be had now.
    ///
    /// A body that alone is larger than the budget gets it when no other is held. Of those that
    /// hold a part already and need more, one at a time may overdraw, so that they cannot all wait
    /// for one another: no more is held than the budget and one body of the greatest length.
    pub fn reserve(&mut self, share: Share, bytes: u64) -> Option<Share> {
        let sum = self.body_bytes.checked_add(bytes)?;
        let budget = self.config.body_memory;
        let mut granted = Share { bytes: share.bytes.checked_add(bytes)?, ..share };
        if budget != 0 && sum > budget && self.body_bytes != share.bytes {
            if share.bytes == 0 || (self.overdrawn && !share.overdraft) {
                return None;
            }
            self.overdrawn = true;
            granted.overdraft = true;
        }
        self.body_bytes = sum;
        Some(granted)
    }

    /// Gives a share back to the budget of request bodies.
    pub fn release(&mut self, share: Share) {
        self.body_bytes = self.body_bytes.saturating_sub(share.bytes);
        if share.overdraft {
            self.overdrawn = false;
        }
    }

    /// Hears of something.
    pub fn handle(&mut self, input: Input<'_>, now: Instant) {
        self.share_time(now);
        match input {
            Input::Discovered(specs) => {
                self.fleet.discovered(specs, now);
                self.learn_names();
            }
            Input::Upstreams { upstreams, backends } => {
                self.config.upstreams = u16::try_from(upstreams.len()).unwrap_or(u16::MAX);
                let forward = (0..).zip(upstreams).filter(|(_, one)| one.forwards_unknown);
                self.config.forward_unknown = forward.map(|(number, _)| number).collect();
                self.fleet.renumber(upstreams, backends, now);
                self.learn_names();
            }
            Input::Probed(backend, result) => {
                self.fleet.probed(backend, result, now);
                self.tell_of(backend);
            }
            Input::Heard(update) => self.hear(update, now),
            Input::Link(link) => self.link(link, now),
            Input::Replica(report) => self.report(report),
            Input::LogDropped(count) => self.totals.log_entries_dropped = count,
            Input::Drain => {
                self.draining = true;
                self.shown.change();
            }
            Input::Timeout => {
                self.fleet.ask(now);
                self.shown.expire(now);
            }
        }
    }

    /// The next thing to do; `None` when there is nothing left.
    pub fn poll_output(&mut self) -> Option<Output> {
        if let Some(backend) = self.fleet.poll_forgotten() {
            return Some(Output::Forget(backend));
        }
        if let Some((backend, load)) = self.fleet.poll_load() {
            return Some(Output::Load(backend, load));
        }
        self.fleet.poll_probe().map(Output::Probe)
    }

    /// When to say [`Input::Timeout`].
    pub fn poll_timeout(&self) -> Option<Wake> {
        let probe = self.fleet.next_probe().map(|at| Wake { at, why: "probe" });
        [probe, self.share_timeout()].into_iter().flatten().min_by_key(|wake| wake.at)
    }

    /// Whether a backend is to be asked whether it sleeps or is paused, too.
    pub fn asks_rest(&self, backend: BackendId) -> bool {
        self.fleet.backend(backend).is_some_and(|backend| backend.rest.is_doubtful())
    }

    /// Whether a backend is to be asked for its metrics, too.
    pub fn asks_cache(&self, backend: BackendId) -> bool {
        self.config.policy == Policy::CacheAware
            && self.fleet.backend(backend).is_some_and(|backend| backend.health.asks_cache())
    }

    /// How to reach a backend; `None` once it is forgotten.
    pub fn spec(&self, backend: BackendId) -> Option<&Arc<BackendSpec>> {
        self.fleet.backend(backend).map(|backend| &backend.spec)
    }

    /// A backend has one request less in hand: if it was leaving and that was its last, it goes.
    fn settle(&mut self, backend: BackendId, now: Instant) {
        if self.fleet.backend(backend).is_some_and(|backend| backend.is_done()) {
            self.fleet.sweep(now);
        }
    }
}

fn later(now: Instant) -> Decision {
    Decision::Later(now + ASK_AGAIN)
}

/// The one way to reach a process's engine: whoever implements it locks, lends the engine to
/// `visit`, drains its outputs and sees that they are carried out. Never call it from within
/// itself; never wait inside.
pub trait Lend: Send + Sync + core::fmt::Debug {
    /// Lends the engine for the length of one call.
    fn lend(&self, visit: &mut dyn FnMut(&mut Engine));
}

impl dyn Lend {
    /// Lends the engine to what is called once and brings something back.
    pub fn with<R>(&self, visit: impl FnOnce(&mut Engine) -> R) -> R {
        let (mut visit, mut result) = (Some(visit), None);
        self.lend(&mut |engine| {
            if let Some(visit) = visit.take() {
                result = Some(visit(engine));
            }
        });
        result.expect("whoever implements `lend` calls what it is given")
    }
}
