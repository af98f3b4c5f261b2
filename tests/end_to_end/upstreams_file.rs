//! Upstreams from a file that changes while the proxy runs.

use crate::backend::Backend;
use crate::company::{hold, holding};
use crate::folder::Folder;
use crate::proxy::{Proxy, Runtime, eventually, on_every_runtime};
use crate::redis::free_port;
use crate::wire::{Message, chat, ok, post};
use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::symlink;

/// A proxy over what this file says now, and nothing else.
fn over(runtime: Runtime, file: &str, options: &[&str]) -> Proxy {
    let options = [&["--upstreams-file", file], options].concat();
    Proxy::before(runtime, &options, &[])
}

/// Lines of these upstreams.
fn lines(backends: &[&Backend]) -> String {
    backends.iter().map(|backend| format!("{}\n", backend.upstream())).collect()
}

/// Who answers a chat with this model.
fn ask(proxy: &Proxy, model: &str) -> Message {
    let mut client = proxy.client();
    client.send(chat(model));
    client.answer().unwrap()
}

/// Waits until all of these take requests.
#[track_caller]
fn await_states(proxy: &Proxy, expected: &[&Backend]) {
    let expected: Vec<_> =
        expected.iter().map(|backend| (backend.address().to_string(), "up".to_owned())).collect();
    eventually("the backends are these", || {
        let status = proxy.status();
        let backends = status["backends"].as_array().unwrap();
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        let now = backends.iter().map(|one| (text(&one["address"]), text(&one["state"])));
        now.collect::<Vec<_>>() == expected
    });
}

fn upstreams_come_and_go(runtime: Runtime) {
    let (a, b) = (holding("a"), holding("b"));
    let folder = Folder::new();
    folder.write("list", &lines(&[&a]));
    let proxy = over(runtime, &folder.file("list"), &[]);
    await_states(&proxy, &[&a]);
    let held = hold(&proxy);
    a.await_requests(1);
    folder.write("list", &lines(&[&b, &a]));
    await_states(&proxy, &[&b, &a]);
    proxy.await_entries("upstreams changed", 1);
    let told = &proxy.values("upstreams changed")[0];
    assert_eq!(told["added"], b.upstream(), "{told}");
    assert_eq!(told["removed"], "", "{told}");

    folder.write("list", &lines(&[&b]));
    proxy.await_entries("backend left", 1);
    assert_eq!(proxy.values("upstreams changed")[1]["removed"], a.upstream());
    assert_eq!(proxy.entries("backend forgotten"), 0, "it has a request in hand");
    for _ in 0..4 {
        assert_eq!(ask(&proxy, "m").text(), "b");
    }
    drop(held);
    proxy.await_entries("backend forgotten", 1);
    assert_eq!(proxy.entries("backend discovered"), 2, "who stays is not new");
}

fn a_broken_file_changes_nothing(runtime: Runtime) {
    let (a, b) = (Backend::named(&["m"], "a"), Backend::named(&["m"], "b"));
    let folder = Folder::new();
    folder.write("list", &lines(&[&a]));
    let proxy = over(runtime, &folder.file("list"), &[]);
    await_states(&proxy, &[&a]);
    let broken = "upstreams file is broken, the list stays";
    folder.write("list", &format!("{}# one more\n{} wieght=2\n", lines(&[&a]), b.upstream()));
    proxy.await_entries(broken, 1);
    let told = &proxy.values(broken)[0];
    assert_eq!((&told["file"], &told["line"]), (&folder.file("list").into(), &3.into()));
    let error = told["error"].as_str().unwrap();
    assert!(error.starts_with("invalid value `wieght=2`: expected weight=N"), "{error}");
    // Looked at again, and nothing more is said of it.
    proxy.hang_up();
    proxy.await_entries("looking at upstreams again", 1);
    assert_eq!(ask(&proxy, "m").text(), "a");

    // Broken otherwise, and then gone.
    folder.write("list", "https://a\n");
    proxy.await_entries(broken, 2);
    assert_eq!(proxy.values(broken)[1]["line"], 1);
    fs::remove_file(folder.file("list")).unwrap();
    let gone = "upstreams file cannot be read, the list stays";
    proxy.await_entries(gone, 1);
    assert_eq!(ask(&proxy, "m").text(), "a");

    folder.write("list", &lines(&[&a]));
    proxy.await_entries("upstreams file read, the list is the same", 1);
    assert_eq!((proxy.entries(broken), proxy.entries(gone)), (2, 1));
    folder.write("list", &lines(&[&b]));
    await_states(&proxy, &[&b]);
    assert_eq!(ask(&proxy, "m").text(), "b");
}

fn an_emptied_file_is_obeyed(runtime: Runtime) {
    let a = Backend::named(&["m"], "a");
    let folder = Folder::new();
    folder.write("list", &lines(&[&a]));
    let proxy = over(runtime, &folder.file("list"), &[]);
    await_states(&proxy, &[&a]);
    // In place, so that it may be seen empty, which is no other than this.
    folder.write_in_place("list", "# nobody for now\n");
    proxy.await_entries("no upstream is left", 1);
    proxy.await_entries("backend forgotten", 1);
    assert_eq!(ask(&proxy, "m").status(), 503);
    folder.write_in_place("list", &lines(&[&a]));
    await_states(&proxy, &[&a]);
    assert_eq!(ask(&proxy, "m").text(), "a");
}

fn a_signal_has_it_read(runtime: Runtime) {
    let (a, b) = (Backend::named(&["m"], "a"), Backend::named(&["m"], "b"));
    let folder = Folder::new();
    folder.write("list", &lines(&[&a]));
    let proxy = over(runtime, &folder.file("list"), &[]);
    await_states(&proxy, &[&a]);
    for (number, list) in (1..).zip([[&b], [&a], [&b]]) {
        folder.write("list", &lines(&list));
        proxy.hang_up();
        proxy.await_entries("looking at upstreams again", number);
        await_states(&proxy, &list);
    }
    proxy.await_entries("upstreams changed", 3);
    assert_eq!(proxy.entries("upstreams changed"), 3);
}

/// As Kubernetes replaces what a ConfigMap holds: the file stays a link to a link, and that is
/// replaced by another.
fn a_link_may_be_swapped(runtime: Runtime) {
    let (a, b) = (Backend::named(&["m"], "a"), Backend::named(&["m"], "b"));
    let folder = Folder::new();
    for (version, backend) in [("v1", &a), ("v2", &b)] {
        fs::create_dir(folder.path().join(version)).unwrap();
        folder.write(&format!("{version}/list"), &lines(&[backend]));
    }
    symlink("v1", folder.path().join("..data")).unwrap();
    symlink("..data/list", folder.path().join("list")).unwrap();
    let proxy = over(runtime, &folder.file("list"), &[]);
    await_states(&proxy, &[&a]);
    symlink("v2", folder.path().join("..data_tmp")).unwrap();
    fs::rename(folder.path().join("..data_tmp"), folder.path().join("..data")).unwrap();
    await_states(&proxy, &[&b]);
    // As editors do: another file takes the name.
    folder.write("new", &lines(&[&a, &b]));
    fs::rename(folder.path().join("new"), folder.path().join("list")).unwrap();
    await_states(&proxy, &[&a, &b]);
}

fn labels_count(runtime: Runtime) {
    let (a, b) = (Backend::judging(&["m"], "a"), Backend::judging(&["m"], "b"));
    let resolver = Backend::named(&["other"], "resolver");
    let folder = Folder::new();
    folder.write("list", &format!("{} weight=3\n", a.upstream()));
    let options = ["--policy", "round-robin", "--upstreams-file", &folder.file("list")];
    let named = [b.upstream(), resolver.upstream()];
    let proxy = Proxy::before(runtime, &options, &named);
    await_states(&proxy, &[&b, &resolver, &a]);
    let shares = || {
        let (before, others) = (a.requests(), b.requests());
        (0..40).for_each(|_| assert_eq!(ask(&proxy, "m").status(), 200));
        (a.requests() - before, b.requests() - others)
    };
    assert_eq!(shares(), (30, 10));
    assert_eq!(ask(&proxy, "new").status(), 404);
    // Of those that are arguments, too, the file's labels count.
    let line = |backend: &Backend, labels: &str| format!("{} {labels}\n", backend.upstream());
    let labelled = [line(&resolver, "forward-unknown"), line(&a, ""), line(&b, "weight=.25")];
    folder.write("list", &labelled.concat());
    proxy.await_entries("upstreams changed", 1);
    eventually("unknown names are forwarded", || ask(&proxy, "new").text() == "resolver");
    assert_eq!(proxy.values("upstreams changed")[0]["added"], "");
    assert_eq!(proxy.entries("backend discovered"), 3);
    assert_eq!(shares(), (32, 8));
}

fn who_names_an_address_once_more_is_told_that_the_first_counts(runtime: Runtime) {
    const CLASH: &str = "upstreams of one address are one backend, as the first says";
    let backend = Backend::named(&["m"], "hi");
    let (address, port) = (backend.address(), backend.address().port());
    let folder = Folder::new();
    // At once, so that nobody reads it half written.
    let says = |text: &str| {
        folder.write("next", text);
        fs::rename(folder.file("next"), folder.file("list")).unwrap();
    };
    let first = |weight: u32| format!("http://{address} weight={weight}\n");
    // The same address, as IPv6 has it.
    let second = format!("http://[::ffff:{}]:{port} weight=3\n", address.ip());
    says(&first(2));
    let proxy = over(runtime, &folder.file("list"), &[]);
    proxy.await_entries("backend is up", 1);
    for (number, (weight, clashes)) in (1..).zip([(2, 1), (3, 1), (4, 2), (5, 2)]) {
        says(&[first(weight), second.clone()].concat());
        proxy.await_entries("upstreams changed", number);
        eventually("the first counts", || {
            let status = proxy.status();
            assert_eq!(status["backends"].as_array().map(Vec::len), Some(1), "{status}");
            status["backends"][0]["weight"] == f64::from(weight)
        });
        proxy.await_entries(CLASH, clashes);
        assert_eq!(proxy.entries(CLASH), clashes, "at weight {weight}");
    }
    assert_eq!(proxy.ask(&chat("m")), 200);
}

fn the_first_upstream_has_the_default_model(runtime: Runtime) {
    let answer = |name| ok(name);
    let named = |name: &'static str| Backend::answering(&[name], move |_| answer(name));
    let (a, b) = (named("a"), named("b"));
    let folder = Folder::new();
    folder.write("list", &lines(&[&a, &b]));
    let proxy = over(runtime, &folder.file("list"), &[]);
    await_states(&proxy, &[&a, &b]);
    let unnamed = || {
        let mut client = proxy.client();
        client.send(post("/v1/chat/completions", r#"{"messages":[]}"#));
        client.answer().unwrap().text()
    };
    assert_eq!(unnamed(), "a");
    folder.write("list", &lines(&[&b, &a]));
    eventually("it is the other's", || unnamed() == "b");
    folder.write("list", &lines(&[&a]));
    eventually("it is the only one's", || unnamed() == "a");
}

fn a_signal_that_comes_early_ends_nothing(runtime: Runtime) {
    let backend = Backend::named(&["m"], "hi");
    let (port, upstreams) = (free_port(), [backend.upstream()]);
    // To make room for the index takes a while, behind the moment at which the port is ours.
    let options = ["-p", &port.to_string(), "--index-memory", "512MiB"];
    let mut proxy = Proxy::spawn(runtime, &options, &[], &upstreams);
    eventually("the port is bound", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    proxy.hang_up();
    proxy.await_listening();
}

on_every_runtime![
    a_signal_that_comes_early_ends_nothing,
    upstreams_come_and_go,
    a_broken_file_changes_nothing,
    an_emptied_file_is_obeyed,
    a_signal_has_it_read,
    a_link_may_be_swapped,
    labels_count,
    who_names_an_address_once_more_is_told_that_the_first_counts,
    the_first_upstream_has_the_default_model,
];
