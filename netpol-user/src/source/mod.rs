//! Who is running here: endpoints found over netlink.
//!
//! An endpoint names a network namespace. Discovery looks inside for its interface and addresses,
//! then finds the other end of that veth here, in the namespace that the command runs in: there
//! the classifiers will be. What can't be found is pending, with the reason; what is ambiguous is
//! an error, because guessing would enforce a policy on the wrong interface.
//!
//! | file | one idea |
//! |---|---|
//! | `inside` | one visit to an endpoint's namespace |
//! | `claims` | whose an address is |
//! | `host` | this namespace: interfaces, bridges, addresses, settings |
//! | `delivery` | whether the kernel would take a packet straight from one endpoint to another |
//! | `netfilter` | which rules would see that packet |
//! | `outward` | the same between an endpoint and an uplink |
//! | `uplinks` | the interfaces to the outside |
//! | `route` | where the host would send something |
//! | `links` | what the kernel tells of interfaces, addresses and routes |

mod claims;
mod delivery;
mod host;
mod inside;
mod links;
mod netfilter;
mod outward;
mod route;
mod uplinks;

use std::{collections::HashMap, io, net::IpAddr};

use netpol_common::tables::{IfIndex, Network};

pub use claims::{Address, Known, Reason, Refused, Seen};
pub use delivery::Delivery;
pub use links::PortState;
pub use outward::outward;
pub use route::route;
pub use uplinks::{Uplink, uplinks};

use crate::{
    compile::Workload,
    format::Diagnostic,
    model::{Endpoint, World},
    netns::NamespaceId,
    privileges,
};
use host::Host;
use inside::{Inside, Obstacle};

/// What discovery found of a world on this machine.
#[derive(Clone, Debug)]
pub struct Discovery {
    /// The namespace that all of this is about: the calling thread's.
    pub namespace: NamespaceId,
    /// In the order of [`World::endpoints`].
    pub workloads: Vec<Found>,
    /// Endpoints that have a place to be but are not there.
    pub pending: Vec<Pending>,
    /// Addresses that endpoints have and that are not believed.
    pub refused: Vec<Refused>,
    /// What the next discovery is to know.
    pub seen: Vec<Seen>,
    /// Addresses of this namespace itself, also those not usable yet.
    pub host_addresses: Vec<IpAddr>,
    /// All bridges of this namespace.
    pub bridges: Vec<Bridge>,
}

/// A running endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub workload: Workload,
    /// The host end of its veth, where the classifiers are attached.
    pub interface: String,
    /// Its own interface, in its namespace.
    pub container_interface: String,
    /// The endpoint's own namespace.
    pub namespace: NamespaceId,
    pub delivery: Delivery,
    /// The same for what passes the uplinks: see [`outward`].
    pub outside: Delivery,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Index into [`World::endpoints`].
    pub endpoint: usize,
    /// What is missing, where, and what to do.
    pub reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge {
    pub ifindex: IfIndex,
    pub name: String,
    pub up: bool,
    pub vlan_filtering: bool,
    pub ports: Vec<BridgePort>,
}

/// A port of a bridge, whether or not an endpoint is behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgePort {
    pub ifindex: IfIndex,
    pub name: String,
    /// Index into [`World::endpoints`]; `None`: nothing of ours is behind it.
    pub endpoint: Option<usize>,
    pub isolated: bool,
    pub state: PortState,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Privileges(#[from] privileges::Error),
    #[error("can't read {what} of this network namespace")]
    Kernel {
        what: &'static str,
        #[source]
        error: io::Error,
    },
    #[error("--uplink {name}: there is no interface of this name; `ip link` shows them")]
    NoUplink { name: String },
    #[error("--uplink {name}: endpoints are behind it; name the interface that leads outside")]
    InnerUplink { name: String },
    #[error(
        "--uplink {name}: its packets have no Ethernet header (a tunnel?); only Ethernet interfaces can be uplinks"
    )]
    BareUplink { name: String },
    /// About the documents: what they say can mean several things here.
    #[error("{}", summary(.0))]
    Endpoints(Vec<Diagnostic>),
}

fn summary(diagnostics: &[Diagnostic]) -> String {
    let lines = diagnostics.iter().map(|Diagnostic { origin, message, help }| {
        let help = help.as_ref().map(|help| format!(" ({help})")).unwrap_or_default();
        format!("{origin}: {message}{help}")
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The network that routed endpoints share; bridges have their own interface's number, which is
/// never this one: it is the loopback's.
pub const ROUTED: Network = Network(1);

/// The addresses of this network namespace, where the host ends are.
///
/// # Errors
/// What the kernel does not tell.
pub fn host_addresses() -> Result<Vec<IpAddr>, Error> {
    Ok(Host::read()?.addresses)
}

/// Finds the endpoints of `world`, seen from the calling thread's namespace.
pub fn discover(world: &World, known: Known<'_>) -> Result<Discovery, Error> {
    let attached = world.endpoints.iter().enumerate().filter(|(_, endpoint)| endpoint.attachment.is_some());
    let attached: Vec<(usize, &Endpoint)> = attached.collect();
    if !attached.is_empty() {
        privileges::require(&[privileges::ENTER_NAMESPACES, privileges::READ_NETFILTER])?;
    }
    let visits = inside::visit(&attached)?;
    let mut host = Host::read()?;

    let mut found = Vec::new();
    let mut pending = Vec::new();
    let mut wrong = Vec::new();
    for ((endpoint, document), visit) in attached.into_iter().zip(visits) {
        match visit.and_then(|inside| host.pair(endpoint, inside)) {
            Ok(one) => found.push(one),
            Err(Obstacle::Pending(reason)) => pending.push(Pending { endpoint, reason }),
            // it was right once: nobody else's load fails for what is done inside
            Err(Obstacle::Changed { message: reason, .. }) if known.has_seen(&document.name) => {
                pending.push(Pending { endpoint, reason });
            }
            Err(Obstacle::Wrong { message, help } | Obstacle::Changed { message, help }) => wrong.push(Diagnostic {
                origin: document.origin.clone(),
                message: format!("endpoint {}: {message}", document.name),
                help: Some(help),
            }),
        }
    }
    wrong.extend(shared_interfaces(world, &found));
    let settled = claims::settle(world, (&mut found, &pending), &host.addresses, known);
    wrong.extend(settled.wrong);
    host.deliver(&mut found)?;
    if !wrong.is_empty() {
        return Err(Error::Endpoints(wrong));
    }
    Ok(Discovery {
        namespace: host.namespace,
        bridges: host.bridges(&found),
        host_addresses: host.addresses,
        workloads: found,
        pending,
        refused: settled.refused,
        seen: settled.seen,
    })
}

/// Two endpoints on one interface.
fn shared_interfaces(world: &World, found: &[Found]) -> Vec<Diagnostic> {
    let mut interfaces = HashMap::new();
    let mut shared = Vec::new();
    for Found { workload, interface, .. } in found {
        let Some(first) = interfaces.insert(workload.ifindex.0, workload.endpoint) else { continue };
        let [first, second] = [first, workload.endpoint].map(|index| &world.endpoints[index]);
        shared.push(Diagnostic {
            origin: second.origin.clone(),
            message: format!("endpoints {} and {} are both the interface behind {interface}", first.name, second.name),
            help: Some("give each its own `spec.netns` or `spec.interface`".to_owned()),
        });
    }
    shared
}

/// 169.254.0.0/16 and fe80::/10: they mean something only on one link.
fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}
