//! What the picture says, in words. Stated once for the page, the files and screen readers.

use crate::observe::graph::{Edge, Port, Verdict};

/// `0.4/s`, `12/s`, `3.4k/s`; `None`: nothing moves, or it is not known yet.
pub fn rate(per_second: Option<f64>) -> Option<String> {
    let rate = per_second.filter(|rate| *rate >= 0.05)?;
    Some(match rate {
        ..9.95 => format!("{rate:.1}/s"),
        ..999.5 => format!("{rate:.0}/s"),
        ..999_500.0 => format!("{:.1}k/s", rate / 1e3),
        _ => format!("{:.1}M/s", rate / 1e6),
    })
}

/// `3 s`, `5 min`, `2 h`, `4 d`
pub fn age(seconds: f64) -> String {
    match seconds {
        ..60.0 => format!("{seconds:.0} s"),
        ..3600.0 => format!("{:.0} min", seconds / 60.0),
        ..86_400.0 => format!("{:.0} h", seconds / 3600.0),
        _ => format!("{:.0} d", seconds / 86_400.0),
    }
}

/// `TCP 5432`, `ICMP`, `protocol 2`
pub fn port(port: &Port) -> String {
    match port.port {
        Some(number) => format!("{} {number}", port.protocol),
        // one that has no name here
        None if port.protocol.starts_with(|c: char| c.is_ascii_digit()) => format!("protocol {}", port.protocol),
        None => port.protocol.clone(),
    }
}

/// `TCP 80, TCP 443, ...`
pub fn ports(edge: &Edge) -> String {
    const SHOWN: usize = 2;
    let mut ports: Vec<_> = edge.ports.iter().take(SHOWN).map(port).collect();
    let more = edge.ports.len().saturating_sub(SHOWN) + edge.more_ports;
    if more > 0 {
        ports.push(format!("{more} more"));
    }
    ports.join(", ")
}

/// Who said no, or would, short enough for a picture: `shop/default-deny egress (policies.yaml:8)`.
pub fn rule(edge: &Edge) -> Option<String> {
    let decider = edge.ports.iter().find_map(|port| port.rules.first())?;
    let rule = &decider.rule;
    let name = rule.namespace.as_ref().map_or_else(|| rule.name.clone(), |ns| format!("{ns}/{}", rule.name));
    let part = rule.index.map_or_else(|| rule.direction.clone(), |index| format!("{}[{index}]", rule.direction));
    let place = rule.source.rsplit('/').next().unwrap_or(&rule.source);
    // names may have 253 letters, and files more
    Some(format!("{} {part} ({})", shortened(&name, 44), shortened(place, 36)))
}

/// The lines beside an edge.
pub fn label(edge: &Edge) -> Vec<String> {
    let ports = ports(edge);
    let rate = rate(edge.numbers.packets_per_second);
    match edge.verdict {
        Verdict::Denied | Verdict::WouldDrop => {
            let moving = rate.unwrap_or_else(|| format!("{} ago", age(edge.numbers.idle_seconds)));
            let by = rule(edge).map_or_else(|| "by an earlier policy".to_owned(), |rule| format!("by {rule}"));
            let word = if edge.verdict == Verdict::Denied { "✕ denied" } else { "? would drop" };
            vec![format!("{word} {moving} · {ports}"), by]
        }
        Verdict::Allowed => vec![rate.map_or(ports.clone(), |rate| format!("{ports} · {rate}"))],
    }
}

/// One sentence, for those who cannot see the picture.
pub fn sentence(edge: &Edge) -> String {
    let Edge { from, to, .. } = edge;
    let ports = ports(edge);
    match edge.verdict {
        Verdict::Denied => {
            let by = rule(edge).map(|rule| format!(", by {rule}")).unwrap_or_default();
            format!("{from} is denied {to}, {ports}{by}")
        }
        Verdict::WouldDrop => {
            let by = rule(edge).map(|rule| format!(", by {rule}")).unwrap_or_default();
            format!("{from} is allowed to {to}, {ports}; audited policies would deny it{by}")
        }
        Verdict::Allowed => format!("{from} is allowed to {to}, {ports}"),
    }
}

/// With an ellipsis where it is too long for its box.
pub fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::sample;

    #[test]
    fn a_denied_edge_says_how_often_where_and_by_which_rule() {
        let graph = sample::shop();
        let denied = graph.edges.iter().find(|edge| edge.verdict == Verdict::Denied).unwrap();
        let lines = label(denied);
        assert_eq!(lines, ["✕ denied 12/s · TCP 5432", "by shop/default-deny egress (policies.yaml:8)"]);
        assert_eq!(
            sentence(denied),
            "shop/redis-cache is denied shop/postgres-db, TCP 5432, by shop/default-deny egress (policies.yaml:8)"
        );
    }

    #[test]
    fn long_names_are_cut_so_that_labels_stay_labels() {
        let mut graph = sample::shop();
        let rule = &mut graph.edges[0].ports[0].rules[0].rule;
        (rule.name, rule.source) = ("n".repeat(253), format!("{}.yaml:7", "f".repeat(255)));
        let lines = label(&graph.edges[0]);
        assert!(lines.iter().all(|line| line.chars().count() < 100), "{lines:?}");
    }

    #[test]
    fn numbers_are_short() {
        let rates = [None, Some(0.0), Some(0.4), Some(9.96), Some(12.0), Some(3400.0), Some(2.5e6)];
        let said = rates.map(|value| rate(value).unwrap_or_default());
        assert_eq!(said, ["", "", "0.4/s", "10/s", "12/s", "3.4k/s", "2.5M/s"]);
        assert_eq!([3.0, 90.0, 7200.0, 200_000.0].map(age), ["3 s", "2 min", "2 h", "2 d"]);
    }
}
