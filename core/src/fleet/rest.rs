//! Rest: whether a backend was told to sleep or to pause.
//!
//! vLLM says so only when asked (`/is_sleeping`, `/is_paused`, in development mode), and while it
//! rests it answers 503 (0.33) or nothing at all (0.32). Owns that one fact. Does not know who told
//! it: a request that passed here or at another proxy says that it may have changed, and only the
//! backend's own word, asked for at the next probe, says how.

/// One backend's state of rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rest {
    /// It is to be asked at each probe: something passed that may have changed it, or it rests.
    doubtful: bool,
    on: bool,
}

impl Rest {
    /// An administrative request that a backend answered with success may have changed it, whoever
    /// passed it on.
    pub(crate) const fn doubt(&mut self) {
        self.doubtful = true;
    }

    /// Whether probes are to ask for it.
    pub(crate) const fn is_doubtful(self) -> bool {
        self.doubtful
    }

    /// What a probe brought; `None` if it did not ask, or got no answer.
    pub(crate) const fn heard(&mut self, rests: Option<bool>) {
        if let Some(rests) = rests {
            *self = Self { doubtful: rests, on: rests };
        }
    }

    /// Whether it rests.
    pub(crate) const fn is_on(self) -> bool {
        self.on
    }
}
