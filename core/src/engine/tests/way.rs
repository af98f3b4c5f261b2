//! The way to other proxies: what is logged of it, and that reports are kept.

use super::*;
use crate::fleet::{ProxyId, Update};
use log::{Log, Metadata, Record};
use std::cell::RefCell;
use std::sync::Once;
use std::thread_local;

thread_local! {
    static LOGGED: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Keeps what each thread logs, which is one test.
struct Kept;

impl Log for Kept {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        if record.level() <= log::Level::Info {
            let entry = format!("{} {}", record.level(), record.args());
            LOGGED.with_borrow_mut(|logged| logged.push(entry));
        }
    }

    fn flush(&self) {}
}

fn proxy() -> Rig {
    static START: Once = Once::new();
    START.call_once(|| {
        log::set_logger(&Kept).expect("nobody else keeps logs here");
        log::set_max_level(log::LevelFilter::Info);
    });
    Rig::new(Config { proxy: Some(1), ..Config::default() })
}

impl Rig {
    fn hear(&mut self, number: u64) {
        let (about, lengths) = (Vec::new(), Vec::new());
        let update = Update { proxy: ProxyId(2), number, about, lengths };
        self.handle(Input::Heard(&update));
    }

    /// What is logged as the way becomes so.
    fn logs(&mut self, link: Link) -> Vec<String> {
        LOGGED.take();
        self.handle(Input::Link(link));
        LOGGED.take()
    }
}

const ALONE: &str = "WARN alone: other proxies cannot be heard";
const HEARD: &str = "INFO no longer alone: other proxies can be heard";

#[test]
fn being_alone_is_logged_once_and_so_is_its_end() {
    let mut rig = proxy();
    rig.hear(1);
    assert_eq!(rig.logs(Link::Whole), [""; 0], "that is as it should be");
    for _ in 0..2 {
        assert_eq!(rig.logs(Link::Lost), [ALONE]);
        rig.sleep(30_000);
        assert_eq!(rig.logs(Link::Lost), [""; 0], "that is known");
        assert_eq!(rig.logs(Link::Whole), [HEARD]);
        assert_eq!(rig.logs(Link::Whole), [""; 0]);
        rig.hear(2);
    }
}

#[test]
fn who_has_no_others_is_not_alone() {
    let mut rig = proxy();
    for link in [Link::Whole, Link::Lost, Link::Whole] {
        assert_eq!(rig.logs(link), [""; 0], "{link:?}");
    }
    let mut rig = proxy();
    assert_eq!(rig.logs(Link::Lost), [ALONE], "others may be there already");
    assert_eq!(rig.logs(Link::Whole), [HEARD]);
}

#[test]
fn the_last_report_holds() {
    let mut rig = proxy();
    assert_eq!(rig.engine.reported(), Some(&ReplicaReport::default()));
    let reason = Some("refused".into());
    let report = ReplicaReport { unreadable: 3, reason, ..ReplicaReport::default() };
    rig.handle(Input::Replica(report.clone()));
    assert_eq!(rig.engine.reported(), Some(&report));
    let mut alone = Rig::serving(1, &["m"]);
    alone.handle(Input::Replica(report));
    assert_eq!(alone.engine.reported(), None);
}
