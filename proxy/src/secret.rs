//! Secret: a password or key that no message can show; and how much of a wrong value that may hold
//! one is shown.

use std::fmt;

/// What stands for a secret.
const HIDDEN: &str = "...";

/// A password or key. Neither `Debug` nor anything else but [`Secret::expose`] gives it away.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
    pub(crate) const fn new(secret: String) -> Self {
        Self(secret)
    }

    /// The secret itself, for the wire only.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

/// As much of a wrong value as can hold no secret: a short word of letters, or a scheme that is
/// known. The rest of a mistyped URL may be a password wherever a URL would have something else:
/// `redis://default:pass` lacks its host, and the password stands where a port should.
pub(crate) fn redacted(value: &str) -> String {
    const SCHEMES: [&str; 9] =
        ["redis", "rediss", "redis+unix", "valkey", "valkeys", "unix", "tcp", "http", "https"];
    if value.len() <= 12 && value.bytes().all(|byte| byte.is_ascii_alphabetic()) {
        return value.to_owned();
    }
    match value.split_once("://") {
        Some((scheme, _)) if SCHEMES.contains(&scheme.to_ascii_lowercase().as_str()) => {
            format!("{scheme}://{HIDDEN}")
        }
        _ => HIDDEN.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::word("foo", "foo")]
    #[case::empty("", "")]
    #[case::word_with_digits("hunter2", "...")]
    #[case::long_word("correcthorsebattery", "...")]
    #[case::scheme("redis://user:hunter2@host:x", "redis://...")]
    #[case::upper_case("REDISS://hunter2", "REDISS://...")]
    #[case::unknown_scheme("hunter2://host", "...")]
    #[case::no_scheme("user:hunter2@host", "...")]
    fn shows_no_secret(#[case] value: &str, #[case] shown: &str) {
        assert_eq!(redacted(value), shown);
    }

    #[test]
    fn debug_hides() {
        assert_eq!(format!("{:?}", Secret::new("hunter2".into())), "...");
    }
}
