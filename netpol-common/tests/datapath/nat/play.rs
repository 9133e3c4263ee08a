//! A lab with services, pools and an uplink, and the way of a packet through it.

use std::net::Ipv4Addr;

use netpol_common::{
    drops::{Drop, Pass, Side, Verdict},
    kernel::Settings,
    nat::NatKey,
    parse::{NETWORK, ethertype},
    service::{Backend, MemberKey, ServiceKey, ServiceValue},
    tables::{AddressFlags, AddressKey, AddressValue, Identity, IfIndex, Network},
    wire::{Addr4, Mac, PortBe, Protocol},
};

use crate::{
    lab::*,
    support::{
        Arrival,
        classifier::{Passed, pass, pass_uplink},
        frame,
    },
};

pub const UPLINK: IfIndex = WORLD.interface;
/// Addresses and ports of services.
pub const V: End = ([10, 96, 0, 10], 80);
pub const V2: End = ([10, 96, 0, 11], 80);
/// The host's address outside, and a port that is published there.
pub const OUTSIDE: [u8; 4] = [203, 0, 113, 9];
pub const PUBLISHED: End = (OUTSIDE, 8000);
pub const TCP: Protocol = Protocol::TCP;
pub const UDP: Protocol = Protocol::UDP;
pub const ICMP: Protocol = Protocol::ICMP;

/// An address and a port, or an ICMP identifier.
pub type End = ([u8; 4], u16);

/// A packet's two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    pub protocol: Protocol,
    pub source: End,
    pub destination: End,
}

impl Tuple {
    pub fn new(protocol: Protocol, source: End, destination: End) -> Self {
        Self { protocol, source, destination }
    }

    pub fn reversed(self) -> Self {
        Self { source: self.destination, destination: self.source, ..self }
    }
}

pub fn end(who: Who, port: u16) -> End {
    (who.address, port)
}

pub fn addr(address: [u8; 4]) -> Addr4 {
    Ipv4Addr::from(address).into()
}

/// What a frame says, which was made here. Of ICMP echo both ports are the identifier.
pub fn tuple(frame: &[u8]) -> Tuple {
    let number = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    let address = |at: usize| <[u8; 4]>::try_from(&frame[at..at + 4]).unwrap();
    let transport = NETWORK + usize::from(frame[NETWORK] & 15) * 4;
    let protocol = Protocol(frame[NETWORK + 9]);
    let (source, destination) = if protocol == ICMP {
        (number(transport + 4), number(transport + 4))
    } else {
        (number(transport), number(transport + 2))
    };
    Tuple::new(protocol, (address(NETWORK + 12), source), (address(NETWORK + 16), destination))
}

/// A frame with a tuple. ICMP: a question, or an `answer`.
pub fn framed(tuple: Tuple, macs: (Mac, Mac), flags: u8, answer: bool) -> Vec<u8> {
    Content { flags, answer, ..Content::PLAIN }.framed(tuple, macs)
}

/// What is in a frame beside its tuple.
#[derive(Clone, Copy, Debug)]
pub struct Content<'a> {
    pub flags: u8,
    /// Of an echo.
    pub answer: bool,
    /// Words of IPv4 options.
    pub words: u8,
    pub payload: &'a [u8],
}

impl Content<'_> {
    pub const PLAIN: Self = Content { flags: 0, answer: false, words: 0, payload: b"payload" };

    pub fn framed(&self, tuple: Tuple, (from, to): (Mac, Mac)) -> Vec<u8> {
        frame::ethernet(to, from, ethertype::IPV4, &self.packet(tuple))
    }

    pub fn packet(&self, tuple: Tuple) -> Vec<u8> {
        let Tuple { protocol, source, destination } = tuple;
        let transport = match protocol {
            Protocol::TCP => [frame::tcp(source.1, destination.1, self.flags), self.payload.to_vec()].concat(),
            Protocol::UDP => frame::udp(source.1, destination.1, self.payload),
            _ => frame::icmp(if self.answer { 0 } else { 8 }, 0, source.1, self.payload),
        };
        let with = frame::Options { words: self.words, ..frame::Options::default() };
        frame::ipv4_with(source.0.into(), destination.0.into(), protocol, with, &transport)
    }
}

/// A packet that has come to where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrived {
    pub tuple: Tuple,
    /// [`UPLINK`]: outside.
    pub at: IfIndex,
    /// What the first hook has said.
    pub first: Pass,
    /// From the IP header on.
    pub packet: Vec<u8>,
}

impl Lab {
    /// Everybody may talk to everybody, and there are services and pools.
    pub fn translating(settings: &[Settings]) -> Self {
        let mut lab = Self::new();
        let Settings(all) = crate::support::classifier::with(settings).with(Settings::TRANSLATE);
        // as the loader publishes it
        lab.0.live.settings = Settings(all).with(Settings::NOBODY_OUTSIDE);
        let store = &mut lab.0.v4;
        store.pools.push((addr([10, 0, 0, 0]), 16));
        store.uplinks.insert(UPLINK, addr(OUTSIDE));
        for value in store.addresses.values_mut() {
            let is_local = value.ifindex != IfIndex::NONE;
            value.flags = if is_local { AddressFlags::MASQUERADE } else { value.flags };
        }
        let host = AddressValue {
            identity: Identity::HOST,
            ifindex: IfIndex::NONE,
            segment: 0,
            mac: [0; 6].into(),
            flags: AddressFlags::HOST,
        };
        store.addresses.insert(AddressKey { network: Network::SHARED, address: addr(OUTSIDE) }, host);
        lab
    }

    /// The same, and between endpoints and the uplink nobody but the host's routing has a say.
    pub fn outward() -> Self {
        let mut lab = Self::translating(&[]);
        for value in lab.0.v4.addresses.values_mut().filter(|value| value.ifindex != IfIndex::NONE) {
            value.flags = value.flags.with(AddressFlags::OUTWARD);
        }
        for hook in lab.0.hooks.values_mut() {
            hook.flags = hook.flags.with(AddressFlags::OUTWARD);
        }
        lab
    }

    /// These endpoints are isolated, with what [`Lab::may`] allows.
    pub fn isolate(mut self, who: &[Who]) -> Self {
        let isolated = AddressFlags::ISOLATED_INGRESS.with(AddressFlags::ISOLATED_EGRESS);
        for who in who {
            let key = AddressKey { network: Network::SHARED, address: addr(who.address) };
            let value = self.0.v4.addresses.get_mut(&key).unwrap();
            value.flags = value.flags.with(isolated);
        }
        self
    }

    /// Publishes a port, by TCP and UDP, with one table entry for each backend.
    pub fn serve(&mut self, (address, port): End, backends: &[End], affinity: u32) {
        let port = PortBe::from_host(port);
        let memory = &mut self.0;
        for protocol in [TCP, UDP] {
            let key = ServiceKey { address: addr(address), port, protocol, zero: 0 };
            let (first, size) = (memory.maglev.len() as u32, backends.len() as u32);
            let service = memory.v4.services.len() as u32 + 1;
            memory.v4.services.insert(key, ServiceValue { first, size, affinity, service });
            for (backend, target) in backends {
                let backend = Backend { address: addr(*backend), port: PortBe::from_host(*target), zeros: 0 };
                let index = memory.v4.backends.len() as u32;
                memory.v4.backends.push(backend);
                memory.maglev.push(index);
                let member = MemberKey {
                    address: key.address,
                    backend: backend.address,
                    port,
                    backend_port: backend.port,
                    protocol,
                    zero: 0,
                    zeros: 0,
                };
                memory.v4.members.insert(member, index);
                let shared = AddressKey { network: Network::SHARED, address: backend.address };
                if !memory.v4.addresses.contains_key(&shared) {
                    memory.v4.members.insert(MemberKey::of_any(backend.address, backend.port), index);
                    let Settings(all) = memory.live.settings;
                    memory.live.settings = Settings(all & !Settings::nobody_outside(backend.port).0);
                }
            }
        }
    }

    pub fn with_service(mut self, at: End, backends: &[End]) -> Self {
        self.serve(at, backends, 0);
        self
    }

    /// A new generation without services.
    pub fn unserve(&mut self) {
        self.publish();
        self.0.v4.services.clear();
        self.0.v4.members.clear();
        self.0.live.settings = self.0.live.settings.with(Settings::NOBODY_OUTSIDE);
    }

    pub fn pairs(&mut self) -> usize {
        self.0.v4.translations.get_mut().len()
    }

    /// A packet at one hook of a workload.
    pub fn at(&mut self, side: Side, at: Who, ingress: IfIndex, frame: &[u8]) -> Passed {
        pass(&mut self.0, Arrival { side, interface: at.interface, ingress }, frame)
    }

    pub fn at_uplink(&mut self, side: Side, ingress: IfIndex, frame: &[u8]) -> Passed {
        pass_uplink(&mut self.0, Arrival { side, interface: UPLINK, ingress }, frame)
    }

    /// A packet from an endpoint or from outside, through all hooks that are on its way.
    pub fn play(&mut self, tuple: Tuple, flags: u8) -> Result<Arrived, Drop> {
        self.carry(tuple, Content { flags, ..Content::PLAIN })
    }

    /// The same for what answers a packet that has arrived.
    pub fn answer(&mut self, arrived: &Arrived, flags: u8) -> Result<Arrived, Drop> {
        self.carry(arrived.tuple.reversed(), Content { flags, answer: true, ..Content::PLAIN })
    }

    /// A packet with this content, likewise.
    pub fn carry(&mut self, sent: Tuple, content: Content) -> Result<Arrived, Drop> {
        let Some(from) = local(sent.source.0) else {
            return self.play_outside(content.framed(sent, (WORLD.mac, HOST.mac)));
        };
        // on the own bridge directly, else by the host
        let to = local(sent.destination.0).filter(|to| from != D && *to != D).map_or(HOST.mac, |to| to.mac);
        let own = self.at(Side::From, from, from.interface, &content.framed(sent, (from.mac, to)));
        let first = own.verdict?;
        let is_bridged = own.frame[..6] != HOST.mac;
        let destination = local(tuple(&own.frame).destination.0);
        match (first, destination) {
            (Pass::Direct | Pass::Routed, Some(to)) => {
                assert_eq!(own.frame[..6], to.mac, "it reaches the one that it is for");
                Ok(arrived(&own.frame, to.interface, first))
            }
            (Pass::Stack, Some(to)) if own.vouched == to.interface => Ok(arrived(&own.frame, to.interface, first)),
            (Pass::Stack, Some(to)) => {
                let ingress = match from {
                    _ if is_bridged => from.interface,
                    D => OTHER_BRIDGE,
                    _ => BRIDGE,
                };
                let mut frame = own.frame;
                frame[..6].copy_from_slice(&to.mac);
                let last = self.at(Side::To, to, ingress, &frame);
                last.verdict?;
                Ok(arrived(&last.frame, to.interface, first))
            }
            (Pass::Out, None) => {
                assert_eq!(own.vouched, UPLINK, "the uplink's hook leaves it alone");
                Ok(arrived(&own.frame, UPLINK, first))
            }
            (Pass::Stack, None) => {
                let out = self.at_uplink(Side::To, if from == D { OTHER_BRIDGE } else { BRIDGE }, &own.frame);
                out.verdict?;
                Ok(arrived(&out.frame, UPLINK, first))
            }
            other => panic!("{other:?} is no way"),
        }
    }

    fn play_outside(&mut self, frame: Vec<u8>) -> Result<Arrived, Drop> {
        let Passed { verdict, mut frame, .. } = self.at_uplink(Side::From, UPLINK, &frame);
        let first = verdict?;
        let Some(to) = local(tuple(&frame).destination.0) else { return Ok(arrived(&frame, IfIndex::NONE, first)) };
        if first == Pass::Routed {
            assert_eq!(frame[..6], to.mac, "it reaches the one that it is for");
            return Ok(arrived(&frame, to.interface, first));
        }
        frame[..6].copy_from_slice(&to.mac);
        let last = self.at(Side::To, to, UPLINK, &frame);
        last.verdict?;
        Ok(arrived(&last.frame, to.interface, first))
    }

    /// The verdict of all hooks together.
    pub fn tried(&mut self, tuple: Tuple, flags: u8) -> Verdict {
        self.play(tuple, flags).map(|arrived| arrived.first)
    }
}

fn arrived(frame: &[u8], at: IfIndex, first: Pass) -> Arrived {
    Arrived { tuple: tuple(frame), at, first, packet: frame[NETWORK..].to_vec() }
}

/// The endpoint that an address belongs to.
pub fn local(address: [u8; 4]) -> Option<Who> {
    [A, B, C, D].into_iter().find(|who| who.address == address)
}

/// The key by which the host's sockets are asked about answers from `peer` to a port of the uplink's address.
pub fn answers_to(protocol: Protocol, peer: End, port: u16) -> NatKey<Addr4> {
    let ports = netpol_common::flow::PortPair::new(PortBe::from_host(peer.1), PortBe::from_host(port));
    let (source, destination) = (addr(peer.0), addr(OUTSIDE));
    NatKey { source, destination, ports, zone: netpol_common::nat::Zone::UPLINKS, protocol: protocol.into() }
}
