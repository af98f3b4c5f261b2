//! Cache: what is believed of one backend's KV cache as a whole.
//!
//! Owns its clock, which is ticked by tokens, its capacity, and how much of it is new. Does not
//! know which chunks it holds.

use super::turnover;
use crate::fleet::BackendId;
use crate::fleet::learned::counted;
use crate::fleet::update::Capacity;

/// Tokens to one tick of a stamp. 32 bits of such ticks last for 68 billion tokens.
const TICK: u64 = 16;

/// Stamps may be ahead of the clock by so many ticks, 4 billion tokens: another proxy's word of a
/// chunk may come before its word of how many tokens it inserted.
const AHEAD: u32 = 1 << 28;

/// KV cache of a backend that does not say how large it is: an 8B model on 80 GB.
const CAPACITY: u64 = 400_000;
/// More is not believed, so that twice of it is less than a quarter of what stamps can tell apart.
const CAPACITY_MAX: u64 = 1 << 33;

/// Capacity is kept in thousandths of a token: the least step is two thousandths of it.
const MILLI: u64 = 1_000;
/// Where learning may take the capacity, in thousandths of where it started.
const LEARNT_MIN: u64 = 100;
const LEARNT_MAX: u64 = 2_000;

/// What is new is halved with each turnover, in steps. They are taken at the same moments for all
/// backends, so that taking one changes no order among them. These are 2^32 times 2^(-k/8).
const LEFT: [u64; turnover::STEPS as usize] = [
    0x1_0000_0000,
    0xeac0_c6e8,
    0xd744_fccb,
    0xc567_2a11,
    0xb504_f334,
    0xa5fe_d6aa,
    0x9837_f052,
    0x8b95_c1e4,
];

/// All that judging an entry needs of its backend; small, since a request judges hundreds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct View {
    /// The stamp of now.
    pub(super) now: u32,
    pub(super) generation: u16,
    /// Ages, as [`age`](Self::age) counts them, below which an entry is valid,
    valid: u32,
    /// was told so lately that a touch changes nothing,
    recent: u32,
    /// and may become valid again should the capacity turn out greater.
    kept: u32,
    /// 2^63 by the ticks for which an entry is valid: a division for each of the sixteen that are
    /// looked at to let one go took longer than everything else.
    share: u64,
}

impl View {
    /// Whether the chunk is still in the cache, as far as can be told.
    pub(super) const fn is_valid(&self, stamp: u32, generation: u16) -> bool {
        self.generation == generation && self.age(stamp) < self.valid
    }

    /// Whether its last touch is as good as one now.
    pub(super) const fn is_recent(&self, stamp: u32) -> bool {
        self.age(stamp) < self.recent
    }

    /// Whether it can ever become valid again.
    pub(super) const fn is_kept(&self, stamp: u32, generation: u16) -> bool {
        self.generation == generation && self.age(stamp) < self.kept
    }

    /// Who goes first when there is no room: the greater share of its time an entry has had.
    pub(super) const fn staleness(&self, stamp: u32, generation: u16) -> u32 {
        if !self.is_valid(stamp, generation) {
            return u32::MAX;
        }
        // Valid is greater than age, so that the share is less than 2^31.
        let age = self.age(stamp).saturating_sub(AHEAD) as u64;
        ((age * self.share) >> 32) as u32
    }

    /// Ticks since the stamp, and `AHEAD` more, so that what is ahead is no older than now.
    const fn age(&self, stamp: u32) -> u32 {
        self.now.wrapping_sub(stamp).wrapping_add(AHEAD)
    }
}

/// The later of two stamps, on a clock that comes round.
pub(super) const fn later(one: u32, other: u32) -> u32 {
    if (one.wrapping_sub(other) as i32) > 0 { one } else { other }
}

/// One backend's cache.
#[derive(Debug)]
pub(super) struct Cache {
    pub(super) id: BackendId,
    /// Tokens inserted so far, by whomever.
    inserted: u64,
    /// Where learning starts, in tokens; more than the cache has, since the guess of what it holds
    /// is better too long than too short.
    start: u64,
    /// Whether it said to this proxy where that is.
    said: bool,
    capacity_milli: u64,
    /// Answers that taught something of the capacity.
    samples: u32,
    fresh: u64,
    /// The step up to which `fresh` is decayed.
    step: u64,
}

impl Cache {
    pub(super) const fn new(id: BackendId) -> Self {
        let start = believed(CAPACITY);
        let capacity_milli = start * MILLI;
        let (said, samples) = (false, 0);
        Self { id, inserted: 0, start, said, capacity_milli, samples, fresh: 0, step: 0 }
    }

    pub(super) const fn inserted(&self) -> u64 {
        self.inserted
    }

    pub(super) const fn capacity(&self) -> u64 {
        self.capacity_milli / MILLI
    }

    /// It says how large it is, or does not. What was learnt is kept unless that has changed.
    pub(super) fn set_capacity(&mut self, tokens: Option<u64>) {
        let start = believed(tokens.unwrap_or(CAPACITY));
        self.said = tokens.is_some();
        if start != self.start {
            self.start = start;
            self.capacity_milli = start * MILLI;
            self.samples = 0;
        }
    }

    /// How large it is, for other proxies; `None` if nothing is known of that.
    pub(super) const fn told(&self) -> Option<Capacity> {
        let known = self.samples > 0 || self.start != believed(CAPACITY);
        let Self { samples, start, capacity_milli: milli, .. } = *self;
        if known { Some(Capacity { samples, start, milli }) } else { None }
    }

    /// Another proxy's word. Where the backend itself says how large it is, only who starts there
    /// counts; otherwise who was told by it, and then who learned more. Says whether that changed
    /// anything.
    pub(super) fn merge_capacity(&mut self, heard: Capacity) -> bool {
        let start = heard.start.min(CAPACITY_MAX);
        let bounds = (start * LEARNT_MIN, start * LEARNT_MAX);
        let milli = heard.milli.clamp(bounds.0, bounds.1);
        let unsaid = believed(CAPACITY);
        let rank = |start, samples, milli| (start != unsaid, samples, start, milli);
        let greater =
            rank(start, heard.samples, milli) > rank(self.start, self.samples, self.capacity_milli);
        if !greater || (self.said && start != self.start) {
            return false;
        }
        (self.start, self.capacity_milli, self.samples) = (start, milli, heard.samples);
        true
    }

    /// Learns from what an answer said was cached of its prompt. Whatever it says, the capacity
    /// stays between a tenth and twice of where it started.
    pub(super) fn feedback(&mut self, predicted: u64, cached: u64, chunk_tokens: u32) {
        let (predicted, cached) = (u128::from(predicted), u128::from(cached));
        let chunk = u128::from(chunk_tokens);
        let mut capacity = u128::from(self.capacity_milli);
        if predicted > cached + chunk {
            // 1 - 0.05 * (predicted - cached) / predicted
            capacity = capacity * (19 * predicted + cached) / (20 * predicted);
        } else if predicted > 0 {
            capacity = capacity * 1_002 / 1_000;
        }
        if cached > predicted + chunk {
            capacity = capacity * 102 / 100;
        }
        self.samples = counted(self.samples);
        let (min, max) = (self.start * LEARNT_MIN, self.start * LEARNT_MAX);
        self.capacity_milli = u64::try_from(capacity).unwrap_or(max).clamp(min, max);
    }

    /// Tokens were inserted; says how many of them count. Beyond what the cache may hold at most
    /// more tokens push nothing more out, and would only wear out the clock.
    pub(super) fn advance(&mut self, tokens: u64, step: u64) -> u64 {
        let tokens = tokens.min(self.kept());
        self.inserted = self.inserted.saturating_add(tokens);
        self.freshen(tokens, step);
        tokens
    }

    /// Another proxy inserted so many tokens more; `known` if it is not heard of for the first
    /// time, when nobody can say how long ago they were inserted.
    /// Says how many of them count.
    pub(super) fn hear(&mut self, tokens: u64, known: bool, step: u64) -> u64 {
        self.inserted = self.inserted.saturating_add(tokens);
        if !known {
            return 0;
        }
        let tokens = tokens.min(self.kept());
        self.freshen(tokens, step);
        tokens
    }

    /// The process is another one, with nothing in its cache.
    pub(super) const fn wipe(&mut self) {
        self.capacity_milli = self.start * MILLI;
        self.samples = 0;
        self.fresh = 0;
    }

    /// What is new, decayed until that step.
    pub(super) fn fresh(&self, step: u64) -> u64 {
        let steps = step.saturating_sub(self.step);
        let halvings = u32::try_from(steps / turnover::STEPS).unwrap_or(u32::MAX);
        let halved = self.fresh.checked_shr(halvings);
        let share = u128::from(LEFT[(steps % turnover::STEPS) as usize]);
        u64::try_from((u128::from(halved.unwrap_or(0)) * share) >> 32).unwrap_or(u64::MAX)
    }

    /// How entries of `generation` are judged as things are.
    pub(super) fn view(&self, generation: u16) -> View {
        let capacity = self.capacity();
        let valid = self.ages_below(capacity);
        View {
            now: (self.inserted / TICK) as u32,
            generation,
            valid,
            recent: self.ages_below(capacity / 8),
            kept: self.ages_below(self.kept()),
            share: (1 << 63) / u64::from(valid.saturating_sub(AHEAD).max(1)),
        }
    }

    /// The bound on ages that are less than so many tokens.
    fn ages_below(&self, tokens: u64) -> u32 {
        // A stamp says when its tick began; the clock may be some tokens into its own.
        let ticks = tokens.saturating_sub(self.inserted % TICK).div_ceil(TICK);
        match u32::try_from(ticks).unwrap_or(u32::MAX).min(u32::MAX - 2 * AHEAD) {
            0 => 0,
            ticks => ticks + AHEAD,
        }
    }

    /// What it says fits, or what is believed where it does not say.
    pub(super) const fn said(&self) -> u64 {
        self.start / 5 * 4
    }

    /// The greatest capacity that can be learnt.
    const fn kept(&self) -> u64 {
        self.start * (LEARNT_MAX / 1_000)
    }

    /// At that step at least so many tokens count as new.
    pub(super) fn merge_fresh(&mut self, tokens: u64, step: u64) {
        self.fresh = self.fresh(step).max(tokens.min(self.kept()));
        self.step = self.step.max(step);
    }

    fn freshen(&mut self, tokens: u64, step: u64) {
        self.fresh = self.fresh(step).saturating_add(tokens);
        self.step = self.step.max(step);
    }
}

/// What is believed of a cache that says it is so large.
const fn believed(tokens: u64) -> u64 {
    let tokens = if tokens < CAPACITY_MAX { tokens } else { CAPACITY_MAX };
    // More rather than less: half of the true size costs 6 % of the time to first token in the
    // simulation, twice of it 2 %.
    let more = tokens + tokens / 4;
    if more < CAPACITY_MAX { more } else { CAPACITY_MAX }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn cache(tokens: u64) -> Cache {
        let mut cache = Cache::new(BackendId(0));
        cache.set_capacity(Some(tokens));
        cache
    }

    #[rstest]
    #[case::unknown(None, 500_000)]
    #[case::known(Some(80_000), 100_000)]
    #[case::nothing(Some(0), 0)]
    #[case::absurd(Some(u64::MAX), CAPACITY_MAX)]
    fn more_is_believed_than_said(#[case] said: Option<u64>, #[case] capacity: u64) {
        let mut cache = cache(7);
        cache.set_capacity(said);
        assert_eq!(cache.capacity(), capacity);
    }

    #[rstest]
    #[case::all_was_there(1_000, 1_000, 100_200)]
    #[case::all_but_a_chunk(1_000, 872, 100_200)]
    #[case::a_little_less(1_000, 871, 99_355)]
    #[case::none_of_it(1_000, 0, 95_000)]
    #[case::nothing_predicted(0, 0, 100_000)]
    #[case::a_little_unforeseen(0, 128, 100_000)]
    #[case::unforeseen(0, 129, 102_000)]
    #[case::more_than_foreseen(1_000, 1_129, 102_204)]
    #[case::absurdly_more(1, u64::MAX, 102_204)]
    #[case::absurdly_less(u64::MAX, 0, 95_000)]
    #[case::absurd(u64::MAX, u64::MAX, 100_200)]
    fn capacity_follows_feedback(#[case] predicted: u64, #[case] cached: u64, #[case] c: u64) {
        let mut cache = cache(80_000);
        cache.feedback(predicted, cached, 128);
        assert_eq!(cache.capacity(), c);
        // The same word again is no news, another one is.
        cache.set_capacity(Some(80_000));
        assert_eq!(cache.capacity(), c);
        cache.set_capacity(Some(800));
        assert_eq!(cache.capacity(), 1_000);
    }

    #[rstest]
    #[case::never(u64::MAX, 0, 10_000)]
    #[case::always(0, u64::MAX, 200_000)]
    fn capacity_stays_in_its_clamps(#[case] predicted: u64, #[case] cached: u64, #[case] end: u64) {
        for tokens in [80_000, 0, u64::MAX, 1] {
            let mut cache = cache(tokens);
            let start = cache.capacity();
            for _ in 0..1_000 {
                cache.feedback(predicted, cached, 128);
                assert!(cache.capacity() >= start / 10 && cache.capacity() <= start * 2);
            }
            assert!(tokens != 80_000 || cache.capacity() == end);
        }
    }

    #[rstest]
    #[case::just_now(0, 0, true)]
    #[case::in_time(0, 999, true)]
    #[case::at_the_end(0, 1_000, false)]
    #[case::within_a_tick(15, 999, true)]
    #[case::the_stamp_is_of_the_ticks_beginning(15, 1_000, false)]
    #[case::when_the_clock_comes_round((1 << 36) - 5, (1 << 36) + 900, true)]
    #[case::some_time_after_that((1 << 36) - 5, (1 << 36) + 990, false)]
    fn entries_are_valid_for_the_capacity(
        #[case] stamped: u64,
        #[case] asked: u64,
        #[case] valid: bool,
    ) {
        let mut cache = cache(800);
        cache.hear(stamped, false, 0);
        let stamp = cache.view(0).now;
        cache.hear(asked - stamped, false, 0);
        assert_eq!(cache.view(0).is_valid(stamp, 0), valid);
        assert!(!cache.view(1).is_valid(stamp, 0), "of another generation");
    }

    #[test]
    fn capacities_merge_in_any_order() {
        let heard = |samples, start, milli| Capacity { samples, start, milli };
        let words = [
            heard(9, 500_000, 700_000_000),
            heard(0, 100_000, 100_000_000),
            heard(5, 100_000, 120_000_000),
            heard(5, 100_000, u64::MAX),
            heard(4, 100_000, 0),
        ];
        for turn in 0..words.len() {
            let mut merged = Cache::new(BackendId(0));
            assert_eq!(merged.told(), None);
            for step in 0..2 * words.len() {
                merged.merge_capacity(words[(turn + step) % words.len()]);
            }
            assert_eq!(merged.told(), Some(heard(5, 100_000, 200_000_000)));
            assert_eq!(merged.capacity(), 200_000);
        }
        // Where it says the same itself that is kept, and where it says another size it is not.
        let mut same = cache(80_000);
        assert!(same.merge_capacity(words[2]) && !same.merge_capacity(words[2]));
        same.set_capacity(Some(80_000));
        assert_eq!(same.capacity(), 120_000);
        let mut other = cache(8_000);
        assert!(!other.merge_capacity(words[2]));
        assert_eq!(other.capacity(), 10_000);
        assert!(Cache::new(BackendId(0)).merge_capacity(heard(u32::MAX, u64::MAX, u64::MAX)));
    }

    #[test]
    fn stamps_from_ahead_are_as_good_as_now() {
        let cache = cache(800);
        let view = cache.view(0);
        assert!(view.is_valid(AHEAD, 0) && view.is_recent(AHEAD));
        assert_eq!(view.staleness(5, 0), 0);
        assert!(!view.is_valid(AHEAD + 1, 0));
        assert!(!Cache { capacity_milli: 0, ..cache }.view(0).is_valid(5, 0), "nothing fits");
    }

    #[test]
    fn staleness_is_relative() {
        let mut small = cache(800);
        let mut large = cache(80_000);
        for cache in [&mut small, &mut large] {
            cache.advance(512, 0);
        }
        let (small, large) = (small.view(3), large.view(3));
        assert!(small.staleness(0, 3) > large.staleness(0, 3));
        assert!(small.staleness(0, 3) > small.staleness(20, 3));
        assert_eq!(large.staleness(0, 2), u32::MAX);
    }

    #[test]
    fn the_later_stamp_wins_whichever_way_they_are_put() {
        for (one, other) in [(5, 4), (3, u32::MAX), (1 << 31, (1 << 31) - 1)] {
            assert_eq!(later(one, other), one);
            assert_eq!(later(other, one), one);
        }
        assert_eq!(later(9, 9), 9);
    }

    #[rstest]
    #[case::now(0, 1_000)]
    #[case::a_quarter(2, 840)]
    #[case::a_half_life(8, 500)]
    #[case::two(16, 250)]
    #[case::long(80, 0)]
    #[case::ever(u64::MAX, 0)]
    fn what_is_new_ages(#[case] step: u64, #[case] fresh: u64) {
        let mut cache = cache(80_000);
        cache.advance(1_000, 0);
        assert_eq!(cache.fresh(step), fresh);
    }

    #[test]
    fn what_is_new_adds_up() {
        let mut cache = cache(80_000);
        cache.advance(1_000, 0);
        cache.advance(1_000, 8);
        assert_eq!(cache.fresh(8), 1_500);
        // Steps do not go backwards here, either.
        cache.advance(10, 0);
        assert_eq!(cache.fresh(16), 755);
        assert_eq!(cache.hear(1_000, false, u64::MAX), 0);
        assert_eq!(cache.fresh(u64::MAX), 0);
        assert_eq!(cache.hear(1_000, true, u64::MAX), 1_000);
        assert_eq!(cache.fresh(u64::MAX), 1_000);
        assert_eq!(cache.advance(u64::MAX, u64::MAX), 200_000);
    }
}
