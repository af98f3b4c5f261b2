//! Many steps at once: when they end, and where to stop when something comes in between.

/// Steps under way that differ only in that each is `growth` longer than the one before.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leap {
    pub(super) began: u64,
    pub(super) steps: u64,
    pub(super) first: u64,
    pub(super) growth: u64,
}

impl Leap {
    /// When that many steps are over.
    const fn end_of(&self, steps: u64) -> u64 {
        self.began + self.first * steps + self.growth * (steps * steps.saturating_sub(1) / 2)
    }

    pub(super) const fn end(&self) -> u64 {
        self.end_of(self.steps)
    }

    /// Ends it with the step that is under way at `now`.
    pub(super) fn cut(&mut self, now: u64) {
        let (mut over, mut enough) = (0, self.steps);
        while over + 1 < enough {
            let middle = over + (enough - over) / 2;
            if self.end_of(middle) > now {
                enough = middle;
            } else {
                over = middle;
            }
        }
        self.steps = enough;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    /// Steps of 10, 12, 14, 16: ends at 110, 122, 136, 152.
    const LEAP: Leap = Leap { began: 100, steps: 4, first: 10, growth: 2 };

    #[rstest]
    #[case::in_the_first(100, 110)]
    #[case::at_its_end(110, 122)]
    #[case::in_the_second(111, 122)]
    #[case::in_the_last(140, 152)]
    fn a_cut_ends_with_the_step_under_way(#[case] now: u64, #[case] end: u64) {
        let mut leap = LEAP;
        leap.cut(now);
        assert_eq!(leap.end(), end);
    }
}
