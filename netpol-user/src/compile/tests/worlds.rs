//! Worlds for tests: written out by hand in few words, or random.

use std::net::IpAddr;

use ipnet::IpNet;
use netpol_common::tables::{IfIndex, Network};
use proptest::{collection::vec, option, prelude::*, sample::select};

use crate::{
    compile::Workload,
    model::{
        Action, Direction, Endpoint, EndpointPort, EntityMatch, Expr, IcmpMatch, IpVersion, Labels, Match, NetworkSet,
        ObjectName, Origin, Policy, PolicyKind, PortMatch, Profile, Protocol, Rule, Scope, Selector, Tier, TierDefault,
        World,
    },
};

pub fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
}

pub fn nets(list: &[&str]) -> Vec<IpNet> {
    list.iter().map(|net| net.parse().unwrap()).collect()
}

pub fn at(line: u32) -> Origin {
    Origin { file: "policies.yaml".into(), line, column: 1 }
}

/// An endpoint in the namespace `x`, with the label `app` of its name.
pub fn endpoint(name: &str, address: &str) -> Endpoint {
    Endpoint {
        name: ObjectName { namespace: "x".into(), name: name.into() },
        labels: labels(&[("app", name)]),
        addresses: vec![address.parse().unwrap()],
        ports: Vec::new(),
        weight: 1,
        attachment: None,
        origin: at(0),
    }
}

/// Selects by the label `app`.
pub fn app(name: &str) -> Selector {
    Selector { scope: Scope::Any, labels: Expr::Eq("app".into(), name.into()) }
}

/// A policy in the namespace `x`; the line of each of its rules is their index.
pub fn policy(name: &str, subject: Selector, direction: Direction, rules: Vec<Rule>) -> Policy {
    let (ingress, egress) = match direction {
        Direction::Ingress => (Some(rules), None),
        Direction::Egress => (None, Some(rules)),
    };
    Policy {
        kind: PolicyKind::NetworkPolicy,
        namespace: Some("x".into()),
        name: name.into(),
        subject,
        ingress,
        egress,
        audit: false,
        origin: at(1000),
    }
}

pub fn rule(index: u32, action: Action, matches: Match) -> Rule {
    Rule { action, index, origin: at(index), matches }
}

pub fn tier(default: TierDefault, policies: Vec<Policy>) -> Tier {
    Tier { name: "default".into(), default, policies }
}

/// The first has interface number 1.
pub fn running(world: &World) -> Vec<Workload> {
    let one = |(endpoint, e): (usize, &Endpoint)| Workload {
        network: Network(7),
        master: IfIndex(100),
        segment: 1,
        mac: [2, 0, 0, 0, 0, endpoint as u8],
        router_mac: [2, 1, 0, 0, 0, endpoint as u8],
        ..Workload::at(endpoint, IfIndex(endpoint as u32 + 1), e.addresses.clone())
    };
    world.endpoints.iter().enumerate().map(one).collect()
}

// === random: strategies are boxed, as nested ones would fill the stack ===

/// The host's own addresses in random worlds.
pub const HOST: [&str; 4] = ["10.0.0.254", "192.0.2.200", "fd00::fe", "172.16.0.1"];

const NETS: [&str; 13] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.0.0.0/16",
    "10.0.1.0/24",
    "10.0.0.3/30",
    "10.0.0.1/32",
    "192.0.2.0/24",
    "192.0.2.128/25",
    "::/0",
    "fd00::/16",
    "fd00:1::/32",
    "fd00::2/127",
    "2001:db8::/32",
];

pub const PROTOCOLS: [Protocol; 8] = [
    Protocol::TCP,
    Protocol::UDP,
    Protocol::SCTP,
    Protocol::UDPLITE,
    Protocol::ICMP,
    Protocol::ICMPV6,
    Protocol(47),
    Protocol(0),
];

/// Around the ports of random rules.
pub const PORTS: [u16; 12] = [0, 1, 79, 80, 81, 443, 999, 1000, 2000, 2001, 65534, 65535];

fn some_nets(size: std::ops::Range<usize>) -> impl Strategy<Value = Vec<IpNet>> {
    vec(select(&NETS[..]), size).prop_map(|list| nets(&list))
}

fn some_labels() -> impl Strategy<Value = Labels> {
    (option::of(select(&["a", "b", "c"][..])), option::of(select(&["a", "ab"][..]))).prop_map(|(k, l)| {
        let pairs = [("k", k), ("l", l)];
        labels(&pairs.into_iter().filter_map(|(key, value)| Some((key, value?))).collect::<Vec<_>>())
    })
}

fn expr() -> BoxedStrategy<Expr> {
    let key = || select(&["k", "l", "m"][..]).prop_map(str::to_owned);
    let value = || select(&["a", "b", "ab"][..]).prop_map(str::to_owned);
    let leaf = prop_oneof![
        Just(Expr::All),
        key().prop_map(Expr::Has),
        (key(), value()).prop_map(|(k, v)| Expr::Eq(k, v)),
        (key(), value()).prop_map(|(k, v)| Expr::Ne(k, v)),
        (key(), vec(value(), 0..3)).prop_map(|(k, v)| Expr::In(k, v)),
        (key(), vec(value(), 0..3)).prop_map(|(k, v)| Expr::NotIn(k, v)),
        (key(), value()).prop_map(|(k, v)| Expr::Contains(k, v)),
        (key(), value()).prop_map(|(k, v)| Expr::StartsWith(k, v)),
        (key(), value()).prop_map(|(k, v)| Expr::EndsWith(k, v)),
    ];
    leaf.prop_recursive(2, 6, 2, |inner| {
        prop_oneof![
            inner.clone().prop_map(|e| Expr::Not(Box::new(e))),
            vec(inner.clone(), 0..3).prop_map(Expr::And),
            vec(inner, 0..3).prop_map(Expr::Or),
        ]
    })
    .boxed()
}

fn selector() -> BoxedStrategy<Selector> {
    let scope = prop_oneof![
        4 => Just(Scope::Any),
        2 => select(&["x", "y", "z"][..]).prop_map(|name| Scope::Namespace(name.into())),
        2 => expr().prop_map(Scope::Matching),
        1 => Just(Scope::Global),
    ];
    (scope, expr()).prop_map(|(scope, labels)| Selector { scope, labels }).boxed()
}

fn port() -> BoxedStrategy<PortMatch> {
    prop_oneof![
        3 => select(&PORTS[..]).prop_map(|port| PortMatch::Range(port..=port)),
        2 => select(&[1000..=2000, 80..=81, 0..=80, 443..=65535, 0..=65535][..]).prop_map(PortMatch::Range),
        2 => select(&["p", "q"][..]).prop_map(|name| PortMatch::Named(name.into())),
    ]
    .boxed()
}

/// Some of the time, so that most rules stay simple.
fn rarely<S: Strategy>(strategy: S) -> impl Strategy<Value = Option<S::Value>> {
    option::weighted(0.15, strategy)
}

fn entity() -> BoxedStrategy<EntityMatch> {
    let not_nets = option::weighted(0.2, some_nets(0..3)).prop_map(Option::unwrap_or_default);
    let not_ports = option::weighted(0.1, vec(port(), 0..3)).prop_map(Option::unwrap_or_default);
    (
        option::weighted(0.4, selector()),
        rarely(selector()),
        option::weighted(0.25, some_nets(0..4)),
        not_nets,
        option::weighted(0.25, vec(port(), 0..4)),
        not_ports,
    )
        .prop_map(|(selector, not_selector, nets, not_nets, ports, not_ports)| EntityMatch {
            selector,
            not_selector,
            nets,
            not_nets,
            ports,
            not_ports,
        })
        .boxed()
}

fn matches() -> BoxedStrategy<Match> {
    let icmp = || (option::of(select(&[0, 3, 8][..])), option::of(select(&[0, 1][..])));
    let icmp = || icmp().prop_map(|(kind, code)| IcmpMatch { kind, code });
    (
        rarely(select(&[IpVersion::V4, IpVersion::V6][..])),
        option::weighted(0.6, select(&PROTOCOLS[..])),
        rarely(select(&PROTOCOLS[..])),
        rarely(icmp()),
        rarely(icmp()),
        // the subject's own side is seldom constrained
        (entity(), entity(), any::<[bool; 2]>()),
    )
        .prop_map(|(version, protocol, not_protocol, icmp, not_icmp, (source, destination, keep))| Match {
            version,
            protocol,
            not_protocol,
            icmp,
            not_icmp,
            source: if keep[0] { source } else { EntityMatch::default() },
            destination: if keep[1] { destination } else { EntityMatch::default() },
        })
        .boxed()
}

fn rules(base: u32) -> BoxedStrategy<Vec<Rule>> {
    let action =
        prop_oneof![4 => Just(Action::Allow), 3 => Just(Action::Deny), 2 => Just(Action::Pass), 1 => Just(Action::Log)];
    vec((action, matches()), 0..5)
        .prop_map(move |rules| {
            let one = |(at_rule, (action, matches)): (usize, (Action, Match))| {
                // two of them are one rule of the document
                let index = at_rule as u32 / 2;
                Rule { action, index, origin: at(base + index), matches }
            };
            rules.into_iter().enumerate().map(one).collect()
        })
        .boxed()
}

fn some_policy(number: u32) -> BoxedStrategy<Policy> {
    let base = number * 100;
    // of two families: only one of them finds network sets
    let kind = select(&[PolicyKind::CalicoNetworkPolicy, PolicyKind::NetworkPolicy][..]);
    (kind, selector(), option::of(rules(base)), option::of(rules(base + 50)), prop::bool::weighted(0.1))
        .prop_map(move |(kind, subject, ingress, egress, audit)| Policy {
            kind,
            namespace: Some("x".into()),
            name: format!("policy-{number}"),
            subject,
            ingress,
            egress,
            audit,
            origin: at(base + 99),
        })
        .boxed()
}

fn some_tier(number: u32) -> BoxedStrategy<Tier> {
    let base = number * 10 + 1;
    let policies = (some_policy(base), some_policy(base + 1), some_policy(base + 2), 0..4usize);
    (policies, select(&[TierDefault::Deny, TierDefault::Pass][..]))
        .prop_map(move |((a, b, c, count), default)| Tier {
            name: format!("tier-{number}"),
            default,
            policies: [a, b, c].into_iter().take(count).collect(),
        })
        .boxed()
}

fn some_endpoint() -> impl Strategy<Value = (Labels, Vec<EndpointPort>, bool, bool)> {
    let named = (select(&["p", "q", "r"][..]), select(&PORTS[..]), select(&PROTOCOLS[..3]));
    let named = named.prop_map(|(name, port, protocol)| EndpointPort { name: Some(name.to_owned()), port, protocol });
    (some_labels(), vec(named, 0..3), any::<bool>(), any::<bool>())
}

/// Two to six endpoints; each has an IPv4 address, an IPv6 address or both.
pub fn world() -> impl Strategy<Value = World> {
    let set = (option::of(select(&["x", "y"][..])), some_labels(), some_nets(0..3));
    let tiers = (some_tier(0), some_tier(1), some_tier(2), 1..4usize);
    (vec(some_endpoint(), 2..7), vec(set, 0..3), tiers, prop::bool::weighted(0.8), some_labels()).prop_map(
        |(endpoints, sets, (a, b, c, tiers), open, of_y)| World {
            namespaces: [
                ("x".to_owned(), labels(&[("kubernetes.io/metadata.name", "x"), ("k", "a")])),
                ("y".to_owned(), of_y),
            ]
            .into(),
            endpoints: endpoints.into_iter().enumerate().map(numbered).collect(),
            sets: sets
                .into_iter()
                .enumerate()
                .map(|(i, (namespace, labels, nets))| NetworkSet {
                    namespace: namespace.map(str::to_owned),
                    name: format!("set-{i}"),
                    labels,
                    nets,
                    origin: at(0),
                })
                .collect(),
            tiers: [a, b, c].into_iter().take(tiers).collect(),
            profile: if open { Profile::Allow } else { Profile::Deny },
            ..World::default()
        },
    )
}

fn numbered((number, (labels, ports, four, six)): (usize, (Labels, Vec<EndpointPort>, bool, bool))) -> Endpoint {
    let addresses: [(bool, IpAddr); 2] = [
        (four || !six, [10, 0, (number % 2) as u8, number as u8].into()),
        (six, [0xfd00, (number % 2) as u16, 0, 0, 0, 0, 0, number as u16].into()),
    ];
    Endpoint {
        name: ObjectName { namespace: ["x", "y"][number / 2 % 2].into(), name: format!("e{number}") },
        labels,
        addresses: addresses.into_iter().filter_map(|(has, address)| has.then_some(address)).collect(),
        ports,
        weight: 1,
        attachment: None,
        origin: at(0),
    }
}
