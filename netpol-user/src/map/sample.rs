//! A graph to draw in tests: the shop of `policies/`, with one denied attempt of its own and one from outside.

use std::net::IpAddr;

use crate::{
    model::Labels,
    observe::graph::{Decider, Edge, Graph, Node, NodeKind, Numbers, Port, Verdict},
    state::Rule,
};

pub fn node(namespace: Option<&str>, name: &str) -> Node {
    let kind = match (namespace, name) {
        (None, "host") => NodeKind::Host,
        (None, _) => NodeKind::Outside,
        _ => NodeKind::Endpoint,
    };
    Node {
        id: namespace.map_or_else(|| name.to_owned(), |namespace| format!("{namespace}/{name}")),
        kind,
        namespace: namespace.map(Into::into),
        name: name.into(),
        labels: Labels::new(),
        addresses: vec![],
        ingress_isolated: true,
        egress_isolated: true,
        pending: None,
    }
}

pub fn edge(from: &str, to: &str, verdict: Verdict, port: u16) -> Edge {
    let numbers = Numbers {
        connections: 1,
        packets: 120,
        bytes: 9000,
        packets_per_second: Some(12.0),
        bytes_per_second: Some(900.0),
        idle_seconds: 0.4,
    };
    let rule = Rule {
        kind: "NetworkPolicy".into(),
        namespace: Some("shop".into()),
        name: if verdict == Verdict::Denied { "default-deny" } else { "services" }.into(),
        direction: if from == "outside" { "ingress" } else { "egress" }.into(),
        index: (verdict == Verdict::Allowed).then_some(0),
        source: "policies/shop/policies.yaml:8".into(),
    };
    let decider = Decider { text: rule.describe(), rule };
    Edge {
        from: from.into(),
        to: to.into(),
        verdict,
        numbers,
        ports: vec![Port {
            protocol: "TCP".into(),
            port: Some(port),
            drop_reason: (verdict == Verdict::Denied).then_some(if from == "outside" {
                "policy-ingress"
            } else {
                "policy-egress"
            }),
            rules: vec![decider],
            current: true,
            numbers,
        }],
        more_ports: 0,
        addresses: if from == "outside" { vec![IpAddr::from([203, 0, 113, 10])] } else { vec![] },
        more_addresses: false,
    }
}

pub fn shop() -> Graph {
    use Verdict::{Allowed, Denied};
    let names = ["api-gateway", "nginx-lb", "order-service", "postgres-db", "product-service", "redis-cache"];
    let nodes = names.iter().map(|name| node(Some("shop"), name));
    let edges = vec![
        edge("shop/redis-cache", "shop/postgres-db", Denied, 5432),
        edge("outside", "shop/api-gateway", Denied, 80),
        edge("outside", "shop/nginx-lb", Allowed, 80),
        edge("shop/nginx-lb", "shop/api-gateway", Allowed, 80),
        edge("shop/api-gateway", "shop/order-service", Allowed, 80),
        edge("shop/api-gateway", "shop/product-service", Allowed, 80),
        edge("shop/order-service", "shop/postgres-db", Allowed, 5432),
        edge("shop/order-service", "shop/redis-cache", Allowed, 6379),
        edge("shop/product-service", "shop/postgres-db", Allowed, 5432),
        edge("shop/product-service", "shop/redis-cache", Allowed, 6379),
    ];
    Graph {
        time: "2026-03-01T12:30:00.250Z".into(),
        generation: 3,
        enforced: true,
        problems: vec![],
        policies: 6,
        nodes: [node(None, "outside")].into_iter().chain(nodes).collect(),
        edges,
        more_edges: 0,
    }
}

/// `namespaces` of `size` endpoints, in which each calls the next, the first ones across.
pub fn many(namespaces: usize, size: usize) -> Graph {
    let name = |index: usize| format!("e{index:03}");
    let mut graph = Graph { nodes: vec![], edges: vec![], ..shop() };
    for namespace in 0..namespaces {
        let (here, next) = (format!("ns{namespace:02}"), format!("ns{:02}", (namespace + 1) % namespaces));
        graph.nodes.extend((0..size).map(|index| node(Some(&here), &name(index))));
        for index in 1..size {
            let verdict = if index % 10 == 0 { Verdict::Denied } else { Verdict::Allowed };
            graph.edges.push(edge(
                &format!("{here}/{}", name(index - 1)),
                &format!("{here}/{}", name(index)),
                verdict,
                80,
            ));
        }
        if namespaces > 1 {
            graph.edges.push(edge(&format!("{here}/e000"), &format!("{next}/e000"), Verdict::Allowed, 443));
        }
    }
    graph
}
