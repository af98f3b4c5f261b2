//! Peers: the other proxies that tell us what they do, and what they have in hand.
//!
//! Owns who is known and alive, and what each has in hand at a backend. Does not know how words
//! come here, or what else follows from them.

use crate::fleet::update::{BackendName, Head, InHand, ProxyId};
use crate::time::{Duration, Instant};
use alloc::vec::Vec;

/// How long a proxy counts as alive after its last word. Each tells something every second, so
/// that two words may be lost or late; and nobody should wait longer behind requests of one that
/// is gone.
pub(crate) const LEASE: Duration = Duration::from_secs(3);

/// Other proxies known at once, alive or not: as many as the prefix index tells apart. The share of
/// others is not counted.
const PEERS_MAX: usize = 62;

/// No proxy counts its words beyond this: at a million a second that takes nine years.
const NUMBER_MAX: u64 = 1 << 48;
/// Nobody misses so many words of a proxy that he knows. One damaged number taken at its word would
/// make all later ones of that proxy old.
const NUMBERS_AHEAD: u64 = 1 << 32;

/// Two proxies that see a backend come back within this time have seen the same: probes are at
/// most 6 s apart, and no engine starts twice that quickly.
const SAME_LOSS: Duration = Duration::from_secs(10);

/// Another proxy's place among those known here: from 1 to 62. It numbers its counters in the
/// prefix index, too, where 63 is for what proxies inserted whose places others have got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place(pub(crate) u8);

impl Place {
    /// That of this proxy, for what it is told of its own counters.
    pub(crate) const OWN: Self = Self(0);
    /// Nobody's, for the counters of those that are forgotten.
    pub(crate) const FORGOTTEN: Self = Self(63);

    pub(crate) const fn index(self) -> usize {
        self.0 as usize
    }
}

#[derive(Debug)]
struct Peer {
    id: ProxyId,
    /// Its greatest number so far, and which of the 64 up to that were heard, as bits from the
    /// lowest.
    number: u64,
    heard: u64,
    /// When its lease ends, while it is alive.
    lease: Option<Instant>,
    /// Its last sign of life.
    seen: Instant,
    /// Whether it is known since its first word.
    since_start: bool,
}

/// What a word of another proxy is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word {
    pub(crate) place: Place,
    pub(crate) number: u64,
    /// Whether it was not heard before. Of what is very late, nobody knows: it counts as heard.
    pub(crate) new: bool,
    /// Whether what it says of its own load counts: it is alive.
    pub(crate) lives: bool,
    /// Whether all that it ever inserted was inserted while we listened.
    pub(crate) since_start: bool,
    /// When it was said, as far as known.
    pub(crate) said: Instant,
}

/// The other proxies.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    /// By place.
    peers: Vec<Peer>,
    /// The earliest end of a lease, or earlier.
    next: Option<Instant>,
    /// Words that were never heard.
    missed: u64,
    /// How often one began or ceased to be alive.
    changes: u64,
}

impl Peers {
    /// A word with this number came. `None` if there are too many proxies, or no proxy would give
    /// it this number. The second is a place that another proxy had until now.
    pub(crate) fn hear(
        &mut self,
        id: ProxyId,
        number: u64,
        now: Instant,
    ) -> Option<(Word, Option<Place>)> {
        let known = self.peers.iter().find(|peer| peer.id == id && peer.number > 0);
        let ahead_max = known.map_or(NUMBER_MAX, |peer| peer.number.saturating_add(NUMBERS_AHEAD));
        if number > ahead_max.min(NUMBER_MAX) {
            return None;
        }
        let (place, taken) = self.place(id, number == 1, now)?;
        let peer = &mut self.peers[place.index() - 1];
        let ahead = number.saturating_sub(peer.number);
        let mut new = ahead > 0;
        if new {
            if peer.number > 0 {
                // What leaves the window unheard is lost, or so late that it makes no difference.
                let left = u32::try_from(ahead.min(64)).unwrap_or(64);
                let leaving = !peer.heard & u64::MAX.checked_shl(64 - left).unwrap_or(0);
                let skipped = ahead.saturating_sub(64);
                self.missed = self.missed.saturating_add(u64::from(leaving.count_ones()) + skipped);
                peer.heard = peer.heard.checked_shl(left).unwrap_or(0) | 1;
            }
            peer.number = number;
            // Only news tells that it lives: an old word may have been on its way for long.
            peer.seen = now;
            self.changes += u64::from(peer.lease.is_none());
            peer.lease = Some(now + LEASE);
            self.next = Some(self.next.map_or(now + LEASE, |next| next.min(now + LEASE)));
        } else if let Ok(back) = u32::try_from(peer.number - number) {
            let bit = 1_u64.checked_shl(back).unwrap_or(0);
            new = bit & !peer.heard != 0;
            peer.heard |= bit;
        }
        let peer = &self.peers[place.index() - 1];
        let (lives, since_start) = (peer.lease.is_some(), peer.since_start);
        Some((Word { place, number, new, lives, since_start, said: now }, taken))
    }

    /// The place of a proxy that another speaks of. It takes nobody's: two proxies that remember
    /// others of those that are long gone would tell each other of them for ever.
    pub(crate) fn introduce(&mut self, id: ProxyId, now: Instant) -> Option<Place> {
        let known = self.peers.iter().any(|peer| peer.id == id);
        let room = known || self.peers.len() < PEERS_MAX;
        room.then(|| self.place(id, false, now))?.map(|(place, _)| place)
    }

    /// All that are known, with their places.
    pub(crate) fn all(&self) -> impl Iterator<Item = (Place, ProxyId)> {
        (1..).map(Place).zip(self.peers.iter().map(|peer| peer.id))
    }

    /// Who has a place.
    pub(crate) fn id(&self, place: Place) -> Option<ProxyId> {
        self.peers.get(place.index().checked_sub(1)?).map(|peer| peer.id)
    }

    /// Takes the lease of one that was silent for too long, and says which. To be called until it
    /// says none.
    pub(crate) fn expire(&mut self, now: Instant) -> Option<Place> {
        if self.next.is_none_or(|next| now < next) {
            return None;
        }
        let ends = |peer: &Peer| peer.lease.is_some_and(|end| end <= now);
        if let Some(at) = self.peers.iter().position(ends) {
            self.peers[at].lease = None;
            self.changes += 1;
            return u8::try_from(at + 1).ok().map(Place);
        }
        self.next = self.peers.iter().filter_map(|peer| peer.lease).min();
        None
    }

    /// When somebody's lease may end.
    pub(crate) const fn next(&self) -> Option<Instant> {
        self.next
    }

    /// How many are alive.
    pub(crate) fn alive(&self) -> usize {
        self.peers.iter().filter(|peer| peer.lease.is_some()).count()
    }

    /// How often one began or ceased to be alive: as long as this is the same, so are they.
    pub(crate) const fn changes(&self) -> u64 {
        self.changes
    }

    /// Those that are alive.
    pub(crate) fn all_alive(&self) -> impl Iterator<Item = ProxyId> {
        self.peers.iter().filter(|peer| peer.lease.is_some()).map(|peer| peer.id)
    }

    /// The one of those alive that has said most, so that it is likely to know most: another one
    /// that just started may be heard first, and knows nothing.
    pub(crate) fn eldest_alive(&self) -> Option<ProxyId> {
        let alive = self.peers.iter().filter(|peer| peer.lease.is_some());
        alive.max_by_key(|peer| peer.number).map(|peer| peer.id)
    }

    /// The last sign of life of any.
    pub(crate) fn last_seen(&self) -> Option<Instant> {
        self.peers.iter().filter(|peer| peer.number > 0).map(|peer| peer.seen).max()
    }

    /// Words that were never heard, though later ones were.
    pub(crate) const fn missed(&self) -> u64 {
        self.missed
    }

    fn place(&mut self, id: ProxyId, first: bool, now: Instant) -> Option<(Place, Option<Place>)> {
        let place = |at: usize| u8::try_from(at + 1).ok().map(Place);
        if let Some(at) = self.peers.iter().position(|peer| peer.id == id) {
            return Some((place(at)?, None));
        }
        // What came before the first word heard is not missed: a snapshot tells it.
        let heard = u64::MAX;
        let peer = Peer { id, number: 0, heard, lease: None, seen: now, since_start: first };
        if self.peers.len() < PEERS_MAX {
            self.peers.push(peer);
            return Some((place(self.peers.len() - 1)?, None));
        }
        let dead = self.peers.iter().enumerate().filter(|(_, peer)| peer.lease.is_none());
        let (at, _) = dead.min_by_key(|(_, peer)| peer.seen)?;
        self.peers[at] = peer;
        Some((place(at)?, place(at)))
    }
}

/// The oldest request of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Oldest {
    pub(crate) sent: Instant,
    pub(crate) uncached: i64,
}

#[derive(Clone, Copy, Debug)]
struct Theirs {
    place: Place,
    /// Of the word that said it.
    number: u64,
    in_flight: u32,
    queued: i64,
    resident: i64,
    oldest: Option<Oldest>,
    last_first: Instant,
}

/// What other proxies have in hand at one backend. Sums are made anew for each question: there are
/// few proxies, and no sum can drift.
#[derive(Clone, Debug, Default)]
pub(crate) struct Others {
    theirs: Vec<Theirs>,
}

impl Others {
    /// A proxy's word of `then`; an older one than the last changes nothing.
    pub(crate) fn hear(&mut self, place: Place, number: u64, said: &InHand, then: Instant) {
        let theirs = Theirs {
            place,
            number,
            in_flight: said.in_flight,
            queued: said.queued.max(0),
            resident: said.resident.max(0),
            oldest: said.head.map(|Head { age, uncached }| Oldest {
                sent: then - age,
                uncached: uncached.clamp(0, said.queued.max(0)),
            }),
            last_first: said.first_token_age.map_or(Instant::START, |age| then - age),
        };
        match self.theirs.iter_mut().find(|known| known.place == place) {
            Some(known) if known.number < number => *known = theirs,
            Some(_) => {}
            None => self.theirs.push(theirs),
        }
    }

    /// These proxies are gone, with all that they had in hand. All at once: with one after another,
    /// 62 that go together kept a call busy for 90 ms where there are 4,096 backends.
    pub(crate) fn forget(&mut self, gone: &[Place]) {
        self.theirs.retain(|theirs| !gone.contains(&theirs.place));
    }

    pub(crate) fn queued(&self) -> i64 {
        self.theirs.iter().fold(0, |sum, theirs| sum.saturating_add(theirs.queued))
    }

    pub(crate) fn resident(&self) -> i64 {
        self.theirs.iter().fold(0, |sum, theirs| sum.saturating_add(theirs.resident))
    }

    pub(crate) fn in_flight(&self) -> u32 {
        self.theirs.iter().fold(0, |sum, theirs| sum.saturating_add(theirs.in_flight))
    }

    /// The oldest of all requests without a first token, where `own` is ours. A backend takes them
    /// in the order in which they come, whoever sent them.
    pub(crate) fn oldest(&self, own: Option<Oldest>) -> Option<Oldest> {
        self.theirs.iter().filter_map(|theirs| theirs.oldest).chain(own).min()
    }

    /// The last of all first tokens, where `own` is the last of ours.
    pub(crate) fn last_first(&self, own: Instant) -> Instant {
        self.theirs.iter().map(|theirs| theirs.last_first).fold(own, Instant::max)
    }

    /// What each has in hand: requests, queued and resident thousandths.
    pub(crate) fn each(&self) -> impl Iterator<Item = (Place, [i64; 3])> {
        self.theirs
            .iter()
            .map(|theirs| (theirs.place, [theirs.in_flight.into(), theirs.queued, theirs.resident]))
    }
}

/// What proxies agree on of one backend.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) name: BackendName,
    /// Whether it is at home at another proxy, as was found when somebody asked last.
    pub(crate) abroad: bool,
    /// How often it was seen to lose its cache, by whomever.
    generation: u32,
    /// When another proxy told of the last time.
    told: Option<Instant>,
    /// How often somebody saw a request change it, other than by a loss.
    changes: u32,
}

impl Shared {
    pub(crate) const fn new(name: BackendName) -> Self {
        Self { name, abroad: false, generation: 0, told: None, changes: 0 }
    }

    pub(crate) const fn generation(&self) -> u32 {
        self.generation
    }

    /// It was seen to lose its cache. False if this is known already, by another proxy's word.
    pub(crate) fn lost(&mut self, now: Instant) -> bool {
        if self.told.take().is_some_and(|told| now < told + SAME_LOSS) {
            return false;
        }
        self.cleared();
        true
    }

    /// Its cache was cleared by a request that passed here, of which nobody else knows.
    pub(crate) fn cleared(&mut self) {
        self.generation = self.generation.saturating_add(1);
    }

    /// How often somebody saw a request change it, other than by a loss.
    pub(crate) const fn changes(&self) -> u32 {
        self.changes
    }

    /// A request that passed here changed it.
    pub(crate) fn changed(&mut self) {
        self.changes = self.changes.saturating_add(1);
    }

    /// Another proxy knows of so many changes; says whether that is news.
    pub(crate) fn told_changes(&mut self, changes: u32) -> bool {
        let news = changes > self.changes;
        self.changes = self.changes.max(changes);
        news
    }

    /// Another proxy knows of so many losses; says whether that is news. `now` if it may be the
    /// first to say so: what is kept or told again says nothing of when it was.
    pub(crate) fn told(&mut self, generation: u32, now: Option<Instant>) -> bool {
        let news = generation > self.generation;
        if news {
            self.generation = generation;
            self.told = now;
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;
    use rstest::rstest;

    fn at(millis: u64) -> Instant {
        Instant::from_millis(millis)
    }

    /// Which of these words are news, and how many are missed in the end.
    #[rstest]
    #[case::in_order(&[1, 2, 3], &[1, 2, 3], 0)]
    #[case::twice(&[1, 1, 2, 1, 2], &[1, 2], 0)]
    #[case::late(&[1, 3, 2, 2, 3], &[1, 3, 2], 0)]
    #[case::not_from_the_start(&[1_000, 999, 1_001], &[1_000, 1_001], 0)]
    #[case::missed_for_sure(&[1, 3, 67], &[1, 3, 67], 1)]
    #[case::late_within_the_window(&[1, 65, 2, 66], &[1, 65, 2, 66], 0)]
    #[case::a_long_gap(&[1, 1_001, 500], &[1, 1_001], 936)]
    #[case::as_far_as_can_be(&[1, (1 << 32) + 1, 1], &[1, (1 << 32) + 1], (1 << 32) - 64)]
    #[case::farther_than_anybody_misses(&[1, (1 << 32) + 2, 2, 3], &[1, 2, 3], 0)]
    #[case::what_nobody_counts_to(&[(1 << 48) + 1, u64::MAX, 1 << 48], &[1 << 48], 0)]
    #[case::close_to_that(&[1 << 48, (1 << 48) + 1], &[1 << 48], 0)]
    fn words_are_news_once(#[case] numbers: &[u64], #[case] news: &[u64], #[case] missed: u64) {
        let mut peers = Peers::default();
        let mut hear = |number: &&u64| {
            peers.hear(ProxyId(7), **number, at(0)).is_some_and(|(word, _)| word.new)
        };
        let heard: Vec<u64> = numbers.iter().filter(&mut hear).copied().collect();
        assert_eq!((&*heard, peers.missed()), (news, missed));
    }

    #[test]
    fn leases_end_one_by_one() {
        let mut peers = Peers::default();
        for (proxy, millis) in [(1, 0), (2, 500), (3, 1_000), (1, 2_000)] {
            let number = millis + 1;
            let (word, _) = peers.hear(ProxyId(proxy), number, at(millis)).expect("there is room");
            assert_eq!((u64::from(word.place.0), word.lives), (proxy, true));
        }
        let ended = |peers: &mut Peers, millis| {
            core::iter::from_fn(|| peers.expire(at(millis))).collect::<Vec<_>>()
        };
        assert_eq!((ended(&mut peers, 3_499), peers.changes()), (vec![], 3));
        assert_eq!(ended(&mut peers, 3_500), [Place(2)]);
        assert_eq!((peers.alive(), peers.next()), (2, Some(at(4_000))));
        assert_eq!(peers.eldest_alive(), Some(ProxyId(1)));
        assert_eq!(ended(&mut peers, 9_000), [Place(1), Place(3)]);
        assert_eq!((peers.alive(), peers.next(), peers.eldest_alive()), (0, None, None));
        assert_eq!(peers.changes(), 6);
        // An old word is no sign of life, a new one is.
        let old = peers.hear(ProxyId(1), 1_990, at(9_000)).expect("it has a place").0;
        assert_eq!((old.new, old.lives, peers.alive()), (true, false, 0));
        assert!(peers.hear(ProxyId(3), 1_002, at(9_000)).is_some_and(|(word, _)| word.lives));
        assert_eq!(peers.changes(), 7);
        assert_eq!((peers.last_seen(), peers.next()), (Some(at(9_000)), Some(at(12_000))));
    }

    #[test]
    fn who_has_said_most_is_asked_for_what_was_missed() {
        let mut peers = Peers::default();
        assert_eq!(peers.eldest_alive(), None);
        for (proxy, number, eldest) in [(1, 1, 1), (2, 900, 2), (1, 2, 2), (3, 7, 2)] {
            peers.hear(ProxyId(proxy), number, at(0));
            assert_eq!(peers.eldest_alive(), Some(ProxyId(eldest)));
        }
        peers.hear(ProxyId(3), 8, at(2_000));
        while peers.expire(at(4_000)).is_some() {}
        assert_eq!(peers.eldest_alive(), Some(ProxyId(3)), "the others are gone");
    }

    #[test]
    fn the_longest_dead_makes_room() {
        let mut peers = Peers::default();
        for proxy in 0..PEERS_MAX as u64 {
            let (_, taken) = peers.hear(ProxyId(proxy), 1, at(proxy)).expect("there is room");
            assert_eq!(taken, None);
        }
        assert_eq!(peers.hear(ProxyId(900), 1, at(100)), None, "all are alive");
        assert_eq!(peers.introduce(ProxyId(5), at(100)), Some(Place(6)));
        while peers.expire(at(10_000)).is_some() {}
        assert_eq!(peers.introduce(ProxyId(900), at(10_000)), None, "nobody lives who says so");
        peers.hear(ProxyId(0), 2, at(10_000));
        let (word, taken) = peers.hear(ProxyId(900), 1, at(10_000)).expect("there is room");
        assert_eq!((word.place, taken), (Place(2), Some(Place(2))));
        assert_eq!(peers.id(Place(2)), Some(ProxyId(900)));
        assert_eq!(peers.id(Place::FORGOTTEN), None);
        assert_eq!(peers.all().count(), PEERS_MAX);
    }

    #[test]
    fn the_queue_is_one_with_the_oldest_head() {
        let mut others = Others::default();
        let said = |queued, head_age, first_age| InHand {
            in_flight: 1,
            queued,
            resident: 3 * queued,
            head: Some(Head { age: Duration::from_millis(head_age), uncached: queued }),
            first_token_age: Some(Duration::from_millis(first_age)),
        };
        others.hear(Place(1), 5, &said(10, 300, 40), at(1_000));
        others.hear(Place(2), 1, &said(20, 500, 70), at(1_000));
        let oldest = |sent, uncached| Some(Oldest { sent: at(sent), uncached });
        assert_eq!((others.queued(), others.resident(), others.in_flight()), (30, 90, 2));
        assert_eq!(others.oldest(None), oldest(500, 20));
        assert_eq!(others.oldest(oldest(400, 7)), oldest(400, 7));
        assert_eq!(others.last_first(at(0)), at(960));
        assert_eq!(others.last_first(at(990)), at(990));
        // An older word changes nothing, and who has nothing in hand is still known.
        others.hear(Place(1), 4, &said(77, 0, 0), at(1_000));
        others.hear(Place(2), 2, &InHand::default(), at(1_000));
        others.hear(Place(2), 1, &said(20, 500, 70), at(1_000));
        assert_eq!((others.queued(), others.in_flight()), (10, 1));
        assert_eq!(others.oldest(None), oldest(700, 10));
        others.forget(&[Place(1)]);
        assert_eq!((others.queued(), others.oldest(None)), (0, None));
    }

    #[test]
    fn a_loss_is_counted_once_whoever_sees_it() {
        let mut shared = Shared::new(BackendName(1));
        assert!(shared.lost(at(0)));
        assert!(!shared.told(1, Some(at(0))), "that is known");
        assert!(shared.told(2, Some(at(1_000))));
        assert!(!shared.lost(at(10_999)), "this is the one that was told of");
        assert!(shared.lost(at(10_999)), "this is another");
        assert!(shared.told(9, Some(at(20_000))));
        assert!(shared.lost(at(30_000)), "it is too long ago to be the same");
        assert_eq!(shared.generation(), 10);
        shared.told(u32::MAX, Some(at(40_000)));
        shared.cleared();
        assert_eq!(shared.generation(), u32::MAX);
        let mut shared = Shared::new(BackendName(1));
        assert!(shared.told(7, None));
        assert!(shared.lost(at(1)), "who was told of a loss long ago sees another one");
    }
}
