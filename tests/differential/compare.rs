//! When two transcripts count as the same: what is volatile by nature is hidden, and what two
//! runs against the *same* bare server differ in is masked; nothing else is forgiven.

use std::fmt::Write as _;
use std::ops::Range;

/// Hides what no two answers share: ids (16 or more hex digits) and times.
pub(crate) fn normalise(bytes: &[u8]) -> Vec<u8> {
    const TIMES: [&[u8]; 3] = [b"\"created\":", b"\"created_at\":", b"\"completed_at\":"];
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        if let Some(key) = TIMES.iter().find(|key| bytes[at..].starts_with(key)) {
            out.extend_from_slice(key);
            at += key.len();
            // The JSON in a `metadata` header is spelled with spaces.
            let space = usize::from(bytes.get(at) == Some(&b' '));
            out.extend_from_slice(&bytes[at..at + space]);
            at += space;
            let digits = run(&bytes[at..], |b| b.is_ascii_digit() || b == b'.');
            if digits > 0 {
                out.extend_from_slice(b"<time>");
            }
            at += digits;
            continue;
        }
        let hex = run(&bytes[at..], |b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        // Digits behind a point are a logprob, not an id.
        if hex >= 16 && (at == 0 || bytes[at - 1] != b'.') {
            out.extend_from_slice(format!("<hex{hex}>").as_bytes());
        } else if hex > 0 {
            out.extend_from_slice(&bytes[at..at + hex]);
        } else {
            out.push(bytes[at]);
        }
        at += hex.max(1);
    }
    out
}

fn run(bytes: &[u8], is: impl Fn(u8) -> bool) -> usize {
    bytes.iter().take_while(|&&b| is(b)).count()
}

/// Whether `seen` is an answer that the bare server could have given, knowing several of its
/// answers: equal to one, or different from it only where another one is different too.
pub(crate) fn matches(seen: &[String], bare: &[Vec<String>]) -> bool {
    bare.iter().any(|one| one == seen)
        || bare.iter().enumerate().any(|(i, one)| {
            bare[i + 1..].iter().any(|other| {
                one.len() == seen.len()
                    && other.len() == seen.len()
                    && (0..seen.len()).all(|n| line_matches(&seen[n], &one[n], &other[n]))
            })
        })
}

fn line_matches(seen: &str, one: &str, other: &str) -> bool {
    if seen == one || seen == other {
        return true;
    }
    let (seen, one, other) = (words(seen), words(one), words(other));
    seen.len() == one.len()
        && one.len() == other.len()
        && (0..seen.len())
            .all(|n| seen[n] == one[n] || (one[n] != other[n] && same_shape(seen[n], one[n])))
}

/// Runs of what ids, numbers and words are made of, and the single characters between them.
fn words(line: &str) -> Vec<&str> {
    let part = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    let mut words = Vec::new();
    let mut rest = line;
    while let Some(first) = rest.chars().next() {
        let end = if part(first) {
            rest.find(|c| !part(c)).unwrap_or(rest.len())
        } else {
            first.len_utf8()
        };
        words.push(&rest[..end]);
        rest = &rest[end..];
    }
    words
}

/// Two ids of one kind: as long, and alike up to the last dash.
fn same_shape(a: &str, b: &str) -> bool {
    let kind = |s: &str| s.rfind(['-', '_']).map_or(0, |at| at + 1);
    a.len() == b.len() && kind(a) == kind(b)
}

/// Puts the headers of both in one order where `seen` is an answer of the proxy's own: it has
/// vLLM's order, of which the mock's HTTP library knows nothing.
pub(crate) fn order_own_heads(bare: &[String], seen: &[String]) -> (Vec<String>, Vec<String>) {
    let (mut bare, mut seen) = (bare.to_vec(), seen.to_vec());
    for (ours, theirs) in heads(&seen).into_iter().zip(heads(&bare)) {
        // uvicorn's first two; whoever sorts headers has others before them.
        let own = seen[ours.clone()].iter().map(|line| line.split(':').next());
        if own.take(2).eq([Some("date"), Some("server")]) {
            seen[ours].sort_unstable();
            bare[theirs].sort_unstable();
        }
    }
    (bare, seen)
}

/// Where the header lines of each answer are.
fn heads(lines: &[String]) -> Vec<Range<usize>> {
    let starts = (0..lines.len()).filter(|&n| lines[n].starts_with("HTTP/1."));
    let end = |from| (from..lines.len()).find(|&n| lines[n].starts_with("[framing"));
    starts.map(|n| n + 1..end(n).unwrap_or(lines.len())).collect()
}

/// A readable difference: the lines around the first and the last one that differ.
pub(crate) fn diff(bare: &[String], seen: &[String]) -> String {
    const SHOWN: usize = 12;
    let same = bare.iter().zip(seen).take_while(|(a, b)| a == b).count();
    let tail = (bare[same..].iter().rev().zip(seen[same..].iter().rev()))
        .take_while(|(a, b)| a == b)
        .count();
    let mut text = String::new();
    for line in &bare[same.saturating_sub(1)..same] {
        let _ = writeln!(text, "      {}", shortened(line));
    }
    for (mark, lines) in
        [('-', &bare[same..bare.len() - tail]), ('+', &seen[same..seen.len() - tail])]
    {
        for line in lines.iter().take(SHOWN) {
            let _ = writeln!(text, "    {mark} {}", shortened(line));
        }
        if lines.len() > SHOWN {
            let _ = writeln!(text, "    {mark} ... {} more lines", lines.len() - SHOWN);
        }
    }
    text
}

fn shortened(line: &str) -> String {
    const LONGEST: usize = 600;
    match line.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{} ... ({} bytes)", &line[..at], line.len()),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.split('|').map(str::to_owned).collect()
    }

    #[test]
    fn hides_ids_and_times_only() {
        let seen = normalise(
            br#"{"id":"cmpl-0123456789abcdef","created":17,"created": 17,"p":0.1234567890123456}"#,
        );
        assert_eq!(
            String::from_utf8_lossy(&seen),
            r#"{"id":"cmpl-<hex16>","created":<time>,"created": <time>,"p":0.1234567890123456}"#
        );
    }

    #[test]
    fn forgives_the_order_of_own_heads_only() {
        let bare =
            lines("HTTP/1.1 200 OK|allow: GET|date: <date>|server: s|[framing: None]|b: 1|a: 1");
        let own =
            lines("HTTP/1.1 200 OK|date: <date>|server: s|allow: GET|[framing: None]|b: 1|a: 1");
        let (one, other) = order_own_heads(&bare, &own);
        assert_eq!(one, other);
        let relayed =
            lines("HTTP/1.1 200 OK|server: s|date: <date>|allow: GET|[framing: None]|b: 1|a: 1");
        let (one, other) = order_own_heads(&bare, &relayed);
        assert_ne!(one, other);
    }

    #[test]
    fn masks_only_what_the_bare_server_varies() {
        let bare = [lines("a: 1|id x-17 end"), lines("a: 1|id x-23 end")];
        assert!(matches(&lines("a: 1|id x-99 end"), &bare));
        assert!(!matches(&lines("a: 2|id x-99 end"), &bare));
        assert!(!matches(&lines("a: 1|id y-9 end"), &bare));
        assert!(!matches(&lines("a: 1|id x-99 End"), &bare));
        assert!(!matches(&lines("a: 1|id x-99 end|more"), &bare));
    }
}
