//! Labels that nobody wrote and that selectors may look at.

use std::collections::BTreeSet;

use super::RESERVED;
use crate::{
    format::selector,
    model::{EntityMatch, Expr, PolicyKind, Scope, Selector, World},
};

/// The namespace of an endpoint or network set.
const NAMESPACE: &str = "projectcalico.org/namespace";
/// Where a workload comes from: always Kubernetes', as far as policies are concerned.
const ORCHESTRATOR: &str = "projectcalico.org/orchestrator";
/// What tells network sets from endpoints.
const KIND: &str = "projectcalico.org/kind";

/// Adds the labels that Calico derives, as far as a selector of `world` looks at them, and keeps
/// Kubernetes' selectors, which are about pods, from choosing network sets.
pub fn derive_labels(world: &mut World) {
    let keys = mentioned(world);
    let mentions = |key: &str| keys.contains(key);
    for endpoint in &mut world.endpoints {
        let derived = [(NAMESPACE, endpoint.name.namespace.as_str()), (ORCHESTRATOR, "k8s")];
        for (key, value) in derived.into_iter().filter(|(key, _)| mentions(key)) {
            endpoint.labels.insert(key.to_owned(), value.to_owned());
        }
    }
    for set in &mut world.sets {
        if let Some(namespace) = set.namespace.clone().filter(|_| mentions(NAMESPACE)) {
            set.labels.insert(NAMESPACE.to_owned(), namespace);
        }
        set.labels.insert(KIND.to_owned(), "NetworkSet".to_owned());
    }
    if !world.sets.is_empty() {
        keep_to_endpoints(world);
    }
}

fn mentioned(world: &World) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    let mut look = |expr: &Expr| {
        selector::keys(expr, &mut |key| {
            if key.starts_with(RESERVED) {
                keys.insert(key.to_owned());
            }
        });
    };
    for policy in world.tiers.iter().flat_map(|tier| &tier.policies) {
        look(&policy.subject.labels);
        for rule in policy.ingress.iter().chain(&policy.egress).flatten() {
            for EntityMatch { selector, not_selector, .. } in [&rule.matches.source, &rule.matches.destination] {
                selector.iter().chain(not_selector).for_each(|selector| look(&selector.labels));
            }
        }
    }
    keys
}

fn keep_to_endpoints(world: &mut World) {
    let of_pods = |kind| {
        matches!(
            kind,
            PolicyKind::NetworkPolicy
                | PolicyKind::StagedKubernetesNetworkPolicy
                | PolicyKind::ClusterNetworkPolicy
                | PolicyKind::AdminNetworkPolicy
                | PolicyKind::BaselineAdminNetworkPolicy
        )
    };
    let policies = world.tiers.iter_mut().flat_map(|tier| &mut tier.policies).filter(|policy| of_pods(policy.kind));
    for rule in policies.flat_map(|policy| policy.ingress.iter_mut().chain(&mut policy.egress)).flatten() {
        for end in [&mut rule.matches.source, &mut rule.matches.destination] {
            let Some(Selector { scope, labels }) = &mut end.selector else { continue };
            // A peer of nodes is about sets: those that stand for nodes.
            if *scope == Scope::Global {
                continue;
            }
            let no_set = Expr::Not(Box::new(Expr::Has(KIND.to_owned())));
            *labels = match std::mem::replace(labels, Expr::All) {
                Expr::All => no_set,
                said => Expr::And(vec![no_set, said]),
            };
        }
    }
}
