//! One backend's page, as it is read into the merged one.
//!
//! Knows what belongs together on a page, and how much of it is looked at; does not know how the
//! merged page is written.

use super::line::{self, Label, Line, Sample, is_number};
use super::{
    BACKEND, Kind, Merged, NAME_BYTES_MAX, OWN, PAGE_BYTES_MAX, PAGE_FAMILIES_MAX, PAGE_LINES_MAX,
    Piece, lines, plain, series,
};
use alloc::borrow::Cow;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use memchr::{memchr, memrchr};

/// Keys of series, each with its family and its place there.
pub(super) type Keys = Vec<(u64, (usize, usize))>;

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

/// Where samples of a name go.
struct Known<'a> {
    name: Cow<'a, str>,
    hash: u64,
    family: usize,
    /// The label that must be there, and a number.
    required: Option<&'static str>,
}

/// A page as it is read.
pub(super) struct Scraped<'m, 'a> {
    merged: &'m mut Merged<'a>,
    families: BTreeMap<Cow<'a, str>, Local<'a>>,
    /// The name of the sample before. Most often the next one has it too.
    known: Option<Known<'a>>,
    /// Of the samples that were there.
    keys: &'m mut Keys,
    /// Those of one line, kept for their memory.
    labels: Vec<plain::Pair<'a>>,
}

impl<'m, 'a> Scraped<'m, 'a> {
    pub(super) fn new(merged: &'m mut Merged<'a>, keys: &'m mut Keys) -> Self {
        keys.clear();
        Self { merged, families: BTreeMap::new(), known: None, keys, labels: Vec::new() }
    }

    /// Takes the page in, and says how many lines are left out.
    pub(super) fn read(mut self, text: &'a [u8]) -> u64 {
        let looked_at = match text.get(..PAGE_BYTES_MAX) {
            // A line that is cut would say something else.
            Some(start) => &start[..memrchr(b'\n', start).map_or(0, |end| end + 1)],
            None => text,
        };
        let whole = core::str::from_utf8(looked_at).ok();
        let (mut left_out, mut at) = (0, 0);
        for _ in 0..PAGE_LINES_MAX {
            let rest = &looked_at[at..];
            if rest.is_empty() {
                break;
            }
            let end = memchr(b'\n', rest).unwrap_or(rest.len());
            let line = match whole {
                Some(text) => text.get(at..at + end),
                None => core::str::from_utf8(&rest[..end]).ok(),
            };
            left_out += u64::from(line.and_then(|line| self.line(line)).is_none());
            at = looked_at.len().min(at + end + 1);
        }
        left_out + lines(&text[at..]) + self.leave_out_repeated()
    }

    fn leave_out_repeated(self) -> u64 {
        let Self { merged, keys, .. } = self;
        let text = |(family, at): (usize, usize)| {
            let sample = sample(merged.families[family].samples[at].line)?;
            Some(series::text(&sample.name, &sorted(&sample.labels)?))
        };
        let repeated = series::repeated(keys, text);
        for &(family, at) in &repeated {
            merged.families[family].samples[at] = Piece { line: "", page: 0, name: 0 };
        }
        repeated.len() as u64
    }

    /// Takes a line in; `None` if it is left out.
    fn line(&mut self, line: &'a str) -> Option<()> {
        let before = self.known.as_ref().map_or("", |known| &known.name);
        if let Some(name) = plain::parse(line, before, &mut self.labels) {
            return self.plain(line, name);
        }
        match line::parse(line)? {
            Line::Nothing => Some(()),
            Line::Help(name, help) => self.help(name, help),
            Line::Type(name, kind) => self.kind(name, kind),
            Line::Sample(sample) => self.sample(line, sample),
        }
    }

    /// What the page says of the family of that name; `None` if the name cannot be one, or
    /// families are too many.
    fn local(&mut self, name: &Cow<'a, str>) -> Option<&mut Local<'a>> {
        if name.starts_with(OWN) || name.len() > NAME_BYTES_MAX {
            return None;
        }
        if !self.families.contains_key(name) {
            if self.families.len() == PAGE_FAMILIES_MAX {
                return None;
            }
            let unknown = Local { kind: Kind::Untyped, help: None, place: Place::Unknown };
            self.families.insert(name.clone(), unknown);
        }
        self.families.get_mut(name)
    }

    fn help(&mut self, name: Cow<'a, str>, help: &'a str) -> Option<()> {
        let local = self.local(&name)?;
        if local.help.is_some() {
            return None;
        }
        local.help = Some(help);
        if let Place::Family(at) = local.place {
            let family = &mut self.merged.families[at];
            family.help = family.help.or(Some(help));
        }
        self.known = None;
        Some(())
    }

    fn kind(&mut self, name: Cow<'a, str>, kind: Kind) -> Option<()> {
        let local = self.local(&name)?;
        // A second type, or one behind its samples.
        if !matches!(local.place, Place::Unknown) {
            return None;
        }
        local.kind = kind;
        let help = local.help;
        let family = self.merged.family(name.clone(), kind, help);
        self.local(&name)?.place = family.map_or(Place::Nowhere, Place::Family);
        self.known = None;
        Some(())
    }

    /// A sample whose line can be copied.
    fn plain(&mut self, line: &'a str, name: &'a str) -> Option<()> {
        if self.known.as_ref().is_none_or(|known| known.name != name) {
            self.known = Some(self.place(Cow::Borrowed(name))?);
        }
        let known = self.known.as_ref()?;
        if let Some(required) = known.required {
            self.labels.iter().find(|&&(name, limit)| name == required && is_number(limit))?;
        }
        let key = series::key(known.hash, self.labels.iter().copied());
        let at = self.merged.push(known.family, line, name.len());
        self.keys.push((key, (known.family, at)));
        Some(())
    }

    /// Any other sample.
    fn sample(&mut self, line: &'a str, mut sample: Sample<'a>) -> Option<()> {
        rename(&mut sample)?;
        let sorted = sorted(&sample.labels)?;
        let known = self.place(sample.name)?;
        if let Some(required) = known.required {
            find(&sorted, required).filter(|at| is_number(sample.labels[*at].value))?;
        }
        let labels = sorted.iter().map(|(_, label)| (&*label.name, label.value));
        let key = series::key(known.hash, labels);
        let at = self.merged.push(known.family, line, 0);
        self.keys.push((key, (known.family, at)));
        Some(())
    }

    /// Where samples of a name go, if anywhere.
    fn place(&mut self, name: Cow<'a, str>) -> Option<Known<'a>> {
        if name.starts_with(OWN) {
            return None;
        }
        let (base, suffix) = self.belongs(&name);
        let base = base.unwrap_or_else(|| name.clone());
        let &mut Local { kind, help, place } = self.local(&base)?;
        if !kind.suffixes().contains(&suffix) {
            return None;
        }
        let family = match place {
            Place::Nowhere => return None,
            Place::Family(at) => at,
            Place::Unknown => {
                let family = self.merged.family(base.clone(), kind, help);
                self.local(&base)?.place = family.map_or(Place::Nowhere, Place::Family);
                family?
            }
        };
        self.merged.owns(family, name.clone()).then(|| Known {
            hash: series::hash(0, &name),
            name,
            family,
            required: kind.required(suffix),
        })
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

/// The sample that a line is, as it is called here.
pub(super) fn sample(line: &str) -> Option<Sample<'_>> {
    let Line::Sample(mut sample) = line::parse(line)? else { return None };
    rename(&mut sample)?;
    Some(sample)
}

/// Makes room for our own label; `None` if a label is there twice.
fn rename(sample: &mut Sample<'_>) -> Option<()> {
    if sample.labels.iter().any(|label| label.name == BACKEND)
        && let Some((at, name)) = exported(&sorted(&sample.labels)?)
    {
        sample.labels[at].name = Cow::Owned(name);
    }
    Some(())
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
