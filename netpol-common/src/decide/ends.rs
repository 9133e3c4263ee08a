//! Who the two ends of a packet are, and whether they may say so: an address proves nothing, the interface does.

use super::Desk;
use crate::{
    drops::{Drop, Side},
    flow::{FlowKey, Place, seconds},
    kernel::{Kernel, Settings},
    nat::{NatKey, Zone},
    tables::{AddressFlags, AddressKey, AddressValue, HookValue, Identity, IfIndex, Network},
    wire::{Address, MacWords},
};

/// One end of a packet: what the tables say of its address.
pub(super) type End = AddressValue;

impl AddressValue {
    /// Who is not in the tables. Nobody's MAC address is asked for; the one given is as good as any (and clearing six
    /// bytes would be a call of `memset`).
    #[inline(always)]
    pub(super) const fn elsewhere(identity: Identity, flags: AddressFlags, mac: MacWords) -> Self {
        Self { identity, ifindex: IfIndex::NONE, segment: 0, mac, flags }
    }

    /// Whether it is an endpoint here.
    #[inline(always)]
    pub(super) const fn is_local(&self) -> bool {
        self.ifindex.0 != IfIndex::NONE.0
    }
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
pub(super) fn outside<A: Address, K: Kernel<A>>(kernel: &K, address: &A, otherwise: Identity) -> Identity {
    match kernel.network(address) {
        Some(identity) => *identity,
        None => otherwise,
    }
}

/// Finds out who has sent the packet, and whether it may reach whom it reaches here.
///
/// What a workload sends must come from its own address and MAC address; what would reach it must go to
/// its own address, or to a group.
#[inline(always)]
pub(super) fn ends<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>, hook: &HookValue) -> Result<(), Drop> {
    let packet = &desk.packet;
    let own = packet.key.place.ifindex();
    match packet.key.place.side() {
        Side::From => {
            // nearly always its first address, of which the hook knows what the table does
            if let Some((address, value)) = hook.own::<A>(own)
                && address == packet.key.source
                && value.mac == packet.source_mac
            {
                desk.source.copy_from(&value);
                return Ok(());
            }
            let Some(source) = find(kernel, hook.network, packet.key.source) else { return Err(Drop::Spoofed) };
            if source.ifindex != own || source.mac != packet.source_mac {
                return Err(Drop::Spoofed);
            }
            desk.source.copy_from(source);
        }
        Side::To => {
            desk.destination = match find(kernel, hook.network, packet.key.destination) {
                Some(value) if value.ifindex == own => *value,
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

/// Finds out who gets what a workload sends: behind a service, one of its backends.
#[inline(always)]
pub(super) fn receiver<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>, hook: &HookValue) {
    if let Side::To = desk.packet.key.place.side() {
        return;
    }
    desk.destination = match find(kernel, hook.network, desk.wire.destination) {
        Some(value) => *value,
        None => End::elsewhere(
            outside(kernel, &desk.wire.destination, Identity::WORLD),
            AddressFlags(0),
            desk.packet.source_mac,
        ),
    };
}

/// Who sent a packet that reaches a workload: the kernel knows where it came from, the address alone
/// proves nothing.
#[inline(always)]
pub(super) fn source_of<A: Address, K: Kernel<A>>(
    kernel: &K,
    desk: &mut Desk<A>,
    hook: &HookValue,
) -> Result<End, Drop> {
    let packet = &desk.packet;
    let known = find(kernel, hook.network, packet.key.source);
    if packet.ingress == IfIndex::NONE {
        return match known {
            // a local process with a container's address
            Some(value) if value.ifindex != IfIndex::NONE => Err(Drop::Spoofed),
            Some(value) => Ok(*value),
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
    if vouched { Ok(*value) } else { Err(Drop::Spoofed) }
}

/// A packet of a local workload that the host has routed: the kernel names the bridge that it came
/// over, and the workload's own hook has seen and remembered it just before. An ICMP error makes no flow:
/// the answers to the packet inside stand for it.
#[inline(always)]
fn routed_from<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>, sender: IfIndex) -> bool {
    if kernel.hook(sender).is_none_or(|hook| hook.master != desk.packet.ingress) {
        return false;
    }
    let place = Place::new(sender, Side::From);
    let sent = desk.other.reversed(place);
    if passed(kernel, desk, &sent) {
        return true;
    }
    if !desk.packet.settings.has(Settings::TRANSLATE) {
        return false;
    }
    // it was to a service when its own hook saw it
    desk.original = NatKey::of(&desk.other, Zone::of(desk.hook.network));
    kernel.translation(&desk.original, &mut desk.half);
    let sent = desk.other.rewritten(&desk.half.rewrite).reversed(place);
    desk.half.is_reply() && passed(kernel, desk, &sent)
}

/// Whether a packet of this flow has just passed its hook.
#[inline(always)]
fn passed<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>, key: &FlowKey<A>) -> bool {
    desk.sent = kernel.recall(key);
    let Desk { sent, packet, .. } = desk;
    // its own hook may have read the generation just before a publication
    sent.exists() && sent.word.generation().0 + 1 >= packet.generation.0 && packet.now.since(sent.seen) <= seconds(1)
}

/// Where the packets of the other direction pass: at the other end's interface if that is here, on
/// the same side, else at this one, on the other side.
#[inline(always)]
pub(super) fn other_place<A: Address>(desk: &Desk<A>) -> Place {
    let place = desk.packet.key.place;
    match place.side() {
        Side::From if desk.destination.is_local() => Place::new(desk.destination.ifindex, Side::From),
        Side::From => Place::new(place.ifindex(), Side::To),
        // the client's own hook translates both ways
        Side::To if desk.is_rewritten() => Place::new(place.ifindex(), Side::From),
        Side::To if desk.source.is_local() => Place::new(desk.source.ifindex, Side::To),
        Side::To => Place::new(place.ifindex(), Side::From),
    }
}
