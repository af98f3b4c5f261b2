//! The log: entries of the `log` crate, written to standard output by a thread of their own.
//!
//! Owns levels and formats. How an entry looks is told by [`entry`], and how entries reach standard
//! output without ever holding up who logs by [`queue`].

mod entry;
mod queue;

use crate::usage::Invalid;
use entry::{Details, Style};
use log::LevelFilter;
use queue::Queue;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::panic;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, SystemTime};

/// How long the end of the process waits for what is still to be written. Whoever writes that may
/// have to wait for a processor; where output is stuck, the end is that much later.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);

static QUEUE: OnceLock<Arc<Queue>> = OnceLock::new();

/// How much is logged, from the quietest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Quiet,
    Warning,
    Info,
    Debug,
    Verbose,
    Loud,
}

impl Level {
    const ALL: [Self; 6] =
        [Self::Quiet, Self::Warning, Self::Info, Self::Debug, Self::Verbose, Self::Loud];

    pub(crate) fn parse(text: &str) -> Result<Self, Invalid> {
        match text.to_ascii_lowercase().as_str() {
            "1" | "loud" => Ok(Self::Loud),
            "verbose" => Ok(Self::Verbose),
            "debug" => Ok(Self::Debug),
            "info" => Ok(Self::Info),
            "warning" => Ok(Self::Warning),
            "0" | "quiet" | "error" => Ok(Self::Quiet),
            _ => Err(Invalid::expected(
                "Loud (or 1), Verbose, Debug, Info, Warning or Quiet (or Error, or 0)",
            )),
        }
    }

    /// So many steps louder, or quieter if negative; at an end it stays there.
    pub(crate) fn louder(self, steps: i32) -> Self {
        let here = Self::ALL.iter().position(|level| *level == self).unwrap_or_default();
        let there = i64::try_from(here).unwrap_or_default() + i64::from(steps);
        Self::ALL[usize::try_from(there).unwrap_or_default().min(Self::ALL.len() - 1)]
    }

    /// Which entries of our own crates are written.
    const fn filter(self) -> LevelFilter {
        match self {
            Self::Quiet => LevelFilter::Error,
            Self::Warning => LevelFilter::Warn,
            Self::Info => LevelFilter::Info,
            Self::Debug => LevelFilter::Debug,
            Self::Verbose | Self::Loud => LevelFilter::Trace,
        }
    }
}

/// How entries look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Txt,
    Json,
    Yaml,
}

impl Format {
    /// One name of each.
    pub(crate) const NAMES: [&str; 3] = ["txt", "json", "yaml"];

    pub(crate) fn parse(text: &str) -> Result<Self, Invalid> {
        match text {
            "txt" => Ok(Self::Txt),
            "json" => Ok(Self::Json),
            "yml" | "yaml" => Ok(Self::Yaml),
            _ => Err(Invalid::expected("txt, json, yml or yaml")),
        }
    }

    pub(crate) const fn usual(terminal: bool) -> Self {
        if terminal { Self::Txt } else { Self::Json }
    }
}

/// Starts the log. Once in the life of a process.
pub(crate) fn start(level: Level, format: Format) -> io::Result<()> {
    let stdout = io::stdout();
    let terminal = stdout.is_terminal();
    let style = Style {
        format,
        coloured: terminal && format == Format::Txt && std::env::var_os("NO_COLOR").is_none(),
        details: match level {
            // Who reads a file later cannot run it again with more details.
            _ if !terminal => Details::All,
            Level::Loud => Details::All,
            Level::Verbose => Details::Some,
            Level::Debug | Level::Info | Level::Warning | Level::Quiet => Details::None,
        },
    };
    // Written without the standard library's buffer and lock: the thread that holds them may be
    // stuck for ever, and then a `print!` elsewhere or the end of the process would be, too.
    let mut out = File::from(stdout.as_fd().try_clone_to_owned()?);
    let queue = Arc::new(Queue::default());
    let writer = Arc::clone(&queue);
    let reports = level >= Level::Warning;
    thread::Builder::new().name("log".to_owned()).spawn(move || {
        writer.write_to(&mut out, |dropped| {
            let mut text = String::new();
            if reports {
                let values = ("entries", dropped);
                let record = log::Record::builder()
                    .level(log::Level::Warn)
                    .target(module_path!())
                    .module_path_static(Some(module_path!()))
                    .file_static(Some(file!()))
                    .line(Some(line!()))
                    .args(format_args!("log entries were dropped"))
                    .key_values(&values)
                    .build();
                entry::write(&mut text, style, SystemTime::now(), &record);
            }
            text.into_bytes()
        });
    })?;
    let sink = Sink(Arc::clone(&queue));
    env_logger::Builder::new()
        .filter_level(level.filter().min(LevelFilter::Warn))
        // A prefix of all our crates' names.
        .filter_module("vllm_proxy", level.filter())
        .target(env_logger::Target::Pipe(Box::new(sink)))
        .write_style(env_logger::WriteStyle::Never)
        .format(move |out, record| {
            let mut text = String::with_capacity(256);
            entry::write(&mut text, style, SystemTime::now(), record);
            out.write_all(text.as_bytes())
        })
        .try_init()
        .map_err(io::Error::other)?;
    let _ = QUEUE.set(queue);
    panic::set_hook(Box::new(|panic| {
        // Without its message, which may quote what was being worked on: a prompt, for one.
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        log::error!(location = place.as_str(); "panicked");
    }));
    Ok(())
}

/// Waits for what was logged to be written, but not for long.
pub(crate) fn flush() {
    if let Some(queue) = QUEUE.get() {
        queue.flush(FLUSH_LIMIT);
    }
}

/// How many entries were never written since the process began.
pub(crate) fn dropped() -> u64 {
    QUEUE.get().map_or(0, |queue| queue.dropped_ever())
}

/// Where env_logger writes: an entry a call.
struct Sink(Arc<Queue>);

impl Write for Sink {
    fn write(&mut self, entry: &[u8]) -> io::Result<usize> {
        self.0.push(entry);
        Ok(entry.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("1", Some(Level::Loud))]
    #[case("Loud", Some(Level::Loud))]
    #[case("VERBOSE", Some(Level::Verbose))]
    #[case("debug", Some(Level::Debug))]
    #[case("Info", Some(Level::Info))]
    #[case("Warning", Some(Level::Warning))]
    #[case("qUIET", Some(Level::Quiet))]
    #[case("Error", Some(Level::Quiet))]
    #[case("0", Some(Level::Quiet))]
    #[case("2", None)]
    #[case("-1", None)]
    #[case("", None)]
    #[case("warn", None)]
    #[case(" Info", None)]
    fn levels(#[case] text: &str, #[case] level: Option<Level>) {
        assert_eq!(Level::parse(text).ok(), level);
    }

    #[test]
    fn steps_stay_within_the_levels() {
        assert_eq!(Level::Info.louder(1), Level::Debug);
        assert_eq!(Level::Info.louder(-1), Level::Warning);
        assert_eq!(Level::Info.louder(510), Level::Loud);
        assert_eq!(Level::Info.louder(-510), Level::Quiet);
    }
}
