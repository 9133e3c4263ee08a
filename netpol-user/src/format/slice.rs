//! `discovery.k8s.io/v1 EndpointSlice`: backends of a service by their addresses.

use std::net::IpAddr;

use super::{
    node::{Node, Value, shorten},
    object::{Collected, Object},
    reader::Report,
    service, validate,
};
use crate::model::{EndpointSlice, MAX_WEIGHT, ObjectName, SliceEndpoint, SlicePort, Weight};

/// The label that names the slice's service.
pub const SERVICE: &str = "kubernetes.io/service-name";
/// How often a backend is chosen, compared with the others.
const WEIGHT: &str = "netpol.dev/weight";

const ADDRESS_TYPES: [(&str, bool); 2] = [("IPv4", true), ("IPv6", false)];

pub fn read(mut object: Object<'_>, collected: &mut Collected) {
    let report = object.report;
    if let Some(mut spec) = object.spec.take() {
        spec.abandon();
        report.error_help(spec.at, "an EndpointSlice has no `spec`", "its fields stand beside `metadata`");
    }
    let weight = weight(&object);
    let origin = object.origin();
    let name = ObjectName { namespace: object.namespace.clone().unwrap_or_default(), name: object.name() };
    let mut service = object.labels.remove(SERVICE);
    if service.as_ref().is_none_or(String::is_empty) {
        service = None;
        let help = format!("name its service in the label `{SERVICE}`");
        report.warning(object.name.at, format!("slice `{name}` belongs to no service"), help);
    }
    let body = &mut object.body;
    let four = body.choice("addressType", &ADDRESS_TYPES);
    let four = body.require("addressType", four);
    let endpoints = body.list("endpoints").unwrap_or_default();
    let endpoints = endpoints.iter().flat_map(|node| endpoint(report, node, four)).collect();
    let ports = body.list("ports").unwrap_or_default().iter().filter_map(|node| port(report, node)).collect();
    collected.slices.push(EndpointSlice { name, service, endpoints, ports, weight, origin });
}

/// What the annotation says; 1 where there is none.
pub fn weight(object: &Object<'_>) -> Weight {
    let Some(Node { value: Value::Map(entries), .. }) = object.annotations else { return 1 };
    let Some((_, node)) = entries.iter().find(|(key, _)| key.text == WEIGHT) else { return 1 };
    let Some(text) = object.report.text(node, WEIGHT) else { return 1 };
    let weight = text.text.parse().ok().filter(|weight| (1..=MAX_WEIGHT).contains(weight));
    if weight.is_none() {
        let help = format!("a whole number from 1 to {MAX_WEIGHT}, in quotes");
        object.report.error_help(text.at, format!("`{}` is no weight", shorten(text.text)), help);
    }
    weight.unwrap_or(1)
}

fn endpoint(report: &Report, node: &Node, four: Option<bool>) -> Vec<SliceEndpoint> {
    let Some(mut fields) = report.fields(node, "endpoints") else { return Vec::new() };
    fields.ignore(&["deprecatedTopology", "hints", "hostname", "nodeName", "targetRef", "zone"]);
    let mut ready = true;
    if let Some(mut conditions) = fields.fields("conditions") {
        // unknown means ready
        ready = conditions.boolean("ready").unwrap_or(true);
        conditions.ignore(&["serving", "terminating"]);
    }
    let addresses = fields.texts("addresses");
    let addresses = fields.require("addresses", addresses).unwrap_or_default();
    let read = |text| {
        let address = validate::address(report, text)?;
        if four.is_some_and(|four| four != address.is_ipv4()) {
            let wanted = if address.is_ipv4() { "IPv6" } else { "IPv4" };
            let message = format!("`{address}` is no {wanted} address, which `addressType` says they are");
            report.error_help(text.at, message, "a slice has addresses of one family: make another for the rest");
            return None;
        }
        service::unicast(report, address, text.at).then(|| (address, report.origin(text.at)))
    };
    // they all lead to one endpoint: the first one is used, as by Kubernetes
    let first: Option<(IpAddr, _)> = addresses.into_iter().filter_map(read).next();
    first.map(|(address, origin)| SliceEndpoint { address, ready, origin }).into_iter().collect()
}

fn port(report: &Report, node: &Node) -> Option<SlicePort> {
    let mut fields = report.fields(node, "ports")?;
    fields.ignore(&["appProtocol"]);
    let name = fields.text("name").map(|text| text.text.to_owned()).filter(|name| !name.is_empty());
    let number = fields.integer("port");
    let number = fields.require("port", number);
    let protocol = service::protocol(report, &mut fields);
    drop(fields);
    let (number, at) = number?;
    Some(SlicePort { name, protocol: protocol?, port: validate::port(report, number, at)? })
}
