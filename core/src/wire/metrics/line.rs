//! One line of a page in the Prometheus text format.
//!
//! Knows the grammar of versions 0.0.4 and 1.0.0 (names in quotes); does not know which family a
//! sample belongs to. What a strict scraper would refuse is refused here: the scraper of a merged
//! page refuses all of it for one bad line.

use super::Kind;
use alloc::borrow::Cow;
use alloc::string::String;
use alloc::vec::Vec;

/// Labels of one sample, of which vLLM's have up to some dozens; a line with more is malformed.
/// Each takes several times the memory of its shortest text.
const LABELS_MAX: usize = 128;

/// What a line says.
pub(super) enum Line<'a> {
    /// An empty line, or a comment: `# EOF` and `# UNIT` of OpenMetrics are no more than that here.
    Nothing,
    /// `# HELP name text`, the text with its escapes.
    Help(Cow<'a, str>, &'a str),
    /// `# TYPE name kind`.
    Type(Cow<'a, str>, Kind),
    Sample(Sample<'a>),
}

/// `name{labels} value timestamp`.
pub(super) struct Sample<'a> {
    pub(super) name: Cow<'a, str>,
    pub(super) labels: Vec<Label<'a>>,
    pub(super) value: &'a str,
    /// Milliseconds.
    pub(super) timestamp: Option<&'a str>,
}

pub(super) struct Label<'a> {
    pub(super) name: Cow<'a, str>,
    /// Between the quotes, with its escapes.
    pub(super) value: &'a str,
}

/// The line, which comes without its line feed; `None` if it is malformed.
pub(super) fn parse(line: &str) -> Option<Line<'_>> {
    let mut cursor = Cursor(line.strip_suffix('\r').unwrap_or(line));
    cursor.skip_blanks();
    if cursor.0.is_empty() {
        return Some(Line::Nothing);
    }
    if cursor.eat('#') { comment(cursor) } else { sample(cursor).map(Line::Sample) }
}

/// Whether a name needs no quotes; colons are for metrics only.
pub(super) fn is_plain(name: &str, colons: bool) -> bool {
    let first = |c: char| c.is_ascii_alphabetic() || c == '_' || (colons && c == ':');
    name.starts_with(first) && name.chars().all(|c| first(c) || c.is_ascii_digit())
}

fn comment(mut cursor: Cursor<'_>) -> Option<Line<'_>> {
    cursor.skip_blanks();
    let word = cursor.word();
    if word != "HELP" && word != "TYPE" {
        return Some(Line::Nothing);
    }
    cursor.skip_blanks();
    let name = if cursor.0.starts_with('"') { cursor.quoted()? } else { cursor.name(true)? };
    let rest = cursor.0;
    if !rest.is_empty() && !rest.starts_with(BLANKS) {
        return None;
    }
    let rest = rest.trim_start_matches(BLANKS);
    if word == "HELP" {
        return has_only(rest, "\\n").then_some(Line::Help(name, rest));
    }
    Some(Line::Type(name, Kind::parse(rest.trim_end_matches(BLANKS))?))
}

fn sample(mut cursor: Cursor<'_>) -> Option<Sample<'_>> {
    let mut name = None;
    if !cursor.0.starts_with('{') {
        name = Some(cursor.name(true)?);
    }
    let blanks = cursor.skip_blanks();
    let mut labels = Vec::new();
    if cursor.eat('{') {
        cursor.labels(&mut name, &mut labels)?;
    } else if !blanks {
        return None;
    }
    let rest = match cursor.0.split_once('#') {
        // An exemplar of OpenMetrics: no part of this format, and nothing that one would miss.
        Some((rest, exemplar)) => {
            exemplar.trim_start_matches(BLANKS).starts_with('{').then_some(rest)?
        }
        None => cursor.0,
    };
    let mut words = rest.split(BLANKS).filter(|word| !word.is_empty());
    let (value, timestamp) = (words.next()?, words.next());
    let good = is_number(value) && timestamp.is_none_or(|time| time.parse::<i64>().is_ok());
    (good && words.next().is_none()).then_some(Sample { name: name?, labels, value, timestamp })
}

/// Whether Prometheus reads it as a number: what Rust does, except that a NaN has no sign.
pub(super) fn is_number(text: &str) -> bool {
    // Most are a few digits and a point, which asks for no arithmetic.
    let (mut digits, mut points) = (0, 0);
    for byte in text.bytes() {
        match byte {
            b'0'..=b'9' => digits += 1,
            b'.' => points += 1,
            _ => return is_float(text),
        }
    }
    digits > 0 && points < 2
}

fn is_float(text: &str) -> bool {
    let value = text.parse::<f64>();
    value.is_ok_and(|value| !value.is_nan() || text.eq_ignore_ascii_case("nan"))
}

/// Whether every backslash of a text is followed by one of these, and has its own.
fn has_only(text: &str, escapes: &str) -> bool {
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c == '\\' && !chars.next().is_some_and(|escaped| escapes.contains(escaped)) {
            return false;
        }
    }
    true
}

/// What separates words, besides nothing.
const BLANKS: [char; 2] = [' ', '\t'];

/// What is left of a line.
struct Cursor<'a>(&'a str);

impl<'a> Cursor<'a> {
    /// Whether there were any.
    fn skip_blanks(&mut self) -> bool {
        let before = self.0.len();
        self.0 = self.0.trim_start_matches(BLANKS);
        self.0.len() < before
    }

    fn eat(&mut self, c: char) -> bool {
        let rest = self.0.strip_prefix(c);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    fn take(&mut self, len: usize) -> &'a str {
        let (taken, rest) = self.0.split_at(len);
        self.0 = rest;
        taken
    }

    fn word(&mut self) -> &'a str {
        self.take(self.0.find(BLANKS).unwrap_or(self.0.len()))
    }

    /// A name without quotes.
    fn name(&mut self, colons: bool) -> Option<Cow<'a, str>> {
        let ends = |c: char| !(c.is_ascii_alphanumeric() || c == '_' || (colons && c == ':'));
        let name = self.take(self.0.find(ends).unwrap_or(self.0.len()));
        is_plain(name, colons).then_some(Cow::Borrowed(name))
    }

    /// What stands in quotes, with its escapes.
    fn quotes(&mut self) -> Option<&'a str> {
        if !self.eat('"') {
            return None;
        }
        let mut escaped = false;
        let end = self.0.find(|c| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        })?;
        let text = self.take(end);
        self.eat('"');
        has_only(text, "\\\"n").then_some(text)
    }

    /// A name in quotes, without its escapes.
    fn quoted(&mut self) -> Option<Cow<'a, str>> {
        let text = self.quotes()?;
        if !text.contains('\\') {
            return (!text.is_empty()).then_some(Cow::Borrowed(text));
        }
        let mut name = String::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            match c {
                '\\' => name.push(chars.next().map_or(c, |c| if c == 'n' { '\n' } else { c })),
                _ => name.push(c),
            }
        }
        Some(Cow::Owned(name))
    }

    /// All up to the closing brace; a name in quotes may stand first.
    fn labels(
        &mut self,
        metric: &mut Option<Cow<'a, str>>,
        labels: &mut Vec<Label<'a>>,
    ) -> Option<()> {
        loop {
            self.skip_blanks();
            if self.eat('}') {
                return Some(());
            }
            let is_quoted = self.0.starts_with('"');
            let name = if is_quoted { self.quoted()? } else { self.name(false)? };
            self.skip_blanks();
            if self.eat('=') {
                self.skip_blanks();
                let value = self.quotes()?;
                // Prometheus keeps the metric's name there.
                if name == "__name__" || labels.len() == LABELS_MAX {
                    return None;
                }
                labels.push(Label { name, value });
            } else if is_quoted && metric.is_none() && labels.is_empty() {
                *metric = Some(name);
            } else {
                return None;
            }
            self.skip_blanks();
            if !self.eat(',') {
                return self.eat('}').then_some(());
            }
        }
    }
}
