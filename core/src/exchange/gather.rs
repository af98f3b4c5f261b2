//! Requests that several backends hear: asked side by side, their answers merged into one.
//!
//! Owns the questions and what comes of them; whom to ask is the engine's word, how answers become
//! one is told by [`merge`](crate::wire::merge).

use super::errand::{Body, Client, Errand, Heard, Said};
use super::{After, Drain, Exchange, Order, Phase};
use crate::route::{AdapterChange, Asked, Change, Echo, Failure, Gathering, Refusal, Who};
use crate::time::{Duration, Instant};
use crate::wire::facts::Facts;
use crate::wire::merge::{self, Merge, Merged, Reply};
use crate::wire::probe::parse_flag;
use alloc::borrow::ToOwned;
use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

/// How long backends may take for numbers and states. Prometheus gives a scrape 10 s.
const READ_LIMIT: Duration = Duration::from_secs(5);
/// The whole of one backend's answer, where it is a few fields.
const REPLY_BYTES_MAX: usize = 1 << 20;
/// The same of a page of metrics: those of a vLLM with a dozen adapters take 100 KB.
const PAGE_BYTES_MAX: usize = 4 << 20;
/// The same of the results of `/collective_rpc`, which are whatever a worker returns.
const RESULTS_BYTES_MAX: usize = 16 << 20;
/// How much later than their time errands may end.
const GRACE: Duration = Duration::from_secs(1);
/// The form of metrics that is asked for, whatever the client would take: all must be alike.
const METRICS_ACCEPT: &str = "text/plain;version=0.0.4";

/// A gathering under way.
#[derive(Debug)]
pub(super) struct Gather {
    asked: Vec<Asked>,
    facts: Option<Box<Facts>>,
    until: Instant,
    /// The body of the request, where it loads an adapter.
    load: Option<Arc<[u8]>>,
}

impl Gather {
    /// When to give up on whoever runs the errands, should it not end them in time.
    pub(super) fn deadline(&self) -> Instant {
        self.until + GRACE
    }
}

impl Exchange {
    /// The engine said whom to ask.
    pub(super) fn gather(&mut self, gathering: Gathering, now: Instant) {
        let Gathering { asked, facts } = gathering;
        let rule = self.request.rule();
        let client = Client {
            minor: self.request.minor,
            keep_alive: self.request.keep_alive && self.drain == Drain::Running,
            is_head: self.request.is_head && rule.merge != Merge::Metrics,
            explains: self.request.told.explains,
        };
        let metrics = rule.merge == Merge::Metrics;
        let reply_bytes_max = match rule.merge {
            Merge::Metrics => PAGE_BYTES_MAX,
            Merge::Concat(_) => RESULTS_BYTES_MAX,
            Merge::Same
            | Merge::And(_)
            | Merge::Or(_)
            | Merge::Sum(..)
            | Merge::Awake
            | Merge::Ranks
            | Merge::Compare
            | Merge::LoadLora
            | Merge::UnloadLora => REPLY_BYTES_MAX,
        };
        let load = (rule.merge == Merge::LoadLora).then(|| self.request.content().into());
        // Nobody else will get this request: its bytes are lent to all, and kept by nobody.
        let body = if metrics { Body::default() } else { self.request.lend_body() };
        let errand = |asked: &Asked| {
            let head = if metrics {
                self.request.question_for(&asked.spec, METRICS_ACCEPT)
            } else {
                self.request.head_for(&asked.spec)
            };
            let limits = Arc::clone(&self.limits);
            Errand::new(asked.clone(), client, head, body.clone(), reply_bytes_max, limits)
        };
        let errands: Vec<Errand> = asked.iter().map(errand).collect();
        let limit = match rule.who {
            Who::Each => Some(READ_LIMIT),
            Who::Backend
            | Who::Owner
            | Who::Realtime
            | Who::Every
            | Who::Named
            | Who::Health
            | Who::Models
            | Who::Version
            | Who::Live
            | Who::Status
            | Who::Events
            | Who::Page
            | Who::Acts(_)
            | Who::Explain => self.limits.http_timeout,
        };
        let until = limit.map_or(Instant::FAR, |limit| now + limit);
        self.phase = Phase::Gathering(Gather { asked, facts, until, load });
        if errands.is_empty() {
            return self.gathered(Vec::new(), now);
        }
        self.orders.push_back(Order::Gather(errands, until));
    }

    /// Whoever runs the errands has not ended them.
    pub(super) fn gathering_timeout(&mut self, now: Instant) {
        self.orders.push_back(Order::Release { reusable: false });
        self.answer(&Refusal::TimedOut.answer(self.request.shape()), now);
    }

    /// All have answered, or failed to.
    pub(super) fn gathered(&mut self, mut said: Vec<Said>, now: Instant) {
        if !matches!(self.phase, Phase::Gathering(_)) {
            return;
        }
        let Phase::Gathering(gather) = core::mem::replace(&mut self.phase, Phase::Asked) else {
            return;
        };
        // In the order in which they were asked, whoever was first.
        said.sort_by_key(|said| gather.asked.iter().position(|one| one.backend == said.backend));
        let rule = self.request.rule();
        let short = said.iter().any(|said| matches!(said.result, Err(Failure::NoSocket)));
        let echoes: Vec<Echo> =
            said.iter().map(|said| echo(said, rule.merge, rule.change)).collect();
        if !echoes.is_empty() {
            let adapter = self.adapter_change(&echoes, gather.load.as_ref());
            self.orders.push_back(Order::Heard(echoes, adapter));
        }
        if short && rule.merge != Merge::Metrics {
            // What is missing is missing here, and a part must not pass for the whole.
            return self.answer(&Refusal::Busy.answer(rule.shape), now);
        }
        let names: Vec<String> =
            gather.asked.iter().map(|asked| asked.spec.address.to_string()).collect();
        let own = gather.facts.as_deref().map(Facts::text).unwrap_or_default();
        let (mut frames, mut parts) = (Vec::new(), Vec::new());
        for (name, said) in names.iter().zip(said) {
            frames.push(said.result.as_ref().ok().map(|heard| heard.frame));
            let result = said.result.map(|heard| heard.reply).map_err(Failure::message);
            parts.push(merge::Said { backend: name, result });
        }
        match merge::merge(rule.merge, &parts, &own) {
            Merged::Answer(answer) => self.answer(&answer, now),
            Merged::One(at) => {
                let reply = parts.get(at).and_then(|part| part.result.as_ref().ok());
                match reply.zip(frames.get(at).copied().flatten()) {
                    Some((reply, frame)) => {
                        frame.append(reply, &mut self.out);
                        let after = if frame.close { After::Close } else { After::NextRequest };
                        self.answered(after, now);
                    }
                    None => self.answer(&Refusal::NoAnswer.answer(rule.shape), now),
                }
            }
        }
    }
}

impl Exchange {
    /// Which adapter was loaded or unloaded, if that is to be so for backends to come as well.
    fn adapter_change(&self, echoes: &[Echo], load: Option<&Arc<[u8]>>) -> Option<AdapterChange> {
        let request = self.request.meta();
        let narrow = request.narrow.cloned().unwrap_or_default();
        let done = echoes.iter().any(|echo| echo.result == Ok(Some(Change::Adapters)));
        if !done || narrow.backend.is_some() {
            return None;
        }
        if load.is_none() && !request.unloads {
            return None;
        }
        let load = load.cloned();
        let name = request.adapter?.to_owned();
        Some(AdapterChange { name, load, model: narrow.model })
    }
}

/// What one backend's part says of it.
fn echo(said: &Said, merge: Merge, change: Option<Change>) -> Echo {
    let result = match &said.result {
        Ok(Heard { reply: Reply { status, body, .. }, .. }) => {
            let success = (200..300).contains(status)
                && match merge {
                    Merge::And(field) => parse_flag(body, field) == Some(true),
                    Merge::Same
                    | Merge::Or(_)
                    | Merge::Sum(..)
                    | Merge::Concat(_)
                    | Merge::Awake
                    | Merge::Ranks
                    | Merge::Compare
                    | Merge::LoadLora
                    | Merge::UnloadLora
                    | Merge::Metrics => true,
                };
            Ok(change.filter(|_| success))
        }
        Err(failure) => Err(*failure),
    };
    Echo { backend: said.backend, result }
}

impl Failure {
    /// Why a backend's part in a request failed, in a few words.
    const fn message(self) -> &'static str {
        match self {
            Self::Connect => "no connection",
            Self::NoSocket => "no descriptor or port left here",
            Self::Stale | Self::Lost => "the connection ended before an answer",
            Self::Cut => "the answer was cut short",
            Self::Nonsense => "the answer is not HTTP/1.1, or too long",
            Self::Timeout => "no answer in time",
            Self::Status(_) | Self::ErrorEvent | Self::Unlisted | Self::Elsewhere => "it refused",
        }
    }
}
