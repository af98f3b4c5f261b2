//! The body of a streamed answer: pieces come through a channel and leave one at a time.
//!
//! async-h1 asks for as much as its buffer holds and makes one chunk of what it gets; since one
//! read never crosses a piece, every event is a chunk of its own and leaves at once, as in vLLM.

use smol::channel::{Receiver, Sender, bounded};
use smol::io::{AsyncBufRead, AsyncRead};
use smol::stream::Stream;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// Events kept for a client that reads slower than the model speaks. vLLM merges what waits; here
/// the model waits, so that an answer of any length costs bounded memory.
const EVENTS_MAX: usize = 1_024;

/// A piece of a body, or the error that ends the connection in the midst of it.
pub(super) type Piece = io::Result<Vec<u8>>;

/// Where an answer is written.
pub(super) type Pieces = Sender<Piece>;

/// Where async-h1 reads it.
#[derive(Debug)]
pub(super) struct Events {
    pieces: Pin<Box<Receiver<Piece>>>,
    piece: Vec<u8>,
    taken: usize,
    /// Held by a body that never ends: no one writes, and no one says that it is over.
    _open: Option<Pieces>,
}

/// A body and the way to fill it. It ends when the writing half is dropped.
pub(super) fn channel() -> (Pieces, Events) {
    let (sender, receiver) = bounded(EVENTS_MAX);
    (sender, Events { pieces: Box::pin(receiver), piece: Vec::new(), taken: 0, _open: None })
}

/// A body that has only these bytes, however many were promised: then the connection breaks
/// (`broken`) or is silent for ever.
pub(super) fn partial(bytes: Vec<u8>, broken: bool) -> Events {
    let (pieces, mut events) = channel();
    events.piece = bytes;
    if broken {
        // There is room: nothing has been sent yet.
        let _ = pieces.try_send(Err(cut()));
    } else {
        events._open = Some(pieces);
    }
    events
}

/// The error that ends a connection in the midst of an answer.
pub(super) fn cut() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "cut, as ordered")
}

impl AsyncBufRead for Events {
    fn poll_fill_buf(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        while this.taken == this.piece.len() {
            match ready!(this.pieces.as_mut().poll_next(context)).transpose()? {
                Some(piece) => (this.piece, this.taken) = (piece, 0),
                None => return Poll::Ready(Ok(&[])),
            }
        }
        Poll::Ready(Ok(&this.piece[this.taken..]))
    }

    fn consume(self: Pin<&mut Self>, amount: usize) {
        self.get_mut().taken += amount;
    }
}

impl AsyncRead for Events {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let piece = ready!(self.as_mut().poll_fill_buf(context))?;
        let length = piece.len().min(buffer.len());
        buffer[..length].copy_from_slice(&piece[..length]);
        self.consume(length);
        Poll::Ready(Ok(length))
    }
}
