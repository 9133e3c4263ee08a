//! `projectcalico.org/v3`: policies (enforced and staged), tiers and network sets.

mod derived;
mod rule;

use super::{
    node::shorten,
    object::{Collected, NAMESPACE_NAME, Object},
    reader::{Fields, Report, Text, choose},
    selector,
    tiers::{self, BUILT_IN, Ranked, TierDocument},
    validate::{self, Name},
};
use crate::model::{Direction, Expr, NetworkSet, Policy, PolicyKind, Rule, Scope, Selector, TierDefault};

pub use derived::derive_labels;

/// Calico's own labels; users can't set them on network sets.
const RESERVED: &str = "projectcalico.org/";
/// Calico's name for [`NAMESPACE_NAME`].
const CALICO_NAMESPACE_NAME: &str = "projectcalico.org/name";
/// Labels that Calico derives for a workload from its service account.
const SERVICE_ACCOUNT: &str = "projectcalico.org/serviceaccount";
const SERVICE_ACCOUNT_LABEL: &str = "pcsa.";

const KINDS: [(&str, PolicyKind); 4] = [
    ("NetworkPolicy", PolicyKind::CalicoNetworkPolicy),
    ("GlobalNetworkPolicy", PolicyKind::GlobalNetworkPolicy),
    ("StagedNetworkPolicy", PolicyKind::StagedNetworkPolicy),
    ("StagedGlobalNetworkPolicy", PolicyKind::StagedGlobalNetworkPolicy),
];
const TYPES: [(&str, Direction); 2] = [("Ingress", Direction::Ingress), ("Egress", Direction::Egress)];
const ENDS: [(&str, TierDefault); 2] = [("Deny", TierDefault::Deny), ("Pass", TierDefault::Pass)];
/// Fields of a GlobalNetworkPolicy that are about a host's own interfaces.
const HOST_FIELDS: [&str; 3] = ["preDNAT", "doNotTrack", "applyOnForward"];

pub fn read_policy(mut object: Object<'_>, collected: &mut Collected) {
    collected.policy_documents += 1;
    let report = object.report;
    let kind =
        KINDS.iter().find(|(name, _)| *name == object.kind.kind).map_or(PolicyKind::CalicoNetworkPolicy, |k| k.1);
    let staged = matches!(kind, PolicyKind::StagedNetworkPolicy | PolicyKind::StagedGlobalNetworkPolicy);
    check_policy_name(report, object.name, object.namespace.is_some());
    let Some(mut spec) = object.required_spec() else { return };
    if staged && tiers::is_staged_deletion(&mut spec, report) {
        return;
    }
    let tier = spec.text("tier");
    let order = spec.number("order");
    let subject = subject(report, &mut spec, object.namespace.as_deref());
    let namespace = object.namespace.as_deref();
    let ingress = rules(report, &mut spec, Direction::Ingress, namespace);
    let egress = rules(report, &mut spec, Direction::Egress, namespace);
    let types = types(report, &mut spec, (!ingress.is_empty(), !egress.is_empty()));
    check_hints(report, &mut spec);
    if object.namespace.is_none() {
        refuse_host_fields(report, &mut spec);
    }
    drop(spec);
    let policy = Policy {
        kind,
        namespace: object.namespace.clone(),
        name: object.name(),
        subject,
        ingress: types.contains(&Direction::Ingress).then_some(ingress),
        egress: types.contains(&Direction::Egress).then_some(egress),
        audit: staged || object.audit,
        origin: object.origin(),
    };
    collected.policies.push(match tier.filter(|tier| !tier.text.is_empty()) {
        Some(tier) => Ranked::in_tier(tier.text.to_owned(), report.origin(tier.at), order, policy),
        None => Ranked::new(tiers::DEFAULT, order, policy),
    });
}

/// `name` or `tier.name`. In a namespace also the name that Calico gives a Kubernetes policy.
fn check_policy_name(report: &Report, name: Text<'_>, namespaced: bool) {
    let text = name.text;
    let kubernetes = namespaced && text.strip_prefix("knp.default.").is_some_and(|rest| Name::Subdomain.holds(rest));
    if kubernetes || (Name::Subdomain.holds(text) && text.matches('.').count() <= 1) {
        return;
    }
    let help = "lower-case letters, digits and `-`, after the tier and a `.` if you like, at most 253";
    report.error_help(name.at, format!("`{}` is not a valid name of a policy", shorten(text)), help);
}

fn subject(report: &Report, spec: &mut Fields<'_>, namespace: Option<&str>) -> Selector {
    let mut labels = vec![];
    labels.extend(spec.text("selector").and_then(|text| read_selector(report, text)));
    if let Some(text) = spec.text("serviceAccountSelector").filter(|text| !text.text.is_empty()) {
        labels.extend(read_selector(report, text).map(of_service_account));
    }
    let scope = match namespace {
        Some(namespace) => Scope::Namespace(namespace.to_owned()),
        None => match spec.text("namespaceSelector").filter(|text| !text.text.is_empty()) {
            Some(text) => read_selector(report, text).map_or(Scope::Any, of_namespace),
            None => Scope::Any,
        },
    };
    Selector { scope, labels: all_of(labels) }
}

/// Reads a selector in which `global()` has no place.
fn read_selector(report: &Report, text: Text<'_>) -> Option<Expr> {
    let parsed = parse_selector(report, text)?;
    if let Some(offset) = parsed.global {
        let help = "`global()` stands alone in the `namespaceSelector` of a rule's `source` or `destination`";
        report.error_help(text.inside(offset), "`global()` has no meaning here", help);
    }
    Some(parsed.expr)
}

fn parse_selector(report: &Report, text: Text<'_>) -> Option<selector::Parsed> {
    match selector::parse_with_global(text.text) {
        Ok(parsed) => Some(parsed),
        Err(error) => {
            let help = "a selector is like `app == 'web' && has(tier) || role in {'a', 'b'}`";
            report.error_help(text.inside(error.offset), format!("bad selector: {error}"), help);
            None
        }
    }
}

fn all_of(mut all: Vec<Expr>) -> Expr {
    all.retain(|expr| *expr != Expr::All);
    match all.len() {
        0 => Expr::All,
        1 => all.remove(0),
        _ => Expr::And(all),
    }
}

/// `all()` selects every namespace, and not what has none.
fn of_namespace(expr: Expr) -> Scope {
    Scope::Matching(match expr {
        Expr::All => Expr::Has(NAMESPACE_NAME.to_owned()),
        expr => selector::rename(expr, &|key| match key {
            CALICO_NAMESPACE_NAME => NAMESPACE_NAME.to_owned(),
            other => other.to_owned(),
        }),
    })
}

fn of_service_account(expr: Expr) -> Expr {
    selector::rename(expr, &|key| format!("{SERVICE_ACCOUNT_LABEL}{key}"))
}

fn rules(report: &Report, spec: &mut Fields<'_>, direction: Direction, namespace: Option<&str>) -> Vec<Rule> {
    let name = match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    };
    let nodes = spec.list(name).unwrap_or_default();
    nodes.iter().enumerate().filter_map(|(index, node)| rule::read(report, (name, node), index, namespace)).collect()
}

/// Left out: ingress, unless there are only egress rules; both when there are both.
fn types(report: &Report, spec: &mut Fields<'_>, (ingress, egress): (bool, bool)) -> Vec<Direction> {
    let mut types = Vec::new();
    for word in spec.texts("types").unwrap_or_default() {
        let Some(direction) = choose(report, word, "types", &TYPES) else { continue };
        if types.contains(&direction) {
            report.error(word.at, format!("`{}` is given twice", word.text));
        }
        types.push(direction);
    }
    if types.is_empty() {
        if ingress || !egress {
            types.push(Direction::Ingress);
        }
        if egress {
            types.push(Direction::Egress);
        }
    }
    types
}

fn check_hints(report: &Report, spec: &mut Fields<'_>) {
    let mut seen = false;
    for hint in spec.texts("performanceHints").unwrap_or_default() {
        if choose(report, hint, "performanceHints", &[("AssumeNeededOnEveryNode", ())]).is_some() && seen {
            report.error(hint.at, format!("`{}` is given twice", hint.text));
        }
        seen = true;
    }
}

fn refuse_host_fields(report: &Report, spec: &mut Fields<'_>) {
    for name in HOST_FIELDS {
        if spec.boolean(name) == Some(true) {
            let message = format!("`{name}` has no meaning without host endpoints");
            let help = "policies are about containers here; leave it out";
            report.error_help(spec.key_at(name).unwrap_or(spec.at), message, help);
        }
    }
}

pub fn read_tier(mut object: Object<'_>, collected: &mut Collected) {
    let report = object.report;
    let name = object.name();
    let mut order = None;
    let mut default = None;
    let mut order_at = object.at;
    if let Some(mut spec) = object.spec.take() {
        order = spec.number("order");
        order_at = spec.key_at("order").unwrap_or(object.at);
        default = spec.choice("defaultAction", &ENDS);
    }
    if let Some((_, fixed, end)) = BUILT_IN.iter().find(|(built_in, ..)| *built_in == name) {
        if order != Some(*fixed) {
            report.error_help(
                order_at,
                format!("the order of tier `{name}` is fixed"),
                format!("write `order: {fixed}`"),
            );
        }
        if default.is_some_and(|default| default != *end) {
            let message = format!("the default action of tier `{name}` is fixed");
            report.error_help(object.at, message, format!("write `defaultAction: {end:?}`"));
        }
        default = Some(*end);
    }
    collected.tiers.push(TierDocument { name, order, default: default.unwrap_or(TierDefault::Deny) });
}

pub fn read_set(mut object: Object<'_>, collected: &mut Collected) {
    let report = object.report;
    for key in object.labels.keys().filter(|key| key.starts_with(RESERVED)) {
        report.error_help(object.at, format!("the label `{key}` is Calico's own"), "choose another key");
    }
    let mut nets = Vec::new();
    if let Some(mut spec) = object.spec.take() {
        let texts = spec.texts("nets").unwrap_or_default();
        nets.extend(texts.into_iter().filter_map(|text| validate::cidr_or_address(report, text)));
    }
    collected.sets.push(NetworkSet {
        namespace: object.namespace.clone(),
        name: object.name(),
        labels: std::mem::take(&mut object.labels),
        nets,
        origin: object.origin(),
    });
}
