//! At an uplink: what leaves a pool gets the uplink's address, and what comes for a published address goes to a
//! backend. What is for an endpoint here is judged, so that it can be delivered directly; what an endpoint sends was judged
//! at its own interface.

use super::{
    Action, Desk,
    ends::{End, find, outside},
    judged, settle,
    translate::{Translated, is_backend, recalled, resolve},
};
use crate::{
    drops::{Drop, Side},
    flow::{FlowFlags, FlowKey, FlowValue, PackedRule, Place, Word},
    kernel::{Kernel, Settings, Way},
    nat::{NatKey, Zone},
    tables::{AddressFlags, Identity, IfIndex, Network, RuleId},
    wire::{Address, MacWords, Protocol},
};

/// Decides about the packet on the desk, which passes an uplink: all stages in turn. [`Action::Untouched`]: it is none
/// of ours.
///
/// # Errors
///
/// The reason to drop the packet.
pub fn decide_uplink<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>) -> Result<Action, Drop> {
    let action = identify_uplink(kernel, desk)?;
    match judged(kernel, desk, action)? {
        Action::Settle if desk.is_direct() => settle(kernel, desk),
        Action::Settle => settle_uplink(kernel, desk),
        action => Ok(action),
    }
}

/// The first stage: what becomes of the packet. [`Action::Untouched`]; [`Action::Judge`] where an endpoint here gets it;
/// else [`Action::Settle`], or [`Action::Claim`] before that.
///
/// # Errors
///
/// The reason to drop the packet.
#[inline(always)]
pub fn identify_uplink<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>) -> Result<Action, Drop> {
    let place = desk.packet.key.place;
    desk.uplink = IfIndex::NONE;
    let translated = match place.side() {
        Side::To => translate_out(kernel, desk, place.ifindex())?,
        Side::From => match resolve(kernel, desk, Zone::UPLINKS)? {
            Translated::No => as_it_is(kernel, desk),
            translated => translated,
        },
    };
    desk.translated = translated as u32;
    match (translated, place.side()) {
        (Translated::No, _) => Ok(Action::Untouched),
        (_, Side::From) => arrive(kernel, desk, translated),
        (Translated::New, Side::To) => Ok(Action::Claim),
        (_, Side::To) => Ok(Action::Settle),
    }
}

/// What leaves by an uplink: it is of a pair, or gets the uplink's address.
#[inline(always)]
pub(super) fn translate_out<A: Address, K: Kernel<A>>(
    kernel: &K,
    desk: &mut Desk<A>,
    uplink: IfIndex,
) -> Result<Translated, Drop> {
    match recalled(kernel, desk, Zone::UPLINKS)? {
        Translated::No => masquerade(kernel, desk, uplink),
        translated => Ok(translated),
    }
}

/// Who gets what comes from outside. An endpoint's policy is asked here already: what it does not allow makes no pair.
#[inline(always)]
fn arrive<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>, translated: Translated) -> Result<Action, Drop> {
    let place = desk.packet.key.place;
    let receiver = match find(kernel, Network::SHARED, desk.wire.destination) {
        Some(value) if value.ifindex != IfIndex::NONE => value,
        // an address of the host's own
        Some(value) => {
            desk.destination.copy_from(value);
            return Ok(if translated == Translated::New { Action::Claim } else { Action::Settle });
        }
        // answers of a backend elsewhere would never pass here
        None if translated == Translated::New => return Err(Drop::NoBackend),
        None => return Ok(Action::Settle),
    };
    // who is here does not come from outside
    if find(kernel, Network::SHARED, desk.packet.key.source).is_some() {
        return Err(Drop::Spoofed);
    }
    let Some(hook) = kernel.hook(receiver.ifindex) else { return Err(Drop::NoPolicy) };
    desk.hook.copy_from(hook);
    desk.destination.copy_from(receiver);
    let identity = outside(kernel, &desk.packet.key.source, Identity::WORLD);
    desk.source = End::elsewhere(identity, AddressFlags(0), desk.packet.source_mac);
    let arriving = desk.packet.key.rewritten(&desk.wire);
    // An answer of a service's backend outside: the endpoint's own hook has that translation. (Each look for one costs a miss
    // of the caches. What is no reply here can only pass for one, where a backend sends it.)
    desk.reply = NatKey::of(&arriving, Zone::of(hook.network));
    let is_answer = (translated == Translated::Reply
        || is_backend(kernel, desk, (arriving.source, arriving.ports.source())))
        && kernel.translation(&desk.reply, &mut desk.half);
    desk.other = arriving.reversed(place);
    let may_be_direct =
        !is_answer && receiver.flags.has(AddressFlags::OUTWARD) && !desk.packet.settings.has(Settings::STACK);
    let back = if may_be_direct { kernel.route(&desk.other, hook.router(receiver.ifindex)) } else { Way::NONE };
    desk.hop = back.hop;
    let is_direct = may_be_direct
        // what the host would answer elsewhere, or would not, it may not take either
        && back.interface == place.ifindex()
        // nor what it would bring elsewhere, or by a way that takes less
        && kernel.route(&arriving, place.ifindex()).interface == hook.router(receiver.ifindex);
    let back = if is_direct {
        desk.uplink = place.ifindex();
        Place::new(receiver.ifindex, Side::From)
    } else {
        Place::new(place.ifindex(), Side::To)
    };
    desk.other = arriving.reversed(back);
    desk.is_elsewhere = false;
    Ok(Action::Judge)
}

/// The last: what is remembered of the packet's direction.
///
/// # Errors
///
/// [`Drop::FlowTable`].
#[inline(always)]
pub fn settle_uplink<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>) -> Result<Action, Drop> {
    let side = desk.packet.key.place.side();
    let is_reply = desk.translated == Translated::Reply as u32;
    let flags = if is_reply { FlowFlags::TRANSLATED.with(FlowFlags::REPLY) } else { FlowFlags::TRANSLATED };
    let packet = &desk.packet;
    desk.own = kernel.recall(&packet.key);
    let (packets, bytes, tcp_flags) = desk.own.totals();
    desk.value = FlowValue {
        word: Word::new(packet.generation, packet.key.tag(), flags),
        packets: packets + u64::from(packet.packets),
        bytes: bytes + u64::from(packet.bytes),
        seen: packet.now,
        judged: packet.now,
        ifindex: match side {
            Side::From => IfIndex::NONE,
            Side::To => packet.ingress,
        },
        source_mac: packet.source_mac,
        destination_mac: MacWords::ZERO,
        egress_rule: PackedRule::new(RuleId::NONE),
        ingress_rule: PackedRule::new(RuleId::NONE),
        tcp_flags: tcp_flags | packet.tcp_flags,
        reserved: 0,
        rewrite: desk.wire,
        service: desk.service,
    };
    kernel.remember(&desk.packet.key, &desk.value)?;
    Ok(Action::Remembered)
}

/// Whether what an endpoint sends leaves by an uplink directly, translated there alone, and its own hook may still take the
/// answers for a service's: a backend sends them, or the uplink had the pair already, perhaps a service's.
#[inline(always)]
pub(super) fn departs_like_a_services<A: Address, K: Kernel<A>>(kernel: &K, desk: &Desk<A>) -> bool {
    let FlowKey { destination, ports, place, .. } = &desk.packet.key;
    desk.is_direct()
        && desk.uplink != place.ifindex()
        && (desk.translated == Translated::Original as u32
            || is_backend(kernel, desk, (*destination, ports.destination())))
}

/// Who comes from outside to a pool's own address is answered from it: a pair that changes nothing says so. So does one to
/// any endpoint's, where the answers would be a translation's: it gets another port.
#[inline(always)]
fn as_it_is<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>) -> Translated {
    let FlowKey { source, destination, protocol, .. } = desk.packet.key;
    let Some(value) = find(kernel, Network::SHARED, destination) else { return Translated::No };
    if desk.packet.destination_mac.is_group() || value.ifindex == IfIndex::NONE {
        return Translated::No;
    }
    // what stays among pools keeps its addresses anyway
    if value.flags.has(AddressFlags::MASQUERADE) && !kernel.is_pooled(&source) {
        return Translated::New;
    }
    desk.reply = NatKey::reply(&desk.wire, protocol, Zone::UPLINKS);
    kernel.translation(&desk.reply, &mut desk.half);
    if desk.half.is_reply() { Translated::New } else { Translated::No }
}

#[inline(always)]
fn is_masqueraded<A: Address, K: Kernel<A>>(kernel: &K, address: A) -> bool {
    find(kernel, Network::SHARED, address).is_some_and(|value| value.flags.has(AddressFlags::MASQUERADE))
}

/// What a pool's address sends out of all pools.
#[inline(always)]
fn masquerade<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>, uplink: IfIndex) -> Result<Translated, Drop> {
    let key = &desk.packet.key;
    if !is_masqueraded(kernel, key.source) || kernel.is_pooled(&key.destination) {
        return Ok(Translated::No);
    }
    let address = kernel.uplink(uplink);
    // of other protocols (tunnels, SCTP) nothing tells the answers from what is for the host itself
    let has_a_claim = matches!(key.protocol(), Protocol::TCP | Protocol::UDP) || key.protocol.asks();
    if address.is_unspecified() || !has_a_claim {
        return Err(Drop::Translation);
    }
    desk.wire.source = address;
    Ok(Translated::New)
}
