//! Counts: what became of the requests that one backend was sent, since the process began.
//!
//! Does not know what is in hand now: that is [`Load`](crate::fleet::Load)'s.

/// Counts of what became of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Answers that passed whole, by the hundreds of their status; others are in the first place.
    pub(crate) answers: [u64; 6],
    /// Attempts that failed before anything reached a client.
    pub(crate) failures: u64,
    /// Answers that ended as broken.
    pub(crate) broken: u64,
    /// Questions to several backends that this one left unanswered.
    pub(crate) unheard: u64,
    /// Prompt tokens believed to be cached when requests were sent there.
    pub(crate) promised_tokens: u64,
    /// Prompt tokens that answers said were cached.
    pub(crate) cached_tokens: u64,
}

impl Counts {
    pub(crate) fn answered(&mut self, status: u16) {
        let class = usize::from(status / 100);
        let place = if class < self.answers.len() { class } else { 0 };
        self.answers[place] += 1;
    }
}
