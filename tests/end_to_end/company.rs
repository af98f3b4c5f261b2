//! Backends that hold a request for as long as its client stays.

use crate::backend::{Backend, Then, until_left};
use crate::proxy::Proxy;
use crate::wire::{Wire, ok, post};

/// Answers chats with its own name, and completions never.
pub(crate) fn holding(name: &str) -> Backend {
    let answer = ok(name);
    Backend::scripted(&["m"], move |wire, asked| {
        let holds = asked.head.starts_with(b"POST /v1/completions ");
        if wire.request_with(asked.head).is_err() {
            return Then::Close;
        }
        if holds {
            until_left(wire);
            return Then::Close;
        }
        match wire.try_send(&answer) {
            Ok(()) => Then::Keep,
            Err(_) => Then::Close,
        }
    })
}

/// A request that stays in flight until its client is dropped.
pub(crate) fn hold(proxy: &Proxy) -> Wire {
    let client = proxy.client();
    client.send(post("/v1/completions", r#"{"model":"m","prompt":"some words"}"#));
    client
}
