//! What a backend is sent of a request: its head made anew, right before the body.
//!
//! Knows where the request's bytes lie; what crosses is told by [`forward`].

use super::{Request, SLACK};
use crate::fleet::BackendSpec;
use crate::wire::forward;
use alloc::vec::Vec;
use core::ops::Range;

impl Request {
    /// The head that this backend gets, up to the first byte of the body.
    pub(in crate::exchange) fn head_for(&self, spec: &BackendSpec) -> Vec<u8> {
        let mut head = Vec::with_capacity(self.start.len() + self.headers.len() + SLACK);
        let (method, target) = self.start.split_at(self.method_len);
        forward::request_start(&mut head, method, target, self.has_host, spec);
        head.extend_from_slice(&self.headers);
        if self.chunked && self.body_len > 0 {
            forward::chunk_size(&mut head, self.body_len as u64);
        }
        head
    }

    /// The head of our own question to this backend, for what the client asks of all.
    pub(in crate::exchange) fn question_for(&self, spec: &BackendSpec, accept: &str) -> Vec<u8> {
        let mut head = Vec::with_capacity(self.start.len() + self.headers.len() + SLACK);
        let target = self.start.get(self.method_len..).unwrap_or_default();
        forward::request_start(&mut head, b"GET", target, self.has_host, spec);
        forward::question_headers(&mut head, &self.headers, accept);
        head
    }

    /// Lays the head that this backend gets right before the body; says which part of
    /// [`message`](Self::message) is to be sent.
    pub(in crate::exchange) fn compose(&mut self, spec: &BackendSpec) -> Range<usize> {
        let head = self.head_for(spec);
        match self.body_start.checked_sub(head.len()) {
            Some(from) => {
                self.message[from..self.body_start].copy_from_slice(&head);
                from..self.message.len()
            }
            None => {
                let mut head = head;
                let body_start = head.len();
                head.extend_from_slice(&self.message[self.body_start..]);
                self.message = head;
                self.body_start = body_start;
                0..self.message.len()
            }
        }
    }
}
