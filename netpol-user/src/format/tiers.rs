//! The order in which policies are asked.
//!
//! | order | tier | holds | at its end |
//! |---|---|---|---|
//! | 1,000 | `kube-admin` | ClusterNetworkPolicy of tier Admin, by priority | pass |
//! | 1,000,000 | `default` | Calico's policies by order, Kubernetes' as order 1,000 | deny |
//! | 10,000,000 | `kube-baseline` | ClusterNetworkPolicy of tier Baseline, by priority | pass |
//!
//! Tiers of `Tier` documents stand between them by their own order. Without an order: last.
//! The same order: by name.

use std::{cmp::Ordering, collections::BTreeMap};

use super::{
    Diagnostic,
    node::Pos,
    reader::{Fields, MAX_REPORTS, Report, did_you_mean},
};
use crate::model::{Origin, Policy, PolicyKind, Tier, TierDefault};

pub const ADMIN: &str = "kube-admin";
pub const DEFAULT: &str = "default";
pub const BASELINE: &str = "kube-baseline";

/// Tiers that exist without a document: name, order, end.
pub const BUILT_IN: [(&str, f64, TierDefault); 3] = [
    (ADMIN, 1_000.0, TierDefault::Pass),
    (DEFAULT, 1_000_000.0, TierDefault::Deny),
    (BASELINE, 10_000_000.0, TierDefault::Pass),
];

/// A `Tier` document.
pub struct TierDocument {
    pub name: String,
    /// `None`: last.
    pub order: Option<f64>,
    pub default: TierDefault,
}

/// A policy and its place.
pub struct Ranked {
    tier: String,
    /// Where a document says `tier:`.
    tier_at: Option<Origin>,
    /// `None`: last.
    order: Option<f64>,
    pub policy: Policy,
}

impl Ranked {
    pub fn new(tier: &str, order: Option<f64>, policy: Policy) -> Self {
        Self { tier: tier.to_owned(), tier_at: None, order, policy }
    }

    /// In a tier that a document names, which may not exist.
    pub fn in_tier(tier: String, at: Origin, order: Option<f64>, policy: Policy) -> Self {
        Self { tier, tier_at: Some(at), order, policy }
    }

    /// Ties are broken as Calico does: by the name that it gives a policy internally.
    fn name(&self) -> String {
        let Policy { kind, namespace, name, .. } = &self.policy;
        let prefix = match kind {
            PolicyKind::NetworkPolicy | PolicyKind::StagedKubernetesNetworkPolicy => "knp.default.",
            _ => "",
        };
        match namespace {
            Some(namespace) => format!("{namespace}/{prefix}{name}"),
            None => name.clone(),
        }
    }
}

/// Puts policies into their tiers and tiers into their order. Tiers without policies are left out.
pub fn order(policies: Vec<Ranked>, documents: Vec<TierDocument>, errors: &mut Vec<Diagnostic>) -> Vec<Tier> {
    let built_in = BUILT_IN.map(|(name, order, default)| (name.to_owned(), (Some(order), default)));
    let mut known: BTreeMap<String, (Option<f64>, TierDefault)> = built_in.into_iter().collect();
    known.extend(documents.into_iter().map(|tier| (tier.name, (tier.order, tier.default))));

    let mut members: BTreeMap<String, Vec<Ranked>> = BTreeMap::new();
    for ranked in policies {
        if !known.contains_key(&ranked.tier) {
            // Looking for the nearest name takes time, and nobody reads thousands of these.
            if errors.len() < MAX_REPORTS {
                errors.push(unknown_tier(&ranked, &known.keys().map(String::as_str).collect::<Vec<_>>()));
            }
            continue;
        }
        members.entry(ranked.tier.clone()).or_default().push(ranked);
    }

    let mut tiers: Vec<(Option<f64>, Tier)> = members
        .into_iter()
        .map(|(name, mut members)| {
            members.sort_by_cached_key(Ranked::name);
            members.sort_by(|a, b| last_if_none(a.order, b.order));
            let (order, default) = known[&name];
            (order, Tier { name, default, policies: members.into_iter().map(|ranked| ranked.policy).collect() })
        })
        .collect();
    // Stable: tiers come by name out of the map.
    tiers.sort_by(|(a, _), (b, _)| last_if_none(*a, *b));
    tiers.into_iter().map(|(_, tier)| tier).collect()
}

fn last_if_none(a: Option<f64>, b: Option<f64>) -> Ordering {
    a.unwrap_or(f64::INFINITY).total_cmp(&b.unwrap_or(f64::INFINITY))
}

fn unknown_tier(ranked: &Ranked, known: &[&str]) -> Diagnostic {
    Diagnostic {
        origin: ranked.tier_at.clone().unwrap_or_else(|| ranked.policy.origin.clone()),
        message: format!("there is no tier `{}`", ranked.tier),
        help: Some(format!("{} (a new tier needs a document of kind Tier)", did_you_mean(&ranked.tier, known))),
    }
}

/// `stagedAction`: whether the policy is about the removal of another (then it says nothing else).
pub fn is_staged_deletion(spec: &mut Fields<'_>, report: &Report) -> bool {
    let deletes = spec.choice("stagedAction", &[("Set", false), ("Delete", true)]).unwrap_or(false);
    if !deletes {
        return false;
    }
    let at: Pos = spec.key_at("stagedAction").unwrap_or(spec.at);
    spec.ignore(&["tier"]);
    for name in spec.present().filter(|name| !matches!(*name, "stagedAction" | "tier")) {
        let message = format!("`{name}` beside `stagedAction: Delete`");
        report.error_help(
            spec.key_at(name).unwrap_or(at),
            message,
            "a staged deletion names the policy and nothing else",
        );
    }
    spec.abandon();
    report.warning(at, "a staged deletion changes nothing", "remove the policy itself to see what happens without it");
    true
}
