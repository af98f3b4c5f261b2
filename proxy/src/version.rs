//! What this program was built from, and with what. Knows nothing of what runs.
//!
//! The build script finds it out. Nothing here depends on when or in which directory it was built:
//! the same commit gives the same bytes.

use std::sync::LazyLock;

/// The version of all packages of this workspace.
pub(crate) const NUMBER: &str = env!("CARGO_PKG_VERSION");

/// The commit, shortened; `-dirty` behind it when sources had changed since; or `unknown`.
pub(crate) const COMMIT: &str = env!("VLLM_PROXY_COMMIT");

/// The day of the commit, in UTC; empty if it is not known.
const COMMIT_DATE: &str = env!("VLLM_PROXY_COMMIT_DATE");

/// The features that are built in, sorted by name.
pub(crate) const FEATURES: &[&str] = &[
    #[cfg(feature = "glommio")]
    "glommio",
    #[cfg(feature = "smol")]
    "smol",
];

/// Behind the program's name in the one line of `-V`.
pub(crate) fn short() -> &'static str {
    static LINE: LazyLock<String> =
        LazyLock::new(|| format!("{NUMBER} ({COMMIT}, {})", FEATURES.join(", ")));
    &LINE
}

/// Behind the program's name in what `--version` prints, a line for each fact.
pub(crate) fn long() -> &'static str {
    static LINES: LazyLock<String> = LazyLock::new(|| {
        let dated = match COMMIT_DATE {
            "" => COMMIT.to_owned(),
            date => format!("{COMMIT} of {date}"),
        };
        format!(
            "{NUMBER}\ncommit: {dated}\nfeatures: {}\ntarget: {}\nrustc: {}",
            FEATURES.join(", "),
            env!("VLLM_PROXY_TARGET"),
            env!("VLLM_PROXY_RUSTC"),
        )
    });
    &LINES
}
