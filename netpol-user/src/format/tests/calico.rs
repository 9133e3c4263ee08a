//! `projectcalico.org/v3`.

use super::{
    allowed, calico_policy, endpoint, errors, global_policy, ingress, load, network_policy, only_error, only_ingress,
    only_policy, warnings, world,
};
use crate::model::{Action, Expr, IcmpMatch, PortMatch, Protocol, Scope, Selector, TierDefault};

fn tier(name: &str, spec: &str) -> String {
    format!("---\napiVersion: projectcalico.org/v3\nkind: Tier\nmetadata: {{name: {name}}}\nspec: {spec}\n")
}

fn eq(key: &str, value: &str) -> Expr {
    Expr::Eq(key.to_owned(), value.to_owned())
}

#[test]
fn types_left_out_follow_the_rules() {
    for (spec, isolates) in [
        ("{}", (true, false)),
        ("{ingress: [{action: Allow}]}", (true, false)),
        ("{egress: [{action: Allow}]}", (false, true)),
        ("{ingress: [{action: Allow}], egress: [{action: Allow}]}", (true, true)),
        ("{types: [Egress], ingress: [{action: Allow}]}", (false, true)),
    ] {
        let world = world(&calico_policy(spec));
        let policy = only_policy(&world);
        assert_eq!((policy.ingress.is_some(), policy.egress.is_some()), isolates, "{spec}");
    }
}

#[test]
fn selectors_of_a_rule_stay_in_the_namespace_unless_told() {
    let source = |entity: &str| {
        let world = world(&calico_policy(&format!("{{ingress: [{{action: Allow, source: {entity}}}]}}")));
        only_ingress(&world).source.clone()
    };
    let own = Scope::Namespace("x".to_owned());
    let selector = |scope: &Scope, labels| Some(Selector { scope: scope.clone(), labels });
    assert_eq!(source("{selector: a == 'b'}").selector, selector(&own, eq("a", "b")));
    let negated = source("{notSelector: a == 'b'}");
    assert_eq!(negated.selector, selector(&own, Expr::All), "`notSelector` alone still means this namespace");
    assert_eq!(negated.not_selector, selector(&Scope::Any, eq("a", "b")));
    assert_eq!(source("{nets: [10.0.0.0/8]}").selector, None);
    let every = Scope::Matching(Expr::Has("kubernetes.io/metadata.name".to_owned()));
    assert_eq!(source("{namespaceSelector: all()}").selector, selector(&every, Expr::All));
    let not_y = Scope::Matching(Expr::Ne("n".to_owned(), "y".to_owned()));
    assert_eq!(source("{namespaceSelector: n != 'y', selector: a == 'b'}").selector, selector(&not_y, eq("a", "b")));
    assert_eq!(source("{namespaceSelector: ' global() '}").selector, selector(&Scope::Global, Expr::All));
    let named = Scope::Matching(eq("kubernetes.io/metadata.name", "y"));
    assert_eq!(source("{namespaceSelector: projectcalico.org/name == 'y'}").selector, selector(&named, Expr::All));
}

#[test]
fn selectors_of_a_global_policy_look_everywhere() {
    let world = world(&global_policy("{ingress: [{action: Deny, source: {selector: a == 'b', notSelector: has(c)}}]}"));
    let source = &only_ingress(&world).source;
    assert_eq!(source.selector, Some(Selector { scope: Scope::Any, labels: eq("a", "b") }));
    assert_eq!(source.not_selector, Some(Selector { scope: Scope::Any, labels: Expr::Has("c".to_owned()) }));
    assert_eq!(only_policy(&world).subject, Selector::EVERYTHING);
}

#[test]
fn service_accounts_are_labels_that_calico_derives() {
    let spec = "{serviceAccountSelector: team == 'a', ingress: [{action: Allow, \
                source: {serviceAccounts: {names: [web], selector: team == 'b'}}}]}";
    let world = world(&calico_policy(spec));
    assert_eq!(only_policy(&world).subject.labels, eq("pcsa.team", "a"));
    let source = only_ingress(&world).source.selector.clone().expect("a selector");
    assert_eq!(source.scope, Scope::Namespace("x".to_owned()));
    let names = Expr::In("projectcalico.org/serviceaccount".to_owned(), vec!["web".to_owned()]);
    assert_eq!(source.labels, Expr::And(vec![names, eq("pcsa.team", "b")]));
}

#[test]
fn the_namespace_is_a_label_when_a_selector_looks_at_it() {
    let text =
        global_policy("{selector: projectcalico.org/namespace == 'x'}") + &endpoint("x", "a") + &endpoint("y", "b");
    let world = world(&text);
    assert!(!allowed(&world, "y/b", "x/a", 80));
    assert!(allowed(&world, "x/a", "y/b", 80));
    let plain = super::world(&(global_policy("{}") + &endpoint("x", "a")));
    assert_eq!(plain.endpoints[0].labels.len(), 1, "nobody looks at derived labels here");
}

#[test]
fn ports_are_numbers_ranges_and_names() {
    let world = world(&calico_policy(
        "{ingress: [{action: Allow, protocol: TCP, source: {notPorts: [1]}, destination: {ports: [80, \"81\", \"1:10\", http]}}]}",
    ));
    let only = only_ingress(&world);
    let name = PortMatch::Named("http".to_owned());
    let ranges = [80..=80, 81..=81, 1..=10].map(PortMatch::Range);
    assert_eq!(only.destination.ports, Some([ranges.as_slice(), &[name]].concat()));
    assert_eq!(only.source.not_ports, [PortMatch::Range(1..=1)]);
}

#[test]
fn protocols_have_names_and_numbers_and_icmp_has_types() {
    let rule = |rule: &str| {
        let world = world(&calico_policy(&format!("{{ingress: [{{action: Allow, {rule}}}]}}")));
        only_ingress(&world).clone()
    };
    assert_eq!(rule("protocol: 47").protocol, Some(Protocol(47)));
    assert_eq!(rule("protocol: UDPLite").protocol, Some(Protocol::UDPLITE));
    assert_eq!(rule("notProtocol: TCP").not_protocol, Some(Protocol::TCP));
    let echo = Some(IcmpMatch { kind: Some(8), code: Some(0) });
    assert_eq!(rule("protocol: ICMP, icmp: {type: 8, code: 0}").icmp, echo);
    assert_eq!(rule("protocol: ICMPv6, notICMP: {type: 8, code: 0}").not_icmp, echo);
    assert_eq!(rule("protocol: ICMP, icmp: {}").icmp, None);
}

#[test]
fn what_is_wrong_in_a_rule_is_said() {
    let cases = [
        ("{}", "`action` is missing"),
        ("{action: allow}", "`allow` is no `action`"),
        ("{action: Allow, ipVersion: 5}", "5 is no IP version"),
        ("{action: Allow, protocol: TPC}", "`TPC` is no protocol"),
        ("{action: Allow, protocol: 256}", "256 is no protocol"),
        ("{action: Allow, destination: {ports: [80]}}", "`ports` without a protocol that has ports"),
        ("{action: Allow, protocol: ICMP, destination: {ports: [a]}}", "`ports` without a protocol that has ports"),
        ("{action: Allow, protocol: TCP, destination: {ports: [\"200:100\"]}}", "the range `200:100` goes down"),
        (
            "{action: Allow, protocol: TCP, destination: {ports: [\"1:2:3\"]}}",
            "`1:2:3` is neither a port, a range of ports nor a name",
        ),
        ("{action: Allow, icmp: {type: 8}}", "`icmp` without ICMP"),
        ("{action: Allow, protocol: ICMP, icmp: {code: 0}}", "an ICMP code without a type"),
        ("{action: Allow, protocol: ICMP, icmp: {type: 255}}", "255 is no ICMP type"),
        ("{action: Allow, protocol: ICMP, ipVersion: 6}", "the rule is about IPv4 and IPv6 at once"),
        (
            "{action: Allow, source: {nets: [10.0.0.0/8]}, destination: {nets: [\"fd00::/8\"]}}",
            "the rule is about IPv4 and IPv6 at once",
        ),
        ("{action: Allow, source: {notNets: [\"::/0\"]}}", "`::/0` in `notNets` leaves nothing"),
        ("{action: Allow, source: {selector: global()}}", "`global()` has no meaning here"),
        ("{action: Allow, source: {namespaceSelector: global() && all()}}", "`global()` stands alone"),
        ("{action: Allow, http: {methods: [GET]}}", "`http` has no meaning without an application-layer proxy"),
        (
            "{action: Allow, source: {services: {name: a}}}",
            "`services` has no meaning without Kubernetes' lists of endpoints",
        ),
        ("{action: Allow, metadata: {annotations: {...: x}}}", "`...` is not a valid label key"),
    ];
    for (rule, wanted) in cases {
        let error = only_error(&calico_policy(&format!("{{ingress: [{rule}]}}")));
        assert_eq!(error.split_once(' ').map(|(_, message)| message), Some(wanted), "{rule}");
    }
    for field in ["preDNAT", "doNotTrack", "applyOnForward"] {
        let error = only_error(&global_policy(&format!("{{{field}: true}}")));
        assert!(error.ends_with(&format!("`{field}` has no meaning without host endpoints")), "{error}");
        assert_eq!(errors(&global_policy(&format!("{{{field}: false}}"))), Vec::<String>::new());
    }
}

#[test]
fn a_selector_is_wrong_at_a_column() {
    assert_eq!(
        only_error(&global_policy("\n  selector: a == 'b' && c = 'd'")),
        "5:27 bad selector: `=` is written `==`"
    );
    assert_eq!(only_error(&global_policy("{selector: \"a == 'b' || (\"}")).split(' ').next(), Some("4:32"));
    assert_eq!(only_error(&global_policy(r#"{selector: "a == \"b\" ||"}"#)).split(' ').next(), Some("4:32"));
    let block = global_policy("\n  selector: |\n    a == 'b' ||");
    assert_eq!(only_error(&block).split(' ').next(), Some("6:5"), "of a block its beginning");
}

#[test]
fn names_of_policies_may_carry_their_tier() {
    for (name, valid) in [("a", true), ("tier.a", true), ("a.b.c", false), ("A", false), ("knp.default.x", true)] {
        let text = calico_policy("{}").replace("name: p", &format!("name: {name}"));
        assert_eq!(load(&text).is_ok(), valid, "{name}");
    }
    assert!(load(&global_policy("{}").replace("name: p", "name: knp.default.x")).is_err());
}

#[test]
fn tiers_come_by_order_then_name_and_without_order_last() {
    let policy = |name: &str, tier: &str| {
        let spec = format!("{{tier: {tier}}}");
        format!("---\n{}", global_policy(&spec).replace("name: p", &format!("name: {name}")))
    };
    let text = [
        tier("late", "{}"),
        tier("second", "{order: 20}"),
        tier("first", "{order: 20, defaultAction: Pass}"),
        tier("between", "{order: 5000000}"),
        tier("empty", "{order: 1}"),
    ]
    .concat()
        + &["late", "second", "first", "between", "default"].map(|tier| policy(&format!("of-{tier}"), tier)).concat()
        + "---\n"
        + &super::cluster_policy("");
    let world = world(&text);
    let names: Vec<&str> = world.tiers.iter().map(|tier| tier.name.as_str()).collect();
    assert_eq!(names, ["first", "second", "kube-admin", "default", "between", "late"]);
    assert_eq!(world.tiers[0].default, TierDefault::Pass);
    assert_eq!(world.tiers[1].default, TierDefault::Deny);
}

#[test]
fn in_a_tier_policies_come_by_order_then_name() {
    let policy =
        |name: &str, spec: &str| format!("---\n{}", global_policy(spec).replace("name: p", &format!("name: {name}")));
    let text = policy("z", "{}")
        + &policy("y", "{}")
        + &policy("after", "{order: 1000.5}")
        + &policy("before", "{order: -1}")
        + "---\n"
        + &network_policy("{}").replace("name: p", "name: kubernetes");
    let world = world(&text);
    let names: Vec<&str> = world.tiers[0].policies.iter().map(|policy| policy.name.as_str()).collect();
    assert_eq!(names, ["before", "kubernetes", "after", "y", "z"]);
}

#[test]
fn an_unknown_tier_names_the_nearest() {
    let text = global_policy("{tier: platfrom}") + &tier("platform", "{order: 1}");
    assert_eq!(
        errors(&text),
        ["4:14 there is no tier `platfrom` | did you mean `platform`? (a new tier needs a document of kind Tier)"]
    );
}

#[test]
fn the_built_in_tiers_are_fixed() {
    for (name, spec) in [
        ("default", "{order: 10, defaultAction: Deny}"),
        ("default", "{order: 1000000, defaultAction: Pass}"),
        ("kube-admin", "{order: 1000, defaultAction: Deny}"),
    ] {
        assert!(load(&tier(name, spec)).is_err(), "{name} {spec}");
    }
    assert!(load(&tier("kube-baseline", "{order: 10000000, defaultAction: Pass}")).is_ok());
}

#[test]
fn staged_policies_are_audited_and_staged_deletions_left_out() {
    let staged = |spec: &str| global_policy(spec).replace("kind: Global", "kind: StagedGlobal");
    assert!(only_policy(&world(&staged("{}"))).audit);
    let deletion = load(&staged("{stagedAction: Delete, tier: any}")).expect("valid");
    assert_eq!((deletion.world.tiers.len(), deletion.policies), (0, 1));
    let both = only_error(&staged("{stagedAction: Delete, selector: all()}"));
    assert_eq!(both, "4:30 `selector` beside `stagedAction: Delete`");
}

#[test]
fn network_sets_keep_their_nets_and_calico_its_labels() {
    let set = |labels: &str, nets: &str| {
        format!(
            "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkSet\nmetadata: {{name: s, labels: {{{labels}}}}}\n\
             spec: {{nets: [{nets}]}}\n"
        )
    };
    let world = world(&set("a: b", "10.0.0.1, 11.0.0.0/8, \"fd00::/8\""));
    let nets: Vec<String> = world.sets[0].nets.iter().map(ToString::to_string).collect();
    assert_eq!(nets, ["10.0.0.1/32", "11.0.0.0/8", "fd00::/8"]);
    assert_eq!(only_error(&set("projectcalico.org/x: b", "")), "1:1 the label `projectcalico.org/x` is Calico's own");
    assert_eq!(only_error(&set("", "garbage")), "4:15 `garbage` is not a CIDR");
}

#[test]
fn a_log_rule_decides_nothing_and_says_so() {
    let text = global_policy("\n  ingress:\n    - action: Log\n    - action: Allow");
    let world = world(&text);
    assert_eq!(ingress(&world).iter().map(|rule| rule.action).collect::<Vec<_>>(), [Action::Log, Action::Allow]);
    assert_eq!(
        warnings(&text),
        ["6:7 `Log` has no effect yet | the drops and flows of every rule are shown by `netpol flows`"]
    );
}
