//! `networking.k8s.io/v1 NetworkPolicy`: what is empty, what is absent, what is refused.

use super::{allowed, endpoint, errors, ingress, network_policy, only_error, only_ingress, only_policy, world};
use crate::model::{Expr, PortMatch, Protocol, Scope, Selector};

#[test]
fn a_policy_without_types_isolates_ingress_only() {
    let world = world(&network_policy("{podSelector: {}}"));
    let policy = only_policy(&world);
    assert!(policy.ingress.as_ref().is_some_and(Vec::is_empty));
    assert!(policy.egress.is_none());
}

#[test]
fn a_policy_without_types_but_with_egress_rules_isolates_both() {
    let world = world(&network_policy("{podSelector: {}, egress: [{}]}"));
    let policy = only_policy(&world);
    assert!(policy.ingress.is_some() && policy.egress.is_some());
    let none = super::world(&network_policy("{podSelector: {}, egress: []}"));
    assert!(only_policy(&none).egress.is_none(), "an empty list of egress rules isolates nothing by itself");
}

#[test]
fn rules_of_a_direction_that_types_leave_out_do_nothing() {
    let world = world(&network_policy("{podSelector: {}, policyTypes: [Ingress], egress: [{}]}"));
    assert!(only_policy(&world).egress.is_none());
}

#[test]
fn an_empty_from_is_everybody_and_an_empty_ports_is_every_protocol() {
    for rule in ["{}", "{from: [], ports: []}", "{from: null, ports: ~}"] {
        let world = world(&network_policy(&format!("{{ingress: [{rule}]}}")));
        let only = only_ingress(&world);
        assert!(only.source.any_peer(), "{rule}");
        assert_eq!((only.protocol, &only.destination.ports), (None, &None), "{rule}");
    }
}

#[test]
fn the_empty_selector_selects_all_and_both_selectors_must_hold() {
    let peer = |peer: &str| {
        let world = world(&network_policy(&format!("{{ingress: [{{from: [{peer}]}}]}}")));
        only_ingress(&world).source.selector.clone().expect("a selector")
    };
    let own = Scope::Namespace("x".to_owned());
    assert_eq!(peer("{podSelector: {}}"), Selector { scope: own, labels: Expr::All });
    let every = Scope::Matching(Expr::All);
    assert_eq!(peer("{namespaceSelector: {}}"), Selector { scope: every.clone(), labels: Expr::All });
    let a = Expr::Eq("app".to_owned(), "a".to_owned());
    assert_eq!(
        peer("{namespaceSelector: {}, podSelector: {matchLabels: {app: a}}}"),
        Selector { scope: every, labels: a }
    );
}

#[test]
fn expressions_and_labels_hold_together() {
    let spec = "{podSelector: {matchLabels: {a: b}, matchExpressions: [{key: k, operator: In, values: [v, w]}, \
                {key: l, operator: NotIn, values: [v]}, {key: m, operator: Exists}, {key: n, operator: DoesNotExist}]}}";
    let world = world(&network_policy(spec));
    let text = |text: &str| text.to_owned();
    assert_eq!(
        only_policy(&world).subject.labels,
        Expr::And(vec![
            Expr::Eq(text("a"), text("b")),
            Expr::In(text("k"), vec![text("v"), text("w")]),
            Expr::NotIn(text("l"), vec![text("v")]),
            Expr::Has(text("m")),
            Expr::Not(Box::new(Expr::Has(text("n")))),
        ])
    );
}

#[test]
fn each_peer_meets_each_protocol_in_rules_of_one_index_and_origin() {
    let spec = "\n  ingress:\n    - from: [{podSelector: {}}]\n    - from: [{podSelector: {}}, {ipBlock: {cidr: 10.0.0.0/8}}]\n      \
                ports: [{port: 80}, {port: 90, endPort: 99}, {protocol: UDP, port: dns}, {protocol: SCTP}]";
    let world = world(&network_policy(spec));
    let rules = ingress(&world);
    assert_eq!(rules.iter().map(|rule| rule.index).collect::<Vec<_>>(), [0, 1, 1, 1, 1, 1, 1]);
    assert!(rules[1..].iter().all(|rule| (rule.origin.line, rule.origin.column) == (7, 7)));
    let groups: Vec<_> =
        rules[1..4].iter().map(|rule| (rule.matches.protocol, rule.matches.destination.ports.clone())).collect();
    assert_eq!(
        groups,
        [
            (Some(Protocol::TCP), Some(vec![PortMatch::Range(80..=80), PortMatch::Range(90..=99)])),
            (Some(Protocol::UDP), Some(vec![PortMatch::Named("dns".to_owned())])),
            (Some(Protocol::SCTP), None),
        ]
    );
}

#[test]
fn a_protocol_without_a_port_is_all_its_ports_whatever_else_is_listed() {
    for ports in ["[{port: 80}, {protocol: TCP}]", "[{protocol: TCP}, {port: 80}]"] {
        let world = world(&network_policy(&format!("{{ingress: [{{ports: {ports}}}]}}")));
        assert_eq!(only_ingress(&world).destination.ports, None, "{ports}");
    }
}

#[test]
fn except_is_taken_away_and_host_bits_say_nothing() {
    let world =
        world(&network_policy("{ingress: [{from: [{ipBlock: {cidr: 10.0.0.1/24, except: [10.0.0.128/25]}}]}]}"));
    let source = &only_ingress(&world).source;
    assert_eq!(source.nets, Some(vec!["10.0.0.0/24".parse().unwrap()]));
    assert_eq!(source.not_nets, ["10.0.0.128/25".parse().unwrap()]);
}

#[test]
fn what_is_wrong_in_a_rule_is_said_at_its_place() {
    let cases = [
        ("{from: [{}]}", "an empty peer"),
        ("{from: [{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]}", "`ipBlock` stands alone in a peer"),
        ("{from: [{ipBlock: {}}]}", "`cidr` is missing"),
        ("{from: [{ipBlock: {cidr: 10.0.0.1}}]}", "`10.0.0.1` is not a CIDR"),
        (
            "{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]}",
            "`11.0.0.0/16` is not inside of `10.0.0.0/8`",
        ),
        ("{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]}", "`10.0.0.0/8` is not inside of `10.0.0.0/8`"),
        ("{ports: [{port: 0}]}", "0 is not a port"),
        ("{ports: [{port: 65536}]}", "65536 is not a port"),
        ("{ports: [{port: \"80\"}]}", "`80` is not the name of a port"),
        ("{ports: [{port: HTTP}]}", "`HTTP` is not the name of a port"),
        ("{ports: [{port: 90, endPort: 80}]}", "`endPort` 80 is lower than `port` 90"),
        ("{ports: [{port: dns, endPort: 80}]}", "`endPort` goes with the number of a port, not with a name"),
        ("{ports: [{endPort: 80}]}", "`endPort` without `port`"),
        ("{ports: [{protocol: tcp}]}", "`tcp` is no `protocol`"),
        ("{ports: [{protocol: ICMP}]}", "`ICMP` is no `protocol`"),
        ("{ports: 80}", "`ports` must be a list, found a number, `80`"),
        ("{from: [{podSelector: {matchLabels: {a b: c}}}]}", "`a b` is not a valid label key"),
        ("{from: [{podSelector: {matchLabels: {a: 1}}}]}", "`a` must be a string, and `1` without quotes is a number"),
        (
            "{from: [{podSelector: {matchLabels: {a: yes}}}]}",
            "`a` must be a string, and `yes` without quotes is a boolean",
        ),
        ("{from: [{podSelector: {matchExpressions: [{key: a, operator: In}]}}]}", "`In` and `NotIn` need `values`"),
        (
            "{from: [{podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}]}",
            "`Exists` and `DoesNotExist` take no `values`",
        ),
        ("{from: [{podSelector: {matchExpressions: [{key: a, operator: is}]}}]}", "`is` is no `operator`"),
        ("{to: [{}]}", "unknown field `to`"),
    ];
    for (rule, wanted) in cases {
        let error = only_error(&network_policy(&format!("{{ingress: [{rule}]}}")));
        let (place, message) = error.split_once(' ').expect("a place and a message");
        assert_eq!(message, wanted, "{rule}");
        assert!(place.starts_with("4:"), "{rule} {place}");
    }
}

#[test]
fn every_error_of_a_document_is_reported() {
    let text =
        network_policy("\n  podSelecter: {}\n  ingress:\n    - ports: [{port: 0}, {port: 70000}]\n    - form: []");
    assert_eq!(
        errors(&text),
        [
            "5:3 unknown field `podSelecter` | did you mean `podSelector`?",
            "7:22 0 is not a port | ports go from 1 to 65535",
            "7:33 70000 is not a port | ports go from 1 to 65535",
            "8:7 unknown field `form` | did you mean `from`?",
        ]
    );
}

#[test]
fn a_policy_holds_for_its_own_namespace() {
    let text = network_policy("{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}")
        + &endpoint("x", "a")
        + &endpoint("x", "b")
        + &endpoint("y", "c");
    let world = world(&text);
    assert!(allowed(&world, "x/a", "x/b", 80));
    assert!(!allowed(&world, "y/c", "x/b", 80));
    assert!(allowed(&world, "x/a", "y/c", 80));
}

#[test]
fn pods_are_no_network_sets() {
    let set = "---\napiVersion: projectcalico.org/v3\nkind: NetworkSet\nmetadata: {name: s, namespace: x, labels: {app: a}}\n\
               spec: {nets: [10.9.0.0/16]}\n";
    let text =
        network_policy("{ingress: [{from: [{podSelector: {matchLabels: {app: a}}}]}]}") + set + &endpoint("x", "a");
    let world = world(&text);
    let selector = only_ingress(&world).source.selector.clone().expect("a selector");
    let set = &world.sets[0];
    assert!(!selector.selects(&world, set.namespace.as_deref(), &set.labels));
    assert!(selector.selects(&world, Some("x"), &world.endpoints[0].labels));
}
