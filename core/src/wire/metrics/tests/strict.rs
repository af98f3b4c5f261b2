//! A strict reader of the Prometheus text format (1.0.0), to judge pages by.
//!
//! Written from the specification and without a line of what it judges: it refuses all that the
//! format forbids, and all that it only asks for, such as one group of lines for a family.

use std::collections::{BTreeMap, BTreeSet};
use std::format;
use std::string::String;
use std::vec::Vec;

pub(crate) type Labels = BTreeMap<String, String>;

#[derive(Debug)]
pub(crate) struct Family {
    pub(crate) name: String,
    pub(crate) help: Option<String>,
    pub(crate) kind: Option<String>,
    pub(crate) samples: Vec<Sample>,
}

#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: Labels,
    pub(crate) value: f64,
    pub(crate) timestamp: Option<i64>,
}

/// The families of a page, in its order; or the first line that is wrong, and why.
pub(crate) fn parse(page: &[u8]) -> Result<Vec<Family>, String> {
    let text = std::str::from_utf8(page).map_err(|_| "not UTF-8")?;
    if !text.is_empty() && !text.ends_with('\n') {
        return Err("no line feed at the end".into());
    }
    let mut reader =
        Reader { families: Vec::new(), names: BTreeSet::new(), series: BTreeSet::new() };
    for line in text.split_terminator('\n') {
        reader.line(line).map_err(|why| format!("{why}: {line:?}"))?;
    }
    Ok(reader.families)
}

struct Reader {
    families: Vec<Family>,
    names: BTreeSet<String>,
    series: BTreeSet<(String, Vec<(String, String)>)>,
}

impl Reader {
    fn line(&mut self, line: &str) -> Result<(), String> {
        let Some(comment) = line.strip_prefix("# ") else { return self.sample(line) };
        let (word, rest) = comment.split_once(' ').ok_or("a comment of no use")?;
        let mut scan = Scan(rest);
        let name = if rest.starts_with('"') { scan.quoted("\\\"n")? } else { scan.plain(true)? };
        let rest = scan.0.strip_prefix(' ').ok_or("no blank behind the name")?;
        let family = self.family(&name)?;
        if !family.samples.is_empty() {
            return Err("behind the family's samples".into());
        }
        match word {
            "HELP" if family.help.is_none() => family.help = Some(unescape(rest, "\\n")?),
            "TYPE" if family.kind.is_none() => {
                let kinds = ["counter", "gauge", "histogram", "summary", "untyped"];
                family.kind = Some(rest.into());
                return if kinds.contains(&rest) { Ok(()) } else { Err("no such type".into()) };
            }
            _ => return Err("not HELP or TYPE, or a second one".into()),
        }
        Ok(())
    }

    /// The family at the end of the page, or a new one.
    fn family(&mut self, name: &str) -> Result<&mut Family, String> {
        if self.families.last().is_none_or(|family| family.name != name) {
            if !self.names.insert(name.into()) {
                return Err("the family's lines are apart".into());
            }
            let (name, samples) = (name.into(), Vec::new());
            self.families.push(Family { name, help: None, kind: None, samples });
        }
        self.families.last_mut().ok_or_else(|| "no family".into())
    }

    fn sample(&mut self, line: &str) -> Result<(), String> {
        let sample = sample(line)?;
        let labels = sample.labels.iter().filter(|(_, value)| !value.is_empty());
        let labels = labels.map(|(name, value)| (name.clone(), value.clone())).collect();
        if !self.series.insert((sample.name.clone(), labels)) {
            return Err("the series is there twice".into());
        }
        let family = self.owner(&sample.name)?;
        let suffix = sample.name.strip_prefix(family.name.as_str()).ok_or("of another family")?;
        let needs = match (family.kind.as_deref(), suffix) {
            (Some("histogram"), "_bucket") => Some("le"),
            (Some("summary"), "") => Some("quantile"),
            (Some("histogram"), "") => return Err("a histogram has no such sample".into()),
            _ => None,
        };
        if let Some(needs) = needs {
            let value = sample.labels.get(needs).ok_or("without its label")?;
            value.parse::<f64>().map_err(|_| "its label is not a number")?;
        }
        family.samples.push(sample);
        Ok(())
    }

    /// The family that a name says it is of, else one that it is a part of, else a new one.
    fn owner(&mut self, name: &str) -> Result<&mut Family, String> {
        if !self.names.contains(name) {
            for suffix in ["_bucket", "_sum", "_count", "_total", "_created"] {
                let Some(base) = name.strip_suffix(suffix) else { continue };
                let kind = self.families.iter().find(|family| family.name == base);
                let is_part = match kind.and_then(|family| family.kind.as_deref()) {
                    Some("histogram") => suffix != "_total",
                    Some("summary") => suffix != "_total" && suffix != "_bucket",
                    Some("counter") => suffix == "_total" || suffix == "_created",
                    _ => false,
                };
                if is_part {
                    return self.family(base);
                }
            }
        }
        self.family(name)
    }
}

fn sample(line: &str) -> Result<Sample, String> {
    let mut scan = Scan(line);
    let mut name = if line.starts_with('{') { String::new() } else { scan.plain(true)? };
    let mut labels = Labels::new();
    if scan.eat('{') {
        loop {
            if scan.0.starts_with('"') {
                let text = scan.quoted("\\\"n")?;
                if !scan.eat('=') {
                    if !name.is_empty() || !labels.is_empty() {
                        return Err("a name without a value".into());
                    }
                    name = text;
                } else if labels.insert(text, scan.quoted("\\\"n")?).is_some() {
                    return Err("a label twice".into());
                }
            } else {
                let label = scan.plain(false)?;
                if !scan.eat('=') || labels.insert(label, scan.quoted("\\\"n")?).is_some() {
                    return Err("a label twice, or without a value".into());
                }
            }
            if scan.eat('}') {
                break;
            }
            if !scan.eat(',') {
                return Err("no comma between labels".into());
            }
        }
    }
    if name.is_empty() || labels.contains_key("__name__") {
        return Err("no name, or two".into());
    }
    let rest = scan.0.strip_prefix(' ').ok_or("no blank before the value")?;
    let (value, timestamp) = match rest.split_once(' ') {
        Some((value, timestamp)) => (value, Some(timestamp)),
        None => (rest, None),
    };
    let timestamp = timestamp.map(str::parse).transpose().map_err(|_| "no such time")?;
    Ok(Sample { name, labels, value: number(value)?, timestamp })
}

fn number(text: &str) -> Result<f64, String> {
    let digits = |c: char| c.is_ascii_digit() || "+-.eE".contains(c);
    match text.to_ascii_lowercase().trim_start_matches(['+', '-']) {
        "inf" | "infinity" => {}
        "nan" if text.len() == 3 => {}
        _ if text.chars().all(digits) => {}
        _ => return Err("not a number".into()),
    }
    text.parse().map_err(|_| "not a number".into())
}

fn unescape(text: &str, escapes: &str) -> Result<String, String> {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        let escaped = chars.next().filter(|&c| escapes.contains(c)).ok_or("a bad escape")?;
        out.push(if escaped == 'n' { '\n' } else { escaped });
    }
    Ok(out)
}

struct Scan<'a>(&'a str);

impl Scan<'_> {
    fn eat(&mut self, c: char) -> bool {
        let rest = self.0.strip_prefix(c);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    fn plain(&mut self, colons: bool) -> Result<String, String> {
        let good = |c: char| c.is_ascii_alphanumeric() || c == '_' || (colons && c == ':');
        let len = self.0.find(|c| !good(c)).unwrap_or(self.0.len());
        let (name, rest) = self.0.split_at(len);
        self.0 = rest;
        match name.chars().next() {
            Some(c) if !c.is_ascii_digit() => Ok(name.into()),
            _ => Err("not a name".into()),
        }
    }

    fn quoted(&mut self, escapes: &str) -> Result<String, String> {
        let text = self.0.strip_prefix('"').ok_or("no quote")?;
        let mut end = 0;
        while let Some(at) = text[end..].find(['"', '\\']) {
            end += at;
            if text[end..].starts_with('"') {
                self.0 = &text[end + 1..];
                return unescape(&text[..end], escapes);
            }
            let escaped = text[end + 1..].chars().next().ok_or("no end of the quotes")?;
            end += 1 + escaped.len_utf8();
        }
        Err("no end of the quotes".into())
    }
}

/// Whether each histogram's buckets grow, up to one of all that agrees with the count.
pub(crate) fn check_histograms(families: &[Family]) -> Result<(), String> {
    for family in families.iter().filter(|f| f.kind.as_deref() == Some("histogram")) {
        let mut buckets: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
        let mut counts: BTreeMap<Labels, f64> = BTreeMap::new();
        let mut sums: BTreeSet<Labels> = BTreeSet::new();
        for sample in &family.samples {
            let mut labels = sample.labels.clone();
            match &sample.name[family.name.len()..] {
                "_bucket" => {
                    let limit = labels.remove("le").and_then(|le| le.parse().ok());
                    let limit = limit.ok_or_else(|| format!("{}: no limit", family.name))?;
                    buckets.entry(labels).or_default().push((limit, sample.value));
                }
                "_count" => drop(counts.insert(labels, sample.value)),
                "_sum" => drop(sums.insert(labels)),
                _ => {}
            }
        }
        for (labels, buckets) in &buckets {
            let grow =
                buckets.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1);
            let last = buckets.last().filter(|last| last.0 == f64::INFINITY).map(|last| last.1);
            if !grow || last.is_none() || last != counts.get(labels).copied() {
                return Err(format!("{}{labels:?}: {buckets:?}", family.name));
            }
        }
        if !buckets.keys().eq(counts.keys()) || !buckets.keys().eq(sums.iter()) {
            return Err(format!("{}: buckets, counts and sums differ", family.name));
        }
    }
    Ok(())
}
