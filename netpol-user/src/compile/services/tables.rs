//! The tables of services in one address family.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    net::IpAddr,
};

use netpol_common::{
    service::{Backend, MemberKey, ServiceKey, ServiceValue},
    tables::{AddressKey, AddressValue, Network},
    wire::{Addr4, Addr6, Address, PortBe},
};

use super::maglev::{self, Candidate};
use crate::model::{Service, ServicePort, Weight};

/// One port of a service.
pub(super) struct Published<'a> {
    pub addresses: &'a [(IpAddr, u16)],
    pub candidates: &'a [Candidate],
    pub service: &'a Service,
    pub port: &'a ServicePort,
    /// See [`ServiceValue::service`].
    pub number: u32,
}

/// The tables of one address family.
pub(super) struct Tables<A: Address> {
    pub services: Vec<(ServiceKey<A>, ServiceValue)>,
    pub backends: Vec<Backend<A>>,
    pub members: Vec<(MemberKey<A>, u32)>,
    numbers: HashMap<(A, u16), u32>,
    /// Services with the same backends share a Maglev table: its beginning and size.
    shared: HashMap<Vec<(u32, Weight)>, (u32, u32)>,
}

impl<A: Address> Default for Tables<A> {
    fn default() -> Self {
        let (services, backends, members) = (Vec::new(), Vec::new(), Vec::new());
        Self { services, backends, members, numbers: HashMap::new(), shared: HashMap::new() }
    }
}

pub(super) trait OfFamily: Address + Eq + Hash {
    fn of(address: IpAddr) -> Option<Self>;
}

impl OfFamily for Addr4 {
    fn of(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V4(address) => Some(address.into()),
            IpAddr::V6(_) => None,
        }
    }
}

impl OfFamily for Addr6 {
    fn of(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(address.into()),
        }
    }
}

impl<A: OfFamily> Tables<A> {
    /// Adds what is published in this family.
    pub fn publish(&mut self, what: &Published<'_>, maglev: &mut Vec<u32>) {
        let Published { addresses, candidates, service, port, number } = what;
        let of_family = candidates.iter().filter_map(|candidate| Some((*candidate, A::of(candidate.address)?)));
        let (candidates, members): (Vec<_>, Vec<_>) =
            of_family.map(|(candidate, address)| (candidate, self.number(address, candidate.port))).unzip();
        let of_family =
            addresses.iter().filter_map(|&(address, port)| Some((A::of(address)?, PortBe::from_host(port))));
        let mut table = None;
        for (address, published) in of_family {
            let (first, size) = *table.get_or_insert_with(|| self.table(&members, &candidates, maglev));
            let protocol = port.protocol;
            let affinity = service.affinity.unwrap_or(0);
            let key = ServiceKey { address, port: published, protocol, zero: 0 };
            self.services.push((key, ServiceValue { first, size, affinity, service: *number }));
            for &index in &members {
                let Backend { address: backend, port: backend_port, .. } = self.backends[index as usize];
                let key = MemberKey { address, backend, port: published, backend_port, protocol, zero: 0, zeros: 0 };
                self.members.push((key, index));
            }
        }
    }

    /// A backend's index.
    fn number(&mut self, address: A, port: u16) -> u32 {
        let next = u32::try_from(self.backends.len()).unwrap_or(u32::MAX);
        let number = *self.numbers.entry((address, port)).or_insert(next);
        if number == next {
            let port = PortBe::from_host(port);
            self.backends.push(Backend { address, port, zeros: 0 });
        }
        number
    }

    /// Tells those apart that are not on this host, where nobody has their `addresses`.
    pub fn tell_apart(&mut self, addresses: &[(AddressKey<A>, AddressValue)]) {
        let shared = addresses.iter().filter(|(key, _)| key.network == Network::SHARED);
        let here: HashSet<_> = shared.map(|(key, _)| key.address).collect();
        let outside = (0..).zip(&self.backends).filter(|(_, backend)| !here.contains(&backend.address));
        self.members.extend(outside.map(|(index, backend)| (MemberKey::of_any(backend.address, backend.port), index)));
    }

    fn table(&mut self, members: &[u32], candidates: &[Candidate], maglev: &mut Vec<u32>) -> (u32, u32) {
        let who = members.iter().zip(candidates).map(|(&index, candidate)| (index, candidate.weight)).collect();
        *self.shared.entry(who).or_insert_with(|| {
            let first = u32::try_from(maglev.len()).unwrap_or(u32::MAX);
            let table = maglev::table(candidates);
            maglev.extend(table.iter().map(|&index| members[index as usize]));
            (first, table.len() as u32)
        })
    }
}
