//! What one rule says about one protocol: the rectangles of destination and source ports in which
//! it holds. For ICMP the destination is `type << 8 | code`.

use netpol_common::wire::Protocol;

use super::identity::NamedPorts;
use crate::model::{EntityMatch, IcmpMatch, Match, PortMatch};

/// Disjoint, sorted, both ends included.
pub(super) type Spans = Vec<[u16; 2]>;

pub(super) const EVERYTHING: [u16; 2] = [0, u16::MAX];

/// The named ports of the two ends.
#[derive(Clone, Copy)]
pub(super) struct Declared<'a> {
    pub source: &'a NamedPorts<'a>,
    pub destination: &'a NamedPorts<'a>,
}

pub(super) struct Shape {
    pub destination: Spans,
    pub source: Spans,
}

const WITH_PORTS: [Protocol; 4] = [Protocol::TCP, Protocol::UDP, Protocol::SCTP, Protocol::UDPLITE];
const ICMPS: [Protocol; 2] = [Protocol::ICMP, Protocol::ICMPV6];

/// The protocols that the rule treats otherwise than the unnamed rest.
pub(super) fn named_protocols(m: &Match) -> impl Iterator<Item = Protocol> {
    let names_ports = |end: &EntityMatch| end.ports.is_some() || !end.not_ports.is_empty();
    let open = m.protocol.is_none();
    let ports = open && (names_ports(&m.source) || names_ports(&m.destination));
    let icmp = open && (m.icmp.is_some() || m.not_icmp.is_some());
    let when = |condition, protocols: &'static [Protocol]| if condition { protocols } else { &[] };
    let groups = when(ports, &WITH_PORTS).iter().chain(when(icmp, &ICMPS)).copied();
    m.protocol.into_iter().chain(m.not_protocol).chain(groups)
}

/// Whether the rule holds for the protocols that no rule of a list names.
pub(super) fn holds_for_rest(m: &Match) -> bool {
    m.protocol.is_none()
        && m.icmp.is_none()
        && m.not_icmp.is_none()
        && m.source.ports.is_none()
        && m.destination.ports.is_none()
}

/// `None`: the rule never holds for the protocol.
pub(super) fn shape(m: &Match, protocol: Protocol, declared: Declared<'_>) -> Option<Shape> {
    let about_icmp = m.icmp.is_some() || m.not_icmp.is_some();
    if m.protocol.is_some_and(|p| p != protocol)
        || m.not_protocol == Some(protocol)
        || about_icmp && !protocol.is_icmp()
    {
        return None;
    }
    let mut destination = end(&m.destination, protocol, declared.destination);
    if let Some(icmp) = m.icmp {
        destination = without(&destination, &complement(&messages(icmp)));
    }
    if let Some(icmp) = m.not_icmp {
        destination = without(&destination, &messages(icmp));
    }
    let source = end(&m.source, protocol, declared.source);
    (!destination.is_empty() && !source.is_empty()).then_some(Shape { destination, source })
}

fn end(m: &EntityMatch, protocol: Protocol, declared: &NamedPorts<'_>) -> Spans {
    if !protocol.has_ports() {
        return if m.ports.is_some() { Spans::new() } else { vec![EVERYTHING] };
    }
    let spans = |ports: &[PortMatch]| {
        let mut spans = Spans::new();
        for port in ports {
            match port {
                PortMatch::Range(range) => spans.push([*range.start(), *range.end()]),
                PortMatch::Named(name) => {
                    let mine = declared.iter().filter(|(n, p, _)| n == name && *p == protocol);
                    spans.extend(mine.map(|&(.., port)| [port, port]));
                }
            }
        }
        union(spans)
    };
    let wanted = m.ports.as_deref().map_or_else(|| vec![EVERYTHING], spans);
    if m.not_ports.is_empty() { wanted } else { without(&wanted, &spans(&m.not_ports)) }
}

fn messages(IcmpMatch { kind, code }: IcmpMatch) -> Spans {
    match (kind.map(u16::from), code.map(u16::from)) {
        (None, None) => vec![EVERYTHING],
        (Some(kind), None) => vec![[kind << 8, kind << 8 | 0xff]],
        (Some(kind), Some(code)) => vec![[kind << 8 | code; 2]],
        (None, Some(code)) => (0..=0xff).map(|kind| [kind << 8 | code; 2]).collect(),
    }
}

/// Sorts and merges; drops what is empty.
fn union(mut spans: Spans) -> Spans {
    spans.retain(|[low, high]| low <= high);
    spans.sort_unstable();
    let mut merged = Spans::new();
    for [low, high] in spans {
        match merged.last_mut() {
            Some([_, end]) if u32::from(low) <= u32::from(*end) + 1 => *end = high.max(*end),
            _ => merged.push([low, high]),
        }
    }
    merged
}

fn complement(spans: &[[u16; 2]]) -> Spans {
    let mut gaps = Spans::new();
    let mut next = Some(0);
    for &[low, high] in spans {
        if let Some(start) = next
            && start < low
        {
            gaps.push([start, low - 1]);
        }
        next = high.checked_add(1);
    }
    gaps.extend(next.map(|start| [start, u16::MAX]));
    gaps
}

fn without(spans: &[[u16; 2]], holes: &[[u16; 2]]) -> Spans {
    let gaps = complement(holes);
    let both = spans.iter().flat_map(|&[low, high]| {
        let from = gaps.partition_point(|gap| gap[1] < low);
        let near = gaps[from..].iter().take_while(move |gap| gap[0] <= high);
        near.map(move |gap| [gap[0].max(low), gap[1].min(high)])
    });
    both.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_merge_when_they_touch() {
        assert_eq!(union(vec![[5, 9], [1, 2], [3, 3], [7, 20], [9, 8]]), [[1, 3], [5, 20]]);
        assert_eq!(union(vec![[0, u16::MAX], [u16::MAX, u16::MAX]]), [EVERYTHING]);
    }

    #[test]
    fn the_complement_reaches_both_ends() {
        assert_eq!(complement(&[]), [EVERYTHING]);
        assert_eq!(complement(&[EVERYTHING]), [[0; 2]; 0]);
        assert_eq!(complement(&[[0, 3], [5, 5]]), [[4, 4], [6, u16::MAX]]);
        assert_eq!(complement(&[[7, u16::MAX]]), [[0, 6]]);
    }

    #[test]
    fn holes_are_cut_out() {
        assert_eq!(without(&[[1, 10], [20, 30]], &[[3, 4], [8, 22], [30, 40]]), [[1, 2], [5, 7], [23, 29]]);
    }

    #[test]
    fn a_code_without_a_type_is_that_code_of_every_type() {
        let spans = messages(IcmpMatch { kind: None, code: Some(3) });
        assert_eq!(spans.len(), 256);
        assert_eq!(spans[8], [0x803, 0x803]);
    }
}
