//! Errand: one backend's part in a request that several hear, over bytes.
//!
//! Sends a request and takes in the whole answer, bounded. Does not know the others, nor what
//! becomes of the answers: [`gather`](super::gather) does. Each has a connection of its own, which
//! is closed behind it.

use super::words::End;
use crate::config::Limits;
use crate::fleet::{BackendId, BackendSpec};
use crate::route::{Asked, Failure};
use crate::wire::body::{BodyReader, Framing, Kind};
use crate::wire::forward::{self, ClientFraming};
use crate::wire::head::{HeadEnd, parse_response};
use crate::wire::merge::Reply;
use crate::wire::way::Says;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// Informational answers before the final one, as on the way of a single answer.
const INFORMATIONAL_MAX: u8 = 16;

/// How the client's connection bears on the head that it may get of an answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Client {
    pub(super) minor: u8,
    pub(super) keep_alive: bool,
    pub(super) is_head: bool,
    /// Whether it asks which way its request goes; of several it is not told.
    pub(super) explains: bool,
}

/// One backend's part.
#[derive(Debug)]
pub struct Errand {
    asked: Asked,
    client: Client,
    limits: Arc<Limits>,
    head: Vec<u8>,
    body: Body,
    sent: usize,
    /// The largest body of an answer that is taken in.
    reply_bytes_max: usize,
    /// What came of a head.
    received: Vec<u8>,
    head_end: HeadEnd,
    informational: u8,
    answer: Option<(Heard, BodyReader)>,
}

/// The body of a request that several hear: the same bytes for all.
#[derive(Clone, Debug, Default)]
pub(super) struct Body {
    /// Something before it, too.
    pub(super) message: Arc<Vec<u8>>,
    pub(super) start: usize,
}

impl Body {
    fn bytes(&self) -> &[u8] {
        self.message.get(self.start..).unwrap_or_default()
    }
}

/// An answer, as a client would get it.
#[derive(Debug)]
pub(super) struct Heard {
    pub(super) reply: Reply,
    pub(super) frame: Frame,
}

/// What an answer's head says of its frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    chunked: bool,
    /// Whether the connection ends with it.
    pub(super) close: bool,
}

/// What one backend said.
#[derive(Debug)]
pub struct Said {
    /// Who.
    pub(super) backend: BackendId,
    /// What, or why nothing.
    pub(super) result: Result<Heard, Failure>,
}

impl Frame {
    /// Head and body as bytes for the client.
    pub(super) fn append(self, reply: &Reply, out: &mut Vec<u8>) {
        out.extend_from_slice(&reply.head);
        let body = &reply.body;
        if !self.chunked {
            return out.extend_from_slice(body);
        }
        if !body.is_empty() {
            forward::chunk_size(out, body.len() as u64);
            out.extend_from_slice(body);
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"0\r\n\r\n");
    }
}

impl Errand {
    pub(super) fn new(
        asked: Asked,
        client: Client,
        head: Vec<u8>,
        body: Body,
        reply_bytes_max: usize,
        limits: Arc<Limits>,
    ) -> Self {
        Self {
            asked,
            client,
            limits,
            head,
            body,
            sent: 0,
            reply_bytes_max,
            received: Vec::new(),
            head_end: HeadEnd::default(),
            informational: 0,
            answer: None,
        }
    }

    /// Where to connect.
    pub const fn spec(&self) -> &Arc<BackendSpec> {
        &self.asked.spec
    }

    /// How long connecting may take.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What is yet to be sent, in two parts.
    pub fn unsent(&self) -> [&[u8]; 2] {
        let of_head = self.sent.min(self.head.len());
        [&self.head[of_head..], &self.body.bytes()[self.sent - of_head..]]
    }

    /// So many bytes have left.
    pub fn sent(&mut self, bytes: usize) {
        self.sent = (self.sent + bytes).min(self.head.len() + self.body.bytes().len());
    }

    /// Hears bytes; `Some` once nothing more is to be heard.
    pub fn received(&mut self, bytes: &[u8]) -> Option<Said> {
        let heard = if self.sent == 0 {
            // Nobody asked yet.
            Err(Failure::Nonsense)
        } else {
            self.read(bytes)
        };
        match heard {
            Ok(false) => None,
            Ok(true) => self.answer.take().map(|(heard, _)| self.say(Ok(heard))),
            Err(failure) => Some(self.say(Err(failure))),
        }
    }

    /// The connection ended.
    pub fn closed(&mut self, end: End) -> Said {
        let result = match self.answer.take() {
            Some((heard, reader)) if reader.may_close() && end == End::Closed => Ok(heard),
            Some(_) => Err(Failure::Cut),
            None => Err(Failure::Lost),
        };
        self.say(result)
    }

    /// There is no connection to be had.
    pub const fn unconnected(&self) -> Said {
        self.say(Err(Failure::Connect))
    }

    /// There is no descriptor, port or memory for a connection here.
    pub const fn no_socket(&self) -> Said {
        self.say(Err(Failure::NoSocket))
    }

    /// The moment has come.
    pub const fn timed_out(&self) -> Said {
        self.say(Err(Failure::Timeout))
    }

    const fn say(&self, result: Result<Heard, Failure>) -> Said {
        Said { backend: self.asked.backend, result }
    }

    /// Whether the answer is whole.
    fn read(&mut self, bytes: &[u8]) -> Result<bool, Failure> {
        // A head that came in pieces is put together; one that did not is read where it lies.
        let mut gathered = core::mem::take(&mut self.received);
        let mut rest = if gathered.is_empty() {
            bytes
        } else {
            gathered.extend_from_slice(bytes);
            &gathered
        };
        while self.answer.is_none() {
            let found = self.head_end.find(rest).map_err(|_| Failure::Nonsense)?;
            let head_bytes_max = self.limits.response_head_bytes_max;
            let Some(len) = found.filter(|len| *len <= head_bytes_max) else {
                if rest.len() > head_bytes_max {
                    return Err(Failure::Nonsense);
                }
                self.received = rest.to_vec();
                return Ok(false);
            };
            let (head, behind) = rest.split_at(len);
            rest = behind;
            self.head_end = HeadEnd::default();
            self.answer = self.parse(head)?;
            self.informational += u8::from(self.answer.is_none());
            if self.informational > INFORMATIONAL_MAX {
                return Err(Failure::Nonsense);
            }
        }
        let Some((heard, reader)) = &mut self.answer else { return Ok(false) };
        let body = &mut heard.reply.body;
        while !rest.is_empty() && !reader.done() {
            let step = reader.read(rest).map_err(|_| Failure::Nonsense)?;
            if step.kind == Kind::Data {
                body.extend_from_slice(&rest[..step.len]);
            }
            rest = &rest[step.len..];
            if body.len() > self.reply_bytes_max {
                return Err(Failure::Nonsense);
            }
        }
        Ok(reader.done())
    }

    /// The answer that a head begins; `None` if it only informs.
    fn parse(&self, head: &[u8]) -> Result<Option<(Heard, BodyReader)>, Failure> {
        let Client { minor, keep_alive, is_head, explains } = self.client;
        let says = if explains { Says::Nobody } else { Says::Backend };
        let parsed = parse_response(head, is_head, |head| {
            let framing = forward::client_framing(head.framing, minor);
            let close = !keep_alive || framing == ClientFraming::UntilClose;
            let mut emitted = Vec::with_capacity(256);
            // RFC 9112 section 6.1: an HTTP/1.0 client gets no Transfer-Encoding, not even where
            // there is no body.
            let shown = if minor == 0 { ClientFraming::UntilClose } else { framing };
            forward::response(&mut emitted, &head, shown, close, !close && minor == 0, says);
            let reply = Reply { status: head.status, head: emitted, body: Vec::new() };
            let chunked = framing == ClientFraming::Rechunked
                || (framing == ClientFraming::AsIs && head.framing == Framing::Chunked);
            let reader = BodyReader::new(head.framing, self.limits.head_bytes_max);
            (Heard { reply, frame: Frame { chunked, close } }, reader)
        });
        match parsed {
            Ok((heard, _)) if heard.reply.status == 101 => Err(Failure::Nonsense),
            Ok((heard, _)) if (100..200).contains(&heard.reply.status) => Ok(None),
            Ok(answer) => Ok(Some(answer)),
            Err(_) => Err(Failure::Nonsense),
        }
    }
}
