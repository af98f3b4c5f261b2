//! How long tests wait for what must happen: one limit for all of them.

use std::time::Duration;

/// The longest that anything which works may take or be silent. No test waits so long unless it
/// fails, so this is a limit of patience and says nothing of speed: a machine that is ten times
/// slower, or builds something else at the same time, changes no verdict.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
