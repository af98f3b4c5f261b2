//! What is wrong with a command line or a variable, in one line that shows no secret.

use std::borrow::Cow;
use std::fmt;

/// Why a value is none. Says what was expected, and how much of the value may be shown.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Invalid {
    /// What was expected.
    pub(crate) expected: Cow<'static, str>,
    /// What to show instead of the value; `None`: the value.
    pub(crate) shown: Option<String>,
}

impl Invalid {
    /// A value that is no secret.
    pub(crate) fn expected(expected: impl Into<Cow<'static, str>>) -> Self {
        Self { expected: expected.into(), shown: None }
    }

    /// A value that may hold a secret.
    pub(crate) fn shown_as(shown: String, expected: impl Into<Cow<'static, str>>) -> Self {
        Self { expected: expected.into(), shown: Some(shown) }
    }
}

/// One line for the operator.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UsageError(String);

impl UsageError {
    /// Something else than a wrong value.
    pub(crate) fn new(line: impl Into<String>) -> Self {
        Self(line.into())
    }

    /// A wrong value of an option or variable.
    pub(crate) fn value(culprit: &str, value: &str, invalid: &Invalid) -> Self {
        let shown = one_line(invalid.shown.as_deref().unwrap_or(value));
        Self(format!("invalid value `{shown}` for {culprit}: expected {}", invalid.expected))
    }
}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A value as it may stand in a line: short, and without what ends a line or moves a cursor.
pub(crate) fn one_line(value: &str) -> String {
    /// Longer values say no more, and fill a screen.
    const CHARS_MAX: usize = 200;
    let mut line = String::new();
    for (count, c) in value.chars().enumerate() {
        if count == CHARS_MAX {
            line.push_str("...");
            break;
        }
        if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_stays_in_its_line() {
        let error = UsageError::value("--port", "8\n0\x1b[2J", &Invalid::expected("a port"));
        assert_eq!(
            error.to_string(),
            "invalid value `8\\n0\\u{1b}[2J` for --port: expected a port"
        );
        assert_eq!(one_line(&"x".repeat(300)).len(), 203);
    }
}
