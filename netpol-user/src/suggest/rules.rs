//! Peers that need the same share a rule, and no two rules could be one.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::RangeInclusive,
};

use ipnet::IpNet;

use super::{Needs, Peer};

/// Peers of one rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers {
    /// By their indices.
    pub workloads: Vec<usize>,
    /// Exactly the addresses that were seen, in as few prefixes as hold no other.
    pub nets: Vec<IpNet>,
}

/// Groups peers by what they need of what `say` can express; peers that need nothing of it are left out.
///
/// Rules of different groups differ in what they are about and share no peer: they can't be merged.
pub fn groups<T: Ord>(needs: &Needs, say: impl Fn(super::Service) -> Option<T>) -> Vec<(BTreeSet<T>, Peers)> {
    let mut groups: BTreeMap<BTreeSet<T>, (Vec<usize>, Vec<IpAddr>)> = BTreeMap::new();
    for (peer, services) in needs {
        let said: BTreeSet<T> = services.iter().filter_map(|service| say(*service)).collect();
        if said.is_empty() {
            continue;
        }
        let (workloads, addresses) = groups.entry(said).or_default();
        match peer {
            Peer::Workload(index) => workloads.push(*index),
            Peer::Address(address) => addresses.push(*address),
        }
    }
    let peers = |(workloads, addresses): (Vec<usize>, Vec<IpAddr>)| Peers { workloads, nets: exactly(&addresses) };
    groups.into_iter().map(|(said, members)| (said, peers(members))).collect()
}

/// The fewest prefixes that hold these addresses and no other.
fn exactly(addresses: &[IpAddr]) -> Vec<IpNet> {
    let mut nets = IpNet::aggregate(&addresses.iter().map(|address| IpNet::from(*address)).collect());
    nets.sort();
    nets
}

/// Ports next to each other as ranges.
pub fn ranges(ports: impl IntoIterator<Item = u16>) -> Vec<RangeInclusive<u16>> {
    let mut ranges: Vec<RangeInclusive<u16>> = Vec::new();
    for port in ports {
        match ranges.last_mut() {
            Some(range) if range.end().checked_add(1) == Some(port) => *range = *range.start()..=port,
            _ => ranges.push(port..=port),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_neighbours_that_fill_a_prefix_are_merged() {
        let merged = |addresses: &[&str]| {
            let addresses: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
            exactly(&addresses).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(merged(&["192.0.2.2", "192.0.2.3"]), ["192.0.2.2/31"]);
        assert_eq!(merged(&["192.0.2.1", "192.0.2.2"]), ["192.0.2.1/32", "192.0.2.2/32"]);
        assert_eq!(
            merged(&["192.0.2.0", "192.0.2.1", "192.0.2.2", "192.0.2.3", "fd00::1"]),
            ["192.0.2.0/30", "fd00::1/128"]
        );
    }

    #[test]
    fn neighbouring_ports_are_a_range() {
        assert_eq!(ranges([80, 81, 82, 84, 65535]), [80..=82, 84..=84, 65535..=65535]);
    }
}
