//! The way to other proxies: what is reported of it, and whether others are out of hearing.
//!
//! Knows what whoever carries updates says of the way; does not know what the way is made of, nor
//! what a choice makes of being cut off.

use super::Engine;
use crate::fleet::ProxyId;
use crate::time::{Duration, Instant};
use alloc::sync::Arc;
use log::{info, warn};

/// For how long others are believed to be there though they were not heard.
const ALONE_AFTER: Duration = Duration::from_secs(60);

/// When the way has been whole for so long, all that live have been heard: each says so once a
/// second.
const ALL_HEARD: Duration = Duration::from_millis(1_250);

/// Who is heard later than this counts as gone soon.
const LAG_MAX: Duration = Duration::from_secs(3);

/// How it stands with the way to other proxies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// What is told is heard.
    Whole,
    /// Nothing is told or heard. Where there are other proxies, requests that begin alike are then
    /// sent to the same backend by all of them, unless it has much more to do than others.
    Lost,
}

/// What whoever carries updates has seen of the way, for people to look at: no choice follows from
/// it. Counts are since the process began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicaReport {
    /// Whether there is a connection.
    pub connected: bool,
    /// How long the last own update took from being told to being heard back; `None` if none came
    /// back on this connection.
    pub lag: Option<Duration>,
    /// Batches of updates that were made and never left.
    pub lost_batches: u64,
    /// What was heard and could not be read.
    pub unreadable: u64,
    /// Why there is no connection, or what does not work over it, in the words of the log. Never
    /// holds a secret.
    pub reason: Option<Arc<str>>,
}

/// What is known of the way.
#[derive(Debug, Default)]
pub(super) struct Way {
    link: Option<Link>,
    /// When it became so.
    since: Instant,
    /// Since when others are believed to be there and cannot be heard.
    cut_off: Option<Instant>,
    report: ReplicaReport,
}

impl Way {
    /// How long what others say is on its way, as far as that is known.
    pub(super) fn lag(&self) -> Option<Duration> {
        self.report.lag.map(|lag| lag.min(LAG_MAX))
    }
}

impl Engine {
    /// The way to other proxies is whole or lost.
    pub(super) fn link(&mut self, link: Link, now: Instant) {
        let Some(sharing) = &mut self.sharing else { return };
        let way = &mut sharing.way;
        if way.link == Some(link) {
            return;
        }
        let others = sharing.peers.alive();
        let expected = match link {
            Link::Whole => false,
            // Who was never connected cannot know; others were expected, or there were no link.
            Link::Lost if way.link.is_none() => true,
            Link::Lost => {
                let seen = sharing.peers.last_seen();
                seen.is_some_and(|seen| now < seen + ALONE_AFTER)
            }
        };
        (way.link, way.since) = (Some(link), now);
        match way.cut_off.take() {
            None if expected => warn!(others; "alone: other proxies cannot be heard"),
            Some(since) if !expected => {
                let seconds = now.since(since).as_secs();
                info!(seconds; "no longer alone: other proxies can be heard");
            }
            None | Some(_) => {}
        }
        way.cut_off = expected.then_some(now);
    }

    /// Whoever carries updates says how the way is.
    pub(super) fn report(&mut self, report: ReplicaReport) {
        if let Some(sharing) = &mut self.sharing {
            sharing.way.report = report;
        }
    }

    /// What was last reported of the way to other proxies; `None` if there is to be none.
    pub fn reported(&self) -> Option<&ReplicaReport> {
        self.sharing.as_ref().map(|sharing| &sharing.way.report)
    }

    /// One of the proxies that are heard, to be asked for a snapshot: the one that has said most.
    /// `None` as well while others may not have been heard yet, since the way was lost: of several
    /// that start together one might ask another, who knows no more.
    pub fn peer(&self) -> Option<ProxyId> {
        let sharing = self.sharing.as_ref()?;
        let way = &sharing.way;
        let early = way.link == Some(Link::Whole) && sharing.now < way.since + ALL_HEARD;
        if early { None } else { sharing.peers.eldest_alive() }
    }

    /// Whether there are other proxies that cannot be heard.
    pub(super) fn is_cut_off(&self) -> bool {
        self.sharing.as_ref().is_some_and(|sharing| sharing.way.cut_off.is_some())
    }
}
