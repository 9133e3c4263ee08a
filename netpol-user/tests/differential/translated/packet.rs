//! What is said, byte by byte: a packet that arrives is compared with one that is written anew for whom it reaches, with
//! checksums calculated in full. So nothing but addresses, ports and what follows from them can have changed.

use std::net::{IpAddr, SocketAddr};

use netpol_common::wire::{Mac, Protocol};

use crate::{
    datapath::frame,
    support::packet::{ICMP, ICMPV6, icmp_message, ip, seal, tcp_segment, udp_segment},
};

/// What a packet leaves its sender with.
pub const HOPS: u8 = 64;
const ICMPV4: Protocol = Protocol(ICMP);
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// From whom to whom; an echo has its identifier for both ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    pub protocol: Protocol,
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

impl Tuple {
    pub fn reversed(self) -> Self {
        Self { source: self.destination, destination: self.source, ..self }
    }

    pub fn is_echo(self) -> bool {
        self.protocol == ICMPV4 || self.protocol == Protocol::ICMPV6
    }

    pub fn echo(six: bool) -> Protocol {
        if six { Protocol(ICMPV6) } else { ICMPV4 }
    }
}

/// The rest of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Of TCP.
    pub flags: u8,
    pub payload: Vec<u8>,
    /// IPv4 options, or IPv6 destination options, in front of the transport header.
    pub options: bool,
    /// UDP over IPv4 without a checksum.
    pub unsummed: bool,
    /// In two fragments.
    pub pieces: bool,
}

/// A packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    pub tuple: Tuple,
    /// Of an echo: the reply.
    pub answer: bool,
    pub shape: Shape,
    pub hops: u8,
}

impl Said {
    /// As it is on a wire; `number` tells fragments of different packets apart.
    pub fn packets(&self, number: u16) -> Vec<Vec<u8>> {
        let whole = self.whole();
        if self.is_in_pieces() { pieces(&whole, number) } else { vec![whole] }
    }

    /// Not in fragments.
    pub fn whole(&self) -> Vec<u8> {
        let Tuple { protocol, source, destination } = self.tuple;
        let Shape { flags, payload, .. } = &self.shape;
        let ends = (source.ip(), destination.ip());
        let mut segment = match protocol {
            Protocol::TCP => tcp_segment(source, destination, *flags, payload),
            Protocol::UDP => udp_segment(source, destination, payload),
            _ => icmp_message(ends, self.echo_head(), payload),
        };
        if self.is_unsummed() {
            segment[6..8].fill(0);
        }
        let mut packet = if !self.has_options() {
            ip(ends.0, ends.1, protocol.0, &segment)
        } else if source.is_ipv4() {
            let mut packet = ip(ends.0, ends.1, protocol.0, &[&[1, 1, 1, 0], &segment[..]].concat());
            packet[0] += 1;
            packet
        } else {
            let options = [protocol.0, 0, 1, 4, 0, 0, 0, 0];
            ip(ends.0, ends.1, DESTINATION_OPTIONS, &[&options, &segment[..]].concat())
        };
        set_hops(&mut packet, self.hops);
        packet
    }

    fn echo_head(&self) -> [u8; 6] {
        let kind = match (self.tuple.source.is_ipv4(), self.answer) {
            (true, false) => 8,
            (true, true) => 0,
            (false, false) => 128,
            (false, true) => 129,
        };
        let [high, low] = self.tuple.source.port().to_be_bytes();
        [kind, 0, high, low, 0, 1]
    }

    /// A first fragment holds the whole transport header.
    fn is_in_pieces(&self) -> bool {
        self.shape.pieces && self.shape.payload.len() > 8
    }

    pub fn has_options(&self) -> bool {
        self.shape.options && !self.is_in_pieces()
    }

    fn is_unsummed(&self) -> bool {
        self.shape.unsummed && self.tuple.protocol == Protocol::UDP && self.tuple.source.is_ipv4()
    }

    /// The same as it has arrived, in a packet (of several, the first) that was this one: whatever addresses, ports and
    /// hops that has.
    pub fn read(&self, packet: &[u8]) -> Self {
        let six = self.tuple.source.is_ipv6();
        let behind = match (six, self.has_options(), self.is_in_pieces()) {
            (false, options, _) => 20 + usize::from(options) * 4,
            (true, options, pieces) => 40 + usize::from(options || pieces) * 8,
        };
        let port = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
        let (source, destination) =
            if self.tuple.is_echo() { (port(behind + 4), port(behind + 4)) } else { (port(behind), port(behind + 2)) };
        let (from, to) = addresses(packet);
        let tuple = Tuple {
            source: SocketAddr::new(from, source),
            destination: SocketAddr::new(to, destination),
            ..self.tuple
        };
        Self { tuple, hops: packet[if six { 7 } else { 8 }], ..self.clone() }
    }
}

/// Source and destination of an IP packet.
pub fn addresses(packet: &[u8]) -> (IpAddr, IpAddr) {
    if packet[0] >> 4 == 4 {
        let address = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&packet[at..at + 4]).unwrap());
        (address(12), address(16))
    } else {
        let address = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).unwrap());
        (address(8), address(24))
    }
}

fn set_hops(packet: &mut [u8], hops: u8) {
    if packet[0] >> 4 == 4 {
        packet[8] = hops;
        seal(packet);
    } else {
        packet[7] = hops;
    }
}

/// Two fragments of a packet without options.
fn pieces(packet: &[u8], number: u16) -> Vec<Vec<u8>> {
    // a TCP header, in units of eight bytes
    const FIRST: usize = 24;
    let six = packet[0] >> 4 == 6;
    let (header, payload) = packet.split_at(if six { 40 } else { 20 });
    let parts = payload.split_at(FIRST.min(payload.len() - 1) / 8 * 8);
    let one = |(offset, more, part): (usize, bool, &[u8])| {
        let mut header = header.to_vec();
        if six {
            let protocol = std::mem::replace(&mut header[6], FRAGMENT);
            header[4..6].copy_from_slice(&(part.len() as u16 + 8).to_be_bytes());
            let word = (offset as u16 | u16::from(more)).to_be_bytes();
            let id = u32::from(number).to_be_bytes();
            return [&header[..], &[protocol, 0], &word, &id, part].concat();
        }
        header[2..4].copy_from_slice(&(part.len() as u16 + 20).to_be_bytes());
        header[4..6].copy_from_slice(&number.to_be_bytes());
        header[6..8].copy_from_slice(&((offset as u16 / 8) | (u16::from(more) << 13)).to_be_bytes());
        seal(&mut header);
        [&header[..], part].concat()
    };
    vec![one((0, true, parts.0)), one((parts.0.len(), false, parts.1))]
}

/// "Port unreachable", about a packet.
pub fn unreachable((from, to): (IpAddr, IpAddr), about: &[u8]) -> Vec<u8> {
    let (kind, code) = if from.is_ipv4() { (3, 3) } else { (1, 4) };
    let protocol = if from.is_ipv4() { ICMP } else { ICMPV6 };
    let mut packet = ip(from, to, protocol, &icmp_message((from, to), [kind, code, 0, 0, 0, 0], about));
    set_hops(&mut packet, HOPS);
    packet
}

/// How much of a packet an error quotes at least (RFC 792).
pub fn shortened(packet: &[u8], said: &Said) -> Vec<u8> {
    let header = if said.tuple.source.is_ipv4() { 20 } else { 40 };
    let options = match (said.has_options(), said.tuple.source.is_ipv4()) {
        (false, _) => 0,
        (true, true) => 4,
        (true, false) => 8,
    };
    packet[..header + options + 8].to_vec()
}

/// The packet in a frame, without what is behind its end.
pub fn inside(frame: &[u8]) -> &[u8] {
    let packet = &frame[14..];
    let word = |at: usize| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
    &packet[..if packet[0] >> 4 == 4 { word(2) } else { 40 + word(4) }]
}

/// A frame of exactly that packet.
pub fn framed(to: Mac, from: Mac, packet: &[u8]) -> Vec<u8> {
    frame::ethernet(to, from, if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd }, packet)
}
