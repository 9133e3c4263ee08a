mod random;
mod sets;

use super::*;
use crate::model::{Expr, Match, PolicyKind, Scope, sample::*};

fn walk(world: &World, from: Party, to: Party, opening: Opening, direction: Direction) -> Option<Vec<Step>> {
    Question { world, from, to, opening, regime: Regime::Enforced }.walk(direction)
}

const WEB: usize = 0;
const DB: usize = 1;
const OTHER: usize = 2;

/// `x/web` 10.0.0.1 (web 80/tcp), `x/db` 10.0.0.2 (sql 5432/tcp, dns 53/udp), `y/other` 10.0.1.3.
fn cast() -> World {
    let mut world =
        world(&[endpoint("x/web", "10.0.0.1"), endpoint("x/db", "10.0.0.2"), endpoint("y/other", "10.0.1.3")]);
    world.endpoints[WEB].ports = vec![port("web", 80, Protocol::TCP)];
    world.endpoints[DB].ports = vec![port("sql", 5432, Protocol::TCP), port("dns", 53, Protocol::UDP)];
    world
}

/// [`cast`] where one rule is all that lets anything into `x/db`.
fn only(matches: Match) -> World {
    let mut world = cast();
    let ingress = Some(vec![rule(Action::Allow, matches)]);
    world.tiers =
        vec![tier("default", TierDefault::Deny, vec![Policy { subject: named("db"), ingress, ..policy("p") }])];
    world
}

fn into_db(world: &World, from: Party, opening: Opening) -> bool {
    judge(world, from, party(world, DB), opening).allowed()
}

fn ingress(rules: Vec<Rule>) -> Policy {
    Policy { ingress: Some(rules), ..policy("p") }
}

fn all(action: Action) -> Rule {
    rule(action, Match::default())
}

fn outside(address: &str) -> Party {
    Party::Outside(address.parse().unwrap())
}

fn opening(protocol: Protocol, source_port: u16, destination_port: u16) -> Opening {
    Opening { protocol, source_port, destination_port, icmp: None }
}

fn ping(protocol: Protocol, kind: u8, code: u8) -> Opening {
    Opening { protocol, source_port: 0, destination_port: 0, icmp: Some((kind, code)) }
}

#[test]
fn first_deciding_rule_of_the_first_tier_with_a_say_wins() {
    use Action::{Allow, Deny, Log, Pass};
    let deny_tier = |rules| tier("a", TierDefault::Deny, vec![ingress(rules)]);
    let pass_tier = |rules| tier("b", TierDefault::Pass, vec![ingress(rules)]);
    let staged = Policy { audit: true, ..ingress(vec![all(Deny)]) };
    let elsewhere = Policy { subject: named("web"), ..ingress(vec![all(Deny)]) };
    let cases: [(&str, Vec<Tier>, bool, Reason); 13] = [
        ("no tier at all", vec![], true, Reason::Profile),
        ("a tier without policies", vec![tier("a", TierDefault::Deny, vec![])], true, Reason::Profile),
        ("a tier about others", vec![tier("a", TierDefault::Deny, vec![elsewhere])], true, Reason::Profile),
        (
            "a policy about the other direction",
            vec![tier(
                "a",
                TierDefault::Deny,
                vec![Policy { subject: named("db"), egress: Some(vec![]), ..policy("p") }],
            )],
            true,
            Reason::Profile,
        ),
        (
            "a tier of staged policies only",
            vec![tier("a", TierDefault::Deny, vec![staged.clone()])],
            true,
            Reason::Profile,
        ),
        ("no rule matches", vec![deny_tier(vec![])], false, Reason::TierDefault { tier: 0, policy: 0 }),
        (
            "log alone decides nothing",
            vec![deny_tier(vec![all(Log)])],
            false,
            Reason::TierDefault { tier: 0, policy: 0 },
        ),
        (
            "the earlier rule of a policy",
            vec![deny_tier(vec![all(Log), all(Deny), all(Allow)])],
            false,
            Reason::Rule { tier: 0, policy: 0, rule: 1 },
        ),
        (
            "the earlier policy of a tier",
            vec![tier(
                "a",
                TierDefault::Deny,
                vec![staged, ingress(vec![]), ingress(vec![all(Allow)]), ingress(vec![all(Deny)])],
            )],
            true,
            Reason::Rule { tier: 0, policy: 2, rule: 0 },
        ),
        (
            "the earlier tier",
            vec![pass_tier(vec![all(Allow)]), deny_tier(vec![all(Deny)])],
            true,
            Reason::Rule { tier: 0, policy: 0, rule: 0 },
        ),
        (
            "pass leaves the rest of the tier out",
            vec![deny_tier(vec![all(Pass), all(Deny)]), deny_tier(vec![all(Allow)])],
            true,
            Reason::Rule { tier: 1, policy: 0, rule: 0 },
        ),
        ("pass in the last tier", vec![deny_tier(vec![all(Pass)])], true, Reason::Profile),
        (
            "a tier that passes by default",
            vec![pass_tier(vec![]), deny_tier(vec![])],
            false,
            Reason::TierDefault { tier: 1, policy: 0 },
        ),
    ];
    for (name, tiers, allowed, reason) in cases {
        let world = World { tiers, ..cast() };
        let judgement = judge(&world, party(&world, WEB), party(&world, DB), tcp(80));
        assert_eq!(judgement.ingress, Some(Decision { allowed, reason }), "{name}");
        assert_eq!(judgement.egress.unwrap().reason, Reason::Profile, "{name}");
    }
}

#[test]
fn profile_decides_what_no_tier_does() {
    let world = World { profile: DENY, ..cast() };
    let judgement = judge(&world, party(&world, WEB), party(&world, DB), tcp(80));
    assert!(!judgement.allowed());
    let passed = World { tiers: vec![tier("a", TierDefault::Deny, vec![ingress(vec![all(Action::Pass)])])], ..world };
    assert!(!judge(&passed, outside("192.0.2.1"), party(&passed, DB), tcp(80)).allowed());
}

#[test]
fn both_ends_must_allow_and_only_endpoints_are_judged() {
    let closed = |ingress, egress| {
        let close = |close: bool| close.then(Vec::new);
        let policy = Policy { ingress: close(ingress), egress: close(egress), ..policy("p") };
        World { tiers: vec![tier("default", TierDefault::Deny, vec![policy])], ..cast() }
    };
    for (ingress, egress) in [(false, false), (true, false), (false, true), (true, true)] {
        let world = closed(ingress, egress);
        let inside = judge(&world, party(&world, WEB), party(&world, DB), tcp(80));
        assert_eq!(inside.allowed(), !ingress && !egress);
        let incoming = judge(&world, outside("192.0.2.1"), party(&world, DB), tcp(80));
        assert_eq!((incoming.egress, incoming.ingress.map(|d| d.allowed)), (None, Some(!ingress)));
        let outgoing = judge(&world, party(&world, WEB), outside("192.0.2.1"), tcp(80));
        assert_eq!((outgoing.egress.map(|d| d.allowed), outgoing.ingress), (Some(!egress), None));
    }
}

#[test]
fn peers_are_matched_by_labels_networks_and_their_exclusions() {
    let net = |text: &str| text.parse::<IpNet>().unwrap();
    let peer = EntityMatch::default;
    // allowed from: x/web, y/other, 10.0.0.9, 192.0.2.1
    let cases = [
        ("anyone", peer(), [true, true, true, true]),
        ("by label", EntityMatch { selector: Some(named("web")), ..peer() }, [true, false, false, false]),
        ("every endpoint", EntityMatch { selector: Some(Selector::EVERYTHING), ..peer() }, [true, true, false, false]),
        ("not by label", EntityMatch { not_selector: Some(named("web")), ..peer() }, [false, true, true, true]),
        (
            "namespace",
            EntityMatch {
                selector: Some(Selector { scope: Scope::Namespace("y".into()), labels: Expr::All }),
                ..peer()
            },
            [false, true, false, false],
        ),
        (
            "namespace by label",
            EntityMatch {
                selector: Some(Selector {
                    scope: Scope::Matching(Expr::Ne("kubernetes.io/metadata.name".into(), "y".into())),
                    labels: Expr::All,
                }),
                ..peer()
            },
            [true, false, false, false],
        ),
        ("network", EntityMatch { nets: Some(vec![net("10.0.0.0/24")]), ..peer() }, [true, false, true, false]),
        ("no network", EntityMatch { nets: Some(vec![]), ..peer() }, [false, false, false, false]),
        (
            "other family's network",
            EntityMatch { nets: Some(vec![net("::/0")]), ..peer() },
            [false, false, false, false],
        ),
        (
            "network with exception",
            EntityMatch { nets: Some(vec![net("10.0.0.0/8")]), not_nets: vec![net("10.0.0.0/29")], ..peer() },
            [false, true, true, false],
        ),
        ("outside a network", EntityMatch { not_nets: vec![net("10.0.0.0/8")], ..peer() }, [false, false, false, true]),
        (
            "label and network",
            EntityMatch { selector: Some(named("web")), nets: Some(vec![net("10.0.1.0/24")]), ..peer() },
            [false, false, false, false],
        ),
    ];
    for (name, peer, expected) in cases {
        let world = only(from(peer));
        let parties = [party(&world, WEB), party(&world, OTHER), outside("10.0.0.9"), outside("192.0.2.1")];
        assert_eq!(parties.map(|from| into_db(&world, from, tcp(80))), expected, "{name}");
    }
}

#[test]
fn endpoint_without_address_is_in_no_network() {
    let nets: Vec<IpNet> = vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
    let unknown = Party::Endpoint { index: WEB, address: None };
    assert!(!into_db(
        &only(from(EntityMatch { nets: Some(nets.clone()), ..EntityMatch::default() })),
        unknown,
        tcp(80)
    ));
    let excluded = EntityMatch { not_nets: nets, ..EntityMatch::default() };
    assert!(into_db(&only(from(excluded)), unknown, tcp(80)));
}

#[test]
fn ports_are_matched_by_number_range_and_exclusion() {
    let ports = |ports: &[(u16, u16)]| ports.iter().map(|&(first, last)| range(first, last)).collect::<Vec<_>>();
    let destination = |listed: Option<&[(u16, u16)]>, excluded: &[(u16, u16)]| {
        to(EntityMatch { ports: listed.map(ports), not_ports: ports(excluded), ..EntityMatch::default() })
    };
    // allowed to: 79, 80, 81, 65535
    let cases = [
        ("any", destination(None, &[]), [true, true, true, true]),
        ("one", destination(Some(&[(80, 80)]), &[]), [false, true, false, false]),
        ("none", destination(Some(&[]), &[]), [false, false, false, false]),
        ("range", destination(Some(&[(80, 65535)]), &[]), [false, true, true, true]),
        ("two", destination(Some(&[(1, 79), (81, 81)]), &[]), [true, false, true, false]),
        ("all but one", destination(None, &[(80, 80)]), [true, false, true, true]),
        ("range but one", destination(Some(&[(79, 81)]), &[(80, 80)]), [true, false, true, false]),
    ];
    for (name, matches, expected) in cases {
        let world = only(matches);
        let verdicts = [79, 80, 81, 65535].map(|port| into_db(&world, party(&world, WEB), tcp(port)));
        assert_eq!(verdicts, expected, "{name}");
    }
}

#[test]
fn source_ports_are_the_clients() {
    let source = EntityMatch { ports: Some(vec![range(1000, 2000)]), ..EntityMatch::default() };
    let world = only(from(source));
    for (source, destination, allowed) in [(1000, 80, true), (2000, 80, true), (999, 80, false), (80, 1500, false)] {
        let verdict = into_db(&world, party(&world, WEB), opening(Protocol::TCP, source, destination));
        assert_eq!(verdict, allowed, "{source} -> {destination}");
    }
}

#[test]
fn conditions_on_ports_never_match_protocols_without() {
    let any_port = vec![range(0, 65535)];
    let listed = only(to(EntityMatch { ports: Some(any_port.clone()), ..EntityMatch::default() }));
    let excluded = only(to(EntityMatch { not_ports: any_port, ..EntityMatch::default() }));
    for (protocol, has_ports) in [
        (Protocol::TCP, true),
        (Protocol::SCTP, true),
        (Protocol::UDPLITE, true),
        (Protocol(47), false),
        (Protocol::ICMP, false),
    ] {
        let web = party(&listed, WEB);
        assert_eq!(into_db(&listed, web, opening(protocol, 1, 1)), has_ports, "{protocol}");
        assert_eq!(into_db(&excluded, web, opening(protocol, 1, 1)), !has_ports, "{protocol}");
    }
}

#[test]
fn named_port_is_the_declared_port_of_that_end_and_protocol() {
    let named_port = |name: &str| Some(vec![PortMatch::Named(name.to_owned())]);
    let destination = |name| only(to(EntityMatch { ports: named_port(name), ..EntityMatch::default() }));
    let cases = [
        ("sql", Protocol::TCP, 5432, true),
        ("sql", Protocol::UDP, 5432, false),
        ("sql", Protocol::TCP, 5433, false),
        ("dns", Protocol::UDP, 53, true),
        ("dns", Protocol::TCP, 53, false),
        // the source declares it, not the destination
        ("web", Protocol::TCP, 80, false),
        ("unheard-of", Protocol::TCP, 80, false),
    ];
    for (name, protocol, port, allowed) in cases {
        let world = destination(name);
        let verdict = into_db(&world, party(&world, WEB), opening(protocol, 40_000, port));
        assert_eq!(verdict, allowed, "{name} {protocol}/{port}");
    }
    let source = only(from(EntityMatch { ports: named_port("web"), ..EntityMatch::default() }));
    assert!(into_db(&source, party(&source, WEB), opening(Protocol::TCP, 80, 5432)));
    assert!(!into_db(&source, party(&source, OTHER), opening(Protocol::TCP, 80, 5432)));
    assert!(!into_db(&source, outside("192.0.2.1"), opening(Protocol::TCP, 80, 5432)));
    let excluded = EntityMatch { not_ports: named_port("sql").unwrap(), ..EntityMatch::default() };
    let world = only(to(excluded));
    assert!(!into_db(&world, party(&world, WEB), tcp(5432)));
    assert!(into_db(&world, party(&world, WEB), tcp(5433)));
}

#[test]
fn protocols_and_versions_are_matched_and_negated() {
    let mut world = cast();
    world.endpoints[WEB].addresses.push("fd00::1".parse().unwrap());
    world.endpoints[DB].addresses.push("fd00::2".parse().unwrap());
    // allowed: tcp over v4, udp over v4, tcp over v6
    let cases = [
        ("tcp", Match { protocol: Some(Protocol::TCP), ..Match::default() }, [true, false, true]),
        ("not tcp", Match { not_protocol: Some(Protocol::TCP), ..Match::default() }, [false, true, false]),
        ("v4", Match { version: V4, ..Match::default() }, [true, true, false]),
        ("v6", Match { version: V6, ..Match::default() }, [false, false, true]),
        ("tcp over v6", Match { version: V6, protocol: Some(Protocol::TCP), ..Match::default() }, [false, false, true]),
    ];
    for (name, matches, expected) in cases {
        let world = World { tiers: only(matches).tiers, ..world.clone() };
        let ends = |n: usize| {
            [WEB, DB].map(|index| Party::Endpoint { index, address: Some(world.endpoints[index].addresses[n]) })
        };
        let verdicts = [(0, Protocol::TCP), (0, Protocol::UDP), (1, Protocol::TCP)].map(|(family, protocol)| {
            let [from, to] = ends(family);
            judge(&world, from, to, opening(protocol, 40_000, 80)).allowed()
        });
        assert_eq!(verdicts, expected, "{name}");
    }
}

#[test]
fn icmp_is_matched_by_type_and_code_and_negated() {
    let icmp = |kind, code| Some(IcmpMatch { kind, code });
    // allowed: 8/0, 8/1, 3/0, tcp
    let cases = [
        ("any", Match { icmp: icmp(None, None), ..Match::default() }, [true, true, true, false]),
        ("type", Match { icmp: icmp(Some(8), None), ..Match::default() }, [true, true, false, false]),
        ("type and code", Match { icmp: icmp(Some(8), Some(0)), ..Match::default() }, [true, false, false, false]),
        ("not type", Match { not_icmp: icmp(Some(8), None), ..Match::default() }, [false, false, true, false]),
        (
            "not type and code",
            Match { not_icmp: icmp(Some(8), Some(0)), ..Match::default() },
            [false, true, true, false],
        ),
        ("not any", Match { not_icmp: icmp(None, None), ..Match::default() }, [false, false, false, false]),
    ];
    for (name, matches, expected) in cases {
        let world = only(matches);
        let openings = [ping(Protocol::ICMP, 8, 0), ping(Protocol::ICMP, 8, 1), ping(Protocol::ICMP, 3, 0), tcp(80)];
        assert_eq!(openings.map(|opening| into_db(&world, party(&world, WEB), opening)), expected, "{name}");
    }
}

#[test]
fn walk_names_the_first_condition_that_fails() {
    let ports = EntityMatch { ports: Some(vec![range(80, 80)]), ..EntityMatch::default() };
    let peer = |selector| EntityMatch { selector: Some(selector), ..EntityMatch::default() };
    let cases = [
        (Match { protocol: Some(Protocol::UDP), ..from(peer(named("db"))) }, Some(Mismatch::Protocol)),
        (Match { version: V6, ..Match::default() }, Some(Mismatch::Version)),
        (from(peer(named("db"))), Some(Mismatch::Source(EndMismatch::NotSelected))),
        (to(ports.clone()), Some(Mismatch::Destination(EndMismatch::PortNotListed))),
        (
            Match { destination: ports, ..from(peer(named("web"))) },
            Some(Mismatch::Destination(EndMismatch::PortNotListed)),
        ),
        (from(peer(named("web"))), None),
    ];
    for (matches, expected) in cases {
        let world = only(matches);
        let steps = walk(&world, party(&world, WEB), party(&world, DB), tcp(81), Direction::Ingress).unwrap();
        let rule = steps.iter().find_map(|step| match step {
            Step::Rule { mismatch, .. } => Some(*mismatch),
            _ => None,
        });
        assert_eq!(rule, Some(expected));
        assert_eq!(steps.last() == Some(&Step::TierEnd { tier: 0 }), expected.is_some());
    }
    assert_eq!(walk(&cast(), outside("192.0.2.1"), party(&cast(), DB), tcp(80), Direction::Egress), None);
}

#[test]
fn audited_policy_would_decide_in_its_place() {
    use Action::{Allow, Deny};
    let about = |action, audit| Policy { audit, ingress: Some(vec![rule(action, Match::default())]), ..policy("p") };
    // (policies of one tier, enforced verdict, verdict with the audited ones, whether one is about it)
    let cases = [
        (vec![about(Deny, true), about(Allow, false)], true, false, true),
        (vec![about(Allow, false), about(Deny, true)], true, true, true),
        (vec![about(Deny, false), about(Allow, true)], false, false, true),
        (vec![about(Allow, true), about(Deny, false)], false, true, true),
        (vec![about(Deny, false)], false, false, false),
        (vec![Policy { ingress: Some(vec![]), ..about(Deny, true) }], true, false, true),
        (vec![Policy { subject: named("other"), ..about(Deny, true) }], true, true, false),
    ];
    for (index, (policies, enforced, audited, is_audited)) in cases.into_iter().enumerate() {
        let mut world = world(&[endpoint("x/web", "10.0.0.1"), endpoint("x/db", "10.0.0.2")]);
        world.tiers = vec![tier("sec", TierDefault::Deny, policies)];
        let (from, to) = (party(&world, 0), party(&world, 1));
        let question = |regime| Question { world: &world, from, to, opening: tcp(80), regime };
        assert_eq!(question(Regime::Enforced).judge().allowed(), enforced, "{index}");
        assert_eq!(question(Regime::WithAudited).judge().allowed(), audited, "{index}");
        assert_eq!(question(Regime::Enforced).is_audited(), is_audited, "{index}");
        assert_eq!(question(Regime::WithAudited).is_audited(), is_audited, "{index}");
    }
}
