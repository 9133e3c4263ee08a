//! Who takes part, and what their frames look like at each hook.

use std::net::IpAddr;

use netpol_common::{
    drops::Side,
    parse::ethertype,
    tables::{IfIndex, Network},
    wire::{Mac, Protocol},
};

use crate::{
    compile::Workload,
    datapath::{Arrival, frame},
    model::{Party, World},
    script::{About, Say, Talk, Tampering},
    worlds,
};

/// Where nothing real is needed.
pub const UPLINK: IfIndex = IfIndex(900);
const BRIDGES: [IfIndex; 2] = [IfIndex(901), IfIndex(902)];
pub const ROUTER: Mac = [2, 7, 7, 7, 7, 7];
pub const OUTSIDE: [&str; 5] = ["10.0.0.9", "8.8.8.8", "192.0.2.129", "2001:db8::1", "fd00::99"];

/// Someone who can be spoken to.
#[derive(Clone, Copy, Debug)]
pub struct Actor {
    pub party: Party,
    pub address: IpAddr,
    /// Of a workload: its interface; of the host: none; of the world: the uplink.
    pub interface: IfIndex,
    pub bridge: IfIndex,
    pub mac: Mac,
}

impl Actor {
    pub fn is_workload(&self) -> bool {
        self.party.endpoint().is_some()
    }

    pub fn is_host(&self) -> bool {
        self.interface == IfIndex::NONE
    }
}

/// Where endpoints are when the interfaces have these numbers.
pub fn workloads(world: &World, interfaces: &[u32]) -> Vec<Workload> {
    let mut workloads = worlds::running(world);
    for (number, workload) in workloads.iter_mut().enumerate() {
        let bridge = number / 3 % 2;
        workload.ifindex = IfIndex(interfaces[number]);
        workload.master = BRIDGES[bridge];
        workload.network = Network(1 + bridge as u32);
        workload.segment = 1 + bridge as u32;
        workload.host_mac = ROUTER;
    }
    workloads
}

pub fn host_addresses() -> Vec<IpAddr> {
    worlds::HOST.iter().map(|text| text.parse().unwrap()).collect()
}

pub fn actors(workloads: &[Workload]) -> Vec<Actor> {
    let inside = workloads.iter().flat_map(|w| {
        w.addresses.iter().map(|&address| Actor {
            party: Party::Endpoint { index: w.endpoint, address: Some(address) },
            address,
            interface: w.ifindex,
            bridge: w.master,
            mac: w.mac,
        })
    });
    let other = |address: IpAddr, interface| Actor {
        party: Party::Outside(address),
        address,
        interface,
        bridge: IfIndex::NONE,
        mac: ROUTER,
    };
    let host = host_addresses().into_iter().map(|address| other(address, IfIndex::NONE));
    let world = OUTSIDE.iter().map(|text| other(text.parse().unwrap(), UPLINK));
    inside.chain(host).chain(world).collect()
}

/// The two ends of a talk, where the family has two and one of them is a workload.
pub fn ends(talk: &Talk, actors: &[Actor]) -> Option<(Actor, Actor)> {
    let family: Vec<_> = actors.iter().filter(|actor| actor.address.is_ipv6() == talk.six).collect();
    let inside: Vec<_> = family.iter().filter(|actor| actor.is_workload()).collect();
    // every second client is a workload
    let client = **inside.get(talk.client.index(inside.len().max(1)))?;
    let server = *talk.server.get(&family);
    (server.address != client.address).then_some((*client, *server))
}

/// A frame at a hook.
#[derive(Clone, Debug)]
pub struct Scene {
    pub arrival: Arrival,
    pub frame: Vec<u8>,
}

fn icmp(six: bool) -> Protocol {
    if six { Protocol::ICMPV6 } else { Protocol::ICMP }
}

/// Type of an echo request and reply.
pub const fn echo(six: bool) -> (u8, u8) {
    if six { (128, 129) } else { (8, 0) }
}

/// Protocol and payload.
fn payload(talk: &Talk, say: &Say) -> (Protocol, Vec<u8>) {
    let order = |a, b| if say.back { (b, a) } else { (a, b) };
    match talk.about {
        About::Tcp(client, server) => {
            let (source, destination) = order(client, server);
            (Protocol::TCP, frame::tcp(source, destination, say.flags))
        }
        About::Udp(client, server) => {
            let (source, destination) = order(client, server);
            (Protocol::UDP, frame::udp(source, destination, &[0; 16]))
        }
        About::Echo(id) => {
            let (request, reply) = echo(talk.six);
            let kind = if say.flags & frame::SYN != 0 { request } else { reply };
            (icmp(talk.six), frame::icmp(kind, 0, id, &[0; 16]))
        }
        About::Gre => (Protocol(47), vec![0; 16]),
    }
}

/// The packet at a hook of `from` or of `to`.
pub fn scene(talk: &Talk, say: &Say, (mut from, mut to): (Actor, Actor), (side, all): (Side, &[Actor])) -> Scene {
    let (protocol, mut bytes) = payload(talk, say);
    if let Tampering::Unreachable = say.tampering {
        let (_, about) = frame::ip(from.address, to.address, protocol, &bytes);
        let (kind, code) = if talk.six { (1, 4) } else { (3, 3) };
        (from, to) = (to, from);
        bytes = frame::icmp(kind, code, 0, &about);
    }
    let protocol = if let Tampering::Unreachable = say.tampering { icmp(talk.six) } else { protocol };
    let mut source = from.address;
    if let Tampering::Source(index) = &say.tampering {
        let others: Vec<_> = all.iter().filter(|actor| actor.address.is_ipv6() == talk.six).collect();
        source = index.get(&others).address;
    }
    let (kind, packet) = match &say.tampering {
        Tampering::Claim(index) => claim(&from, &to, index.get(all)),
        Tampering::Dhcp(asks) => {
            let (client, server) = if talk.six { (546, 547) } else { (68, 67) };
            let (a, b) = if *asks { (client, server) } else { (server, client) };
            frame::ip(source, to.address, Protocol::UDP, &frame::udp(a, b, &[0; 16]))
        }
        Tampering::FirstFragment => {
            frame::fragment(source, to.address, protocol, frame::Piece { id: 7, offset: 0, more: true }, &bytes)
        }
        Tampering::LaterFragment => {
            frame::fragment(source, to.address, protocol, frame::Piece { id: 7, offset: 4, more: false }, &bytes)
        }
        Tampering::Extension if talk.six => {
            let bytes = [&[protocol.0, 0, 1, 4, 0, 0, 0, 0], &bytes[..]].concat();
            frame::ip(source, to.address, Protocol(60), &bytes)
        }
        _ => frame::ip(source, to.address, protocol, &bytes),
    };
    let same_bridge = from.bridge == to.bridge;
    let mut destination_mac = if same_bridge || side == Side::To { to.mac } else { ROUTER };
    let mut source_mac = if same_bridge || side == Side::From { from.mac } else { ROUTER };
    let mut ingress = match side {
        Side::From => from.interface,
        Side::To if from.is_workload() && !same_bridge => from.bridge,
        Side::To => from.interface,
    };
    match &say.tampering {
        Tampering::SourceMac => source_mac[5] ^= 0x10,
        Tampering::Ingress(index) => ingress = index.get(all).interface,
        Tampering::ToGroup => destination_mac = frame::BROADCAST,
        Tampering::DestinationMac => destination_mac[5] ^= 0x10,
        _ => {}
    }
    let mut frame = match say.tampering {
        Tampering::Tagged => {
            let tagged = [&[0, 0], &kind.to_be_bytes(), &packet[..]].concat();
            frame::ethernet(destination_mac, source_mac, ethertype::VLAN, &tagged)
        }
        Tampering::Ethertype => frame::ethernet(destination_mac, source_mac, 0x88cc, &packet),
        _ => frame::ethernet(destination_mac, source_mac, kind, &packet),
    };
    match &say.tampering {
        // the kernel takes no frame without a whole IP header
        Tampering::Short(length) => frame.truncate(usize::from(*length).max(if talk.six { 54 } else { 34 })),
        Tampering::Byte(at, byte) => {
            let at = at.index(frame.len());
            frame[at] = *byte;
        }
        _ => {}
    }
    let interface = if side == Side::From { from.interface } else { to.interface };
    Scene { arrival: Arrival { side, interface, ingress }, frame }
}

/// `from` says that it has the address of another, if that is of the same family, or else its own.
fn claim(from: &Actor, to: &Actor, of: &Actor) -> (u16, Vec<u8>) {
    const ADVERTISEMENT: u8 = 136;
    match (from.address, to.address, of.address) {
        (IpAddr::V4(own), IpAddr::V4(to_whom), of) => {
            let claimed = if let IpAddr::V4(of) = of { of } else { own };
            (ethertype::ARP, frame::arp(2, (from.mac, claimed), (to.mac, to_whom)))
        }
        (IpAddr::V6(own), _, of) => {
            let claimed = if let IpAddr::V6(of) = of { of } else { own };
            let message = [&[ADVERTISEMENT, 0, 0, 0, 0, 0, 0, 0], &claimed.octets()[..]].concat();
            frame::ip(from.address, to.address, Protocol::ICMPV6, &message)
        }
        _ => panic!("two families in one talk"),
    }
}

/// Sender and receiver of a packet, as hooks see them.
pub fn direction(say: &Say, (client, server): (Actor, Actor)) -> (Actor, Actor) {
    if say.back { (server, client) } else { (client, server) }
}

/// Whose hook a packet meets: an error travels the other way.
pub fn travels(say: &Say, (from, to): (Actor, Actor)) -> (Actor, Actor) {
    if let Tampering::Unreachable = say.tampering { (to, from) } else { (from, to) }
}
