//! Faults as they are written: `KIND:SERVER@PERCENT`.

use crate::values;
use std::time::Duration;
use vllm_proxy_core::time::Instant;
use vllm_proxy_sim::world::{Change, Fault};

/// How long `stall` lasts.
const STALL: Duration = Duration::from_secs(10);

/// Something that happens to a server when so much of the trace is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Planned {
    pub(super) server: usize,
    percent: u32,
    change: Change,
}

impl Planned {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let parse = || {
            let (kind, place) = text.split_once(':')?;
            let (server, percent) = place.split_once('@')?;
            let change = match kind {
                "down" => Change::Down,
                "up" => Change::Up,
                "forget" => Change::Forget,
                "stall" => Change::Stall(STALL),
                _ => return None,
            };
            let server = usize::try_from(values::number(server)?).ok()?;
            let percent = values::number(percent).and_then(|percent| u32::try_from(percent).ok());
            Some(Self { server, percent: percent.filter(|percent| *percent <= 100)?, change })
        };
        parse()
            .ok_or_else(|| "one of down, up, forget and stall as in down:SERVER@PERCENT".to_owned())
    }

    /// When the requests come within `span`.
    pub(super) fn within(self, span: Duration) -> Fault {
        let at = Instant::START + span * self.percent / 100;
        Fault { at, server: self.server, change: self.change }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::down("down:3@50", Some((3, 50, Change::Down)))]
    #[case::up("up:0@100", Some((0, 100, Change::Up)))]
    #[case::stall("stall:1@0", Some((1, 0, Change::Stall(STALL))))]
    #[case::unknown("explode:1@0", None)]
    #[case::beyond_the_end("down:1@101", None)]
    #[case::no_place("down", None)]
    #[case::no_time("down:1", None)]
    #[case::negative("down:-1@50", None)]
    fn faults(#[case] text: &str, #[case] expected: Option<(usize, u32, Change)>) {
        let expected =
            expected.map(|(server, percent, change)| Planned { server, percent, change });
        assert_eq!(Planned::parse(text).ok(), expected);
        let fault = expected.map(|planned| planned.within(Duration::from_secs(200)).at);
        let at = expected.map(|planned| Instant::from_millis(u64::from(planned.percent) * 2_000));
        assert_eq!(fault, at);
    }
}
