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
    Endpoint, EndpointSlice, IpVersion, ObjectName, Selector, Service, ServiceAddress, ServicePort, Target, Traffic,
    Weight, World,
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
            for (addresses, traffic) in by_traffic(service, places.of(service, port)?, &roll) {
                let (candidates, backends) = roll.backends((service, port), &selected, traffic)?;
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
    }
    four.tell_apart(&snapshot.addresses4);
    six.tell_apart(&snapshot.addresses6);
    (snapshot.services4, snapshot.backends4, snapshot.members4) = (four.services, four.backends, four.members);
    (snapshot.services6, snapshot.backends6, snapshot.members6) = (six.services, six.backends, six.members);
    Ok(())
}

/// Address and port.
type Place = (IpAddr, u16);

/// Where a port is published, by who answers there: in two parts, if others answer at the service's own addresses than at
/// external ones.
fn by_traffic<'w>(
    service: &'w Service,
    (own, external): (Vec<Place>, Vec<Place>),
    roll: &Roll<'_, 'w>,
) -> Vec<(Vec<Place>, Traffic)> {
    let Service { internal_traffic, external_traffic, .. } = *service;
    let has_both = !own.is_empty() && !external.is_empty();
    if has_both && internal_traffic != external_traffic && roll.has_elsewhere(service) {
        return vec![(own, internal_traffic), (external, external_traffic)];
    }
    let traffic = if own.is_empty() { external_traffic } else { internal_traffic };
    vec![(own.into_iter().chain(external).collect(), traffic)]
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

    /// At the service's own addresses, and at external ones.
    fn of(&mut self, service: &'w Service, port: &ServicePort) -> Result<(Vec<Place>, Vec<Place>), CompileError> {
        let (mut own, mut external) = (Vec::new(), Vec::new());
        for &ServiceAddress { address, is_external, .. } in &service.addresses {
            if let Some(&endpoint) = self.endpoints.get(&address) {
                let (service, endpoint) = (service.name.clone(), endpoint.clone());
                return Err(CompileError::ServiceAtEndpoint { address, service, endpoint });
            }
            if is_external { &mut external } else { &mut own }.push((address, port.port));
        }
        if let Some(number) = port.node_port {
            let wanted = |address: &&IpAddr| match service.family {
                Some(IpVersion::V4) => address.is_ipv4(),
                Some(IpVersion::V6) => address.is_ipv6(),
                None => true,
            };
            external.extend(self.host.iter().filter(wanted).map(|&address| (address, number)));
        }
        // an external address can be one of the host's
        let mut seen = BTreeSet::new();
        for places in [&mut own, &mut external] {
            places.retain(|place| seen.insert(*place));
        }
        for &(address, number) in own.iter().chain(&external) {
            if let Some(other) = self.taken.insert((address, number, port.protocol), &service.name) {
                let (one, two) = (other.clone(), service.name.clone());
                return Err(CompileError::ServiceTwice { address, port: number, protocol: port.protocol, one, two });
            }
        }
        Ok((own, external))
    }
}

/// Whom a service can choose from.
struct Roll<'a, 'w> {
    world: &'w World,
    objects: Objects<'w>,
    running: HashMap<usize, &'a Workload>,
    /// How many have an address, the host included.
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
        (service, port): (&'w Service, &ServicePort),
        selected: &[usize],
        traffic: Traffic,
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
        self.listed((service, port), traffic, &mut candidates, &mut names);
        candidates.sort_unstable_by_key(|candidate| (candidate.address, candidate.port));
        candidates.dedup_by_key(|candidate| (candidate.address, candidate.port));
        Ok((candidates, names))
    }

    fn slices_of(&self, service: &'w Service) -> &[&'w EndpointSlice] {
        let ObjectName { namespace, name } = &service.name;
        self.slices.get(&(namespace.as_str(), name.as_str())).map_or(&[], Vec::as_slice)
    }

    /// Whether slices list anybody who is not on this host.
    fn has_elsewhere(&self, service: &'w Service) -> bool {
        self.slices_of(service)
            .iter()
            .flat_map(|slice| &slice.endpoints)
            .any(|endpoint| !self.is_here(endpoint.address))
    }

    fn is_here(&self, address: IpAddr) -> bool {
        self.uses.contains_key(&address)
    }

    /// What slices say.
    fn listed(
        &self,
        (service, port): (&'w Service, &ServicePort),
        traffic: Traffic,
        candidates: &mut Vec<Candidate>,
        names: &mut Vec<BackendName>,
    ) {
        let takes_part = |address| traffic == Traffic::Cluster || self.is_here(address);
        for slice in self.slices_of(service) {
            let behind = slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol);
            for number in behind.map(|port| port.port) {
                for endpoint in slice.endpoints.iter().filter(|endpoint| takes_part(endpoint.address)) {
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
