//! The picture as an SVG file: light or dark as its reader likes it.

use std::fmt::Write as _;

use super::{
    view::{Curve, Frame, Item, ItemKind, Picture},
    words::shortened,
};
use crate::observe::graph::{Graph, Verdict};

/// Colours and letters of the file; the page has them in its style sheet, under the same names.
const STYLE: &str = include_str!("assets/picture.css");
/// Above and below the picture.
const HEAD: f64 = 64.0;
const FOOT: f64 = 34.0;
/// A second line of the legend.
const FOOT_OF_AUDIT: f64 = 20.0;

pub fn svg(graph: &Graph, picture: &Picture) -> String {
    let width = picture.width.max(640.0);
    let audited = picture.edges.iter().any(|edge| edge.verdict == Verdict::WouldDrop);
    let foot = if audited { FOOT + FOOT_OF_AUDIT } else { FOOT };
    let (x, y, height) = (picture.x, picture.y - HEAD, picture.height + HEAD + foot);
    let mut out = String::new();
    let _ = writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"{x:.0} {y:.0} {width:.0} {height:.0}\" \
         width=\"{width:.0}\" height=\"{height:.0}\" role=\"img\" aria-label=\"Who talks to whom\">"
    );
    let _ = writeln!(out, "<style>{STYLE}</style>");
    let _ =
        writeln!(out, "<rect class=\"paper\" x=\"{x:.0}\" y=\"{y:.0}\" width=\"{width:.0}\" height=\"{height:.0}\"/>");
    out.push_str(&arrows());
    head(&mut out, graph, (x + 26.0, y + 30.0));
    picture.boxes.iter().for_each(|it| frame(&mut out, it));
    picture.edges.iter().for_each(|it| curve(&mut out, it));
    picture.nodes.iter().for_each(|it| item(&mut out, it));
    picture.edges.iter().for_each(|it| label(&mut out, it));
    let below = (x + 26.0, y + height - 16.0);
    legend(&mut out, below);
    if audited {
        legend_of_audit(&mut out, (below.0, below.1 - FOOT_OF_AUDIT));
    }
    out.push_str("</svg>\n");
    out
}

fn head(out: &mut String, graph: &Graph, (x, y): (f64, f64)) {
    let state = match graph.problems.first() {
        _ if graph.enforced => format!("enforced: generation {}, {} policies", graph.generation, graph.policies),
        Some(problem) => format!("NOT ENFORCED: {problem}"),
        None => "NOT ENFORCED".to_owned(),
    };
    let class = if graph.enforced { "enforced" } else { "unenforced" };
    let _ = writeln!(out, "<text class=\"headline\" x=\"{x:.0}\" y=\"{y:.0}\">Who talks to whom</text>");
    let _ = writeln!(
        out,
        "<text class=\"state {class}\" x=\"{x:.0}\" y=\"{:.0}\">{} · {}</text>",
        y + 20.0,
        escape(&state),
        escape(&graph.time)
    );
}

fn arrows() -> String {
    let arrow = |name: &str| {
        format!(
            "<marker id=\"arrow-{name}\" viewBox=\"0 0 10 10\" refX=\"9\" refY=\"5\" markerWidth=\"9\" markerHeight=\"9\" \
             markerUnits=\"userSpaceOnUse\" orient=\"auto\"><path class=\"head {name}\" d=\"M0,0.5 L10,5 L0,9.5 z\"/></marker>"
        )
    };
    let arrows = [Verdict::Allowed, Verdict::Denied, Verdict::WouldDrop].map(|verdict| arrow(verdict.name()));
    format!("<defs>{}</defs>\n", arrows.concat())
}

fn frame(out: &mut String, Frame { namespace, x, y, width, height }: &Frame) {
    let _ = writeln!(
        out,
        "<rect class=\"frame\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"12\"/>\
         <text class=\"namespace\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
        x + 16.0,
        y + 24.0,
        escape(&shortened(namespace, 40)),
    );
}

fn curve(out: &mut String, Curve { verdict, path, stroke, strength, sentence, .. }: &Curve) {
    let name = verdict.name();
    let _ = writeln!(
        out,
        "<path class=\"edge {name}\" d=\"{path}\" stroke-width=\"{stroke:.2}\" opacity=\"{strength:.2}\" \
         marker-end=\"url(#arrow-{name})\"><title>{}</title></path>",
        escape(sentence)
    );
}

fn item(out: &mut String, item: &Item) {
    let Item { id, kind, title, subtitle, pending, x, y, width, height, .. } = item;
    let kind = match kind {
        ItemKind::Outside => "outside",
        ItemKind::Host => "host",
        ItemKind::Endpoint => "endpoint",
        ItemKind::Group => "group",
    };
    let pending = if *pending { " pending" } else { "" };
    let middle = y + height / 2.0;
    let _ = writeln!(
        out,
        "<g class=\"node {kind}{pending}\"><title>{}</title>\
         <rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"9\"/>\
         <text class=\"title\" x=\"{left:.1}\" y=\"{:.1}\">{}</text>\
         <text class=\"subtitle\" x=\"{left:.1}\" y=\"{:.1}\">{}</text></g>",
        escape(id),
        middle - 3.0,
        escape(&shortened(title, 20)),
        middle + 14.0,
        escape(subtitle),
        left = x + 14.0,
    );
}

fn label(out: &mut String, Curve { verdict, label, strength, .. }: &Curve) {
    let Some(label) = label else { return };
    let (x, y) = (label.x - label.width / 2.0, label.y - label.height / 2.0);
    let _ = write!(
        out,
        "<g class=\"label {}\" opacity=\"{:.2}\"><rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"6\"/>",
        verdict.name(),
        strength.max(0.6),
        label.width,
        label.height
    );
    for (row, line) in (0..).zip(&label.lines) {
        let y = y + 14.0 + 15.0 * f64::from(row);
        let _ = write!(out, "<text x=\"{:.1}\" y=\"{y:.1}\">{}</text>", label.x, escape(line));
    }
    out.push_str("</g>\n");
}

fn legend_of_audit(out: &mut String, (x, y): (f64, f64)) {
    let line = y - 4.0;
    let _ = writeln!(
        out,
        "<path class=\"edge would-drop\" d=\"M{x:.0},{line:.0} h44\" stroke-width=\"2\" marker-end=\"url(#arrow-would-drop)\"/>\
         <text class=\"legend\" x=\"{:.0}\" y=\"{y:.0}\">? would drop: packets pass, and an audited policy would stop them</text>",
        x + 54.0,
    );
}

fn legend(out: &mut String, (x, y): (f64, f64)) {
    let line = y - 4.0;
    let _ = writeln!(
        out,
        "<path class=\"edge allowed\" d=\"M{x:.0},{line:.0} h44\" stroke-width=\"2\" marker-end=\"url(#arrow-allowed)\"/>\
         <text class=\"legend\" x=\"{:.0}\" y=\"{y:.0}\">allowed: packets pass</text>\
         <path class=\"edge denied\" d=\"M{:.0},{line:.0} h44\" stroke-width=\"2\" marker-end=\"url(#arrow-denied)\"/>\
         <text class=\"legend\" x=\"{:.0}\" y=\"{y:.0}\">✕ denied: attempts are dropped, by the rule beside it; fading = silent for long</text>",
        x + 54.0,
        x + 210.0,
        x + 264.0
    );
}

/// XML 1.0 has five characters that must be written otherwise, and no control characters at all.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::{Opened, sample};

    fn drawn(graph: &Graph) -> String {
        svg(graph, &Picture::of(graph, &Opened::default()))
    }

    #[test]
    fn a_denied_edge_is_dashed_named_and_has_its_rule() {
        let text = drawn(&sample::shop());
        assert!(text.starts_with("<svg xmlns") && text.ends_with("</svg>\n"));
        assert!(text.contains("class=\"edge denied\""));
        for part in
            ["✕ denied 12/s · TCP 5432", "by shop/default-deny egress (policies.yaml:8)", "enforced: generation 3"]
        {
            assert!(text.contains(part), "{part}");
        }
        assert!(STYLE.contains(".edge.denied") && STYLE.contains("stroke-dasharray"));
    }

    #[test]
    fn the_picture_of_the_readme_is_how_pictures_look() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/map.svg");
        let text = drawn(&sample::shop());
        if std::env::var_os("NETPOL_RENEW").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let kept = std::fs::read_to_string(&path).unwrap();
        assert!(kept == text, "docs/map.svg is of an earlier version: run this test with NETPOL_RENEW=1");
    }

    #[test]
    fn names_cannot_become_markup() {
        let mut graph = sample::shop();
        let evil = "</text><script>alert(1)</script>\"'&\u{1b}[2J";
        graph.nodes[1].name = evil.into();
        graph.edges[0].ports[0].rules[0].rule.name = evil.into();
        graph.enforced = false;
        graph.problems = vec![evil.into()];
        let text = drawn(&graph);
        assert!(!text.contains("<script") && !text.contains('\u{1b}'), "{text}");
        assert!(text.contains("&lt;/text&gt;&lt;script&gt;"));
        assert!(text.contains("NOT ENFORCED"));
    }
}
