//! How little is written down: one test for each promise about the tables' size and numbers.

use std::net::IpAddr;

use netpol_common::{
    policy::Probe,
    tables::{AddressFlags, Identity, IfIndex, Network, RuleId, RulesetId, Ruling, Subject},
    wire::{Addr4, Addr6, Protocol},
};

use super::worlds::{app, at, endpoint, labels, nets, policy, rule, running, tier};
use crate::{
    compile::{Snapshot, compile, lookup::Tables},
    model::{
        Action, Direction, EndpointPort, EntityMatch, Expr, IcmpMatch, IpVersion, Match, NetworkSet, Policy,
        PolicyKind, Pool, PortMatch, Profile, Scope, Selector, TierDefault, World,
    },
};

fn ports(list: &[PortMatch]) -> EntityMatch {
    EntityMatch { ports: Some(list.to_vec()), ..EntityMatch::default() }
}

fn port(number: u16) -> PortMatch {
    PortMatch::Range(number..=number)
}

fn tcp(destination: EntityMatch) -> Match {
    Match { protocol: Some(Protocol::TCP), destination, ..Match::default() }
}

fn from(source: EntityMatch) -> Match {
    Match { source, ..Match::default() }
}

fn inside(list: &[&str]) -> EntityMatch {
    EntityMatch { nets: Some(nets(list)), ..EntityMatch::default() }
}

fn selected(selector: Selector) -> EntityMatch {
    EntityMatch { selector: Some(selector), ..EntityMatch::default() }
}

/// Endpoints `a`, `b` and `c` at 10.0.0.1 to 3, and the policies in one tier with a default deny.
fn world(policies: Vec<Policy>) -> World {
    let endpoints = vec![endpoint("a", "10.0.0.1"), endpoint("b", "10.0.0.2"), endpoint("c", "10.0.0.3")];
    World { endpoints, tiers: vec![tier(TierDefault::Deny, policies)], ..World::default() }
}

/// One policy about the ingress of `a`, with these rules.
fn ingress(rules: Vec<(Action, Match)>) -> World {
    let number = |(index, (action, matches))| rule(index as u32, action, matches);
    world(vec![policy("p", app("a"), Direction::Ingress, rules.into_iter().enumerate().map(number).collect())])
}

fn compiled(world: &World) -> Snapshot {
    compile(world, &running(world), &[]).unwrap()
}

fn identity(snapshot: &Snapshot, address: &str) -> Identity {
    Tables::from(snapshot).identity_of(Network(7), address.parse().unwrap())
}

/// What `a` at 10.0.0.1 says about a connection from there.
fn judged(snapshot: &Snapshot, from: &str, probe: (Protocol, u16, u16)) -> Ruling {
    let (protocol, source_port, destination_port) = probe;
    let tables = Tables::from(snapshot);
    let subject = Subject::ingress(identity(snapshot, "10.0.0.1"));
    let probe = Probe { protocol, source_port, destination_port };
    tables.verdict(subject, identity(snapshot, from), probe).unwrap()
}

// === identities ===

#[test]
fn labels_that_no_selector_looks_at_make_no_difference() {
    let mut world = ingress(vec![(Action::Allow, Match::default())]);
    world.endpoints[1].labels.insert("colour".into(), "red".into());
    let snapshot = compiled(&world);
    assert_ne!(identity(&snapshot, "10.0.0.1"), identity(&snapshot, "10.0.0.2"));
    assert_eq!(identity(&snapshot, "10.0.0.2"), identity(&snapshot, "10.0.0.3"));
    let names: Vec<_> = snapshot.identities[1].endpoints.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["x/b", "x/c"]);
}

#[test]
fn a_mentioned_network_tells_endpoints_apart() {
    let snapshot = compiled(&ingress(vec![(Action::Allow, from(inside(&["10.0.0.2/31"])))]));
    assert_eq!(identity(&snapshot, "10.0.0.2"), identity(&snapshot, "10.0.0.3"));
    let snapshot = compiled(&ingress(vec![(Action::Allow, from(inside(&["10.0.0.2/32"])))]));
    assert_ne!(identity(&snapshot, "10.0.0.2"), identity(&snapshot, "10.0.0.3"));
}

#[test]
fn an_ip_version_in_a_rule_tells_families_apart() {
    let mut world = ingress(vec![(Action::Allow, Match::default())]);
    world.endpoints[1].addresses.push("fd00::2".parse().unwrap());
    assert_eq!(compiled(&world).identities.len(), 2);
    world.tiers[0].policies[0].ingress.as_mut().unwrap()[0].matches.version = Some(IpVersion::V6);
    assert_eq!(compiled(&world).identities.len(), 3);
}

#[test]
fn named_ports_tell_apart_only_under_names_that_rules_use() {
    let named = |name: &str, port| EndpointPort { name: Some(name.into()), port, protocol: Protocol::TCP };
    let http = tcp(ports(&[PortMatch::Named("http".into())]));
    let mut world =
        world(vec![policy("p", Selector::EVERYTHING, Direction::Ingress, vec![rule(0, Action::Allow, http)])]);
    world.endpoints[0].ports = vec![named("http", 80)];
    world.endpoints[1].ports = vec![named("http", 8080)];
    world.endpoints[2].ports = vec![named("metrics", 9), named("http", 80)];
    let snapshot = compiled(&world);
    assert_eq!(identity(&snapshot, "10.0.0.1"), identity(&snapshot, "10.0.0.3"));
    assert_ne!(identity(&snapshot, "10.0.0.1"), identity(&snapshot, "10.0.0.2"));
    assert!(judged(&snapshot, "10.0.0.2", (Protocol::TCP, 1, 80)).is_allowed());
    assert!(!judged(&snapshot, "10.0.0.2", (Protocol::TCP, 1, 8080)).is_allowed());
}

// === outside addresses ===

#[test]
fn only_prefixes_that_differ_from_the_next_shorter_one_are_written_down() {
    // the /24 adds nothing: every rule that holds in it holds in the /16
    let list = ["192.168.0.0/16", "192.168.1.0/24"];
    let except = EntityMatch { not_nets: nets(&["192.168.1.128/25"]), ..inside(&list) };
    let snapshot = compiled(&ingress(vec![(Action::Allow, from(except))]));
    let written: Vec<_> = snapshot.networks4.iter().map(|(net, _)| net.to_string()).collect();
    assert_eq!(written, ["192.168.0.0/16", "192.168.1.128/25"]);
    assert!(judged(&snapshot, "192.168.1.1", (Protocol::TCP, 1, 1)).is_allowed());
    assert!(!judged(&snapshot, "192.168.1.129", (Protocol::TCP, 1, 1)).is_allowed());
    assert_eq!(identity(&snapshot, "192.169.0.0"), Identity::WORLD);
}

#[test]
fn prefixes_that_rules_treat_alike_share_an_identity() {
    let snapshot = compiled(&ingress(vec![(Action::Allow, from(inside(&["192.0.2.0/24", "2001:db8::/32"])))]));
    assert_eq!(identity(&snapshot, "192.0.2.1"), identity(&snapshot, "2001:db8::1"));
    let networks: Vec<_> = snapshot.identities[2].networks.iter().map(ToString::to_string).collect();
    assert_eq!(networks, ["192.0.2.0/24", "2001:db8::/32"]);
}

#[test]
fn the_whole_internet_is_a_prefix_like_others() {
    let snapshot = compiled(&ingress(vec![(Action::Allow, from(inside(&["0.0.0.0/0"])))]));
    assert_ne!(identity(&snapshot, "8.8.8.8"), Identity::WORLD);
    assert_eq!(identity(&snapshot, "2600::1"), Identity::WORLD);
}

#[test]
fn a_network_set_that_only_a_negation_chooses_is_told_apart() {
    let not =
        EntityMatch { not_selector: Some(Selector { scope: Scope::Global, labels: Expr::All }), ..Default::default() };
    let mut world = ingress(vec![(Action::Allow, from(not))]);
    let nets = nets(&["192.0.2.0/24"]);
    world.sets = vec![NetworkSet { namespace: None, name: "s".into(), labels: labels(&[]), nets, origin: at(0) }];
    // Kubernetes' own policies know of no sets, Calico's do
    for (kind, found) in [(PolicyKind::CalicoNetworkPolicy, true), (PolicyKind::NetworkPolicy, false)] {
        world.tiers[0].policies[0].kind = kind;
        let snapshot = compiled(&world);
        assert_eq!(judged(&snapshot, "192.0.2.1", (Protocol::TCP, 1, 1)).is_allowed(), !found);
        assert!(judged(&snapshot, "8.8.8.8", (Protocol::TCP, 1, 1)).is_allowed());
    }
}

// === addresses and hooks ===

#[test]
fn the_host_is_the_host_unless_a_rule_mentions_its_address() {
    let world = ingress(vec![(Action::Allow, from(inside(&["192.0.2.0/24"])))]);
    let host: [IpAddr; 2] = ["10.0.0.254".parse().unwrap(), "192.0.2.1".parse().unwrap()];
    let tables = Tables::from(&compile(&world, &running(&world), &host).unwrap());
    let [bridge, mentioned] = host.map(|address| tables.address(Network::SHARED, address).unwrap());
    assert_eq!(bridge.identity, Identity::HOST);
    assert_eq!(mentioned.identity, tables.identity_of(Network::SHARED, "192.0.2.9".parse().unwrap()));
    for value in [bridge, mentioned] {
        assert_eq!((value.flags, value.ifindex), (AddressFlags::HOST, IfIndex::NONE));
    }
}

#[test]
fn an_address_is_shared_unless_another_network_has_it_too() {
    let mut world = world(Vec::new());
    world.endpoints[1].addresses = vec!["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()];
    let mut workloads = running(&world);
    workloads[1].network = Network(8);
    let snapshot = compile(&world, &workloads, &[]).unwrap();
    let hooks: Vec<_> = snapshot.hooks.iter().map(|(_, hook)| hook.network).collect();
    assert_eq!(hooks, [Network(7), Network(8), Network(7)], "only crowded networks are asked");
    let tables = Tables::from(&snapshot);
    let at = |network, address: &str| tables.address(Network(network), address.parse().unwrap()).map(|v| v.ifindex);
    assert_eq!(at(7, "10.0.0.1"), Some(IfIndex(1)));
    assert_eq!(at(8, "10.0.0.1"), Some(IfIndex(2)));
    assert_eq!(at(9, "10.0.0.1"), None, "a third network sees neither");
    assert_eq!(at(7, "10.0.0.2"), Some(IfIndex(2)));
}

#[test]
fn a_hook_knows_its_interface_even_without_an_address() {
    let mut world = ingress(Vec::new());
    world.endpoints[0].addresses.clear();
    let mut workloads = running(&world);
    workloads[0].port_isolated = true;
    workloads[1].routed = true;
    let snapshot = compile(&world, &workloads, &[]).unwrap();
    let flags: Vec<_> = snapshot.hooks.iter().map(|(_, hook)| hook.flags).collect();
    let isolated = AddressFlags::ISOLATED_INGRESS.with(AddressFlags::PORT_ISOLATED);
    assert_eq!(flags, [isolated, AddressFlags::ROUTED, AddressFlags::default()]);
    let (ifindex, hook) = snapshot.hooks[1];
    let w = &workloads[1];
    assert_eq!(
        (ifindex, hook.network, hook.master, hook.segment, hook.mac, hook.host_mac),
        (w.ifindex, Network::SHARED, w.master, w.segment, w.mac.into(), w.router_mac.into())
    );
}

/// What a hook says of its endpoint's first addresses is what the tables say of them.
#[test]
fn a_hook_knows_what_the_tables_say_of_its_endpoint() {
    let mut world = ingress(vec![(Action::Deny, Match::default())]);
    world.pools = vec![Pool {
        name: "p".into(),
        cidr: "10.0.0.0/30".parse().unwrap(),
        nat_outgoing: true,
        disabled: false,
        origin: world.endpoints[0].origin.clone(),
    }];
    world.endpoints[1].addresses.push("fd00::2".parse().unwrap());
    world.endpoints[2].addresses.clear();
    let snapshot = compiled(&world);
    let said = |ifindex: IfIndex| {
        let (_, hook) = snapshot.hooks.iter().find(|(of, _)| *of == ifindex).unwrap();
        (hook.own::<Addr4>(ifindex), hook.own::<Addr6>(ifindex))
    };
    let own = snapshot.addresses4.iter().filter(|(_, value)| value.ifindex != IfIndex::NONE);
    let own: Vec<_> = own.map(|(key, value)| (key.address, *value)).collect();
    assert_eq!(own.len(), 2);
    for (address, value) in own {
        assert_eq!(said(value.ifindex).0, Some((address, value)));
    }
    assert!(snapshot.hooks.iter().any(|(_, hook)| hook.flags4.has(AddressFlags::MASQUERADE)));
    let (key, value) = snapshot.addresses6[0];
    assert_eq!(said(value.ifindex).1, Some((key.address, value)));
    assert_eq!(snapshot.hooks.iter().filter(|(ifindex, _)| said(*ifindex) == (None, None)).count(), 1);
}

// === isolation and defaults ===

#[test]
fn an_open_endpoint_has_no_pair() {
    let snapshot = compiled(&ingress(Vec::new()));
    let subjects: Vec<_> = snapshot.pairs.iter().map(|(key, _)| key.subject).collect();
    assert_eq!(subjects, [Subject::ingress(identity(&snapshot, "10.0.0.1"))]);
}

#[test]
fn an_audited_policy_isolates_nobody() {
    let mut world = ingress(vec![(Action::Deny, Match::default())]);
    world.tiers[0].policies[0].audit = true;
    let snapshot = compiled(&world);
    let flags = |hook: usize| snapshot.hooks[hook].1.flags;
    assert!(!flags(0).has(AddressFlags::ISOLATED_INGRESS));
    // but the tables know what it would say, about whom it is
    assert!(flags(0).has(AddressFlags::AUDIT_INGRESS) && !flags(0).has(AddressFlags::AUDIT_EGRESS));
    assert!(!flags(1).has(AddressFlags::AUDIT_INGRESS));
    let subject = Subject::ingress(identity(&snapshot, "10.0.0.1"));
    let probe = Probe { protocol: Protocol::TCP, source_port: 1, destination_port: 1 };
    let say = |subject| Tables::from(&snapshot).verdict(subject, identity(&snapshot, "10.0.0.2"), probe);
    assert_eq!((say(subject), say(subject.audited())), (None, Some(Ruling::deny(RuleId(2)))));
    assert_eq!(snapshot.pairs.len(), 1);
    assert_eq!((snapshot.rules[1].name.as_str(), snapshot.rules[1].index), ("p", Some(0)));
}

#[test]
fn an_audited_policy_would_speak_in_its_place_among_the_others() {
    let about = |name: &str, action, audit| Policy {
        audit,
        ..policy(name, app("a"), Direction::Ingress, vec![rule(0, action, tcp(ports(&[port(80)])))])
    };
    // (policies in order, what is enforced, what would be)
    for (policies, enforced, would) in [
        (vec![about("p", Action::Deny, true), about("q", Action::Allow, false)], true, false),
        (vec![about("q", Action::Allow, false), about("p", Action::Deny, true)], true, true),
        (vec![about("p", Action::Allow, true), about("q", Action::Deny, false)], false, true),
    ] {
        let snapshot = compiled(&world(policies));
        let tables = Tables::from(&snapshot);
        let subject = Subject::ingress(identity(&snapshot, "10.0.0.1"));
        let probe = Probe { protocol: Protocol::TCP, source_port: 1, destination_port: 80 };
        let say = |subject| tables.verdict(subject, identity(&snapshot, "10.0.0.2"), probe).unwrap().is_allowed();
        assert_eq!((say(subject), say(subject.audited())), (enforced, would));
    }
}

#[test]
fn a_profile_that_denies_isolates_everybody() {
    let snapshot = compiled(&World { profile: Profile::Deny, ..world(Vec::new()) });
    assert!(snapshot.pairs.iter().all(|(_, value)| value.otherwise == Ruling::deny(RuleId::NONE)));
    assert_eq!(snapshot.pairs.len(), 2 * snapshot.identities.len());
    assert!(snapshot.hooks.iter().all(|(_, h)| h.flags.has(AddressFlags::ISOLATED_EGRESS)));
}

#[test]
fn the_default_deny_is_of_the_first_policy_that_isolates() {
    let first = policy("first", app("b"), Direction::Ingress, Vec::new());
    let [second, third] = ["second", "third"].map(|name| policy(name, app("a"), Direction::Ingress, Vec::new()));
    let snapshot = compiled(&world(vec![first, second, third]));
    let RuleId(rule) = judged(&snapshot, "10.0.0.3", (Protocol::TCP, 1, 1)).rule();
    let name = &snapshot.rules[rule as usize - 1];
    assert_eq!((name.name.as_str(), name.index), ("second", None));
}

#[test]
fn what_a_document_calls_one_rule_has_one_number() {
    let both = [app("b"), app("c")].map(|s| rule(0, Action::Allow, from(selected(s))));
    let snapshot = compiled(&world(vec![policy("p", app("a"), Direction::Ingress, both.to_vec())]));
    assert_eq!(snapshot.rules.iter().map(|r| r.index).collect::<Vec<_>>(), [None, Some(0)]);
}

// === pairs and lists ===

#[test]
fn only_peers_that_deviate_have_a_pair() {
    let snapshot = compiled(&ingress(vec![(Action::Allow, from(selected(app("b"))))]));
    let subject = Subject::ingress(identity(&snapshot, "10.0.0.1"));
    let keys: Vec<_> = snapshot.pairs.iter().map(|(key, _)| (key.subject, key.peer)).collect();
    assert_eq!(keys, [(subject, Identity::ANY), (subject, identity(&snapshot, "10.0.0.2"))]);
}

#[test]
fn a_peer_with_the_same_result_needs_no_pair() {
    // the second rule says nothing new, so being selected by it changes nothing
    let rules = vec![(Action::Allow, Match::default()), (Action::Deny, from(selected(app("b"))))];
    assert_eq!(compiled(&ingress(rules)).pairs.len(), 1);
}

#[test]
fn single_ports_are_exact_and_the_rest_are_ranges() {
    let list = [port(80), PortMatch::Range(8000..=8010), PortMatch::Range(443..=443)];
    let snapshot = compiled(&ingress(vec![(Action::Allow, tcp(ports(&list)))]));
    let exact: Vec<_> = snapshot.ports.iter().map(|(key, _)| key.port).collect();
    let ranges: Vec<_> = snapshot.ranges.iter().map(|range| range.destination).collect();
    assert_eq!((exact, ranges), (vec![80, 443], vec![[8000, 8010]]));
}

#[test]
fn excluded_single_ports_are_exact_too() {
    let not = EntityMatch { not_ports: vec![port(22), port(80), port(443)], ..EntityMatch::default() };
    let snapshot = compiled(&ingress(vec![(Action::Allow, tcp(not))]));
    assert_eq!((snapshot.ports.len(), snapshot.ranges.len()), (3, 1));
    assert!(!judged(&snapshot, "10.0.0.2", (Protocol::TCP, 1, 22)).is_allowed());
    assert!(judged(&snapshot, "10.0.0.2", (Protocol::TCP, 1, 23)).is_allowed());
}

#[test]
fn what_comes_after_a_catch_all_is_not_written_down() {
    let rules = vec![(Action::Deny, Match::default()), (Action::Allow, tcp(ports(&[port(80)])))];
    let snapshot = compiled(&ingress(rules));
    assert_eq!((snapshot.ports.len(), snapshot.ranges.len()), (0, 0));
    assert_eq!(snapshot.pairs[0].1.ruleset, RulesetId::NONE);
}

#[test]
fn a_port_that_depends_on_the_source_port_is_no_exact_entry() {
    let source = ports(&[PortMatch::Range(0..=1023)]);
    let low = Match { source, protocol: Some(Protocol::TCP), ..Match::default() };
    let snapshot = compiled(&ingress(vec![(Action::Deny, low), (Action::Allow, tcp(ports(&[port(80), port(443)])))]));
    assert!(snapshot.ports.is_empty());
    assert!(!judged(&snapshot, "10.0.0.2", (Protocol::TCP, 1023, 80)).is_allowed());
    assert!(judged(&snapshot, "10.0.0.2", (Protocol::TCP, 1024, 80)).is_allowed());
}

#[test]
fn icmp_messages_stand_where_ports_do() {
    let echo = Match { icmp: Some(IcmpMatch { kind: Some(8), code: Some(0) }), ..Match::default() };
    let snapshot = compiled(&ingress(vec![(Action::Allow, echo)]));
    let keys: Vec<_> = snapshot.ports.iter().map(|(key, _)| (key.protocol, key.port)).collect();
    assert_eq!(keys, [(Protocol::ICMP, 0x800), (Protocol::ICMPV6, 0x800)]);
}

#[test]
fn a_protocol_without_ports_is_exact() {
    let gre = Match { protocol: Some(Protocol(47)), ..Match::default() };
    let snapshot = compiled(&ingress(vec![(Action::Allow, gre)]));
    assert_eq!((snapshot.ports.len(), snapshot.ranges.len()), (1, 0));
    assert!(judged(&snapshot, "10.0.0.2", (Protocol(47), 0, 0)).is_allowed());
    assert!(!judged(&snapshot, "10.0.0.2", (Protocol(48), 0, 0)).is_allowed());
}

#[test]
fn pass_leaves_just_its_ports_to_the_next_tier() {
    let pass = policy(
        "pass",
        app("a"),
        Direction::Ingress,
        vec![rule(0, Action::Pass, tcp(ports(&[PortMatch::Range(80..=90)]))), rule(1, Action::Deny, Match::default())],
    );
    let allow = policy("allow", app("a"), Direction::Ingress, vec![rule(0, Action::Allow, tcp(ports(&[port(85)])))]);
    let mut world = world(vec![allow]);
    world.tiers.insert(0, tier(TierDefault::Deny, vec![pass]));
    let snapshot = compiled(&world);
    let by = |port| {
        let ruling = judged(&snapshot, "10.0.0.2", (Protocol::TCP, 1, port));
        let name = &snapshot.rules[ruling.rule().0 as usize - 1];
        (ruling.is_allowed(), name.name.as_str(), name.index)
    };
    assert_eq!(by(85), (true, "allow", Some(0)));
    assert_eq!(by(86), (false, "allow", None));
    assert_eq!(by(79), (false, "pass", Some(1)));
}

#[test]
fn equal_lists_are_stored_once() {
    let list = || tcp(ports(&[port(80), PortMatch::Range(8000..=8010)]));
    let everybody = policy("p", Selector::EVERYTHING, Direction::Ingress, vec![rule(0, Action::Allow, list())]);
    let other = policy("q", app("a"), Direction::Egress, Vec::new());
    let snapshot = compiled(&world(vec![everybody, other]));
    assert_eq!(snapshot.identities.len(), 2);
    assert_eq!((snapshot.ports.len(), snapshot.ranges.len()), (1, 1));
}
