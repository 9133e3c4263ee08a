//! Which namespaces are open, and which stand for their endpoints: a picture with more than some dozens of nodes
//! tells nobody anything.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;

use super::{
    layout::{self, Placed},
    route, words,
};
use crate::observe::graph::{Edge, Graph, Node, NodeKind, Verdict};

/// Endpoints that are drawn one by one. Above, the largest namespaces are drawn as one node each.
const ENDPOINTS: usize = 60;

/// What a viewer has opened and closed.
#[derive(Clone, Debug, Default)]
pub struct Opened {
    pub open: BTreeSet<String>,
    pub shut: BTreeSet<String>,
}

/// Everything that is drawn, with its place. Units are those of the letters: 12 high.
#[derive(Clone, Debug, Serialize)]
pub struct Picture {
    pub x: f64,
    pub y: f64,
    pub width: f64,
    pub height: f64,
    pub boxes: Vec<Frame>,
    pub nodes: Vec<Item>,
    pub edges: Vec<Curve>,
}

/// The frame around an open namespace.
#[derive(Clone, Debug, Serialize)]
pub struct Frame {
    pub namespace: String,
    pub x: f64,
    pub y: f64,
    pub width: f64,
    pub height: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ItemKind {
    Outside,
    Host,
    Endpoint,
    /// A namespace that stands for its endpoints.
    Group,
}

#[derive(Clone, Debug, Serialize)]
pub struct Item {
    /// A node of the graph, or `NAMESPACE/` of a group.
    pub id: String,
    pub kind: ItemKind,
    pub namespace: Option<String>,
    pub title: String,
    pub subtitle: String,
    /// It is not running.
    pub pending: bool,
    pub x: f64,
    pub y: f64,
    pub width: f64,
    pub height: f64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Curve {
    /// The same in every picture: ends and verdict.
    pub id: String,
    pub from: String,
    pub to: String,
    pub verdict: Verdict,
    /// Data of an SVG path.
    pub path: String,
    pub stroke: f64,
    /// From 1, alive, to 0.35, long silent.
    pub strength: f64,
    /// `None` where there is no room for it.
    pub label: Option<Label>,
    pub sentence: String,
    /// What it is made of: indices into the graph's edges.
    pub edges: Vec<usize>,
}

/// Lines of text around their middle.
#[derive(Clone, Debug, Serialize)]
pub struct Label {
    pub x: f64,
    pub y: f64,
    pub width: f64,
    pub height: f64,
    pub lines: Vec<String>,
}

impl Picture {
    pub fn of(graph: &Graph, opened: &Opened) -> Self {
        let closed = closed(graph, opened);
        let mut items: Vec<Item> = Vec::new();
        let mut place: HashMap<&str, usize> = HashMap::new();
        let mut groups: BTreeMap<&str, usize> = BTreeMap::new();
        for node in &graph.nodes {
            let index = match node.namespace.as_deref().filter(|namespace| closed.contains(*namespace)) {
                Some(namespace) => *groups.entry(namespace).or_insert_with(|| {
                    items.push(group(graph, namespace));
                    items.len() - 1
                }),
                None => {
                    items.push(item(node));
                    items.len() - 1
                }
            };
            place.insert(&node.id, index);
        }
        let bundles = bundles(graph, &place);
        let links: Vec<(usize, usize, Verdict)> = bundles.iter().map(|b| (b.from, b.to, b.edge.verdict)).collect();
        let boxes = layout::place(&mut items, &links);
        let placed: Vec<Placed> = items.iter().map(Placed::of).collect();
        let titles: Vec<Placed> = boxes.iter().map(|frame| Placed::title(frame.x, frame.y)).collect();
        let labels: Vec<_> = bundles.iter().map(|bundle| words::label(&bundle.edge)).collect();
        let routes = route::route(&placed, &titles, &links, &labels);
        let curve = |(bundle, (path, label)): (Bundle, (String, Option<Label>))| Curve {
            id: format!("{} {} {:?}", items[bundle.from].id, items[bundle.to].id, bundle.edge.verdict),
            from: items[bundle.from].id.clone(),
            to: items[bundle.to].id.clone(),
            verdict: bundle.edge.verdict,
            path,
            stroke: stroke(bundle.edge.numbers.packets_per_second),
            strength: strength(bundle.edge.numbers.idle_seconds),
            label,
            sentence: words::sentence(&bundle.edge),
            edges: bundle.members,
        };
        let (bounds, routes) = routes;
        let edges = bundles.into_iter().zip(routes).map(curve).collect();
        let (x, y, width, height) = bounds.around(&boxes).rectangle();
        Self { x, y, width, height, boxes, nodes: items, edges }
    }
}

/// Namespaces that are drawn as one node: the largest, until few enough endpoints are left, and then what the
/// viewer wants otherwise.
fn closed(graph: &Graph, Opened { open, shut }: &Opened) -> BTreeSet<String> {
    let mut sizes: BTreeMap<&str, usize> = BTreeMap::new();
    for namespace in graph.nodes.iter().filter_map(|node| node.namespace.as_deref()) {
        *sizes.entry(namespace).or_default() += 1;
    }
    let mut largest: Vec<(&str, usize)> = sizes.iter().map(|(namespace, size)| (*namespace, *size)).collect();
    largest.sort_by_key(|(namespace, size)| (std::cmp::Reverse(*size), *namespace));
    let mut left: usize = sizes.values().sum();
    let mut closed: BTreeSet<String> = BTreeSet::new();
    for (namespace, size) in largest {
        if left > ENDPOINTS {
            left -= size;
            closed.insert(namespace.to_owned());
        }
    }
    closed.retain(|namespace| !open.contains(namespace));
    closed.extend(shut.iter().filter(|namespace| sizes.contains_key(namespace.as_str())).cloned());
    closed
}

fn item(node: &Node) -> Item {
    let kind = match node.kind {
        NodeKind::Outside => ItemKind::Outside,
        NodeKind::Host => ItemKind::Host,
        NodeKind::Endpoint => ItemKind::Endpoint,
    };
    let isolated = match (node.ingress_isolated, node.egress_isolated) {
        (true, true) => "policy both ways",
        (true, false) => "policy on ingress",
        (false, true) => "policy on egress",
        (false, false) => "no policy: open",
    };
    let subtitle = match node.kind {
        NodeKind::Outside => "every other address",
        NodeKind::Host => "where containers run",
        NodeKind::Endpoint if node.pending.is_some() => "not running",
        NodeKind::Endpoint => isolated,
    };
    blank(node.id.clone(), kind, node.namespace.clone(), (node.name.clone(), subtitle.into()), node.pending.is_some())
}

fn group(graph: &Graph, namespace: &str) -> Item {
    let endpoints = graph.nodes.iter().filter(|node| node.namespace.as_deref() == Some(namespace)).count();
    let subtitle = format!("{endpoints} endpoint{}", if endpoints == 1 { "" } else { "s" });
    blank(format!("{namespace}/"), ItemKind::Group, Some(namespace.into()), (namespace.into(), subtitle), false)
}

fn blank(
    id: String,
    kind: ItemKind,
    namespace: Option<String>,
    (title, subtitle): (String, String),
    pending: bool,
) -> Item {
    Item { id, kind, namespace, title, subtitle, pending, x: 0.0, y: 0.0, width: 0.0, height: 0.0 }
}

/// Edges of the graph that are one in the picture.
struct Bundle {
    from: usize,
    to: usize,
    edge: Edge,
    members: Vec<usize>,
}

fn bundles(graph: &Graph, place: &HashMap<&str, usize>) -> Vec<Bundle> {
    let mut bundles: BTreeMap<(Verdict, usize, usize), Bundle> = BTreeMap::new();
    for (index, edge) in graph.edges.iter().enumerate() {
        let (Some(&from), Some(&to)) = (place.get(edge.from.as_str()), place.get(edge.to.as_str())) else { continue };
        let bundle = bundles.entry((edge.verdict, from, to));
        let bundle = bundle
            .and_modify(|bundle| {
                bundle.edge.numbers.add(&edge.numbers);
                let known = |ports: &[crate::observe::graph::Port], port: &crate::observe::graph::Port| {
                    ports.iter().any(|it| (&it.protocol, it.port) == (&port.protocol, port.port))
                };
                let new: Vec<_> = edge.ports.iter().filter(|port| !known(&bundle.edge.ports, port)).cloned().collect();
                bundle.edge.ports.extend(new);
                bundle.edge.more_ports = bundle.edge.more_ports.max(edge.more_ports);
            })
            .or_insert_with(|| Bundle { from, to, edge: edge.clone(), members: Vec::new() });
        bundle.members.push(index);
    }
    bundles.into_values().collect()
}

fn stroke(packets_per_second: Option<f64>) -> f64 {
    1.6 + (1.0 + packets_per_second.unwrap_or_default()).log10().min(5.0) * 0.9
}

/// Silent edges fade for ten minutes and then stay, until the kernel forgets them.
fn strength(idle_seconds: f64) -> f64 {
    let faded = (1.0 + idle_seconds / 10.0).ln() / 61.0_f64.ln();
    1.0 - 0.65 * faded.clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests;
