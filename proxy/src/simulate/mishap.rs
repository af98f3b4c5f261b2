//! Faults of Redis and of proxies as they are written: `KIND[:VALUE]@PERCENT[-PERCENT]`.

use crate::values;
use std::time::Duration;
use vllm_proxy_core::time::Instant;
use vllm_proxy_sim::redis::Mishap;

/// No word is delayed for longer, in milliseconds.
const SLOW_MAX: u64 = 60_000;

/// Something that happens between proxies while so much of the trace passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    kind: Kind,
    from: u32,
    /// `None`: to the end, or at once for what takes no time.
    until: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Killed,
    Hung,
    Flushed,
    Full,
    Slow(Duration),
    Cut(usize),
    Dies(usize),
    Restarts(usize),
}

impl Trouble {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let parse = || {
            let (what, when) = text.split_once('@')?;
            let (from, until) = match when.split_once('-') {
                None => (percent(when)?, None),
                Some((from, until)) => (percent(from)?, Some(percent(until)?)),
            };
            let (name, value) = match what.split_once(':') {
                None => (what, None),
                Some((name, value)) => (name, Some(values::number(value)?)),
            };
            let proxy = value.and_then(|value| usize::try_from(value).ok());
            let kind = match name {
                "killed" => Kind::Killed,
                "hung" => Kind::Hung,
                "flushed" => Kind::Flushed,
                "full" => Kind::Full,
                "slow" => {
                    let millis = value.filter(|millis| (1..=SLOW_MAX).contains(millis));
                    Kind::Slow(Duration::from_millis(millis?))
                }
                "cut" => Kind::Cut(proxy?),
                "dies" => Kind::Dies(proxy?),
                "restarts" => Kind::Restarts(proxy?),
                _ => return None,
            };
            let trouble = Self { kind, from, until };
            let lasts = !matches!(kind, Kind::Flushed | Kind::Dies(_));
            let valued = trouble.proxy().is_some() || matches!(kind, Kind::Slow(_));
            let fits =
                valued == value.is_some() && until.is_none_or(|until| lasts && from <= until);
            fits.then_some(trouble)
        };
        parse().ok_or_else(|| {
            "one of killed, hung, flushed, full, slow:MS, cut:PROXY, dies:PROXY and \
             restarts:PROXY, and when, as in killed@PERCENT-PERCENT"
                .to_owned()
        })
    }

    /// The proxy that it happens to, if it is one.
    pub(super) const fn proxy(&self) -> Option<usize> {
        match self.kind {
            Kind::Cut(proxy) | Kind::Dies(proxy) | Kind::Restarts(proxy) => Some(proxy),
            Kind::Killed | Kind::Hung | Kind::Flushed | Kind::Full | Kind::Slow(_) => None,
        }
    }

    /// Whether a proxy starts that may ask Redis for what was kept.
    pub(super) const fn restarts(&self) -> bool {
        matches!(self.kind, Kind::Restarts(_))
    }

    /// When the requests come within `span`.
    pub(super) fn within(self, span: Duration) -> Vec<(Instant, Mishap)> {
        let at = |percent| Instant::START + span * percent / 100;
        let (begin, end) = match self.kind {
            Kind::Killed => (Mishap::Killed, Some(Mishap::Started)),
            Kind::Hung => (Mishap::Hung, Some(Mishap::GoesOn)),
            Kind::Flushed => (Mishap::Flushed, None),
            Kind::Full => (Mishap::Full, Some(Mishap::Roomy)),
            Kind::Slow(late) => (Mishap::Slow(late), Some(Mishap::Slow(Duration::ZERO))),
            Kind::Cut(proxy) => (Mishap::CutOff(proxy), Some(Mishap::Joined(proxy))),
            Kind::Dies(proxy) => (Mishap::Dies(proxy), None),
            Kind::Restarts(proxy) => (Mishap::Dies(proxy), Some(Mishap::Starts(proxy))),
        };
        let until = self.until.or(self.restarts().then_some(self.from));
        let end = until.zip(end).map(|(until, end)| (at(until), end));
        [Some((at(self.from), begin)), end].into_iter().flatten().collect()
    }
}

fn percent(text: &str) -> Option<u32> {
    let percent = values::number(text).and_then(|percent| u32::try_from(percent).ok());
    percent.filter(|percent| *percent <= 100)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    /// What happens after how many milliseconds, where one per cent takes ten.
    #[rstest]
    #[case::killed("killed@40-60", &[(400, Mishap::Killed), (600, Mishap::Started)])]
    #[case::for_ever("killed@40", &[(400, Mishap::Killed)])]
    #[case::restarted("killed@40-40", &[(400, Mishap::Killed), (400, Mishap::Started)])]
    #[case::hung("hung@0-100", &[(0, Mishap::Hung), (1_000, Mishap::GoesOn)])]
    #[case::flushed("flushed@5", &[(50, Mishap::Flushed)])]
    #[case::full("full@1-2", &[(10, Mishap::Full), (20, Mishap::Roomy)])]
    #[case::slow(
        "slow:100@1-2",
        &[
            (10, Mishap::Slow(Duration::from_millis(100))),
            (20, Mishap::Slow(Duration::ZERO)),
        ]
    )]
    #[case::cut("cut:3@1-2", &[(10, Mishap::CutOff(3)), (20, Mishap::Joined(3))])]
    #[case::dies("dies:0@50", &[(500, Mishap::Dies(0))])]
    #[case::restarts("restarts:1@50", &[(500, Mishap::Dies(1)), (500, Mishap::Starts(1))])]
    #[case::later("restarts:1@50-60", &[(500, Mishap::Dies(1)), (600, Mishap::Starts(1))])]
    fn faults(#[case] text: &str, #[case] expected: &[(u64, Mishap)]) {
        let trouble = Trouble::parse(text).expect("it is a fault");
        let at = |&(millis, mishap): &(u64, Mishap)| (Instant::from_millis(millis), mishap);
        let expected: Vec<_> = expected.iter().map(at).collect();
        assert_eq!(trouble.within(Duration::from_secs(1)), expected);
    }

    #[rstest]
    #[case::unknown("lost@1")]
    #[case::no_time("killed")]
    #[case::beyond_the_end("killed@40-101")]
    #[case::backwards("killed@60-40")]
    #[case::a_moment_that_lasts("flushed@1-2")]
    #[case::death_that_lasts("dies:1@1-2")]
    #[case::no_proxy("cut@1-2")]
    #[case::no_number("dies:x@1")]
    #[case::nothing_to_name("hung:1@1-2")]
    #[case::not_slow("slow:0@1-2")]
    #[case::too_slow("slow:60001@1-2")]
    #[case::negative("cut:-1@5")]
    #[case::nothing("")]
    fn no_faults(#[case] text: &str) {
        let error = Trouble::parse(text).expect_err("it is none");
        assert!(error.starts_with("one of killed, "), "{error}");
    }
}
