//! Whatever the documents are, the tables say what [`judge`] says, for the same reason.

use std::{collections::HashMap, net::IpAddr};

use netpol_common::{
    policy::{PolicyTables, Probe, verdict},
    tables::{
        AddressFlags, AddressValue, Identity, Network, PairKey, PairValue, PortKey, Range, RuleId, Ruling, Subject,
    },
};
use proptest::{collection::vec, prelude::*, sample::select};

use super::worlds;
use crate::{
    compile::{RuleName, Snapshot, Workload, compile, lookup::Tables},
    model::{Decision, Direction, Opening, Party, Profile, Question, Reason, Regime, World, judge},
};

/// What the kernel has, looked up in the plainest way.
struct Kernel<'s> {
    snapshot: &'s Snapshot,
    pairs: HashMap<PairKey, PairValue>,
    ports: HashMap<PortKey, Ruling>,
}

impl<'s> Kernel<'s> {
    fn new(snapshot: &'s Snapshot) -> Self {
        let (pairs, ports): (HashMap<_, _>, HashMap<_, _>) =
            (snapshot.pairs.iter().copied().collect(), snapshot.ports.iter().copied().collect());
        assert_eq!(pairs.len(), snapshot.pairs.len(), "a pair twice");
        assert_eq!(ports.len(), snapshot.ports.len(), "a port twice");
        Self { snapshot, pairs, ports }
    }

    fn exact(&self, network: Network, address: IpAddr) -> Option<AddressValue> {
        let four = self.snapshot.addresses4.iter().map(|(k, v)| (k.network, IpAddr::from(k.address), v));
        let six = self.snapshot.addresses6.iter().map(|(k, v)| (k.network, IpAddr::from(k.address), v));
        let mut found: Vec<_> = four.chain(six).filter(|&(n, a, _)| n == network && a == address).collect();
        assert!(found.len() <= 1, "{address} twice");
        found.pop().map(|(.., value)| *value)
    }

    fn identity(&self, network: Network, address: IpAddr) -> Identity {
        if let Some(value) = self.exact(network, address).or_else(|| self.exact(Network::SHARED, address)) {
            return value.identity;
        }
        let best = match address {
            IpAddr::V4(address) => {
                let nets = self.snapshot.networks4.iter().filter(|(net, _)| net.contains(&address));
                nets.max_by_key(|(net, _)| net.prefix_len()).map(|(_, identity)| *identity)
            }
            IpAddr::V6(address) => {
                let nets = self.snapshot.networks6.iter().filter(|(net, _)| net.contains(&address));
                nets.max_by_key(|(net, _)| net.prefix_len()).map(|(_, identity)| *identity)
            }
        };
        best.unwrap_or(Identity::WORLD)
    }
}

impl PolicyTables for Kernel<'_> {
    fn pair(&self, key: &PairKey) -> Option<&PairValue> {
        self.pairs.get(key)
    }

    fn port(&self, key: &PortKey) -> Option<&Ruling> {
        self.ports.get(key)
    }

    fn range(&self, index: u32) -> Option<&Range> {
        self.snapshot.ranges.get(index as usize)
    }
}

const OUTSIDE: [&str; 9] =
    ["10.0.0.9", "10.0.1.200", "10.3.0.1", "8.8.8.8", "192.0.2.1", "192.0.2.129", "fd00::99", "2001:db8::1", "2600::1"];

fn opening() -> impl Strategy<Value = Opening> {
    let ports = || select(&worlds::PORTS[..]);
    let icmp = (select(&[0u8, 3, 8, 255][..]), select(&[0u8, 1, 255][..]));
    (select(&worlds::PROTOCOLS[..]), ports(), ports(), icmp).prop_map(|(protocol, source, destination, icmp)| {
        let has_ports = protocol.has_ports();
        Opening {
            protocol,
            source_port: if has_ports { source } else { 0 },
            destination_port: if has_ports { destination } else { 0 },
            icmp: protocol.is_icmp().then_some(icmp),
        }
    })
}

fn probe(opening: Opening) -> Probe {
    let Opening { protocol, source_port, destination_port, icmp } = opening;
    let message = icmp.map(|(kind, code)| u16::from_be_bytes([kind, code]));
    Probe { protocol, source_port, destination_port: message.unwrap_or(destination_port) }
}

/// The name that the rule which decided should have.
fn named(world: &World, direction: Direction, reason: Reason) -> Option<RuleName> {
    let (tier, policy, rule) = match reason {
        Reason::Rule { tier, policy, rule } => (tier, policy, Some(rule)),
        Reason::TierDefault { tier, policy } => (tier, policy, None),
        Reason::Profile => return None,
    };
    let policy = &world.tiers[tier].policies[policy];
    let rule = rule.map(|rule| &policy.rules(direction).unwrap()[rule]);
    Some(RuleName {
        kind: policy.kind,
        namespace: policy.namespace.clone(),
        name: policy.name.clone(),
        direction,
        index: rule.map(|rule| rule.index),
        origin: rule.map_or(&policy.origin, |rule| &rule.origin).clone(),
    })
}

fn parties(world: &World) -> Vec<(Party, IpAddr)> {
    let ends = world.endpoints.iter().enumerate().flat_map(|(index, endpoint)| {
        let one = move |&address: &IpAddr| (Party::Endpoint { index, address: Some(address) }, address);
        endpoint.addresses.iter().map(one)
    });
    let others = OUTSIDE.iter().chain(&worlds::HOST).map(|text| text.parse().unwrap());
    ends.chain(others.map(|address| (Party::Outside(address), address))).collect()
}

fn host() -> Vec<IpAddr> {
    worlds::HOST.iter().map(|text| text.parse().unwrap()).collect()
}

fn check(
    world: &World,
    snapshot: &Snapshot,
    decision: Option<&Decision>,
    (direction, ruling): (Direction, Option<Ruling>),
) -> Result<(), TestCaseError> {
    let Some(decision) = decision else { return Ok(()) };
    let Some(ruling) = ruling else {
        prop_assert_eq!(decision, &Decision { allowed: true, reason: Reason::Profile });
        return Ok(());
    };
    let name = match ruling.rule() {
        RuleId::NONE => None,
        RuleId(rule) => snapshot.rules.get(rule as usize - 1).cloned(),
    };
    prop_assert_eq!((ruling.is_allowed(), name), (decision.allowed, named(world, direction, decision.reason)));
    Ok(())
}

fn agrees(world: &World, openings: &[Opening]) -> Result<(), TestCaseError> {
    let snapshot = compile(world, &worlds::running(world), &host()).map_err(|e| TestCaseError::fail(e.to_string()))?;
    let (kernel, tables) = (Kernel::new(&snapshot), Tables::from(&snapshot));
    let parties = parties(world);
    for &(from, source) in &parties {
        for &(to, destination) in parties.iter().filter(|(_, address)| address.is_ipv4() == source.is_ipv4()) {
            let identities = [source, destination].map(|address| kernel.identity(Network::SHARED, address));
            prop_assert_eq!(
                identities,
                [source, destination].map(|address| tables.identity_of(Network::SHARED, address))
            );
            let [client, server] = identities;
            for &opening in openings {
                let judgement = judge(world, from, to, opening);
                let egress = verdict(&kernel, Subject::egress(client), server, probe(opening));
                let ingress = verdict(&kernel, Subject::ingress(server), client, probe(opening));
                prop_assert_eq!(egress, tables.verdict(Subject::egress(client), server, probe(opening)));
                let egress = check(world, &snapshot, judgement.egress.as_ref(), (Direction::Egress, egress));
                let ingress = check(world, &snapshot, judgement.ingress.as_ref(), (Direction::Ingress, ingress));
                egress
                    .and(ingress)
                    .and_then(|()| audit_agrees(world, &snapshot, (from, to, opening), identities))
                    .map_err(|e| TestCaseError::fail(format!("{from:?} to {to:?}, {opening:?}: {e}")))?;
            }
        }
    }
    Ok(())
}

/// Where an audited policy is about an end, the tables know what all would say together; elsewhere they have nothing
/// of it.
fn audit_agrees(
    world: &World,
    snapshot: &Snapshot,
    (from, to, opening): (Party, Party, Opening),
    [client, server]: [Identity; 2],
) -> Result<(), TestCaseError> {
    let judgement = Question { world, from, to, opening, regime: Regime::WithAudited }.judge();
    let tables = Kernel::new(snapshot);
    for (direction, end, decision, (subject, peer)) in [
        (Direction::Egress, from, &judgement.egress, (Subject::egress(client), server)),
        (Direction::Ingress, to, &judgement.ingress, (Subject::ingress(server), client)),
    ] {
        let ruling = verdict(&tables, subject.audited(), peer, probe(opening));
        if end.endpoint().is_some_and(|index| is_audited(world, direction, index)) {
            prop_assert!(ruling.is_some());
            check(world, snapshot, decision.as_ref(), (direction, ruling))?;
        } else {
            prop_assert_eq!(ruling, None);
        }
    }
    Ok(())
}

/// Whether an audited policy is about an endpoint.
fn is_audited(world: &World, direction: Direction, endpoint: usize) -> bool {
    let endpoint = &world.endpoints[endpoint];
    world.tiers.iter().flat_map(|tier| &tier.policies).any(|policy| {
        policy.audit
            && policy.rules(direction).is_some()
            && policy.subject.selects(world, Some(&endpoint.name.namespace), &endpoint.labels)
    })
}

/// Everybody whom a policy is about is marked, and nobody else.
fn marks_isolation(world: &World) -> Result<(), TestCaseError> {
    let snapshot = compile(world, &worlds::running(world), &host()).map_err(|e| TestCaseError::fail(e.to_string()))?;
    for (ifindex, hook) in &snapshot.hooks {
        let endpoint = &world.endpoints[ifindex.0 as usize - 1];
        let flags =
            [(Direction::Egress, AddressFlags::ISOLATED_EGRESS), (Direction::Ingress, AddressFlags::ISOLATED_INGRESS)];
        for (direction, flag) in flags {
            let about = world.tiers.iter().flat_map(|tier| &tier.policies).any(|policy| {
                !policy.audit
                    && policy.rules(direction).is_some()
                    && policy.subject.selects(world, Some(&endpoint.name.namespace), &endpoint.labels)
            });
            prop_assert_eq!(hook.flags.has(flag), about || world.profile == Profile::Deny);
        }
        let flags =
            [(Direction::Egress, AddressFlags::AUDIT_EGRESS), (Direction::Ingress, AddressFlags::AUDIT_INGRESS)];
        for (direction, flag) in flags {
            prop_assert_eq!(hook.flags.has(flag), is_audited(world, direction, ifindex.0 as usize - 1));
        }
    }
    Ok(())
}

/// Where everything is audited, nobody is isolated by a policy.
fn audit_isolates_nobody(world: &World) -> Result<(), TestCaseError> {
    let mut world = World { profile: Profile::Allow, ..world.clone() };
    world.audit_all();
    let snapshot =
        compile(&world, &worlds::running(&world), &host()).map_err(|e| TestCaseError::fail(e.to_string()))?;
    let isolated = AddressFlags::ISOLATED_EGRESS.with(AddressFlags::ISOLATED_INGRESS);
    prop_assert!(snapshot.hooks.iter().all(|(_, hook)| hook.flags.0 & isolated.0 == 0));
    let audited = |(key, _): &(PairKey, PairValue)| key.subject == key.subject.audited();
    prop_assert!(snapshot.pairs.iter().all(audited));
    Ok(())
}

/// The same endpoints, found and written down in another order.
fn ignores_order(world: &World) -> Result<(), TestCaseError> {
    let workloads = worlds::running(world);
    let last = world.endpoints.len() - 1;
    let mut turned = world.clone();
    turned.endpoints.reverse();
    let turned_workloads: Vec<_> =
        workloads.iter().rev().map(|w| Workload { endpoint: last - w.endpoint, ..w.clone() }).collect();
    prop_assert_eq!(compile(world, &workloads, &host()), compile(&turned, &turned_workloads, &host()));
    Ok(())
}

proptest! {
    // each case is some thousand connections: everybody with everybody, by each opening
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn tables_say_what_the_rules_say(world in worlds::world(), openings in vec(opening(), 12)) {
        agrees(&world, &openings)?;
        marks_isolation(&world)?;
        audit_isolates_nobody(&world)?;
        ignores_order(&world)?;
    }
}
