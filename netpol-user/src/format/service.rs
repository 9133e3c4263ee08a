//! `v1 Service`: what is published, without a cluster that would hand out addresses and ports.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr},
};

use super::{
    kubernetes::PROTOCOLS,
    node::{Node, Pos, Value, shorten},
    object::{Collected, Object},
    reader::{Fields, Report, Text, labels},
    validate,
};
use crate::model::{
    Expr, IpVersion, Labels, ObjectName, Origin, Protocol, Scope, Selector, Service, ServiceAddress, ServicePort,
    Target, Traffic,
};

/// Fields that say how a cluster provides a service, not what it is.
const CLUSTERS: [&str; 7] = [
    "allocateLoadBalancerNodePorts",
    "externalName",
    "ipFamilyPolicy",
    "loadBalancerClass",
    "topologyKeys",
    "trafficDistribution",
    "trafficPolicy",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    ClusterIp,
    NodePort,
    LoadBalancer,
    ExternalName,
}

const TYPES: [(&str, Type); 4] = [
    ("ClusterIP", Type::ClusterIp),
    ("NodePort", Type::NodePort),
    ("LoadBalancer", Type::LoadBalancer),
    ("ExternalName", Type::ExternalName),
];
const AFFINITIES: [(&str, bool); 2] = [("None", false), ("ClientIP", true)];
const FAMILIES: [(&str, IpVersion); 2] = [("IPv4", IpVersion::V4), ("IPv6", IpVersion::V6)];
const TRAFFIC: [(&str, Traffic); 2] = [("Cluster", Traffic::Cluster), ("Local", Traffic::Local)];

pub fn read(mut object: Object<'_>, collected: &mut Collected) {
    let report = object.report;
    let Some(mut spec) = object.required_spec() else { return };
    spec.ignore(&CLUSTERS);
    let kind = spec.choice("type", &TYPES).unwrap_or(Type::ClusterIp);
    refuse(report, &mut spec, kind);
    let (own, headless) = addresses(report, &mut spec);
    if let (true, Type::NodePort | Type::LoadBalancer) = (headless, kind) {
        let at = spec.key_at("clusterIP").unwrap_or(spec.at);
        report.error_help(at, "a headless service publishes nothing", "leave `clusterIP: None` or the `type` out");
    }
    let external = external(report, &mut spec, kind);
    let has_external = !external.is_empty() || matches!(kind, Type::NodePort | Type::LoadBalancer);
    let (internal_traffic, external_traffic) = traffic_policies(report, &mut spec, (has_external, headless));
    let address = |is_external| move |(address, origin)| ServiceAddress { address, is_external, origin };
    let mut addresses: Vec<_> =
        own.into_iter().map(address(false)).chain(external.into_iter().map(address(true))).collect();
    let mut seen = HashSet::new();
    addresses.retain(|own| seen.insert(own.address));
    let sticky = spec.choice("sessionAffinity", &AFFINITIES).unwrap_or(false);
    let timeout = affinity_timeout(&mut spec, report);
    let namespace = object.namespace.clone().unwrap_or_default();
    let selector = spec.node("selector").map(|_| labels(&mut spec, "selector"));
    let service = Service {
        name: ObjectName { namespace: namespace.clone(), name: object.name() },
        // an empty one selects nothing, unlike those of policies
        selector: selector.filter(|labels| !labels.is_empty()).map(|labels| selector_of(namespace, labels)),
        family: family(report, &mut spec),
        affinity: sticky.then_some(timeout),
        publish_not_ready: spec.boolean("publishNotReadyAddresses").unwrap_or(false),
        ports: ports(report, &mut spec, kind),
        origin: object.origin(),
        addresses,
        internal_traffic,
        external_traffic,
    };
    let publishes = !service.addresses.is_empty() || service.ports.iter().any(|port| port.node_port.is_some());
    if !publishes && !headless && kind != Type::ExternalName {
        let help = "give it a `clusterIP`, `externalIPs`, or `type: NodePort` and `nodePort`s: nobody hands them out";
        report.warning(object.name.at, format!("service `{}` has no address", service.name), help);
    }
    collected.services.push(service);
}

fn selector_of(namespace: String, labels: Labels) -> Selector {
    let all = labels.into_iter().map(|(key, value)| Expr::Eq(key, value)).collect();
    Selector { scope: Scope::Namespace(namespace), labels: Expr::And(all) }
}

/// What would be silently lost.
fn refuse(report: &Report, spec: &mut Fields<'_>, kind: Type) {
    if let (Type::ExternalName, Some(node)) = (kind, spec.node("type")) {
        let help = "clients use that name themselves; to publish addresses outside, list them in an EndpointSlice";
        report.error_help(node.at, "`type: ExternalName` has no meaning without a DNS server", help);
    }
    for (name, what, help) in [
        (
            "loadBalancerSourceRanges",
            "a load balancer in front",
            "say in a policy about the endpoints who may call them",
        ),
        ("healthCheckNodePort", "a load balancer that asks", "leave it out"),
    ] {
        if spec.node(name).is_some() {
            let at = spec.key_at(name).unwrap_or(spec.at);
            report.error_help(at, format!("`{name}` has no meaning without {what}"), help);
        }
    }
}

/// `clusterIP` and `clusterIPs`, and whether they say `None`.
fn addresses(report: &Report, spec: &mut Fields<'_>) -> (Vec<(IpAddr, Origin)>, bool) {
    let single = spec.text("clusterIP");
    let list = spec.texts("clusterIPs").unwrap_or_default();
    if let (Some(single), Some(first)) = (single, list.first())
        && single.text != first.text
    {
        let message = format!("the first of `clusterIPs` is `{}`, not `{}`", single.text, shorten(first.text));
        report.error_help(first.at, message, "`clusterIP` repeats the first of them; leave one of the two out");
    }
    let mut addresses = Vec::new();
    let mut headless = false;
    for text in single.into_iter().chain(list) {
        match text.text {
            "" => {}
            "None" => headless = true,
            _ => addresses.extend(published(report, text)),
        }
    }
    if headless && let Some((_, origin)) = addresses.first() {
        let at = Pos { line: origin.line, column: origin.column };
        report.error_help(at, "a service is headless or has addresses, not both", "remove `None` or the address");
    }
    (addresses, headless)
}

fn external(report: &Report, spec: &mut Fields<'_>, kind: Type) -> Vec<(IpAddr, Origin)> {
    let balanced = spec.text("loadBalancerIP").filter(|text| !text.text.is_empty());
    if let (Some(text), true) = (balanced, kind != Type::LoadBalancer) {
        report.error_help(text.at, "`loadBalancerIP` belongs to `type: LoadBalancer`", "write it into `externalIPs`");
    }
    let external = spec.texts("externalIPs").unwrap_or_default();
    let balanced = balanced.into_iter().filter_map(|text| published(report, text));
    balanced.chain(external.into_iter().filter_map(|text| published_or_local(report, text))).collect()
}

/// An address that clients may be given, or a loopback address: that only the host itself reaches.
fn published_or_local(report: &Report, text: Text<'_>) -> Option<(IpAddr, Origin)> {
    let address = validate::address(report, text)?;
    (address.is_loopback() || unicast(report, address, text.at)).then(|| (address, report.origin(text.at)))
}

/// An address that clients may be given.
fn published(report: &Report, text: Text<'_>) -> Option<(IpAddr, Origin)> {
    let address = validate::address(report, text)?;
    unicast(report, address, text.at).then(|| (address, report.origin(text.at)))
}

/// Reports an address that means nobody, everybody, or somebody else on each link.
pub fn unicast(report: &Report, address: IpAddr, at: Pos) -> bool {
    let special = match address {
        IpAddr::V4(address) => address.is_link_local() || address == Ipv4Addr::BROADCAST,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let special = special || address.is_unspecified() || address.is_loopback() || address.is_multicast();
    if special {
        let help = "not the unspecified one, loopback, link-local or a group; localhost is published by `externalIPs` or a `nodePort`";
        report.error_help(at, format!("`{address}` is no address that everybody can reach"), help);
    }
    !special
}

/// At a service's own addresses, and at external ones.
fn traffic_policies(
    report: &Report,
    spec: &mut Fields<'_>,
    (has_external, headless): (bool, bool),
) -> (Traffic, Traffic) {
    let internal = spec.choice("internalTrafficPolicy", &TRAFFIC);
    let external = spec.choice("externalTrafficPolicy", &TRAFFIC);
    // Kubernetes itself writes `Cluster` into every service
    if internal == Some(Traffic::Local) && headless {
        let at = spec.key_at("internalTrafficPolicy").unwrap_or(spec.at);
        let message = "`internalTrafficPolicy: Local` has no meaning for a headless service";
        report.error_help(at, message, "its clients choose among the endpoints themselves; leave it out");
    }
    if external.is_some() && !has_external {
        let at = spec.key_at("externalTrafficPolicy").unwrap_or(spec.at);
        let message = "`externalTrafficPolicy` has no meaning for a service that is not published outside";
        report.error_help(at, message, "leave it out, or publish the service by `externalIPs` or a `nodePort`");
    }
    (internal.unwrap_or_default(), external.unwrap_or_default())
}

/// The only one of `ipFamilies`.
fn family(report: &Report, spec: &mut Fields<'_>) -> Option<IpVersion> {
    let families = spec.texts("ipFamilies")?;
    let read = |text: &Text<'_>| super::reader::choose(report, *text, "ipFamilies", &FAMILIES);
    match families.iter().filter_map(read).collect::<Vec<_>>()[..] {
        [one] => Some(one),
        _ => None,
    }
}

fn affinity_timeout(spec: &mut Fields<'_>, report: &Report) -> u32 {
    /// Kubernetes' default: three hours.
    const DEFAULT: u32 = 10_800;
    const LONGEST: i64 = 86_400;
    let Some(mut config) = spec.fields("sessionAffinityConfig") else { return DEFAULT };
    let Some(mut client) = config.fields("clientIP") else { return DEFAULT };
    let Some((seconds, at)) = client.integer("timeoutSeconds") else { return DEFAULT };
    if !(1..=LONGEST).contains(&seconds) {
        report.error(at, format!("`timeoutSeconds` goes from 1 to {LONGEST}, found {seconds}"));
    }
    u32::try_from(seconds).unwrap_or(DEFAULT)
}

fn ports(report: &Report, spec: &mut Fields<'_>, kind: Type) -> Vec<ServicePort> {
    let nodes = spec.list("ports").unwrap_or_default();
    let mut names = HashSet::new();
    let mut numbers = HashSet::new();
    let mut ports = Vec::new();
    for node in nodes {
        let Some(port) = port(report, node, kind) else { continue };
        if nodes.len() > 1 && port.name.is_none() {
            report.error_help(node.at, "`name` is missing", "of several ports each has a name");
        }
        if let Some(name) = port.name.as_ref().filter(|name| !names.insert((*name).clone())) {
            report.error_help(node.at, format!("two ports are named `{name}`"), "give each a name of its own");
        }
        if !numbers.insert((port.port, port.protocol)) {
            let message = format!("port {}/{} is given twice", port.port, port.protocol);
            report.error_help(node.at, message, "remove one, or give it another `port`");
        }
        ports.push(port);
    }
    ports
}

fn port(report: &Report, node: &Node, kind: Type) -> Option<ServicePort> {
    let mut fields = report.fields(node, "ports")?;
    fields.ignore(&["appProtocol"]);
    let name = fields.text("name").filter(|text| !text.text.is_empty());
    let number = fields.integer("port");
    let number = fields.require("port", number);
    let protocol = protocol(report, &mut fields);
    let node_port = node_port(report, &mut fields, kind);
    let target = fields.node("targetPort").map(|node| target(report, node));
    drop(fields);
    if let Some(name) = name.filter(|name| !validate::Name::Label.holds(name.text)) {
        validate::Name::Label.check(report, name);
    }
    let (number, at) = number?;
    let port = validate::port(report, number, at)?;
    let target = target.unwrap_or(Some(Target::Number(port)))?;
    let name = name.map(|text| text.text.to_owned());
    Some(ServicePort { name, protocol: protocol?, port, target, node_port, origin: report.origin(node.at) })
}

/// TCP where nothing is said.
pub fn protocol(report: &Report, fields: &mut Fields<'_>) -> Option<Protocol> {
    let at = fields.node("protocol").map(|node| node.at);
    let protocol = if at.is_some() { fields.choice("protocol", &PROTOCOLS) } else { Some(Protocol::TCP) };
    if let (Some(Protocol::SCTP), Some(at)) = (protocol, at) {
        let help = "its checksum is over the whole packet; let clients use the endpoints' own addresses";
        report.error_help(at, "SCTP is not translated", help);
        return None;
    }
    protocol
}

fn node_port(report: &Report, fields: &mut Fields<'_>, kind: Type) -> Option<u16> {
    let given = fields.integer("nodePort").filter(|(number, _)| *number != 0);
    match (kind, given) {
        (Type::NodePort, None) if fields.key_at("nodePort").is_none() => {
            report.error_help(fields.at, "`nodePort` is missing", "write the port to publish: nobody hands one out");
        }
        (Type::ClusterIp, Some((_, at))) => {
            report.error_help(at, "`nodePort` belongs to `type: NodePort`", "add the `type`, or remove the port");
        }
        _ => {}
    }
    given.and_then(|(number, at)| validate::port(report, number, at))
}

fn target(report: &Report, node: &Node) -> Option<Target> {
    match &node.value {
        Value::Scalar(scalar) if scalar.integer().is_none() => {
            Some(Target::Named(validate::port_name(report, report.text(node, "targetPort")?)?))
        }
        _ => {
            let number = report.integer(node, "targetPort")?;
            Some(Target::Number(validate::port(report, number, node.at)?))
        }
    }
}
