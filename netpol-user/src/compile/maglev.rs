//! Maglev tables: which backend answers for each slot that a client's hash picks.
//!
//! Each backend has an order of its own in which it likes the slots; in turn, each takes the first one
//! that is free (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016,
//! section 3.4). The orders depend on nothing but the backend's own address and port: when one goes, hardly
//! any slot of the others changes hands.

use std::net::IpAddr;

use crate::model::Weight;

/// Who takes turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub address: IpAddr,
    pub port: u16,
    pub weight: Weight,
}

/// Sizes of tables, the largest primes below powers of two. They are far apart, so that few changes of the
/// number of backends change the size, which moves every client.
const SIZES: [u32; 15] = [
    251, 509, 1021, 2039, 4093, 8191, 16_381, 32_749, 65_521, 131_071, 262_139, 524_287, 1_048_573, 2_097_143,
    4_194_301,
];
/// Slots for each backend, at least: shares differ by about a hundredth of each (section 3.4 of the paper).
const SLOTS: u32 = 100;

/// Slots for so many backends. Beyond 41,943 of them the last size has less than [`SLOTS`] for each.
pub(super) fn size(backends: usize) -> u32 {
    match backends {
        0 | 1 => backends as u32,
        _ => {
            let wanted = u32::try_from(backends).unwrap_or(u32::MAX).saturating_mul(SLOTS);
            SIZES.into_iter().find(|&size| size >= wanted).unwrap_or(SIZES[SIZES.len() - 1])
        }
    }
}

/// By slot: an index into `candidates`, which are in an order that only depends on who they are.
///
/// In each round a candidate takes as large a part of a turn as its weight is of the largest one. After at most
/// [`MAX_WEIGHT`](crate::model::MAX_WEIGHT) rounds each had at least one, and no more than [`SLOTS`] each were
/// given away: nobody is left out.
pub(super) fn table(candidates: &[Candidate]) -> Vec<u32> {
    const FREE: u32 = u32::MAX;
    let size = size(candidates.len());
    if size < 2 {
        return vec![0; size as usize];
    }
    let heaviest = candidates.iter().map(|candidate| u32::from(candidate.weight)).max().unwrap_or(1).max(1);
    let mut orders: Vec<_> = candidates.iter().map(|candidate| Order::new(candidate, size)).collect();
    let mut credit = vec![0; candidates.len()];
    let mut slots = vec![FREE; size as usize];
    let mut free = size;
    loop {
        for (index, candidate) in candidates.iter().enumerate() {
            credit[index] += u32::from(candidate.weight);
            if credit[index] < heaviest {
                continue;
            }
            credit[index] -= heaviest;
            // some slot is free, and an order visits all of them
            let slot = loop {
                let slot = orders[index].advance(size);
                if slots[slot as usize] == FREE {
                    break slot;
                }
            };
            slots[slot as usize] = index as u32;
            free -= 1;
            if free == 0 {
                return slots;
            }
        }
    }
}

/// A walk over all slots: the size is prime, so any step leads everywhere.
struct Order {
    next: u32,
    step: u32,
}

impl Order {
    fn new(candidate: &Candidate, size: u32) -> Self {
        let address = match candidate.address {
            IpAddr::V4(address) => u128::from(address.to_bits()),
            IpAddr::V6(address) => address.to_bits(),
        };
        let who = [(address >> 64) as u64, address as u64, candidate.port.into()];
        let first = who.into_iter().fold(0, |hash, part| mix(hash ^ part));
        let second = mix(first);
        let below = |hash: u64, bound: u32| (hash % u64::from(bound)) as u32;
        Self { next: below(first, size), step: below(second, size - 1) + 1 }
    }

    fn advance(&mut self, size: u32) -> u32 {
        let slot = self.next;
        // both are below the size, and that is far below 2^31
        self.next = (self.next + self.step) % size;
        slot
    }
}

/// The step of SplitMix64 (public domain): the same on every machine and in every build.
const fn mix(hash: u64) -> u64 {
    let hash = hash.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let hash = (hash ^ hash >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ hash >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ hash >> 31
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn candidates(weights: impl IntoIterator<Item = Weight>) -> Vec<Candidate> {
        let one = |(n, weight): (u32, _)| Candidate {
            address: Ipv4Addr::from_bits(0x0a00_000a + n).into(),
            port: 8080,
            weight,
        };
        (0..).zip(weights).map(one).collect()
    }

    fn shares(table: &[u32], count: usize) -> Vec<usize> {
        let mut shares = vec![0; count];
        table.iter().for_each(|&index| shares[index as usize] += 1);
        shares
    }

    #[test]
    fn one_of_a_hundred_backends_goes_and_two_percent_of_the_others_clients_move_at_most() {
        let all = candidates(vec![1; 100]);
        let before = table(&all);
        for gone in 0..all.len() {
            let left: Vec<_> = all.iter().filter(|&&one| one != all[gone]).copied().collect();
            let after = table(&left);
            assert_eq!(after.len(), before.len());
            let others = before.iter().zip(&after).filter(|(was, _)| **was as usize != gone);
            let moved = others.clone().filter(|(was, is)| all[**was as usize] != left[**is as usize]).count();
            assert!(moved * 100 <= others.count() * 2, "without {gone}: {moved} slots of {}", before.len());
        }
    }

    #[test]
    fn order_of_discovery_does_not_matter_but_identity_does() {
        let all = candidates(vec![1; 7]);
        assert_eq!(table(&all), table(&all));
        let elsewhere: Vec<_> = all.iter().map(|one| Candidate { port: 8081, ..*one }).collect();
        assert_ne!(table(&all), table(&elsewhere));
    }

    #[test]
    fn sizes_are_primes_far_apart() {
        let is_prime = |n: u32| (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d));
        assert!(SIZES.into_iter().all(is_prime));
        assert_eq!([0, 1, 2, 3, 99, 100, 1000].map(size), [0, 1, 251, 509, 16_381, 16_381, 131_071]);
        assert_eq!(size(usize::MAX), 4_194_301);
    }

    #[test]
    fn one_backend_has_the_only_slot_and_none_has_no_slot() {
        assert_eq!(table(&candidates([7])), [0]);
        assert_eq!(table(&[]), Vec::<u32>::new());
    }

    proptest! {
        #[test]
        fn every_backend_has_the_share_that_its_weight_says(weights in proptest::collection::vec(1..=100u8, 2..60)) {
            let candidates = candidates(weights.iter().copied());
            let table = table(&candidates);
            let total: usize = weights.iter().map(|&weight| usize::from(weight)).sum();
            for (share, &weight) in shares(&table, weights.len()).into_iter().zip(&weights) {
                let expected = table.len() as f64 * f64::from(weight) / total as f64;
                prop_assert!(share >= 1, "{weights:?}");
                // the last round is not ended, and each has up to one turn that is not due yet
                let most = 2.0 + weights.len() as f64 * f64::from(weight) / total as f64;
                prop_assert!((share as f64 - expected).abs() <= most, "{share} slots, not {expected:.1}: {weights:?}");
            }
        }
    }
}
