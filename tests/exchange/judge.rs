//! The judge: whether what the client received is what the backends said.
//!
//! Knows the whole run; changes nothing in it.

use crate::parse::{Message, parse};
use crate::script::{Answer, Request};
use crate::world::World;
use vllm_proxy_core::route::Share;

impl World {
    /// Every final answer that the client has, or has a part of, with what it answers.
    pub(crate) fn messages(&self) -> Vec<(usize, Message)> {
        let mut rest = &self.received[..];
        let mut messages = Vec::new();
        for (id, request) in self.requests.iter().enumerate() {
            let message = loop {
                // Who refuses a head does not know that it was a HEAD's.
                let refused = [&b"HTTP/1.1 400 "[..], b"HTTP/1.1 408 "];
                let refused = refused.iter().any(|start| rest.starts_with(start));
                match parse(rest, request.method == "HEAD" && !refused, false) {
                    Some(mut message) if request.websocket && message.status() == 101 => {
                        message.body = rest[message.len..].to_vec();
                        message.len = rest.len();
                        break Some(message);
                    }
                    Some(message) if message.status() < 200 => {
                        assert_eq!(
                            request.minor, 1,
                            "an HTTP/1.0 client knows no {}",
                            message.start
                        );
                        rest = &rest[message.len..];
                    }
                    message => break message,
                }
            };
            let Some(mut message) = message else { break };
            if message.until_close {
                assert_eq!(request.minor, 0);
                message.complete = self.closed == Some(false) && !self.left && !self.client_full;
            }
            rest = &rest[message.len..];
            let complete = message.complete;
            messages.push((id, message));
            if !complete {
                break;
            }
        }
        if messages.last().is_none_or(|(_, message)| message.complete) {
            let partial_head = messages.len() < self.requests.len();
            assert!(partial_head || rest.is_empty(), "surplus: {}", rest.escape_ascii());
        }
        messages
    }

    /// Judges the whole run.
    pub(crate) fn check(&mut self) {
        assert_eq!((self.tickets, self.share), (0, Share::default()));
        let (ticket, share) = self.exchange.abandon();
        assert!(ticket.is_none() && share == Share::default());
        let messages = self.messages();
        let calm = !self.trace_has_faults();
        let mut ended = false;
        for (id, message) in &messages {
            assert!(!ended, "an answer behind the last one");
            let request = &self.requests[*id];
            match message.header("x-serial") {
                Some(serial) => {
                    let answer = &self.answers[serial.parse::<usize>().expect("a serial")];
                    self.check_passed(*id, request, message, answer);
                    assert!(!(request.own || request.malformed));
                }
                None => self.check_own(request, message, calm),
            }
            let closes = message.header("connection") == Some("close");
            assert!(!(closes && self.closed.is_none()));
            assert!(!request.last || closes, "the client asked to close");
            ended = closes || !message.complete || message.status() == 101;
        }
        let excused = ended || self.left || self.jumped || self.drained;
        assert!(messages.len() == self.requests.len() || excused, "answers are missing");
        for (id, request) in self.requests.iter().enumerate() {
            let limit = if request.once { 1 } else { 2 };
            assert!(self.deliveries[id] <= limit, "request {id} was given to too many");
        }
    }

    fn trace_has_faults(&self) -> bool {
        let spoiled = self
            .answers
            .iter()
            .any(|answer| !answer.whole || answer.nonsense || matches!(answer.status, 500 | 503));
        let signs = ["no connection", "timeout", "jump", "again", "the client leaves", "drain"];
        spoiled || self.trace.iter().any(|line| signs.iter().any(|sign| line.starts_with(sign)))
    }

    fn check_passed(&self, id: usize, request: &Request, message: &Message, answer: &Answer) {
        assert_eq!(answer.id, id, "somebody else's answer");
        assert!(!answer.nonsense, "nonsense passed");
        assert_eq!(message.start, answer.start);
        if answer.switches {
            return self.check_websocket(message, answer);
        }
        if message.complete {
            assert!(answer.whole, "a broken answer looks complete");
            assert_eq!(message.body, answer.body);
            if request.minor == 1 {
                assert_eq!(message.trailers, answer.trailers);
            }
            return;
        }
        assert!(answer.body.starts_with(&message.body));
        assert!(self.left || self.jumped || !answer.whole, "an answer broke without a reason");
        let begun = !message.body.is_empty() || self.left || self.jumped;
        assert!(begun, "nothing of it had come, and nobody else was tried");
        assert!(self.closed.is_some());
        assert!(
            !message.until_close || self.left || self.closed == Some(true),
            "it looks complete"
        );
    }

    /// What either side said arrived, in order, up to where the other one was disturbed.
    fn check_websocket(&self, message: &Message, answer: &Answer) {
        let tail = &self.requests.last().expect("there is a tail").bytes;
        assert!(tail.starts_with(&self.heard) && answer.body.starts_with(&message.body));
        assert_eq!(message.header("connection"), Some("Upgrade"));
        assert_eq!(message.header("upgrade"), Some("websocket"));
        if self.left || self.jumped {
            return;
        }
        assert_eq!(self.closed, Some(false));
        if self.backend_ended {
            assert_eq!(message.body, answer.body, "words of the backend are lost");
        } else {
            assert!(self.client_ended);
            assert_eq!(&self.heard, tail, "words of the client are lost");
        }
    }

    fn check_own(&self, request: &Request, message: &Message, calm: bool) {
        assert_eq!(message.header("server"), Some("uvicorn"), "{message:?}");
        assert!(message.header("date").is_some());
        let allowed: &[u16] = match request {
            Request { malformed: true, .. } => &[400, 408],
            Request { own: true, .. } => &[200, 502, 503, 504, 408],
            _ if calm => &[],
            _ => &[408, 502, 503, 504],
        };
        assert!(allowed.contains(&message.status()), "{} to {request:?}", message.start);
        assert!(message.status() != 408 || self.jumped);
    }
}
