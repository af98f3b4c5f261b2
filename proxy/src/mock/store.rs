//! Responses that outlive their request: kept, read again, made in the background, cancelled.
//!
//! Wording is 0.32's. Two of its quirks are kept: a response made in the background says `queued`
//! until it is complete, and the events of a cancelled one never end.

use super::answers::{Answer, stream};
use super::check::Fields;
use super::connection::{Connection, Job};
use super::events::{self, Pieces};
use event_listener::Event;
use http_types::Response;
use serde_json::{Map, Value};
use smol::future::{FutureExt, pending};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

/// Responses kept at most; vLLM keeps all.
const STORED_MAX: usize = 1_024;

/// A response that can be asked for again.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) id: String,
    /// The whole conversation up to its end, as a prompt holds it; once it has ended.
    pub(super) conversation: String,
    pub(super) json: String,
    /// How far it is, if it was made in the background.
    pub(super) background: Option<Rc<Background>>,
}

/// A response being made that belongs to no connection.
#[derive(Debug, Default)]
pub(super) struct Background {
    /// Those of a stream; `None` if it is none.
    events: RefCell<Option<Vec<String>>>,
    /// Whether no more events will come.
    done: Cell<bool>,
    cancelled: Cell<bool>,
    changed: Event,
}

/// The responses kept, latest last.
#[derive(Debug, Default)]
pub(super) struct Store(VecDeque<Stored>);

impl Store {
    pub(super) fn find(&self, id: &str) -> Result<&Stored, Answer> {
        self.0.iter().find(|stored| stored.id == id).ok_or_else(|| Answer::unknown_response(id))
    }

    /// Keeps a response, in the place of what it was before; but what was cancelled stays so.
    pub(super) fn keep(&mut self, mut new: Stored) {
        if let Some(old) = self.0.iter_mut().find(|stored| stored.id == new.id) {
            let cancelled = old.background.as_ref().is_some_and(|making| making.cancelled.get());
            if !cancelled {
                new.background = old.background.take();
                *old = new;
            }
            return;
        }
        if self.0.len() == STORED_MAX {
            self.0.pop_front();
        }
        self.0.push_back(new);
    }

    /// Cancels a response that is being made.
    pub(super) fn cancel(&mut self, id: &str) -> Answer {
        let Some(stored) = self.0.iter_mut().find(|stored| stored.id == id) else {
            return Answer::unknown_response(id);
        };
        let queued = r#""status":"queued""#;
        match &stored.background {
            Some(making) if stored.json.contains(queued) => {
                making.cancelled.set(true);
                making.changed.notify(usize::MAX);
                stored.json = stored.json.replace(queued, r#""status":"cancelled""#);
                Answer::json(stored.json.clone())
            }
            Some(_) | None => {
                let message = "Cannot cancel a synchronous response.";
                Answer::error(400, "invalid_request_error", message, Some("response_id"))
            }
        }
    }
}

impl Background {
    pub(super) fn new(streamed: bool) -> Rc<Self> {
        let events = RefCell::new(streamed.then(Vec::new));
        Rc::new(Self { events, ..Self::default() })
    }

    /// Whether its events are kept.
    pub(super) fn is_stream(&self) -> bool {
        self.events.borrow().is_some()
    }

    /// `work`, until it is cancelled.
    pub(super) fn job(self: Rc<Self>, work: impl Future<Output = ()> + 'static) -> Job {
        Box::pin(async move {
            let cancelled = self.until(|| self.cancelled.get());
            work.or(cancelled).await;
            self.done.set(!self.cancelled.get());
            self.changed.notify(usize::MAX);
        })
    }

    pub(super) fn push(&self, event: String) {
        if let Some(events) = self.events.borrow_mut().as_mut() {
            events.push(event);
        }
        self.changed.notify(usize::MAX);
    }

    async fn until(&self, reached: impl Fn() -> bool) {
        loop {
            let change = self.changed.listen();
            if reached() {
                return;
            }
            change.await;
        }
    }

    /// Sends all events from `first` on, those to come too.
    async fn tell(self: Rc<Self>, first: usize, pieces: Pieces) {
        let event = |at| self.events.borrow().as_ref().and_then(|all| all.get(at).cloned());
        for at in first.. {
            self.until(|| event(at).is_some() || self.done.get()).await;
            let Some(event) = event(at) else { return };
            if pieces.send(Ok(event.into_bytes())).await.is_err() {
                return;
            }
        }
    }

    /// An answer with its events from `first` on.
    pub(super) fn answer(self: Rc<Self>, connection: &Connection, first: usize) -> Response {
        let (pieces, body) = events::channel();
        connection.watch(Some(Box::pin(self.tell(first, pieces))));
        stream(body)
    }
}

/// `GET /v1/responses/{id}`
pub(super) fn read(
    connection: &Connection,
    id: &str,
    query: &Map<String, Value>,
) -> Result<Response, Answer> {
    let mut fields = Fields::of_query(query);
    let after = fields.number("starting_after");
    let streamed = fields.flag("stream");
    fields.done()?;
    let stored = connection.mock.responses.borrow().find(id)?.clone();
    if !streamed {
        return Ok(Answer::json(stored.json).into_response());
    }
    let making = stored.background.filter(|making| making.is_stream());
    let Some(making) = making else {
        // That there are no events vLLM finds out when the head has left.
        let (pieces, body) = events::channel();
        connection.watch(Some(Box::pin(async move {
            let _ = pieces.send(Err(events::cut())).await;
            pending().await
        })));
        return Ok(stream(body));
    };
    let first = after.map_or(0, |after| usize::try_from(after + 1).unwrap_or(0));
    Ok(making.answer(connection, first))
}
