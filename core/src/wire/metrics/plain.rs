//! Samples as Prometheus's own clients write them: nearly all that a fleet answers with.
//!
//! Knows one spelling, in which the line can be copied as it stands; does not judge any other.
//! What it passes by is for [`line`](super::line), which reads every spelling and refuses what
//! is wrong; what it takes, that one reads alike.

use super::BACKEND;
use super::line::is_number;
use alloc::vec::Vec;
use memchr::memchr2;

/// Labels of one sample. Comparing each with each is cheaper than sorting as long as they are few.
const LABELS_MAX: usize = 8;

/// A name and what stands between the quotes.
pub(super) type Pair<'a> = (&'a str, &'a str);

/// The name of the sample that a line is, and its labels, none of which is `backend` and none of
/// which is there twice; `None` if the line is spelled in another way. `before` is a name that it
/// may well have, being that of the line before.
pub(super) fn parse<'a>(
    line: &'a str,
    before: &str,
    labels: &mut Vec<Pair<'a>>,
) -> Option<&'a str> {
    labels.clear();
    let bytes = line.as_bytes();
    let again = !before.is_empty()
        && line.starts_with(before)
        && matches!(bytes.get(before.len()), Some(b'{' | b' '));
    let end = if again { before.len() } else { name(bytes, true)? };
    let mut at = end;
    if bytes.get(at) == Some(&b'{') {
        loop {
            at += 1;
            let name_end = at + name(&bytes[at..], false)?;
            let value_at = name_end + 2;
            if bytes.get(name_end..value_at)? != b"=\"" {
                return None;
            }
            let value_end = value_at + memchr2(b'"', b'\\', &bytes[value_at..])?;
            let label = (&line[at..name_end], &line[value_at..value_end]);
            let is_other = label.0 == BACKEND || label.0 == "__name__";
            if is_other
                || bytes[value_end] == b'\\'
                || labels.len() == LABELS_MAX
                || labels.iter().any(|(name, _)| *name == label.0)
            {
                return None;
            }
            labels.push(label);
            at = value_end + 1;
            match bytes.get(at)? {
                b',' => {}
                b'}' => break,
                _ => return None,
            }
        }
        at += 1;
    }
    (bytes.get(at) == Some(&b' ') && is_number(&line[at + 1..])).then(|| &line[..end])
}

/// Where a name ends that needs no quotes.
fn name(bytes: &[u8], colons: bool) -> Option<usize> {
    let is_part =
        |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_' || (colons && *byte == b':');
    let len = bytes.iter().position(|byte| !is_part(byte))?;
    (len > 0 && !bytes[0].is_ascii_digit()).then_some(len)
}
