//! Families of metrics: what kinds there are, and how the proxy writes its own.
//!
//! Knows names, suffixes and escapes; does not know what is measured.

use super::{OWN, line};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};

/// What a family's samples mean, and by that which names they may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only ever grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Observations, counted in buckets.
    Histogram,
    /// Observations, as quantiles.
    Summary,
    /// Nobody said.
    Untyped,
}

impl Kind {
    pub(super) fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "counter" => Self::Counter,
            "gauge" => Self::Gauge,
            "histogram" => Self::Histogram,
            "summary" => Self::Summary,
            "untyped" => Self::Untyped,
            _ => return None,
        })
    }

    pub(super) const fn text(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Summary => "summary",
            Self::Untyped => "untyped",
        }
    }

    /// What the names of samples have behind the family's. `_total` and `_created` are so in
    /// OpenMetrics; Python's client declares them as families of their own in this format.
    pub(super) const fn suffixes(self) -> &'static [&'static str] {
        match self {
            Self::Counter => &["", "_total", "_created"],
            Self::Histogram => &["_bucket", "_sum", "_count", "_created"],
            Self::Summary => &["", "_sum", "_count", "_created"],
            Self::Gauge | Self::Untyped => &[""],
        }
    }

    /// Those without which a family would be in pieces: no other family may bear these names.
    pub(super) const fn parts(self) -> &'static [&'static str] {
        match self {
            Self::Histogram => &["_bucket", "_sum", "_count"],
            Self::Summary => &["_sum", "_count"],
            Self::Counter | Self::Gauge | Self::Untyped => &[],
        }
    }

    /// The label that must be there, and a number, where a sample has this suffix.
    pub(super) fn required(self, suffix: &str) -> Option<&'static str> {
        match (self, suffix) {
            (Self::Histogram, "_bucket") => Some("le"),
            (Self::Summary, "") => Some("quantile"),
            _ => None,
        }
    }
}

/// The proxy's own families, as they are written.
#[derive(Clone, Debug, Default)]
pub struct Families {
    text: String,
}

impl Families {
    /// Begins a family. Its name needs no quotes and begins with `vllm_proxy_`.
    pub fn family(&mut self, name: &str, kind: Kind, help: &str) {
        debug_assert!(name.starts_with(OWN) && line::is_plain(name, true), "not a name of ours");
        let _ = write!(self.text, "# HELP {name} ");
        for c in help.chars() {
            match c {
                '\\' => self.text.push_str("\\\\"),
                '\n' => self.text.push_str("\\n"),
                _ => self.text.push(c),
            }
        }
        let _ = write!(self.text, "\n# TYPE {name} {}\n", kind.text());
    }

    /// A sample of the family that was begun last, under its name or one with a suffix.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: Value) {
        self.text.push_str(name);
        for (at, (name, value)) in labels.iter().enumerate() {
            self.text.push(if at == 0 { '{' } else { ',' });
            let _ = write!(self.text, "{name}=\"");
            escape(&mut self.text, value);
            self.text.push('"');
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.text, "{end} {value}");
    }

    /// All of them.
    pub fn finish(self) -> Vec<u8> {
        self.text.into_bytes()
    }
}

/// The value of a sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// A count.
    Integer(u64),
    /// A share, or seconds.
    Decimal(f64),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Integer(value) => value.fmt(f),
            Self::Decimal(f64::INFINITY) => f.write_str("+Inf"),
            Self::Decimal(f64::NEG_INFINITY) => f.write_str("-Inf"),
            Self::Decimal(value) => value.fmt(f),
        }
    }
}

/// A name, in quotes if it needs them.
pub(super) fn write_name(text: &mut String, name: &str, colons: bool) {
    if line::is_plain(name, colons) {
        text.push_str(name);
    } else {
        text.push('"');
        escape(text, name);
        text.push('"');
    }
}

/// A label's value or a name, as it stands in quotes.
pub(super) fn escape(text: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            _ => text.push(c),
        }
    }
}
