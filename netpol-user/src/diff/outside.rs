//! Outside addresses that rules can tell apart, each class by one of its addresses.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;

use crate::model::World;

/// The addresses whose longest match among the prefixes that the rules mention is this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    pub prefix: IpNet,
    /// One of them, which no endpoint has.
    pub address: IpAddr,
}

/// Every class that the rules of these worlds make, everything that no rule mentions included. A prefix
/// whose addresses all belong to endpoints or to longer prefixes makes none.
pub fn classes(worlds: &[&World]) -> Vec<Class> {
    let everything = ["0.0.0.0/0", "::/0"].map(|net| net.parse().expect("a prefix"));
    let mentioned: BTreeSet<IpNet> = worlds.iter().flat_map(|world| mentioned(world)).chain(everything).collect();
    let endpoints = worlds.iter().flat_map(|world| &world.endpoints).flat_map(|endpoint| &endpoint.addresses);
    let endpoints: BTreeSet<IpNet> = endpoints.map(|address| IpNet::from(*address)).collect();
    // prefixes are nested or disjoint: in this order each is followed by those inside of it
    let mut all: Vec<IpNet> = mentioned.union(&endpoints).copied().collect();
    all.sort_by_key(|net| (net.network(), net.prefix_len()));
    let class = |(index, prefix): (usize, &IpNet)| {
        let is_wanted = mentioned.contains(prefix) && !endpoints.contains(prefix);
        let address = is_wanted.then(|| gap(prefix, &all[index + 1..])).flatten()?;
        Some(Class { prefix: *prefix, address })
    };
    all.iter().enumerate().filter_map(class).collect()
}

/// The first address of `prefix` that is in none of the prefixes inside of it, with which `rest` begins.
fn gap(prefix: &IpNet, rest: &[IpNet]) -> Option<IpAddr> {
    let mut free = prefix.network();
    for inner in rest.iter().take_while(|inner| prefix.contains(*inner)) {
        if free < inner.network() {
            break;
        }
        // one inside of the last ends before it
        if inner.broadcast() >= free {
            free = next(inner.broadcast())?;
        }
    }
    prefix.contains(&free).then_some(free)
}

fn next(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => address.to_bits().checked_add(1).map(|bits| IpAddr::V4(bits.into())),
        IpAddr::V6(address) => address.to_bits().checked_add(1).map(|bits| IpAddr::V6(bits.into())),
    }
}

fn mentioned(world: &World) -> impl Iterator<Item = IpNet> + '_ {
    let rules = world.policies().flat_map(|policy| policy.ingress.iter().chain(&policy.egress)).flatten();
    let ends = rules.flat_map(|rule| [&rule.matches.source, &rule.matches.destination]);
    let nets = ends.flat_map(|end| end.nets.iter().flatten().chain(&end.not_nets));
    nets.chain(world.sets.iter().flat_map(|set| &set.nets)).map(IpNet::trunc)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Action, EntityMatch, Policy, TierDefault, sample::*};

    #[test]
    fn every_prefix_is_stood_for_by_an_address_of_its_own() {
        let mut world = world(&[endpoint("x/a", "10.0.0.0"), endpoint("x/b", "192.0.2.4")]);
        let nets = ["10.0.0.0/8", "10.0.0.0/16", "10.128.0.0/9", "10.0.0.0/9", "192.0.2.4/32", "fd00::/8"];
        let nets = Some(nets.iter().map(|net| net.parse().unwrap()).collect());
        let matches = from(EntityMatch { nets, ..EntityMatch::default() });
        let policy = Policy { ingress: Some(vec![rule(Action::Allow, matches)]), ..policy("p") };
        world.tiers = vec![tier("t", TierDefault::Deny, vec![policy])];
        let found: Vec<_> =
            classes(&[&world]).iter().map(|class| format!("{} {}", class.prefix, class.address)).collect();
        let expected = [
            "0.0.0.0/0 0.0.0.0",
            // 10.0.0.0/8 is all in its halves, 192.0.2.4 is an endpoint's
            "10.0.0.0/9 10.1.0.0",
            "10.0.0.0/16 10.0.0.1",
            "10.128.0.0/9 10.128.0.0",
            "::/0 ::",
            "fd00::/8 fd00::",
        ];
        assert_eq!(found, expected);
    }
}
