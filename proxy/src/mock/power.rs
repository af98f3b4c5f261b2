//! Whether the engine works: what `/pause`, `/sleep` and their opposites leave behind (as in 0.32;
//! that new requests are refused meanwhile, and do not wait, is 0.33's).

use super::engine::Engine;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;

/// What a pause does to requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// They end at once, new ones are refused.
    Abort,
    /// They are waited for, new ones are refused.
    Wait,
    /// They stop where they are, new ones queue up behind them.
    Keep,
}

impl Mode {
    /// Their names, as they are given; the first is the default.
    pub(super) const NAMES: [&str; 3] = ["abort", "wait", "keep"];

    pub(super) fn named(name: &str) -> Self {
        match name {
            "wait" => Self::Wait,
            "keep" => Self::Keep,
            _ => Self::Abort,
        }
    }
}

/// What a pause does to the prefix cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cache {
    Clear,
    Keep,
}

/// What an engine that sleeps at level 1 or 2 has given away.
const MEMORY: [&str; 2] = ["weights", "kv_cache"];

/// The engine's switch.
#[derive(Debug)]
pub(super) struct Power {
    engine: Rc<Engine>,
    paused: Cell<Option<Mode>>,
    asleep: RefCell<BTreeSet<&'static str>>,
    /// The level that metrics tell, if it sleeps.
    level: Cell<Option<i64>>,
}

impl Power {
    pub(super) const fn new(engine: Rc<Engine>) -> Self {
        Self {
            engine,
            paused: Cell::new(None),
            asleep: RefCell::new(BTreeSet::new()),
            level: Cell::new(None),
        }
    }

    /// Whether new requests are turned away.
    pub(super) fn refuses(&self) -> bool {
        let paused = matches!(self.paused.get(), Some(Mode::Abort | Mode::Wait));
        paused || !self.asleep.borrow().is_empty()
    }

    pub(super) const fn is_paused(&self) -> bool {
        self.paused.get().is_some()
    }

    pub(super) fn is_sleeping(&self) -> bool {
        self.is_paused() || !self.asleep.borrow().is_empty()
    }

    /// The level at which it sleeps, as metrics tell it.
    pub(super) const fn level(&self) -> Option<i64> {
        self.level.get()
    }

    /// Pauses; returns when that is done.
    pub(super) async fn pause(&self, mode: Mode, cache: Cache) {
        self.paused.set(Some(mode));
        self.engine.freeze(mode == Mode::Keep);
        match mode {
            Mode::Abort => {
                self.engine.abort(|_| true);
            }
            Mode::Wait => self.engine.idle().await,
            Mode::Keep => {}
        }
        if cache == Cache::Clear {
            self.engine.machine.forget();
        }
    }

    pub(super) fn resume(&self) {
        self.paused.set(None);
        self.engine.freeze(false);
    }

    /// Falls asleep; level 0 is no more than a pause.
    pub(super) async fn sleep(&self, level: i64, mode: Mode) {
        self.pause(mode, if level > 0 { Cache::Clear } else { Cache::Keep }).await;
        if level > 0 {
            self.asleep.borrow_mut().extend(MEMORY);
        }
        self.level.set(Some(level));
    }

    /// Gives the memory of the KV cache away; whether it could.
    pub(super) fn release_kv_cache(&self) -> Result<(), &'static str> {
        if !self.is_paused() || !self.engine.is_idle() {
            return Err("release_kv_cache_memory() requires a completed pause first");
        }
        if !self.asleep.borrow().is_empty() {
            return Err("release_kv_cache_memory() requires all executor memory to be resident");
        }
        self.engine.machine.forget();
        self.asleep.borrow_mut().insert("kv_cache");
        self.level.set(Some(0));
        Ok(())
    }

    /// Wakes all, or what `tags` say; whether all of it is awake then.
    pub(super) fn wake_up(&self, tags: &[String]) -> bool {
        let mut asleep = self.asleep.borrow_mut();
        // An unknown tag, or one that is awake, wakes nothing at all.
        let memory = || tags.iter().filter(|tag| *tag != "scheduling");
        if tags.is_empty() {
            asleep.clear();
        } else if memory().all(|tag| asleep.contains(tag.as_str())) {
            asleep.retain(|part| memory().all(|tag| tag != part));
        }
        let awake = asleep.is_empty();
        drop(asleep);
        if awake {
            self.resume();
            self.level.set(None);
        }
        awake
    }
}
