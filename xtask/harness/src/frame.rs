//! Ethernet frames, byte by byte: for floods, for probes, and for packets that only a classifier sees.

use std::net::IpAddr;

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
const UDP: u8 = 17;
const TCP: u8 = 6;

/// Who speaks to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    pub macs: [[u8; 6]; 2],
    pub addresses: [IpAddr; 2],
}

impl Ends {
    /// The way back.
    pub fn reversed(self) -> Self {
        let ([source_mac, mac], [source, destination]) = (self.macs, self.addresses);
        Self { macs: [mac, source_mac], addresses: [destination, source] }
    }
}

/// What follows the IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp(TcpFlags),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    pub const SYN: Self = Self(0x02);
    pub const SYN_ACK: Self = Self(0x12);
    pub const ACK: Self = Self(0x10);
}

/// Source and destination port.
pub type Ports = [u16; 2];

/// A whole frame with 18 bytes of payload: the smallest that Ethernet pads no further.
pub fn frame(ends: Ends, transport: Transport, ports: Ports) -> Vec<u8> {
    let protocol = if transport == Transport::Udp { UDP } else { TCP };
    datagram(ends, protocol, &segment(ends, transport, ports))
}

/// A whole frame around what follows the IP header.
pub fn datagram(ends: Ends, protocol: u8, segment: &[u8]) -> Vec<u8> {
    let [source_mac, mac] = ends.macs;
    let ether_type: u16 = if ends.addresses[0].is_ipv4() { 0x0800 } else { 0x86dd };
    let mut frame = [&mac[..], &source_mac[..], &ether_type.to_be_bytes()[..]].concat();
    match ends.addresses {
        [IpAddr::V4(source), IpAddr::V4(destination)] => {
            let [high, low] = (20 + segment.len() as u16).to_be_bytes();
            let mut header = vec![0x45, 0, high, low, 0, 0, 0x40, 0, 64, protocol, 0, 0];
            header.extend(source.octets());
            header.extend(destination.octets());
            let sum = checksum(&header).to_be_bytes();
            header[10..12].copy_from_slice(&sum);
            frame.extend(header);
        }
        [source, destination] => {
            let [high, low] = (segment.len() as u16).to_be_bytes();
            frame.extend([0x60, 0, 0, 0, high, low, protocol, 64]);
            frame.extend(octets(source));
            frame.extend(octets(destination));
        }
    }
    frame.extend(segment);
    frame
}

/// Gives a UDP frame over IPv4 other ports. (It carries no UDP checksum then, which IPv4 allows.)
pub fn set_udp4_ports(frame: &mut [u8], [source, destination]: Ports) {
    let header = ETHERNET + 20;
    frame[header..header + 2].copy_from_slice(&source.to_be_bytes());
    frame[header + 2..header + 4].copy_from_slice(&destination.to_be_bytes());
    frame[header + 6..header + 8].fill(0);
}

fn segment(ends: Ends, transport: Transport, [source, destination]: Ports) -> Vec<u8> {
    let payload = [b'x'; 18];
    let mut bytes = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    let sum_at = match transport {
        Transport::Udp => {
            bytes.extend((8 + payload.len() as u16).to_be_bytes());
            bytes.extend([0, 0]);
            6
        }
        Transport::Tcp(flags) => {
            // Sequence 1, acknowledgement 1, a header of five words, a window.
            bytes.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags.0, 0xff, 0xff, 0, 0, 0, 0]);
            16
        }
    };
    if transport != Transport::Tcp(TcpFlags::SYN) && transport != Transport::Tcp(TcpFlags::SYN_ACK) {
        bytes.extend(payload);
    }
    let protocol = if transport == Transport::Udp { UDP } else { TCP };
    let sum = checksum_between(ends, protocol, &bytes);
    bytes[sum_at..sum_at + 2].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// The checksum of a segment with its pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1).
pub fn checksum_between(ends: Ends, protocol: u8, segment: &[u8]) -> u16 {
    let [a, b] = ends.addresses.map(octets);
    let length = (segment.len() as u32).to_be_bytes();
    checksum(&[&a, &b, &length[..], &[0, 0, 0, protocol], segment].concat())
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The Internet checksum (RFC 1071).
pub fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(addresses: [&str; 2]) -> Ends {
        let addresses = addresses.map(|text| text.parse().expect("an address"));
        Ends { macs: [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]], addresses }
    }

    #[test]
    fn ipv4_header_sums_to_zero() {
        let frame = frame(ends(["10.77.0.11", "10.77.0.12"]), Transport::Udp, [1024, 7001]);
        assert_eq!(checksum(&frame[14..34]), 0);
        assert_eq!(frame.len(), 60);
    }

    #[test]
    fn segments_sum_to_zero_with_their_pseudo_header() {
        for addresses in [["10.77.0.11", "10.77.0.12"], ["fd77::b", "fd77::c"]] {
            for transport in [Transport::Udp, Transport::Tcp(TcpFlags::ACK), Transport::Tcp(TcpFlags::SYN)] {
                let ends = ends(addresses);
                let segment = segment(ends, transport, [1024, 7001]);
                let protocol = if transport == Transport::Udp { UDP } else { TCP };
                assert_eq!(checksum_between(ends, protocol, &segment), 0);
            }
        }
    }

    #[test]
    fn new_ports_are_where_the_old_ones_were() {
        let ends = ends(["10.77.0.11", "10.77.0.12"]);
        let mut changed = frame(ends, Transport::Udp, [1, 2]);
        set_udp4_ports(&mut changed, [1024, 7001]);
        let mut expected = frame(ends, Transport::Udp, [1024, 7001]);
        expected[40..42].fill(0);
        assert_eq!(changed, expected);
    }

    #[test]
    fn the_way_back_swaps_everything() {
        let there = ends(["fd77::b", "fd77::c"]);
        let back = there.reversed();
        assert_eq!(back.macs, [[2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1]]);
        assert_eq!(back.reversed(), there);
    }
}
