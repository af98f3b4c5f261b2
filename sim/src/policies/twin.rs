//! The engine, and beside it the reference, which is told what the engine chose: two
//! implementations of one score, held against each other at every decision.
//!
//! Ties may fall as they like: what counts is that no other server would have cost less.

use super::{Candidate, Policy, Proxy, Reference};
use crate::world::{Answer, Ask, End, Live, Router, Server};
use std::cell::Cell;
use std::rc::Rc;
use vllm_proxy_core::route::Failure;
use vllm_proxy_core::time::Instant;

/// How a comparison came out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreement {
    /// Decisions of the engine.
    pub decisions: u64,
    /// Those for which the reference knew a server that costs less.
    pub regretted: u64,
    /// By how much at most, in thousandths of a token.
    pub regret_max: i64,
}

/// A proxy that routes by the engine and is watched by the reference.
#[derive(Debug)]
pub struct Twin {
    engine: Proxy,
    reference: Reference,
    told: Rc<Cell<Agreement>>,
}

impl Twin {
    /// Watches this engine. The agreement is told through `told` as it goes.
    pub const fn new(engine: Proxy, reference: Reference, told: Rc<Cell<Agreement>>) -> Self {
        Self { engine, reference, told }
    }

    fn compare(&mut self, ask: &Ask<'_>, answer: Answer, servers: &[Server], now: Instant) {
        let Answer::Send(chosen) = answer else { return };
        let alive = |server: &Server| server.alive && server.listed;
        let alive = servers.iter().enumerate().filter(|(_, server)| alive(server));
        let candidate = |(server, _)| Candidate { server, ..Candidate::default() };
        let candidates: Vec<_> = alive.map(candidate).collect();
        let regret = self.reference.regret(ask, &candidates, chosen, now);
        let mut told = self.told.get();
        told.decisions += 1;
        told.regretted += u64::from(regret > 0);
        told.regret_max = told.regret_max.max(regret);
        self.told.set(told);
        self.reference.sent(ask, chosen, now);
    }
}

impl Router for Twin {
    fn watch(&mut self) {
        self.engine.watch();
    }

    fn check(&mut self, live: &[Live], servers: &[Server], now: Instant) {
        self.engine.check(live, servers, now);
    }

    fn start(&mut self, servers: usize, now: Instant) {
        self.reference.start(servers);
        self.engine.start(servers, now);
    }

    fn route(&mut self, ask: &Ask<'_>, servers: &[Server], now: Instant) -> Answer {
        let answer = self.engine.route(ask, servers, now);
        self.compare(ask, answer, servers, now);
        answer
    }

    /// Whom the engine passes over at a second try is its own affair: not compared.
    fn retry(&mut self, ask: &Ask<'_>, why: Failure, servers: &[Server], now: Instant) -> Answer {
        self.reference.over(ask.id, None, now);
        let answer = self.engine.retry(ask, why, servers, now);
        if let Answer::Send(chosen) = answer {
            self.reference.regret(ask, &[], chosen, now);
            self.reference.sent(ask, chosen, now);
        }
        answer
    }

    fn first_byte(&mut self, id: u64, now: Instant) {
        self.reference.first_byte(id, now);
        self.engine.first_byte(id, now);
    }

    fn finish(&mut self, id: u64, end: End, now: Instant) {
        self.reference.over(id, end.usage(), now);
        self.engine.finish(id, end, now);
    }

    fn in_hand(&self) -> usize {
        self.engine.in_hand()
    }

    fn poll_probe(&mut self) -> Option<usize> {
        self.engine.poll_probe()
    }

    fn resolved(&mut self, servers: &[Server], now: Instant) {
        self.engine.resolved(servers, now);
    }

    fn probed(&mut self, server: usize, servers: &[Server], now: Instant) {
        self.engine.probed(server, servers, now);
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.engine.poll_timeout()
    }

    fn handle_timeout(&mut self, servers: &[Server], now: Instant) {
        self.engine.handle_timeout(servers, now);
    }
}
