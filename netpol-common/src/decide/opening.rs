//! Who opened the connection: the policy is asked about that direction, whichever way a packet goes.

use super::{Desk, Known, Packet, translate::Translated};
use crate::{
    drops::Side,
    flow::{FlowFlags, Place, seconds},
    kernel::{Kernel, Remembered, Settings},
    parse::tcp,
    wire::{Address, PortBe, Protocol},
};

/// Who opened the connection that a packet belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Orientation {
    /// Its sender.
    Forward,
    /// Its receiver.
    Reply,
    /// It is in the middle of a connection of which nothing is known.
    Unclear,
}

/// What is known of both directions; nothing answers a group as the group.
#[inline(always)]
pub(super) fn recall<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>, translated: Translated) {
    desk.own.forget();
    desk.partner.forget();
    desk.sent.forget();
    // what there may be is of another connection
    if translated == Translated::New {
        return;
    }
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

/// Whether the interface may open one more flow now.
#[inline(always)]
pub(super) fn may_open<A: Address, K: Kernel<A>>(kernel: &K, packet: &Packet<A>) -> bool {
    packet.settings.has(Settings::UNLIMITED)
        || matches!(packet.key.place.side(), Side::To)
        || kernel.admit(packet.key.place.ifindex(), packet.now)
}

/// How long a silent connection is remembered. TCP's only a SYN ends: who opened must not be forgotten
/// because somebody forged a RST and fell silent.
#[inline(always)]
pub(super) const fn timeout(protocol: Protocol) -> u32 {
    match protocol {
        Protocol::TCP => u32::MAX,
        Protocol::ICMP | Protocol::ICMPV6 => seconds(30),
        Protocol::UDP => seconds(180),
        _ => seconds(600),
    }
}

/// Nothing, for an entry of a generation that is yet to come for this packet.
#[inline(always)]
pub(super) fn past<A: Address>(entry: Remembered<A>, packet: &Packet<A>) -> Remembered<A> {
    if entry.word.generation().0 <= packet.generation.0 { entry } else { Remembered::NOTHING }
}

/// Neither half has seen a packet for too long.
#[inline(always)]
pub(super) fn is_idle<A: Address>(desk: &Desk<A>) -> bool {
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
pub const fn opens(tcp_flags: u8) -> bool {
    tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN
}

#[inline(always)]
pub(super) fn orientation<A: Address>(desk: &Desk<A>, translated: Translated) -> Orientation {
    let Desk { packet, own, partner, sent, .. } = desk;
    let is_tcp = packet.key.protocol() == Protocol::TCP;
    // only a plain SYN opens, and whoever sends it opens
    if is_tcp && opens(packet.tcp_flags) {
        return Orientation::Forward;
    }
    // only a request asks, whatever passed before
    if packet.key.protocol().is_icmp() {
        return if packet.key.protocol.answers() { Orientation::Reply } else { Orientation::Forward };
    }
    match translated {
        Translated::Original | Translated::New => return Orientation::Forward,
        Translated::Reply => return Orientation::Reply,
        Translated::No => {}
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
pub(super) const fn of_entry(flags: FlowFlags, same_direction: bool) -> Orientation {
    if flags.has(FlowFlags::UNCLEAR) {
        Orientation::Unclear
    } else if flags.has(FlowFlags::REPLY) == same_direction {
        Orientation::Reply
    } else {
        Orientation::Forward
    }
}

/// Linux gives clients ports from here on (`net.ipv4.ip_local_port_range`).
pub(super) const EPHEMERAL: u16 = 32768;
