//! Our words for what clap finds wrong: one line, without values.
//!
//! clap's own messages repeat what was written, and that may be a URL with a password at the wrong
//! place.

use crate::secret::redacted;
use crate::usage::{Invalid, UsageError, one_line};
use clap::error::{ContextKind, ContextValue, ErrorKind};

/// What clap found, in one line and without values.
pub(super) fn of(error: &clap::Error, program: &clap::Command) -> UsageError {
    let context = |kind| {
        let Some(ContextValue::String(text)) = error.get(kind) else { return None };
        Some(text.as_str())
    };
    let kind = error.kind();
    let argument = context(ContextKind::InvalidArg).map(option_name);
    let Some(argument) = argument else { return without_argument(kind, &context, program) };
    let hint = "see vllm-proxy --help";
    let line = if kind == ErrorKind::ValueValidation {
        let value = context(ContextKind::InvalidValue).unwrap_or_default();
        return UsageError::value(&argument, value, &wrong(&argument, value, error));
    } else if kind == ErrorKind::UnknownArgument {
        let known = context(ContextKind::SuggestedArg)
            .map_or("none like it".to_owned(), |known| format!("perhaps {known}"));
        format!("unexpected argument `{argument}`: expected {known}; {hint}")
    } else if kind == ErrorKind::InvalidValue {
        // An option without a value: none has a list of valid ones.
        format!("missing value for {argument}: expected one; {hint}")
    } else if kind == ErrorKind::TooManyValues {
        format!("unexpected value for {argument}: expected none; {hint}")
    } else {
        format!("wrong use of {argument}: {kind}; {hint}")
    };
    UsageError::new(line)
}

fn without_argument<'a>(
    kind: ErrorKind,
    context: &dyn Fn(ContextKind) -> Option<&'a str>,
    program: &clap::Command,
) -> UsageError {
    let missing =
        [ErrorKind::MissingSubcommand, ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand];
    UsageError::new(if kind == ErrorKind::InvalidSubcommand {
        let word = context(ContextKind::InvalidSubcommand).unwrap_or_default();
        format!("unknown subcommand `{}`: expected {}", redacted(word), subcommands(program))
    } else if missing.contains(&kind) {
        format!("missing subcommand: expected {}", subcommands(program))
    } else if kind == ErrorKind::InvalidUtf8 {
        "an argument is no UTF-8: expected text".to_owned()
    } else {
        format!("{kind}; see vllm-proxy --help")
    })
}

/// Why clap's own parsers refuse a value: those of `mock` and `demo`, whose options are all plain
/// numbers and names but one.
fn wrong(argument: &str, value: &str, error: &clap::Error) -> Invalid {
    let reason = std::error::Error::source(error).map(ToString::to_string);
    match reason {
        // Its words may hold the value.
        Some(reason) if !argument.contains("key") => {
            Invalid::expected(format!("a valid value ({})", one_line(&reason)))
        }
        _ => Invalid::shown_as(redacted(value), "a valid value"),
    }
}

/// The name of the option that an argument starts with; of another argument as much as can be no
/// secret.
fn option_name(argument: &str) -> String {
    let name = argument.split(['=', ' ']).next().unwrap_or_default();
    // How clap writes one that may be repeated.
    let name = name.strip_suffix("...").unwrap_or(name);
    let is_name =
        |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    match name.strip_prefix("--") {
        Some(long) if is_name(long) => name.to_owned(),
        Some(_) => "--...".to_owned(),
        None if name.starts_with('-') => one_line(&name.chars().take(2).collect::<String>()),
        None => redacted(argument),
    }
}

fn subcommands(program: &clap::Command) -> String {
    let names: Vec<_> = program.get_subcommands().map(clap::Command::get_name).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::option("--redis-url=redis://me:hunter2@cache", "--redis-url")]
    #[case::option_with_at("--redis://me:hunter2@cache", "--...")]
    #[case::short("-zhunter2", "-z")]
    #[case::positional("redis://me:hunter2@cache", "redis://...")]
    #[case::key("hunter2", "...")]
    fn only_names_are_repeated(#[case] argument: &str, #[case] shown: &str) {
        assert_eq!(option_name(argument), shown);
    }
}
