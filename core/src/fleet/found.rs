//! Found: the addresses in a list of specs.
//!
//! Owns how specs of one address become one backend. Does not know which of them are known.

use crate::fleet::{Address, BackendSpec};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

/// An address as it was found in a list of specs.
pub(super) struct Found<'a> {
    pub(super) spec: &'a BackendSpec,
    pub(super) upstreams: BTreeSet<u16>,
    /// Whether another spec of this address has another prefix, which is not used.
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
                first.clashes |= first.spec.prefix != spec.prefix;
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
