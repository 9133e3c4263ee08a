//! At an uplink: what leaves a pool gets the uplink's address, and what comes for a published address goes to a
//! backend. Nothing is judged here: that happens at the workloads' own interfaces.

use super::{
    Action, Desk, find,
    translate::{Translated, claim, resolve},
};
use crate::{
    drops::{Drop, Side},
    flow::{FlowFlags, FlowValue, PackedRule, Word},
    kernel::{Kernel, Settings},
    nat::Zone,
    tables::{AddressFlags, IfIndex, Network, RuleId},
    wire::{Address, MacWords},
};

/// Decides about the packet on the desk, which passes an uplink. [`Action::Untouched`]: it is none of ours.
///
/// # Errors
///
/// [`Drop::NoBackend`], [`Drop::Translation`].
#[inline(always)]
pub fn decide_uplink<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>) -> Result<Action, Drop> {
    if !desk.packet.settings.has(Settings::TRANSLATE) {
        return Ok(Action::Untouched);
    }
    let side = desk.packet.key.place.side();
    let translated = match resolve(kernel, desk, Zone::UPLINKS)? {
        Translated::No if matches!(side, Side::To) => masquerade(kernel, desk)?,
        translated => translated,
    };
    match translated {
        Translated::No => return Ok(Action::Untouched),
        Translated::New => {
            // answers of a backend elsewhere would never pass here
            if matches!(side, Side::From) && find(kernel, Network::SHARED, desk.wire.destination).is_none() {
                return Err(Drop::NoBackend);
            }
            claim(kernel, desk)?;
        }
        Translated::Original | Translated::Reply => {}
    }
    let is_reply = translated == Translated::Reply;
    let flags = if is_reply { FlowFlags::TRANSLATED.with(FlowFlags::REPLY) } else { FlowFlags::TRANSLATED };
    let packet = &desk.packet;
    let before = kernel.recall(&packet.key);
    let (packets, bytes, tcp_flags) = before.totals();
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

/// What a pool's address sends out of all pools.
#[inline(always)]
fn masquerade<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>) -> Result<Translated, Drop> {
    let key = &desk.packet.key;
    let from_pool = find(kernel, Network::SHARED, key.source).is_some_and(|value| value.flags.has(AddressFlags::MASQUERADE));
    if !from_pool || kernel.is_pooled(&key.destination) {
        return Ok(Translated::No);
    }
    let address = kernel.uplink(key.place.ifindex());
    if address.is_unspecified() {
        return Err(Drop::Translation);
    }
    desk.wire.source = address;
    Ok(Translated::New)
}
