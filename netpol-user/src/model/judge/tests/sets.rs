//! Network sets: labels for addresses.

use super::*;

fn with_set(kind: PolicyKind, namespace: Option<&str>, matches: Match) -> World {
    let mut world = only(matches);
    world.tiers[0].policies[0].kind = kind;
    world.sets = vec![NetworkSet {
        namespace: namespace.map(str::to_owned),
        name: "partners".to_owned(),
        labels: labels("name=partners"),
        nets: vec!["192.0.2.0/24".parse().unwrap(), "10.0.1.0/24".parse().unwrap()],
        origin: origin("sets.yaml", 1),
    }];
    world
}

#[test]
fn network_sets_lend_their_labels_to_addresses() {
    let selector = Some(named("partners"));
    let peer = from(EntityMatch { selector: selector.clone(), ..EntityMatch::default() });
    let world = with_set(PolicyKind::GlobalNetworkPolicy, None, peer);
    assert!(into_db(&world, outside("192.0.2.7"), tcp(80)));
    assert!(!into_db(&world, outside("192.0.3.7"), tcp(80)));
    assert!(into_db(&world, party(&world, OTHER), tcp(80)), "an endpoint's address is in the set");
    assert!(!into_db(&world, party(&world, WEB), tcp(80)));
    let world = with_set(
        PolicyKind::GlobalNetworkPolicy,
        None,
        from(EntityMatch { not_selector: selector, ..EntityMatch::default() }),
    );
    assert!(!into_db(&world, outside("192.0.2.7"), tcp(80)));
    assert!(into_db(&world, outside("192.0.3.7"), tcp(80)));
}

#[test]
fn network_sets_are_scoped_like_endpoints() {
    let scoped = |scope, namespace| {
        let selector = Some(Selector { scope, labels: Expr::All });
        let peer = from(EntityMatch { selector, ..EntityMatch::default() });
        let world = with_set(PolicyKind::CalicoNetworkPolicy, namespace, peer);
        into_db(&world, outside("192.0.2.7"), tcp(80))
    };
    let not_x = || Scope::Matching(Expr::Ne("kubernetes.io/metadata.name".into(), "x".into()));
    assert!(scoped(Scope::Namespace("x".into()), Some("x")));
    assert!(!scoped(Scope::Namespace("x".into()), Some("y")));
    assert!(!scoped(Scope::Namespace("x".into()), None));
    assert!(scoped(Scope::Global, None));
    assert!(!scoped(Scope::Global, Some("x")));
    assert!(scoped(not_x(), Some("y")));
    assert!(!scoped(not_x(), Some("x")));
    assert!(scoped(not_x(), None), "what has no namespace is matched like no labels");
}

#[test]
fn kubernetes_peers_are_never_network_sets() {
    let peer = || from(EntityMatch { selector: Some(Selector::EVERYTHING), ..EntityMatch::default() });
    for (kind, sees_sets) in [
        (PolicyKind::NetworkPolicy, false),
        (PolicyKind::ClusterNetworkPolicy, false),
        (PolicyKind::AdminNetworkPolicy, false),
        (PolicyKind::BaselineAdminNetworkPolicy, false),
        (PolicyKind::StagedKubernetesNetworkPolicy, false),
        (PolicyKind::CalicoNetworkPolicy, true),
        (PolicyKind::GlobalNetworkPolicy, true),
    ] {
        let world = with_set(kind, None, peer());
        assert_eq!(into_db(&world, outside("192.0.2.7"), tcp(80)), sees_sets, "{kind:?}");
        assert!(into_db(&world, party(&world, WEB), tcp(80)), "{kind:?}");
    }
}

#[test]
fn network_sets_are_never_subjects() {
    let mut world = with_set(PolicyKind::GlobalNetworkPolicy, None, Match::default());
    world.tiers[0].policies[0].subject = named("partners");
    let judgement = judge(&world, party(&world, WEB), party(&world, OTHER), tcp(80));
    assert_eq!(judgement.ingress.unwrap().reason, Reason::Profile);
}
