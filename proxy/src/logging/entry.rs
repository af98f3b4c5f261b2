//! One log entry as text, in three formats that every ordinary parser takes, whatever it holds.
//!
//! Knows neither levels to filter by nor where entries go.

use super::Format;
use log::kv::{self, Key, Value, VisitSource, VisitValue};
use log::{Level, Record};
use std::fmt::Write;
use std::time::SystemTime;

/// How entries are written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    pub(super) format: Format,
    pub(super) coloured: bool,
    pub(super) details: Details,
}

/// What an entry tells beyond its values. One at `Error` tells all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Details {
    None,
    /// The target.
    Some,
    /// Target, thread, module, file and line.
    All,
}

/// A value as JSON has it.
#[derive(Debug, PartialEq)]
enum Scalar {
    /// A number, a truth or nothing: the same in JSON and YAML, and in no need of quotes.
    Plain(String),
    Text(String),
}

/// Appends one entry, its last line ended.
pub(super) fn write(out: &mut String, style: Style, now: SystemTime, record: &Record<'_>) {
    let mut values = Values::default();
    // Only a visitor's own error ends the visit, and ours has none.
    let _ = record.key_values().visit(&mut values);
    let details = match record.level() {
        Level::Error => Details::All,
        Level::Warn | Level::Info | Level::Debug | Level::Trace => style.details,
    };
    let mut told = Vec::new();
    if details != Details::None {
        told.push(("target", Scalar::Text(record.target().to_owned())));
    }
    if details == Details::All {
        let text = |text: Option<&str>| Scalar::Text(text.unwrap_or_default().to_owned());
        let line = record.line().map_or("null".to_owned(), |line| line.to_string());
        told.push(("thread", Scalar::Text(thread_name())));
        told.push(("module", text(record.module_path())));
        told.push(("file", text(record.file())));
        told.push(("line", Scalar::Plain(line)));
    }
    let message = match record.args().as_str() {
        Some(constant) => constant.to_owned(),
        None => record.args().to_string(),
    };
    let time = rfc3339(now);
    let level = record.level();
    match style.format {
        Format::Txt => txt(out, style.coloured, &time, level, &message, &values.0, &told),
        Format::Json => json(out, &time, level, &message, &values.0, &told),
        Format::Yaml => yaml(out, &time, level, &message, &values.0, &told),
    }
}

type Named<'a> = &'a [(String, Scalar)];
type Told<'a> = &'a [(&'static str, Scalar)];

fn txt(
    out: &mut String,
    coloured: bool,
    time: &str,
    level: Level,
    message: &str,
    values: Named<'_>,
    details: Told<'_>,
) {
    let (dim, bright, plain) = if coloured {
        let bright = match level {
            Level::Error => "\x1b[1;31m",
            Level::Warn => "\x1b[33m",
            Level::Info => "\x1b[32m",
            Level::Debug => "\x1b[36m",
            Level::Trace => "\x1b[35m",
        };
        ("\x1b[2m", bright, "\x1b[0m")
    } else {
        ("", "", "")
    };
    let _ = write!(out, "{dim}[{time}]{plain} {bright}[{}]{plain} [", level_name(level));
    escape(out, message, "[]=");
    out.push(']');
    let named = values.iter().map(|(name, value)| (name.as_str(), value));
    for (name, value) in named.chain(details.iter().map(|(name, value)| (*name, value))) {
        out.push_str(" [");
        escape(out, name, "[]= ");
        out.push_str("=\"");
        match value {
            Scalar::Plain(text) => out.push_str(text),
            Scalar::Text(text) => escape(out, text, ""),
        }
        out.push_str("\"]");
    }
    out.push('\n');
}

fn json(
    out: &mut String,
    time: &str,
    level: Level,
    message: &str,
    values: Named<'_>,
    details: Told<'_>,
) {
    let _ = write!(out, r#"{{"time":"{time}","level":"{}","message":"#, level_name(level));
    quoted(out, message);
    out.push_str(r#","values":{"#);
    for (index, (name, value)) in values.iter().enumerate() {
        if index != 0 {
            out.push(',');
        }
        quoted(out, name);
        out.push(':');
        scalar(out, value);
    }
    out.push('}');
    for (name, value) in details {
        let _ = write!(out, r#","{name}":"#);
        scalar(out, value);
    }
    out.push_str("}\n");
}

/// Strings are written as in JSON: with no character in them that YAML would forbid or fold, that
/// is YAML's double-quoted style.
fn yaml(
    out: &mut String,
    time: &str,
    level: Level,
    message: &str,
    values: Named<'_>,
    details: Told<'_>,
) {
    let _ = write!(out, "---\ntime: \"{time}\"\nlevel: \"{}\"\nmessage: ", level_name(level));
    quoted(out, message);
    out.push_str(if values.is_empty() { "\nvalues: {}\n" } else { "\nvalues:\n" });
    for (name, value) in values {
        out.push_str("  ");
        // Without quotes, `no` would be a truth and `1` a number.
        quoted(out, name);
        out.push_str(": ");
        scalar(out, value);
        out.push('\n');
    }
    for (name, value) in details {
        let _ = write!(out, "{name}: ");
        scalar(out, value);
        out.push('\n');
    }
}

fn scalar(out: &mut String, value: &Scalar) {
    match value {
        Scalar::Plain(text) => out.push_str(text),
        Scalar::Text(text) => quoted(out, text),
    }
}

fn quoted(out: &mut String, text: &str) {
    out.push('"');
    escape(out, text, "");
    out.push('"');
}

/// Escapes as in a JSON string what JSON or YAML forbids there, what ends a line anywhere, what
/// changes the direction of a line, and `also`. All of it lies within 16 bits; what lies beyond
/// stands as it is, since YAML takes no surrogate pairs.
fn escape(out: &mut String, text: &str, also: &str) {
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\0'..='\x1f'
            | '\x7f'..='\u{9f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}'
            | '\u{feff}'
            | '\u{fffe}'
            | '\u{ffff}' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c if also.contains(c) => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
}

const fn level_name(level: Level) -> &'static str {
    match level {
        Level::Error => "Error",
        Level::Warn => "Warning",
        Level::Info => "Info",
        Level::Debug => "Debug",
        Level::Trace => "Verbose",
    }
}

fn thread_name() -> String {
    let thread = std::thread::current();
    thread.name().map_or_else(|| format!("{:?}", thread.id()), str::to_owned)
}

/// The values of an entry in their order, each name once: a later value replaces an earlier one, as
/// parsers that allow for two of a name have it.
#[derive(Default)]
struct Values(Vec<(String, Scalar)>);

impl<'kvs> VisitSource<'kvs> for Values {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        /// YAML takes keys of up to 1024 characters in this style, escapes counted.
        const NAME_CHARS_MAX: usize = 128;
        let name: String = key.as_str().chars().take(NAME_CHARS_MAX).collect();
        let mut reader = Reader(Scalar::Plain("null".to_owned()));
        value.visit(&mut reader)?;
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, value)) => *value = reader.0,
            None => self.0.push((name, reader.0)),
        }
        Ok(())
    }
}

struct Reader(Scalar);

impl<'v> VisitValue<'v> for &mut Reader {
    fn visit_any(&mut self, value: Value<'_>) -> Result<(), kv::Error> {
        self.0 = Scalar::Text(value.to_string());
        Ok(())
    }

    fn visit_null(&mut self) -> Result<(), kv::Error> {
        self.0 = Scalar::Plain("null".to_owned());
        Ok(())
    }

    fn visit_u64(&mut self, value: u64) -> Result<(), kv::Error> {
        self.0 = Scalar::Plain(value.to_string());
        Ok(())
    }

    fn visit_i64(&mut self, value: i64) -> Result<(), kv::Error> {
        self.0 = Scalar::Plain(value.to_string());
        Ok(())
    }

    fn visit_f64(&mut self, value: f64) -> Result<(), kv::Error> {
        // `Debug` keeps the point, so that a float stays one; it may take an exponent, of which
        // YAML 1.1 demands a sign.
        let text = format!("{value:?}");
        self.0 = if value.is_finite() && !text.contains('e') {
            Scalar::Plain(text)
        } else {
            Scalar::Text(text)
        };
        Ok(())
    }

    fn visit_bool(&mut self, value: bool) -> Result<(), kv::Error> {
        self.0 = Scalar::Plain(value.to_string());
        Ok(())
    }

    fn visit_str(&mut self, value: &str) -> Result<(), kv::Error> {
        self.0 = Scalar::Text(value.to_owned());
        Ok(())
    }
}

/// UTC with microseconds, of one width.
fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let micros = since.subsec_micros();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

/// Year, month and day, so many days after 1970-01-01: Howard Hinnant's `civil_from_days`. Years
/// begin in March there, so that the leap day is their last.
const fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

#[cfg(test)]
#[path = "entry_tests.rs"]
mod tests;
