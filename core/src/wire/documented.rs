//! Whether the README documents what the proxy says of itself: every field of the status, and every
//! family of metrics with its labels, and nothing else.
//!
//! Reads the README's tables, where names stand in backticks. What is said of them is for people.

use super::facts::tests::facts;
use super::merge::{Merge, Merged, Reply, Said, merge};
use super::status::tests::{told, whole};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use serde_json::Value;

const README: &str = include_str!("../../../README.md");

/// What fields may say, and a policy.
const VALUES: [&str; 6] = ["null", "cache-aware", "unknown", "up", "suspect", "down"];

/// Fields whose own fields are words of the metrics.
const COUNTS: [&str; 5] = ["statuses", "errors", "retries", "refusals", "own_answers"];

type Names = BTreeSet<String>;

/// Rows of a section's tables: what the first cell names, and what stands behind it. A row without
/// a first cell goes on with the one before.
fn rows(section: &str) -> Vec<(Vec<String>, String)> {
    let (_, section) = README.split_once(&format!("\n## {section}\n")).expect("a heading");
    let section = section.split("\n## ").next().unwrap_or_default();
    let mut rows: Vec<(Vec<String>, String)> = Vec::new();
    for row in section.lines().filter_map(|line| line.strip_prefix("| ")) {
        let (first, rest) = row.split_once('|').expect("two cells");
        match rows.last_mut() {
            Some((_, last)) if first.is_empty() => last.push_str(rest),
            _ => rows.push((quoted(first).collect(), rest.to_string())),
        }
    }
    // Without names they are the tables' heads.
    rows.retain(|(names, _)| !names.is_empty());
    rows
}

/// What stands in backticks.
fn quoted(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split('`').skip(1).step_by(2).map(str::to_string)
}

/// The words by which a family of counters is told apart.
fn words_of(family: &str) -> Names {
    let rows = rows("Families of /metrics");
    let is_named = |names: &[String]| names.iter().any(|name| name.starts_with(family));
    let (_, said) = rows.iter().find(|(names, _)| is_named(names)).expect("a family");
    quoted(said).collect()
}

/// The names of all fields within, however deep. All elements of a list are like its first.
fn fields(value: &Value, found: &mut Names) {
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                found.insert(name.clone());
                if !COUNTS.contains(&name.as_str()) {
                    fields(value, found);
                }
            }
        }
        Value::Array(list) => list.iter().take(1).for_each(|value| fields(value, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn keys(value: &Value) -> Names {
    value.as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect()
}

#[test]
fn fields_of_the_status() {
    let status = told(&whole());
    let mut documented = Names::new();
    for (names, said) in rows("Fields of /proxy/status") {
        let mut found = Names::new();
        for name in &names {
            assert!(documented.insert(name.clone()), "{name} is there twice");
            if !COUNTS.contains(&name.as_str()) {
                fields(&status[name], &mut found);
            }
        }
        let mut said: Names = quoted(&said).collect();
        if names == ["backends"] {
            // Their `recent` is as that of the whole, which has a row of its own.
            fields(&status["recent"], &mut said);
        }
        said.retain(|word| found.contains(word) || !VALUES.contains(&word.as_str()));
        assert_eq!(said, found, "{names:?}");
    }
    assert_eq!(documented, keys(&status));
}

#[test]
fn words_of_the_status() {
    let status = told(&whole());
    let mut endings = words_of("vllm_proxy_requests_total");
    // It says from `1xx` to `5xx`.
    endings.extend(["2xx", "3xx", "4xx"].map(str::to_string));
    let failures = words_of("vllm_proxy_attempts_failed_total");
    let mut retries = words_of("vllm_proxy_retries_total");
    retries.extend(failures.iter().cloned());
    assert_eq!(keys(&status["statuses"]), endings);
    assert_eq!(keys(&status["backends"][0]["statuses"]), endings);
    assert_eq!(keys(&status["backends"][0]["errors"]), failures);
    assert_eq!(keys(&status["retries"]), retries);
    assert_eq!(keys(&status["refusals"]), words_of("vllm_proxy_refusals_total"));
    assert_eq!(keys(&status["own_answers"]), words_of("vllm_proxy_own_answers_total"));
}

#[test]
fn families_and_their_labels() {
    let reply = Reply { status: 200, head: Vec::new(), body: Vec::new() };
    let said = [Said { backend: "b", result: Ok(reply) }];
    let Merged::Answer(page) = merge(Merge::Metrics, &said, &facts().text()) else {
        panic!("the page is an answer of our own");
    };
    let page = core::str::from_utf8(&page.body).expect("text");
    let mut found: BTreeMap<String, Names> = BTreeMap::new();
    let mut histograms = Names::new();
    for family in page.split("# HELP ").filter(|family| !family.is_empty()) {
        let name = family.split(' ').next().unwrap_or_default();
        let labelled = family.lines().filter_map(|line| line.split_once('{'));
        let samples = labelled.filter(|(start, _)| start.starts_with(name));
        let pieces = samples.flat_map(|(_, labels)| labels.split("=\""));
        let labels = pieces.map(label).filter(|label| !label.is_empty() && *label != "le");
        found.insert(name.to_string(), labels.map(str::to_string).collect());
        if family.contains(" histogram\n") {
            histograms.insert(name.to_string());
        }
    }
    let mut documented: BTreeMap<String, Names> = BTreeMap::new();
    for (names, said) in rows("Families of /metrics") {
        for name in names {
            let (name, labels) = name.split_once('{').unwrap_or((&name, ""));
            let labels = labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty());
            documented.insert(name.to_string(), labels.map(str::to_string).collect());
            let is_histogram = said.trim_start().starts_with("histogram");
            assert_eq!(is_histogram, histograms.contains(name), "{name}");
        }
    }
    assert_eq!(documented, found);
}

/// The label whose value begins behind this piece of a line; empty if the line ends there.
fn label(piece: &str) -> &str {
    let start = piece.rfind(|c: char| !c.is_ascii_lowercase() && c != '_');
    piece.get(start.map_or(0, |at| at + 1)..).unwrap_or_default()
}
