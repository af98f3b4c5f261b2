//! Pages of metrics in the Prometheus text format (0.0.4 and 1.0.0): several become one.
//!
//! Knows names, labels and families; does not know what any of them means, and adds nothing up:
//! whoever reads the page can, by the label `backend` that every sample gets. What a strict
//! scraper would refuse is left out, since it would refuse the page of all backends with it.

mod families;
mod line;
#[cfg(test)]
mod tests;

use alloc::borrow::Cow;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;
use families::{escape, write_name};
use line::{Label, Line, Sample};

pub use families::{Families, Kind, Value};

/// The `content-type` of a page; what vLLM 0.32 and later say.
pub const CONTENT_TYPE: &str = "text/plain; version=1.0.0; charset=utf-8";

/// How names begin that are the proxy's own: no backend may use them.
const OWN: &str = "vllm_proxy";
/// The label that tells one backend's series from another's.
const BACKEND: &str = "backend";

/// What one backend says of itself.
#[derive(Clone, Copy, Debug)]
pub struct Page<'a> {
    /// Its address. A second page of the same backend is left out.
    pub backend: &'a str,
    /// The page as it came.
    pub text: &'a [u8],
}

/// All pages as one, then the proxy's own families as they are; and how many lines were left out:
/// malformed, twice there, in conflict with an earlier family, or under a name of the proxy's.
///
/// Families stand in the order of their first appearance. The first backend's word holds for a
/// family's help and type; samples of a family that another backend types differently are out.
pub fn merge(pages: &[Page<'_>], own: &[u8]) -> (Vec<u8>, u64) {
    let mut merged = Merged::default();
    let mut backends = BTreeSet::new();
    for page in pages {
        let lines = page.text.split(|&byte| byte == b'\n');
        if backends.insert(page.backend) {
            let mut scraped = Scraped::new(page.backend);
            for line in lines {
                merged.left_out += u64::from(scraped.line(&mut merged, line).is_none());
            }
        } else {
            merged.left_out += lines.filter(|line| !line.trim_ascii().is_empty()).count() as u64;
        }
    }
    let mut text = merged.text();
    text.extend_from_slice(own);
    if text.last().is_some_and(|&byte| byte != b'\n') {
        text.push(b'\n');
    }
    (text, merged.left_out)
}

/// A family of the merged page.
struct Family<'a> {
    name: Cow<'a, str>,
    help: Option<&'a str>,
    kind: Kind,
    /// Of all backends, as they are written.
    samples: String,
}

#[derive(Default)]
struct Merged<'a> {
    families: Vec<Family<'a>>,
    /// Whose each name is. A name belongs to one family only: with `a` a histogram and `a_count`
    /// a gauge, no reader could tell whose an `a_count` is.
    owners: BTreeMap<Cow<'a, str>, usize>,
    left_out: u64,
}

impl<'a> Merged<'a> {
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
        self.families.push(Family { name, help, kind, samples: String::new() });
        Some(at)
    }

    fn text(&self) -> Vec<u8> {
        let mut text = String::new();
        for family in &self.families {
            if let Some(help) = family.help {
                text.push_str("# HELP ");
                write_name(&mut text, &family.name, true);
                let _ = writeln!(text, " {help}");
            }
            // Said even of untyped ones: else `a_sum` behind a histogram `a` could seem its part.
            text.push_str("# TYPE ");
            write_name(&mut text, &family.name, true);
            let _ = writeln!(text, " {}", family.kind.text());
            text.push_str(&family.samples);
        }
        text.into_bytes()
    }
}

/// What one page says of a family.
struct Local<'a> {
    kind: Kind,
    help: Option<&'a str>,
    place: Place,
}

/// Where the samples of a page's family go.
#[derive(Clone, Copy)]
enum Place {
    /// Neither a type nor a sample was there.
    Unknown,
    Family(usize),
    /// In conflict with an earlier family.
    Nowhere,
}

/// A page as it is read.
struct Scraped<'a> {
    /// `backend="address"`.
    label: String,
    families: BTreeMap<Cow<'a, str>, Local<'a>>,
    /// Names and sorted labels of the samples that were there.
    seen: BTreeSet<String>,
}

impl<'a> Scraped<'a> {
    fn new(backend: &str) -> Self {
        let mut label = format!("{BACKEND}=\"");
        escape(&mut label, backend);
        label.push('"');
        Self { label, families: BTreeMap::new(), seen: BTreeSet::new() }
    }

    /// Takes a line in; `None` if it is left out.
    fn line(&mut self, merged: &mut Merged<'a>, line: &'a [u8]) -> Option<()> {
        match line::parse(line)? {
            Line::Nothing => Some(()),
            Line::Help(name, help) => self.help(merged, name, help),
            Line::Type(name, kind) => self.kind(merged, name, kind),
            Line::Sample(sample) => self.sample(merged, sample),
        }
    }

    fn local(&mut self, name: Cow<'a, str>) -> &mut Local<'a> {
        let unknown = || Local { kind: Kind::Untyped, help: None, place: Place::Unknown };
        self.families.entry(name).or_insert_with(unknown)
    }

    fn help(&mut self, merged: &mut Merged<'a>, name: Cow<'a, str>, help: &'a str) -> Option<()> {
        if name.starts_with(OWN) {
            return None;
        }
        let local = self.local(name);
        if local.help.is_some() {
            return None;
        }
        local.help = Some(help);
        if let Place::Family(at) = local.place {
            let family = &mut merged.families[at];
            family.help = family.help.or(Some(help));
        }
        Some(())
    }

    fn kind(&mut self, merged: &mut Merged<'a>, name: Cow<'a, str>, kind: Kind) -> Option<()> {
        if name.starts_with(OWN) {
            return None;
        }
        let local = self.local(name.clone());
        // A second type, or one behind its samples.
        if !matches!(local.place, Place::Unknown) {
            return None;
        }
        local.kind = kind;
        local.place = merged.family(name, kind, local.help).map_or(Place::Nowhere, Place::Family);
        Some(())
    }

    fn sample(&mut self, merged: &mut Merged<'a>, mut sample: Sample<'a>) -> Option<()> {
        if sample.name.starts_with(OWN) {
            return None;
        }
        if let Some((at, name)) = exported(&sorted(&sample.labels)?) {
            sample.labels[at].name = Cow::Owned(name);
        }
        let sorted = sorted(&sample.labels)?;
        let (base, suffix) = self.belongs(&sample.name);
        let base = base.unwrap_or_else(|| sample.name.clone());
        let local = self.local(base.clone());
        if !local.kind.suffixes().contains(&suffix) {
            return None;
        }
        if let Some(required) = local.kind.required(suffix) {
            let value = sample.labels[find(&sorted, required)?].value;
            value.parse::<f64>().ok()?;
        }
        if matches!(local.place, Place::Unknown) {
            let family = merged.family(base, local.kind, local.help);
            local.place = family.map_or(Place::Nowhere, Place::Family);
        }
        let Place::Family(at) = local.place else { return None };
        if *merged.owners.entry(sample.name.clone()).or_insert(at) != at
            || !self.seen.insert(series(&sample.name, &sorted))
        {
            return None;
        }
        write_sample(&mut merged.families[at].samples, &self.label, &sample);
        Some(())
    }

    /// The family of this page that a sample belongs to, if it is not one by its own name; and
    /// what the sample's name has behind the family's.
    fn belongs(&self, name: &Cow<'a, str>) -> (Option<Cow<'a, str>>, &'static str) {
        if self.families.contains_key(name) {
            return (None, "");
        }
        for suffix in ["_bucket", "_sum", "_count", "_total", "_created"] {
            let family =
                name.strip_suffix(suffix).and_then(|base| self.families.get_key_value(base));
            if let Some((base, local)) = family
                && local.kind.suffixes().contains(&suffix)
            {
                return (Some(base.clone()), suffix);
            }
        }
        (None, "")
    }
}

/// A sample's labels in the order of their names, each with its place; `None` if a name is there
/// twice.
fn sorted<'b, 'a>(labels: &'b [Label<'a>]) -> Option<Vec<(usize, &'b Label<'a>)>> {
    let mut sorted: Vec<_> = labels.iter().enumerate().collect();
    sorted.sort_unstable_by(|(_, a), (_, b)| a.name.cmp(&b.name));
    let twice = sorted.windows(2).any(|pair| pair[0].1.name == pair[1].1.name);
    (!twice).then_some(sorted)
}

/// The place of a label.
fn find(sorted: &[(usize, &Label<'_>)], name: &str) -> Option<usize> {
    let found = sorted.binary_search_by(|(_, label)| (*label.name).cmp(name));
    found.ok().map(|found| sorted[found].0)
}

/// The place of a backend's own label `backend`, and what it is called here: as Prometheus would
/// call it, with one more `exported_` while that is taken.
fn exported(sorted: &[(usize, &Label<'_>)]) -> Option<(usize, String)> {
    let at = find(sorted, BACKEND)?;
    let mut name = format!("exported_{BACKEND}");
    while find(sorted, &name).is_some() {
        name.insert_str(0, "exported_");
    }
    Some((at, name))
}

/// What a series is known by. To Prometheus an empty label is none.
fn series(name: &str, sorted: &[(usize, &Label<'_>)]) -> String {
    let mut series = String::new();
    write_name(&mut series, name, true);
    for (_, label) in sorted.iter().filter(|(_, label)| !label.value.is_empty()) {
        series.push(',');
        write_name(&mut series, &label.name, false);
        let _ = write!(series, "=\"{}\"", label.value);
    }
    series
}

fn write_sample(text: &mut String, backend: &str, sample: &Sample<'_>) {
    if line::is_plain(&sample.name, true) {
        let _ = write!(text, "{}{{{backend}", sample.name);
    } else {
        text.push('{');
        write_name(text, &sample.name, true);
        let _ = write!(text, ",{backend}");
    }
    for label in &sample.labels {
        text.push(',');
        write_name(text, &label.name, false);
        let _ = write!(text, "=\"{}\"", label.value);
    }
    let _ = write!(text, "}} {}", sample.value);
    if let Some(timestamp) = sample.timestamp {
        let _ = write!(text, " {timestamp}");
    }
    text.push('\n');
}
