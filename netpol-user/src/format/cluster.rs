//! `policy.networking.k8s.io`: v1alpha2 ClusterNetworkPolicy, and what it was called before
//! (v1alpha1 AdminNetworkPolicy and BaselineAdminNetworkPolicy).
//!
//! Both say the same with different words, so one reader reads both and only the words of the
//! ports differ. A peer must say exactly one thing: a field that is not known here is an error and
//! never "nothing said", which would be everybody.

use ipnet::IpNet;

use super::{
    kubernetes::{Named, PROTOCOLS, Ports, expand, label_selector},
    node::Node,
    object::{Collected, Object},
    reader::{Fields, Report},
    tiers::{self, Ranked},
    validate,
};
use crate::model::{
    Action, Direction, EntityMatch, Expr, Match, Policy, PolicyKind, PortMatch, Protocol, Rule, Scope, Selector,
};

/// A GlobalNetworkSet with this label stands for a node (its addresses, with the node's labels).
pub const NODE: &str = "netpol.dev/node";

const TIERS: [(&str, &str); 2] = [("Admin", tiers::ADMIN), ("Baseline", tiers::BASELINE)];
const ACTIONS: [(&str, Action); 3] = [("Accept", Action::Allow), ("Deny", Action::Deny), ("Pass", Action::Pass)];
const FORMER_ACTIONS: [(&str, Action); 3] = [("Allow", Action::Allow), ("Deny", Action::Deny), ("Pass", Action::Pass)];
const FORMER_BASELINE_ACTIONS: [(&str, Action); 2] = [("Allow", Action::Allow), ("Deny", Action::Deny)];
const HIGHEST_PRIORITY: i64 = 1000;

/// How one version of the API words its rules.
struct Wording {
    kind: PolicyKind,
    actions: &'static [(&'static str, Action)],
    /// The rule's list of ports, and the reader of one of them.
    ports: &'static str,
    port: fn(&Report, &Node) -> Option<Ports>,
}

pub fn read_policy(mut object: Object<'_>, collected: &mut Collected) {
    collected.policy_documents += 1;
    let Some(mut spec) = object.required_spec() else { return };
    let tier = spec.choice("tier", &TIERS);
    let tier = spec.require("tier", tier);
    let order = priority(object.report, &mut spec);
    let wording =
        Wording { kind: PolicyKind::ClusterNetworkPolicy, actions: &ACTIONS, ports: "protocols", port: protocol };
    let policy = policy(&object, spec, &wording);
    if let (Some(tier), Some(policy)) = (tier, policy) {
        collected.policies.push(Ranked::new(tier, order, policy));
    }
}

pub fn read_former(mut object: Object<'_>, collected: &mut Collected) {
    collected.policy_documents += 1;
    let Some(mut spec) = object.required_spec() else { return };
    let baseline = object.kind.kind == "BaselineAdminNetworkPolicy";
    let (tier, order, kind, actions): (_, _, _, &[_]) = if baseline {
        if object.name.text != "default" {
            let message = "the BaselineAdminNetworkPolicy is called `default`";
            object.report.error_help(object.name.at, message, "there is one only");
        }
        (tiers::BASELINE, None, PolicyKind::BaselineAdminNetworkPolicy, &FORMER_BASELINE_ACTIONS)
    } else {
        let order = priority(object.report, &mut spec);
        (tiers::ADMIN, order, PolicyKind::AdminNetworkPolicy, &FORMER_ACTIONS)
    };
    let wording = Wording { kind, actions, ports: "ports", port: former_port };
    if let Some(policy) = policy(&object, spec, &wording) {
        collected.policies.push(Ranked::new(tier, order, policy));
    }
}

fn priority(report: &Report, spec: &mut Fields<'_>) -> Option<f64> {
    let priority = spec.integer("priority");
    let (priority, at) = spec.require("priority", priority)?;
    if !(0..=HIGHEST_PRIORITY).contains(&priority) {
        report.error_help(at, format!("{priority} is no priority"), "priorities go from 0 (first) to 1000");
    }
    Some(priority as f64)
}

fn policy(object: &Object<'_>, mut spec: Fields<'_>, wording: &Wording) -> Option<Policy> {
    let report = object.report;
    let subject = spec.node("subject");
    let subject = spec.require("subject", subject).and_then(|node| subject_of(report, node));
    let ingress = spec.list("ingress").map(|nodes| rules(report, nodes, Direction::Ingress, wording));
    let egress = spec.list("egress").map(|nodes| rules(report, nodes, Direction::Egress, wording));
    drop(spec);
    Some(Policy {
        kind: wording.kind,
        namespace: None,
        name: object.name(),
        subject: subject?,
        ingress,
        egress,
        audit: object.audit,
        origin: object.origin(),
    })
}

fn subject_of(report: &Report, node: &Node) -> Option<Selector> {
    let mut subject = report.fields(node, "subject")?;
    let selector = workloads(report, &mut subject);
    exactly_one(report, subject, node, "subject")?;
    selector
}

/// `namespaces` or `pods`.
fn workloads(report: &Report, fields: &mut Fields<'_>) -> Option<Selector> {
    let namespaces = fields
        .node("namespaces")
        .map(|node| Selector { scope: Scope::Matching(label_selector(report, node, "namespaces")), labels: Expr::All });
    let pods = fields.fields("pods").and_then(|mut pods| {
        let namespaces = pods.node("namespaceSelector");
        let labels = pods.node("podSelector");
        let (namespaces, labels) = (pods.require("namespaceSelector", namespaces), pods.require("podSelector", labels));
        Some(Selector {
            scope: Scope::Matching(label_selector(report, namespaces?, "namespaceSelector")),
            labels: label_selector(report, labels?, "podSelector"),
        })
    });
    namespaces.or(pods)
}

/// Reports a map that says nothing or two things.
fn exactly_one(report: &Report, mut fields: Fields<'_>, node: &Node, name: &str) -> Option<()> {
    let present: Vec<&str> = fields.present().collect();
    match present[..] {
        [_] => Some(()),
        [] => {
            report.error_help(node.at, format!("an empty {name}"), "say one thing, such as `namespaces: {}`");
            None
        }
        _ => {
            let message = format!("a {name} says one thing, found `{}`", present.join("`, `"));
            report.error_help(node.at, message, "make each an item of its own");
            fields.abandon();
            None
        }
    }
}

fn rules(report: &Report, nodes: &[Node], direction: Direction, wording: &Wording) -> Vec<Rule> {
    nodes.iter().enumerate().flat_map(|(index, node)| rule(report, node, (index, direction), wording)).collect()
}

fn rule(report: &Report, node: &Node, (index, direction): (usize, Direction), wording: &Wording) -> Vec<Rule> {
    let (list, peers) = match direction {
        Direction::Ingress => ("ingress", "from"),
        Direction::Egress => ("egress", "to"),
    };
    let Some(mut rule) = report.fields(node, list) else { return Vec::new() };
    rule.ignore(&["name"]);
    let action = rule.choice("action", wording.actions);
    let action = rule.require("action", action);
    let nodes = rule.list(peers);
    let nodes = rule.require(peers, nodes);
    if nodes.is_some_and(<[Node]>::is_empty) {
        let at = rule.key_at(peers).unwrap_or(node.at);
        report.error_help(
            at,
            format!("`{peers}` is empty"),
            "everybody is `- namespaces: {}` and `- networks: [0.0.0.0/0, \"::/0\"]`",
        );
    }
    let peers: Vec<EntityMatch> =
        nodes.unwrap_or_default().iter().filter_map(|node| peer(report, node, direction)).collect();
    let ports = rule.list(wording.ports);
    let ports: Vec<Ports> = ports.unwrap_or_default().iter().filter_map(|node| (wording.port)(report, node)).collect();
    drop(rule);
    let (Some(action), false) = (action, peers.is_empty()) else { return Vec::new() };
    let template = Rule { action, index: index as u32, origin: report.origin(node.at), matches: Match::default() };
    expand(report, &template, direction, Named { peers, ports })
}

fn peer(report: &Report, node: &Node, direction: Direction) -> Option<EntityMatch> {
    let mut peer = report.fields(node, "peer")?;
    let selector = workloads(report, &mut peer);
    let nets: Option<Vec<IpNet>> =
        peer.texts("networks").map(|texts| texts.into_iter().filter_map(|text| validate::cidr(report, text)).collect());
    let nodes = match direction {
        Direction::Egress => peer.node("nodes").map(|node| label_selector(report, node, "nodes")),
        Direction::Ingress => None,
    };
    if let (Direction::Egress, Some(names)) = (direction, peer.node("domainNames")) {
        let help = "name the addresses with `networks`";
        report.error_help(names.at, "`domainNames` has no meaning without a DNS proxy", help);
    }
    exactly_one(report, peer, node, "peer")?;
    if nets.as_ref().is_some_and(Vec::is_empty) {
        report.error_help(node.at, "`networks` is empty", "list the CIDRs");
    }
    let selector = match nodes {
        Some(labels) => {
            Some(Selector { scope: Scope::Global, labels: Expr::And(vec![Expr::Has(NODE.to_owned()), labels]) })
        }
        None => selector,
    };
    (selector.is_some() || nets.is_some()).then(|| EntityMatch { selector, nets, ..EntityMatch::default() })
}

/// An item of v1alpha2's `protocols`.
fn protocol(report: &Report, node: &Node) -> Option<Ports> {
    const WORDS: [(&str, Protocol); 3] = [("tcp", Protocol::TCP), ("udp", Protocol::UDP), ("sctp", Protocol::SCTP)];
    let mut fields = report.fields(node, "protocols")?;
    let mut found = fields.text("destinationNamedPort").and_then(|text| named(report, text));
    for (word, protocol) in WORDS {
        let Some(mut inner) = fields.fields(word) else { continue };
        let ports = match inner.fields("destinationPort") {
            Some(port) => Some(vec![destination_port(report, port)?]),
            None => None,
        };
        found = Some(Ports { protocol: Some(protocol), ports });
    }
    exactly_one(report, fields, node, "protocol")?;
    found
}

/// A name stands for the port of that name whatever its protocol.
fn named(report: &Report, text: super::reader::Text<'_>) -> Option<Ports> {
    let name = validate::port_name(report, text)?;
    Some(Ports { protocol: None, ports: Some(vec![PortMatch::Named(name)]) })
}

fn destination_port(report: &Report, mut fields: Fields<'_>) -> Option<PortMatch> {
    let number = fields.integer("number");
    let range = fields.fields("range").and_then(|range| self::range(report, range));
    let at = fields.at;
    if fields.present().count() != 1 {
        report.error_help(at, "`destinationPort` is either a `number` or a `range`", "keep one of the two");
        return None;
    }
    match number {
        Some((number, at)) => validate::port(report, number, at).map(|port| PortMatch::Range(port..=port)),
        None => range,
    }
}

fn range(report: &Report, mut range: Fields<'_>) -> Option<PortMatch> {
    let (start, end) = (range.integer("start"), range.integer("end"));
    let (start, end) = (range.require("start", start), range.require("end", end));
    let ((start, start_at), (end, end_at)) = (start?, end?);
    let (start, end) = (validate::port(report, start, start_at)?, validate::port(report, end, end_at)?);
    if end < start {
        report.error_help(end_at, format!("`end` {end} is lower than `start` {start}"), "exchange the two");
    }
    Some(PortMatch::Range(start..=end))
}

/// An item of v1alpha1's `ports`.
fn former_port(report: &Report, node: &Node) -> Option<Ports> {
    let mut fields = report.fields(node, "ports")?;
    let mut found = fields.text("namedPort").and_then(|text| named(report, text));
    if let Some(mut number) = fields.fields("portNumber") {
        let protocol = former_protocol(&mut number);
        let port = number.integer("port");
        let (port, at) = number.require("port", port)?;
        let port = validate::port(report, port, at)?;
        found = Some(Ports { protocol, ports: Some(vec![PortMatch::Range(port..=port)]) });
    }
    if let Some(mut fields) = fields.fields("portRange") {
        let protocol = former_protocol(&mut fields);
        found = Some(Ports { protocol, ports: Some(vec![range(report, fields)?]) });
    }
    exactly_one(report, fields, node, "port")?;
    found
}

/// TCP where nothing is said.
fn former_protocol(fields: &mut Fields<'_>) -> Option<Protocol> {
    match fields.node("protocol") {
        Some(_) => fields.choice("protocol", &PROTOCOLS),
        None => Some(Protocol::TCP),
    }
}
