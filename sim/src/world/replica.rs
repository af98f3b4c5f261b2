//! Replica: one proxy's end of the way to the others.
//!
//! Owns whether it is connected, whether that way is whole and how long it takes, as a running
//! proxy finds out: by its own words, which come back. Does not know what they say.

use vllm_proxy_core::engine::Link;
use vllm_proxy_core::time::{Duration, Instant};

/// How long own words may not come back before the way counts as lost.
const SILENCE_MAX: Duration = Duration::from_secs(3);

/// Pauses before attempts to connect, one after another; the last one for ever.
const PAUSES: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
];

/// What one proxy knows of its way to the others.
#[derive(Clone, Debug)]
pub(super) struct Replica {
    /// Who it is to the others.
    pub(super) id: u64,
    /// Whether it runs.
    pub(super) alive: bool,
    /// Whether it has a connection to Redis, the last of how many, and how often it waited for one.
    connected: bool,
    connections: usize,
    pauses: usize,
    /// Whether an event is there that lets it tell what it gathered.
    pub(super) tells: bool,
    /// Whether it is to ask another one for a snapshot.
    pub(super) asks: bool,
    /// Words of others that it knows to have missed.
    pub(super) missed: u64,
    /// Whether it ever told what comes back to it: other routers do not say that they live.
    speaks: bool,
    link: Option<Link>,
    /// Since when it listens, or when it last heard its own word.
    heard: Option<Instant>,
    /// An own word that is on its way, and since when.
    sent: Option<(u64, Instant)>,
}

impl Replica {
    pub(super) const fn new(id: u64) -> Self {
        Self {
            id,
            alive: true,
            connected: true,
            connections: 1,
            pauses: 0,
            tells: false,
            asks: false,
            missed: 0,
            speaks: false,
            link: None,
            heard: None,
            sent: None,
        }
    }

    /// Whether it runs and has a connection.
    pub(super) const fn is_connected(&self) -> bool {
        self.alive && self.connected
    }

    /// What tells its connection from all others there ever are; `None` if it has none.
    pub(super) const fn connection(&self) -> Option<(u64, usize)> {
        if self.is_connected() { Some((self.id, self.connections)) } else { None }
    }

    /// It has a connection from now on.
    pub(super) const fn connect(&mut self) {
        (self.connected, self.pauses) = (true, 0);
        self.connections += 1;
    }

    /// It has none, or an attempt failed; says how long it waits before the next one.
    pub(super) fn pause(&mut self) -> Duration {
        self.connected = false;
        let pause = PAUSES[self.pauses.min(PAUSES.len() - 1)];
        self.pauses += 1;
        pause
    }

    /// An own word leaves.
    pub(super) fn told(&mut self, number: u64, now: Instant) {
        self.speaks = true;
        if self.sent.is_none_or(|(_, since)| since + SILENCE_MAX < now) {
            self.sent = Some((number, now));
        }
    }

    /// An own word came back; says how long it took, if that was measured.
    pub(super) fn echo(&mut self, number: u64, now: Instant) -> Option<Duration> {
        self.heard = Some(now);
        let (sent, since) = self.sent.filter(|(sent, _)| *sent <= number)?;
        self.sent = None;
        (sent == number).then(|| now.since(since))
    }

    /// It is known how it stands with the way.
    pub(super) const fn know(&mut self, link: Link, now: Instant) {
        self.link = Some(link);
        self.heard = Some(now);
    }

    /// Looks whether the way is whole, where there may be a connection; says if that changed.
    pub(super) fn look(&mut self, connected: bool, now: Instant) -> Option<Link> {
        if !self.speaks {
            return None;
        }
        if !connected {
            self.heard = None;
        }
        let lost = self.heard.is_none_or(|heard| heard + SILENCE_MAX < now);
        let link = if lost { Link::Lost } else { Link::Whole };
        (self.link.replace(link) != Some(link)).then_some(link)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_millis(millis)
    }

    #[test]
    fn silence_is_noticed_and_its_end() {
        let mut replica = Replica::new(1);
        replica.know(Link::Whole, at(0));
        assert_eq!(replica.look(true, at(9_000)), None, "nothing was told");
        replica.told(1, at(0));
        assert_eq!(replica.look(true, at(3_000)), None);
        assert_eq!(replica.look(true, at(3_001)), Some(Link::Lost));
        assert_eq!(replica.look(true, at(4_000)), None);
        replica.echo(9, at(5_000));
        assert_eq!(replica.look(true, at(5_000)), Some(Link::Whole));
        assert_eq!(replica.look(false, at(5_500)), Some(Link::Lost));
        assert_eq!(replica.look(true, at(6_000)), None);
    }

    #[test]
    fn pauses_grow_until_there_is_a_connection() {
        let mut replica = Replica::new(1);
        for connections in 1..3 {
            assert_eq!(replica.connection(), Some((1, connections)));
            let pauses = [50, 200, 500, 1_000, 1_000].map(Duration::from_millis);
            assert_eq!([(); 5].map(|()| replica.pause()), pauses);
            assert_eq!(replica.connection(), None);
            replica.connect();
        }
        replica.alive = false;
        assert_eq!(replica.connection(), None, "who does not run has none");
    }

    #[test]
    fn one_word_at_a_time_is_measured() {
        let mut replica = Replica::new(1);
        replica.told(1, at(0));
        replica.told(2, at(10));
        assert_eq!(replica.echo(1, at(20)), Some(Duration::from_millis(20)));
        assert_eq!(replica.echo(2, at(30)), None);
        replica.told(3, at(40));
        // Number 3 was lost.
        assert_eq!(replica.echo(4, at(90)), None);
        replica.told(5, at(100));
        replica.told(6, at(3_101));
        assert_eq!(replica.echo(6, at(3_200)), Some(Duration::from_millis(99)));
    }
}
