//! The first packet of a connection, as a hook sees it.
//!
//! Checksums are left at zero: classifiers correct them by differences, and nobody else ever sees the frame.

use std::net::IpAddr;

use netpol_common::{
    parse::{Family as _, IcmpKind, V4, V6, ethertype, tcp},
    wire::{Mac, Protocol},
};

use crate::model::Opening;

/// Who opens what to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub opening: Opening,
}

/// The identifier of ICMP queries. (Any would do: nothing else is remembered where it is tried.)
const QUERY: u16 = 1;
const HOPS: u8 = 64;

impl Packet {
    /// The whole frame. `None`: the addresses are of two families.
    pub fn frame(&self, source: Mac, destination: Mac) -> Option<Vec<u8>> {
        let Self { opening, .. } = self;
        let payload = payload(*opening);
        let protocol = opening.protocol.0;
        let length = payload.len() as u16;
        let (kind, header) = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let head = [0x45, 0, 0, 0, 0, 0, 0x40, 0, HOPS, protocol, 0, 0];
                let mut header = [&head[..], &source.octets(), &destination.octets()].concat();
                header[2..4].copy_from_slice(&(length + 20).to_be_bytes());
                (ethertype::IPV4, header)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let head = [&[0x60, 0, 0, 0], &length.to_be_bytes()[..], &[protocol, HOPS]].concat();
                (ethertype::IPV6, [&head[..], &source.octets(), &destination.octets()].concat())
            }
            _ => return None,
        };
        Some([&destination[..], &source, &kind.to_be_bytes(), &header, &payload].concat())
    }

    /// Why the kernel cannot be asked by one packet; `None`: it can.
    pub fn obstacle(&self) -> Option<&'static str> {
        let Opening { protocol, icmp, source_port, destination_port } = self.opening;
        if let Some((kind, _)) = icmp {
            if (protocol == Protocol::ICMPV6) != self.source.is_ipv6() {
                return Some("this ICMP is of the other IP version");
            }
            let kind = if protocol == Protocol::ICMP { V4::icmp(kind) } else { V6::icmp(kind) };
            return match kind {
                IcmpKind::Request | IcmpKind::Other => None,
                IcmpKind::Reply(_) => Some("an answer passes where its question has passed"),
                IcmpKind::Error => Some("an ICMP error passes if the packet that it quotes did"),
                _ => Some("what a link needs is guarded, not judged by policy"),
            };
        }
        let dhcp = [67, 68, 546, 547];
        let is_dhcp = protocol == Protocol::UDP && (dhcp.contains(&source_port) || dhcp.contains(&destination_port));
        is_dhcp.then_some("DHCP has rules of its own")
    }
}

fn payload(opening: Opening) -> Vec<u8> {
    let Opening { protocol, source_port, destination_port, icmp } = opening;
    let ports = [source_port.to_be_bytes(), destination_port.to_be_bytes()].concat();
    match (protocol, icmp) {
        (_, Some((kind, code))) => [&[kind, code, 0, 0], &QUERY.to_be_bytes()[..], &[0, 1], &[0; 16]].concat(),
        (Protocol::TCP, _) => [&ports[..], &[0; 8], &[0x50, tcp::SYN, 0xff, 0xff, 0, 0, 0, 0]].concat(),
        // of SCTP (RFC 9260) an INIT chunk without parameters
        (Protocol::SCTP, _) => [&ports[..], &[0; 8], &[1, 0, 0, 20], &[0; 16]].concat(),
        // UDP, and UDP-Lite, whose coverage is the whole
        _ => [&ports[..], &[0, 12, 0, 0], b"ping"].concat(),
    }
}

#[cfg(test)]
mod tests {
    use netpol_common::{
        drops::Side,
        flow::Place,
        parse::{self, plain},
        tables::IfIndex,
    };

    use super::*;
    use crate::model::probe::Probe;

    fn packet(port: &str, six: bool) -> Packet {
        let [source, destination] = if six { ["fd00::1", "fd00::2"] } else { ["10.0.0.1", "10.0.0.2"] };
        let [source, destination] = [source, destination].map(|text| text.parse().unwrap());
        let ends = [source, destination].map(crate::model::Party::Outside);
        Packet { source, destination, opening: port.parse::<Probe>().unwrap().opening(ends[0], ends[1], 50_000) }
    }

    #[test]
    fn frame_is_read_as_what_it_was_made_of() {
        for port in ["80/tcp", "53/udp", "9/sctp", "7/udplite", "icmp"] {
            let four = packet(port, false).frame([2; 6], [4; 6]).unwrap();
            let (ip, transport) = plain::<V4, _>(&four[..]).unwrap_or_else(|| panic!("{port}"));
            let place = Place::new(IfIndex(7), Side::From);
            let key = parse::key(&ip, transport.ports, transport.protocol, place);
            assert_eq!((IpAddr::from(key.source), ip.end), ("10.0.0.1".parse().unwrap(), four.len()), "{port}");
            let six = packet(port, true).frame([2; 6], [4; 6]).unwrap();
            let (ip, _) = plain::<V6, _>(&six[..]).unwrap_or_else(|| panic!("{port}"));
            assert_eq!((IpAddr::from(ip.destination), ip.end), ("fd00::2".parse().unwrap(), six.len()), "{port}");
        }
    }

    #[test]
    fn only_what_opens_a_flow_is_asked() {
        let cases = [
            ("80/tcp", false, true),
            ("icmp", false, true),
            ("icmp/13", false, true),
            ("icmp/0", false, false),
            ("icmp/3/4", false, false),
            ("icmp/5", false, false),
            ("icmpv6/128/0", true, true),
            ("icmpv6/128/0", false, false),
            ("icmpv6/134", true, false),
            ("67/udp", false, false),
        ];
        for (port, six, asked) in cases {
            assert_eq!(packet(port, six).obstacle().is_none(), asked, "{port}");
        }
    }
}
