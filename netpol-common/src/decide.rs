//! The slow path: what happens to a packet that no valid flow entry speaks for.
//!
//! ```text
//! who are the two ends, and may they say so?      ends
//! which of them opened the connection?            orientation
//! what does the present policy say to that?       judge
//! remember it, for both directions                remember
//! ```
//!
//! State never widens policy: whatever is remembered repeats what the present policy says about the
//! connection's original direction.

use crate::{
    drops::{Drop, Side},
    flow::{FlowFlags, FlowKey, FlowValue, Generation, PackedRule, Place, REFRESH, Ticks, Word, seconds},
    guard,
    kernel::{Kernel, Remembered, Settings},
    parse::{self, tcp},
    policy::{PolicyTables, Probe},
    tables::{AddressFlags, AddressKey, AddressValue, HookValue, Identity, IfIndex, Network, RuleId, Ruling, Subject},
    wire::{Address, MacWords, PortBe, Protocol},
};

/// A packet, as the slow path needs it.
#[derive(Clone, Copy)]
pub struct Packet<A: Address> {
    pub key: FlowKey<A>,
    pub source_mac: MacWords,
    pub destination_mac: MacWords,
    /// Where the kernel says that it came from; [`IfIndex::NONE`] for the host's own.
    pub ingress: IfIndex,
    pub tcp_flags: u8,
    /// Of the frame, GSO segments counted.
    pub packets: u32,
    pub bytes: u32,
    pub generation: Generation,
    pub settings: Settings,
    pub now: Ticks,
}

/// What to do with a packet that may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// [`Desk::value`] is its flow's new entry, the packet counted: deliver it the way that it says.
    Remembered,
    /// An ICMP error, to be judged by the packet inside; when it was, it may pass.
    Related,
    /// Nothing is known about the interface yet.
    Waiting,
    /// What a link needs, guarded but not judged by policy.
    Control,
    /// A message of IPv6's link control, still to be guarded.
    Link,
    /// The entry that its flow has still holds: count it there, and deliver it the way that it says.
    Confirmed,
}

impl Action {
    /// The reverse of `as u32`.
    #[inline(always)]
    pub const fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            0 => Self::Remembered,
            1 => Self::Related,
            2 => Self::Waiting,
            3 => Self::Control,
            4 => Self::Link,
            5 => Self::Confirmed,
            _ => return None,
        })
    }
}

/// Where the slow path works on one packet. It is larger than the BPF stack allows, so the classifiers
/// keep one for each CPU.
#[derive(Clone, Copy)]
pub struct Desk<A: Address> {
    pub packet: Packet<A>,
    pub known: Known,
    source: End,
    destination: End,
    /// The key of the packets in the other direction; of an ICMP error, that of the packet inside, at any
    /// place.
    pub other: FlowKey<A>,
    /// What is known of the packet's direction, and of the other.
    own: Remembered,
    partner: Remembered,
    /// Where neither is known: what a local sender's own hook has just found out about the packet.
    sent: Remembered,
    /// The entry that is being written; in the end, that of the packet's direction.
    pub value: FlowValue,
}

/// What there may be of the packet's own key: the slow path does not look again for what was just not found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Known(pub u32);

impl Known {
    pub const NOTHING: Self = Self(0);
    /// A flow's entry, of whatever generation.
    pub const FLOW: Self = Self(1);
    /// A denial.
    pub const DENIAL: Self = Self(1 << 1);
    pub const EVERYTHING: Self = Self::FLOW.with(Self::DENIAL);

    #[inline(always)]
    pub const fn has(self, kind: Self) -> bool {
        self.0 & kind.0 != 0
    }

    #[inline(always)]
    pub const fn with(self, kind: Self) -> Self {
        Self(self.0 | kind.0)
    }
}

impl<A: Address> Desk<A> {
    /// A desk with a packet on it.
    pub const fn new(packet: Packet<A>) -> Self {
        let nobody = End::elsewhere(Identity::ANY, AddressFlags(0), packet.source_mac);
        Self {
            other: packet.key,
            packet,
            known: Known::EVERYTHING,
            source: nobody,
            destination: nobody,
            own: Remembered::NOTHING,
            partner: Remembered::NOTHING,
            sent: Remembered::NOTHING,
            value: FlowValue::EMPTY,
        }
    }
}

/// One end of a packet.
#[derive(Clone, Copy)]
struct End {
    identity: Identity,
    /// [`IfIndex::NONE`] unless it is an endpoint here.
    ifindex: IfIndex,
    segment: u32,
    mac: MacWords,
    flags: AddressFlags,
}

impl End {
    /// Nobody's MAC address is asked for; the one given is as good as any (and clearing six bytes would
    /// be a call of `memset`).
    #[inline(always)]
    const fn elsewhere(identity: Identity, flags: AddressFlags, mac: MacWords) -> Self {
        Self { identity, ifindex: IfIndex::NONE, segment: 0, mac, flags }
    }

    #[inline(always)]
    const fn is_local(&self) -> bool {
        self.ifindex.0 != IfIndex::NONE.0
    }
}

impl From<&AddressValue> for End {
    #[inline(always)]
    fn from(value: &AddressValue) -> Self {
        let AddressValue { identity, ifindex, segment, mac, flags } = *value;
        Self { identity, ifindex, segment, mac, flags }
    }
}

/// Who opened the connection that a packet belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Orientation {
    /// Its sender.
    Forward,
    /// Its receiver.
    Reply,
    /// It is in the middle of a connection of which nothing is known.
    Unclear,
}

/// Decides about the packet on the desk.
///
/// # Errors
///
/// The reason to drop it.
#[inline(always)]
pub fn decide<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>) -> Result<Action, Drop> {
    let packet = &desk.packet;
    let Some(hook) = kernel.hook(packet.key.place.ifindex()) else { return guard::waiting(packet.settings) };
    if let Some(result) = dhcp(kernel, packet, hook) {
        return result;
    }
    desk.other = desk.packet.key.reversed(desk.packet.key.place);
    ends(kernel, desk, hook)?;
    desk.other.place = other_place(desk);
    recall(kernel, desk);
    let orientation = orientation(desk);
    let rules = match judge(kernel, desk, orientation) {
        Ok(rules) => rules,
        Err(denial) => {
            // what the tables should have known and did not is no verdict to repeat
            if !matches!(denial.reason, Drop::NoPolicy) {
                desk.value = denial.entry(&desk.packet, orientation);
                if desk.known.has(Known::DENIAL) {
                    kernel.count_on(&desk.packet.key, &mut desk.value);
                }
                kernel.remember_denial(&desk.packet.key, &desk.value);
            }
            return Err(denial.reason);
        }
    };
    if !desk.own.exists() && !desk.partner.exists() && !may_open(kernel, &desk.packet) {
        return Err(Drop::Rate);
    }
    let flags = delivery(desk, hook);
    let flags = if orientation == Orientation::Unclear { flags.with(FlowFlags::UNCLEAR) } else { flags };
    let judged = Judged { rules, is_reply: orientation == Orientation::Reply, flags };
    remember(kernel, desk, hook, judged)
}

/// What is known of both directions; nothing answers a group as the group.
#[inline(always)]
fn recall<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>) {
    desk.own.forget();
    desk.partner.forget();
    desk.sent.forget();
    if desk.known.has(Known::FLOW) {
        desk.own = past(kernel.recall(&desk.packet.key), &desk.packet);
    } else if desk.packet.key.protocol() == Protocol::TCP && opens(desk.packet.tcp_flags) {
        // whoever sends a SYN opens: what the other direction was does not matter
        return;
    }
    if !desk.packet.destination_mac.is_group() {
        desk.partner = past(kernel.recall(&desk.other), &desk.packet);
    }
    if is_idle(desk) {
        desk.own.forget();
        desk.partner.forget();
    }
    let place = desk.packet.key.place;
    if matches!(place.side(), Side::To) && desk.source.is_local() && !desk.own.exists() && !desk.partner.exists() {
        desk.packet.key.place = Place::new(desk.source.ifindex, Side::From);
        desk.sent = kernel.recall(&desk.packet.key);
        desk.packet.key.place = place;
        if desk.sent.word.generation() != desk.packet.generation {
            desk.sent.forget();
        }
    }
}

/// Writes down both directions, where they do not say it already.
#[inline(always)]
fn remember<A: Address, K: Kernel<A>>(
    kernel: &K,
    desk: &mut Desk<A>,
    hook: &HookValue,
    judged: Judged,
) -> Result<Action, Drop> {
    let generation = desk.packet.generation;
    let renews = desk.packet.tcp_flags & tcp::SYN != 0;
    let says = |entry: &Remembered, reply: bool| {
        let flags = entry.word.flags();
        entry.word.generation() == generation
            && flags.has(FlowFlags::REPLY) == reply
            && flags.has(FlowFlags::UNCLEAR) == judged.flags.has(FlowFlags::UNCLEAR)
            && !renews
    };
    if !desk.packet.destination_mac.is_group() && !says(&desk.partner, !judged.is_reply) {
        desk.value = judged.partner(desk, hook);
        kernel.remember(&desk.other, &desk.value)?;
    }
    if says(&desk.own, judged.is_reply) {
        kernel.refresh(&desk.packet.key, desk.packet.now, desk.packet.ingress);
        return Ok(Action::Confirmed);
    }
    desk.value = judged.own(desk);
    kernel.remember(&desk.packet.key, &desk.value)?;
    Ok(Action::Remembered)
}

/// Whether the interface may open one more flow now.
#[inline(always)]
fn may_open<A: Address, K: Kernel<A>>(kernel: &K, packet: &Packet<A>) -> bool {
    packet.settings.has(Settings::UNLIMITED)
        || matches!(packet.key.place.side(), Side::To)
        || kernel.admit(packet.key.place.ifindex(), packet.now)
}

/// Looks an address up: in the hook's own network first, where it has one.
#[inline(always)]
pub fn find<A: Address, K: Kernel<A>>(kernel: &K, network: Network, address: A) -> Option<&AddressValue> {
    if network != Network::SHARED
        && let Some(value) = kernel.address(&AddressKey { network, address })
    {
        return Some(value);
    }
    kernel.address(&AddressKey { network: Network::SHARED, address })
}

#[inline(always)]
fn outside<A: Address, K: Kernel<A>>(kernel: &K, address: &A, otherwise: Identity) -> Identity {
    match kernel.network(address) {
        Some(identity) => *identity,
        None => otherwise,
    }
}

/// Finds out who the two ends are.
///
/// What a workload sends must come from its own address and MAC address; what would reach it must go to
/// its own address, or to a group.
#[inline(always)]
fn ends<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>, hook: &HookValue) -> Result<(), Drop> {
    let packet = &desk.packet;
    let own = packet.key.place.ifindex();
    match packet.key.place.side() {
        Side::From => {
            let Some(source) = find(kernel, hook.network, packet.key.source) else { return Err(Drop::Spoofed) };
            if source.ifindex != own || source.mac != packet.source_mac {
                return Err(Drop::Spoofed);
            }
            desk.destination = match find(kernel, hook.network, packet.key.destination) {
                Some(value) => value.into(),
                None => End::elsewhere(
                    outside(kernel, &packet.key.destination, Identity::WORLD),
                    AddressFlags(0),
                    packet.source_mac,
                ),
            };
            desk.source = source.into();
        }
        Side::To => {
            desk.destination = match find(kernel, hook.network, packet.key.destination) {
                Some(value) if value.ifindex == own => value.into(),
                // an endpoint's address stands for that endpoint, also in a frame to everybody
                None if packet.destination_mac.is_group() => {
                    let identity = if A::BITS == 32 { hook.identity4 } else { hook.identity6 };
                    End { identity, ifindex: own, segment: hook.segment, mac: hook.mac, flags: hook.flags }
                }
                _ => return Err(Drop::NotForEndpoint),
            };
            desk.source = source_of(kernel, desk, hook)?;
        }
    }
    Ok(())
}

/// Who sent a packet that reaches a workload: the kernel knows where it came from, the address alone
/// proves nothing.
#[inline(always)]
fn source_of<A: Address, K: Kernel<A>>(kernel: &K, desk: &Desk<A>, hook: &HookValue) -> Result<End, Drop> {
    let packet = &desk.packet;
    let known = find(kernel, hook.network, packet.key.source);
    if packet.ingress == IfIndex::NONE {
        return match known {
            // a local process with a container's address
            Some(value) if value.ifindex != IfIndex::NONE => Err(Drop::Spoofed),
            Some(value) => Ok(value.into()),
            None => Ok(End::elsewhere(
                outside(kernel, &packet.key.source, Identity::HOST),
                AddressFlags::HOST,
                packet.source_mac,
            )),
        };
    }
    let Some(value) = known else {
        return Ok(End::elsewhere(
            outside(kernel, &packet.key.source, Identity::WORLD),
            AddressFlags(0),
            packet.source_mac,
        ));
    };
    let vouched =
        value.ifindex != IfIndex::NONE && (value.ifindex == packet.ingress || routed_from(kernel, desk, value.ifindex));
    if vouched { Ok(value.into()) } else { Err(Drop::Spoofed) }
}

/// A packet of a local workload that the host has routed: the kernel names the bridge that it came
/// over, and the workload's own hook has seen and remembered it just before. An ICMP error makes no flow:
/// the answers to the packet inside stand for it.
#[inline(always)]
fn routed_from<A: Address, K: Kernel<A>>(kernel: &K, desk: &Desk<A>, sender: IfIndex) -> bool {
    let over_its_bridge = kernel.hook(sender).is_some_and(|hook| hook.master == desk.packet.ingress);
    let seen = kernel.recall(&desk.other.reversed(Place::new(sender, Side::From)));
    // its own hook may have read the generation just before a publication
    let now =
        seen.word.generation().0 + 1 >= desk.packet.generation.0 && desk.packet.now.since(seen.seen) <= seconds(1);
    over_its_bridge && seen.exists() && now
}

/// Where the packets of the other direction pass: at the other end's interface if that is here, on
/// the same side, else at this one, on the other side.
#[inline(always)]
fn other_place<A: Address>(desk: &Desk<A>) -> Place {
    let place = desk.packet.key.place;
    match place.side() {
        Side::From if desk.destination.is_local() => Place::new(desk.destination.ifindex, Side::From),
        Side::From => Place::new(place.ifindex(), Side::To),
        Side::To if desk.source.is_local() => Place::new(desk.source.ifindex, Side::To),
        Side::To => Place::new(place.ifindex(), Side::From),
    }
}

/// How long a silent connection is remembered. TCP's only a SYN ends: who opened must not be forgotten
/// because somebody forged a RST and fell silent.
#[inline(always)]
const fn timeout(protocol: Protocol) -> u32 {
    match protocol {
        Protocol::TCP => u32::MAX,
        Protocol::ICMP | Protocol::ICMPV6 => seconds(30),
        Protocol::UDP => seconds(180),
        _ => seconds(600),
    }
}

/// Nothing, for an entry of a generation that is yet to come for this packet.
#[inline(always)]
fn past<A: Address>(entry: Remembered, packet: &Packet<A>) -> Remembered {
    if entry.word.generation().0 <= packet.generation.0 { entry } else { Remembered::NOTHING }
}

/// Neither half has seen a packet for too long.
#[inline(always)]
fn is_idle<A: Address>(desk: &Desk<A>) -> bool {
    let Desk { packet, own, partner, .. } = desk;
    let seen = match (own.exists(), partner.exists()) {
        (true, true) => own.seen.latest(partner.seen),
        (true, false) => own.seen,
        _ => partner.seen,
    };
    packet.now.since(seen) > timeout(packet.key.protocol())
}

/// A plain SYN.
#[inline(always)]
const fn opens(tcp_flags: u8) -> bool {
    tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN
}

#[inline(always)]
fn orientation<A: Address>(desk: &Desk<A>) -> Orientation {
    let Desk { packet, own, partner, sent, .. } = desk;
    let is_tcp = packet.key.protocol() == Protocol::TCP;
    // only a plain SYN opens, and whoever sends it opens
    if is_tcp && opens(packet.tcp_flags) {
        return Orientation::Forward;
    }
    // only a request asks, whatever passed before
    if packet.key.protocol().is_icmp() {
        return if parse::is_answer(&packet.key) { Orientation::Reply } else { Orientation::Forward };
    }
    if own.exists() {
        return of_entry(own.word.flags(), true);
    }
    if partner.exists() {
        return of_entry(partner.word.flags(), false);
    }
    if sent.exists() {
        return of_entry(sent.word.flags(), true);
    }
    if !is_tcp {
        return Orientation::Forward;
    }
    if packet.tcp_flags & tcp::SYN != 0 {
        return Orientation::Reply;
    }
    let ephemeral = |port: PortBe| port.to_host() >= EPHEMERAL;
    match (ephemeral(packet.key.ports.source()), ephemeral(packet.key.ports.destination())) {
        (true, false) => Orientation::Forward,
        (false, true) => Orientation::Reply,
        _ => Orientation::Unclear,
    }
}

/// What an entry knows, of the packet's own direction or of the other.
#[inline(always)]
const fn of_entry(flags: FlowFlags, same_direction: bool) -> Orientation {
    if flags.has(FlowFlags::UNCLEAR) {
        Orientation::Unclear
    } else if flags.has(FlowFlags::REPLY) == same_direction {
        Orientation::Reply
    } else {
        Orientation::Forward
    }
}

/// Linux gives clients ports from here on (`net.ipv4.ip_local_port_range`).
const EPHEMERAL: u16 = 32768;

/// The rules that allow a connection.
#[derive(Clone, Copy)]
struct Rules {
    egress: RuleId,
    ingress: RuleId,
}

/// Who said no.
#[derive(Clone, Copy)]
struct Denial {
    reason: Drop,
    rule: RuleId,
}

impl Denial {
    #[inline(always)]
    fn entry<A: Address>(self, packet: &Packet<A>, orientation: Orientation) -> FlowValue {
        let egress = matches!(self.reason, Drop::PolicyEgress);
        let flags = if egress { FlowFlags::EGRESS_DENIED } else { FlowFlags::NONE };
        let flags = if orientation == Orientation::Forward { flags } else { flags.with(FlowFlags::REPLY) };
        let rule = PackedRule::new(self.rule);
        let none = PackedRule::new(RuleId::NONE);
        FlowValue {
            word: Word::new(packet.generation, packet.key.tag(), flags),
            packets: u64::from(packet.packets),
            bytes: u64::from(packet.bytes),
            seen: packet.now,
            judged: packet.now,
            ifindex: packet.ingress,
            source_mac: packet.source_mac,
            destination_mac: packet.destination_mac,
            egress_rule: if egress { rule } else { none },
            ingress_rule: if egress { none } else { rule },
            tcp_flags: packet.tcp_flags,
            reserved: 0,
        }
    }
}

/// Asks the policies of both ends about the connection's original direction; where that is unclear,
/// both directions must be allowed.
#[inline(always)]
fn judge<A: Address, K: Kernel<A>>(kernel: &K, desk: &Desk<A>, orientation: Orientation) -> Result<Rules, Denial> {
    let Desk { packet, source, destination, .. } = desk;
    let forward = probe(packet.key.protocol(), packet.key.ports.source(), packet.key.ports.destination());
    let reply = probe(packet.key.protocol(), packet.key.ports.destination(), packet.key.ports.source());
    // one call site for both, so the verifier walks the rules once
    let (mut from, mut to, mut asked, mut again) = match orientation {
        Orientation::Forward => (source, destination, forward, false),
        Orientation::Reply => (destination, source, reply, false),
        Orientation::Unclear => (destination, source, reply, true),
    };
    loop {
        let rules = judge_direction(kernel, packet.settings, (from, to), asked)?;
        if !again {
            return Ok(rules);
        }
        (from, to, asked, again) = (source, destination, forward, false);
    }
}

/// What rules look at, by the ports of a flow's key in the direction that is judged. ICMP has its type and
/// code where others have a destination port.
#[inline(always)]
fn probe(protocol: Protocol, source: PortBe, destination: PortBe) -> Probe {
    let (source, destination) = if protocol.has_ports() {
        (source.to_host(), destination.to_host())
    } else if protocol.is_icmp() {
        (0, destination.to_host())
    } else {
        (0, 0)
    };
    Probe { protocol, source_port: source, destination_port: destination }
}

#[inline(always)]
fn judge_direction<K: PolicyTables>(
    kernel: &K,
    settings: Settings,
    (from, to): (&End, &End),
    probe: Probe,
) -> Result<Rules, Denial> {
    let mut rules = Rules { egress: RuleId::NONE, ingress: RuleId::NONE };
    if from.is_local() && from.flags.has(AddressFlags::ISOLATED_EGRESS) {
        let ruling = kernel.verdict(Subject::egress(from.identity), to.identity, probe);
        rules.egress = allowed(ruling, Drop::PolicyEgress)?;
    }
    let trusted = from.flags.has(AddressFlags::HOST) && !settings.has(Settings::POLICE_HOST);
    if to.is_local() && to.flags.has(AddressFlags::ISOLATED_INGRESS) && !trusted {
        let ruling = kernel.verdict(Subject::ingress(to.identity), from.identity, probe);
        rules.ingress = allowed(ruling, Drop::PolicyIngress)?;
    }
    Ok(rules)
}

#[inline(always)]
fn allowed(ruling: Option<Ruling>, reason: Drop) -> Result<RuleId, Denial> {
    match ruling {
        Some(ruling) if ruling.is_allowed() => Ok(ruling.rule()),
        Some(ruling) => Err(Denial { reason, rule: ruling.rule() }),
        None => Err(Denial { reason: Drop::NoPolicy, rule: RuleId::NONE }),
    }
}

/// Whether a packet that a workload sends may go directly to the other one: only where the host
/// would have brought it there, and nothing on the way would have had a say.
#[inline(always)]
fn delivery<A: Address>(desk: &Desk<A>, hook: &HookValue) -> FlowFlags {
    let (packet, to) = (&desk.packet, &desk.destination);
    if packet.key.place.side() as u8 != Side::From as u8
        || packet.settings.has(Settings::STACK)
        || !to.is_local()
        || to.ifindex == packet.key.place.ifindex()
        || hook.segment == 0
        || hook.segment != to.segment
    {
        return FlowFlags::NONE;
    }
    let isolated = hook.flags.has(AddressFlags::PORT_ISOLATED) && to.flags.has(AddressFlags::PORT_ISOLATED);
    let routed = hook.flags.has(AddressFlags::ROUTED) && to.flags.has(AddressFlags::ROUTED);
    if routed && packet.destination_mac == hook.host_mac {
        FlowFlags::ROUTED
    } else if !routed && !isolated && packet.destination_mac == to.mac {
        FlowFlags::DIRECT
    } else {
        FlowFlags::NONE
    }
}

/// What was found out about a connection.
#[derive(Clone, Copy)]
struct Judged {
    rules: Rules,
    /// The packet at hand is a reply.
    is_reply: bool,
    /// How packets are delivered, in either direction.
    flags: FlowFlags,
}

impl Judged {
    /// The entry of the packet's own direction, this packet counted.
    #[inline(always)]
    fn own<A: Address>(&self, desk: &Desk<A>) -> FlowValue {
        let (packet, before) = (&desk.packet, &desk.own);
        let ifindex = match packet.key.place.side() {
            Side::From => desk.destination.ifindex,
            Side::To => packet.ingress,
        };
        // a new connection on the same ports starts anew
        let (packets, bytes, flags) = before.totals();
        let tcp_flags = if packet.tcp_flags & tcp::SYN != 0 { packet.tcp_flags } else { flags | packet.tcp_flags };
        FlowValue {
            word: self.word(packet, packet.key.tag(), self.is_reply),
            packets: packets + u64::from(packet.packets),
            bytes: bytes + u64::from(packet.bytes),
            ifindex,
            source_mac: packet.source_mac,
            destination_mac: desk.destination.mac,
            tcp_flags,
            ..self.entry(packet, before)
        }
    }

    /// The entry of the other direction.
    #[inline(always)]
    fn partner<A: Address>(&self, desk: &Desk<A>, hook: &HookValue) -> FlowValue {
        let (packet, before) = (&desk.packet, &desk.partner);
        let (source_mac, ifindex) = match (packet.key.place.side(), desk.other.place.side()) {
            (Side::From, Side::From) => (desk.destination.mac, desk.source.ifindex),
            (Side::To, Side::From) => (hook.mac, IfIndex::NONE),
            // the first packet tells where they really come from
            (_, Side::To) => (packet.destination_mac, desk.destination.ifindex),
        };
        FlowValue {
            word: self.word(packet, desk.other.tag(), !self.is_reply),
            ifindex,
            source_mac,
            destination_mac: desk.source.mac,
            tcp_flags: if opens(packet.tcp_flags) { 0 } else { before.totals().2 },
            ..self.entry(packet, before)
        }
    }

    #[inline(always)]
    fn word<A: Address>(&self, packet: &Packet<A>, tag: u16, is_reply: bool) -> Word {
        let flags = if is_reply { self.flags.with(FlowFlags::REPLY) } else { self.flags };
        Word::new(packet.generation, tag, flags)
    }

    /// What both directions have in common. Counters go on from what was there.
    #[inline(always)]
    fn entry<A: Address>(&self, packet: &Packet<A>, before: &Remembered) -> FlowValue {
        let (packets, bytes, tcp_flags) = before.totals();
        FlowValue {
            word: Word(0),
            packets,
            bytes,
            seen: packet.now,
            judged: packet.now,
            ifindex: IfIndex::NONE,
            source_mac: packet.source_mac,
            destination_mac: packet.destination_mac,
            egress_rule: PackedRule::new(self.rules.egress),
            ingress_rule: PackedRule::new(self.rules.ingress),
            tcp_flags,
            reserved: 0,
        }
    }
}

const DHCP_SERVER: PortBe = PortBe::from_host(67);
const DHCP_CLIENT: PortBe = PortBe::from_host(68);
const DHCPV6_CLIENT: PortBe = PortBe::from_host(546);
const DHCPV6_SERVER: PortBe = PortBe::from_host(547);

/// RFC 2131 and RFC 8415: a workload may ask a DHCP server, and hear one that is no workload; it may not be
/// one. `None`: the policy decides, also about questions that are not for the link or the host.
#[inline(always)]
fn dhcp<A: Address, K: Kernel<A>>(kernel: &K, packet: &Packet<A>, hook: &HookValue) -> Option<Result<Action, Drop>> {
    let (server, client) = if A::BITS == 32 { (DHCP_SERVER, DHCP_CLIENT) } else { (DHCPV6_SERVER, DHCPV6_CLIENT) };
    let (from, to) = (packet.key.ports.source(), packet.key.ports.destination());
    if packet.key.protocol() != Protocol::UDP {
        return None;
    }
    match packet.key.place.side() {
        // clients listen to whoever writes to their port
        Side::From if from == server || to == client => Some(Err(Drop::DhcpServer)),
        Side::From if from == client && to == server => asks_dhcp(kernel, packet, hook),
        Side::To if from == server && to == client => Some(Ok(Action::Control)),
        _ => None,
    }
}

/// A question as a workload may ask it: from nowhere or its own address, to everybody on the link.
#[inline(always)]
fn asks_dhcp<A: Address, K: Kernel<A>>(
    kernel: &K,
    packet: &Packet<A>,
    hook: &HookValue,
) -> Option<Result<Action, Drop>> {
    let own = packet.key.place.ifindex();
    let from_itself = packet.key.source.is_unspecified()
        || find(kernel, hook.network, packet.key.source).is_some_and(|value| value.ifindex == own);
    if !from_itself || packet.source_mac != hook.mac {
        return Some(Err(Drop::Spoofed));
    }
    let to_all = packet.destination_mac.is_group() && packet.key.destination.is_group();
    if to_all { Some(Ok(Action::Control)) } else { None }
}

/// Whether an ICMP error is about a packet that its receiver really sent, and still may.
///
/// [`Desk::other`] is the key of the packet inside.
///
/// # Errors
///
/// [`Drop::IcmpUnrelated`], or [`Drop::Spoofed`] for a source that is not what it says.
#[inline(always)]
pub fn decide_icmp_error<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>) -> Result<Action, Drop> {
    let packet = &desk.packet;
    let Some(hook) = kernel.hook(packet.key.place.ifindex()) else { return guard::waiting(packet.settings) };
    if desk.other.source != packet.key.destination {
        return Err(Drop::IcmpUnrelated);
    }
    ends(kernel, desk, hook)?;
    let own = desk.packet.key.place.ifindex();
    let sender = match desk.packet.key.place.side() {
        Side::From => {
            // a workload speaks about what reached it, not about other people's packets
            let reached = find(kernel, hook.network, desk.other.destination);
            if reached.is_none_or(|value| value.ifindex != own) {
                return Err(Drop::IcmpUnrelated);
            }
            other_place(desk)
        }
        Side::To => Place::new(own, Side::From),
    };
    let entry = kernel.recall(&desk.other.at(sender));
    if entry.word.generation() == desk.packet.generation { Ok(Action::Related) } else { Err(Drop::IcmpUnrelated) }
}

/// Whether the slow path must look at a packet that an entry speaks for.
#[inline(always)]
pub fn is_due(entry: &FlowValue, now: Ticks, tcp_flags: u8) -> bool {
    // a plain SYN from the replying side opens a new connection, and tells who opened where that was unclear
    let flags = entry.word.flags();
    let reopens = opens(tcp_flags) && (flags.has(FlowFlags::REPLY) || flags.has(FlowFlags::UNCLEAR));
    // the ports of a connection that has ended are used again
    let renews = tcp_flags & tcp::SYN != 0 && entry.tcp_flags & (tcp::FIN | tcp::RST) != 0;
    reopens || renews || now.since(entry.judged) > REFRESH
}

/// Whether a denial that was remembered in this generation still speaks for a packet of its key.
#[inline(always)]
pub fn is_denial_valid(entry: &FlowValue, now: Ticks, tcp_flags: u8) -> bool {
    // it was about the middle of a connection, and this packet opens one; or what made it a reply may be
    // forgotten by now
    let opens_anew = opens(tcp_flags) && entry.word.flags().has(FlowFlags::REPLY);
    !opens_anew && now.since(entry.judged) <= REFRESH
}
