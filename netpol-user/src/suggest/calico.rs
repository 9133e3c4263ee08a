//! `projectcalico.org/v3` NetworkPolicy. A rule is about one protocol, and about labels or one family of
//! addresses; it has words for ICMP and for other protocols, too.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use serde::Serialize;
use serde_saphyr::DoubleQuoted;

use super::{
    Service, Suggestion, Unwritable,
    kubernetes::Metadata,
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
struct Spec {
    selector: String,
    types: [&'static str; 2],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ingress: Vec<Rule>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    egress: Vec<Rule>,
}

#[derive(Serialize)]
struct Rule {
    action: &'static str,
    protocol: Named,
    #[serde(skip_serializing_if = "Option::is_none")]
    icmp: Option<Icmp>,
    #[serde(skip_serializing_if = "Entity::is_empty")]
    source: Entity,
    #[serde(skip_serializing_if = "Entity::is_empty")]
    destination: Entity,
}

#[derive(Clone, Serialize)]
#[serde(untagged)]
enum Named {
    Name(String),
    Number(u8),
}

#[derive(Clone, Copy, Serialize)]
struct Icmp {
    #[serde(rename = "type")]
    kind: u8,
    code: u8,
}

#[derive(Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Entity {
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace_selector: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    selector: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    nets: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ports: Vec<Port>,
}

impl Entity {
    fn is_empty(&self) -> bool {
        let Self { namespace_selector, selector, nets, ports } = self;
        namespace_selector.is_none() && selector.is_none() && nets.is_empty() && ports.is_empty()
    }
}

#[derive(Clone, Serialize)]
#[serde(untagged)]
enum Port {
    Number(u16),
    /// In quotes: to older readers of YAML `20:21` is a number of base 60.
    Range(DoubleQuoted<String>),
}

/// What one rule can be about, ports aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum About {
    Ports(Protocol),
    Icmp(Protocol, u8, u8),
    Protocol(Protocol),
}

/// `None` for what Calico has no words for: UDP-Lite's ports, port 0, ICMP's reserved type,
/// protocol 0.
fn about(service: Service) -> Option<(About, u16)> {
    match service {
        Service::Port { protocol: protocol @ (Protocol::TCP | Protocol::UDP | Protocol::SCTP), port: port @ 1.. } => {
            Some((About::Ports(protocol), port))
        }
        Service::Icmp { protocol, kind, code } if kind < u8::MAX => Some((About::Icmp(protocol, kind, code), 0)),
        Service::Other(protocol) if protocol.0 > 0 => Some((About::Protocol(protocol), 0)),
        Service::Port { .. } | Service::Icmp { .. } | Service::Other(_) => None,
    }
}

/// The workload's policy, and what it cannot say.
pub(super) fn write(suggestion: &Suggestion, index: usize, name: &str) -> Result<(String, Vec<String>), Unwritable> {
    let workload = &suggestion.workloads[index];
    let document = Document {
        api_version: "projectcalico.org/v3",
        kind: "NetworkPolicy",
        metadata: Metadata { name, namespace: &workload.namespace },
        spec: Spec {
            selector: expression(&workload.selector),
            types: ["Ingress", "Egress"],
            ingress: rules(suggestion, index, Direction::Ingress),
            egress: rules(suggestion, index, Direction::Egress),
        },
    };
    let unsaid = suggestion.unsaid(index, &|service| about(service).is_some());
    Ok((yaml(&document)?, unsaid))
}

fn rules(suggestion: &Suggestion, index: usize, direction: Direction) -> Vec<Rule> {
    let needs = suggestion.needs(index, direction);
    let all: BTreeSet<About> = needs.values().flatten().filter_map(|service| Some(about(*service)?.0)).collect();
    let namespace = &suggestion.workloads[index].namespace;
    let mut rules = Vec::new();
    for subject in all {
        let port = |service| about(service).filter(|(own, _)| *own == subject).map(|(_, port)| port);
        for (said, peers) in groups(needs, port) {
            let (protocol, icmp, ports) = words(subject, &said);
            for peer in entities(suggestion, namespace, &peers) {
                let here = Entity { ports: ports.clone(), ..Entity::default() };
                let (source, destination) = match direction {
                    Direction::Ingress => (peer, here),
                    Direction::Egress => (Entity::default(), Entity { ports: ports.clone(), ..peer }),
                };
                rules.push(Rule { action: "Allow", protocol: protocol.clone(), icmp, source, destination });
            }
        }
    }
    rules
}

fn words(subject: About, said: &BTreeSet<u16>) -> (Named, Option<Icmp>, Vec<Port>) {
    match subject {
        About::Ports(protocol) => {
            let port = |range: std::ops::RangeInclusive<u16>| match (*range.start(), *range.end()) {
                (first, last) if first == last => Port::Number(first),
                (first, last) => Port::Range(DoubleQuoted(format!("{first}:{last}"))),
            };
            let ports = ranges(said.iter().copied()).into_iter().map(port).collect();
            (Named::Name(protocol.to_string()), None, ports)
        }
        About::Icmp(protocol, kind, code) => {
            let name = if protocol == Protocol::ICMP { "ICMP" } else { "ICMPv6" };
            (Named::Name(name.to_owned()), Some(Icmp { kind, code }), Vec::new())
        }
        About::Protocol(protocol) => (Named::Number(protocol.0), None, Vec::new()),
    }
}

/// The peers in as few ends of rules as there are kinds of them: namespaces whose workloads are chosen by
/// the same words share one.
fn entities(suggestion: &Suggestion, own: &str, peers: &Peers) -> Vec<Entity> {
    let mut namespaces: BTreeMap<&str, BTreeSet<&Selector>> = BTreeMap::new();
    for index in &peers.workloads {
        let peer = &suggestion.workloads[*index];
        namespaces.entry(&peer.namespace).or_default().insert(&peer.selector);
    }
    let mut choices: BTreeMap<BTreeSet<&Selector>, Vec<&str>> = BTreeMap::new();
    for (namespace, selectors) in namespaces {
        choices.entry(selectors).or_default().push(namespace);
    }
    let by_labels = choices.into_iter().map(|(selectors, namespaces)| Entity {
        namespace_selector: (namespaces != [own]).then(|| one_of(NAMESPACE_NAME, &namespaces)),
        selector: Some(any_of(&selectors)),
        ..Entity::default()
    });
    let of_family = |is_v4: bool| {
        let nets = peers.nets.iter().filter(|net| matches!(net, IpNet::V4(_)) == is_v4);
        Entity { nets: nets.map(ToString::to_string).collect(), ..Entity::default() }
    };
    let by_address = [of_family(true), of_family(false)].into_iter().filter(|entity| !entity.is_empty());
    by_labels.chain(by_address).collect()
}

/// In Calico's language; values of labels hold no quotes.
fn expression(Selector { equal, absent }: &Selector) -> String {
    let equal = equal.iter().map(|(key, value)| format!("{key} == '{value}'"));
    let terms: Vec<_> = equal.chain(absent.iter().map(|key| format!("!has({key})"))).collect();
    if terms.is_empty() { "all()".to_owned() } else { terms.join(" && ") }
}

fn one_of(key: &str, values: &[&str]) -> String {
    match values {
        [value] => format!("{key} == '{value}'"),
        values => format!("{key} in {{'{}'}}", values.join("', '")),
    }
}

fn any_of(selectors: &BTreeSet<&Selector>) -> String {
    // `app in {'a', 'b'}` where all ask for one label of the same key
    let single = |selector: &&Selector| match (selector.equal.iter().next(), selector.equal.len()) {
        (Some((key, value)), 1) if selector.absent.is_empty() => Some((key.clone(), value.clone())),
        _ => None,
    };
    let singles: Option<Vec<(String, String)>> = selectors.iter().map(single).collect();
    match singles {
        Some(pairs) if pairs.iter().all(|(key, _)| *key == pairs[0].0) => {
            let values: Vec<&str> = pairs.iter().map(|(_, value)| value.as_str()).collect();
            one_of(&pairs[0].0, &values)
        }
        _ => {
            let each: Vec<_> = selectors.iter().map(|selector| expression(selector)).collect();
            if each.len() == 1 { each[0].clone() } else { format!("({})", each.join(") || (")) }
        }
    }
}
