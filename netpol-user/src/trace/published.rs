//! Services by port, and who is behind each: from documents, where every endpoint is taken for running, or from the names
//! of what is loaded.

use std::{collections::HashMap, net::IpAddr};

use netpol_common::{
    tables::{IfIndex, Network},
    wire::Protocol,
};

use crate::{
    compile::{self, BackendName, CompileError, ServiceName, Workload},
    model::{ObjectName, Origin, Weight, World},
    state::{self, Health, Names},
};

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub name: ObjectName,
    pub port: u16,
    pub protocol: Protocol,
    /// The port that is published at the host's addresses.
    pub node_port: Option<u16>,
    /// For how many seconds a client address keeps its backend.
    pub affinity: Option<u32>,
    /// Where its port is written.
    pub origin: Origin,
    /// Where it is published, with the port there.
    pub addresses: Vec<(IpAddr, u16)>,
    pub backends: Vec<Backend>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Index into [`World::endpoints`]; `None`: a slice lists its address.
    pub endpoint: Option<usize>,
    /// `None`: the documents do not say.
    pub address: Option<IpAddr>,
    pub port: u16,
    pub weight: Weight,
    pub state: Health,
}

impl Service {
    /// It publishes something at a port of that number: its own, or one of the host's.
    pub fn has_port(&self, port: u16) -> bool {
        self.port == port || self.node_port == Some(port) || self.addresses.iter().any(|(_, at)| *at == port)
    }
}

/// What the documents publish.
///
/// # Errors
/// What could not be published if all of it ran: see [`CompileError`].
pub fn of_documents(world: &World) -> Result<Vec<Service>, CompileError> {
    let paper = |(index, addresses): (usize, &Vec<IpAddr>)| Workload {
        // on paper nobody knows who shares a network
        network: Network(index as u32 + 1),
        ..Workload::at(index, IfIndex(index as u32 + 1), addresses.clone())
    };
    let placed = world.endpoints.iter().map(|endpoint| &endpoint.addresses).enumerate();
    let workloads: Vec<_> = placed.filter(|(_, addresses)| !addresses.is_empty()).map(paper).collect();
    let endpoints = Endpoints::new(world);
    let backend = |BackendName { endpoint, address, port, weight, state }: &BackendName| Backend {
        endpoint: endpoint.as_ref().and_then(|name| endpoints.find(&name.to_string())),
        address: *address,
        port: *port,
        weight: *weight,
        state: match state {
            compile::BackendState::NotReady => Health::NotReady,
            compile::BackendState::Ready => Health::Ready,
            // pending is who has no address on paper
            compile::BackendState::Running | compile::BackendState::Pending => Health::Running,
        },
    };
    let service = |found: &ServiceName| {
        let (node_port, origin) = written(world, &found.service, (found.port, found.protocol), &found.addresses);
        Service {
            name: found.service.clone(),
            port: found.port,
            protocol: found.protocol,
            node_port,
            affinity: found.affinity,
            origin,
            // the host's addresses are not known, but localhost
            addresses: found.addresses.iter().copied().filter(|(address, _)| !address.is_loopback()).collect(),
            backends: found.backends.iter().map(backend).collect(),
        }
    };
    Ok(compile::published(world, &workloads)?.iter().map(service).collect())
}

/// What is published, by the names of what is loaded. `world` is what its documents say.
pub fn of_names(world: &World, names: &Names) -> Vec<Service> {
    let endpoints = Endpoints::new(world);
    let backend = |found: &state::Backend| Backend {
        endpoint: found.endpoint.as_ref().and_then(|name| endpoints.find(name)),
        address: found.address,
        port: found.port,
        weight: found.weight,
        state: found.state,
    };
    let service = |found: &state::Service| {
        let name = ObjectName { namespace: found.namespace.clone(), name: found.name.clone() };
        let protocol = protocol(&found.protocol);
        let addresses: Vec<_> = found.addresses.iter().map(|place| (place.address, place.port)).collect();
        let (node_port, origin) = written(world, &name, (found.port, protocol), &addresses);
        Service {
            name,
            port: found.port,
            protocol,
            node_port,
            affinity: found.affinity,
            origin,
            addresses,
            backends: found.backends.iter().map(backend).collect(),
        }
    };
    names.services.iter().map(service).collect()
}

/// The node port of a service's port, if it is published at these addresses, and where the port is written.
fn written(
    world: &World,
    name: &ObjectName,
    (port, protocol): (u16, Protocol),
    addresses: &[(IpAddr, u16)],
) -> (Option<u16>, Origin) {
    let service = world.services.iter().find(|service| service.name == *name);
    let found = service.and_then(|service| service.ports.iter().find(|p| (p.port, p.protocol) == (port, protocol)));
    let origin = found.map(|found| &found.origin).or(service.map(|service| &service.origin));
    let node_port = found.and_then(|found| found.node_port);
    let is_here = |number: &u16| addresses.iter().any(|(_, port)| port == number);
    (node_port.filter(is_here), origin.cloned().unwrap_or_default())
}

/// The reverse of its name, as the file of names has it.
fn protocol(name: &str) -> Protocol {
    let known = [Protocol::TCP, Protocol::UDP, Protocol::SCTP, Protocol::UDPLITE];
    known.into_iter().find(|protocol| protocol.to_string() == name).unwrap_or(Protocol(0))
}

/// Endpoints by their full names.
struct Endpoints(HashMap<String, usize>);

impl Endpoints {
    fn new(world: &World) -> Self {
        Self(world.endpoints.iter().enumerate().map(|(index, endpoint)| (endpoint.name.to_string(), index)).collect())
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.0.get(name).copied()
    }
}
