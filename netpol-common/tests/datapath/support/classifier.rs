//! The way of a frame as netpol-ebpf has it, written a second time, over [`Memory`].

use std::{cell::RefCell, net::IpAddr};

use netpol_common::{
    decide::{self, Action, Desk, Known, Packet},
    drops::{Drop, Pass, Side, Verdict},
    flow::{FlowFlags, FlowValue, KeyProtocol, Place, Rewrite, seconds},
    guard::{self, LinkMessage, Passage},
    headers::{Arp, Ethernet, HopWord, Icmp, Ipv6, Neighbour, View as _},
    kernel::{FragmentKey, FragmentPorts, Kernel, Live, Settings},
    parse::{self, Family, Fragment, FragmentId, IcmpKind, Ip, NETWORK, Transport, V4, V6, ethertype, tcp},
    tables::{AddressFlags, IfIndex},
    wire::{Addr6, Address as _, MacWords},
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
    pass(memory, arrival, frame).verdict
}

/// A frame that has passed a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    pub verdict: Verdict,
    /// As it leaves the hook. (Checksums are not calculated.)
    pub frame: Vec<u8>,
    /// The interface whose hook need not judge it again; [`IfIndex::NONE`]: there is none.
    pub vouched: IfIndex,
}

/// What becomes of a frame at a workload's interface.
pub fn pass(memory: &mut Memory, arrival: Arrival, frame: &[u8]) -> Passed {
    passed(memory, arrival, frame, |way| way.frame())
}

/// What becomes of a frame at an uplink. [`Pass::Stack`]: it goes on, translated or not.
pub fn pass_uplink(memory: &mut Memory, arrival: Arrival, frame: &[u8]) -> Passed {
    passed(memory, arrival, frame, |way| way.uplink())
}

fn passed(memory: &mut Memory, arrival: Arrival, frame: &[u8], way: impl FnOnce(Way<'_>) -> Verdict) -> Passed {
    let out = RefCell::new((frame.to_vec(), IfIndex::NONE));
    let verdict = way(Way { memory, arrival, frame, out: &out });
    memory.settle();
    let (frame, vouched) = out.into_inner();
    Passed { verdict, frame, vouched }
}

#[derive(Clone, Copy)]
struct Way<'a> {
    memory: &'a Memory,
    arrival: Arrival,
    frame: &'a [u8],
    /// The frame as it leaves, and whom it is vouched to.
    out: &'a RefCell<(Vec<u8>, IfIndex)>,
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

    fn uplink(self) -> Verdict {
        let is_hosts = self.arrival.side == Side::To && self.arrival.ingress == IfIndex::NONE;
        if is_hosts || !self.memory.live.settings.has(Settings::TRANSLATE) {
            return Ok(Pass::Stack);
        }
        let Ok(ethernet) = self.frame.read::<Ethernet>(0) else { return Ok(Pass::Stack) };
        match u16::from_be(ethernet.ethertype) {
            ethertype::IPV4 => self.uplink_ip::<V4>(&ethernet),
            ethertype::IPV6 => self.uplink_ip::<V6>(&ethernet),
            _ => Ok(Pass::Stack),
        }
    }

    /// Whole packets and ICMP errors; what is neither goes on as it is.
    fn uplink_ip<F: Family<Address: Stored>>(self, ethernet: &Ethernet) -> Verdict {
        let Some((ip, transport)) = parse::plain::<F, _>(self.frame) else {
            return Ok(self.uplink_error::<F>(ethernet).unwrap_or(Pass::Stack));
        };
        match self.decided(self.packet(ethernet, &ip, &transport), decide::decide_uplink)? {
            Ok(pass) => Ok(pass),
            Err(Action::Untouched) => Ok(Pass::Stack),
            Err(action) => panic!("{action:?} is no end"),
        }
    }

    fn uplink_error<F: Family<Address: Stored>>(self, ethernet: &Ethernet) -> Verdict {
        let ip = F::follow(self.frame, F::network(self.frame, NETWORK)?)?;
        if matches!(ip.fragment, Fragment::Later(_)) {
            return Ok(Pass::Stack);
        }
        let transport = parse::transport::<F, _>(self.frame, &ip)?;
        if transport.icmp != Some(IcmpKind::Error) {
            return Ok(Pass::Stack);
        }
        let mut desk = self.quoting::<F>(&ip, self.packet(ethernet, &ip, &transport))?;
        if decide::decide_uplink_error(self.memory, &mut desk)? == Action::Translated {
            self.rewrite_error(&desk);
        }
        Ok(Pass::Stack)
    }

    /// A desk with an ICMP error on it.
    fn quoting<F: Family<Address: Stored>>(
        &self,
        ip: &Ip<F::Address>,
        packet: Packet<F::Address>,
    ) -> Result<Desk<F::Address>, Drop> {
        let (inner, ports, protocol) = parse::quoted::<F, _>(self.frame, ip.transport)?;
        let mut desk = Desk::new(packet);
        desk.other = parse::key(&inner, ports, protocol, self.place());
        desk.quoted_transport = inner.transport as u32;
        Ok(desk)
    }

    fn rewrite_error<A: Stored>(&self, desk: &Desk<A>) {
        let (frame, _) = &mut *self.out.borrow_mut();
        let network = desk.packet.transport as usize + size_of::<Icmp>();
        rewrite(frame, (network, desk.quoted_transport as usize), desk.other.protocol, &desk.quoted);
        rewrite(frame, (NETWORK, 0), desk.packet.key.protocol, &desk.wire);
    }

    /// An ICMP error at a workload's interface.
    fn error<F: Family<Address: Stored>>(self, ip: &Ip<F::Address>, packet: Packet<F::Address>) -> Verdict {
        let mut desk = self.quoting::<F>(ip, packet)?;
        let action = decide::decide_icmp_error(self.memory, &mut desk)?;
        if action != Action::Translated {
            return undisputed(action);
        }
        self.rewrite_error(&desk);
        let (interface, mac) = desk.receiver();
        if self.arrival.side == Side::To || interface == IfIndex::NONE {
            return Ok(Pass::Stack);
        }
        self.out.borrow_mut().0[..6].copy_from_slice(&mac.bytes());
        Ok(Pass::Routed)
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
            let Transport { ports, protocol, .. } = transport;
            let ports = FragmentPorts { ports, protocol, seen: self.memory.now };
            self.memory.remember_fragment(&self.fragment_key::<F>(&ip, id), &ports);
        }
        let packet = self.packet(ethernet, &ip, &transport);
        match transport.icmp {
            Some(IcmpKind::Error) => self.error::<F>(&ip, packet),
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
        Ok(Transport { ports: ports.ports, protocol: ports.protocol, tcp_flags: tcp::ACK, icmp: None })
    }

    fn packet<A: Stored>(&self, ethernet: &Ethernet, ip: &Ip<A>, transport: &Transport) -> Packet<A> {
        Packet {
            key: parse::key(ip, transport.ports, transport.protocol, self.place()),
            source_mac: ethernet.source,
            destination_mac: ethernet.destination,
            ingress: self.arrival.ingress,
            tcp_flags: transport.tcp_flags,
            transport: if matches!(ip.fragment, Fragment::Later(_)) { 0 } else { ip.transport as u32 },
            packets: 1,
            bytes: self.frame.len() as u32,
            generation: self.memory.live.generation,
            settings: self.memory.live.settings,
            now: self.memory.now,
        }
    }

    fn judged<F: Family<Address: Stored>>(self, packet: Packet<F::Address>) -> Verdict {
        match self.decided(packet, decide::decide)? {
            Ok(pass) => Ok(pass),
            Err(action) => undisputed(action),
        }
    }

    /// Flow entry, denial, slow path. `Err`: no flow decides.
    fn decided<A: Stored>(
        self,
        packet: Packet<A>,
        slow: impl FnOnce(&Memory, &mut Desk<A>) -> Result<Action, Drop>,
    ) -> Result<Result<Pass, Action>, Drop> {
        let store = A::store(self.memory);
        let said = match store.flows.borrow_mut().get_mut(&packet.key) {
            Some(entry) => self.established(&packet, entry),
            None => Said::Nothing,
        };
        if let Said::Pass(pass) = said {
            return Ok(Ok(pass));
        }
        if let Said::Nothing = said
            && let Some(entry) = store.denials.borrow_mut().get_mut(&packet.key)
            && let Some(reason) = denied(&packet, entry)
        {
            return Err(reason);
        }
        let mut desk = Desk::new(packet);
        desk.known = if store.flows.borrow().contains_key(&packet.key) { Known::FLOW } else { Known::NOTHING };
        let is_asked = decide::opens(packet.tcp_flags) && packet.settings.has(Settings::TRANSLATE);
        let looks_ahead = is_asked && packet.key.place.side() == Side::From;
        if looks_ahead && !store.translations.borrow().contains_key(desk.at_uplinks(&packet.key)) {
            desk.known = desk.known.with(Known::UNPAIRED);
        }
        Ok(match slow(self.memory, &mut desk)? {
            Action::Remembered => Ok(self.deliver(&packet, &desk.value)),
            Action::Confirmed => {
                let mut flows = store.flows.borrow_mut();
                let entry = flows.get_mut(&packet.key).ok_or(Drop::FlowTable)?;
                Ok(self.touch(&packet, entry))
            }
            action => Err(action),
        })
    }

    fn established<A: Stored>(&self, packet: &Packet<A>, entry: &mut FlowValue<A>) -> Said {
        if !speaks_for(packet, entry) {
            return Said::Nothing;
        }
        let from_elsewhere = match packet.key.place.side() {
            Side::From => entry.source_mac != packet.source_mac,
            Side::To => entry.ifindex != packet.ingress,
        };
        if from_elsewhere || decide::is_due(entry.word.flags(), entry, packet.now, packet.tcp_flags) {
            return Said::Due;
        }
        let flags = entry.word.flags();
        if decide::tells(flags, entry, packet.tcp_flags) {
            let mut desk = Desk::new(*packet);
            let live = Live { settings: packet.settings, generation: packet.generation };
            desk.tells(&packet.key, (flags, entry.rewrite), (live, packet.now, packet.tcp_flags));
            if !decide::renew(self.memory, &mut desk) {
                return Said::Due;
            }
        }
        Said::Pass(self.touch(packet, entry))
    }

    fn touch<A: Stored>(&self, packet: &Packet<A>, entry: &mut FlowValue<A>) -> Pass {
        entry.packets += u64::from(packet.packets);
        entry.bytes += u64::from(packet.bytes);
        entry.seen = packet.now;
        entry.tcp_flags |= packet.tcp_flags;
        self.deliver(packet, entry)
    }

    fn deliver<A: Stored>(&self, packet: &Packet<A>, entry: &FlowValue<A>) -> Pass {
        let flags = entry.word.flags();
        self.memory.marked.set(flags.has(FlowFlags::AUDITED));
        if flags.counts_as_audited() {
            let egress = flags.has(FlowFlags::EGRESS_DENIED);
            let reason = if egress { Drop::PolicyEgress } else { Drop::PolicyIngress };
            self.memory.would_drop.borrow_mut().push((packet.key.place.side(), reason));
        }
        let (frame, vouched) = &mut *self.out.borrow_mut();
        if flags.has(FlowFlags::OUT) && (entry.destination_mac != packet.destination_mac || !hop::<A>(frame)) {
            return Pass::Stack;
        }
        if flags.has(FlowFlags::TRANSLATED) {
            rewrite(frame, (NETWORK, packet.transport as usize), packet.key.protocol, &entry.becomes(&packet.key));
        }
        if flags.has(FlowFlags::DIRECT) && entry.destination_mac == packet.destination_mac {
            return Pass::Direct;
        }
        if flags.has(FlowFlags::ROUTED) {
            let mac = entry.destination_mac.bytes();
            frame[..6].copy_from_slice(&mac);
            return Pass::Routed;
        }
        if flags.has(FlowFlags::OUT) {
            *vouched = entry.ifindex;
            return Pass::Out;
        }
        if packet.key.place.side() == Side::From && !flags.has(FlowFlags::UNVOUCHED) {
            *vouched = entry.ifindex;
        }
        Pass::Stack
    }
}

/// Takes a hop off a packet; `false`: it has none left.
fn hop<A: Stored>(frame: &mut [u8]) -> bool {
    let at = NETWORK + if A::BITS == 32 { V4::HOPS } else { V6::HOPS };
    let word: HopWord = (*frame).read(at).unwrap();
    let Some(HopWord { bytes }) = (if A::BITS == 32 { V4::hop(word) } else { V6::hop(word) }) else { return false };
    frame[at..at + bytes.len()].copy_from_slice(&bytes);
    true
}

/// Other addresses and ports, in the headers at these offsets; without a transport header (0) only addresses.
fn rewrite<A: Stored>(frame: &mut [u8], (network, transport): (usize, usize), protocol: KeyProtocol, to: &Rewrite<A>) {
    let mut put = |offset: usize, bytes: &[u8]| frame[offset..offset + bytes.len()].copy_from_slice(bytes);
    let offset = network + if A::BITS == 32 { 12 } else { 8 };
    let size = A::BITS as usize / 8;
    for (number, address) in [to.source, to.destination].into_iter().enumerate() {
        match address.into() {
            IpAddr::V4(address) => put(offset + number * size, &address.octets()),
            IpAddr::V6(address) => put(offset + number * size, &address.octets()),
        }
    }
    let (source, destination) = (to.ports.source().to_host(), to.ports.destination().to_host());
    if transport == 0 {
        return;
    }
    if protocol.protocol().has_ports() {
        put(transport, &source.to_be_bytes());
        put(transport + 2, &destination.to_be_bytes());
    } else if protocol.asks() {
        put(transport + 4, &source.to_be_bytes());
    } else if protocol.answers() {
        put(transport + 4, &destination.to_be_bytes());
    }
}

fn undisputed(action: Action) -> Verdict {
    match action {
        Action::Related => Ok(Pass::Stack),
        Action::Control => Ok(Pass::Control),
        Action::Waiting => Ok(Pass::Waiting),
        _ => panic!("{action:?} is no end"),
    }
}

fn speaks_for<A: Stored>(packet: &Packet<A>, entry: &FlowValue<A>) -> bool {
    entry.word.generation() == packet.generation && entry.word.tag() == packet.key.tag()
}

fn denied<A: Stored>(packet: &Packet<A>, entry: &mut FlowValue<A>) -> Option<Drop> {
    if !speaks_for(packet, entry)
        || !decide::is_denial_valid((entry.word.flags(), entry.judged), packet.now, packet.tcp_flags)
    {
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
