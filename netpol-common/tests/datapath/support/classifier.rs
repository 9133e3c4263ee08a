//! The way of a frame as netpol-ebpf has it, written a second time, over [`Memory`].

use netpol_common::{
    decide::{self, Action, Desk, Known, Packet},
    drops::{Drop, Pass, Side, Verdict},
    flow::{FlowFlags, FlowValue, Place, seconds},
    guard::{self, LinkMessage, Passage},
    headers::{Arp, Ethernet, Icmp, Ipv6, Neighbour, View as _},
    kernel::{FragmentKey, FragmentPorts, Kernel, Settings},
    parse::{self, Family, Fragment, FragmentId, IcmpKind, Ip, NETWORK, Transport, V4, V6, ethertype, tcp},
    tables::{AddressFlags, IfIndex},
    wire::{Addr6, MacWords},
};

use super::memory::{Memory, Stored};

/// Where a frame is, and where it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    pub side: Side,
    pub interface: IfIndex,
    /// [`IfIndex::NONE`]: the host's own.
    pub ingress: IfIndex,
}

/// What becomes of a frame, and of the memory.
pub fn classify(memory: &mut Memory, arrival: Arrival, frame: &[u8]) -> Verdict {
    let verdict = Way { memory, arrival, frame }.frame();
    memory.settle();
    verdict
}

#[derive(Clone, Copy)]
struct Way<'a> {
    memory: &'a Memory,
    arrival: Arrival,
    frame: &'a [u8],
}

/// What an entry says of a packet.
enum Said {
    Pass(Pass),
    /// It is valid, and the slow path must look all the same.
    Due,
    Nothing,
}

impl Way<'_> {
    fn place(&self) -> Place {
        Place::new(self.arrival.interface, self.arrival.side)
    }

    fn frame(self) -> Verdict {
        let ethernet: Ethernet = self.frame.read(0)?;
        match u16::from_be(ethernet.ethertype) {
            ethertype::IPV4 => self.ip::<V4>(&ethernet),
            ethertype::IPV6 => self.ip::<V6>(&ethernet),
            ethertype::ARP => {
                let message: Arp = self.frame.read(NETWORK)?;
                undisputed(guard::arp(self.memory, self.passage(&ethernet), &message)?)
            }
            ethertype::VLAN | ethertype::QINQ => Err(Drop::Vlan),
            _ => self.unknown(),
        }
    }

    fn unknown(self) -> Verdict {
        let Some(hook) = self.memory.hooks.get(&self.arrival.interface) else {
            return undisputed(guard::waiting(self.memory.live.settings)?);
        };
        let isolated = match self.arrival.side {
            Side::From => AddressFlags::ISOLATED_EGRESS,
            Side::To => AddressFlags::ISOLATED_INGRESS,
        };
        if hook.flags.has(isolated) { Err(Drop::Ethertype) } else { Ok(Pass::Unjudged) }
    }

    fn passage(&self, ethernet: &Ethernet) -> Passage {
        Passage {
            place: self.place(),
            source_mac: ethernet.source,
            ingress: self.arrival.ingress,
            settings: self.memory.live.settings,
        }
    }

    fn ip<F: Family<Address: Stored>>(self, ethernet: &Ethernet) -> Verdict {
        if let Some((ip, transport)) = parse::plain::<F, _>(self.frame) {
            return self.judged::<F>(self.packet(ethernet, &ip, &transport));
        }
        let ip = F::follow(self.frame, F::network(self.frame, NETWORK)?)?;
        let transport = match ip.fragment {
            Fragment::Later(id) => self.later::<F>(&ip, id)?,
            _ => parse::transport::<F, _>(self.frame, &ip)?,
        };
        if let Fragment::First(id) = ip.fragment {
            let Transport { source, destination, .. } = transport;
            let ports = FragmentPorts { source, destination, seen: self.memory.now };
            self.memory.remember_fragment(&self.fragment_key::<F>(&ip, id), &ports);
        }
        let packet = self.packet(ethernet, &ip, &transport);
        match transport.icmp {
            Some(IcmpKind::Error) => {
                let (inner, source, destination) = parse::quoted::<F, _>(self.frame, ip.transport)?;
                let mut desk = Desk::new(packet);
                desk.other = parse::key(&inner, source, destination, self.place());
                undisputed(decide::decide_icmp_error(self.memory, &mut desk)?)
            }
            Some(IcmpKind::Redirect) if F::ICMP == V4::ICMP => undisputed(guard::redirect(self.passage(ethernet))?),
            Some(class) if !class.is_flow() => self.link(ethernet),
            _ => self.judged::<F>(packet),
        }
    }

    fn link(self, ethernet: &Ethernet) -> Verdict {
        let ip = V6::follow(self.frame, V6::network(self.frame, NETWORK)?)?;
        let header: Icmp = self.frame.read(ip.transport)?;
        if ip.fragment != Fragment::Whole {
            return Err(Drop::ExtensionHeaders);
        }
        let advertised =
            if header.kind == 136 { self.frame.read::<Neighbour>(ip.transport)?.target } else { Addr6::UNSPECIFIED };
        let message = LinkMessage {
            class: V6::icmp(header.kind),
            source: ip.source,
            destination: ip.destination,
            advertised,
            hop_limit: self.frame.read::<Ipv6>(NETWORK)?.hop_limit,
        };
        undisputed(guard::link(self.memory, self.passage(ethernet), message)?)
    }

    fn fragment_key<F: Family>(&self, ip: &Ip<F::Address>, id: FragmentId) -> FragmentKey<F::Address> {
        FragmentKey {
            source: ip.source,
            destination: ip.destination,
            id,
            place: self.place(),
            protocol: ip.protocol,
            zero: 0,
            zeros: 0,
        }
    }

    fn later<F: Family<Address: Stored>>(&self, ip: &Ip<F::Address>, id: FragmentId) -> Result<Transport, Drop> {
        let ports = self.memory.fragment(&self.fragment_key::<F>(ip, id)).ok_or(Drop::Fragment)?;
        if self.memory.now.since(ports.seen) > seconds(30) {
            return Err(Drop::Fragment);
        }
        Ok(Transport { source: ports.source, destination: ports.destination, tcp_flags: tcp::ACK, icmp: None })
    }

    fn packet<A: Stored>(&self, ethernet: &Ethernet, ip: &Ip<A>, transport: &Transport) -> Packet<A> {
        Packet {
            key: parse::key(ip, transport.source, transport.destination, self.place()),
            source_mac: ethernet.source,
            destination_mac: ethernet.destination,
            ingress: self.arrival.ingress,
            tcp_flags: transport.tcp_flags,
            packets: 1,
            bytes: self.frame.len() as u32,
            generation: self.memory.live.generation,
            settings: self.memory.live.settings,
            now: self.memory.now,
        }
    }

    /// Flow entry, denial, slow path.
    fn judged<F: Family<Address: Stored>>(self, packet: Packet<F::Address>) -> Verdict {
        let store = F::Address::store(self.memory);
        let said = match store.flows.borrow_mut().get_mut(&packet.key) {
            Some(entry) => established(&packet, entry),
            None => Said::Nothing,
        };
        if let Said::Pass(pass) = said {
            return Ok(pass);
        }
        if let Said::Nothing = said
            && let Some(entry) = store.denials.borrow_mut().get_mut(&packet.key)
            && let Some(reason) = denied(&packet, entry)
        {
            return Err(reason);
        }
        let mut desk = Desk::new(packet);
        desk.known = [
            (Known::FLOW, store.flows.borrow().contains_key(&packet.key)),
            (Known::DENIAL, store.denials.borrow().contains_key(&packet.key)),
        ]
        .into_iter()
        .fold(Known::NOTHING, |all, (kind, there)| if there { all.with(kind) } else { all });
        match decide::decide(self.memory, &mut desk)? {
            Action::Remembered => Ok(delivery(&packet, &desk.value)),
            Action::Confirmed => {
                let mut flows = store.flows.borrow_mut();
                let entry = flows.get_mut(&packet.key).ok_or(Drop::FlowTable)?;
                Ok(touch(&packet, entry))
            }
            action => undisputed(action),
        }
    }
}

fn undisputed(action: Action) -> Verdict {
    match action {
        Action::Related => Ok(Pass::Stack),
        Action::Control => Ok(Pass::Control),
        Action::Waiting => Ok(Pass::Waiting),
        Action::Remembered | Action::Confirmed | Action::Link => panic!("{action:?} is no end"),
    }
}

fn speaks_for<A: Stored>(packet: &Packet<A>, entry: &FlowValue) -> bool {
    entry.word.generation() == packet.generation && entry.word.tag() == packet.key.tag()
}

fn established<A: Stored>(packet: &Packet<A>, entry: &mut FlowValue) -> Said {
    if !speaks_for(packet, entry) {
        return Said::Nothing;
    }
    let from_elsewhere = match packet.key.place.side() {
        Side::From => entry.source_mac != packet.source_mac,
        Side::To => entry.ifindex != packet.ingress,
    };
    if from_elsewhere || decide::is_due(entry, packet.now, packet.tcp_flags) {
        return Said::Due;
    }
    Said::Pass(touch(packet, entry))
}

fn touch<A: Stored>(packet: &Packet<A>, entry: &mut FlowValue) -> Pass {
    entry.packets += u64::from(packet.packets);
    entry.bytes += u64::from(packet.bytes);
    entry.seen = packet.now;
    entry.tcp_flags |= packet.tcp_flags;
    delivery(packet, entry)
}

fn delivery<A: Stored>(packet: &Packet<A>, entry: &FlowValue) -> Pass {
    let flags = entry.word.flags();
    if flags.has(FlowFlags::DIRECT) && entry.destination_mac == packet.destination_mac {
        Pass::Direct
    } else if flags.has(FlowFlags::ROUTED) {
        Pass::Routed
    } else {
        Pass::Stack
    }
}

fn denied<A: Stored>(packet: &Packet<A>, entry: &mut FlowValue) -> Option<Drop> {
    if !speaks_for(packet, entry) || !decide::is_denial_valid(entry, packet.now, packet.tcp_flags) {
        return None;
    }
    entry.packets += u64::from(packet.packets);
    entry.bytes += u64::from(packet.bytes);
    let egress = entry.word.flags().has(FlowFlags::EGRESS_DENIED);
    Some(if egress { Drop::PolicyEgress } else { Drop::PolicyIngress })
}

/// For tests of settings.
pub fn with(settings: &[Settings]) -> Settings {
    settings.iter().fold(Settings::default(), |all, one| all.with(*one))
}

/// A MAC address as entries keep it.
pub fn words(mac: [u8; 6]) -> MacWords {
    mac.into()
}
