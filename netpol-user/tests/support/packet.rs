//! Frames byte by byte, for what no socket would send.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::{Endpoint, Host, traffic::checksum};

pub type Mac = [u8; 6];

pub const BROADCAST: Mac = [0xff; 6];

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMP: u8 = 1;
pub const ICMPV6: u8 = 58;

/// A frame to `to`, from `from`.
pub fn ethernet(to: Mac, from: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [&to[..], &from, &ethertype.to_be_bytes(), payload].concat();
    frame.resize(frame.len().max(60), 0);
    frame
}

/// The same, with the EtherType that the packet's first byte tells.
pub fn frame(to: Mac, from: Mac, packet: &[u8]) -> Vec<u8> {
    ethernet(to, from, if packet[0] >> 4 == 6 { 0x86dd } else { 0x0800 }, packet)
}

/// An IP header in front of a payload.
pub fn ip(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let length = (20 + payload.len() as u16).to_be_bytes();
            let mut header = vec![0x45, 0, length[0], length[1], 0x12, 0x34, 0, 0, 64, protocol, 0, 0];
            header.extend(from.octets());
            header.extend(to.octets());
            seal(&mut header);
            [header, payload.to_vec()].concat()
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let length = (payload.len() as u16).to_be_bytes();
            let mut header = vec![0x60, 0, 0, 0, length[0], length[1], protocol, 64];
            // neighbour discovery must not have passed a router (RFC 4861 section 7.1)
            if protocol == ICMPV6 {
                header[7] = 255;
            }
            header.extend(from.octets());
            header.extend(to.octets());
            [header, payload.to_vec()].concat()
        }
        _ => panic!("{from} and {to} are of two families"),
    }
}

/// Writes an IPv4 header's checksum.
pub fn seal(header: &mut [u8]) {
    header[10..12].fill(0);
    let length = usize::from(header[0] & 15) * 4;
    let sum = checksum(&header[..length.clamp(20, header.len())]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// A whole packet, checksum right.
pub fn udp(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    ip(from.ip(), to.ip(), UDP, &udp_segment(from, to, payload))
}

/// UDP header and payload.
pub fn udp_segment(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len() as u16).to_be_bytes();
    let ports = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    let segment = [&ports[..], &length, &[0, 0], payload].concat();
    summed((from.ip(), to.ip()), UDP, segment, 6)
}

/// A whole packet with these flags, checksum right.
pub fn tcp(from: SocketAddr, to: SocketAddr, flags: u8, payload: &[u8]) -> Vec<u8> {
    ip(from.ip(), to.ip(), TCP, &tcp_segment(from, to, flags, payload))
}

/// TCP header and payload.
pub fn tcp_segment(from: SocketAddr, to: SocketAddr, flags: u8, payload: &[u8]) -> Vec<u8> {
    let ports = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    let rest = [0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0];
    let segment = [&ports[..], &rest, payload].concat();
    summed((from.ip(), to.ip()), TCP, segment, 16)
}

/// An ICMP or ICMPv6 message: type, code, the four bytes after the checksum, and the rest.
pub fn icmp(from: IpAddr, to: IpAddr, head: [u8; 6], payload: &[u8]) -> Vec<u8> {
    let protocol = if from.is_ipv4() { ICMP } else { ICMPV6 };
    ip(from, to, protocol, &icmp_message((from, to), head, payload))
}

/// The same without the IP header.
pub fn icmp_message((from, to): (IpAddr, IpAddr), head: [u8; 6], payload: &[u8]) -> Vec<u8> {
    let [kind, code, rest @ ..] = head;
    let message = [&[kind, code, 0, 0], &rest[..], payload].concat();
    let protocol = if from.is_ipv4() { ICMP } else { ICMPV6 };
    summed((from, to), protocol, message, 2)
}

/// Puts the checksum over pseudo-header and segment at `at`.
fn summed((from, to): (IpAddr, IpAddr), protocol: u8, mut segment: Vec<u8>, at: usize) -> Vec<u8> {
    let length = (segment.len() as u32).to_be_bytes();
    let pseudo = match (from, to) {
        // ICMP has none
        (IpAddr::V4(_), _) if protocol == ICMP => vec![],
        (IpAddr::V4(from), IpAddr::V4(to)) => [&from.octets()[..], &to.octets(), &[0, protocol], &length[2..]].concat(),
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            [&from.octets()[..], &to.octets(), &length, &[0, 0, 0, protocol]].concat()
        }
        _ => panic!("{from} and {to} are of two families"),
    };
    let sum = checksum(&[pseudo, segment.clone()].concat());
    segment[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    segment
}

/// An ARP message (RFC 826); 1 asks, 2 answers.
pub fn arp(operation: u8, sender: (Mac, IpAddr), target: (Mac, IpAddr)) -> Vec<u8> {
    let address = |address| match address {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(_) => panic!("ARP is for IPv4"),
    };
    let head = [0, 1, 8, 0, 6, 4, 0, operation];
    [&head[..], &sender.0, &address(sender.1), &target.0, &address(target.1)].concat()
}

/// A neighbour advertisement (RFC 4861 section 4.4) of `target`, with its MAC address.
pub fn advertisement(from: IpAddr, to: IpAddr, target: Ipv6Addr, mac: Mac) -> Vec<u8> {
    let rest = [&target.octets()[..], &[2, 1], &mac].concat();
    icmp(from, to, [136, 0, 0x20, 0, 0, 0], &rest)
}

impl Endpoint {
    pub fn mac(&self) -> Mac {
        self.net(async |net| net.mac("eth0").await)
    }

    pub fn socket(&self, family: super::Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(family), port)
    }
}

impl Host {
    pub fn mac(&self, interface: &str) -> Mac {
        self.net(async |net| net.mac(interface).await)
    }
}
