//! `v1 Service` and Calico's `IPPool`: read and checked, kept for when they are implemented.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    kubernetes::PROTOCOLS,
    node::{Node, Value},
    object::{Collected, Object},
    reader::{Fields, Report, labels},
    validate,
};
use crate::model::{Labels, ObjectName, Origin, PortMatch, Protocol};

/// What a `v1 Service` says.
#[derive(Clone, Debug)]
pub struct Service {
    pub name: ObjectName,
    /// Endpoints behind it, by labels. `None`: none by itself.
    pub selector: Option<Labels>,
    pub cluster_ips: Vec<IpAddr>,
    pub external_ips: Vec<IpAddr>,
    pub node_port: bool,
    /// `sessionAffinity: ClientIP`, and for how many seconds.
    pub affinity: Option<u32>,
    pub ports: Vec<ServicePort>,
    pub origin: Origin,
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    pub name: Option<String>,
    pub protocol: Protocol,
    pub port: u16,
    /// A number (a range of one) or a name.
    pub target: PortMatch,
    pub node_port: Option<u16>,
}

/// What an `IPPool` says that matters here.
#[derive(Clone, Debug)]
pub struct IpPool {
    pub name: String,
    pub cidr: IpNet,
    /// What leaves the pool gets the host's address.
    pub nat_outgoing: bool,
    pub disabled: bool,
    pub origin: Origin,
}

/// Fields that say how a cluster provides a service, not what it is.
const CLUSTERS: [&str; 14] = [
    "allocateLoadBalancerNodePorts",
    "externalName",
    "externalTrafficPolicy",
    "healthCheckNodePort",
    "internalTrafficPolicy",
    "ipFamilies",
    "ipFamilyPolicy",
    "loadBalancerClass",
    "loadBalancerIP",
    "loadBalancerSourceRanges",
    "publishNotReadyAddresses",
    "topologyKeys",
    "trafficDistribution",
    "trafficPolicy",
];

const AFFINITIES: [(&str, bool); 2] = [("None", false), ("ClientIP", true)];
const TYPES: [(&str, bool); 4] =
    [("ClusterIP", false), ("NodePort", true), ("LoadBalancer", true), ("ExternalName", false)];

pub fn read_service(mut object: Object<'_>, collected: &mut Collected) {
    let report = object.report;
    let Some(mut spec) = object.required_spec() else { return };
    spec.ignore(&CLUSTERS);
    let mut cluster_ips = Vec::new();
    let single = spec.text("clusterIP");
    for text in single.into_iter().chain(spec.texts("clusterIPs").unwrap_or_default()) {
        if matches!(text.text, "" | "None") {
            continue;
        }
        cluster_ips.extend(validate::address(report, text));
    }
    // `clusterIPs` repeats `clusterIP`.
    cluster_ips.dedup();
    let external = spec.texts("externalIPs").unwrap_or_default();
    let sticky = spec.choice("sessionAffinity", &AFFINITIES).unwrap_or(false);
    let timeout = affinity_timeout(&mut spec, report);
    let service = Service {
        name: ObjectName { namespace: object.namespace.clone().unwrap_or_default(), name: object.name() },
        selector: spec.node("selector").map(|_| labels(&mut spec, "selector")),
        cluster_ips,
        external_ips: external.into_iter().filter_map(|text| validate::address(report, text)).collect(),
        node_port: spec.choice("type", &TYPES).unwrap_or(false),
        affinity: sticky.then_some(timeout),
        ports: spec.list("ports").unwrap_or_default().iter().filter_map(|node| port(report, node)).collect(),
        origin: object.origin(),
    };
    report.warning(object.name.at, "services are not implemented in this version", "nothing is done with this one");
    collected.services.push(service);
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

fn port(report: &Report, node: &Node) -> Option<ServicePort> {
    let mut fields = report.fields(node, "ports")?;
    fields.ignore(&["appProtocol"]);
    let name = fields.text("name").map(|text| text.text.to_owned());
    let number = fields.integer("port");
    let number = fields.require("port", number);
    let protocol = match fields.node("protocol") {
        Some(_) => fields.choice("protocol", &PROTOCOLS),
        None => Some(Protocol::TCP),
    };
    let node_port = fields.integer("nodePort").and_then(|(number, at)| validate::port(report, number, at));
    let target = fields.node("targetPort").map(|target| match &target.value {
        Value::Scalar(scalar) if scalar.integer().is_none() => {
            Some(PortMatch::Named(validate::port_name(report, report.text(target, "targetPort")?)?))
        }
        _ => {
            let port = report.integer(target, "targetPort").and_then(|n| validate::port(report, n, target.at))?;
            Some(PortMatch::Range(port..=port))
        }
    });
    drop(fields);
    let (number, at) = number?;
    let port = validate::port(report, number, at)?;
    let target = target.unwrap_or(Some(PortMatch::Range(port..=port)))?;
    Some(ServicePort { name, protocol: protocol?, port, target, node_port })
}

/// Fields of a pool that say how Calico hands out and announces addresses.
const CALICOS: [&str; 8] = [
    "allowedUses",
    "assignmentMode",
    "blockSize",
    "disableBGPExport",
    "ipipMode",
    "namespaceSelector",
    "nodeSelector",
    "vxlanMode",
];

pub fn read_pool(mut object: Object<'_>, collected: &mut Collected) {
    let report = object.report;
    let Some(mut spec) = object.required_spec() else { return };
    spec.ignore(&CALICOS);
    let cidr = spec.text("cidr");
    let cidr = spec.require("cidr", cidr).and_then(|text| validate::cidr(report, text));
    let nat_outgoing = spec.boolean("natOutgoing").unwrap_or(false);
    let disabled = spec.boolean("disabled").unwrap_or(false);
    report.warning(object.name.at, "pools are not implemented in this version", "nothing is masqueraded");
    let Some(cidr) = cidr else { return };
    let pool = IpPool { name: object.name(), cidr, nat_outgoing, disabled, origin: object.origin() };
    collected.pools.push(pool);
}
