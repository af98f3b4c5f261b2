//! What a proxy says of itself.

use crate::backend::Backend;
use crate::company::{hold, holding};
use crate::proxy::{Proxy, Runtime, eventually, on_every_runtime};
use crate::wire::{get, post};
use serde_json::json;

fn a_proxy_says_how_it_sees_things(runtime: Runtime) {
    let backend = holding("hi");
    let keyed = Backend::named(&["secret"], "hi");
    keyed.ask_for("key");
    let proxy = Proxy::with(runtime, &[], &[&backend, &keyed]);
    let held = hold(&proxy);
    backend.await_requests(1);
    let status = proxy.status();
    assert_eq!(status["build"]["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["replicas"], json!(null));
    assert_eq!(status["redis"]["configured"], false);
    let first = &status["backends"][0];
    assert_eq!(first["address"], backend.address().to_string());
    assert_eq!((&first["state"], &first["in_flight"]), (&json!("up"), &json!(1)));
    assert_eq!((&first["models"], &first["in_flight_elsewhere"]), (&json!(["m"]), &json!(0)));
    assert_eq!(status["backends"][1]["models"], json!(null), "that is for those with a key");
    assert!(!status.to_string().contains("secret"));
    // Nobody there knows these paths.
    assert_eq!(proxy.ask(&get("/proxy/live")), 200);
    assert_eq!(proxy.ask(&post("/proxy/status", "")), 405);
    assert_eq!((backend.requests(), keyed.requests()), (1, 0));
    drop(held);
    eventually("nothing is in flight", || proxy.status()["backends"][0]["in_flight"] == 0);
}

on_every_runtime![a_proxy_says_how_it_sees_things];
