//! Who talks to whom as a graph: endpoints, the host and the outside, and what passed or was denied between them.

mod nodes;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use netpol_common::wire::Protocol;
use nodes::{id, nodes};
use serde::Serialize;

use super::{
    clock,
    condition::Condition,
    ends::End,
    tally::{Kind, Sum, protocol},
};
use crate::{
    model::{Labels, Opening, explain::Service},
    state::{Names, Rule},
};

/// Ports of one edge that are told apart; the rest is summed up.
const PORTS: usize = 12;
/// Outside addresses of one edge that are named.
const ADDRESSES: usize = 12;
/// Edges of one graph: denied ones first, then the last active.
const EDGES: usize = 2000;

#[derive(Clone, Debug, Serialize)]
pub struct Graph {
    /// In RFC 3339's form.
    pub time: String,
    pub generation: u32,
    pub enforced: bool,
    /// Why not, each with its cure.
    pub problems: Vec<String>,
    pub policies: usize,
    pub nodes: Vec<Node>,
    pub edges: Vec<Edge>,
    /// Edges that are left out.
    pub more_edges: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeKind {
    Outside,
    Host,
    Endpoint,
}

#[derive(Clone, Debug, Serialize)]
pub struct Node {
    /// `namespace/name`, `host` or `outside`.
    pub id: String,
    pub kind: NodeKind,
    pub namespace: Option<String>,
    pub name: String,
    pub labels: Labels,
    pub addresses: Vec<IpAddr>,
    /// Whether policy is about what reaches it, and about what it sends.
    pub ingress_isolated: bool,
    pub egress_isolated: bool,
    /// Why it is not running.
    pub pending: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    Denied,
    /// It passes, and audited policies would have denied it.
    WouldDrop,
    Allowed,
}

impl Verdict {
    fn of(kind: &Kind) -> Self {
        match (kind.denied, kind.would_drop) {
            (Some(_), _) => Self::Denied,
            (None, Some(_)) => Self::WouldDrop,
            (None, None) => Self::Allowed,
        }
    }

    /// As in JSON, and in style sheets.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::WouldDrop => "would-drop",
            Self::Allowed => "allowed",
        }
    }
}

/// All connections of one verdict, or all denied attempts, from one node to another. Direction is that of who opens.
#[derive(Clone, Debug, Serialize)]
pub struct Edge {
    /// Ids of nodes.
    pub from: String,
    pub to: String,
    pub verdict: Verdict,
    #[serde(flatten)]
    pub numbers: Numbers,
    /// The busiest first.
    pub ports: Vec<Port>,
    /// Ports that are left out.
    pub more_ports: usize,
    /// Outside addresses, the first few.
    pub addresses: Vec<IpAddr>,
    pub more_addresses: bool,
}

/// What is counted, of entries that are remembered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Numbers {
    pub connections: u64,
    /// Both directions together.
    pub packets: u64,
    pub bytes: u64,
    /// `null` before the second reading.
    pub packets_per_second: Option<f64>,
    pub bytes_per_second: Option<f64>,
    /// Since the last packet.
    pub idle_seconds: f64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Port {
    pub protocol: String,
    /// `null` for protocols without ports.
    pub port: Option<u16>,
    /// `policy-egress` or `policy-ingress`, where denied, or where it would be.
    pub drop_reason: Option<&'static str>,
    /// Those that decided. Empty: no policy had a say, or it was an earlier generation's.
    pub rules: Vec<Decider>,
    /// Judged by the present policy.
    pub current: bool,
    #[serde(flatten)]
    pub numbers: Numbers,
}

/// A rule, and in words.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Decider {
    #[serde(flatten)]
    pub rule: Rule,
    pub text: String,
}

/// Why a rule decided as it did, in the words of all outputs.
struct Decided<'a> {
    rule: &'a Rule,
    opening: Opening,
    peer: &'a str,
}

impl fmt::Display for Decided<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rule, opening, peer } = self;
        let word = if rule.direction == "egress" { "to" } else { "from" };
        rule.explain(f, format_args!("{} {word} {peer}", Service(*opening)))
    }
}

/// What is known of the connections of a lane.
fn opening(protocol: u8, port: Option<u16>) -> Opening {
    Opening { protocol: Protocol(protocol), source_port: 0, destination_port: port.unwrap_or_default(), icmp: None }
}

/// What lanes of traffic are told apart by. Rules are not: a connection that is judged again goes on.
type Lane = (End, End, Verdict, u8, Option<u16>);

/// Sums that rates are made of: two of them, and the time between.
#[derive(Clone, Debug)]
pub struct Totals {
    generation: u32,
    lanes: BTreeMap<Lane, (u64, u64)>,
}

/// One row of ports, while it is summed up.
#[derive(Default)]
struct Lanes {
    connections: u64,
    packets: u64,
    bytes: u64,
    idle: Option<Duration>,
    rules: BTreeSet<u32>,
    reason: Option<&'static str>,
    current: bool,
    addresses: BTreeSet<IpAddr>,
    more_addresses: bool,
}

impl Lanes {
    fn add(&mut self, kind: &Kind, sum: &Sum) {
        let (sent, replied) = (sum.sent(), sum.replied());
        self.connections += sum.connections();
        self.packets += sent.packets + replied.packets;
        self.bytes += sent.bytes + replied.bytes;
        self.idle = Some(self.idle.map_or(sum.idle(), |idle| idle.min(sum.idle())));
        self.rules.extend(kind.deciders());
        self.reason = self.reason.or(kind.denied.or(kind.would_drop).map(super::tally::Reason::name));
        self.current |= kind.current;
        self.addresses.extend(&sum.addresses);
        self.more_addresses |= sum.more_addresses;
    }
}

/// The graph of what is remembered. `before`: an earlier reading, and how long ago that was.
pub fn graph(
    (names, condition): (&Names, &Condition),
    rows: &BTreeMap<Kind, Sum>,
    before: Option<(&Totals, Duration)>,
) -> (Graph, Totals) {
    let mut lanes: BTreeMap<Lane, Lanes> = BTreeMap::new();
    for (kind, sum) in rows {
        let lane = (kind.client, kind.server, Verdict::of(kind), kind.protocol, kind.port);
        lanes.entry(lane).or_default().add(kind, sum);
    }
    let totals = Totals {
        generation: names.generation,
        lanes: lanes.iter().map(|(lane, lanes)| (*lane, (lanes.packets, lanes.bytes))).collect(),
    };
    // endpoints have other numbers in another generation
    let before = before.filter(|(totals, _)| totals.generation == names.generation);
    let rate = |lane: &Lane, lanes: &Lanes| {
        let (totals, elapsed) = before?;
        let (packets, bytes) = totals.lanes.get(lane).copied().unwrap_or_default();
        // what was evicted meanwhile took its numbers along
        let per_second = |now: u64, before: u64| now.saturating_sub(before) as f64 / elapsed.as_secs_f64().max(1e-3);
        Some((per_second(lanes.packets, packets), per_second(lanes.bytes, bytes)))
    };
    let mut edges: BTreeMap<(End, End, Verdict), Edge> = BTreeMap::new();
    for (lane, lanes) in &lanes {
        let (client, server, verdict, number, port) = *lane;
        let edge = edges.entry((client, server, verdict)).or_insert_with(|| Edge {
            from: id(names, client),
            to: id(names, server),
            verdict,
            numbers: Numbers { idle_seconds: f64::MAX, ..Numbers::default() },
            ports: Vec::new(),
            more_ports: 0,
            addresses: Vec::new(),
            more_addresses: false,
        });
        let rates = rate(lane, lanes);
        let numbers = Numbers {
            connections: lanes.connections,
            packets: lanes.packets,
            bytes: lanes.bytes,
            packets_per_second: rates.map(|(packets, _)| packets),
            bytes_per_second: rates.map(|(_, bytes)| bytes),
            idle_seconds: lanes.idle.unwrap_or_default().as_secs_f64(),
        };
        edge.numbers.add(&numbers);
        let rules = lanes.rules.iter().filter_map(|number| names.rule(*number));
        let decided = |rule: &Rule| {
            let peer = if rule.direction == "egress" { &edge.to } else { &edge.from };
            Decided { rule, opening: opening(number, port), peer }.to_string()
        };
        let rules = rules.map(|rule| Decider { rule: rule.clone(), text: decided(rule) }).collect();
        edge.ports.push(Port {
            protocol: protocol(number),
            port,
            drop_reason: lanes.reason,
            rules,
            current: lanes.current,
            numbers,
        });
        edge.note(&lanes.addresses);
        edge.more_addresses |= lanes.more_addresses;
    }
    let mut edges: Vec<Edge> = edges.into_values().map(Edge::bounded).collect();
    let more_edges = edges.len().saturating_sub(EDGES);
    if more_edges > 0 {
        edges.sort_by(|a, b| a.verdict.cmp(&b.verdict).then(a.numbers.idle_seconds.total_cmp(&b.numbers.idle_seconds)));
        edges.truncate(EDGES);
    }
    // the same picture whatever the order of the maps
    edges.sort_by(|a, b| (a.verdict, &a.from, &a.to).cmp(&(b.verdict, &b.from, &b.to)));
    let graph = Graph {
        time: clock::rfc3339(SystemTime::now()),
        generation: names.generation,
        enforced: condition.enforced,
        problems: condition.problems.clone(),
        policies: names.policies,
        nodes: nodes(names, condition, &edges),
        edges,
        more_edges,
    };
    (graph, totals)
}

impl Numbers {
    /// Both together.
    pub fn add(&mut self, other: &Self) {
        let sum = |a: Option<f64>, b: Option<f64>| a.map_or(b, |a| Some(a + b.unwrap_or_default()));
        self.connections += other.connections;
        self.packets += other.packets;
        self.bytes += other.bytes;
        self.packets_per_second = sum(self.packets_per_second, other.packets_per_second);
        self.bytes_per_second = sum(self.bytes_per_second, other.bytes_per_second);
        self.idle_seconds = self.idle_seconds.min(other.idle_seconds);
    }
}

impl Edge {
    fn note(&mut self, addresses: &BTreeSet<IpAddr>) {
        for address in addresses {
            if self.addresses.contains(address) {
                continue;
            }
            if self.addresses.len() == ADDRESSES {
                self.more_addresses = true;
                return;
            }
            self.addresses.push(*address);
        }
    }

    fn bounded(mut self) -> Self {
        let busy = |port: &Port| port.numbers.packets_per_second.unwrap_or_default() as u64;
        self.ports.sort_by_key(|port| (Reverse(busy(port)), Reverse(port.numbers.packets), port.port));
        self.more_ports = self.ports.len().saturating_sub(PORTS);
        self.ports.truncate(PORTS);
        self
    }
}

#[cfg(test)]
mod tests;
