//! Which samples of a page are of one series.
//!
//! Knows names and labels; does not know families. Series are told apart by short keys, sorted
//! once a page; only those of equal keys are compared as they are, so that a backend that knows
//! how to make keys equal gains nothing.

use super::families::write_name;
use super::line::Label;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

/// The key of a series, from that of its name and its labels in any order. To Prometheus an empty
/// label is none.
pub(super) fn key<'a>(name: u64, labels: impl Iterator<Item = (&'a str, &'a str)>) -> u64 {
    labels
        .filter(|(_, value)| !value.is_empty())
        .fold(name, |key, (name, value)| key.wrapping_add(hash(hash(0, name), value)))
}

/// A number for a text; for some other texts as well.
pub(super) fn hash(seed: u64, text: &str) -> u64 {
    let (words, rest) = text.as_bytes().as_chunks();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let add = |hash: u64, word: &[u8; 8]| {
        (hash.rotate_left(23) ^ u64::from_le_bytes(*word)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    };
    let hash = add(words.iter().fold(!seed, add), &last);
    hash ^ (hash >> 32)
}

/// What a series is known by, its labels in the order of their names.
pub(super) fn text(name: &str, sorted: &[(usize, &Label<'_>)]) -> String {
    let mut series = String::new();
    write_name(&mut series, name, true);
    for (_, label) in sorted.iter().filter(|(_, label)| !label.value.is_empty()) {
        series.push(',');
        write_name(&mut series, &label.name, false);
        let _ = write!(series, "=\"{}\"", label.value);
    }
    series
}

/// The places, each with its key, of samples whose series was there at an earlier place, by the
/// text that `text` gives for a place.
pub(super) fn repeated<P: Copy + Ord>(
    keys: &mut [(u64, P)],
    text: impl Fn(P) -> Option<String>,
) -> Vec<P> {
    keys.sort_unstable();
    let mut repeated = Vec::new();
    for alike in keys.chunk_by(|a, b| a.0 == b.0).filter(|alike| alike.len() > 1) {
        let mut texts: Vec<_> = alike.iter().map(|(_, place)| (text(*place), *place)).collect();
        texts.sort_unstable();
        let twice = texts.windows(2).filter(|pair| pair[0].0 == pair[1].0);
        repeated.extend(twice.map(|pair| pair[1].1));
    }
    repeated
}
