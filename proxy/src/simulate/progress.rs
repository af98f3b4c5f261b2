//! A bar on standard error while a terminal is there to show it.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicUsize, Ordering};

const WIDTH: usize = 40;

/// How much of the whole is done; several threads may tell.
pub(super) struct Progress {
    all: usize,
    done: AtomicUsize,
    shown: bool,
}

impl Progress {
    pub(super) fn new(all: usize) -> Self {
        Self { all, done: AtomicUsize::new(0), shown: std::io::stderr().is_terminal() }
    }

    /// So much more is done.
    pub(super) fn add(&self, more: usize) {
        let done = self.done.fetch_add(more, Ordering::Relaxed) + more;
        if self.shown {
            let _ = write!(std::io::stderr(), "\r{}", bar(done, self.all));
        }
    }

    /// Leaves the line as if nothing had been there.
    pub(super) fn finish(&self) {
        if self.shown {
            let _ = write!(std::io::stderr(), "\r{:width$}\r", "", width = bar(0, self.all).len());
        }
    }
}

fn bar(done: usize, all: usize) -> String {
    let filled = (done * WIDTH / all.max(1)).min(WIDTH);
    let percent = (done * 100 / all.max(1)).min(100);
    format!("[{}{}] {percent:>3} %", "#".repeat(filled), " ".repeat(WIDTH - filled))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_fills() {
        assert_eq!(bar(0, 8), format!("[{}]   0 %", " ".repeat(40)));
        assert_eq!(bar(4, 8), format!("[{}{}]  50 %", "#".repeat(20), " ".repeat(20)));
        assert_eq!(bar(8, 8), format!("[{}] 100 %", "#".repeat(40)));
        assert_eq!(bar(0, 0).len(), bar(8, 8).len());
    }
}
