//! Services: addresses that are published, and the backends behind them.
//!
//! Like the policy tables, each of these exists twice, and the generation's lowest bit names the live one. A
//! new flow to a published address finds its backend in this order:
//!
//! 1. [`ServiceKey`]: is this address, port and protocol published?
//! 2. [`hash`] of the client, and [`pick`]: an index into the Maglev tables of all services.
//! 3. What is there is an index into the array of [`Backend`]s of the family.
//!
//! An established flow asks [`MemberKey`] once per generation: is its backend still one of them? Beside these there is one for
//! each backend of any service that is not on this host ([`MemberKey::of_any`]).

use crate::flow::{Ticks, seconds};
use crate::kernel::Services;
use crate::wire::{Addr4, Addr6, Address, MacWords, PortBe, Protocol};

pod! {
    /// Key of what is published: one port of one address.
    pub struct ServiceKey<A: Address> {
        pub address: A,
        pub port: PortBe,
        pub protocol: Protocol,
        pub zero: u8,
    }

    /// Who answers there.
    pub struct ServiceValue {
        /// Index of the first entry of its Maglev table.
        pub first: u32,
        /// Entries of that table, a prime or 1; 0: there is no backend.
        pub size: u32,
        /// For how many seconds a client address keeps its backend; 0: each connection by itself.
        pub affinity: u32,
        /// The port of a service, by its number in the generation's list of names, from 1.
        pub service: u32,
    }

    /// Where a service's packets go.
    pub struct Backend<A: Address> {
        pub address: A,
        pub port: PortBe,
        pub zeros: u16,
    }

    /// Key of the question whether a backend is one of those of a published address. The answer is the
    /// backend's index.
    pub struct MemberKey<A: Address> {
        /// As in [`ServiceKey`].
        pub address: A,
        pub backend: A,
        pub port: PortBe,
        pub backend_port: PortBe,
        pub protocol: Protocol,
        pub zero: u8,
        pub zeros: u16,
    }

    /// Key of the backend that a client address stays with.
    pub struct AffinityKey<A: Address> {
        pub client: A,
        /// As in [`ServiceKey`].
        pub address: A,
        pub port: PortBe,
        pub protocol: Protocol,
        pub zero: u8,
    }

    /// Until when it does.
    pub struct Affinity<A: Address> {
        pub backend: Backend<A>,
        /// The last new connection.
        pub seen: Ticks,
    }

    /// An interface to the outside, by its [`IfIndex`](crate::tables::IfIndex): what leaves a pool through it gets its address.
    pub struct Uplink {
        /// Unspecified: it has none of that family.
        pub address4: Addr4,
        pub address6: Addr6,
        pub mac: MacWords,
        pub reserved: u16,
        /// In bytes, without the link's own header.
        pub mtu: u32,
    }
}

const _: () = {
    let () = ServiceKey::<Addr4>::NO_PADDING;
    let () = ServiceKey::<Addr6>::NO_PADDING;
    let () = ServiceValue::NO_PADDING;
    let () = Backend::<Addr4>::NO_PADDING;
    let () = Backend::<Addr6>::NO_PADDING;
    let () = MemberKey::<Addr4>::NO_PADDING;
    let () = MemberKey::<Addr6>::NO_PADDING;
    let () = Uplink::NO_PADDING;
    let () = AffinityKey::<Addr4>::NO_PADDING;
    let () = AffinityKey::<Addr6>::NO_PADDING;
    let () = Affinity::<Addr4>::NO_PADDING;
    let () = Affinity::<Addr6>::NO_PADDING;
    assert!(size_of::<Backend<Addr4>>() == 8);
    assert!(size_of::<MemberKey<Addr4>>() == 16);
    assert!(size_of::<Uplink>() == 32);
};

impl<A: Address> MemberKey<A> {
    /// Key of the question whether an address and a port outside are a backend of any service, for whatever protocol. (No
    /// service is published at port 0.)
    #[inline(always)]
    pub const fn of_any(backend: A, backend_port: PortBe) -> Self {
        Self {
            address: A::UNSPECIFIED,
            backend,
            port: PortBe::ZERO,
            backend_port,
            protocol: Protocol(0),
            zero: 0,
            zeros: 0,
        }
    }

    #[inline(always)]
    pub fn is_of_any(&self) -> bool {
        *self == Self::of_any(self.backend, self.backend_port)
    }
}

/// A client's number for [`pick`]: evenly spread, also where addresses and ports follow each other, and another
/// for each service. With [`PortBe::ZERO`] it is about the client's address alone (session affinity).
#[inline(always)]
pub fn hash<A: Address>(client: &A, port: PortBe, service: u32) -> u32 {
    mix(mix(mix(service) ^ client.fold()) ^ port.0 as u32)
}

/// Which entry of the Maglev tables answers to a [`hash`]; `None`: the service has no backend.
#[inline(always)]
pub const fn pick(hash: u32, value: &ServiceValue) -> Option<u32> {
    if value.size == 0 {
        return None;
    }
    // the hash as a fraction of 2^32: as even as a remainder, without a division
    let entry = (hash as u64 * value.size as u64) >> 32;
    Some(value.first.wrapping_add(entry as u32))
}

/// The backend that the client has stayed with, else the one of the Maglev table; `None`: that has none.
/// `affinity` is that of the [`ServiceValue`].
#[inline(always)]
pub fn choose<A: Address, K: Services<A>>(
    kernel: &K,
    client: &AffinityKey<A>,
    (entry, affinity): (u32, u32),
    now: Ticks,
) -> Option<Backend<A>> {
    let mut backend = *kernel.backend(entry)?;
    if affinity == 0 {
        return Some(backend);
    }
    let &AffinityKey { address, port, protocol, .. } = client;
    if let Some(stays) = kernel.affinity(client) {
        let Affinity { backend: before, seen } = *stays;
        let member = MemberKey {
            address,
            backend: before.address,
            port,
            backend_port: before.port,
            protocol,
            zero: 0,
            zeros: 0,
        };
        if now.since(seen) <= seconds(affinity) && kernel.has_member(&member) {
            backend = before;
        }
    }
    kernel.stay(client, &Affinity { backend, seen: now });
    Some(backend)
}

/// Each bit of the result depends on each bit of `word` (the finalizer of MurmurHash3, public domain).
#[inline(always)]
const fn mix(mut word: u32) -> u32 {
    word ^= word >> 16;
    word = word.wrapping_mul(0x85eb_ca6b);
    word ^= word >> 13;
    word = word.wrapping_mul(0xc2b2_ae35);
    word ^ word >> 16
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::{net::Ipv6Addr, vec, vec::Vec};

    use super::*;

    fn value(first: u32, size: u32) -> ServiceValue {
        ServiceValue { first, size, affinity: 0, service: 1 }
    }

    /// The chi-squared statistic of how clients fall on 251 entries: 250 on average if by chance, with a
    /// standard deviation of 22.
    fn unevenness(hashes: &[u32]) -> f64 {
        let value = value(0, 251);
        let mut counts = vec![0u32; 251];
        hashes.iter().for_each(|&hash| counts[pick(hash, &value).unwrap() as usize] += 1);
        let expected = hashes.len() as f64 / 251.0;
        counts.iter().map(|&count| (f64::from(count) - expected).powi(2) / expected).sum()
    }

    #[test]
    fn clients_that_follow_each_other_are_spread_evenly() {
        let ports = (1024..65_000).map(|port| hash(&Addr4(7), PortBe::from_host(port), 1)).collect::<Vec<_>>();
        let addresses =
            (0u32..60_000).map(|n| hash(&Addr4((0x0a00_0000 + n).to_be()), PortBe::ZERO, 1)).collect::<Vec<_>>();
        let six = (0u128..60_000)
            .map(|n| hash(&Addr6::from(Ipv6Addr::from((0xfd00 << 112) + n)), PortBe::ZERO, 1))
            .collect::<Vec<_>>();
        let services = (1..60_000).map(|service| hash(&Addr4(7), PortBe(9), service)).collect::<Vec<_>>();
        for (name, hashes) in [("ports", ports), ("addresses", addresses), ("IPv6", six), ("services", services)] {
            assert!(unevenness(&hashes) < 360.0, "{name}: {}", unevenness(&hashes));
        }
    }

    #[test]
    fn every_hash_picks_an_entry_of_the_services_own_table() {
        for size in [1, 2, 251, 131_071, u32::MAX] {
            let value = value(0, size);
            assert_eq!(pick(0, &value), Some(0));
            assert_eq!(pick(u32::MAX, &value), Some(size - 1));
        }
        assert_eq!(pick(u32::MAX, &value(1000, 251)), Some(1250));
    }

    #[test]
    fn a_service_without_backends_has_nothing_to_pick() {
        assert_eq!(pick(7, &value(5, 0)), None);
    }
}
