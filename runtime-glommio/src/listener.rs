//! Listening: accepts, spawns, and stops in the order that loses no client.
//!
//! Knows a socket that listens; does not know what is said on those it accepts.

use crate::Core;
use crate::connection::Thread;
use crate::net::{Listener, Socket};
use futures_lite::future;
use log::{debug, warn};

use std::future::poll_fn;
use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::time::{Duration, Instant};
use vllm_proxy_core::carry::Carrier;
use vllm_proxy_core::exchange::Drain;

/// How long accepting pauses when descriptors have run out.
const PAUSE: Duration = Duration::from_millis(100);
/// How long nothing more is said of that. Near the limit descriptors come and go, and each that is
/// free lets one client in between two pauses.
const WARN_AGAIN: Duration = Duration::from_secs(60);

/// Serves one thread's listener until the stop, then drains.
pub(crate) async fn serve(core: Rc<Core>, listener: TcpListener) {
    let listener = Listener::new(core.reactor.clone(), listener);
    let spawn = |socket| {
        let carrier = Carrier::new(Thread(core.clone()), socket);
        glommio::spawn_local(core.reactor.task(carrier)).detach();
    };
    future::or(accept(&core, &listener, &spawn), core.stopped()).await;

    // Balancers in front see `/health` say 503 and clients see `Connection: close` before the port
    // is shut in their faces.
    core.connections.set_drain(Drain::Grace);
    future::or(accept(&core, &listener, &spawn), async {
        core.reactor.after(core.drain_grace).await;
    })
    .await;

    listener.rest().await;
    // What the kernel has accepted already would be reset by the close.
    while let Ok(Some(socket)) = listener.accept_now() {
        spawn(socket);
    }
    drop(listener);
    core.connections.set_drain(Drain::Closing);
    let cut = future::or(
        async {
            poll_fn(|cx| core.connections.poll_emptied(cx)).await;
            0
        },
        async {
            core.reactor.after(core.drain_timeout).await;
            core.connections.open()
        },
    )
    .await;
    if cut > 0 {
        warn!(connections = cut; "the drain timeout passed: open connections are closed");
    } else {
        debug!("all connections are done");
    }
}

async fn accept(core: &Core, listener: &Listener, spawn: &impl Fn(Socket)) {
    let mut warned: Option<Instant> = None;
    loop {
        match listener.accept().await {
            Ok(socket) => spawn(socket),
            // A client that left before it was accepted is no fault of ours.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                if warned.is_none_or(|at| at.elapsed() >= WARN_AGAIN) {
                    warn!(error:% = error; "accepting pauses");
                    warned = Some(Instant::now());
                }
                core.reactor.after(PAUSE).await;
            }
        }
    }
}
