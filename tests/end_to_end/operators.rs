//! The address for operators, and what the main one has without and beside it.

use crate::backend::Backend;
use crate::proxy::{Proxy, Runtime, on_every_runtime};
use crate::wire::{chat, get};
use std::net::TcpListener;

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
    the_address_for_operators_is_taken,
];
