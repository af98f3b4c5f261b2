//! Signals that ask the process to stop, or to look again at what may have changed.
//!
//! Knows when they came, not what they mean.

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::raise;
use std::io;
use std::thread;

/// Calls `first` at the first SIGTERM or SIGINT and `second` at the second, from a thread of its
/// own.
pub(crate) fn on_signals(
    first: impl FnOnce() + Send + 'static,
    second: impl FnOnce() + Send + 'static,
) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let mut signals = signals.forever();
        if signals.next().is_some() {
            first();
        }
        if signals.next().is_some() {
            second();
        }
    })?;
    Ok(())
}

/// Calls `again` at each SIGHUP, from a thread of its own. Without this a SIGHUP ends the process.
pub(crate) fn on_hangup(again: impl Fn() + Send + 'static) -> io::Result<()> {
    let mut signals = Signals::new([SIGHUP])?;
    thread::Builder::new()
        .name("hangups".to_owned())
        .spawn(move || signals.forever().for_each(|_| again()))?;
    Ok(())
}

/// Has a SIGHUP count as a SIGTERM: for what is of no use without the terminal that it began in.
pub(crate) fn at_hangup() -> io::Result<()> {
    // That it can be sent is known: this process may tell itself everything.
    on_hangup(|| _ = raise(SIGTERM))
}
