//! The graph in Graphviz's language. All endpoints, each namespace a cluster.

use std::fmt::Write as _;

use super::words;
use crate::observe::graph::{Graph, Verdict};

pub fn dot(graph: &Graph) -> String {
    let mut out = String::from(
        "digraph netpol {\n  rankdir=LR;\n  node [shape=box, style=rounded, fontname=\"sans-serif\"];\n  \
         edge [fontname=\"sans-serif\", fontsize=10];\n",
    );
    let mut namespaces: Vec<_> = graph.nodes.iter().filter_map(|node| node.namespace.as_deref()).collect();
    namespaces.dedup();
    for (index, namespace) in namespaces.into_iter().enumerate() {
        let _ = writeln!(out, "  subgraph cluster_{index} {{\n    label={};", quoted(namespace));
        let of = graph.nodes.iter().filter(|node| node.namespace.as_deref() == Some(namespace));
        for node in of {
            let style = if node.pending.is_some() { ", style=\"rounded,dashed\"" } else { "" };
            let _ = writeln!(out, "    {} [label={}{style}];", quoted(&node.id), quoted(&node.name));
        }
        out.push_str("  }\n");
    }
    for node in graph.nodes.iter().filter(|node| node.namespace.is_none()) {
        let _ = writeln!(out, "  {} [label={}, shape=ellipse];", quoted(&node.id), quoted(&node.name));
    }
    for edge in &graph.edges {
        let style = match edge.verdict {
            Verdict::Allowed => "color=\"#1a7f37\"",
            Verdict::WouldDrop => "color=\"#9a6700\", fontcolor=\"#9a6700\", style=dashed",
            Verdict::Denied => "color=\"#cf222e\", fontcolor=\"#cf222e\", style=dashed, arrowhead=tee",
        };
        let label = quoted(&words::label(edge).join("\n"));
        let _ = writeln!(out, "  {} -> {} [label={label}, {style}];", quoted(&edge.from), quoted(&edge.to));
    }
    out.push_str("}\n");
    out
}

/// A quoted string: a quote would end it, and a backslash begin an escape (`\n`, `\N`, ...).
fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out + "\""
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::sample;

    #[test]
    fn clusters_hold_endpoints_and_denied_edges_are_dashed() {
        let text = dot(&sample::shop());
        for line in [
            "    label=\"shop\";",
            "    \"shop/nginx-lb\" [label=\"nginx-lb\"];",
            "  \"outside\" [label=\"outside\", shape=ellipse];",
            "  \"shop/redis-cache\" -> \"shop/postgres-db\" [label=\"✕ denied 12/s · TCP 5432\\nby shop/default-deny egress \
             (policies.yaml:8)\", color=\"#cf222e\", fontcolor=\"#cf222e\", style=dashed, arrowhead=tee];",
        ] {
            assert!(text.lines().any(|it| it == line), "{line}\n{text}");
        }
    }

    #[test]
    fn names_cannot_end_their_quotes() {
        let mut graph = sample::shop();
        graph.nodes[1].name = "a\"]; evil [label=\"\\".into();
        let text = dot(&graph);
        assert!(text.contains(r#"[label="a\"]; evil [label=\"\\"];"#), "{text}");
    }
}
