//! What looks for the model in a request's body, by the body's form.
//!
//! Knows which forms there are; what each finds is told by [`scan`](crate::wire::scan) and
//! [`form`](crate::wire::form).

use crate::wire::form::FormScanner;
use crate::wire::scan::{Scan, Scanner};

/// What looks for the model in a body.
#[derive(Debug)]
pub(super) enum BodyScanner {
    Json(Scanner),
    Form(FormScanner),
    /// A form without a boundary has no fields; a backend says so.
    Nothing,
}

impl Default for BodyScanner {
    fn default() -> Self {
        Self::Json(Scanner::default())
    }
}

impl BodyScanner {
    pub(super) fn feed(&mut self, body: &[u8]) {
        match self {
            Self::Json(scanner) => scanner.feed(body),
            Self::Form(scanner) => scanner.feed(body),
            Self::Nothing => {}
        }
    }

    pub(super) fn finish(self, body: &[u8]) -> Scan {
        match self {
            Self::Json(scanner) => scanner.finish(body),
            Self::Form(scanner) => scanner.finish(body),
            Self::Nothing => Scan::default(),
        }
    }
}
