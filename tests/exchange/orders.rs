//! The runtime of these runs: carries out what the exchange wants done.

use crate::script::chance;
use crate::world::{World, takes};
use vllm_proxy_core::exchange::{Input, Output, Side};
use vllm_proxy_core::route::{Decision, Outcome};

impl World {
    /// Carries out one output; false if there is none.
    pub(crate) fn step(&mut self, read: &[u8]) -> bool {
        let now = self.now;
        let Some(output) = self.exchange.poll_output() else { return false };
        assert!(self.closed.is_none(), "after Close: {output:?}");
        let mut line = String::new();
        let told = match output {
            Output::Relay { before, read: part } => {
                let part = &read[part];
                assert!(!part.is_empty());
                line = format!("relay {} + {}", before.escape_ascii(), part.escape_ascii());
                let was_empty = self.backlog.is_empty();
                self.backlog.extend_from_slice(before);
                self.backlog.extend_from_slice(part);
                let len = self.backlog.len();
                let taken = if was_empty { takes(&mut self.rng, self.partial, len) } else { 0 };
                self.received.extend(self.backlog.drain(..taken));
                self.client_full |= !self.backlog.is_empty();
                Some(Input::Sent(Side::Client, taken))
            }
            Output::Send(Side::Client, _) if !self.backlog.is_empty() => None,
            Output::Send(Side::Client, bytes) => {
                let taken = takes(&mut self.rng, self.partial, bytes.len());
                line = format!("send client {}", bytes[..taken].escape_ascii());
                self.received.extend_from_slice(&bytes[..taken]);
                self.client_full = taken < bytes.len();
                (taken > 0).then_some(Input::Sent(Side::Client, taken))
            }
            Output::Send(Side::Upstream, bytes) => {
                let link = self.link.as_mut().expect("a connection");
                if link.stale && chance(&mut self.rng, 4) {
                    line.push_str("refused");
                    Some(Input::Refused)
                } else {
                    let taken = takes(&mut self.rng, self.partial, bytes.len());
                    line = format!("send upstream {}", bytes[..taken].escape_ascii());
                    link.inbox.extend_from_slice(&bytes[..taken]);
                    self.upstream_full = taken < bytes.len();
                    (taken > 0).then_some(Input::Sent(Side::Upstream, taken))
                }
            }
            Output::Reserve(share, bytes) => {
                assert_eq!(share, self.share, "it holds something else");
                let granted = self.engine.reserve(share, bytes);
                line = format!("reserve {}", if granted.is_some() { "granted" } else { "refused" });
                self.share = granted.unwrap_or(share);
                Some(Input::Reserved(granted))
            }
            Output::Unreserve(share) => {
                assert_eq!(std::mem::take(&mut self.share), share, "it held something else");
                self.engine.release(share);
                None
            }
            Output::Ask(meta) => Some(Input::Routed(self.engine.route(&meta, now))),
            Output::AskAgain(ticket, why) => {
                line = format!("again {why:?}");
                self.tickets -= 1;
                Some(Input::Routed(self.engine.reroute(ticket, why, now)))
            }
            Output::FirstByte(ticket) => {
                self.engine.first_byte(ticket, now);
                None
            }
            Output::Owns(..) | Output::Heard(..) => None,
            Output::Gather(errands, _) => {
                line = format!("gather {}", errands.len());
                self.errands = errands;
                None
            }
            Output::Shown(text) => {
                self.engine.show(text, now);
                None
            }
            Output::Declined(status) => {
                self.engine.declined(status);
                None
            }
            Output::Settle(ticket, outcome) => {
                line = match outcome {
                    Outcome::Done { status, usage: None } => format!("settle Done({status})"),
                    Outcome::Done { .. }
                    | Outcome::ClientGone
                    | Outcome::Broken
                    | Outcome::TimedOut => format!("settle {outcome:?}"),
                };
                self.tickets -= 1;
                self.engine.finish(ticket, outcome, now);
                None
            }
            Output::Connect { backend, fresh, .. } => {
                line = format!("connect {backend}");
                assert!(self.link.is_none() && self.connecting.is_none());
                let idle = self.idle.iter().position(|&idle| idle == backend);
                if let (Some(idle), false) = (idle, fresh) {
                    self.idle.remove(idle);
                    self.link_to(backend, true);
                    Some(Input::Connected { reused: true })
                } else {
                    self.connecting = Some(backend);
                    None
                }
            }
            Output::Release { reusable } => {
                line.push_str(if reusable { "release reusable" } else { "release" });
                let link = self.link.take();
                let gathering = !std::mem::take(&mut self.errands).is_empty();
                let connecting = self.connecting.take().is_some();
                assert_eq!(
                    usize::from(connecting) + usize::from(link.is_some()) + usize::from(gathering),
                    1
                );
                if reusable {
                    let link = link.expect("an open connection is reusable");
                    // A pool does not lend a connection that has something to say.
                    if self.is_silent(&link) {
                        self.idle.push(link.backend);
                    }
                }
                None
            }
            Output::Shutdown => {
                line.push_str("shutdown");
                None
            }
            Output::Close { reset } => {
                line.push_str(if reset { "reset" } else { "close" });
                self.closed = Some(reset);
                None
            }
        };
        if let Some(Input::Routed(Decision::Forward(_))) = &told {
            self.tickets += 1;
        }
        if let Some(input) = told {
            self.exchange.handle(input, now);
        }
        if !line.is_empty() {
            self.log(line);
        }
        self.backend_reads();
        true
    }
}
