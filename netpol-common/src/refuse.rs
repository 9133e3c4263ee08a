//! What a client is told where nobody is behind a published address, in place of its packet: a reset of its TCP
//! connection, or "port unreachable" about its datagram.
//!
//! A packet that its sender's kernel left to hardware has a checksum still to be calculated, and nothing tells. So the
//! checksums here are right whether or not somebody adds up the transport header once more.

use crate::{
    decide::Packet,
    flow::FlowKey,
    headers::{Header, Icmp, Ipv4, Ipv6, Tcp},
    parse::{Family, NETWORK, V4, V6, tcp},
    wire::{Addr4, Addr6, Address, Protocol},
};

/// Headers that this host writes itself.
pub trait Answers: Family {
    type Header: Header;

    /// "Port unreachable": type and code (RFC 792; RFC 4443 section 3.1).
    const UNREACHABLE: [u8; 2];

    /// Of a packet with so many bytes behind it.
    fn header(source: &Self::Address, destination: &Self::Address, protocol: Protocol, length: u16) -> Self::Header;
}

/// What Linux gives to packets of its own.
const HOPS: u8 = 64;

impl Answers for V4 {
    type Header = Ipv4;
    const UNREACHABLE: [u8; 2] = [3, 3];

    #[inline(always)]
    fn header(source: &Addr4, destination: &Addr4, protocol: Protocol, length: u16) -> Ipv4 {
        let total = size_of::<Ipv4>() as u16 + length;
        let header = Ipv4 {
            version_ihl: 0x45,
            tos: 0,
            total_length: total.to_be(),
            id: 0,
            // don't fragment: whole packets need no identification (RFC 6864)
            fragment: 0x4000u16.to_be(),
            ttl: HOPS,
            protocol: protocol.0,
            checksum: 0,
            source: *source,
            destination: *destination,
        };
        Ipv4 { checksum: !fold(sum(&header)), ..header }
    }
}

impl Answers for V6 {
    type Header = Ipv6;
    const UNREACHABLE: [u8; 2] = [1, 4];

    #[inline(always)]
    fn header(source: &Addr6, destination: &Addr6, protocol: Protocol, length: u16) -> Ipv6 {
        Ipv6 {
            version_class: 0x6000u16.to_be(),
            flow_label: 0,
            payload_length: length.to_be(),
            next_header: protocol.0,
            hop_limit: HOPS,
            source: *source,
            destination: *destination,
        }
    }
}

/// Where the transport header begins of what can be answered: options and extension headers are not followed.
#[inline(always)]
pub const fn transport<F: Answers>() -> usize {
    NETWORK + size_of::<F::Header>()
}

/// Whether anybody is to be answered: no group, and nobody without an address.
#[inline(always)]
pub fn is_answerable<F: Answers>(packet: &Packet<F::Address>) -> bool {
    let FlowKey { source, destination, .. } = &packet.key;
    let is_nobody = source.is_group() || source.is_unspecified() || source.is_loopback();
    packet.transport as usize == transport::<F>()
        && !(is_nobody || destination.is_group() || packet.destination_mac.is_group())
}

/// A packet in place of another, from its Ethernet header on behind the addresses.
#[derive(Clone, Copy)]
#[repr(C, packed(2))]
pub struct Reset<F: Answers> {
    pub network: F::Header,
    /// Its checksum is what hardware wants to find there.
    pub tcp: Tcp,
}

/// The answer to a segment of no connection (RFC 9293 section 3.10.7.1), which is no reset itself and ends at `end`
/// ([`Ip::end`](crate::parse::Ip::end)). Also: what the TCP
/// checksum must still be changed by (as `inet_proto_csum_replace_by_diff` does, net/core/utils.c) if no hardware will
/// calculate it.
#[inline(always)]
pub fn reset<F: Answers>(packet: &Packet<F::Address>, end: usize, segment: &Tcp) -> (Reset<F>, u32) {
    let (acknowledges, opens) = (segment.flags & tcp::ACK != 0, segment.flags & tcp::SYN != 0);
    let header = u32::from(segment.offset >> 4) * 4;
    let data = (end as u32).saturating_sub(packet.transport + header);
    let ends = u32::from(opens) + u32::from(segment.flags & tcp::FIN != 0);
    let next = u32::from_be(segment.sequence).wrapping_add(data).wrapping_add(ends);
    let (sequence, acknowledgement, flags) =
        if acknowledges { (segment.acknowledgement, 0, tcp::RST) } else { (0, next.to_be(), tcp::RST | tcp::ACK) };
    let tcp = Tcp {
        source: segment.destination,
        destination: segment.source,
        sequence,
        acknowledgement,
        offset: ((size_of::<Tcp>() / 4) as u8) << 4,
        flags,
        window: 0,
        checksum: 0,
        urgent: 0,
    };
    let length = size_of::<Tcp>() as u16;
    let FlowKey { source, destination, .. } = &packet.key;
    let pseudo = pseudo::<F>(&packet.key, Protocol::TCP, length);
    let network = F::header(destination, source, Protocol::TCP, length);
    // the field f becomes -(change - f): with f = pseudo, that is -(pseudo + header)
    let change = 2 * pseudo + sum(&tcp);
    (Reset { network, tcp: Tcp { checksum: fold(pseudo), ..tcp } }, change)
}

/// "Port unreachable": behind it comes what it is about, a header and the first eight bytes behind that.
#[derive(Clone, Copy)]
#[repr(C, packed(2))]
pub struct Unreachable<F: Answers> {
    pub network: F::Header,
    pub icmp: Icmp,
}

/// The first eight bytes behind a header.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct First(pub [u16; 4]);

// SAFETY: integers, aligned to 2, without padding.
unsafe impl Header for First {}

/// "Port unreachable" about a datagram. Also, what is to be added to [`Icmp::rest`], and taken from the checksum, if no
/// hardware will calculate one.
///
/// Hardware that was to calculate a UDP checksum adds up the message and writes to [`Icmp::rest`], which is where UDP has
/// it: with the pseudo-header's sum there beforehand, that is what it writes again, and the message's checksum counts it
/// in. Nobody reads that field; without hardware it is zero.
#[inline(always)]
pub fn unreachable<F: Answers>(key: &FlowKey<F::Address>, quoted: &F::Header, first: First) -> (Unreachable<F>, u32) {
    let length = (size_of::<Icmp>() + size_of::<F::Header>() + size_of::<First>()) as u16;
    let [kind, code] = F::UNREACHABLE;
    // RFC 792: ICMP of IPv4 has no pseudo-header
    let pseudo = if F::CHECKSUM.is_some() { 0 } else { fold(pseudo::<F>(key, F::ICMP, length)) };
    let icmp = Icmp { kind, code, checksum: 0, id: 0, rest: pseudo };
    let total = u32::from(pseudo) + sum(&icmp) + sum(quoted) + sum(&first);
    let network = F::header(&key.destination, &key.source, F::ICMP, length);
    (Unreachable { network, icmp: Icmp { checksum: !fold(total), ..icmp } }, u32::from(pseudo))
}

/// Of the addresses of a packet and its answer alike (RFC 9293 section 3.1, RFC 8200 section 8.1).
#[inline(always)]
fn pseudo<F: Answers>(key: &FlowKey<F::Address>, protocol: Protocol, length: u16) -> u32 {
    key.source.sum() + key.destination.sum() + u32::from(length.to_be()) + u32::from(u16::from(protocol.0).to_be())
}

/// The words of a header, added up: in whatever byte order, as RFC 1071 section 2 has it.
#[inline(always)]
fn sum<H: Header>(header: &H) -> u32 {
    let words = (&raw const *header).cast::<u16>();
    let mut total = 0;
    let mut at = 0;
    while at < size_of::<H>() / 2 {
        // SAFETY: inside the header, which has no padding and is aligned to 2 at least.
        total += u32::from(unsafe { *words.add(at) });
        at += 1;
    }
    total
}

/// A sum in 16 bits (RFC 1071).
#[inline(always)]
const fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::{slice, vec::Vec};

    use super::*;
    use crate::{
        drops::Side,
        flow::{Generation, Place, PortPair, Ticks},
        kernel::Settings,
        tables::IfIndex,
        wire::{MacWords, PortBe},
    };

    #[test]
    fn nobody_and_groups_are_not_answered() {
        let (client, service) = four();
        assert!(is_answerable::<V4>(&packet::<V4>(client, service, Protocol::TCP)));
        for nobody in [Addr4::UNSPECIFIED, Addr4(u32::MAX), std::net::Ipv4Addr::LOCALHOST.into()] {
            assert!(!is_answerable::<V4>(&packet::<V4>(nobody, service, Protocol::TCP)));
        }
        assert!(!is_answerable::<V4>(&packet::<V4>(client, Addr4(u32::MAX), Protocol::UDP)));
        let to_all = Packet { destination_mac: [0xff; 6].into(), ..packet::<V4>(client, service, Protocol::UDP) };
        assert!(!is_answerable::<V4>(&to_all));
        let later_fragment = Packet { transport: 0, ..packet::<V4>(client, service, Protocol::UDP) };
        assert!(!is_answerable::<V4>(&later_fragment));
    }

    fn bytes<T>(packet: &T) -> Vec<u8> {
        // SAFETY: packed headers: initialised, without padding.
        unsafe { slice::from_raw_parts((&raw const *packet).cast::<u8>(), size_of::<T>()) }.to_vec()
    }

    /// RFC 1071 in its plainest form; `0xffff` where a checksum in `bytes` is right.
    fn ones_sum(bytes: &[u8]) -> u16 {
        let total: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        fold(total)
    }

    fn header<F: Answers>(answer: &[u8], protocol: Protocol) -> Vec<u8> {
        let (addresses, size) = (F::ADDRESSES, size_of::<F::Address>() * 2);
        let length = (answer.len() - size_of::<F::Header>()) as u16;
        [&answer[addresses..addresses + size], &length.to_be_bytes(), &[0, protocol.0]].concat()
    }

    /// As `csum_replace_by_diff` does.
    fn replaced(field: u16, change: u32) -> u16 {
        let total = u64::from(change) + u64::from(!u32::from(field));
        !fold((total as u32).wrapping_add((total >> 32) as u32))
    }

    fn packet<F: Answers>(source: F::Address, destination: F::Address, protocol: Protocol) -> Packet<F::Address> {
        let place = Place::new(IfIndex(1), Side::From);
        let key = FlowKey { source, destination, ports: PortPair::NONE, place, protocol: protocol.into() };
        Packet {
            key,
            source_mac: MacWords::ZERO,
            destination_mac: MacWords::ZERO,
            ingress: IfIndex(1),
            tcp_flags: 0,
            transport: transport::<F>() as u32,
            packets: 1,
            bytes: 60,
            generation: Generation(1),
            settings: Settings::default(),
            now: Ticks(0),
        }
    }

    fn segment(flags: u8, sequence: u32, acknowledgement: u32) -> Tcp {
        Tcp {
            source: PortBe::from_host(40_000).0,
            destination: PortBe::from_host(80).0,
            sequence: sequence.to_be(),
            acknowledgement: acknowledgement.to_be(),
            offset: 8 << 4,
            flags,
            window: 512u16.to_be(),
            checksum: 0x1234,
            urgent: 0,
        }
    }

    fn four() -> (Addr4, Addr4) {
        ("10.0.0.1".parse::<std::net::Ipv4Addr>().unwrap().into(), std::net::Ipv4Addr::new(192, 0, 2, 255).into())
    }

    fn six() -> (Addr6, Addr6) {
        let address = |text: &str| text.parse::<std::net::Ipv6Addr>().unwrap().into();
        (address("fd00::1"), address("2001:db8:ffff::fffe"))
    }

    fn reset_is_right<F: Answers>((source, destination): (F::Address, F::Address), segment: Tcp, data: usize) -> Tcp {
        let asked = packet::<F>(source, destination, Protocol::TCP);
        let (answer, change) = reset::<F>(&asked, transport::<F>() + 32 + data, &segment);
        // hardware adds up the transport header, with the field as it is
        let header = header::<F>(&bytes(&answer), Protocol::TCP);
        let hardware = Tcp { checksum: !(ones_sum(&bytes(&{ answer.tcp })).to_be()), ..answer.tcp };
        assert_eq!(ones_sum(&[header.clone(), bytes(&hardware)].concat()), 0xffff, "by hardware");
        let software = Tcp { checksum: replaced(answer.tcp.checksum, change), ..answer.tcp };
        assert_eq!(ones_sum(&[header, bytes(&software)].concat()), 0xffff, "by us");
        if F::CHECKSUM.is_some() {
            assert_eq!(ones_sum(&bytes(&{ answer.network })), 0xffff);
        }
        answer.tcp
    }

    #[test]
    fn syn_is_acknowledged_by_its_reset() {
        for tcp in [
            reset_is_right::<V4>(four(), segment(tcp::SYN, 7, 0), 0),
            reset_is_right::<V6>(six(), segment(tcp::SYN, 7, 0), 0),
        ] {
            assert_eq!((tcp.flags, tcp.sequence, { tcp.acknowledgement }), (tcp::RST | tcp::ACK, 0, 8u32.to_be()));
            assert_eq!((tcp.source, tcp.destination), (80u16.to_be(), 40_000u16.to_be()));
        }
    }

    #[test]
    fn reset_of_a_connection_continues_it() {
        let tcp = reset_is_right::<V4>(four(), segment(tcp::ACK, 7, 99), 1000);
        assert_eq!((tcp.flags, { tcp.sequence }, { tcp.acknowledgement }), (tcp::RST, 99u32.to_be(), 0));
    }

    #[test]
    fn data_without_acknowledgement_is_acknowledged_to_its_end() {
        let opening = segment(tcp::SYN, u32::MAX, 0);
        assert_eq!({ reset_is_right::<V4>(four(), opening, 5).acknowledgement }, 5u32.to_be());
    }

    fn unreachable_is_right<F: Answers>((source, destination): (F::Address, F::Address)) {
        let asked = packet::<F>(source, destination, Protocol::UDP);
        let quoted = F::header(&source, &destination, Protocol::UDP, 8);
        let first = First([1, 0xfffe, 0x8000, 0x1234]);
        let (answer, change) = unreachable::<F>(&asked.key, &quoted, first);
        let whole = |icmp: Icmp| [bytes(&Unreachable { icmp, ..answer }), bytes(&quoted), bytes(&first)].concat();
        let packet = whole(answer.icmp);
        let header = if F::CHECKSUM.is_some() { Vec::new() } else { header::<F>(&packet, F::ICMP) };
        let checked = |message: &[u8]| ones_sum(&[&header[..], message].concat());
        // hardware adds the message up and writes to bytes 6 and 7; never zero (`skb_checksum_help`, net/core/dev.c)
        let mut by_hardware = packet[size_of::<F::Header>()..].to_vec();
        let sum = match !ones_sum(&by_hardware) {
            0 => 0xffff,
            sum => sum,
        };
        by_hardware[6..8].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(checked(&by_hardware), 0xffff, "by hardware");
        let icmp = Icmp {
            rest: replaced(answer.icmp.rest, change),
            checksum: replaced(answer.icmp.checksum, !change & 0xffff),
            ..answer.icmp
        };
        let message = whole(icmp)[size_of::<F::Header>()..].to_vec();
        assert_eq!((checked(&message), &message[4..8]), (0xffff, &[0; 4][..]), "by us");
    }

    #[test]
    fn unreachable_has_a_right_checksum() {
        unreachable_is_right::<V4>(four());
        unreachable_is_right::<V6>(six());
    }
}
