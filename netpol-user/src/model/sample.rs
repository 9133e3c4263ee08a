//! Worlds built by hand, for tests.

use super::{
    Action, Endpoint, EndpointPort, EntityMatch, Expr, IpVersion, Labels, Match, ObjectName, Opening, Origin, Party,
    Policy, PolicyKind, PortMatch, Profile, Protocol, Rule, Scope, Selector, Tier, TierDefault, World,
};

pub fn labels(text: &str) -> Labels {
    let pairs = text.split(',').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

/// An endpoint `namespace/name` with the label `name=NAME` and these addresses (comma-separated).
pub fn endpoint(name: &str, addresses: &str) -> Endpoint {
    let (namespace, name) = name.split_once('/').expect("namespace/name");
    let addresses = addresses.split(',').filter(|address| !address.is_empty());
    Endpoint {
        name: ObjectName { namespace: namespace.to_owned(), name: name.to_owned() },
        labels: labels(&format!("name={name}")),
        addresses: addresses.map(|address| address.parse().expect("an address")).collect(),
        ports: vec![],
        weight: 1,
        attachment: None,
        origin: origin("endpoints.yaml", 1),
    }
}

pub fn port(name: &str, port: u16, protocol: Protocol) -> EndpointPort {
    EndpointPort { name: (!name.is_empty()).then(|| name.to_owned()), port, protocol }
}

/// Without policies; each namespace has the label `kubernetes.io/metadata.name`.
pub fn world(endpoints: &[Endpoint]) -> World {
    let mut world = World { endpoints: endpoints.to_vec(), ..World::default() };
    for endpoint in endpoints {
        let name = &endpoint.name.namespace;
        world.namespaces.insert(name.clone(), labels(&format!("kubernetes.io/metadata.name={name}")));
    }
    world
}

pub fn origin(file: &str, line: u32) -> Origin {
    Origin { file: file.into(), line, column: 1 }
}

pub fn named(name: &str) -> Selector {
    Selector { scope: Scope::Any, labels: Expr::Eq("name".to_owned(), name.to_owned()) }
}

/// A GlobalNetworkPolicy about every endpoint, without rules for either direction.
pub fn policy(name: &str) -> Policy {
    Policy {
        kind: PolicyKind::GlobalNetworkPolicy,
        namespace: None,
        name: name.to_owned(),
        subject: Selector::EVERYTHING,
        ingress: None,
        egress: None,
        audit: false,
        origin: origin("policies.yaml", 10),
    }
}

pub fn tier(name: &str, default: TierDefault, policies: Vec<Policy>) -> Tier {
    Tier { name: name.to_owned(), default, policies }
}

pub fn rule(action: Action, matches: Match) -> Rule {
    Rule { action, index: 0, origin: origin("policies.yaml", 12), matches }
}

pub fn from(source: EntityMatch) -> Match {
    Match { source, ..Match::default() }
}

pub fn to(destination: EntityMatch) -> Match {
    Match { destination, ..Match::default() }
}

pub fn range(first: u16, last: u16) -> PortMatch {
    PortMatch::Range(first..=last)
}

pub fn tcp(destination_port: u16) -> Opening {
    Opening { protocol: Protocol::TCP, source_port: 40_000, destination_port, icmp: None }
}

/// The endpoint at that index, with its first address.
pub fn party(world: &World, index: usize) -> Party {
    Party::Endpoint { index, address: world.endpoints[index].addresses.first().copied() }
}

pub const V4: Option<IpVersion> = Some(IpVersion::V4);
pub const V6: Option<IpVersion> = Some(IpVersion::V6);
pub const DENY: Profile = Profile::Deny;
