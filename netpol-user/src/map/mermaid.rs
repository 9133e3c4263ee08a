//! The graph in Mermaid's language, as Markdown of many sites draws it.

use std::{collections::HashMap, fmt::Write as _};

use super::words;
use crate::observe::graph::{Graph, Verdict};

pub fn mermaid(graph: &Graph) -> String {
    let mut out = String::from("flowchart LR\n");
    let ids: HashMap<&str, String> =
        (0..).zip(&graph.nodes).map(|(i, n): (u32, _)| (n.id.as_str(), format!("n{i}"))).collect();
    let mut namespaces: Vec<_> = graph.nodes.iter().filter_map(|node| node.namespace.as_deref()).collect();
    namespaces.dedup();
    for (index, namespace) in namespaces.into_iter().enumerate() {
        let _ = writeln!(out, "  subgraph s{index} [\"{}\"]", escape(namespace));
        for node in graph.nodes.iter().filter(|node| node.namespace.as_deref() == Some(namespace)) {
            let _ = writeln!(out, "    {}[\"{}\"]", ids[node.id.as_str()], escape(&node.name));
        }
        out.push_str("  end\n");
    }
    for node in graph.nodes.iter().filter(|node| node.namespace.is_none()) {
        let _ = writeln!(out, "  {}([\"{}\"])", ids[node.id.as_str()], escape(&node.name));
    }
    let mut coloured = [(Verdict::Denied, "#cf222e", Vec::new()), (Verdict::WouldDrop, "#9a6700", Vec::new())];
    let known =
        graph.edges.iter().filter_map(|edge| Some((edge, ids.get(edge.from.as_str())?, ids.get(edge.to.as_str())?)));
    for (index, (edge, from, to)) in known.enumerate() {
        let lines: Vec<_> = words::label(edge).iter().map(|line| escape(line)).collect();
        let arrow = match edge.verdict {
            Verdict::Allowed => "-->",
            Verdict::WouldDrop => "-.->",
            Verdict::Denied => "-.-x",
        };
        let _ = writeln!(out, "  {from} {arrow}|\"{}\"| {to}", lines.join("<br>"));
        for (_, _, links) in coloured.iter_mut().filter(|(verdict, ..)| *verdict == edge.verdict) {
            links.push(index.to_string());
        }
    }
    for (_, colour, links) in coloured.iter().filter(|(.., links)| !links.is_empty()) {
        let _ = writeln!(out, "  linkStyle {} stroke:{colour},color:{colour}", links.join(","));
    }
    out
}

/// Mermaid's entity codes: what ends a text, is markup, or begins a code.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '#' | '"' | '&' | '<' | '>' | '`' | '|' | '\\' | '{' | '}' | '[' | ']' | ';' | '%' => {
                let _ = write!(out, "#{};", u32::from(c));
            }
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::sample;

    #[test]
    fn denied_edges_end_in_a_cross() {
        let text = mermaid(&sample::shop());
        let line = "-.-x|\"✕ denied 12/s · TCP 5432<br>by shop/default-deny egress (policies.yaml:8)\"| ";
        assert!(text.contains(line), "{text}");
        assert!(text.contains("  linkStyle 0,1 stroke:#cf222e,color:#cf222e"), "{text}");
        assert!(text.contains("  subgraph s0 [\"shop\"]"));
    }

    #[test]
    fn names_cannot_become_markup() {
        let mut graph = sample::shop();
        graph.nodes[1].name = "a\"]\n click n0 \"javascript:alert(1)\" <b>".into();
        let text = mermaid(&graph);
        let written = "[\"a#34;#93;  click n0 #34;javascript:alert(1)#34; #60;b#62;\"]";
        assert!(text.contains(written), "{text}");
    }
}
