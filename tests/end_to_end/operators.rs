//! The address for operators, and what the main one has without and beside it.

use crate::backend::{Backend, Gate, Then};
use crate::proxy::{Proxy, Runtime, eventually, on_every_runtime};
use crate::wire::{chat, get, ok};
use std::net::{TcpListener, TcpStream};

const ADMIN: [&str; 2] = ["--admin", "127.0.0.1:0"];

fn with_an_address_for_operators_the_main_one_says_nothing(runtime: Runtime) {
    let backend = Backend::named(&["m"], "hi");
    let proxy = Proxy::with(runtime, &ADMIN, &[&backend]);
    for path in ["/proxy/live", "/proxy/status"] {
        let mut operator = proxy.operator();
        operator.send(get(path));
        assert_eq!(operator.answer().unwrap().status(), 200, "{path}");
        // It is a path that some backend may know, as any other.
        let before = backend.requests();
        proxy.ask(&get(path));
        assert_eq!(backend.requests(), before + 1, "{path}");
    }
}

fn operators_get_all_that_clients_get(runtime: Runtime) {
    let backend = Backend::named(&["m"], "hi");
    let proxy = Proxy::with(runtime, &ADMIN, &[&backend]);
    let mut operator = proxy.operator();
    for request in [get("/v1/models"), chat("m"), get("/health"), chat("m")] {
        operator.send(&request);
        assert_eq!(operator.answer().unwrap().status(), 200);
    }
}

fn operators_do_not_hold_up_a_stop(runtime: Runtime) {
    let backend = Backend::named(&["m"], "hi");
    let options = ["--admin", "127.0.0.1:0", "--drain-grace", "0"];
    let mut proxy = Proxy::with(runtime, &options, &[&backend]);
    let mut operator = proxy.operator();
    operator.send(get("/proxy/live"));
    assert_eq!(operator.answer().unwrap().status(), 200);
    proxy.terminate();
    assert_eq!(proxy.exit(), (Some(0), String::new()));
}

/// Answers when the gate opens.
fn slow(gate: &Gate) -> Backend {
    let gate = gate.clone();
    Backend::scripted(&["m"], move |wire, asked| {
        wire.request_with(asked.head).unwrap();
        if !gate.pass() {
            return Then::Close;
        }
        wire.send(ok("late"));
        Then::Keep
    })
}

fn a_stop_waits_for_what_operators_asked_for(runtime: Runtime) {
    let gate = Gate::default();
    let backend = slow(&gate);
    let options = ["--admin", "127.0.0.1:0", "--drain-grace", "0"];
    let mut proxy = Proxy::before(runtime, &options, &[backend.upstream()]);
    proxy.await_entries("backend is up", 1);
    let (client, mut asking) = (proxy.client(), proxy.operator());
    client.send(chat("m"));
    asking.send(chat("m"));
    backend.await_requests(2);
    proxy.terminate();
    eventually("the port is closed", || TcpStream::connect(proxy.address).is_err());
    // As long as a client is waited for they are served as ever.
    let mut operator = proxy.operator();
    for path in ["/proxy/status", "/proxy/", "/proxy/live"] {
        operator.send(get(path));
        assert_eq!(operator.answer().unwrap().status(), 200, "{path}");
    }
    assert_eq!(proxy.status()["draining"], true);
    drop(client);
    // Nobody else is left, and one of them waits.
    eventually("their port is closed", || TcpStream::connect(proxy.admin()).is_err());
    gate.open();
    assert_eq!(asking.answer().unwrap().text(), "late");
    assert_eq!(proxy.exit(), (Some(0), String::new()));
}

fn operators_hold_up_a_stop_no_longer_than_others(runtime: Runtime) {
    let gate = Gate::default();
    let backend = slow(&gate);
    let options = ["--admin", "127.0.0.1:0", "--drain-grace", "0", "--drain-timeout", "1"];
    let mut proxy = Proxy::before(runtime, &options, &[backend.upstream()]);
    proxy.await_entries("backend is up", 1);
    let mut asking = proxy.operator();
    asking.send(chat("m"));
    backend.await_requests(1);
    proxy.terminate();
    assert_eq!(proxy.exit(), (Some(0), String::new()));
    assert!(asking.answer().is_err());
    gate.open();
}

fn the_address_for_operators_is_taken(runtime: Runtime) {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let options = ["-p", "0", "--admin", &address];
    let mut proxy = Proxy::spawn(runtime, &options, &[], &["http://127.0.0.1:1".to_owned()]);
    let line = format!("vllm-proxy: cannot listen on {address}: the port is taken\n");
    assert_eq!(proxy.exit(), (Some(1), line));
}

on_every_runtime![
    with_an_address_for_operators_the_main_one_says_nothing,
    operators_get_all_that_clients_get,
    operators_do_not_hold_up_a_stop,
    a_stop_waits_for_what_operators_asked_for,
    operators_hold_up_a_stop_no_longer_than_others,
    the_address_for_operators_is_taken,
];
