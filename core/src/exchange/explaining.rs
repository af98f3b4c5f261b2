//! Explaining: what a client is told of the way that its request went, if it asks and may know; and
//! requests that only ask which way they would go.
//!
//! Owns who is told. How it looks is told by [`way`] and [`Explained`].

use super::Exchange;
use super::attempt::Attempt;
use crate::route::{Explained, Refusal, Who};
use crate::time::Instant;
use crate::wire::head::RequestError;
use crate::wire::routes::{self, Found};
use crate::wire::target::parameter;
use crate::wire::way::{self, Nowhere, Way};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// What a dry run is about, unless it says so.
const USUAL: (&str, &str) = ("POST", "/v1/chat/completions");

/// What a client is to be told besides the answer, and what is known of that.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Whether it is told which way its request went.
    pub(super) explains: bool,
    /// Backends that the request was sent to.
    pub(super) attempts: u32,
    /// Why it was sent nowhere.
    pub(super) nowhere: Option<Nowhere>,
    /// The request that is meant, by method and target, where it is only asked what that would come
    /// to.
    pub(super) dry_run: Option<String>,
}

impl Told {
    pub(super) fn new(explains: bool, meant: Option<&Meant>) -> Self {
        let dry_run = meant.map(|meant| meant.asked.clone());
        Self { explains, dry_run, ..Self::default() }
    }
}

/// The request that a dry run is about.
#[derive(Debug)]
pub(super) struct Meant {
    /// Its method and its target.
    asked: String,
    method_len: usize,
}

impl Meant {
    /// Treats a dry run as the request that its parameters say; leaves all others as they are.
    pub(super) fn instead(
        found: Found,
        target: &[u8],
    ) -> Result<(Found, Option<Self>), RequestError> {
        if found.rule.who != Who::Explain || found.rule.allow.is_some() {
            return Ok((found, None));
        }
        let (method, path) = USUAL;
        let method = parameter(target, "method").unwrap_or_else(|| method.into());
        let path = parameter(target, "path").unwrap_or_else(|| path.into());
        if !path.starts_with('/') {
            let why = "the parameter `path` does not begin with a slash";
            return Err(RequestError::Malformed(why));
        }
        if !method.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(RequestError::Malformed("the parameter `method` is no method"));
        }
        let found = routes::find_dry(&method, path.as_bytes());
        let asked = format!("{method} {path}");
        Ok((found, Some(Self { asked, method_len: method.len() })))
    }

    pub(super) fn target(&self) -> &[u8] {
        self.asked.as_bytes().get(self.method_len + 1..).unwrap_or_default()
    }
}

impl Attempt {
    /// How the request came to this backend, which has that address.
    pub(super) const fn way<'a>(&self, backend: &'a str) -> Way<'a> {
        let (predicted_tokens, attempts) = (self.predicted_tokens, self.number);
        Way { backend, reason: self.reason.as_str(), predicted_tokens, attempts }
    }
}

impl Exchange {
    /// Nobody takes the request.
    pub(super) fn refused(&mut self, refusal: &Refusal, now: Instant) {
        let (reason, attempts) = (refusal.as_str(), self.request.told.attempts);
        self.request.told.nowhere =
            self.request.told.explains.then_some(Nowhere { reason, attempts });
        self.answer(&refusal.answer(self.request.shape()), now);
    }

    /// An answer that was kept is the last word: others were tried behind it.
    pub(super) fn tell_attempts(&self, answer: &mut Vec<u8>) {
        if self.request.told.explains {
            way::set_attempts(answer, self.request.told.attempts);
        }
    }

    /// What a dry run found.
    pub(super) fn explained(&mut self, explained: &Explained, now: Instant) {
        let asked = self.request.told.dry_run.take().unwrap_or_default();
        self.answer(&explained.answer(&asked, self.request.shape()), now);
    }
}
