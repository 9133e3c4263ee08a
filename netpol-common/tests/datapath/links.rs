use std::net::{Ipv4Addr, Ipv6Addr};

use netpol_common::{
    drops::{Drop, Pass, Side, Verdict},
    parse::ethertype,
    tables::{AddressKey, IfIndex, Network},
    wire::{Addr6, Mac, Protocol},
};

use crate::{
    lab::*,
    support::frame::{self, BROADCAST, SYN},
};

const CONTROL: Verdict = Ok(Pass::Control);
const NOBODY: [u8; 4] = [0; 4];
const EVERYBODY: Who = Who { interface: IfIndex::NONE, address: [255; 4], mac: BROADCAST, ..WORLD };

// === DHCP ===

#[test]
fn a_workload_may_ask_for_an_address() {
    let mut lab = Lab::new();
    assert_eq!(lab.send(Who { address: NOBODY, ..A }, EVERYBODY, Udp(68, 67)), CONTROL);
    assert_eq!(lab.send(A, EVERYBODY, Udp(68, 67)), CONTROL);
    assert_eq!(lab.send(A, HOST, Udp(68, 67)), Err(Drop::PolicyEgress), "to renew is a flow as any other");
    assert_eq!(lab.reach(HOST, A, Udp(67, 68)), CONTROL);
    assert_eq!(lab.reach(WORLD, Who { address: [10, 0, 0, 77], ..A }, Udp(67, 68)), CONTROL, "it has none yet");
}

#[test]
fn dhcp_is_no_way_around_the_policy() {
    let mut lab = Lab::new();
    assert_eq!(lab.send(A, B, Udp(68, 67)), DENIED);
    assert_eq!(lab.send(A, WORLD, Udp(68, 67)), DENIED);
    assert_eq!(lab.send(A, Who { mac: BROADCAST, ..B }, Udp(68, 67)), DENIED);
    assert_eq!(lab.reach(A, B, Udp(68, 67)), DENIED);
    assert_eq!(lab.reach(WORLD, B, Udp(67, 53)), Err(Drop::PolicyIngress), "a server's port opens no other");
    assert_eq!(lab.send(Who { address: NOBODY, ..A }, B, Udp(68, 67)), Err(Drop::Spoofed));
}

#[test]
fn a_question_to_everybody_is_judged_where_it_reaches_a_workload() {
    let mut lab = Lab::new();
    let question = packet(Who { address: NOBODY, ..A }, EVERYBODY, Udp(68, 67));
    assert_eq!(lab.see(Side::To, B, A.interface, &question), Err(Drop::PolicyIngress));
}

#[test]
fn a_workload_is_no_dhcp_server() {
    let mut lab = Lab::new().allow(A, B, (Protocol::UDP, 68));
    for to in [B, EVERYBODY, HOST] {
        assert_eq!(lab.send(A, to, Udp(67, 68)), Err(Drop::DhcpServer));
        assert_eq!(lab.send(A, to, Udp(4444, 68)), Err(Drop::DhcpServer), "clients don't look at the source's port");
    }
}

#[test]
fn nobody_asks_in_anothers_name() {
    let mut lab = Lab::new();
    assert_eq!(lab.send(Who { mac: B.mac, address: NOBODY, ..A }, EVERYBODY, Udp(68, 67)), Err(Drop::Spoofed));
    assert_eq!(lab.send(Who { address: B.address, ..A }, EVERYBODY, Udp(68, 67)), Err(Drop::Spoofed));
}

// === ARP ===

fn arp(lab: &mut Lab, at: (Side, Who), sender: Who, claims: (Mac, [u8; 4])) -> Verdict {
    let message = frame::arp(2, (claims.0, claims.1.into()), (B.mac, Ipv4Addr::from(B.address)));
    let bytes = frame::ethernet(B.mac, sender.mac, ethertype::ARP, &message);
    lab.see(at.0, at.1, sender.interface, &bytes)
}

#[test]
fn a_workload_claims_its_own_address_alone() {
    let mut lab = Lab::new();
    let mut says = |mac, address| arp(&mut lab, (Side::From, A), A, (mac, address));
    assert_eq!(says(A.mac, A.address), CONTROL);
    assert_eq!(says(A.mac, NOBODY), CONTROL, "a probe claims nothing");
    for (mac, address) in [(A.mac, B.address), (A.mac, HOST.address), (A.mac, [10, 0, 0, 77]), (B.mac, A.address)] {
        assert_eq!(says(mac, address), Err(Drop::Arp));
    }
    assert_eq!(arp(&mut lab, (Side::From, A), Who { mac: C.mac, ..A }, (C.mac, A.address)), Err(Drop::Arp));
}

#[test]
fn claims_are_checked_where_they_arrive() {
    let mut lab = Lab::new();
    let at = (Side::To, B);
    assert_eq!(arp(&mut lab, at, A, (A.mac, A.address)), CONTROL);
    assert_eq!(arp(&mut lab, at, HOST, (HOST.mac, A.address)), CONTROL, "proxy ARP");
    assert_eq!(arp(&mut lab, at, WORLD, (WORLD.mac, [10, 0, 0, 88])), CONTROL, "a neighbour of the host");
    assert_eq!(arp(&mut lab, at, WORLD, (WORLD.mac, A.address)), Err(Drop::Arp));
    assert_eq!(arp(&mut lab, at, WORLD, (WORLD.mac, HOST.address)), Err(Drop::Arp));
    assert_eq!(arp(&mut lab, at, C, (C.mac, A.address)), Err(Drop::Arp));
}

// === neighbour discovery ===

fn six(who: Who) -> Ipv6Addr {
    let [.., number] = who.address;
    Ipv6Addr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(number)])
}

fn with_ipv6() -> Lab {
    let mut lab = Lab::new();
    for who in [A, B] {
        let four = AddressKey { network: Network::SHARED, address: Ipv4Addr::from(who.address).into() };
        let value = lab.0.v4.addresses[&four];
        let key = AddressKey { network: Network::SHARED, address: Addr6::from(six(who)) };
        lab.0.v6.addresses.insert(key, value);
    }
    lab
}

fn icmp6(lab: &mut Lab, sender: Who, source: Ipv6Addr, message: &[u8]) -> Verdict {
    let mut bytes = frame::ipv6(source, six(B), Protocol::ICMPV6, message);
    // RFC 4861: nothing but the link is between
    bytes[7] = 255;
    lab.see(Side::From, A, A.interface, &frame::ethernet(B.mac, sender.mac, ethertype::IPV6, &bytes))
}

fn neighbour(kind: u8, target: Ipv6Addr) -> Vec<u8> {
    [&[kind, 0, 0, 0, 0, 0, 0, 0], &target.octets()[..]].concat()
}

#[test]
fn a_workload_advertises_itself_alone() {
    let mut lab = with_ipv6();
    let mut says = |source, kind, target| icmp6(&mut lab, A, source, &neighbour(kind, target));
    assert_eq!(says(six(A), 136, six(A)), CONTROL);
    assert_eq!(says(six(A), 136, six(B)), Err(Drop::NeighbourDiscovery));
    assert_eq!(says(six(B), 136, six(A)), Err(Drop::NeighbourDiscovery));
    assert_eq!(says(six(A), 135, six(B)), CONTROL, "to ask claims nothing");
    assert_eq!(says(Ipv6Addr::UNSPECIFIED, 135, six(B)), CONTROL, "duplicate address detection");
    assert_eq!(icmp6(&mut lab, B, six(A), &neighbour(135, six(B))), Err(Drop::NeighbourDiscovery));
}

#[test]
fn a_workload_is_no_router() {
    let mut lab = with_ipv6();
    for kind in [134, 137] {
        assert_eq!(icmp6(&mut lab, A, six(A), &neighbour(kind, six(A))), Err(Drop::RouterAdvertisement));
    }
    assert_eq!(icmp6(&mut lab, A, six(A), &frame::icmp(133, 0, 0, &[])), CONTROL, "it may look for one");
    let mut redirect = |side, at: Who| {
        let (kind, bytes) = frame::ip(ip(A), ip(B), Protocol::ICMP, &frame::icmp(5, 0, 0, &[0; 28]));
        lab.see(side, at, A.interface, &frame::ethernet(B.mac, A.mac, kind, &bytes))
    };
    assert_eq!(redirect(Side::From, A), Err(Drop::RouterAdvertisement));
}

#[test]
fn extension_headers_hide_no_router() {
    let mut lab = with_ipv6();
    let advertisement = neighbour(134, six(A));
    let hidden = [&[58, 0, 1, 4, 0, 0, 0, 0], &advertisement[..]].concat();
    let bytes = frame::ipv6(six(A), six(B), Protocol(60), &hidden);
    let bytes = frame::ethernet(B.mac, A.mac, ethertype::IPV6, &bytes);
    assert_eq!(lab.see(Side::From, A, A.interface, &bytes), Err(Drop::RouterAdvertisement));
}

// === ICMP errors ===

/// `from` tells `to` about the packet that it got from there.
fn error(from: Who, to: Who, about: (Who, Who, Load)) -> Vec<u8> {
    let (source, destination, load) = about;
    let inner = packet(source, destination, load)[14..].to_vec();
    let (kind, bytes) = frame::ip(ip(from), ip(to), Protocol::ICMP, &frame::icmp(3, 3, 0, &inner));
    frame::ethernet(to.mac, from.mac, kind, &bytes)
}

#[test]
fn an_error_about_an_open_connection_passes() {
    let mut lab = Lab::new().allow(A, B, DNS);
    let unreachable = error(B, A, (A, B, Udp(5000, 53)));
    assert_eq!(lab.see(Side::From, B, B.interface, &unreachable), Err(Drop::IcmpUnrelated));
    lab.send(A, B, Udp(5000, 53)).unwrap();
    lab.reach(A, B, Udp(5000, 53)).unwrap();
    assert_eq!(lab.see(Side::From, B, B.interface, &unreachable), STACK);
    assert_eq!(lab.see(Side::To, A, B.interface, &unreachable), STACK);
    lab.publish();
    assert_eq!(lab.see(Side::From, B, B.interface, &unreachable), Err(Drop::IcmpUnrelated), "it was revoked");
}

#[test]
fn an_error_across_bridges_is_vouched_for_by_the_packet_inside() {
    let mut lab = Lab::new().allow(A, D, DNS);
    let gateway = Who { mac: HOST.mac, ..D };
    lab.send(A, gateway, Udp(5000, 53)).unwrap();
    lab.see(Side::To, D, BRIDGE, &packet(A, D, Udp(5000, 53))).unwrap();
    let unreachable = error(D, Who { mac: HOST.mac, ..A }, (A, D, Udp(5000, 53)));
    assert_eq!(lab.see(Side::From, D, D.interface, &unreachable), STACK);
    let routed = error(D, A, (A, D, Udp(5000, 53)));
    assert_eq!(lab.see(Side::To, A, OTHER_BRIDGE, &routed), STACK);
    assert_eq!(lab.see(Side::To, A, C.interface, &routed), Err(Drop::Spoofed));
}

#[test]
fn a_workload_speaks_of_no_packet_but_its_own() {
    let mut lab = Lab::new().allow(A, B, DNS);
    lab.send(A, B, Udp(5000, 53)).unwrap();
    let third = error(C, A, (A, B, Udp(5000, 53)));
    assert_eq!(lab.see(Side::From, C, C.interface, &third), Err(Drop::IcmpUnrelated));
    let of_another = error(B, C, (A, B, Udp(5000, 53)));
    assert_eq!(lab.see(Side::From, B, B.interface, &of_another), Err(Drop::IcmpUnrelated));
    let spoofed = error(Who { address: C.address, ..B }, A, (A, B, Udp(5000, 53)));
    assert_eq!(lab.see(Side::From, B, B.interface, &spoofed), Err(Drop::Spoofed));
}

#[test]
fn a_router_outside_may_tell_of_a_packet() {
    let mut lab = Lab::new().allow(A, WORLD, DNS);
    let router = Who { address: [198, 51, 100, 1], ..WORLD };
    let unreachable = error(router, A, (A, WORLD, Udp(5000, 53)));
    assert_eq!(lab.see(Side::To, A, WORLD.interface, &unreachable), Err(Drop::IcmpUnrelated));
    lab.send(A, Who { mac: HOST.mac, ..WORLD }, Udp(5000, 53)).unwrap();
    assert_eq!(lab.see(Side::To, A, WORLD.interface, &unreachable), STACK);
}

// === fragments ===

fn piece(from: Who, to: Who, (offset, more): (u16, bool), protocol: Protocol, payload: &[u8]) -> Vec<u8> {
    let piece = frame::Piece { id: 9, offset, more };
    let (kind, bytes) = frame::fragment(ip(from), ip(to), protocol, piece, payload);
    frame::ethernet(to.mac, from.mac, kind, &bytes)
}

#[test]
fn later_fragments_follow_the_first() {
    let mut lab = Lab::new().allow(A, B, DNS);
    let first = piece(A, B, (0, true), Protocol::UDP, &frame::udp(5000, 53, &[0; 16]));
    let later = piece(A, B, (3, false), Protocol::UDP, &[0; 16]);
    assert_eq!(lab.see(Side::From, A, A.interface, &later), Err(Drop::Fragment));
    assert_eq!(lab.see(Side::From, A, A.interface, &first), DIRECT);
    assert_eq!(lab.see(Side::From, A, A.interface, &later), DIRECT);
    lab.0.wait(netpol_common::flow::seconds(31));
    assert_eq!(lab.see(Side::From, A, A.interface, &later), Err(Drop::Fragment));
}

#[test]
fn fragments_of_a_denied_packet_are_denied() {
    let mut lab = Lab::new().allow(A, B, DNS);
    let first = piece(A, B, (0, true), Protocol::UDP, &frame::udp(5000, 22, &[0; 16]));
    let later = piece(A, B, (3, false), Protocol::UDP, &[0; 16]);
    assert_eq!(lab.see(Side::From, A, A.interface, &first), DENIED);
    assert_eq!(lab.see(Side::From, A, A.interface, &later), DENIED);
}

#[test]
fn a_later_fragment_of_an_echo_request_is_no_echo_reply() {
    // type 0 is open, type 8 is not
    let mut lab = Lab::new().allow(A, B, (Protocol::ICMP, 0));
    let first = piece(A, B, (0, true), Protocol::ICMP, &frame::icmp(8, 0, 7, &[0; 16]));
    let later = piece(A, B, (3, false), Protocol::ICMP, &[0; 16]);
    assert_eq!(lab.see(Side::From, A, A.interface, &first), DENIED);
    lab.0.v4.denials.get_mut().clear();
    assert_eq!(lab.see(Side::From, A, A.interface, &later), DENIED);
    assert_eq!(lab.send(A, B, Icmp(8, 7)), DENIED);
}

#[test]
fn no_fragment_overlaps_a_tcp_header() {
    let mut lab = Lab::new().allow(A, B, HTTP);
    let first = piece(A, B, (0, true), Protocol::TCP, &frame::tcp(40000, 80, SYN));
    assert_eq!(lab.see(Side::From, A, A.interface, &first), DIRECT);
    let overlapping = piece(A, B, (1, false), Protocol::TCP, &[0; 16]);
    assert_eq!(lab.see(Side::From, A, A.interface, &overlapping), Err(Drop::Fragment));
}
