//! At an uplink: what leaves a pool gets the uplink's address, and what comes for a published address goes to a
//! backend. Nothing is judged here: that happens at the workloads' own interfaces.

use super::{
    Action, Desk, find,
    translate::{Translated, claim, resolve},
};
use crate::{
    drops::{Drop, Side},
    flow::{FlowFlags, FlowKey, FlowValue, PackedRule, Word},
    kernel::Kernel,
    nat::Zone,
    tables::{AddressFlags, IfIndex, Network, RuleId},
    wire::{Address, MacWords, Protocol},
};

/// Decides about the packet on the desk, which passes an uplink: all stages in turn. [`Action::Untouched`]: it is none
/// of ours.
///
/// # Errors
///
/// [`Drop::NoBackend`], [`Drop::Translation`], [`Drop::FlowTable`].
pub fn decide_uplink<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>) -> Result<Action, Drop> {
    let mut action = identify_uplink(kernel, desk)?;
    if action == Action::Claim {
        claim(kernel, desk)?;
        action = Action::Settle;
    }
    if action == Action::Settle { settle_uplink(kernel, desk) } else { Ok(action) }
}

/// The first stage: what becomes of the packet. [`Action::Untouched`], [`Action::Settle`], or [`Action::Claim`] before
/// that.
///
/// # Errors
///
/// The reason to drop the packet.
#[inline(always)]
pub fn identify_uplink<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>) -> Result<Action, Drop> {
    let side = desk.packet.key.place.side();
    let translated = match resolve(kernel, desk, Zone::UPLINKS)? {
        Translated::No => match side {
            Side::To => masquerade(kernel, desk)?,
            Side::From => as_it_is(kernel, desk),
        },
        translated => translated,
    };
    desk.translated = translated as u32;
    Ok(match translated {
        Translated::No => Action::Untouched,
        // answers of a backend elsewhere would never pass here
        Translated::New
            if matches!(side, Side::From) && find(kernel, Network::SHARED, desk.wire.destination).is_none() =>
        {
            return Err(Drop::NoBackend);
        }
        Translated::New => Action::Claim,
        Translated::Original | Translated::Reply => Action::Settle,
    })
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

/// Who comes from outside to a pool's own address is answered from it: a pair that changes nothing says so.
#[inline(always)]
fn as_it_is<A: Address, K: Kernel<A>>(kernel: &K, desk: &Desk<A>) -> Translated {
    let FlowKey { source, destination, .. } = desk.packet.key;
    let is_ours = !desk.packet.destination_mac.is_group() && is_masqueraded(kernel, destination);
    // what stays among pools keeps its addresses anyway
    if is_ours && !kernel.is_pooled(&source) { Translated::New } else { Translated::No }
}

#[inline(always)]
fn is_masqueraded<A: Address, K: Kernel<A>>(kernel: &K, address: A) -> bool {
    find(kernel, Network::SHARED, address).is_some_and(|value| value.flags.has(AddressFlags::MASQUERADE))
}

/// What a pool's address sends out of all pools.
#[inline(always)]
fn masquerade<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>) -> Result<Translated, Drop> {
    let key = &desk.packet.key;
    if !is_masqueraded(kernel, key.source) || kernel.is_pooled(&key.destination) {
        return Ok(Translated::No);
    }
    let address = kernel.uplink(key.place.ifindex());
    // of other protocols (tunnels, SCTP) nothing tells the answers from what is for the host itself
    let has_a_claim = matches!(key.protocol(), Protocol::TCP | Protocol::UDP) || key.protocol.asks();
    if address.is_unspecified() || !has_a_claim {
        return Err(Drop::Translation);
    }
    desk.wire.source = address;
    Ok(Translated::New)
}
