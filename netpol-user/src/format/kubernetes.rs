//! `networking.k8s.io/v1 NetworkPolicy` (and Calico's staged twin of it), `v1 Namespace`, and the
//! label selectors that ClusterNetworkPolicy uses too.
//!
//! The one trap of this API is that empty and absent differ: an absent `from` is everybody, an
//! absent selector is no condition, an empty selector is everything, an absent list of rules
//! under a policy type is nobody.

use super::{
    node::{Node, Pos, Value},
    object::{Collected, NAMESPACE_NAME, Object},
    reader::{Report, Text},
    tiers::{self, Ranked},
    validate,
};
use crate::model::{
    Action, Direction, EntityMatch, Expr, Match, Policy, PolicyKind, PortMatch, Protocol, Rule, Scope, Selector,
};

/// The protocols of Kubernetes' policies.
pub const PROTOCOLS: [(&str, Protocol); 3] = [("TCP", Protocol::TCP), ("UDP", Protocol::UDP), ("SCTP", Protocol::SCTP)];

const DIRECTIONS: [(&str, Direction); 2] = [("Ingress", Direction::Ingress), ("Egress", Direction::Egress)];

/// Where Kubernetes' policies stand among Calico's in the tier `default`.
const ORDER: f64 = 1000.0;

pub fn read_namespace(object: Object<'_>, collected: &mut Collected) {
    let name = object.name();
    if let Some(other) = object.labels.get(NAMESPACE_NAME).filter(|other| **other != name) {
        let message = format!("`{NAMESPACE_NAME}` of namespace `{name}` cannot be `{other}`");
        object.report.error_help(object.name.at, message, "every namespace carries its own name there");
    }
    if let Some(mut spec) = object.spec {
        spec.ignore(&["finalizers"]);
    }
    collected.known_namespaces.insert(name.clone());
    collected.namespace(&name).extend(object.labels);
}

pub fn read_policy(mut object: Object<'_>, collected: &mut Collected) {
    collected.policy_documents += 1;
    let staged = object.kind.kind == "StagedKubernetesNetworkPolicy";
    let report = object.report;
    let namespace = object.namespace.clone().unwrap_or_default();
    let Some(mut spec) = object.required_spec() else { return };
    if staged && tiers::is_staged_deletion(&mut spec, report) {
        return;
    }
    let own = |labels| Selector { scope: Scope::Namespace(namespace.clone()), labels };
    let subject = own(spec.node("podSelector").map_or(Expr::All, |node| label_selector(report, node, "podSelector")));
    let ingress = rules(report, spec.list("ingress"), Direction::Ingress, &namespace);
    let egress = rules(report, spec.list("egress"), Direction::Egress, &namespace);
    let mut types: Vec<Direction> = Vec::new();
    for word in spec.texts("policyTypes").unwrap_or_default() {
        types.extend(super::reader::choose(report, word, "policyTypes", &DIRECTIONS));
    }
    drop(spec);
    if types.is_empty() {
        types.push(Direction::Ingress);
        if !egress.is_empty() {
            types.push(Direction::Egress);
        }
    }
    let policy = Policy {
        kind: if staged { PolicyKind::StagedKubernetesNetworkPolicy } else { PolicyKind::NetworkPolicy },
        name: object.name(),
        subject,
        ingress: types.contains(&Direction::Ingress).then_some(ingress),
        egress: types.contains(&Direction::Egress).then_some(egress),
        audit: staged || object.audit,
        origin: object.origin(),
        namespace: Some(namespace),
    };
    collected.policies.push(Ranked::new(tiers::DEFAULT, Some(ORDER), policy));
}

fn rules(report: &Report, nodes: Option<&[Node]>, direction: Direction, namespace: &str) -> Vec<Rule> {
    let mut rules = Vec::new();
    for (index, node) in nodes.unwrap_or_default().iter().enumerate() {
        let (list, peers) = match direction {
            Direction::Ingress => ("ingress", "from"),
            Direction::Egress => ("egress", "to"),
        };
        let Some(mut rule) = report.fields(node, list) else { continue };
        let peers: Vec<EntityMatch> =
            rule.list(peers).unwrap_or_default().iter().filter_map(|node| peer(report, node, namespace)).collect();
        let ports = ports(report, rule.list("ports").unwrap_or_default());
        let template = Rule {
            action: Action::Allow,
            index: index as u32,
            origin: report.origin(node.at),
            matches: Match::default(),
        };
        rules.extend(expand(report, &template, direction, Named { peers, ports }));
    }
    rules
}

/// A group of ports of one protocol.
#[derive(Clone, Debug)]
pub struct Ports {
    pub protocol: Option<Protocol>,
    /// `None`: all.
    pub ports: Option<Vec<PortMatch>>,
}

/// Whom a document's rule names, and which ports.
pub struct Named {
    /// Empty: everybody.
    pub peers: Vec<EntityMatch>,
    /// Empty: all protocols.
    pub ports: Vec<Ports>,
}

/// A document's rule as rules of the model: each peer with each protocol.
pub fn expand(report: &Report, template: &Rule, direction: Direction, named: Named) -> Vec<Rule> {
    /// Peers times ports of one rule: a rule may not grow far beyond the text that says it.
    const MOST: usize = 100_000;
    let Named { mut peers, mut ports } = named;
    if peers.is_empty() {
        peers.push(EntityMatch::default());
    }
    if ports.is_empty() {
        ports.push(Ports { protocol: None, ports: None });
    }
    let each: usize = ports.iter().map(|group| group.ports.as_ref().map_or(1, Vec::len).max(1)).sum();
    if peers.len().saturating_mul(each) > MOST {
        let at = Pos { line: template.origin.line, column: template.origin.column };
        let message = format!("the rule names {} peers and {each} ports", peers.len());
        report.error_help(at, message, format!("their product must not exceed {MOST}; use ranges and wider CIDRs"));
        return Vec::new();
    }
    let mut rules = Vec::with_capacity(peers.len() * ports.len());
    for peer in &peers {
        for group in &ports {
            let mut rule = template.clone();
            rule.matches.protocol = group.protocol;
            match direction {
                Direction::Ingress => rule.matches.source = peer.clone(),
                Direction::Egress => rule.matches.destination = peer.clone(),
            }
            rule.matches.destination.ports.clone_from(&group.ports);
            rules.push(rule);
        }
    }
    rules
}

fn peer(report: &Report, node: &Node, namespace: &str) -> Option<EntityMatch> {
    let mut peer = report.fields(node, "peer")?;
    let pods = peer.node("podSelector").map(|node| label_selector(report, node, "podSelector"));
    let namespaces = peer.node("namespaceSelector").map(|node| label_selector(report, node, "namespaceSelector"));
    let block = peer.node("ipBlock");
    let selects = pods.is_some() || namespaces.is_some();
    match (block, selects) {
        (Some(block), false) => ip_block(report, block),
        (Some(block), true) => {
            report.error_help(block.at, "`ipBlock` stands alone in a peer", "make it an item of its own in the list");
            None
        }
        (None, true) => {
            let scope = namespaces.map_or_else(|| Scope::Namespace(namespace.to_owned()), Scope::Matching);
            let selector = Selector { scope, labels: pods.unwrap_or(Expr::All) };
            Some(EntityMatch { selector: Some(selector), ..EntityMatch::default() })
        }
        (None, false) => {
            if peer.present().next().is_none() {
                let help = "give it a `podSelector`, a `namespaceSelector` or an `ipBlock`; \
                            for everybody leave the whole list out";
                report.error_help(node.at, "an empty peer", help);
            }
            None
        }
    }
}

fn ip_block(report: &Report, node: &Node) -> Option<EntityMatch> {
    let mut block = report.fields(node, "ipBlock")?;
    let cidr = block.text("cidr");
    let cidr = block.require("cidr", cidr);
    let net = cidr.and_then(|text| validate::cidr(report, text));
    let mut not_nets = Vec::new();
    for text in block.texts("except").unwrap_or_default() {
        let Some(except) = validate::cidr(report, text) else { continue };
        if let Some(net) = net.filter(|net| !net.contains(&except) || net.prefix_len() >= except.prefix_len()) {
            let message = format!("`{}` is not inside of `{net}`", text.text);
            report.error_help(text.at, message, "`except` takes away parts of `cidr`, smaller than it");
        }
        not_nets.push(except);
    }
    Some(EntityMatch { nets: Some(vec![net?]), not_nets, ..EntityMatch::default() })
}

/// The entries of `ports`, gathered by protocol.
fn ports(report: &Report, nodes: &[Node]) -> Vec<Ports> {
    let mut groups: Vec<Ports> = Vec::new();
    for (protocol, port) in nodes.iter().filter_map(|node| port(report, node)) {
        let index = groups.iter().position(|group| group.protocol == Some(protocol)).unwrap_or_else(|| {
            groups.push(Ports { protocol: Some(protocol), ports: Some(Vec::new()) });
            groups.len() - 1
        });
        let group = &mut groups[index].ports;
        match (port, group.as_mut()) {
            (Some(port), Some(ports)) => ports.push(port),
            (None, _) => *group = None,
            (Some(_), None) => {}
        }
    }
    groups
}

fn port(report: &Report, node: &Node) -> Option<(Protocol, Option<PortMatch>)> {
    let mut fields = report.fields(node, "ports")?;
    let protocol = match fields.node("protocol") {
        Some(_) => fields.choice("protocol", &PROTOCOLS)?,
        None => Protocol::TCP,
    };
    let end = fields.integer("endPort");
    let Some(port) = fields.node("port") else {
        if let Some((_, at)) = end {
            report.error_help(at, "`endPort` without `port`", "`port` is where the range begins");
        }
        return Some((protocol, None));
    };
    let first = match &port.value {
        Value::Scalar(scalar) if scalar.integer().is_none() => {
            if let Some((_, at)) = end {
                report.error_help(at, "`endPort` goes with the number of a port, not with a name", "leave it out");
            }
            let name = validate::port_name(report, report.text(port, "port")?)?;
            return Some((protocol, Some(PortMatch::Named(name))));
        }
        _ => report.integer(port, "port").and_then(|number| validate::port(report, number, port.at))?,
    };
    let last = match end {
        Some((number, at)) => {
            let last = validate::port(report, number, at)?;
            if last < first {
                let message = format!("`endPort` {last} is lower than `port` {first}");
                report.error_help(at, message, "a range goes from `port` up to `endPort`");
            }
            last
        }
        None => first,
    };
    Some((protocol, Some(PortMatch::Range(first..=last))))
}

#[derive(Clone, Copy)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

const OPERATORS: [(&str, Operator); 4] = [
    ("In", Operator::In),
    ("NotIn", Operator::NotIn),
    ("Exists", Operator::Exists),
    ("DoesNotExist", Operator::DoesNotExist),
];

/// `matchLabels` and `matchExpressions`: all must hold; an empty selector selects everything.
pub fn label_selector(report: &Report, node: &Node, name: &'static str) -> Expr {
    let Some(mut selector) = report.fields(node, name) else { return Expr::All };
    let mut all = Vec::new();
    for (key, value) in selector.string_map("matchLabels").unwrap_or_default() {
        validate::label(report, key, value);
        all.push(Expr::Eq(key.text.to_owned(), value.text.to_owned()));
    }
    all.extend(
        selector.list("matchExpressions").unwrap_or_default().iter().filter_map(|node| requirement(report, node)),
    );
    match all.len() {
        0 => Expr::All,
        1 => all.remove(0),
        _ => Expr::And(all),
    }
}

fn requirement(report: &Report, node: &Node) -> Option<Expr> {
    let mut fields = report.fields(node, "matchExpressions")?;
    let (key, operator) = (fields.text("key"), fields.choice("operator", &OPERATORS));
    let (key, operator) = (fields.require("key", key), fields.require("operator", operator));
    let values = fields.texts("values").unwrap_or_default();
    for value in &values {
        validate::label_value(report, *value);
    }
    let (key, operator) = (key?, operator?);
    validate::label_key(report, key);
    if matches!(operator, Operator::In | Operator::NotIn) == values.is_empty() {
        let (message, help) = match values.is_empty() {
            true => ("`In` and `NotIn` need `values`", "list the values"),
            false => ("`Exists` and `DoesNotExist` take no `values`", "leave `values` out, or use `In` or `NotIn`"),
        };
        report.error_help(fields.key_at("values").unwrap_or(fields.at), message, help);
        return None;
    }
    let key = key.text.to_owned();
    let values = || values.iter().map(|Text { text, .. }| (*text).to_owned()).collect();
    Some(match operator {
        Operator::In => Expr::In(key, values()),
        Operator::NotIn => Expr::NotIn(key, values()),
        Operator::Exists => Expr::Has(key),
        Operator::DoesNotExist => Expr::Not(Box::new(Expr::Has(key))),
    })
}
