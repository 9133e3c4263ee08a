//! Turns a [`World`] and what was found of it on this machine into a [`Snapshot`]: plain tables,
//! no kernel in sight.

use std::net::IpAddr;

use ipnet::{Ipv4Net, Ipv6Net};
use netpol_common::{
    tables::{
        AddressKey, AddressValue, HookValue, Identity, IfIndex, Network, PairKey, PairValue, PortKey, Range, Ruling,
    },
    wire::{Addr4, Addr6, Mac},
};

use crate::model::{Direction, ObjectName, Origin, PolicyKind, World};

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
    pub port_isolated: bool,
    pub routed: bool,
    pub addresses: Vec<IpAddr>,
}

/// One generation's tables, and the names of what is in them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub addresses4: Vec<(AddressKey<Addr4>, AddressValue)>,
    pub addresses6: Vec<(AddressKey<Addr6>, AddressValue)>,
    pub networks4: Vec<(Ipv4Net, Identity)>,
    pub networks6: Vec<(Ipv6Net, Identity)>,
    pub hooks: Vec<(IfIndex, HookValue)>,
    pub pairs: Vec<(PairKey, PairValue)>,
    pub ports: Vec<(PortKey, Ruling)>,
    pub ranges: Vec<Range>,
    /// By identity number from [`Identity::FIRST`].
    pub identities: Vec<IdentityName>,
    /// By rule number; the first stands for rule 1.
    pub rules: Vec<RuleName>,
}

/// Who shares an identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityName {
    pub endpoints: Vec<ObjectName>,
    /// For identities of outside addresses: the prefixes.
    pub networks: Vec<ipnet::IpNet>,
}

/// What a rule number stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleName {
    pub kind: PolicyKind,
    pub namespace: Option<String>,
    pub name: String,
    pub direction: Direction,
    /// `None`: the default deny at the end of the policy's tier.
    pub index: Option<u32>,
    pub origin: Origin,
}
