//! How we choose: the words in which a request is asked about and answered.
//!
//! Owns no state. [`Engine`](crate::engine::Engine) speaks these words to
//! [`Exchange`](crate::exchange::Exchange); neither knows the other.

mod explained;
mod favourite;
mod held;
mod pick;
pub(crate) mod prompt;
mod score;
mod several;

pub use crate::wire::usage::Usage;
pub use explained::{Explained, Known, Outlook};
pub(crate) use favourite::{favourite, first_unpopular};
pub(crate) use held::{Held, Next, Pool, Promise, Tried};
pub use pick::{Candidate, Question, pick};
pub use prompt::{CHUNK_BYTES, CHUNKS_MAX, Fingerprint};
pub use score::{Cost, Terms, Work, cost, fastest};
pub use several::{AdapterChange, Asked, Change, Echo, Gathering, Narrow};

use crate::fleet::{BackendId, BackendSpec};
use crate::time::{Duration, Instant};
use crate::wire::answers::{Answer, Shape};
use crate::wire::status::Status;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// Who can answer a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// A backend that serves the request's model.
    Backend,
    /// The backend that keeps the response named; whoever it is, if nobody here knows.
    Owner,
    /// All backends that take requests; their answers are merged. Nothing changes by it.
    Each,
    /// All backends, since it changes something in each: one that is down fails the whole.
    Every,
    /// One backend, which the request must name if there are several: what it brings fits one only.
    Named,
    /// The proxy: 200 while a backend takes requests, else 503, without a body.
    Health,
    /// The proxy: every model of every backend that takes requests.
    Models,
    /// The proxy: the backends' version, the lowest if they differ.
    Version,
    /// The proxy: 200 while the process runs, without a body.
    Live,
    /// The proxy: how it and its backends are.
    Status,
    /// The proxy: the same, and again and again, as events.
    Events,
    /// The proxy: a page for people that shows these.
    Page,
    /// The proxy: what another request would come to.
    Explain,
    /// The proxy, of whose backends an operator orders something: one, by its address.
    Acts(Act),
    /// A backend, of a websocket that names its model only when it is open: as long as it has not,
    /// [`RequestMeta::model`] is `None`, and the proxy may have to accept it.
    Realtime,
}

impl Who {
    /// Whether the proxy answers by itself, so that it judges the method, too.
    pub(crate) const fn is_own(self) -> bool {
        match self {
            Self::Health
            | Self::Models
            | Self::Version
            | Self::Live
            | Self::Status
            | Self::Events
            | Self::Page
            | Self::Acts(_)
            | Self::Explain => true,
            Self::Backend
            | Self::Owner
            | Self::Each
            | Self::Every
            | Self::Named
            | Self::Realtime => false,
        }
    }

    /// Whether only operators may ask for it, and no browser on behalf of a page of elsewhere.
    pub(crate) const fn is_act(self) -> bool {
        matches!(self, Self::Acts(_) | Self::Explain)
    }

    /// Whether the answer follows from what is known, whatever the request brings along.
    pub(crate) const fn needs_no_body(self) -> bool {
        self.is_own() && !matches!(self, Self::Models | Self::Explain)
    }
}

/// What operators order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// A backend gets no new requests; those that it has go on to their end. It is still asked how
    /// it is, and for what it alone keeps.
    Drain,
    /// It gets requests again.
    Undrain,
}

/// When a request may be sent to another backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// As long as nothing of an answer has reached the client.
    BeforeFirstByte,
    /// Only if nothing of it was sent: it has effects beyond compute, or names a backend's state.
    Never,
}

/// What the engine is told of a request.
#[derive(Clone, Copy, Debug)]
pub struct RequestMeta<'a> {
    /// Who can answer.
    pub who: Who,
    /// The model named; `None` where the request names none, `null` or an empty one.
    pub model: Option<&'a str>,
    /// Whether the answer comes as events.
    pub stream: bool,
    /// Length of the prompt, in bytes of JSON text; its tokens are estimated from that.
    pub prompt_bytes: u64,
    /// The prompt, so that others that begin alike can be told.
    pub prompt: &'a Fingerprint,
    /// When it may be tried elsewhere.
    pub retry: Retry,
    /// Whether the client would switch to a websocket.
    pub websocket: bool,
    /// When the whole request was there.
    pub since: Instant,
    /// The id of the stored response that it is about or goes on from.
    pub response: Option<&'a str>,
    /// The adapter that it is about, where it changes adapters.
    pub adapter: Option<&'a str>,
    /// Whether it unloads that adapter, and so means those that have it.
    pub unloads: bool,
    /// Whether it means the default model's backends, unless it says which.
    pub of_default: bool,
    /// Whether the answer is to tell the proxy's own numbers.
    pub facts: bool,
    /// Of several backends, which ones the request means; of an order, which one.
    pub narrow: Option<&'a Narrow>,
    /// Whether it is only asked what the request would come to.
    pub dry_run: bool,
    /// Set if the method is wrong for a route that the proxy answers itself: the one allowed.
    pub allow: Option<&'static str>,
}

impl<'a> RequestMeta<'a> {
    /// A request that any backend of the default model can answer and that is about nothing else
    /// but its prompt; for who asks an engine without an exchange.
    pub const fn of_prompt(prompt: &'a Fingerprint, since: Instant) -> Self {
        Self {
            who: Who::Backend,
            model: None,
            stream: true,
            prompt_bytes: prompt.bytes(),
            prompt,
            retry: Retry::BeforeFirstByte,
            websocket: false,
            since,
            response: None,
            adapter: None,
            unloads: false,
            of_default: false,
            facts: false,
            narrow: None,
            dry_run: false,
            allow: None,
        }
    }
}

/// One request's share of the budget of request bodies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Bytes that it holds.
    pub bytes: u64,
    /// Whether it is the one that may hold more than there is: of several bodies of unknown length
    /// that used the budget up, one must be able to go on, or all would wait for one another.
    pub overdraft: bool,
}

/// What the engine says to a request.
#[derive(Debug)]
pub enum Decision {
    /// Send it to a backend.
    Forward(Route),
    /// The proxy answers by itself.
    Answer(Answer),
    /// The proxy answers by what it says of itself.
    Status(Box<Status>),
    /// The same, as text that was made of it for somebody else a moment ago.
    Shown(Arc<Vec<u8>>),
    /// The proxy answers by what a request would come to.
    Explained(Box<Explained>),
    /// Ask these backends, side by side, and merge what they say.
    Gather(Gathering),
    /// The proxy accepts the websocket, and asks again when that has named its model.
    Accept,
    /// Nobody can take it.
    Refuse(Refusal),
    /// Not known yet (the first round of probes, or a refresh of the model lists, is under way):
    /// ask again then.
    Later(Instant),
}

/// A backend was chosen.
#[derive(Debug)]
pub struct Route {
    /// Which one.
    pub backend: BackendId,
    /// Where and how to reach it.
    pub spec: Arc<BackendSpec>,
    /// Why this one.
    pub reason: Reason,
    /// Prompt tokens that it is believed to have cached.
    pub predicted_tokens: u64,
    /// Backends that the request was sent to, this one included.
    pub attempt: u32,
    /// Whether an idle connection will not do: the last one was stale, or the request must not
    /// be sent twice.
    pub fresh: bool,
    /// What of its answer is not to be taken at its word.
    pub doubt: Doubt,
    /// To be given back, by [`Engine::finish`](crate::engine::Engine::finish) or `reroute`.
    pub ticket: Ticket,
}

/// Which answers of a backend are not the last word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Doubt {
    /// None but 500 and 503, where the request may be tried elsewhere.
    #[default]
    None,
    /// 404 that the model does not exist: it was believed to serve it, and another may.
    Unlisted,
    /// The same, where nobody serves the model, and the default model's backend is asked all the
    /// same: it may object to something else first, as one vLLM would, or know the name after all.
    /// This is to be said instead, since a backend names its own models only.
    Unknown(Refusal),
    /// Any 404: another backend may keep the response asked for.
    Elsewhere,
    /// All but 401: the backend is only asked whether it accepts the client's key. This is to be
    /// said instead.
    Key(Answer),
}

/// Why a backend was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Only one could take it.
    Only,
    /// It had the least work in hand.
    LeastWork,
    /// It had the least work in hand, with what it has cached of the prompt.
    Cached,
    /// It was its turn.
    Turn,
    /// The same one again: an idle connection to it had died.
    Stale,
    /// It keeps the response that the request is about.
    Owner,
    /// Nobody knows who keeps that response, and it is asked in its turn.
    Search,
}

impl Reason {
    /// One word, for logs and headers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Only => "only",
            Self::LeastWork => "least-work",
            Self::Cached => "cached",
            Self::Turn => "turn",
            Self::Stale => "stale",
            Self::Owner => "owner",
            Self::Search => "search",
        }
    }
}

/// One request's share of a backend's load, held from [`Decision::Forward`] until it is settled.
///
/// Not `Clone`, and it must not be dropped: a lost ticket is load that never goes away, so a debug
/// build asserts.
#[derive(Debug)]
#[must_use = "a ticket must be settled: Engine::finish or Engine::reroute"]
pub struct Ticket {
    id: u64,
}

impl Ticket {
    pub(crate) const fn issue(id: u64) -> Self {
        Self { id }
    }

    /// The request's number within this process.
    pub const fn id(&self) -> u64 {
        self.id
    }

    pub(crate) const fn redeem(self) -> u64 {
        let id = self.id;
        core::mem::forget(self);
        id
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        debug_assert!(false, "ticket {} was dropped unsettled", self.id);
    }
}

/// What a backend did wrong, before anything of its answer reached the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No connection could be made: refused, unreachable, timed out. Nothing was sent.
    Connect,
    /// No connection could be tried, since this process or machine has no descriptor, port or
    /// memory for one. No backend's fault.
    NoSocket,
    /// An idle connection that was reused ended before a byte of the answer.
    Stale,
    /// A new connection ended before a byte of the answer.
    Lost,
    /// The answer ended after its head, before a byte of its body that was owed.
    Cut,
    /// The answer is not HTTP/1.1, or ambiguous.
    Nonsense,
    /// It answered 500 or 503.
    Status(u16),
    /// It answered 200, and the first event of the stream is an error of the server's.
    ErrorEvent,
    /// It answered that the model does not exist, though it had listed it.
    Unlisted,
    /// It answered 404: it does not keep the response asked for.
    Elsewhere,
    /// It sent nothing for the whole HTTP timeout. Never tried elsewhere.
    Timeout,
}

/// How a ticket ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The whole answer passed.
    Done {
        /// Its status.
        status: u16,
        /// What it said it cost, if it did.
        usage: Option<Usage>,
    },
    /// The client left first.
    ClientGone,
    /// The answer had begun and ended as broken.
    Broken,
    /// No byte came for the whole HTTP timeout, or the drain timeout passed.
    TimedOut,
}

impl Outcome {
    /// The whole answer passed with this status, and did not say what it cost.
    pub const fn done(status: u16) -> Self {
        Self::Done { status, usage: None }
    }
}

/// Why nobody takes a request. Each is answered in the shape of the route asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// 404: no backend serves a model of this name.
    UnknownModel {
        /// The name asked for.
        model: String,
        /// Every base name served, in the order of `/v1/models`.
        bases: Vec<String>,
    },
    /// 404: no backend has the address that the request names.
    UnknownBackend {
        /// The address asked for.
        backend: String,
        /// Every address there is.
        backends: Vec<String>,
    },
    /// 400: the request must name one of these backends.
    Ambiguous {
        /// Their addresses.
        backends: Vec<String>,
    },
    /// 503: backends of this model are known, and none is up.
    ModelDown {
        /// The name asked for.
        model: String,
    },
    /// 503: operators have all backends drained that are up, of this model if there is one named.
    Drained {
        /// The name asked for.
        model: Option<String>,
    },
    /// 503: some upstream has not listed its models yet, so nothing can be said of this one; or
    /// no backend at all is up.
    Starting,
    /// 503: this proxy has no room for it: the budget of request bodies stayed used up, or there is
    /// no descriptor or port left.
    Busy,
    /// 503: nobody who could be asked keeps the stored response, and somebody could not be asked.
    Unasked,
    /// 502: the backends that were tried gave no answer.
    NoAnswer,
    /// 504: the backend sent nothing for the whole HTTP timeout.
    TimedOut,
}

impl Refusal {
    /// The status that tells it.
    pub const fn status(&self) -> u16 {
        match self {
            Self::UnknownModel { .. } | Self::UnknownBackend { .. } => 404,
            Self::Ambiguous { .. } => 400,
            Self::ModelDown { .. }
            | Self::Drained { .. }
            | Self::Starting
            | Self::Busy
            | Self::Unasked => 503,
            Self::NoAnswer => 502,
            Self::TimedOut => 504,
        }
    }

    /// One word, for headers.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::UnknownModel { .. } => "unknown-model",
            Self::UnknownBackend { .. } => "unknown-backend",
            Self::Ambiguous { .. } => "ambiguous",
            Self::ModelDown { .. } => "model-down",
            Self::Drained { .. } => "drained",
            Self::Starting => "starting",
            Self::Busy => "busy",
            Self::Unasked => "unasked",
            Self::NoAnswer => "no-answer",
            Self::TimedOut => "timed-out",
        }
    }

    /// The whole answer, worded as vLLM words it for routes of this shape.
    pub fn answer(&self, shape: Shape) -> Answer {
        Answer::refusal(self, shape)
    }
}

/// How long a request waits for the first round of probes, or for a refresh of the model lists.
pub const KNOWLEDGE_WAIT: Duration = Duration::from_secs(2);
