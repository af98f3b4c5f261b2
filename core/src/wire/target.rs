//! A request target's parts, decoded: its path, and the parameters of its query.
//!
//! Knows the escapes; does not know routes. The target itself is always sent on as it came.

use alloc::borrow::{Cow, ToOwned};
use alloc::string::String;
use alloc::vec::Vec;

/// The path of a target in origin form, decoded as uvicorn does before it is matched.
pub fn path(target: &[u8]) -> Cow<'_, [u8]> {
    decode(split(target).0)
}

/// The first parameter of this name in the query; `None` if there is none, or it is empty or no
/// text. `+` is a space, as in forms.
pub fn parameter(target: &[u8], name: &str) -> Option<String> {
    let mut pairs = split(target).1.split(|&byte| byte == b'&');
    let value = pairs.find_map(|pair| {
        let equals = pair.iter().position(|&byte| byte == b'=')?;
        let (key, value) = pair.split_at(equals);
        (&*decode(&spaced(key)) == name.as_bytes()).then(|| value.get(1..)).flatten()
    })?;
    let value = spaced(value);
    let text = core::str::from_utf8(&decode(&value)).ok()?.to_owned();
    (!text.is_empty()).then_some(text)
}

fn spaced(text: &[u8]) -> Vec<u8> {
    text.iter().map(|&byte| if byte == b'+' { b' ' } else { byte }).collect()
}

/// Path and query.
fn split(target: &[u8]) -> (&[u8], &[u8]) {
    let fragment = target.iter().position(|&byte| byte == b'#').unwrap_or(target.len());
    let target = target.get(..fragment).unwrap_or_default();
    match target.iter().position(|&byte| byte == b'?') {
        Some(query) => (&target[..query], &target[query + 1..]),
        None => (target, &[]),
    }
}

/// As Python's `unquote`: what is no escape stays as it is.
fn decode(path: &[u8]) -> Cow<'_, [u8]> {
    if !path.contains(&b'%') {
        return Cow::Borrowed(path);
    }
    let digit = |at: usize| path.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let mut decoded = Vec::with_capacity(path.len());
    let mut at = 0;
    while let Some(&byte) = path.get(at) {
        let escaped = if byte == b'%' { digit(at + 1).zip(digit(at + 2)) } else { None };
        if let Some((high, low)) = escaped {
            decoded.push((high * 16 + low) as u8);
            at += 3;
        } else {
            decoded.push(byte);
            at += 1;
        }
    }
    Cow::Owned(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::only("/sleep?model=a", Some("a"))]
    #[case::among_others("/sleep?level=1&model=a%2Fb+c&x", Some("a/b c"))]
    #[case::the_first("/sleep?model=a&model=b", Some("a"))]
    #[case::encoded_name("/sleep?m%6Fdel=a", Some("a"))]
    #[case::empty("/sleep?model=", None)]
    #[case::no_value("/sleep?model", None)]
    #[case::longer("/sleep?models=a", None)]
    #[case::no_text("/sleep?model=%ff", None)]
    #[case::in_a_fragment("/sleep#?model=a", None)]
    #[case::equals_signs("/sleep?model=a=b", Some("a=b"))]
    #[case::no_query("/sleep", None)]
    fn parameters(#[case] target: &str, #[case] expected: Option<&str>) {
        assert_eq!(parameter(target.as_bytes(), "model").as_deref(), expected);
    }
}
