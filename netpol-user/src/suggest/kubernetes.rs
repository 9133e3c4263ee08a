//! `networking.k8s.io/v1` NetworkPolicy. It has words for TCP, UDP and SCTP; the rest is told in comments.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{
    Service, Suggestion, Unwritable,
    rules::{Peers, groups, ranges},
    workload::Selector,
    yaml,
};
use crate::{
    format::NAMESPACE_NAME,
    model::{Direction, Protocol},
};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    api_version: &'static str,
    kind: &'static str,
    metadata: Metadata<'a>,
    spec: Spec,
}

#[derive(Serialize)]
pub(super) struct Metadata<'a> {
    pub name: &'a str,
    pub namespace: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    pod_selector: LabelSelector,
    policy_types: [&'static str; 2],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ingress: Vec<Ingress>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    egress: Vec<Egress>,
}

#[derive(Serialize)]
struct Ingress {
    from: Vec<Peer>,
    ports: Vec<Port>,
}

#[derive(Serialize)]
struct Egress {
    to: Vec<Peer>,
    ports: Vec<Port>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Peer {
    #[serde(skip_serializing_if = "Option::is_none")]
    ip_block: Option<IpBlock>,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace_selector: Option<LabelSelector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod_selector: Option<LabelSelector>,
}

#[derive(Serialize)]
struct IpBlock {
    cidr: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    protocol: String,
    port: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    end_port: Option<u16>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LabelSelector {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    match_labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    match_expressions: Vec<Requirement>,
}

#[derive(Serialize)]
struct Requirement {
    key: String,
    operator: &'static str,
}

impl From<&Selector> for LabelSelector {
    fn from(Selector { equal, absent }: &Selector) -> Self {
        let absent = absent.iter().map(|key| Requirement { key: key.clone(), operator: "DoesNotExist" });
        Self { match_labels: equal.clone(), match_expressions: absent.collect() }
    }
}

const PROTOCOLS: [Protocol; 3] = [Protocol::TCP, Protocol::UDP, Protocol::SCTP];

/// `None` for what Kubernetes has no words for, port 0 included.
fn say(service: Service) -> Option<(Protocol, u16)> {
    match service {
        Service::Port { protocol, port } if PROTOCOLS.contains(&protocol) && port > 0 => Some((protocol, port)),
        _ => None,
    }
}

/// The workload's policy, and what it cannot say.
pub(super) fn write(suggestion: &Suggestion, index: usize, name: &str) -> Result<(String, Vec<String>), Unwritable> {
    let workload = &suggestion.workloads[index];
    let rules = |direction| groups(suggestion.needs(index, direction), say).into_iter();
    let named = |peers: &Peers| peers_of(suggestion, &workload.namespace, peers);
    let document = Document {
        api_version: "networking.k8s.io/v1",
        kind: "NetworkPolicy",
        metadata: Metadata { name, namespace: &workload.namespace },
        spec: Spec {
            pod_selector: (&workload.selector).into(),
            policy_types: ["Ingress", "Egress"],
            ingress: rules(Direction::Ingress)
                .map(|(said, peers)| Ingress { from: named(&peers), ports: ports(&said) })
                .collect(),
            egress: rules(Direction::Egress)
                .map(|(said, peers)| Egress { to: named(&peers), ports: ports(&said) })
                .collect(),
        },
    };
    let unsaid = suggestion.unsaid(index, &|service| say(service).is_some());
    Ok((yaml(&document)?, unsaid))
}

fn peers_of(suggestion: &Suggestion, namespace: &str, peers: &Peers) -> Vec<Peer> {
    let nothing = || Peer { ip_block: None, namespace_selector: None, pod_selector: None };
    let by_labels = peers.workloads.iter().map(|index| {
        let peer = &suggestion.workloads[*index];
        let elsewhere = (peer.namespace != namespace).then(|| LabelSelector {
            match_labels: BTreeMap::from([(NAMESPACE_NAME.to_owned(), peer.namespace.clone())]),
            match_expressions: Vec::new(),
        });
        Peer { namespace_selector: elsewhere, pod_selector: Some((&peer.selector).into()), ..nothing() }
    });
    let by_address =
        peers.nets.iter().map(|net| Peer { ip_block: Some(IpBlock { cidr: net.to_string() }), ..nothing() });
    by_labels.chain(by_address).collect()
}

fn ports(said: &BTreeSet<(Protocol, u16)>) -> Vec<Port> {
    let of = |protocol: Protocol| {
        let own = said.iter().filter(move |(own, _)| *own == protocol).map(|(_, port)| *port);
        ranges(own).into_iter().map(move |range| Port {
            protocol: protocol.to_string(),
            port: *range.start(),
            end_port: (range.start() != range.end()).then_some(*range.end()),
        })
    };
    PROTOCOLS.into_iter().flat_map(of).collect()
}
