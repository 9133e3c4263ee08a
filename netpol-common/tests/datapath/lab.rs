//! Workloads `a`, `b`, `c` on one bridge and `d` on another, all of them isolated, a host, and the world.

use std::net::IpAddr;

use netpol_common::{
    drops::{Drop, Pass, Side, Verdict},
    flow::{FlowKey, FlowValue, Generation, KeyProtocol, Place, PortPair},
    tables::{
        AddressFlags, AddressKey, AddressValue, HookValue, Identity, IfIndex, Network, PairKey, PairValue, PortKey,
        RuleId, RulesetId, Ruling, Subject,
    },
    wire::{Addr4, Mac, PortBe, Protocol},
};

use crate::support::{Arrival, Memory, classify, frame};

/// Someone with an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Who {
    pub interface: IfIndex,
    pub address: [u8; 4],
    pub mac: Mac,
    pub identity: Identity,
}

const fn workload(number: u8, network: u8) -> Who {
    Who {
        interface: IfIndex(10 + number as u32),
        address: [10, 0, network, number],
        mac: [2, 0, 0, 0, 0, number],
        identity: Identity(16 + number as u32),
    }
}

pub const A: Who = workload(1, 0);
pub const B: Who = workload(2, 0);
pub const C: Who = workload(3, 0);
/// On the other bridge: the host routes to it.
pub const D: Who = workload(4, 1);
/// Another address of B, which policy tells apart from the first.
pub const B2: Who = Who { address: [10, 0, 0, 22], identity: Identity(30), ..B };
pub const HOST: Who =
    Who { interface: IfIndex::NONE, address: [10, 0, 0, 254], mac: [2, 9, 9, 9, 9, 9], identity: Identity::HOST };
pub const WORLD: Who =
    Who { interface: IfIndex(90), address: [192, 0, 2, 1], mac: [2, 9, 9, 9, 9, 8], identity: Identity::WORLD };

pub const BRIDGE: IfIndex = IfIndex(5);
pub const OTHER_BRIDGE: IfIndex = IfIndex(6);

pub struct Lab(pub Memory);

/// What a packet carries.
#[derive(Clone, Copy, Debug)]
pub enum Load {
    Tcp(u16, u16, u8),
    Udp(u16, u16),
    /// Type and identifier.
    Icmp(u8, u16),
}

pub use Load::*;

impl Load {
    fn bytes(self) -> (Protocol, Vec<u8>) {
        match self {
            Tcp(source, destination, flags) => (Protocol::TCP, frame::tcp(source, destination, flags)),
            Udp(source, destination) => (Protocol::UDP, frame::udp(source, destination, &[])),
            Icmp(kind, id) => (Protocol::ICMP, frame::icmp(kind, 0, id, &[])),
        }
    }
}

pub fn ip(who: Who) -> IpAddr {
    who.address.into()
}

/// An Ethernet frame from one to the other.
pub fn packet(from: Who, to: Who, load: Load) -> Vec<u8> {
    let (protocol, payload) = load.bytes();
    let (ethertype, packet) = frame::ip(ip(from), ip(to), protocol, &payload);
    frame::ethernet(to.mac, from.mac, ethertype, &packet)
}

pub const DENIED: Verdict = Err(Drop::PolicyEgress);
pub const DIRECT: Verdict = Ok(Pass::Direct);
pub const STACK: Verdict = Ok(Pass::Stack);

impl Lab {
    pub fn new() -> Self {
        let mut memory = Memory::default();
        let isolated = AddressFlags::ISOLATED_INGRESS.with(AddressFlags::ISOLATED_EGRESS);
        for who in [A, B, B2, C, D] {
            let Who { interface, address, mac, identity } = who;
            let key = AddressKey { network: Network::SHARED, address: Addr4::from(std::net::Ipv4Addr::from(address)) };
            let (master, segment) = if who == D { (OTHER_BRIDGE, 2) } else { (BRIDGE, 1) };
            let value = AddressValue { identity, ifindex: interface, segment, mac: mac.into(), flags: isolated };
            memory.v4.addresses.insert(key, value);
            let hook = HookValue {
                network: Network::SHARED,
                master,
                segment,
                mac: mac.into(),
                host_mac: HOST.mac.into(),
                flags: isolated,
                identity4: identity,
                ..HookValue::NOBODY
            };
            memory.hooks.entry(interface).or_insert(hook);
        }
        let host = AddressValue {
            identity: Identity::HOST,
            ifindex: IfIndex::NONE,
            segment: 0,
            mac: [0; 6].into(),
            flags: AddressFlags::HOST,
        };
        let key = AddressKey { network: Network::SHARED, address: Addr4::from(std::net::Ipv4Addr::from(HOST.address)) };
        memory.v4.addresses.insert(key, host);
        let mut lab = Self(memory);
        lab.publish();
        lab
    }

    /// A new generation, in which everything is denied.
    pub fn publish(&mut self) {
        let Memory { live, pairs, ports, .. } = &mut self.0;
        live.generation = Generation(live.generation.0 + 1);
        pairs.clear();
        ports.clear();
        for who in [A, B, B2, C, D] {
            for subject in [Subject::egress(who.identity), Subject::ingress(who.identity)] {
                pairs.insert(
                    PairKey { subject, peer: Identity::ANY },
                    PairValue { ruleset: RulesetId::NONE, first: 0, count: 0, otherwise: Ruling::deny(RuleId(9)) },
                );
            }
        }
    }

    /// From here on `from` may open connections to this port of `to` (for ICMP: type and code).
    pub fn allow(mut self, from: Who, to: Who, (protocol, port): (Protocol, u16)) -> Self {
        self.may(from, to, (protocol, port));
        self
    }

    pub fn may(&mut self, from: Who, to: Who, (protocol, port): (Protocol, u16)) {
        let sides = [(Subject::egress(from.identity), to.identity), (Subject::ingress(to.identity), from.identity)];
        for (subject, peer) in sides {
            let ruleset = RulesetId(subject.0 << 16 | peer.0 << 8 | 1);
            let otherwise = Ruling::deny(RuleId(9));
            let pair = PairValue { ruleset, first: 0, count: 0, otherwise };
            self.0.pairs.insert(PairKey { subject, peer }, pair);
            self.0.ports.insert(PortKey { ruleset, port, protocol, reserved: 0 }, Ruling::allow(RuleId(7)));
        }
    }

    /// A frame at a hook.
    pub fn see(&mut self, side: Side, at: Who, ingress: IfIndex, frame: &[u8]) -> Verdict {
        classify(&mut self.0, Arrival { side, interface: at.interface, ingress }, frame)
    }

    /// `from` sends a packet.
    pub fn send(&mut self, from: Who, to: Who, load: Load) -> Verdict {
        self.see(Side::From, from, from.interface, &packet(from, to, load))
    }

    /// The packet reaches `to` over the bridge, or from the host or the world.
    pub fn reach(&mut self, from: Who, to: Who, load: Load) -> Verdict {
        self.see(Side::To, to, from.interface, &packet(from, to, load))
    }

    pub fn flow(&self, side: Side, at: Who, (from, to): (Who, Who), load: Load) -> Option<FlowValue<Addr4>> {
        self.0.v4.flows.borrow().get(&key(side, at, (from, to), load)).copied()
    }

    pub fn denial(&self, side: Side, at: Who, (from, to): (Who, Who), load: Load) -> Option<FlowValue<Addr4>> {
        self.0.v4.denials.borrow().get(&key(side, at, (from, to), load)).copied()
    }

    /// Forgets the entry of a packet, as a full table would.
    pub fn evict(&mut self, side: Side, at: Who, (from, to): (Who, Who), load: Load) {
        let gone = self.0.v4.flows.get_mut().remove(&key(side, at, (from, to), load));
        assert!(gone.is_some(), "there was no such entry");
    }
}

pub fn key(side: Side, at: Who, (from, to): (Who, Who), load: Load) -> FlowKey<Addr4> {
    let (protocol, source, destination) = match load {
        Tcp(source, destination, _) => (Protocol::TCP.into(), source, destination),
        Udp(source, destination) => (Protocol::UDP.into(), source, destination),
        Icmp(8, id) => (KeyProtocol::question(Protocol::ICMP), id, 0x800),
        Icmp(0, id) => (KeyProtocol::answer(Protocol::ICMP), 0x800, id),
        Icmp(kind, _) => (Protocol::ICMP.into(), 0, u16::from(kind) << 8),
    };
    FlowKey {
        source: Addr4::from(std::net::Ipv4Addr::from(from.address)),
        destination: Addr4::from(std::net::Ipv4Addr::from(to.address)),
        ports: PortPair::new(PortBe::from_host(source), PortBe::from_host(destination)),
        place: Place::new(at.interface, side),
        protocol,
    }
}

pub const HTTP: (Protocol, u16) = (Protocol::TCP, 80);
pub const DNS: (Protocol, u16) = (Protocol::UDP, 53);
pub const PING: (Protocol, u16) = (Protocol::ICMP, 0x800);

/// A frame of another kind.
pub fn raw(from: Who, to: Mac, payload: &[u8]) -> Vec<u8> {
    frame::ethernet(to, from.mac, 0x88cc, payload)
}
