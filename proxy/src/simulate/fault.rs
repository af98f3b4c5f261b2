//! Faults as they are written: `KIND:SERVER@PERCENT`.

use crate::values;
use std::time::Duration;
use vllm_proxy_core::time::Instant;
use vllm_proxy_sim::world::{Change, Fault};

/// How long somebody who flaps is away, and how long he is there.
const FLAP: Duration = Duration::from_secs(5);
/// How long `stall` lasts.
const STALL: Duration = Duration::from_secs(10);

/// Something that happens to a server when so much of the trace is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Planned {
    pub(super) server: usize,
    percent: u32,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Once(Change),
    /// It ends and is back, again and again.
    Flap,
}

impl Planned {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let parse = || {
            let (kind, place) = text.split_once(':')?;
            let (server, percent) = place.split_once('@')?;
            let kind = match kind {
                "down" => Kind::Once(Change::Down),
                "up" => Kind::Once(Change::Up),
                "forget" => Kind::Once(Change::Forget),
                "stall" => Kind::Once(Change::Stall(STALL)),
                "leave" => Kind::Once(Change::Leave),
                "join" => Kind::Once(Change::Join),
                "flap" => Kind::Flap,
                _ => return None,
            };
            let server = usize::try_from(values::number(server)?).ok()?;
            let percent = values::number(percent).and_then(|percent| u32::try_from(percent).ok());
            Some(Self { server, percent: percent.filter(|percent| *percent <= 100)?, kind })
        };
        parse().ok_or_else(|| {
            let kinds = "down, up, forget, stall, leave, join and flap";
            format!("one of {kinds} as in down:SERVER@PERCENT")
        })
    }

    /// When the requests come within `span`.
    pub(super) fn within(self, span: Duration) -> Vec<Fault> {
        let (server, after) = (self.server, span * self.percent / 100);
        let fault = |after, change| Fault { at: Instant::START + after, server, change };
        match self.kind {
            Kind::Once(change) => vec![fault(after, change)],
            Kind::Flap => {
                let times = u32::try_from((span - after).as_secs() / (2 * FLAP).as_secs());
                let flap = |time| {
                    let after = after + 2 * FLAP * time;
                    [fault(after, Change::Down), fault(after + FLAP, Change::Up)]
                };
                (0..=times.unwrap_or(u32::MAX)).flat_map(flap).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::down("down:3@50", Some((3, 50, Kind::Once(Change::Down))))]
    #[case::up("up:0@100", Some((0, 100, Kind::Once(Change::Up))))]
    #[case::stall("stall:1@0", Some((1, 0, Kind::Once(Change::Stall(STALL)))))]
    #[case::leave("leave:1@1", Some((1, 1, Kind::Once(Change::Leave))))]
    #[case::join("join:1@1", Some((1, 1, Kind::Once(Change::Join))))]
    #[case::flap("flap:2@90", Some((2, 90, Kind::Flap)))]
    #[case::unknown("explode:1@0", None)]
    #[case::beyond_the_end("down:1@101", None)]
    #[case::no_place("down", None)]
    #[case::no_time("down:1", None)]
    #[case::negative("down:-1@50", None)]
    fn faults(#[case] text: &str, #[case] expected: Option<(usize, u32, Kind)>) {
        let expected = expected.map(|(server, percent, kind)| Planned { server, percent, kind });
        assert_eq!(Planned::parse(text).ok(), expected);
        let first = expected.map(|planned| planned.within(Duration::from_secs(200))[0].at);
        let at = expected.map(|planned| Instant::from_millis(u64::from(planned.percent) * 2_000));
        assert_eq!(first, at);
    }

    #[test]
    fn who_flaps_is_back_in_the_end() {
        let flap = Planned::parse("flap:1@75").expect("it is a fault");
        let faults = flap.within(Duration::from_secs(80));
        let faults: Vec<_> =
            faults.iter().map(|one| (one.at.micros() / 1_000_000, one.change)).collect();
        let expected = [(60, Change::Down), (65, Change::Up), (70, Change::Down), (75, Change::Up)];
        assert_eq!(faults[..4], expected);
        assert_eq!(faults.last(), Some(&(85, Change::Up)));
    }
}
