//! What holds in any world.

use proptest::prelude::*;

use super::*;

fn any_rule() -> impl Strategy<Value = Rule> {
    let action = prop_oneof![Just(Action::Allow), Just(Action::Deny), Just(Action::Pass), Just(Action::Log)];
    let peer = prop_oneof![Just(None), Just(Some("web")), Just(Some("db")), Just(Some("other"))];
    let ports =
        prop_oneof![Just(None), Just(Some(vec![])), Just(Some(vec![range(80, 80)])), Just(Some(vec![range(1, 90)]))];
    (action, peer, ports).prop_map(|(action, peer, ports)| {
        let source = EntityMatch { selector: peer.map(named), ..EntityMatch::default() };
        let destination = EntityMatch { ports, ..EntityMatch::default() };
        rule(action, Match { source, destination, ..Match::default() })
    })
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let subject = prop_oneof![Just(Selector::EVERYTHING), Just(named("db")), Just(named("web"))];
    let rules = || proptest::option::of(proptest::collection::vec(any_rule(), 0..4));
    (subject, rules(), rules(), proptest::bool::weighted(0.2)).prop_map(|(subject, ingress, egress, audit)| Policy {
        subject,
        ingress,
        egress,
        audit,
        ..policy("p")
    })
}

fn any_world() -> impl Strategy<Value = World> {
    let default = prop_oneof![Just(TierDefault::Deny), Just(TierDefault::Pass)];
    let any_tier = (default, proptest::collection::vec(any_policy(), 0..4))
        .prop_map(|(default, policies)| tier("t", default, policies));
    let profile = prop_oneof![Just(Profile::Allow), Just(Profile::Deny)];
    (proptest::collection::vec(any_tier, 0..4), profile).prop_map(|(tiers, profile)| World { tiers, profile, ..cast() })
}

/// Verdicts of everybody about everybody.
fn verdicts(world: &World) -> Vec<[Option<bool>; 2]> {
    let parties = [party(world, WEB), party(world, DB), party(world, OTHER), outside("192.0.2.1")];
    let pairs = parties.into_iter().flat_map(|from| parties.map(|to| (from, to)));
    let judged = pairs.flat_map(|(from, to)| [80, 90, 91].map(|port| judge(world, from, to, tcp(port))));
    judged.map(|judgement| [judgement.egress, judgement.ingress].map(|side| side.map(|d| d.allowed))).collect()
}

fn edited(world: &World, edit: impl Fn(&mut Tier)) -> World {
    let mut world = world.clone();
    world.tiers.iter_mut().for_each(edit);
    world
}

fn rules_of(policy: &mut Policy) -> impl Iterator<Item = &mut Vec<Rule>> {
    policy.ingress.iter_mut().chain(policy.egress.iter_mut())
}

proptest! {
    #[test]
    fn staged_policies_change_no_verdict(world in any_world()) {
        let without = edited(&world, |tier| tier.policies.retain(|policy| !policy.audit));
        prop_assert_eq!(verdicts(&world), verdicts(&without));
    }

    #[test]
    fn audited_policies_would_decide_as_if_they_were_enforced(world in any_world()) {
        let enforced = edited(&world, |tier| tier.policies.iter_mut().for_each(|policy| policy.audit = false));
        let parties = [party(&world, WEB), party(&world, DB), party(&world, OTHER), outside("192.0.2.1")];
        for (from, to) in parties.into_iter().flat_map(|from| parties.map(|to| (from, to))) {
            let question = Question { world: &world, from, to, opening: tcp(80), regime: Regime::WithAudited };
            prop_assert_eq!(question.judge(), judge(&enforced, from, to, tcp(80)));
        }
    }

    #[test]
    fn log_rules_change_no_verdict(world in any_world()) {
        let without = edited(&world, |tier| {
            let rules = tier.policies.iter_mut().flat_map(rules_of);
            rules.for_each(|rules| rules.retain(|rule| rule.action != Action::Log));
        });
        prop_assert_eq!(verdicts(&world), verdicts(&without));
    }

    #[test]
    fn rules_behind_one_that_matches_everything_change_no_verdict(world in any_world()) {
        let deciding = |rule: &Rule| rule.action != Action::Log && rule.matches.source == EntityMatch::default()
            && rule.matches.destination == EntityMatch::default();
        let without = edited(&world, |tier| {
            let rules = tier.policies.iter_mut().flat_map(rules_of);
            rules.for_each(|rules| if let Some(at) = rules.iter().position(deciding) { rules.truncate(at + 1) });
        });
        prop_assert_eq!(verdicts(&world), verdicts(&without));
    }

    /// What Kubernetes promises: policies of one tier that only allow are a union, in any order.
    #[test]
    fn order_of_policies_that_only_allow_does_not_matter(world in any_world()) {
        let allowing = edited(&world, |tier| {
            let rules = tier.policies.iter_mut().flat_map(rules_of);
            rules.for_each(|rules| rules.retain(|rule| rule.action == Action::Allow));
        });
        let reversed = edited(&allowing, |tier| tier.policies.reverse());
        prop_assert_eq!(verdicts(&allowing), verdicts(&reversed));
    }

    #[test]
    fn walk_ends_with_the_rule_that_decides(world in any_world(), port in prop_oneof![Just(80u16), Just(90), Just(91)]) {
        let (from, to) = (party(&world, WEB), party(&world, DB));
        let decision = judge(&world, from, to, tcp(port)).ingress.unwrap();
        let steps = walk(&world, from, to, tcp(port), Direction::Ingress).unwrap();
        match decision.reason {
            Reason::Rule { tier, policy, rule } => {
                prop_assert_eq!(steps.last(), Some(&Step::Rule { tier, policy, rule, mismatch: None }));
            }
            Reason::TierDefault { tier, .. } => prop_assert_eq!(steps.last(), Some(&Step::TierEnd { tier })),
            Reason::Profile => {
                let decided = |step: &&Step| matches!(step, Step::Rule { tier, policy, rule, mismatch: None }
                    if matches!(world.tiers[*tier].policies[*policy].ingress.as_ref().unwrap()[*rule].action, Action::Allow | Action::Deny));
                prop_assert!(steps.iter().find(decided).is_none());
            }
        }
    }
}
