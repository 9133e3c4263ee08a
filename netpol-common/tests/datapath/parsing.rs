use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netpol_common::{
    drops::{Drop, Side},
    flow::{FlowKey, Place},
    headers::{Ethernet, Ipv6, View as _},
    parse::{
        self, FARTHEST, Family, Followed, Fragment, FragmentId, Ip, NETWORK, V4, V6, ethertype, key, plain, quoted,
        transport,
    },
    tables::{IfIndex, Network},
    wire::{Addr4, PortBe, Protocol},
};
use proptest::{collection::vec, prelude::*, sample::select};

use crate::{
    lab::{A, B, Lab},
    support::frame::{self, ACK, FIN, Options, RST, SYN},
};

const FOUR: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)];
const SIX: [Ipv6Addr; 2] = [Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1), Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2)];
const PLACE: Place = Place::new(IfIndex(3), Side::From);

fn four(protocol: Protocol, with: Options, payload: &[u8]) -> Vec<u8> {
    frame::ethernet([1; 6], [2; 6], ethertype::IPV4, &frame::ipv4_with(FOUR[0], FOUR[1], protocol, with, payload))
}

fn six(protocol: Protocol, payload: &[u8]) -> Vec<u8> {
    frame::ethernet([1; 6], [2; 6], ethertype::IPV6, &frame::ipv6(SIX[0], SIX[1], protocol, payload))
}

/// A frame's header and what follows it, in the word that the classifiers get it in.
fn followed<F: Family>(frame: &[u8]) -> Result<Ip<F::Address>, Drop> {
    let ip = F::network(frame, NETWORK)?;
    Followed::pack(F::follow(frame, ip)).unpack(ip)
}

/// The flow of a frame, as the classifiers read it.
fn flow<F: Family>(frame: &[u8]) -> Result<FlowKey<F::Address>, Drop> {
    let ip = followed::<F>(frame)?;
    let transport = transport::<F, _>(frame, &ip)?;
    Ok(key(&ip, transport.ports, transport.protocol, PLACE))
}

#[test]
fn ports_lie_behind_the_options() {
    for words in 0..=10 {
        let frame = four(Protocol::UDP, Options { words, ..Options::default() }, &frame::udp(5000, 53, &[]));
        let (_, transport) = plain::<V4, _>(&frame[..]).unwrap();
        assert_eq!(
            (transport.ports.source(), transport.ports.destination()),
            (PortBe::from_host(5000), PortBe::from_host(53))
        );
    }
}

#[test]
fn a_header_whose_options_are_cut_off_is_malformed() {
    for protocol in [Protocol::UDP, Protocol::TCP, Protocol::ICMP, Protocol(2), Protocol(47)] {
        for words in 1..=10 {
            let frame = four(protocol, Options { words, ..Options::default() }, &[0; 24]);
            let transport = NETWORK + 20 + usize::from(words) * 4;
            for length in NETWORK + 20..transport {
                let cut = &frame[..length];
                assert_eq!(flow::<V4>(cut), Err(Drop::Malformed), "{protocol}: {length} of {transport} bytes");
                assert!(plain::<V4, _>(cut).is_none(), "{protocol}: {length} of {transport} bytes");
            }
        }
    }
    let frame = four(Protocol(2), Options { words: 1, ..Options::default() }, &[]);
    assert!(plain::<V4, _>(&frame[..]).is_some(), "whole, with nothing behind it");
}

#[test]
fn a_header_that_contradicts_itself_is_malformed() {
    for first in [0x44, 0x40, 0x35, 0x65] {
        let mut frame = four(Protocol::UDP, Options::default(), &frame::udp(1, 2, &[]));
        frame[NETWORK] = first;
        assert_eq!(flow::<V4>(&frame), Err(Drop::Malformed), "{first:#x}");
    }
    let mut frame = six(Protocol::UDP, &frame::udp(1, 2, &[]));
    frame[NETWORK] = 0x40;
    assert_eq!(flow::<V6>(&frame), Err(Drop::Malformed));
}

#[test]
fn a_frame_that_is_cut_short_is_malformed_wherever_it_ends() {
    let whole =
        [four(Protocol::TCP, Options::default(), &frame::tcp(1, 2, SYN)), six(Protocol::TCP, &frame::tcp(1, 2, SYN))];
    for (frame, family) in whole.iter().zip([4, 6]) {
        for length in NETWORK..frame.len() {
            let cut = &frame[..length];
            let result = if family == 4 { flow::<V4>(cut).map(|_| ()) } else { flow::<V6>(cut).map(|_| ()) };
            assert_eq!(result, Err(Drop::Malformed), "{length} bytes of IPv{family}");
            assert!(plain::<V4, _>(cut).is_none() || family == 6);
        }
        assert!(if family == 4 { flow::<V4>(frame).is_ok() } else { flow::<V6>(frame).is_ok() });
    }
}

#[test]
fn tcp_flags_that_no_connection_has_are_dropped() {
    let verdict = |flags| flow::<V4>(&four(Protocol::TCP, Options::default(), &frame::tcp(1, 2, flags))).map(|_| ());
    for flags in [0, FIN, SYN | FIN, SYN | RST, SYN | FIN | ACK, 0x29] {
        assert_eq!(verdict(flags), Err(Drop::TcpFlags), "{flags:#x}");
    }
    for flags in [SYN, ACK, SYN | ACK, FIN | ACK, RST, RST | ACK, 0x18] {
        assert_eq!(verdict(flags), Ok(()), "{flags:#x}");
    }
}

#[test]
fn fragments_are_told_apart() {
    let read = |fragment, protocol| {
        let frame = four(protocol, Options { id: 7, fragment, words: 0 }, &frame::udp(1, 2, &[0; 16]));
        V4::network(&frame[..], NETWORK).map(|ip| ip.fragment)
    };
    let id = parse::FragmentId(u32::from(7u16.to_be()));
    assert_eq!(read(0, Protocol::UDP), Ok(Fragment::Whole));
    assert_eq!(read(0x4000, Protocol::UDP), Ok(Fragment::Whole), "don't fragment");
    assert_eq!(read(0x2000, Protocol::UDP), Ok(Fragment::First(id)));
    assert_eq!(read(0x2001, Protocol::UDP), Ok(Fragment::Later(id)));
    assert_eq!(read(0x0005, Protocol::TCP), Ok(Fragment::Later(id)));
    assert_eq!(read(0x0001, Protocol::TCP), Err(Drop::Fragment));
}

/// An extension header of `units` times eight bytes, before what `next` says.
fn extension(next: u8, units: u8) -> Vec<u8> {
    [&[next, units - 1], &vec![0; usize::from(units) * 8 - 2][..]].concat()
}

#[test]
fn a_chain_of_extension_headers_is_followed_to_its_end() {
    let udp = frame::udp(5000, 53, &[]);
    let chain = [extension(60, 1), extension(17, 3), udp.clone()].concat();
    let frame = six(Protocol(0), &chain);
    assert!(plain::<V6, _>(&frame[..]).is_none());
    let found = flow::<V6>(&frame).unwrap();
    assert_eq!((found.protocol(), found.ports.destination()), (Protocol::UDP, PortBe::from_host(53)));
    let authenticated = [&[17, 4], &[0; 22][..], &udp].concat();
    assert_eq!(flow::<V6>(&six(Protocol(51), &authenticated)).unwrap().ports.destination(), PortBe::from_host(53));
}

#[test]
fn the_longest_chain_that_is_followed() {
    let chain = |count: usize| {
        let mut bytes: Vec<u8> = (1..count).flat_map(|_| extension(60, 1)).collect();
        bytes.extend(extension(17, 1));
        bytes.extend(frame::udp(5000, 53, &[]));
        flow::<V6>(&six(Protocol(60), &bytes)).map(|flow| flow.ports.destination())
    };
    assert_eq!(chain(7), Ok(PortBe::from_host(53)));
    assert_eq!(chain(8), Err(Drop::ExtensionHeaders));
}

#[test]
fn source_routing_and_headers_out_of_reach_are_dropped() {
    let routed = [extension(17, 1), frame::udp(1, 2, &[])].concat();
    assert_eq!(flow::<V6>(&six(Protocol(43), &routed)), Err(Drop::ExtensionHeaders));
    let far = [extension(17, (FARTHEST / 8) as u8), frame::udp(1, 2, &[])].concat();
    assert_eq!(flow::<V6>(&six(Protocol(60), &far)), Err(Drop::ExtensionHeaders));
    let cut = extension(17, 9)[..16].to_vec();
    assert_eq!(flow::<V6>(&six(Protocol(60), &cut)), Err(Drop::Malformed));
}

#[test]
fn every_end_of_a_chain_fits_into_a_word() {
    let frame = six(Protocol::UDP, &frame::udp(1, 2, &[]));
    let ip = V6::network(&frame[..], NETWORK).unwrap();
    let id = FragmentId(u32::MAX);
    for fragment in [Fragment::Whole, Fragment::First(id), Fragment::First(FragmentId(0)), Fragment::Later(id)] {
        for (protocol, transport) in [(0, NETWORK), (255, FARTHEST + 2048)] {
            let protocol = Protocol(protocol);
            let found = Followed::pack(Ok(Ip { protocol, transport, fragment, ..ip })).unpack(ip).unwrap();
            assert_eq!((found.protocol, found.transport, found.fragment), (protocol, transport, fragment));
        }
    }
    for drop in Drop::ALL.iter().copied() {
        assert_eq!(Followed::pack::<()>(Err(drop)).unpack(ip).err(), Some(drop));
    }
}

#[test]
fn an_atomic_fragment_is_whole() {
    let atomic = [&[17, 0, 0, 0, 0, 0, 0, 9], &frame::udp(5000, 53, &[])[..]].concat();
    let frame = six(Protocol(44), &atomic);
    let ip = V6::follow(&frame[..], V6::network(&frame[..], NETWORK).unwrap()).unwrap();
    assert_eq!((ip.fragment, ip.protocol), (Fragment::Whole, Protocol::UDP));
}

#[test]
fn a_quoted_packet_has_the_key_of_the_packet() {
    let cases = [
        (Protocol::UDP, frame::udp(5000, 53, &[])),
        (Protocol::TCP, frame::tcp(5000, 80, SYN)),
        (Protocol::ICMP, frame::icmp(8, 0, 0x800, &[])),
        (Protocol(47), vec![0; 8]),
    ];
    for (protocol, payload) in cases {
        let original = four(protocol, Options::default(), &payload);
        let error = four(Protocol::ICMP, Options::default(), &frame::icmp(3, 1, 0, &original[NETWORK..]));
        let (ip, source, destination) = quoted::<V4, _>(&error[..], NETWORK + 20).unwrap();
        assert_eq!(Ok(key(&ip, source, destination, PLACE)), flow::<V4>(&original), "{protocol}");
    }
}

#[test]
fn what_is_quoted_must_be_enough() {
    let inner = four(Protocol::UDP, Options { fragment: 0x2000, ..Options::default() }, &frame::udp(1, 2, &[]));
    let fragment = four(Protocol::ICMP, Options::default(), &frame::icmp(3, 1, 0, &inner[NETWORK..]));
    assert_eq!(quoted::<V4, _>(&fragment[..], NETWORK + 20).err(), Some(Drop::IcmpUnrelated));
    let short = four(Protocol::ICMP, Options::default(), &frame::icmp(3, 1, 0, &inner[NETWORK..NETWORK + 22]));
    assert_eq!(quoted::<V4, _>(&short[..], NETWORK + 20).err(), Some(Drop::IcmpUnrelated));
}

#[test]
fn of_two_networks_the_hooks_own_is_asked_first() {
    let mut lab = Lab::new().0;
    let address = Addr4::from(Ipv4Addr::from(A.address));
    let shared = netpol_common::tables::AddressKey { network: Network::SHARED, address };
    let twin = netpol_common::tables::AddressValue { ifindex: IfIndex(99), ..lab.v4.addresses[&shared] };
    lab.v4.addresses.insert(netpol_common::tables::AddressKey { network: Network(7), address }, twin);
    let find = |network| netpol_common::decide::find(&lab, network, address).map(|value| value.ifindex);
    assert_eq!(find(Network(7)), Some(IfIndex(99)));
    assert_eq!(find(Network(8)), Some(A.interface));
    assert_eq!(find(Network::SHARED), Some(A.interface));
    assert_eq!(B.address[3], 2);
}

/// A packet and what answers it.
fn exchange() -> impl Strategy<Value = (Protocol, Vec<u8>, Vec<u8>)> {
    let protocols = select(&[Protocol::TCP, Protocol::UDP, Protocol::SCTP, Protocol(47)][..]);
    let ports = (protocols, any::<u16>(), any::<u16>()).prop_map(|(protocol, a, b)| {
        let bytes = |a, b| if protocol == Protocol::TCP { frame::tcp(a, b, ACK) } else { frame::udp(a, b, &[0; 4]) };
        (protocol, bytes(a, b), bytes(b, a))
    });
    let ids = prop_oneof![any::<u16>(), select(&[0, 0x800, 0x801, 0x4800, 0x8000, 0xd00][..])];
    let queries = (select(&[(8, 0), (13, 14)][..]), ids);
    let queries = queries.prop_map(|((ask, answer), id)| {
        (Protocol::ICMP, frame::icmp(ask, 0, id, &[]), frame::icmp(answer, 0, id, &[]))
    });
    prop_oneof![ports, queries]
}

proptest! {
    #[test]
    fn an_answer_has_the_reversed_key((protocol, there, back) in exchange()) {
        let place = Place::new(IfIndex(4), Side::From);
        let [a, b] = FOUR;
        let there = frame::ethernet([1; 6], [2; 6], ethertype::IPV4, &frame::ip(a.into(), b.into(), protocol, &there).1);
        let back = frame::ethernet([2; 6], [1; 6], ethertype::IPV4, &frame::ip(b.into(), a.into(), protocol, &back).1);
        let (there, back) = (flow::<V4>(&there).unwrap(), flow::<V4>(&back).unwrap());
        prop_assert_eq!(there.reversed(PLACE), back);
        prop_assert_eq!(there.reversed(place).reversed(PLACE), there);
        prop_assert_eq!(back.reversed(place).tag(), there.at(place).tag());
        prop_assert_ne!(there, back.at(place));
    }

    #[test]
    fn a_request_never_has_the_key_of_a_reply(ids: [u16; 2], codes: [u8; 2], kinds in (select(&[8u8, 13][..]), select(&[0u8, 14][..]))) {
        let request = four(Protocol::ICMP, Options::default(), &frame::icmp(kinds.0, codes[0], ids[0], &[]));
        let reply = four(Protocol::ICMP, Options::default(), &frame::icmp(kinds.1, codes[1], ids[1], &[]));
        let (request, reply) = (flow::<V4>(&request).unwrap(), flow::<V4>(&reply).unwrap());
        prop_assert_ne!(request, reply);
        prop_assert!(!request.protocol.answers() && reply.protocol.answers());
    }

    /// The slice's own bounds are the proof: `View` gets no byte of them that is not there.
    #[test]
    fn no_frame_makes_the_parser_stumble(bytes in vec(any::<u8>(), 0..700)) {
        survive(&bytes);
    }

    #[test]
    fn no_change_to_a_good_frame_makes_it_stumble(
        (protocol, payload, _) in exchange(),
        chain in vec(select(&[0u8, 43, 44, 51, 60, 58, 17][..]), 0..9),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        length in any::<prop::sample::Index>(),
    ) {
        let mut bytes: Vec<u8> = chain.windows(2).flat_map(|pair| extension(pair[1], 1)).collect();
        bytes.extend(&payload);
        let first = Protocol(chain.first().copied().unwrap_or(protocol.0));
        for mut frame in [six(first, &bytes), four(protocol, Options::default(), &payload)] {
            for (at, byte) in &changes {
                let at = at.index(frame.len());
                frame[at] = *byte;
            }
            survive(&frame);
            survive(&frame[..length.index(frame.len())]);
        }
    }
}

/// Everything that reads a frame, each from wherever it might be asked to.
fn survive(bytes: &[u8]) {
    let _ = bytes.read::<Ethernet>(0);
    let _ = bytes.read::<Ipv6>(usize::MAX - 4);
    each::<V4>(bytes);
    each::<V6>(bytes);
}

fn each<F: Family>(bytes: &[u8])
where
    F::Address: Into<IpAddr>,
{
    if let Some((ip, transport)) = plain::<F, _>(bytes) {
        assert!(ip.transport <= bytes.len());
        assert!(transport.icmp.is_none() || ip.protocol == F::ICMP);
    }
    let _ = flow::<F>(bytes);
    let found = |ip: Ip<F::Address>| (ip.protocol, ip.transport, ip.fragment, ip.end);
    let ip = F::network(bytes, NETWORK);
    assert_eq!(followed::<F>(bytes).map(found), ip.and_then(|ip| F::follow(bytes, ip)).map(found));
    for offset in [NETWORK, NETWORK + 20, NETWORK + 40, bytes.len(), FARTHEST] {
        let _ = quoted::<F, _>(bytes, offset);
    }
}
