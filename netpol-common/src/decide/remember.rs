//! What is written down of a connection that is allowed: an entry for each direction, and how packets are
//! delivered.

use super::{Action, Desk, judge::Rules, opening::opens};
use crate::{
    drops::{Drop, Side},
    flow::{FlowFlags, FlowValue, PackedRule, Rewrite, Word},
    kernel::{Kernel, Remembered, Settings},
    parse::tcp,
    tables::{AddressFlags, IfIndex},
    wire::Address,
};

/// Writes down both directions, where they do not say it already.
#[inline(always)]
pub(super) fn remember<A: Address, K: Kernel<A>>(
    kernel: &K,
    desk: &mut Desk<A>,
    judged: Judged,
) -> Result<Action, Drop> {
    let renews = desk.packet.tcp_flags & tcp::SYN != 0;
    let answer = Rewrite::of(&desk.packet.key).reversed();
    if !desk.packet.destination_mac.is_group()
        && !desk.is_elsewhere
        && (renews || !judged.is_said(desk, &desk.partner, (judged.other, &answer)))
    {
        desk.value = judged.partner(desk);
        leave(desk, judged.other);
        kernel.remember(&desk.other, &desk.value)?;
    }
    desk.value = judged.own(desk);
    leave(desk, judged.own);
    // who sends them, and where they come from, an entry learns of its first packet
    let is_from_there = match desk.packet.key.place.side() {
        Side::From => desk.own.source_mac == desk.packet.source_mac,
        Side::To => desk.own.ifindex.0 == desk.packet.ingress.0,
    };
    let is_said = !renews && is_from_there && judged.is_said(desk, &desk.own, (judged.own, &desk.wire));
    // the partner's, just now, may have taken its place
    if is_said && kernel.refresh(&desk.packet.key, desk.packet.generation, desk.packet.now) {
        return Ok(Action::Confirmed);
    }
    kernel.remember(&desk.packet.key, &desk.value)?;
    Ok(Action::Remembered)
}

/// Of what leaves by an uplink, where it keeps its destination, the entry says to whom there: see [`FlowValue::rewrite`].
#[inline(always)]
fn leave<A: Address>(desk: &mut Desk<A>, flags: FlowFlags) {
    if flags.has(FlowFlags::OUT) {
        desk.value.rewrite.destination = desk.hop;
    }
}

/// Whether a packet that a workload sends may go directly to the other one: only where the host
/// would have brought it there, and nothing on the way would have had a say.
#[inline(always)]
pub(super) fn delivery<A: Address>(desk: &Desk<A>) -> FlowFlags {
    let (packet, to, hook) = (&desk.packet, &desk.destination, &desk.hook);
    let is_rewritten = desk.is_rewritten();
    if desk.is_direct() {
        // each direction has its own way: see `Judged::new`
        return FlowFlags::NONE;
    }
    if packet.key.place.side() as u8 != Side::From as u8 || !to.is_local() {
        return FlowFlags::NONE;
    }
    if to.ifindex == packet.key.place.ifindex() {
        // to itself, behind a service: nobody else has a say in that, and the host would not take its own address
        // from there
        return if is_rewritten { FlowFlags::ROUTED } else { FlowFlags::NONE };
    }
    if packet.settings.has(Settings::STACK) || hook.segment == 0 || hook.segment != to.segment {
        return FlowFlags::NONE;
    }
    let isolated = hook.flags.has(AddressFlags::PORT_ISOLATED) && to.flags.has(AddressFlags::PORT_ISOLATED);
    if is_rewritten {
        // it went to whoever routes, and gets the receiver's MAC address
        return if isolated { FlowFlags::NONE } else { FlowFlags::ROUTED };
    }
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
pub(super) struct Judged {
    rules: Rules,
    /// What entries say of the packet's direction, and of the other.
    own: FlowFlags,
    other: FlowFlags,
}

/// Which flags an entry must have as they are.
const TELLING: FlowFlags = FlowFlags::REPLY
    .with(FlowFlags::UNCLEAR)
    .with(FlowFlags::TRANSLATED)
    .with(FlowFlags::UNVOUCHED)
    .with(FlowFlags::OUT)
    .with(AUDIT);

/// What audited policies would say: of both directions the same.
const AUDIT: FlowFlags = FlowFlags::AUDITED.with(FlowFlags::EGRESS_DENIED).with(FlowFlags::COUNTED);

impl Judged {
    /// `flags`: how packets are delivered, in either direction.
    #[inline(always)]
    pub(super) fn new<A: Address>(desk: &Desk<A>, flags: FlowFlags) -> Self {
        let is_reply = desk.flags.has(FlowFlags::REPLY);
        let flags = FlowFlags(flags.0 | desk.flags.0 & AUDIT.0);
        let flags = if desk.flags.has(FlowFlags::UNCLEAR) { flags.with(FlowFlags::UNCLEAR) } else { flags };
        let (own, other) = if desk.is_direct() {
            past_the_host(desk)
        } else if desk.is_rewritten() {
            legs(desk, flags)
        } else {
            (FlowFlags::NONE, FlowFlags::NONE)
        };
        let (own, other) =
            if is_reply { (own.with(FlowFlags::REPLY), other) } else { (own, other.with(FlowFlags::REPLY)) };
        Self { rules: desk.rules, own: own.with(flags), other: other.with(flags) }
    }

    /// Whether an entry says already what was found out.
    #[inline(always)]
    fn is_said<A: Address>(
        &self,
        desk: &Desk<A>,
        entry: &Remembered<A>,
        (flags, to): (FlowFlags, &Rewrite<A>),
    ) -> bool {
        let destination = if flags.has(FlowFlags::OUT) { &desk.hop } else { &to.destination };
        entry.word.generation() == desk.packet.generation
            // the host's routing may name another uplink by now
            && (!flags.has(FlowFlags::OUT) || entry.ifindex.0 == desk.uplink.0)
            && entry.word.flags().0 & TELLING.0 == flags.0 & TELLING.0
            && (!flags.has(FlowFlags::TRANSLATED)
                || entry.rewrite.source == to.source
                    && entry.rewrite.destination == *destination
                    && entry.rewrite.ports == to.ports)
    }

    /// The entry of the packet's own direction, this packet counted.
    #[inline(always)]
    fn own<A: Address>(&self, desk: &Desk<A>) -> FlowValue<A> {
        let (packet, before) = (&desk.packet, &desk.own);
        let (ifindex, mac) = match packet.key.place.side() {
            Side::From if self.own.has(FlowFlags::OUT) => (desk.uplink, packet.destination_mac),
            Side::From => (desk.destination.ifindex, desk.destination.mac),
            Side::To => (packet.ingress, desk.destination.mac),
        };
        // a new connection on the same ports starts anew
        let (packets, bytes, flags) = before.totals();
        let tcp_flags = if packet.tcp_flags & tcp::SYN != 0 { packet.tcp_flags } else { flags | packet.tcp_flags };
        FlowValue {
            word: Word::new(packet.generation, packet.key.tag(), self.own),
            packets: packets + u64::from(packet.packets),
            bytes: bytes + u64::from(packet.bytes),
            ifindex,
            source_mac: packet.source_mac,
            destination_mac: mac,
            tcp_flags,
            rewrite: desk.wire,
            ..self.entry(desk, before)
        }
    }

    /// The entry of the other direction.
    #[inline(always)]
    fn partner<A: Address>(&self, desk: &Desk<A>) -> FlowValue<A> {
        let (packet, before) = (&desk.packet, &desk.partner);
        let (source_mac, ifindex) = match (packet.key.place.side(), desk.other.place.side()) {
            _ if self.other.has(FlowFlags::OUT) => (desk.destination.mac, desk.uplink),
            (Side::From, Side::From) => (desk.destination.mac, desk.source.ifindex),
            (Side::To, Side::From) => (desk.hook.mac, desk.source.ifindex),
            // the first packet tells where they really come from
            (_, Side::To) => (packet.destination_mac, desk.destination.ifindex),
        };
        FlowValue {
            word: Word::new(packet.generation, desk.other.tag(), self.other),
            ifindex,
            source_mac,
            destination_mac: if self.other.has(FlowFlags::OUT) { desk.hook.host_mac } else { desk.source.mac },
            tcp_flags: if opens(packet.tcp_flags) { 0 } else { before.totals().2 },
            rewrite: Rewrite::of(&packet.key).reversed(),
            ..self.entry(desk, before)
        }
    }

    /// What both directions have in common. Counters go on from what was there.
    #[inline(always)]
    fn entry<A: Address>(&self, desk: &Desk<A>, before: &Remembered<A>) -> FlowValue<A> {
        let packet = &desk.packet;
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
            rewrite: Rewrite::NONE,
            service: desk.service,
        }
    }
}

/// Between an endpoint and the outside, directly: out of the uplink, and from there to the endpoint.
#[inline(always)]
fn past_the_host<A: Address>(desk: &Desk<A>) -> (FlowFlags, FlowFlags) {
    let (out, into) = (FlowFlags::TRANSLATED.with(FlowFlags::OUT), FlowFlags::TRANSLATED.with(FlowFlags::ROUTED));
    if desk.packet.key.place.ifindex().0 == desk.uplink.0 { (into, out) } else { (out, into) }
}

/// Which hook translates which direction: see [`translate`](super::translate).
#[inline(always)]
fn legs<A: Address>(desk: &Desk<A>, flags: FlowFlags) -> (FlowFlags, FlowFlags) {
    let both = (FlowFlags::TRANSLATED, FlowFlags::TRANSLATED);
    if flags.has(FlowFlags::ROUTED) || !matches!(desk.packet.key.place.side(), Side::From) {
        return both;
    }
    // through the stack, and only one address changes: the client's hook translates the answers, too
    if desk.keeps_destination() {
        // an answer, which leaves the backend as it is
        (FlowFlags::UNVOUCHED, FlowFlags::TRANSLATED)
    } else if desk.keeps_source() && desk.destination.is_local() {
        (FlowFlags::TRANSLATED, FlowFlags::UNVOUCHED)
    } else {
        both
    }
}
