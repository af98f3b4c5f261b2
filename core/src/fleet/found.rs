//! Found: the addresses in a list of specs.
//!
//! Owns how specs of one address become one backend. Does not know which of them are known.

use crate::fleet::{Address, Backend, BackendSpec};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use log::warn;

/// An address as it was found in a list of specs.
pub(super) struct Found<'a> {
    pub(super) spec: &'a BackendSpec,
    pub(super) upstreams: BTreeSet<u16>,
    /// Whether another spec of this address has another prefix or weight, which is not used.
    pub(super) clashes: bool,
    /// Whether any spec of this address is labelled to be drained.
    pub(super) drains: bool,
}

/// Each address once, as the first spec that names it says, with all upstreams that name it; and
/// where each is.
pub(super) fn by_address(
    specs: &[BackendSpec],
) -> (Vec<Option<Found<'_>>>, BTreeMap<&Address, usize>) {
    let mut found: Vec<Option<Found<'_>>> = Vec::new();
    let mut known: BTreeMap<&Address, usize> = BTreeMap::new();
    for spec in specs {
        match known.get(&spec.address) {
            Some(&at) => {
                let Some(first) = &mut found[at] else { continue };
                first.upstreams.insert(spec.upstream);
                first.clashes |= first.spec.prefix != spec.prefix
                    || first.spec.labels.weight != spec.labels.weight;
                first.drains |= spec.labels.drain;
            }
            None => {
                known.insert(&spec.address, found.len());
                let upstreams = BTreeSet::from([spec.upstream]);
                let drains = spec.labels.drain;
                found.push(Some(Found { spec, upstreams, clashes: false, drains }));
            }
        }
    }
    (found, known)
}

impl Backend {
    /// Whether its upstreams say different things of it. An operator hears of that once.
    pub(super) fn clash(&mut self, clashes: bool) {
        if clashes && !self.clashes {
            let address = &self.spec.address;
            warn!(address:%; "upstreams of one address are one backend, as the first says");
        }
        self.clashes = clashes;
    }
}

/// What each upstream is called, by its number.
pub(super) fn authorities(specs: &[BackendSpec]) -> BTreeMap<u16, String> {
    let mut authorities = BTreeMap::new();
    for spec in specs {
        authorities.entry(spec.upstream).or_insert_with(|| spec.authority.clone());
    }
    authorities
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Labels;
    use alloc::string::ToString;
    use rstest::rstest;

    fn spec(upstream: u16, prefix: &str, labels: Labels) -> BackendSpec {
        let (address, authority) = (Address::Tcp(([10, 0, 0, 1], 80).into()), upstream.to_string());
        BackendSpec { upstream, address, authority, prefix: prefix.to_string(), labels }
    }

    #[rstest]
    #[case::alike("/p", 200, false, false)]
    #[case::prefix("", 200, false, true)]
    #[case::weight("/p", 100, false, true)]
    #[case::who_is_drained_by_one_is_drained("/p", 200, true, false)]
    fn two_of_one_address_are_one(
        #[case] prefix: &str,
        #[case] weight: u16,
        #[case] drain: bool,
        #[case] clashes: bool,
    ) {
        let first = spec(3, "/p", Labels { weight: 200, drain: false });
        let specs = [first.clone(), spec(5, prefix, Labels { weight, drain })];
        let (found, _) = by_address(&specs);
        let [Some(found)] = &found[..] else { panic!("there are {}", found.len()) };
        assert_eq!((found.spec, &found.upstreams), (&first, &BTreeSet::from([3, 5])));
        assert_eq!((found.clashes, found.drains), (clashes, drain));
    }
}
