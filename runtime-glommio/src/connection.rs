//! A thread as its connections see it: what [`Carrier`](vllm_proxy_core::carry::Carrier) asks for.
//!
//! Knows where each of it is to be had; what is done with it is the carrier's affair.

use crate::Core;
use crate::net::{self, Socket};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Context;
use vllm_proxy_core::carry::{self, Alarm, Connecting, Connections, Pool, Timers};
use vllm_proxy_core::config::Limits;
use vllm_proxy_core::engine::Engine;
use vllm_proxy_core::fleet::Address;
use vllm_proxy_core::time::Instant;

/// One thread.
#[derive(Clone, Debug)]
pub(crate) struct Thread(pub(crate) Rc<Core>);

impl carry::Host for Thread {
    type Socket = Socket;
    type Timer = Alarm<Rc<Timers>>;

    fn now(&self) -> Instant {
        self.0.clock.now()
    }

    fn with_engine<R>(&self, visit: impl FnOnce(&mut Engine) -> R) -> R {
        self.0.engine.with(visit)
    }

    fn connect(&self, address: &Address) -> Connecting<Socket> {
        let connecting = net::connect(self.0.reactor.clone(), address.clone());
        Box::pin(async { connecting.await.map_err(|error| net::whose(&error)) })
    }

    fn timer(&self) -> Alarm<Rc<Timers>> {
        self.0.reactor.timer()
    }

    fn next_turn(&self, cx: &Context<'_>) {
        self.0.reactor.next_turn(cx);
    }

    fn pool(&self) -> &Pool<Socket> {
        &self.0.pool
    }

    fn connections(&self) -> &Connections {
        &self.0.connections
    }

    fn limits(&self) -> &Arc<Limits> {
        &self.0.limits
    }
}
