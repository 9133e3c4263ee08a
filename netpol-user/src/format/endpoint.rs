//! `netpol.dev/v1 Endpoint`: a workload that no runtime announces.

use std::{collections::HashSet, path::PathBuf};

use super::{
    kubernetes::PROTOCOLS,
    node::{Node, shorten},
    object::{Collected, Object},
    reader::{Fields, Report, Text},
    slice, validate,
};
use crate::model::{Attachment, Endpoint, EndpointPort, ObjectName, Protocol};

/// Where `ip netns add` puts namespaces.
const NAMED_NAMESPACES: &str = "/run/netns";

pub fn read(mut object: Object<'_>, collected: &mut Collected) {
    let report = object.report;
    let namespace = object.namespace.clone().unwrap_or_default();
    let name = ObjectName { namespace: namespace.clone(), name: object.name() };
    let mut endpoint = Endpoint {
        name,
        labels: std::mem::take(&mut object.labels),
        addresses: Vec::new(),
        ports: Vec::new(),
        weight: slice::weight(&object),
        attachment: None,
        origin: object.origin(),
    };
    if let Some(mut spec) = object.spec.take() {
        endpoint.attachment = attachment(&mut spec, report);
        let mut seen = HashSet::new();
        for text in spec.texts("addresses").unwrap_or_default() {
            let Some(address) = validate::address(report, text) else { continue };
            if !seen.insert(address) {
                report.error(text.at, format!("`{address}` is given twice"));
            }
            endpoint.addresses.push(address);
        }
        let mut names = HashSet::new();
        for node in spec.list("ports").unwrap_or_default() {
            endpoint.ports.extend(port(report, node, &mut names));
        }
    }
    collected.known_namespaces.insert(namespace.clone());
    collected.namespace(&namespace);
    collected.endpoints.push(endpoint);
}

fn attachment(spec: &mut Fields<'_>, report: &Report) -> Option<Attachment> {
    let interface = spec.text("interface").and_then(|text| interface(report, text));
    let netns = spec.text("netns").and_then(|text| netns(report, text))?;
    Some(Attachment { netns, interface })
}

fn netns(report: &Report, text: Text<'_>) -> Option<PathBuf> {
    let path = PathBuf::from(text.text);
    if path.is_absolute() && !text.text.contains('\0') {
        return Some(path);
    }
    if text.text.is_empty() || text.text.contains(['/', '\0']) || matches!(text.text, "." | "..") {
        let help = format!("a name below {NAMED_NAMESPACES} (`ip netns list`), or an absolute path");
        report.error_help(text.at, format!("`{}` is no network namespace", shorten(text.text)), help);
        return None;
    }
    Some(PathBuf::from(NAMED_NAMESPACES).join(path))
}

fn interface(report: &Report, text: Text<'_>) -> Option<String> {
    let name = text.text;
    let holds = (1..=15).contains(&name.len())
        && !matches!(name, "." | "..")
        && name.chars().all(|c| !c.is_whitespace() && !c.is_control() && !matches!(c, '/' | ':'));
    if !holds {
        let message = format!("`{}` is no name of an interface", shorten(name));
        report.error_help(text.at, message, "at most 15 characters, without spaces, `/` and `:`");
    }
    holds.then(|| name.to_owned())
}

fn port(report: &Report, node: &Node, names: &mut HashSet<(String, Protocol)>) -> Option<EndpointPort> {
    let mut fields = report.fields(node, "ports")?;
    let name = fields.text("name");
    let number = fields.integer("port");
    let number = fields.require("port", number);
    let protocol = match fields.node("protocol") {
        Some(_) => fields.choice("protocol", &PROTOCOLS)?,
        None => Protocol::TCP,
    };
    drop(fields);
    let (number, at) = number?;
    let port = validate::port(report, number, at)?;
    let name = match name {
        Some(text) => {
            if !names.insert((text.text.to_owned(), protocol)) {
                let message = format!("two {protocol} ports are named `{}`", shorten(text.text));
                report.error_help(text.at, message, "a name stands for one port");
            }
            Some(validate::port_name(report, text)?)
        }
        None => None,
    };
    Some(EndpointPort { name, port, protocol })
}
