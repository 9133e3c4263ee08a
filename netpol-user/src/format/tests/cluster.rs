//! ClusterNetworkPolicy, and its former names.

use super::{allowed, cluster_policy, endpoint, errors, ingress, network_policy, only_error, only_policy, world};
use crate::model::{Action, Expr, PortMatch, Protocol, Scope, TierDefault};

#[test]
fn actions_and_protocols_become_rules() {
    let world = world(&cluster_policy(
        "ingress: [{name: r, action: Accept, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 80}}}, \
         {udp: {destinationPort: {range: {start: 1, end: 9}}}}, {sctp: {}}, {destinationNamedPort: web}]}, \
         {action: Pass, from: [{pods: {namespaceSelector: {}, podSelector: {}}}]}]",
    ));
    let rules = ingress(&world);
    let ports: Vec<_> =
        rules[..4].iter().map(|rule| (rule.matches.protocol, rule.matches.destination.ports.clone())).collect();
    assert_eq!(
        ports,
        [
            (Some(Protocol::TCP), Some(vec![PortMatch::Range(80..=80)])),
            (Some(Protocol::UDP), Some(vec![PortMatch::Range(1..=9)])),
            (Some(Protocol::SCTP), None),
            (None, Some(vec![PortMatch::Named("web".to_owned())])),
        ]
    );
    assert_eq!((rules[0].action, rules[4].action), (Action::Allow, Action::Pass));
    assert_eq!(world.tiers[0].default, TierDefault::Pass);
}

#[test]
fn a_direction_without_rules_is_not_mentioned() {
    let world = world(&cluster_policy("egress: [{action: Deny, to: [{networks: [0.0.0.0/0]}]}]"));
    assert!(only_policy(&world).ingress.is_none());
    assert!(only_policy(&world).egress.is_some());
}

#[test]
fn nodes_are_global_sets_that_say_so() {
    let world = world(&cluster_policy("egress: [{action: Deny, to: [{nodes: {matchLabels: {os: linux}}}]}]"));
    let rules = only_policy(&world).egress.as_deref().expect("egress rules");
    let selector = rules[0].matches.destination.selector.clone().expect("a selector");
    assert_eq!(selector.scope, Scope::Global);
    let linux = Expr::Eq("os".to_owned(), "linux".to_owned());
    assert_eq!(selector.labels, Expr::And(vec![Expr::Has("netpol.dev/node".to_owned()), linux]));
}

#[test]
fn what_is_not_known_of_a_peer_is_never_everybody() {
    let cases = [
        ("ingress: [{action: Accept, from: [{}]}]", "an empty peer"),
        ("ingress: [{action: Accept, from: []}]", "`from` is empty"),
        ("ingress: [{action: Accept}]", "`from` is missing"),
        ("ingress: [{action: Accept, from: [{namespace: {}}]}]", "unknown field `namespace`"),
        ("ingress: [{action: Accept, from: [{nodes: {}}]}]", "unknown field `nodes`"),
        (
            "ingress: [{action: Accept, from: [{namespaces: {}, networks: [10.0.0.0/8]}]}]",
            "a peer says one thing, found `namespaces`, `networks`",
        ),
        ("egress: [{action: Accept, to: [{networks: []}]}]", "`networks` is empty"),
        (
            "egress: [{action: Accept, to: [{domainNames: [a.example]}]}]",
            "`domainNames` has no meaning without a DNS proxy",
        ),
        ("ingress: [{action: Allow, from: [{namespaces: {}}]}]", "`Allow` is no `action`"),
        ("ingress: [{from: [{namespaces: {}}]}]", "`action` is missing"),
        ("ingress: [{action: Deny, from: [{pods: {podSelector: {}}}]}]", "`namespaceSelector` is missing"),
        (
            "ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {}}}]}]",
            "`destinationPort` is either a `number` or a `range`",
        ),
        ("ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{icmp: {}}]}]", "unknown field `icmp`"),
    ];
    for (fields, wanted) in cases {
        let error = only_error(&cluster_policy(fields));
        assert_eq!(error.split_once(' ').map(|(_, message)| message), Some(wanted), "{fields}");
    }
}

#[test]
fn priority_tier_and_subject_must_be_there() {
    let text =
        "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: p}\nspec: {}\n";
    assert_eq!(errors(text), ["4:7 `tier` is missing", "4:7 `priority` is missing", "4:7 `subject` is missing"]);
    let high = cluster_policy("").replace("priority: 1", "priority: 1001");
    assert_eq!(only_error(&high), "4:31 1001 is no priority");
}

#[test]
fn the_lower_priority_decides_first_and_baseline_comes_last() {
    let deny = cluster_policy("ingress: [{action: Deny, from: [{namespaces: {}}]}]").replace("name: p", "name: deny");
    let accept = cluster_policy("ingress: [{action: Accept, from: [{namespaces: {}}]}]")
        .replace("name: p", "name: accept")
        .replace("priority: 1", "priority: 0");
    let both = format!("{deny}---\n{accept}{}{}", endpoint("x", "a"), endpoint("x", "b"));
    assert!(allowed(&world(&both), "x/a", "x/b", 80));
    let baseline = deny.replace("tier: Admin", "tier: Baseline");
    let open = network_policy("{podSelector: {}, ingress: [{}]}");
    let ends = endpoint("x", "a") + &endpoint("x", "b");
    assert!(!allowed(&world(&format!("{baseline}{ends}")), "x/a", "x/b", 80));
    assert!(allowed(&world(&format!("{baseline}---\n{open}{ends}")), "x/a", "x/b", 80));
}

#[test]
fn the_former_api_means_the_same() {
    let anp = "apiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy\nmetadata: {name: p}\n\
               spec: {priority: 5, subject: {namespaces: {}}, ingress: [{action: Allow, from: [{namespaces: {}}], \
               ports: [{portNumber: {port: 80}}, {portRange: {start: 1, end: 2, protocol: UDP}}, {namedPort: web}]}]}\n";
    let world = world(anp);
    let ports: Vec<_> =
        ingress(&world).iter().map(|rule| (rule.matches.protocol, rule.matches.destination.ports.clone())).collect();
    assert_eq!(
        ports,
        [
            (Some(Protocol::TCP), Some(vec![PortMatch::Range(80..=80)])),
            (Some(Protocol::UDP), Some(vec![PortMatch::Range(1..=2)])),
            (None, Some(vec![PortMatch::Named("web".to_owned())])),
        ]
    );
    let baseline = anp.replace("kind: Admin", "kind: BaselineAdmin").replace("priority: 5, ", "");
    assert_eq!(only_error(&baseline), "3:18 the BaselineAdminNetworkPolicy is called `default`");
}
