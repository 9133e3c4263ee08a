//! Who is in the graph: endpoints, running or not, the host and the outside.

use std::{collections::BTreeSet, net::IpAddr};

use super::{Condition, Edge, End, Labels, Names, Node, NodeKind};

/// As edges name their ends.
pub fn id(names: &Names, end: End) -> String {
    match end {
        End::Endpoint(index) => {
            names.endpoints.get(index).map_or_else(String::new, |e| format!("{}/{}", e.namespace, e.name))
        }
        End::Host => "host".into(),
        End::Outside => "outside".into(),
    }
}

/// All endpoints; host and outside only where somebody talks to them.
pub fn nodes(names: &Names, condition: &Condition, edges: &[Edge]) -> Vec<Node> {
    let talks = |id: &str| edges.iter().any(|edge| edge.from == id || edge.to == id);
    let special = |kind, id: &str, name: &str, addresses: &[IpAddr]| Node {
        id: id.into(),
        kind,
        namespace: None,
        name: name.into(),
        labels: Labels::new(),
        addresses: addresses.to_vec(),
        ingress_isolated: false,
        egress_isolated: false,
        pending: None,
    };
    let specials = [
        special(NodeKind::Outside, "outside", "outside", &[]),
        special(NodeKind::Host, "host", "this host", &condition.host_addresses),
    ];
    let is_pending = |namespace: &str, name: &str| {
        condition.pending.iter().find(|p| p.namespace == namespace && p.name == name).map(|p| p.reason.clone())
    };
    let running = names.endpoints.iter().map(|endpoint| Node {
        id: format!("{}/{}", endpoint.namespace, endpoint.name),
        kind: NodeKind::Endpoint,
        namespace: Some(endpoint.namespace.clone()),
        name: endpoint.name.clone(),
        labels: endpoint.labels.clone(),
        addresses: endpoint.addresses.clone(),
        ingress_isolated: endpoint.ingress,
        egress_isolated: endpoint.egress,
        pending: is_pending(&endpoint.namespace, &endpoint.name),
    });
    let mut nodes: Vec<Node> = running.collect();
    let known: BTreeSet<String> = nodes.iter().map(|node| node.id.clone()).collect();
    let pending = condition.pending.iter().map(|pending| Node {
        namespace: Some(pending.namespace.clone()),
        pending: Some(pending.reason.clone()),
        ..special(NodeKind::Endpoint, &format!("{}/{}", pending.namespace, pending.name), &pending.name, &[])
    });
    nodes.extend(pending.filter(|node| !known.contains(&node.id)));
    nodes.extend(specials.into_iter().filter(|node| talks(&node.id)));
    nodes.sort_by(|a, b| (a.kind, &a.namespace, &a.name).cmp(&(b.kind, &b.namespace, &b.name)));
    nodes
}
