//! Held: what is kept of a request while a ticket for it is out, and when it may be sent again.
//!
//! Owns the rules of trying elsewhere. Does not know who else could take the request.

use crate::fleet::BackendId;
use crate::route::score::Work;
use crate::route::{Failure, Retry};
use crate::time::Instant;
use alloc::sync::Arc;

/// Backends that one request is sent to at most, one after another.
pub(crate) const ATTEMPTS_MAX: usize = 3;
/// Backends that see one request at most. A request that killed an engine may kill the next one,
/// and what one backend answers with 500 or 503 a third will too: one other gets a try.
const DELIVERIES_MAX: u8 = 2;

/// Among whom a request may choose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Pool {
    /// Those that list the model.
    Model(Arc<str>),
    /// Those of upstreams to which unknown names are forwarded.
    Resolvers,
    /// Those that ask for a key.
    Keyed,
    /// Those that may keep a stored response: of a model, or all. Asked one after another, in the
    /// order of their ids, until one answers anything but 404.
    Search {
        model: Option<Arc<str>>,
        /// Who is believed to keep it, and is asked first.
        owner: Option<BackendId>,
        /// The lowest id that was not asked yet, that one apart.
        from: BackendId,
    },
}

impl Pool {
    /// The model, where one is known.
    pub(crate) fn model(&self) -> Option<&str> {
        self.shared_model().map(|model| &**model)
    }

    /// The same, with the copy of its name that requests share.
    pub(crate) const fn shared_model(&self) -> Option<&Arc<str>> {
        match self {
            Self::Model(model) | Self::Search { model: Some(model), .. } => Some(model),
            Self::Search { model: None, .. } | Self::Resolvers | Self::Keyed => None,
        }
    }
}

/// A request while it is with a backend.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) backend: BackendId,
    pub(crate) pool: Pool,
    pub(crate) work: Work,
    /// What its prompt begins with, chunk by chunk, if the policy asks for it.
    pub(crate) chunks: Arc<[u64]>,
    /// Length of its prompt, in bytes of text.
    pub(crate) prompt_bytes: u64,
    /// What was promised of the backend's cache.
    pub(crate) promise: Promise,
    pub(crate) stream: bool,
    pub(crate) retry: Retry,
    /// Whether the client would switch to a websocket.
    pub(crate) websocket: bool,
    /// This attempt's number among all attempts: queues are in this order.
    pub(crate) dispatch: u64,
    pub(crate) sent: Instant,
    /// Whether this attempt was told to make a new connection.
    pub(crate) fresh: bool,
    pub(crate) tried: Tried,
    /// Backends that it was sent to, this one included.
    pub(crate) attempt: u32,
    /// Attempts that ended after the backend may have seen the request.
    pub(crate) delivered: u8,
    /// When the whole request was there.
    pub(crate) since: Instant,
    /// Whether the answer has begun.
    pub(crate) begun: bool,
    /// Whether it names a model that nobody lists.
    pub(crate) unheard_of: bool,
    /// The last answer, by its status, that a backend gave and that may yet be passed.
    pub(crate) kept: Option<(BackendId, u16)>,
}

/// What the prefix index believes of one prompt at one backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Promise {
    /// Prompt tokens that it has cached.
    pub(crate) tokens: u64,
    /// Tokens to a chunk, by which that was reckoned.
    pub(crate) chunk_tokens: u32,
    /// Whether it had more, and is believed to have dropped that.
    pub(crate) had_more: bool,
}

/// What a failed attempt leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// The same backend, on a new connection.
    Same,
    /// Another backend, if there is one.
    Other,
    /// Nothing.
    GiveUp,
}

impl Held {
    /// What comes after a failure, which is counted.
    pub(crate) fn next(&mut self, why: Failure) -> Next {
        let stale = matches!(why, Failure::Stale);
        let harmless = match why {
            // The request may have been seen through an idle connection that died; vLLM closes
            // those after 5 s, so far more likely nobody read it.
            Failure::Stale if !self.fresh => true,
            // Both refused it before they did anything.
            Failure::Connect | Failure::Unlisted => true,
            // However many there are: a 404 costs little, and each is asked once.
            Failure::Elsewhere => return Next::Other,
            // Another backend would need a socket, too.
            Failure::Timeout | Failure::NoSocket => return Next::GiveUp,
            Failure::Stale
            | Failure::Lost
            | Failure::Cut
            | Failure::Nonsense
            | Failure::Status(_)
            | Failure::ErrorEvent => {
                self.delivered = self.delivered.saturating_add(1);
                false
            }
        };
        let again = self.retry == Retry::BeforeFirstByte;
        if stale && harmless {
            return if again { Next::Same } else { Next::GiveUp };
        }
        let allowed = again || harmless;
        if allowed && self.delivered < DELIVERIES_MAX && self.tried.len() < ATTEMPTS_MAX {
            Next::Other
        } else {
            Next::GiveUp
        }
    }
}

/// The backends a request was sent to, in place.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tried {
    backends: [Option<BackendId>; ATTEMPTS_MAX],
}

impl Tried {
    /// Adds one; what does not fit is not kept, since nothing is tried after that.
    pub(crate) fn push(&mut self, backend: BackendId) {
        if let Some(free) = self.backends.iter_mut().find(|slot| slot.is_none()) {
            *free = Some(backend);
        }
    }

    pub(crate) fn contains(&self, backend: BackendId) -> bool {
        self.backends.contains(&Some(backend))
    }

    pub(crate) fn len(&self) -> usize {
        self.backends.iter().flatten().count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    use Failure::{
        Connect, Cut, Elsewhere, ErrorEvent, Lost, Nonsense, Stale, Status, Timeout, Unlisted,
    };
    use Next::{GiveUp, Other, Same};

    /// Feeds failures to one request, each `Other` going to a new backend.
    fn check(retry: Retry, failures: &[(Failure, Next)]) {
        let fresh = retry == Retry::Never;
        let mut tried = Tried::default();
        tried.push(BackendId(0));
        let mut held = Held {
            backend: BackendId(0),
            pool: Pool::Model(Arc::from("m")),
            work: Work::of_prompt(0),
            prompt_bytes: 0,
            promise: Promise::default(),
            chunks: Arc::default(),
            stream: true,
            retry,
            websocket: false,
            dispatch: 0,
            sent: Instant::START,
            fresh,
            tried,
            attempt: 1,
            delivered: 0,
            since: Instant::START,
            begun: false,
            unheard_of: false,
            kept: None,
        };
        for (at, &(why, expected)) in failures.iter().enumerate() {
            assert_eq!(held.next(why), expected, "failure {at}: {why:?}");
            held.fresh = fresh || expected == Same;
            if expected == Other {
                held.tried.push(BackendId(at as u32 + 1));
            }
        }
    }

    #[rstest]
    #[case::connect_three_attempts(&[(Connect, Other), (Connect, Other), (Connect, GiveUp)])]
    #[case::lost_one_other(&[(Lost, Other), (Lost, GiveUp)])]
    #[case::cut_one_other(&[(Cut, Other), (Cut, GiveUp)])]
    #[case::status_one_other(&[(Status(503), Other), (Status(500), GiveUp)])]
    #[case::error_event_one_other(&[(ErrorEvent, Other), (Status(500), GiveUp)])]
    #[case::nonsense_one_other(&[(Nonsense, Other), (Nonsense, GiveUp)])]
    #[case::death_and_status_share_the_one(&[(Lost, Other), (Status(503), GiveUp)])]
    #[case::status_and_death_share_the_one(&[(Status(500), Other), (Lost, GiveUp)])]
    #[case::who_was_not_reached_saw_nothing(&[(Lost, Other), (Connect, Other), (Lost, GiveUp)])]
    #[case::unreached_first(&[(Connect, Other), (Lost, Other), (Lost, GiveUp)])]
    #[case::attempts_end(&[(Connect, Other), (Connect, Other), (Lost, GiveUp)])]
    #[case::timeout(&[(Timeout, GiveUp)])]
    #[case::timeout_later(&[(Connect, Other), (Timeout, GiveUp)])]
    #[case::stale_is_no_attempt(
        &[(Stale, Same), (Connect, Other), (Stale, Same), (Connect, Other), (Stale, Same), (Connect, GiveUp)]
    )]
    #[case::stale_and_lost(&[(Stale, Same), (Lost, Other), (Stale, Same), (Lost, GiveUp)])]
    #[case::unlisted_was_never_begun(&[(Unlisted, Other), (Lost, Other), (Unlisted, GiveUp)])]
    #[case::searching_has_no_limit(
        &[(Elsewhere, Other), (Elsewhere, Other), (Elsewhere, Other), (Elsewhere, Other)]
    )]
    #[case::stale_once_an_attempt(&[(Stale, Same), (Stale, Other), (Lost, GiveUp)])]
    fn before_the_first_byte(#[case] failures: &[(Failure, Next)]) {
        check(Retry::BeforeFirstByte, failures);
    }

    #[rstest]
    #[case::connect(&[(Connect, Other), (Connect, Other), (Connect, GiveUp)])]
    #[case::unlisted(&[(Unlisted, Other), (Unlisted, Other), (Unlisted, GiveUp)])]
    #[case::elsewhere(&[(Elsewhere, Other), (Elsewhere, Other)])]
    #[case::lost(&[(Lost, GiveUp)])]
    #[case::cut(&[(Cut, GiveUp)])]
    #[case::status(&[(Status(503), GiveUp)])]
    #[case::error_event(&[(ErrorEvent, GiveUp)])]
    #[case::nonsense(&[(Nonsense, GiveUp)])]
    #[case::stale(&[(Stale, GiveUp)])]
    #[case::timeout(&[(Timeout, GiveUp)])]
    fn never(#[case] failures: &[(Failure, Next)]) {
        check(Retry::Never, failures);
    }
}
