//! Runs errands: questions to several backends at once, each on a connection of its own.
//!
//! Knows sockets and time; what is asked and what the answers mean is the exchange's. Dropped
//! with the client's connection, and all of theirs with it, so that nobody works for who has left.

use crate::Core;
use crate::net::{self, Socket};
use smol::future::FutureExt;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;
use vllm_proxy_core::exchange::{End, Errand, Said};
use vllm_proxy_core::time::Instant;

/// Reads and writes in a row, before other connections have their turn.
const STEPS_IN_A_ROW_MAX: usize = 8;

/// Runs them side by side until the last has ended, or the moment has come.
pub(crate) async fn run(core: Rc<Core>, errands: Vec<Errand>, until: Instant) -> Vec<Said> {
    type Pending = Pin<Box<dyn Future<Output = Said>>>;
    let each = |errand| -> Pending { Box::pin(run_one(Rc::clone(&core), errand, until)) };
    let mut pending: Vec<Pending> = errands.into_iter().map(each).collect();
    let mut said = Vec::with_capacity(pending.len());
    poll_fn(|cx| {
        pending.retain_mut(|one| match one.as_mut().poll(cx) {
            Poll::Ready(one) => {
                said.push(one);
                false
            }
            Poll::Pending => true,
        });
        if pending.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    said
}

async fn run_one(core: Rc<Core>, mut errand: Errand, until: Instant) -> Said {
    let limit = until.since(core.clock.now());
    let connecting = net::connect(Rc::clone(&core.reactor), errand.spec().address.clone());
    let connect_limit = limit.min(errand.limits().connect_timeout);
    let socket = match within(&core, connect_limit, connecting).await {
        Some(Ok(socket)) => socket,
        Some(Err(error)) if net::is_ours(&error) => return errand.no_socket(),
        Some(Err(_)) | None => return errand.unconnected(),
    };
    let limit = until.since(core.clock.now());
    match within(&core, limit, talk(&core, &socket, &mut errand)).await {
        Some(Ok(said)) => said,
        Some(Err(_)) => errand.closed(End::Reset),
        None => errand.timed_out(),
    }
}

/// `None` if it takes longer.
async fn within<T>(core: &Core, limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    let timer = core.reactor.after(limit);
    let late = async {
        timer.await;
        None
    };
    async { Some(work.await) }.or(late).await
}

async fn talk(core: &Core, socket: &Socket, errand: &mut Errand) -> io::Result<Said> {
    let mut refused = false;
    let mut in_a_row = 0;
    loop {
        in_a_row += 1;
        if in_a_row > STEPS_IN_A_ROW_MAX {
            // The others first, and whoever counts the time.
            in_a_row = 0;
            core.reactor.next_turn().await;
        }
        let [head, body] = errand.unsent();
        let mut sends = !(refused || head.is_empty() && body.is_empty());
        if sends {
            match socket.write(&[IoSlice::new(head), IoSlice::new(body)]) {
                Ok(Some(bytes)) => {
                    errand.sent(bytes);
                    continue;
                }
                Ok(None) => {}
                // What it may have answered is still to be read.
                Err(_) => (refused, sends) = (true, false),
            }
        }
        match read(core, socket, errand)? {
            Read::Ended(said) => return Ok(said),
            Read::Some => {}
            Read::Nothing => {
                in_a_row = 0;
                poll_fn(|cx| {
                    let readable = socket.poll_readable(cx).is_ready();
                    let writable = sends && socket.poll_writable(cx).is_ready();
                    if readable || writable { Poll::Ready(()) } else { Poll::Pending }
                })
                .await;
            }
        }
    }
}

/// What a read brought.
enum Read {
    Nothing,
    Some,
    Ended(Said),
}

/// Reads once. The thread's buffer is lent for no longer.
fn read(core: &Core, socket: &Socket, errand: &mut Errand) -> io::Result<Read> {
    let mut buffer = core.buffer.borrow_mut();
    Ok(match socket.read(&mut buffer)? {
        None => Read::Nothing,
        Some(0) => Read::Ended(errand.closed(End::Closed)),
        Some(bytes) => errand.received(&buffer[..bytes]).map_or(Read::Some, Read::Ended),
    })
}
