//! Those who watch a proxy by its events.

use crate::backend::Backend;
use crate::proxy::{Proxy, Runtime, eventually, on_every_runtime};
use crate::wire::{End, Wire, chat, get, header};
use serde_json::Value;

/// The next event, without its chunk; empty at the end of the stream.
fn event(client: &mut Wire) -> Result<Vec<u8>, End> {
    let size = client.until(b"\r\n")?;
    let size = std::str::from_utf8(&size[..size.len() - 2]).expect("a number");
    let size = usize::from_str_radix(size, 16).expect("a number");
    let chunk = client.exactly(size)?;
    assert_eq!(client.exactly(2)?, b"\r\n");
    Ok(chunk)
}

/// What it says.
fn told(client: &mut Wire) -> Value {
    let event = event(client).expect("the stream goes on");
    let json = event.strip_prefix(b"data: ").and_then(|rest| rest.strip_suffix(b"\n\n"));
    serde_json::from_slice(json.expect("an event a chunk")).expect("it is JSON")
}

fn who_watches_is_told_what_changes(runtime: Runtime) {
    let backend = Backend::named(&["m"], "hi");
    let proxy = Proxy::with(runtime, &[], &[&backend]);
    let mut watcher = proxy.client();
    watcher.send(get("/proxy/events"));
    let head = watcher.head().unwrap();
    let kind = header(&head, "content-type");
    assert_eq!(kind.as_deref(), Some("text/event-stream; charset=utf-8"));
    let first = told(&mut watcher);
    assert_eq!(first["backends"][0]["state"], "up");
    assert_eq!(proxy.ask(&chat("m")), 200);
    // Events may follow each other sooner than they are made, and tell of the same second.
    eventually("time goes on", || {
        told(&mut watcher)["uptime_seconds"].as_u64() > first["uptime_seconds"].as_u64()
    });
    // Who only watches makes no request of anybody.
    assert_eq!(backend.requests(), 1);
}

fn a_stop_ends_the_stream_in_order(runtime: Runtime) {
    let backend = Backend::named(&["m"], "hi");
    let mut proxy = Proxy::with(runtime, &["--drain-grace", "5"], &[&backend]);
    let mut watcher = proxy.client();
    watcher.send(get("/proxy/events"));
    watcher.head().unwrap();
    assert_eq!(told(&mut watcher)["draining"], false);
    proxy.terminate();
    // The default of --drain-timeout is far longer than any test waits.
    assert_eq!(proxy.exit(), (Some(0), String::new()));
    let mut drains = false;
    while let Ok(event) = event(&mut watcher) {
        if event.is_empty() {
            assert!(drains, "it was told of the grace");
            return;
        }
        drains |= String::from_utf8_lossy(&event).contains(r#""draining":true"#);
    }
    panic!("the stream ends as broken");
}

fn a_stop_ends_the_streams_of_operators_in_order(runtime: Runtime) {
    let backend = Backend::named(&["m"], "hi");
    let options = ["--admin", "127.0.0.1:0", "--drain-grace", "0"];
    let mut proxy = Proxy::with(runtime, &options, &[&backend]);
    let mut watcher = proxy.operator();
    watcher.send(get("/proxy/events"));
    watcher.head().unwrap();
    assert_eq!(told(&mut watcher)["draining"], false);
    proxy.terminate();
    assert_eq!(proxy.exit(), (Some(0), String::new()));
    while !event(&mut watcher).expect("the stream does not end as broken").is_empty() {}
}

on_every_runtime![
    who_watches_is_told_what_changes,
    a_stop_ends_the_stream_in_order,
    a_stop_ends_the_streams_of_operators_in_order,
];
