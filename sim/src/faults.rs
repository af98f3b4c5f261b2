//! What goes wrong with a request, and how often: drawn from a seeded generator.
//!
//! Knows what a fault is, not how it is done to a connection.

use vllm_proxy_core::rng::Rng;

/// What becomes of one request in place of a good answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An error answer with this status.
    Status(u16),
    /// No byte of an answer, ever, on a connection that stays open.
    Hang,
    /// The connection is closed before any byte of the answer.
    Close,
    /// The connection is reset before any byte of the answer.
    Reset,
    /// The answer stops half-way and the connection is closed, without the last chunk.
    Cut,
    /// The answer stops half-way and the connection stays open.
    Stall,
    /// The stream says 200 and then holds an error event with this code, as of an engine that
    /// failed; an answer that is not streamed has it as its status.
    Event(u16),
    /// The model is not there, whatever the list of models says.
    UnknownModel,
    /// The whole server ends, and every connection with it.
    Crash,
}

impl Fault {
    /// The fault of this name: a word, or the digits of a status.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "hang" => Self::Hang,
            "close" => Self::Close,
            "reset" => Self::Reset,
            "cut" => Self::Cut,
            "stall" => Self::Stall,
            "event" => Self::Event(500),
            "unknown_model" => Self::UnknownModel,
            "crash" => Self::Crash,
            digits => Self::Status(digits.parse().ok().filter(|s| (400..600).contains(s))?),
        })
    }
}

/// How likely a request is to meet which fault.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Chances {
    /// An error answer.
    pub fail: f64,
    /// Its status.
    pub fail_status: u16,
    /// Whether a stream tells it in an event of its own, after a 200.
    pub fail_in_stream: bool,
    /// [`Fault::Hang`].
    pub hang: f64,
    /// [`Fault::Cut`].
    pub cut: f64,
}

impl Chances {
    /// The lot of the next request. One number is drawn whatever the chances are, so that
    /// changing one of them leaves the rest of the sequence as it was.
    pub fn draw(&self, rng: &mut Rng) -> Option<Fault> {
        // 53 bits: all that a float between 0 and 1 can hold.
        let lot = (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        if lot < self.fail {
            let fault = if self.fail_in_stream { Fault::Event } else { Fault::Status };
            Some(fault(self.fail_status))
        } else if lot < self.fail + self.hang {
            Some(Fault::Hang)
        } else if lot < self.fail + self.hang + self.cut {
            Some(Fault::Cut)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::word("cut", Some(Fault::Cut))]
    #[case::status("503", Some(Fault::Status(503)))]
    #[case::event("event", Some(Fault::Event(500)))]
    #[case::no_error_status("200", None)]
    #[case::unknown("explode", None)]
    fn names(#[case] name: &str, #[case] fault: Option<Fault>) {
        assert_eq!(Fault::named(name), fault);
    }

    const CHANCES: Chances =
        Chances { fail: 0.2, fail_status: 500, fail_in_stream: false, hang: 0.1, cut: 0.3 };

    #[test]
    fn faults_are_as_frequent_as_asked() {
        let mut rng = Rng::new(1);
        let drawn: Vec<_> = (0..10_000).map(|_| CHANCES.draw(&mut rng)).collect();
        let share = |fault| drawn.iter().filter(|drawn| **drawn == fault).count();
        assert!(share(Some(Fault::Status(500))).abs_diff(2_000) < 200);
        assert!(share(Some(Fault::Hang)).abs_diff(1_000) < 200);
        assert!(share(Some(Fault::Cut)).abs_diff(3_000) < 200);
        assert!(share(None).abs_diff(4_000) < 200);
    }

    #[test]
    fn the_sequence_follows_from_the_seed() {
        let draw = |seed| {
            let mut rng = Rng::new(seed);
            (0..64).map(|_| CHANCES.draw(&mut rng)).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[rstest]
    #[case::always(1.0)]
    #[case::never(0.0)]
    fn the_ends_of_the_scale_are_certain(#[case] fail: f64) {
        let chances =
            Chances { fail, fail_status: 503, fail_in_stream: false, hang: 0.0, cut: 0.0 };
        let mut rng = Rng::new(3);
        assert!((0..1_000).all(|_| chances.draw(&mut rng).is_some() == (fail == 1.0)));
    }
}
