//! The file of upstreams: one a line, with labels behind it.
//!
//! Knows how it is written. When it is read, and what becomes of the list, is for others to say.

use super::Listed;
use crate::upstream::{Upstream, parse_among};
use crate::usage::{Invalid, one_line};
use crate::values;
use rustix::fs::OFlags;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use vllm_proxy_core::fleet::Labels;

/// Room for as many upstreams as there may be, at 250 bytes each.
const BYTES_MAX: u64 = 1 << 20;
/// As for those that arguments name: more are a mistake.
const UPSTREAMS_MAX: usize = crate::upstream::UPSTREAMS_MAX;

const LABELS: &str = "weight=N with N from 0.01 to 100, drain or forward-unknown";

/// What a file held, or why it could not be read.
pub(crate) type Content = Result<Vec<u8>, Unreadable>;

/// Why a file could not be read, in words that change only when the reason does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unreadable(String);

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Self {
        Self(error.to_string())
    }
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Reads all of a file, and waits for nobody. A pipe is none: what was read once is not there the
/// next time.
pub(crate) fn read(path: &Path) -> Content {
    let whole = || -> io::Result<Vec<u8>> {
        let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
        let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(path)?;
        if file.metadata()?.file_type().is_fifo() {
            return Err(io::Error::other("it is a pipe"));
        }
        let mut bytes = Vec::new();
        file.take(BYTES_MAX + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match whole() {
        Ok(bytes) if bytes.len() as u64 > BYTES_MAX => {
            Err(Unreadable(format!("it is larger than {BYTES_MAX} bytes")))
        }
        Ok(bytes) => Ok(bytes),
        Err(error) => Err(error.into()),
    }
}

/// The first mistake in a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Broken {
    /// Counted from 1.
    pub(crate) line: usize,
    pub(crate) value: String,
    pub(crate) invalid: Invalid,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = one_line(self.invalid.shown.as_deref().unwrap_or(&self.value));
        write!(f, "invalid value `{shown}`: expected {}", self.invalid.expected)
    }
}

/// Every upstream of a file, in its order.
pub(crate) fn parse(bytes: &[u8]) -> Result<Vec<Listed>, Broken> {
    let broken = |line, value: &str, invalid| Broken { line, value: value.to_owned(), invalid };
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = 1 + bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
        broken(line, "...", Invalid::expected("text, this is no UTF-8"))
    })?;
    let mut list = Vec::new();
    let mut lines = BTreeMap::new();
    for (number, line) in (1..).zip(text.lines()) {
        let words = line.split_whitespace().take_while(|word| !word.starts_with('#'));
        let words: Vec<_> = words.collect();
        let Some((first, labels)) = words.split_first() else { continue };
        let wrong = |(value, invalid): (&str, _)| broken(number, value, invalid);
        let upstream = parse_among(first, &words).map_err(|invalid| wrong((first, invalid)))?;
        if list.len() == UPSTREAMS_MAX {
            let expected = format!("at most {UPSTREAMS_MAX} upstreams");
            return Err(wrong((first, Invalid::expected(expected))));
        }
        if let Some(before) = lines.insert(upstream.to_string(), number) {
            let expected = format!("each upstream once, and it is in line {before}");
            return Err(wrong((first, Invalid::expected(expected))));
        }
        list.push(labelled(upstream, labels, &words).map_err(wrong)?);
    }
    Ok(list)
}

fn labelled<'a>(
    upstream: Upstream,
    words: &[&'a str],
    line: &[&str],
) -> Result<Listed, (&'a str, Invalid)> {
    let (mut weight, mut drain, mut forward_unknown) = (None, false, false);
    for word in words {
        let again = match *word {
            "drain" => std::mem::replace(&mut drain, true),
            "forward-unknown" => std::mem::replace(&mut forward_unknown, true),
            other => {
                let value = other.strip_prefix("weight=").and_then(values::weight);
                let Some(value) = value else {
                    return Err((other, crate::upstream::invalid_among(other, line, LABELS)));
                };
                weight.replace(value).is_some()
            }
        };
        if again {
            return Err((word, Invalid::expected("each label once")));
        }
    }
    let Labels { weight: usual, .. } = Labels::default();
    let labels = Labels { weight: weight.unwrap_or(usual), drain };
    Ok(Listed { upstream, labels, forward_unknown })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn words(one: &Listed) -> (String, u16, bool, bool) {
        (one.upstream.to_string(), one.labels.weight, one.labels.drain, one.forward_unknown)
    }

    #[rstest]
    #[case::nothing("", &[])]
    #[case::comments("# a\n\n   # b\n\t\n", &[])]
    #[case::plain("http://a\nunix:///b\n", &[("http://a", 100, false, false), ("unix:///b", 100, false, false)])]
    #[case::no_final_line_end("http://a", &[("http://a", 100, false, false)])]
    #[case::of_another_system("http://a\r\n\r\nhttp://b drain\r\n", &[
        ("http://a", 100, false, false), ("http://b", 100, true, false)
    ])]
    #[case::comment_behind("http://a # drain", &[("http://a", 100, false, false)])]
    #[case::all_labels("  http://a:1/p/\tdrain  weight=.5 forward-unknown #no", &[
        ("http://a:1/p", 50, true, true)
    ])]
    #[case::least("http://a weight=0.01", &[("http://a", 1, false, false)])]
    #[case::most("http://a weight=100", &[("http://a", 10_000, false, false)])]
    #[case::rounded("http://a weight=0.333333", &[("http://a", 33, false, false)])]
    fn files(#[case] text: &str, #[case] expected: &[(&str, u16, bool, bool)]) {
        let list = parse(text.as_bytes()).unwrap();
        let list: Vec<_> = list.iter().map(words).collect();
        let list: Vec<_> =
            list.iter().map(|(name, weight, a, b)| (name.as_str(), *weight, *a, *b)).collect();
        assert_eq!(list, expected);
    }

    #[rstest]
    #[case::upstream("http://a\n\nftp://b\n", 3, "`ftp://b`: expected http://host")]
    #[case::tls(
        "https://b",
        1,
        "`https://b`: expected http://host[:port][/prefix] or unix:///path; this proxy speaks no TLS"
    )]
    #[case::label(
        "#\nhttp://a wieght=2",
        2,
        "`wieght=2`: expected weight=N with N from 0.01 to 100, drain or forward-unknown"
    )]
    #[case::no_weight("http://a weight=", 1, "`weight=`: expected weight=N")]
    #[case::zero("http://a weight=0", 1, "`weight=0`: expected weight=N")]
    #[case::too_little("http://a weight=0.004", 1, "`weight=0.004`: expected weight=N")]
    #[case::too_much("http://a weight=100.1", 1, "`weight=100.1`: expected weight=N")]
    #[case::negative("http://a weight=-1", 1, "`weight=-1`: expected weight=N")]
    #[case::label_twice("http://a drain drain", 1, "`drain`: expected each label once")]
    #[case::two_weights("http://a weight=1 weight=2", 1, "`weight=2`: expected each label once")]
    #[case::twice(
        "http://a\nhttp://b\nhttp://A:80/",
        3,
        "`http://A:80/`: expected each upstream once, and it is in line 1"
    )]
    #[case::comment_too_near("http://a forward-unknown#no", 1, "`...`: expected weight=N")]
    #[case::label_alone("drain", 1, "`drain`: expected http://host")]
    #[case::control("http://a \u{1b}[2J", 1, "`\\u{1b}[2J`: expected weight=N")]
    fn mistakes(#[case] text: &str, #[case] line: usize, #[case] said: &str) {
        let broken = parse(text.as_bytes()).unwrap_err();
        assert_eq!(broken.line, line);
        let shown = broken.to_string();
        assert!(shown.starts_with(&format!("invalid value {said}")), "{shown}");
    }

    #[test]
    fn what_is_no_text_is_found_by_its_line() {
        let broken = parse(b"http://a\nhttp://b\n\xff\n").unwrap_err();
        assert_eq!(broken.line, 3);
        assert_eq!(broken.to_string(), "invalid value `...`: expected text, this is no UTF-8");
    }

    #[rstest]
    #[case::whole("http://me:hunter2@vllm")]
    #[case::cut("http://me:hunter2 3@vllm")]
    #[case::behind_an_upstream("http://a hunter2@vllm")]
    #[case::before_one("http://a hunter2 x@y")]
    fn passwords_are_not_shown(#[case] text: &str) {
        let broken = parse(text.as_bytes()).unwrap_err();
        assert!(!broken.to_string().contains("hunter2"), "{broken}");
    }

    #[test]
    fn there_is_an_end_to_it() {
        let text: String = (0..=UPSTREAMS_MAX).map(|n| format!("http://v{n}\n")).collect();
        let broken = parse(text.as_bytes()).unwrap_err();
        assert_eq!(broken.line, UPSTREAMS_MAX + 1);
        assert!(broken.to_string().ends_with("expected at most 4096 upstreams"), "{broken}");
        assert!(read(Path::new("/dev/zero")).is_err());
        assert!(read(Path::new("/nowhere/at/all")).is_err());
    }

    #[test]
    fn a_pipe_is_not_waited_for() {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        let pipe = std::env::temp_dir().join(format!("vllm-proxy-pipe-{}", std::process::id()));
        let (mode, kind) = (Mode::RUSR | Mode::WUSR, FileType::Fifo);
        mknodat(CWD, &pipe, kind, mode, 0).unwrap();
        let read = [pipe.as_path(), Path::new("/dev/null"), Path::new("/")].map(read);
        std::fs::remove_file(&pipe).unwrap();
        let [pipe, nothing, directory] = read;
        assert_eq!(pipe, Err(Unreadable("it is a pipe".to_owned())));
        assert!(nothing == Ok(Vec::new()) && directory.is_err(), "{nothing:?} {directory:?}");
    }
}
