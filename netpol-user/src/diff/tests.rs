use super::*;
use crate::model::{Action, EntityMatch, Match, Policy, PolicyKind, PortMatch, TierDefault, sample};

/// `x/web` and `x/db`; these policies in one tier that denies at its end.
fn world(policies: Vec<Policy>) -> World {
    let endpoints = [sample::endpoint("x/web", "10.0.0.1,fd00::1"), sample::endpoint("x/db", "10.0.0.2,fd00::2")];
    let mut world = sample::world(&endpoints);
    world.tiers = vec![sample::tier("default", TierDefault::Deny, policies)];
    world
}

/// Lets into `x/db` what this matches, and nothing else.
fn into_db(matches: Match) -> Policy {
    Policy {
        kind: PolicyKind::NetworkPolicy,
        namespace: Some("x".to_owned()),
        subject: sample::named("db"),
        ingress: Some(vec![sample::rule(Action::Allow, matches)]),
        ..sample::policy("p")
    }
}

fn nets(nets: &[&str]) -> Match {
    let nets = Some(nets.iter().map(|net| net.parse().unwrap()).collect());
    sample::from(EntityMatch { nets, ..EntityMatch::default() })
}

fn enforced(world: &World) -> View<'_> {
    View { world, regime: Regime::Enforced }
}

fn options() -> Options {
    Options { probes: vec!["80/tcp".parse().unwrap()], outside: vec![] }
}

/// `from > to before after`, with addresses where there are any.
fn told(changes: &Changes) -> Vec<String> {
    let at = |address: &Option<IpAddr>| address.map_or_else(String::new, |address| format!("@{address}"));
    let line = |pair: &Pair| {
        let (from, to) = (at(&pair.source_address), at(&pair.destination_address));
        format!("{}{from} > {}{to} {} {}", pair.from, pair.to, pair.before.as_str(), pair.after.as_str())
    };
    changes.pairs.iter().map(line).collect()
}

#[test]
fn same_world_has_no_changes() {
    let world = world(vec![into_db(nets(&["10.0.0.0/8"]))]);
    assert_eq!(compare(enforced(&world), enforced(&world), &options()), Changes::default());
}

#[test]
fn changed_verdicts_are_listed_with_the_rules_of_both_sides() {
    let web = sample::from(EntityMatch { selector: Some(sample::named("web")), ..EntityMatch::default() });
    let (before, after) = (world(vec![into_db(Match::default())]), world(vec![into_db(web)]));
    let changes = compare(enforced(&before), enforced(&after), &options());
    assert_eq!(told(&changes), ["0.0.0.0/0 > x/db allowed denied", "::/0 > x/db allowed denied"]);
    let pair = &changes.pairs[0];
    assert_eq!(pair.rule_before.as_ref().unwrap().describe(), "NetworkPolicy x/p ingress[0] (policies.yaml:12)");
    assert_eq!(
        pair.rule_after.as_ref().unwrap().describe(),
        "NetworkPolicy x/p ingress: default deny (policies.yaml:10)"
    );
    // the other way round, the same pairs open
    let back = compare(enforced(&after), enforced(&before), &options());
    assert_eq!(told(&back), ["0.0.0.0/0 > x/db denied allowed", "::/0 > x/db denied allowed"]);
}

#[test]
fn only_the_prefix_that_changes_is_listed() {
    let (before, after) = (nets(&["192.0.2.0/24"]), nets(&["192.0.2.0/24", "198.51.100.0/24"]));
    let (before, after) = (world(vec![into_db(before)]), world(vec![into_db(after)]));
    let changes = compare(enforced(&before), enforced(&after), &options());
    assert_eq!(told(&changes), ["198.51.100.0/24 > x/db denied allowed"]);
}

#[test]
fn addresses_are_told_where_the_change_depends_on_them() {
    let (before, after) = (nets(&["10.0.0.0/8"]), nets(&["10.0.0.0/8", "fd00::/8"]));
    let (before, after) = (world(vec![into_db(before)]), world(vec![into_db(after)]));
    let changes = compare(enforced(&before), enforced(&after), &options());
    assert_eq!(told(&changes), ["x/web@fd00::1 > x/db@fd00::2 denied allowed", "fd00::/8 > x/db denied allowed"]);
}

#[test]
fn endpoints_of_one_side_are_listed_and_make_no_pairs() {
    let before = world(vec![]);
    let mut after = world(vec![into_db(nets(&[]))]);
    after.endpoints[0].name.name = "front".to_owned();
    let changes = compare(enforced(&before), enforced(&after), &options());
    assert_eq!((changes.endpoints.added, changes.endpoints.removed), (vec!["x/front".into()], vec!["x/web".into()]));
    assert!(changes.pairs.iter().all(|pair| pair.to == "x/db" && !pair.from.contains("web")), "{:?}", changes.pairs);
    assert_eq!(changes.pairs.len(), 2);
}

#[test]
fn order_of_endpoints_makes_no_difference() {
    let web = sample::from(EntityMatch { selector: Some(sample::named("web")), ..EntityMatch::default() });
    let before = world(vec![into_db(web)]);
    let mut after = before.clone();
    after.endpoints.reverse();
    assert_eq!(compare(enforced(&before), enforced(&after), &options()), Changes::default());
}

#[test]
fn audited_policies_count_where_they_are_asked_for() {
    let world = world(vec![Policy { audit: true, ..into_db(nets(&["10.0.0.0/8", "fd00::/8"])) }]);
    assert_eq!(compare(enforced(&world), enforced(&world), &options()), Changes::default());
    let audited = View { world: &world, regime: Regime::WithAudited };
    let changes = compare(enforced(&world), audited, &options());
    assert_eq!(told(&changes), ["0.0.0.0/0 > x/db allowed denied", "::/0 > x/db allowed denied"]);
}

#[test]
fn icmp_and_ports_are_told_apart() {
    let ports = sample::to(EntityMatch { ports: Some(vec![PortMatch::Range(80..=80)]), ..EntityMatch::default() });
    let (before, after) = (world(vec![]), world(vec![into_db(ports)]));
    let probes = ["80/tcp", "81/tcp", "icmp"].map(|probe| probe.parse().unwrap()).to_vec();
    let changes = compare(enforced(&before), enforced(&after), &Options { probes, ..options() });
    let web = changes.pairs.iter().filter(|pair| pair.from == "x/web" && pair.to == "x/db");
    let told: Vec<_> =
        web.map(|pair| (pair.port, pair.protocol.as_str(), pair.icmp_type, pair.source_address)).collect();
    assert_eq!(told, [(Some(81), "TCP", None, None), (None, "ICMP", Some(8), None)]);
}
