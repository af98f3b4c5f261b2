//! Pages of metrics in the Prometheus text format (0.0.4 and 1.0.0): several become one.
//!
//! Knows names, labels and families; does not know what any of them means (only [`cache_report`]
//! does, of a few), and adds nothing up: whoever reads the page can, by the label `backend` that
//! every sample gets. What a strict scraper would refuse is left out, since it would refuse the
//! page of all backends with it.

mod cache;
mod families;
mod line;
mod plain;
mod scraped;
mod series;
#[cfg(test)]
pub(super) mod tests;

use alloc::borrow::Cow;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;
use families::{escape, write_name};
use line::Sample;
use scraped::Scraped;

pub use cache::cache_report;
pub use families::{Families, Kind, Value};

/// The `content-type` of a page; what vLLM 0.32 and later say.
pub const CONTENT_TYPE: &str = "text/plain; version=1.0.0; charset=utf-8";

/// How names begin that are the proxy's own: no backend may use them.
const OWN: &str = "vllm_proxy";
/// The label that tells one backend's series from another's.
const BACKEND: &str = "backend";

/// Text of one page that is looked at, forty times a long one of vLLM's (100 KiB, 1,000 lines). A
/// merge is done in one piece, and nothing else of its thread is served meanwhile.
const PAGE_BYTES_MAX: usize = 4 << 20;
/// Lines of one page that are looked at, and so its series: as many as fit into
/// [`PAGE_BYTES_MAX`] at the length that vLLM's have.
const PAGE_LINES_MAX: usize = 50_000;
/// Families of one page, of which vLLM has some dozens. Each takes some hundred bytes of memory,
/// however short it is on the page.
const PAGE_FAMILIES_MAX: usize = 5_000;
/// Length of a metric's name; a histogram's is in memory four times.
const NAME_BYTES_MAX: usize = 256;

/// What one backend says of itself.
#[derive(Clone, Copy, Debug)]
pub struct Page<'a> {
    /// Its address. A second page of the same backend is left out.
    pub backend: &'a str,
    /// The page as it came.
    pub text: &'a [u8],
}

/// All pages as one, then the proxy's own families as they are; and how many lines were left out:
/// malformed, twice there, in conflict with an earlier family, under a name of the proxy's, or
/// more than is looked at of one page.
///
/// Families stand in the order of their first appearance. The first backend's word holds for a
/// family's help and type; samples of a family that another backend types differently are out.
pub fn merge(pages: &[Page<'_>], own: &[u8]) -> (Vec<u8>, u64) {
    let mut merged = Merged::default();
    let mut left_out = 0;
    let mut backends = BTreeSet::new();
    let mut keys = Vec::new();
    for page in pages {
        left_out += if backends.insert(page.backend) {
            merged.begin(page);
            Scraped::new(&mut merged, &mut keys).read(page.text)
        } else {
            lines(page.text)
        };
    }
    (merged.text(own), left_out)
}

/// How many lines there are, empty ones aside.
fn lines(text: &[u8]) -> u64 {
    let ends = text.windows(2).filter(|pair| pair[0] != b'\n' && pair[1] == b'\n').count();
    ends as u64 + u64::from(text.last().is_some_and(|&byte| byte != b'\n'))
}

/// A family of the merged page.
struct Family<'a> {
    name: Cow<'a, str>,
    help: Option<&'a str>,
    kind: Kind,
    /// Of all backends.
    samples: Vec<Piece<'a>>,
}

/// A sample of the merged page, by the line that it comes from.
struct Piece<'a> {
    /// Empty, if its series was there already.
    line: &'a str,
    page: usize,
    /// The length of its name, if the line is plain; else 0, and it is to be written anew.
    name: usize,
}

#[derive(Default)]
struct Merged<'a> {
    families: Vec<Family<'a>>,
    /// Whose each name is. A name belongs to one family only: with `a` a histogram and `a_count`
    /// a gauge, no reader could tell whose an `a_count` is.
    owners: BTreeMap<Cow<'a, str>, usize>,
    /// `{backend="address"` of each page.
    labels: Vec<String>,
    /// About the length of all that will be written.
    len: usize,
}

impl<'a> Merged<'a> {
    /// A page of a backend that had none so far.
    fn begin(&mut self, page: &Page<'_>) {
        let mut label = format!("{{{BACKEND}=\"");
        escape(&mut label, page.backend);
        label.push('"');
        self.labels.push(label);
    }

    /// The family of that name, a new one if there is none; `None` if it is in conflict with one
    /// that was there before.
    fn family(&mut self, name: Cow<'a, str>, kind: Kind, help: Option<&'a str>) -> Option<usize> {
        if let Some(&at) = self.owners.get(&name) {
            let family = &mut self.families[at];
            if family.name != name || family.kind != kind {
                return None;
            }
            family.help = family.help.or(help);
            return Some(at);
        }
        let parts = kind.parts().iter().map(|part| Cow::Owned(format!("{name}{part}")));
        let parts: Vec<Cow<'a, str>> = parts.collect();
        if parts.iter().any(|part| self.owners.contains_key(part)) {
            return None;
        }
        let at = self.families.len();
        self.owners.insert(name.clone(), at);
        self.owners.extend(parts.into_iter().map(|part| (part, at)));
        self.len +=
            2 * name.len() + help.map_or(0, str::len) + "# HELP  \n# TYPE  histogram\n".len();
        self.families.push(Family { name, help, kind, samples: Vec::new() });
        Some(at)
    }

    /// Whether samples of that name are this family's.
    fn owns(&mut self, at: usize, name: Cow<'a, str>) -> bool {
        *self.owners.entry(name).or_insert(at) == at
    }

    /// Takes a sample of the page that was begun last, and says which of the family's it is.
    fn push(&mut self, at: usize, line: &'a str, name: usize) -> usize {
        let page = self.labels.len() - 1;
        self.len += line.len() + self.labels[page].len() + "}\n".len();
        let samples = &mut self.families[at].samples;
        samples.push(Piece { line, page, name });
        samples.len() - 1
    }

    fn text(&self, own: &[u8]) -> Vec<u8> {
        let mut text = Vec::with_capacity(self.len + own.len() + "\n".len());
        let mut line = String::new();
        for family in &self.families {
            line.clear();
            if let Some(help) = family.help {
                line.push_str("# HELP ");
                write_name(&mut line, &family.name, true);
                let _ = writeln!(line, " {help}");
            }
            // Said even of untyped ones: else `a_sum` behind a histogram `a` could seem its part.
            line.push_str("# TYPE ");
            write_name(&mut line, &family.name, true);
            let _ = writeln!(line, " {}", family.kind.text());
            text.extend_from_slice(line.as_bytes());
            for piece in &family.samples {
                self.write(&mut text, piece, &mut line);
            }
        }
        text.extend_from_slice(own);
        if text.last().is_some_and(|&byte| byte != b'\n') {
            text.push(b'\n');
        }
        text
    }

    fn write(&self, text: &mut Vec<u8>, piece: &Piece<'_>, line: &mut String) {
        let label = &self.labels[piece.page];
        if piece.name == 0 {
            if let Some(sample) = scraped::sample(piece.line) {
                line.clear();
                write_sample(line, label, &sample);
                text.extend_from_slice(line.as_bytes());
            }
            return;
        }
        let (name, rest) = piece.line.split_at(piece.name);
        text.extend_from_slice(name.as_bytes());
        text.extend_from_slice(label.as_bytes());
        match rest.strip_prefix('{') {
            Some(labels) => {
                text.push(b',');
                text.extend_from_slice(labels.as_bytes());
            }
            None => {
                text.push(b'}');
                text.extend_from_slice(rest.as_bytes());
            }
        }
        text.push(b'\n');
    }
}

/// A sample that is not written as it stood.
fn write_sample(text: &mut String, backend: &str, sample: &Sample<'_>) {
    if line::is_plain(&sample.name, true) {
        text.push_str(&sample.name);
        text.push_str(backend);
    } else {
        text.push('{');
        write_name(text, &sample.name, true);
        text.push(',');
        text.push_str(backend.strip_prefix('{').unwrap_or(backend));
    }
    for label in &sample.labels {
        text.push(',');
        write_name(text, &label.name, false);
        text.push_str("=\"");
        text.push_str(label.value);
        text.push('"');
    }
    let _ = write!(text, "}} {}", sample.value);
    if let Some(timestamp) = sample.timestamp {
        let _ = write!(text, " {timestamp}");
    }
    text.push('\n');
}
