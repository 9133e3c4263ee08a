//! Turns a [`World`] and what was found of it on this machine into a [`Snapshot`]: plain tables,
//! no kernel in sight.
//!
//! | module | one idea |
//! |---|---|
//! | `rules` | what is enforced or audited, in order, numbered |
//! | `select` | whom a selector chooses |
//! | `identity` | who looks the same to all rules shares a number |
//! | `shape` | what one rule says about one protocol: rectangles of ports |
//! | `table` | an ordered list of rules as ports and ranges that need no order of policies any more |
//! | `pairs` | which table holds between a subject and a peer |
//! | `addresses` | who is behind an address, and whose is translated on the way out |
//! | `services` | who answers at a published address |
//! | `maglev` | which backend each client gets, so that it hardly ever changes |
//! | [`lookup`] | the way back: what the tables say, as the kernel would read them |
//!
//! The same input gives the same tables, in whatever order endpoints were found.

mod addresses;
mod bits;
mod identity;
pub mod lookup;
mod maglev;
mod pairs;
mod rules;
mod select;
mod services;
mod shape;
mod table;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use ipnet::{Ipv4Net, Ipv6Net};
use netpol_common::{
    kernel::Settings,
    service::{Backend, MemberKey, ServiceKey, ServiceValue, Uplink},
    tables::{
        AddressKey, AddressValue, HookValue, Identity, IfIndex, Network, PairKey, PairValue, PortKey, Range, Ruling,
    },
    wire::{Addr4, Addr6, Address, Mac, Protocol},
};

use self::{
    addresses::{Found, Marks},
    identity::Identities,
    rules::Book,
};
use crate::model::{Direction, ObjectName, Origin, PolicyKind, Weight, World};

/// Compiles what `world` says for the endpoints that run. `host` has the host's own addresses.
///
/// # Errors
/// What the tables can't hold, and what was found twice where it must be unique: see [`CompileError`].
pub fn compile(world: &World, workloads: &[Workload], host: &[IpAddr]) -> Result<Snapshot, CompileError> {
    let book = Book::new(world)?;
    let identities = Identities::new(world, workloads, &book);
    let mut snapshot = Snapshot::default();
    pairs::fill(&mut snapshot, &book, &identities, world.profile)?;
    let marks = Marks { isolated: identities.isolated(&book, world), audited: identities.audited(&book, world) };
    let found = Found { world, workloads, host };
    addresses::fill(&mut snapshot, &found, &identities, &marks)?;
    addresses::pools(&mut snapshot, world);
    services::fill(&mut snapshot, &found)?;
    let Identities { names, networks4, networks6, .. } = identities;
    Ok(Snapshot { networks4, networks6, identities: names, rules: book.names, ..snapshot })
}

/// What `world` publishes when these endpoints run: names alone, no tables.
///
/// # Errors
/// As [`compile`], about services.
pub fn published(world: &World, workloads: &[Workload]) -> Result<Vec<ServiceName>, CompileError> {
    let mut snapshot = Snapshot::default();
    services::fill(&mut snapshot, &Found { world, workloads, host: &[] })?;
    Ok(snapshot.services)
}

/// Why a world can't be compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// `rule` has most of them.
    #[error(
        "too many port ranges for one pair of endpoints: {count}, at most {} fit{}; split or simplify the lists of ports",
        netpol_common::tables::MAX_RANGES,
        rule.as_ref().map(|rule| format!(" (most are of {rule})")).unwrap_or_default()
    )]
    TooManyRanges { count: usize, rule: Option<Box<RuleName>> },
    #[error("too many rules: {count}, at most {} fit", netpol_common::tables::RuleId::MAX.0)]
    TooManyRules { count: usize },
    #[error("too many pairs of identities that rules tell apart: more than {most}")]
    TooManyPairs { most: usize },
    #[error("{one} and {} have the same address {address} in the same network", Self::owner(two))]
    AddressTwice {
        address: IpAddr,
        one: ObjectName,
        /// `None`: the host itself.
        two: Option<ObjectName>,
    },
    #[error(
        "services {one} and {two} both publish {address} port {port}/{protocol}, an address of the host; \
         give one of them another port"
    )]
    ServiceTwice { address: IpAddr, port: u16, protocol: Protocol, one: ObjectName, two: ObjectName },
    #[error("service {service} has the address {address}, which is endpoint {endpoint}'s; give it one that nobody has")]
    ServiceAtEndpoint { address: IpAddr, service: ObjectName, endpoint: ObjectName },
    #[error(
        "service {service} cannot tell its backend {endpoint} from others: {address} is somebody else's, too; \
         give the endpoint an address of its own"
    )]
    BackendTwice { service: ObjectName, endpoint: ObjectName, address: IpAddr },
    #[error("{one} and {two} are behind the same interface (number {ifindex})")]
    InterfaceTwice { ifindex: u32, one: ObjectName, two: ObjectName },
}

/// An endpoint that was found running: what discovery knows of its interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Index into [`World::endpoints`].
    pub endpoint: usize,
    /// The host end of its veth.
    pub ifindex: IfIndex,
    pub network: Network,
    pub master: IfIndex,
    /// See [`AddressValue::segment`].
    pub segment: u32,
    pub mac: Mac,
    pub host_mac: Mac,
    /// MAC address of its next hop to other networks: the bridge's, or the host end's of what is routed.
    pub router_mac: Mac,
    /// Between it and the uplinks is the host's routing alone: see [`AddressFlags::OUTWARD`].
    pub outward: bool,
    pub port_isolated: bool,
    pub routed: bool,
    pub addresses: Vec<IpAddr>,
}

impl Workload {
    /// Of which nothing is known but this; in nobody's network, and delivered to by the host's stack.
    pub fn at(endpoint: usize, ifindex: IfIndex, addresses: Vec<IpAddr>) -> Self {
        Self {
            endpoint,
            ifindex,
            network: Network::SHARED,
            master: IfIndex::NONE,
            segment: 0,
            mac: [0; 6],
            host_mac: [0; 6],
            router_mac: [0; 6],
            outward: false,
            port_isolated: false,
            routed: false,
            addresses,
        }
    }
}

/// One generation's tables, and the names of what is in them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Snapshot {
    pub addresses4: Vec<(AddressKey<Addr4>, AddressValue)>,
    pub addresses6: Vec<(AddressKey<Addr6>, AddressValue)>,
    pub networks4: Vec<(Ipv4Net, Identity)>,
    pub networks6: Vec<(Ipv6Net, Identity)>,
    pub hooks: Vec<(IfIndex, HookValue)>,
    pub pairs: Vec<(PairKey, PairValue)>,
    pub ports: Vec<(PortKey, Ruling)>,
    pub ranges: Vec<Range>,
    pub services4: Vec<(ServiceKey<Addr4>, ServiceValue)>,
    pub services6: Vec<(ServiceKey<Addr6>, ServiceValue)>,
    pub backends4: Vec<Backend<Addr4>>,
    pub backends6: Vec<Backend<Addr6>>,
    /// The Maglev tables of all services: indexes into the family's backends.
    pub maglev: Vec<u32>,
    pub members4: Vec<(MemberKey<Addr4>, u32)>,
    pub members6: Vec<(MemberKey<Addr6>, u32)>,
    pub pools4: Vec<Ipv4Net>,
    pub pools6: Vec<Ipv6Net>,
    /// What discovery found: no document says it.
    pub uplinks: Vec<(IfIndex, Uplink)>,
    /// By service number; the first stands for number 1.
    pub services: Vec<ServiceName>,
    /// By identity number from [`Identity::FIRST`].
    pub identities: Vec<IdentityName>,
    /// By rule number; the first stands for rule 1.
    pub rules: Vec<RuleName>,
}

/// What a service number stands for: one port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceName {
    pub service: ObjectName,
    pub port_name: Option<String>,
    pub port: u16,
    pub protocol: Protocol,
    /// In seconds.
    pub affinity: Option<u32>,
    /// Where it is published, with the port there.
    pub addresses: Vec<(IpAddr, u16)>,
    pub backends: Vec<BackendName>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BackendName {
    /// `None`: a slice lists its address.
    pub endpoint: Option<ObjectName>,
    /// `None`: the endpoint does not run, and its document has no address.
    pub address: Option<IpAddr>,
    pub port: u16,
    pub weight: Weight,
    pub state: BackendState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BackendState {
    /// An endpoint that was found.
    Running,
    /// An endpoint that does not run: it gets nothing.
    Pending,
    /// A slice says so.
    Ready,
    /// A slice says so: it gets nothing.
    NotReady,
}

impl Snapshot {
    /// Whether any address is translated: else no packet need look for it.
    pub fn translates(&self) -> bool {
        !(self.services4.is_empty() && self.services6.is_empty() && self.pools4.is_empty() && self.pools6.is_empty())
    }

    /// What the settings say about services' backends that are not on this host: at which ports there are none.
    pub fn nobody_outside(&self) -> Settings {
        let ports = outside(&self.members4).map(|key| key.backend_port);
        let ports = ports.chain(outside(&self.members6).map(|key| key.backend_port));
        let all = Settings::NOBODY_OUTSIDE;
        ports.map(Settings::nobody_outside).fold(all, |rest, Settings(there)| Settings(rest.0 & !there))
    }
}

/// Services' backends that are not on this host.
fn outside<A: Address>(members: &[(MemberKey<A>, u32)]) -> impl Iterator<Item = &MemberKey<A>> {
    members.iter().map(|(key, _)| key).filter(|key| key.is_of_any())
}

/// Who shares an identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IdentityName {
    pub endpoints: Vec<ObjectName>,
    /// For identities of outside addresses: the prefixes.
    pub networks: Vec<ipnet::IpNet>,
}

/// What a rule number stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RuleName {
    pub kind: PolicyKind,
    pub namespace: Option<String>,
    pub name: String,
    pub direction: Direction,
    /// `None`: the default deny at the end of the policy's tier.
    pub index: Option<u32>,
    pub origin: Origin,
}

impl std::fmt::Display for RuleName {
    /// `Kind namespace/name, ingress rule 2 (file:line)`: rules count from 1 here.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kind, namespace, name, direction, index, origin } = self;
        write!(f, "{} ", kind.as_str())?;
        if let Some(namespace) = namespace {
            write!(f, "{namespace}/")?;
        }
        let direction = match direction {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        };
        match index {
            Some(index) => write!(f, "{name}, {direction} rule {} ({origin})", u64::from(*index) + 1),
            None => write!(f, "{name}, {direction} default deny ({origin})"),
        }
    }
}
