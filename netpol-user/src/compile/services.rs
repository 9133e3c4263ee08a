//! Who answers at a published address: for each port of each service its backends, and their Maglev table.

mod tables;

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netpol_common::wire::{Addr4, Addr6, Protocol};

use self::tables::{Published, Tables};
use super::{
    BackendName, BackendState, CompileError, ServiceName, Snapshot, Workload,
    addresses::Found,
    maglev::{self, Candidate},
    select::Objects,
};
use crate::model::{
    Endpoint, EndpointSlice, IpVersion, ObjectName, Selector, Service, ServicePort, Target, Weight, World,
};

/// Fills in what is published, the backends, and their names.
pub(super) fn fill(snapshot: &mut Snapshot, found: &Found<'_>) -> Result<(), CompileError> {
    let mut four = Tables::<Addr4>::default();
    let mut six = Tables::<Addr6>::default();
    let mut roll = Roll::new(found);
    let mut places = Places::new(found);
    for service in &found.world.services {
        let selected = service.selector.as_ref().map(|selector| roll.selected(selector)).unwrap_or_default();
        for port in &service.ports {
            let addresses = places.of(service, port)?;
            let (candidates, backends) = roll.backends(service, port, &selected)?;
            let number = u32::try_from(snapshot.services.len() + 1).unwrap_or(u32::MAX);
            let what = Published { addresses: &addresses, candidates: &candidates, service, port, number };
            four.publish(&what, &mut snapshot.maglev);
            six.publish(&what, &mut snapshot.maglev);
            snapshot.services.push(ServiceName {
                service: service.name.clone(),
                port_name: port.name.clone(),
                port: port.port,
                protocol: port.protocol,
                affinity: service.affinity,
                addresses,
                backends,
            });
        }
    }
    (snapshot.services4, snapshot.backends4, snapshot.members4) = (four.services, four.backends, four.members);
    (snapshot.services6, snapshot.backends6, snapshot.members6) = (six.services, six.backends, six.members);
    Ok(())
}

/// Where services are published; who took which place.
struct Places<'w> {
    /// Every address of the host that is the same for everybody, and localhost.
    host: BTreeSet<IpAddr>,
    endpoints: HashMap<IpAddr, &'w ObjectName>,
    taken: HashMap<(IpAddr, u16, Protocol), &'w ObjectName>,
}

impl<'w> Places<'w> {
    fn new(found: &Found<'w>) -> Self {
        let localhost: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        let host = found.host.iter().copied().chain(localhost);
        let name = |workload: &Workload| &found.world.endpoints[workload.endpoint].name;
        Self {
            host: host.filter(|address| !is_of_one_link(*address)).collect(),
            endpoints: found.addresses().map(|(workload, address)| (address, name(workload))).collect(),
            taken: HashMap::new(),
        }
    }

    fn of(&mut self, service: &'w Service, port: &ServicePort) -> Result<Vec<(IpAddr, u16)>, CompileError> {
        let mut places = Vec::new();
        for &(address, _) in &service.addresses {
            if let Some(&endpoint) = self.endpoints.get(&address) {
                let (service, endpoint) = (service.name.clone(), endpoint.clone());
                return Err(CompileError::ServiceAtEndpoint { address, service, endpoint });
            }
            places.push((address, port.port));
        }
        if let Some(number) = port.node_port {
            let wanted = |address: &&IpAddr| match service.family {
                Some(IpVersion::V4) => address.is_ipv4(),
                Some(IpVersion::V6) => address.is_ipv6(),
                None => true,
            };
            places.extend(self.host.iter().filter(wanted).map(|&address| (address, number)));
        }
        // an external address can be one of the host's
        let mut seen = BTreeSet::new();
        places.retain(|place| seen.insert(*place));
        for &(address, number) in &places {
            if let Some(other) = self.taken.insert((address, number, port.protocol), &service.name) {
                let (one, two) = (other.clone(), service.name.clone());
                return Err(CompileError::ServiceTwice { address, port: number, protocol: port.protocol, one, two });
            }
        }
        Ok(places)
    }
}

/// Whom a service can choose from.
struct Roll<'a, 'w> {
    world: &'w World,
    objects: Objects<'w>,
    running: HashMap<usize, &'a Workload>,
    /// How many have an address.
    uses: HashMap<IpAddr, usize>,
    slices: HashMap<(&'w str, &'w str), Vec<&'w EndpointSlice>>,
}

impl<'a, 'w> Roll<'a, 'w> {
    fn new(found: &'a Found<'w>) -> Self {
        let mut slices: HashMap<_, Vec<_>> = HashMap::new();
        for slice in &found.world.slices {
            let Some(service) = &slice.service else { continue };
            slices.entry((slice.name.namespace.as_str(), service.as_str())).or_default().push(slice);
        }
        Self {
            world: found.world,
            objects: Objects::new(found.world),
            running: found.workloads.iter().map(|workload| (workload.endpoint, workload)).collect(),
            uses: found.uses(),
            slices,
        }
    }

    fn selected(&mut self, selector: &'w Selector) -> Vec<usize> {
        let count = self.world.endpoints.len();
        self.objects.selected_by(selector).iter().take_while(|&object| object < count).collect()
    }

    /// Those that take packets, in the order that Maglev wants, and all of them by name.
    fn backends(
        &self,
        service: &Service,
        port: &ServicePort,
        selected: &[usize],
    ) -> Result<(Vec<Candidate>, Vec<BackendName>), CompileError> {
        let mut candidates = Vec::new();
        let mut names = Vec::new();
        for &index in selected {
            let endpoint = &self.world.endpoints[index];
            let Some(number) = number(endpoint, port) else { continue };
            let name = |address, state| BackendName {
                endpoint: Some(endpoint.name.clone()),
                address,
                port: number,
                weight: endpoint.weight,
                state,
            };
            let Some(workload) = self.running.get(&index) else {
                names.push(name(endpoint.addresses.first().copied(), BackendState::Pending));
                continue;
            };
            for address in first_of_each_family(&workload.addresses) {
                if self.uses.get(&address).is_some_and(|&uses| uses > 1) {
                    let (service, endpoint) = (service.name.clone(), endpoint.name.clone());
                    return Err(CompileError::BackendTwice { service, endpoint, address });
                }
                candidates.push(Candidate { address, port: number, weight: endpoint.weight });
                names.push(name(Some(address), BackendState::Running));
            }
        }
        self.listed(service, port, &mut candidates, &mut names);
        candidates.sort_unstable_by_key(|candidate| (candidate.address, candidate.port));
        candidates.dedup_by_key(|candidate| (candidate.address, candidate.port));
        Ok((candidates, names))
    }

    /// What slices say.
    fn listed(
        &self,
        service: &Service,
        port: &ServicePort,
        candidates: &mut Vec<Candidate>,
        names: &mut Vec<BackendName>,
    ) {
        let ObjectName { namespace, name } = &service.name;
        for slice in self.slices.get(&(namespace.as_str(), name.as_str())).into_iter().flatten() {
            let behind = slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol);
            for number in behind.map(|port| port.port) {
                for endpoint in &slice.endpoints {
                    let (address, weight): (_, Weight) = (endpoint.address, slice.weight);
                    let answers = endpoint.ready || service.publish_not_ready;
                    if answers {
                        candidates.push(Candidate { address, port: number, weight });
                    }
                    let state = if answers { BackendState::Ready } else { BackendState::NotReady };
                    names.push(BackendName { endpoint: None, address: Some(address), port: number, weight, state });
                }
            }
        }
    }
}

/// The port of an endpoint that a service means; `None`: it declares none of that name.
fn number(endpoint: &Endpoint, port: &ServicePort) -> Option<u16> {
    match &port.target {
        Target::Number(number) => Some(*number),
        Target::Named(name) => {
            let is_meant =
                |p: &&crate::model::EndpointPort| p.name.as_ref() == Some(name) && p.protocol == port.protocol;
            endpoint.ports.iter().find(is_meant).map(|port| port.port)
        }
    }
}

/// One endpoint is one backend, however many addresses it has.
fn first_of_each_family(addresses: &[IpAddr]) -> impl Iterator<Item = IpAddr> {
    let first = |four| addresses.iter().copied().find(move |a| a.is_ipv4() == four && !is_of_one_link(*a));
    [first(true), first(false)].into_iter().flatten()
}

/// fe80::/10: without the name of an interface it is nobody's.
fn is_of_one_link(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}
