//! Services and pools: what is published, who answers, and whose address is translated on the way out.
//!
//! 1. A [`Service`] publishes each of its [`ServicePort`]s at its own addresses, and where the port has a
//!    [`ServicePort::node_port`], at every address of the host.
//! 2. Behind it are the endpoints that [`Service::selector`] selects, and what [`EndpointSlice`]s list for it.
//! 3. What an address in a [`Pool`] with [`Pool::nat_outgoing`] sends to outside of all pools carries the
//!    address of the uplink that it leaves through.

use std::net::IpAddr;

use ipnet::IpNet;
use netpol_common::wire::Protocol;

use super::{IpVersion, ObjectName, Origin, Selector};

/// How often a backend is chosen, compared with the others: 1 to [`MAX_WEIGHT`].
pub type Weight = u8;
pub const MAX_WEIGHT: Weight = 100;

/// What is published, and who answers.
#[derive(Clone, Debug)]
pub struct Service {
    pub name: ObjectName,
    /// `None`: only slices say who answers.
    pub selector: Option<Selector>,
    pub addresses: Vec<ServiceAddress>,
    /// Who answers at its own addresses.
    pub internal_traffic: Traffic,
    /// Who answers at external ones, and at node ports.
    pub external_traffic: Traffic,
    /// Node ports are published in this family alone; `None`: in both.
    pub family: Option<IpVersion>,
    /// How many seconds a client address keeps its backend; `None`: each connection by itself.
    pub affinity: Option<u32>,
    /// Backends that say they are not ready answer, too.
    pub publish_not_ready: bool,
    pub ports: Vec<ServicePort>,
    pub origin: Origin,
}

/// An address of a service's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAddress {
    pub address: IpAddr,
    pub is_external: bool,
    /// Where it is written.
    pub origin: Origin,
}

/// Which backends take part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Traffic {
    #[default]
    Cluster,
    /// Those on this host: endpoints, and the host itself.
    Local,
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// A slice's port of the same name is behind it.
    pub name: Option<String>,
    pub protocol: Protocol,
    pub port: u16,
    pub target: Target,
    /// The port that is published at the host's addresses.
    pub node_port: Option<u16>,
    pub origin: Origin,
}

/// A port of the selected endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Number(u16),
    /// The port that the endpoint declares by that name for the protocol.
    Named(String),
}

/// Backends of a service that are listed by their addresses.
#[derive(Clone, Debug)]
pub struct EndpointSlice {
    pub name: ObjectName,
    /// In the slice's own namespace; `None`: it belongs to no service.
    pub service: Option<String>,
    pub endpoints: Vec<SliceEndpoint>,
    pub ports: Vec<SlicePort>,
    pub weight: Weight,
    pub origin: Origin,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    pub address: IpAddr,
    pub ready: bool,
    pub origin: Origin,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    pub name: Option<String>,
    pub protocol: Protocol,
    pub port: u16,
}

/// A range of addresses that endpoints have.
#[derive(Clone, Debug)]
pub struct Pool {
    pub name: String,
    pub cidr: IpNet,
    pub nat_outgoing: bool,
    /// Nothing that its addresses send is translated; they are inside of a pool all the same.
    pub disabled: bool,
    pub origin: Origin,
}

impl Pool {
    /// What its addresses send to outside of all pools gets another source address.
    pub const fn masquerades(&self) -> bool {
        self.nat_outgoing && !self.disabled
    }
}

impl ServicePort {
    /// `namespace/name:port`, with the port's name where it has one.
    pub fn title(&self, service: &ObjectName) -> String {
        let port = self.name.clone().unwrap_or_else(|| self.port.to_string());
        format!("{service}:{port}")
    }
}
