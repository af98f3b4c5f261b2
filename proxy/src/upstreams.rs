//! The list of upstreams: what arguments or a variable name, and what a file names, as one.
//!
//! Knows which of them counts; what a line of the file says is told by [`file`](mod@file), what a
//! single upstream is by [`upstream`](crate::upstream).

pub(crate) mod file;

use crate::upstream::Upstream;
use crate::usage::{Invalid, UsageError, one_line};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use vllm_proxy_core::fleet::Labels;

/// An upstream, with what the operator says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) upstream: Upstream,
    pub(crate) labels: Labels,
    /// Whether it accepts model names it does not list.
    pub(crate) forward_unknown: bool,
}

/// Where upstreams are named, and what the list is by what all these say now.
#[derive(Debug)]
pub(crate) struct Upstreams {
    named: Vec<Upstream>,
    forward_unknown: Vec<Upstream>,
    file: Option<PathBuf>,
    content: file::Content,
    list: Vec<Listed>,
}

impl Upstreams {
    /// What options and variables say. The file has yet to be read.
    pub(crate) fn new(
        named: Vec<Upstream>,
        forward_unknown: Vec<Upstream>,
        file: Option<PathBuf>,
    ) -> Self {
        let (content, list) = (Ok(Vec::new()), Vec::new());
        let mut upstreams = Self { named, forward_unknown, file, content, list };
        upstreams.list = upstreams.merged(Vec::new());
        upstreams
    }

    pub(crate) fn list(&self) -> &[Listed] {
        &self.list
    }

    pub(crate) fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// What the file held when it was read last.
    pub(crate) const fn content(&self) -> &file::Content {
        &self.content
    }

    /// Reads the file for the first time; `culprit` is what named it.
    pub(crate) fn read(&mut self, culprit: &str) -> Result<(), UsageError> {
        let Some(path) = self.file() else { return Ok(()) };
        let shown = path.display().to_string();
        let content = file::read(path);
        let bytes = content.as_ref().map_err(|why| {
            let invalid = Invalid::expected(format!("a file that can be read ({why})"));
            UsageError::value(culprit, &shown, &invalid)
        })?;
        let lines = file::parse(bytes).map_err(|broken| {
            let culprit = format!("line {} of {}", broken.line, one_line(&shown));
            UsageError::value(&culprit, &broken.value, &broken.invalid)
        })?;
        self.list = self.merged(lines);
        self.content = content;
        Ok(())
    }

    /// The list becomes what it is with these lines of the file.
    pub(crate) fn replace(&mut self, content: file::Content, lines: Vec<Listed>) {
        self.list = self.merged(lines);
        self.content = content;
    }

    /// The file holds what is no list, so the list stays.
    pub(crate) fn keep(&mut self, content: file::Content) {
        self.content = content;
    }

    /// An upstream that is to take unknown names, and is none.
    pub(crate) fn stranger(&self) -> Option<&Upstream> {
        let is_listed = |wanted: &Upstream| self.list.iter().any(|one| one.upstream == *wanted);
        self.forward_unknown.iter().find(|wanted| !is_listed(wanted))
    }

    /// Each upstream once: those that are named first, then the file's. Of one that is in both the
    /// file's labels count.
    fn merged(&self, lines: Vec<Listed>) -> Vec<Listed> {
        let named = self.named.iter().map(|upstream| Listed {
            upstream: upstream.clone(),
            labels: Labels::default(),
            forward_unknown: false,
        });
        let mut list: Vec<Listed> = Vec::new();
        let mut places = BTreeMap::new();
        for one in named.chain(lines) {
            let place = *places.entry(one.upstream.to_string()).or_insert(list.len());
            match list.get_mut(place) {
                Some(known) => *known = one,
                None => list.push(one),
            }
        }
        for one in &mut list {
            one.forward_unknown |= self.forward_unknown.contains(&one.upstream);
        }
        list
    }
}

/// Upstreams for a line of the log, the rest of many left out.
pub(crate) fn shown<'a>(upstreams: impl IntoIterator<Item = &'a Upstream>) -> String {
    const SHOWN_MAX: usize = 16;
    let mut upstreams = upstreams.into_iter();
    let first: Vec<_> = upstreams.by_ref().take(SHOWN_MAX).map(ToString::to_string).collect();
    let mut text = first.join(" ");
    match upstreams.count() {
        0 => {}
        more => text += &format!(" and {more} more"),
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::parse_all;
    use rstest::rstest;

    #[rstest]
    #[case::arguments_first(&["http://a"], "http://b\nhttp://c", &["http://a", "http://b", "http://c"])]
    #[case::one_in_both(&["http://a", "http://b"], "http://b:80 weight=3 drain", &[
        "http://a", "http://b 300 drain"
    ])]
    #[case::twice_among_arguments(&["http://a", "http://b", "http://a"], "", &["http://a", "http://b"])]
    #[case::unknown_names(&["http://f", "http://a"], "http://b forward-unknown", &[
        "http://f unknown", "http://a", "http://b unknown"
    ])]
    #[case::by_option_in_the_file(&[], "http://f\nhttp://a", &["http://f unknown", "http://a"])]
    #[case::nothing(&[], "# nobody yet", &[])]
    fn lists(#[case] named: &[&str], #[case] lines: &str, #[case] expected: &[&str]) {
        let parsed = |items: &[&str]| parse_all(items).unwrap();
        let mut upstreams = Upstreams::new(parsed(named), parsed(&["http://f"]), None);
        let content = Ok(lines.as_bytes().to_vec());
        upstreams.replace(content.clone(), file::parse(lines.as_bytes()).unwrap());
        assert_eq!(*upstreams.content(), content);
        let list: Vec<_> = upstreams.list().iter().map(words).collect();
        assert_eq!(list, expected);
    }

    /// An upstream and what is said of it.
    fn words(one: &Listed) -> String {
        let Labels { weight, drain } = one.labels;
        let mut text = one.upstream.to_string();
        if weight != 100 {
            text += &format!(" {weight}");
        }
        text + if drain { " drain" } else { "" } + if one.forward_unknown { " unknown" } else { "" }
    }

    #[test]
    fn many_are_shown_in_part() {
        let names: Vec<_> = (0..20).map(|number| format!("http://v{number}")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let all = parse_all(&names).unwrap();
        assert_eq!(shown(&all[..2]), "http://v0 http://v1");
        assert!(shown(&all).ends_with(" http://v15 and 4 more"), "{}", shown(&all));
    }
}
