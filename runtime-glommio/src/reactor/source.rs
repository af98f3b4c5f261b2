//! Descriptors that are watched: what is asked of the kernel for each, and when it is closed.
//!
//! Knows one descriptor and its line; does not know what its bytes mean.

use super::line::{Kind, Line, wait};
use super::{NOBODY, Reactor};
use crate::ring::Bytes;
use rustix::event::PollFlags;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll};
use vllm_proxy_core::carry::{Lost, Read};

/// A descriptor that is watched, from its registration to its drop.
#[derive(Debug)]
pub(crate) struct Source {
    pub(super) fd: Option<OwnedFd>,
    pub(super) line: Rc<Line>,
    pub(super) reactor: Rc<Reactor>,
}

impl Source {
    fn raw(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }

    /// Whether it is to be asked for: it was not yet.
    fn asks(&self, kind: Kind) -> bool {
        let asks = !self.line.asked[kind as usize].replace(true);
        if asks {
            self.line.asked_at.set(self.reactor.heard.get());
        }
        asks
    }

    fn ask(&self, kind: Kind, events: PollFlags) {
        if self.asks(kind) {
            // Told once, a peer that has ended would be told of again each time it is asked for.
            let again = kind != Kind::Readable;
            let (fd, name) = (self.raw(), self.line.name(kind));
            self.reactor.ring.poll(fd, events.bits().into(), again, name);
        }
    }

    /// Has what arrives received from now on.
    pub(crate) fn receive(&self) {
        if self.asks(Kind::Receive) {
            let (fd, name) = (self.raw(), self.line.name(Kind::Receive));
            if self.line.bulk.get() > 0 {
                self.reactor.ring.receive_bulk(fd, name);
            } else {
                self.reactor.ring.receive(fd, name);
            }
        }
    }

    /// Takes what was received first.
    pub(crate) fn read(&self) -> Result<Read<Bytes>, Lost> {
        let mut arrived = self.line.arrived.borrow_mut();
        match arrived.pop_front() {
            Some(bytes) => Ok(Read::Some { bytes, more: !arrived.is_empty() }),
            None if self.line.failed.get() => Err(Lost),
            None if self.line.ended.get() => Ok(Read::End),
            None => Ok(Read::Nothing),
        }
    }

    /// Ready when something was received, or the end.
    pub(crate) fn poll_received(&self, cx: &Context<'_>) -> Poll<()> {
        let line = &self.line;
        let over = line.ended.get() || line.failed.get();
        let ready = over || !line.arrived.borrow().is_empty();
        if !ready {
            self.receive();
        }
        wait(ready, &line.reader, cx)
    }

    /// Ready when a descriptor that nothing is received from may be read.
    pub(crate) fn poll_readable(&self, cx: &Context<'_>) -> Poll<()> {
        if !self.line.readable.get() {
            self.ask(Kind::Readable, PollFlags::IN);
        }
        wait(self.line.readable.get(), &self.line.reader, cx)
    }

    /// Ready when the kernel no longer watches whether it may be read: what it watches stays open
    /// for as long, whoever closes it.
    pub(crate) fn poll_unwatched(&self, cx: &Context<'_>) -> Poll<()> {
        let line = &self.line;
        if line.is_asked(Kind::Readable) && !line.cancelled.replace(true) {
            self.reactor.ring.cancel(line.name(Kind::Readable), NOBODY);
        }
        wait(!line.is_asked(Kind::Readable), &line.reader, cx)
    }

    /// Ready when a write may take something, or fail.
    pub(crate) fn poll_writable(&self, cx: &Context<'_>) -> Poll<()> {
        if !self.line.writable.get() {
            self.ask(Kind::Writable, PollFlags::OUT);
        }
        wait(self.line.writable.get(), &self.line.writer, cx)
    }

    /// Ready when the peer closed its half or is gone, whatever is to be read before that.
    pub(crate) fn poll_ended(&self, cx: &Context<'_>) -> Poll<()> {
        let line = &self.line;
        let ready = line.ended.get() || line.hung_up.get() || line.failed.get();
        // Receiving says so, too.
        if !ready && !line.is_asked(Kind::Receive) {
            self.ask(Kind::End, PollFlags::RDHUP);
        }
        wait(ready, &line.reader, cx)
    }

    /// Ready when the connection is lost. Wakes the same task as [`Source::poll_ended`].
    pub(crate) fn poll_failed(&self, cx: &Context<'_>) -> Poll<()> {
        let line = &self.line;
        if !line.failed.get() && !line.is_asked(Kind::Receive) {
            self.ask(Kind::End, PollFlags::RDHUP);
        }
        wait(line.failed.get(), &line.reader, cx)
    }

    /// Whether nothing came, as far as the last turn saw.
    pub(crate) fn is_silent(&self) -> bool {
        let line = &self.line;
        if line.ended.get() || line.failed.get() || !line.arrived.borrow().is_empty() {
            return false;
        }
        if line.is_asked(Kind::Receive) {
            return true;
        }
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let is_silent = rustix::net::recv(self.as_fd(), &mut [0; 1], flags) == Err(Errno::AGAIN);
        self.receive();
        is_silent
    }

    /// Tries a call that reads. `None` if there is nothing to be had.
    pub(crate) fn try_read<T>(
        &self,
        call: impl FnMut(BorrowedFd<'_>) -> rustix::io::Result<T>,
    ) -> io::Result<Option<T>> {
        let read = tried(self.as_fd(), call)?;
        if read.is_none() {
            self.line.readable.set(false);
        }
        Ok(read)
    }

    /// Tries a call that gives at most `wanted` bytes. `None` if none were taken.
    pub(crate) fn try_write(
        &self,
        wanted: usize,
        call: impl FnMut(BorrowedFd<'_>) -> rustix::io::Result<usize>,
    ) -> io::Result<Option<usize>> {
        let written = tried(self.as_fd(), call);
        let written = written.inspect_err(|_| self.reactor.receive_anew(&self.line))?;
        if written.is_none_or(|written| written < wanted) {
            self.line.writable.set(false);
        }
        Ok(written)
    }
}

fn tried<T>(
    fd: BorrowedFd<'_>,
    mut call: impl FnMut(BorrowedFd<'_>) -> rustix::io::Result<T>,
) -> io::Result<Option<T>> {
    loop {
        return match call(fd) {
            Ok(done) => Ok(Some(done)),
            Err(Errno::AGAIN) => Ok(None),
            Err(Errno::INTR) => continue,
            Err(error) => Err(error.into()),
        };
    }
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_ref().expect("it goes with the source").as_fd()
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let line = &self.line;
        line.dropped.set(true);
        self.reactor.stop_receiving(line);
        for kind in [Kind::Readable, Kind::Writable, Kind::End] {
            if line.is_asked(kind) {
                self.reactor.ring.cancel(line.name(kind), NOBODY);
            }
        }
        self.reactor.forget(line);
        self.reactor.hurries.set(true);
        if line.asked_at.get() == self.reactor.heard.get() {
            self.reactor.closing.borrow_mut().extend(self.fd.take());
        }
    }
}
