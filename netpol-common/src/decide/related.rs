//! ICMP errors: judged by the packet that they quote.

use super::{
    Action, Desk,
    ends::{ends, find, other_place, receiver},
};
use crate::{
    drops::{Drop, Side},
    flow::{FlowFlags, Place, Rewrite},
    guard,
    kernel::{Kernel, Settings},
    nat::{NatKey, Zone},
    tables::IfIndex,
    wire::Address,
};

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
    desk.hook.copy_from(hook);
    desk.wire = Rewrite::of(&desk.packet.key);
    ends(kernel, desk, hook)?;
    receiver(kernel, desk, hook);
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
    desk.own = kernel.recall(&desk.other.at(sender));
    if desk.own.word.generation() == desk.packet.generation {
        return Ok(Action::Related);
    }
    // what came directly from an uplink was seen there; the workload's own hook knows its answers
    if let Side::From = desk.packet.key.place.side() {
        desk.own = kernel.recall(&desk.other.reversed(Place::new(own, Side::From)));
        if desk.own.word.generation() == desk.packet.generation && desk.own.word.flags().has(FlowFlags::OUT) {
            return Ok(Action::Related);
        }
    }
    if desk.packet.settings.has(Settings::TRANSLATE) && translate(kernel, desk, Zone::of(hook.network)) {
        // who has sent the packet inside may be behind a translation, too
        let sender = match (desk.packet.key.place.side(), find(kernel, hook.network, desk.quoted.source)) {
            (Side::From, Some(value)) if value.ifindex != IfIndex::NONE => {
                desk.destination.copy_from(value);
                Place::new(value.ifindex, Side::From)
            }
            _ => sender,
        };
        desk.own = kernel.recall(&desk.other.rewritten(&desk.quoted).at(sender));
        if desk.own.word.generation() == desk.packet.generation {
            return Ok(Action::Translated);
        }
    }
    Err(Drop::IcmpUnrelated)
}

/// An ICMP error that passes an uplink: about a translated packet, it must find who has sent that.
#[inline(always)]
pub fn decide_uplink_error<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>) -> Result<Action, Drop> {
    Ok(if translate(kernel, desk, Zone::UPLINKS) { Action::Translated } else { Action::Untouched })
}

/// What an error must quote, and from whom to whom it must be, where the packet inside was translated (RFC 5508 section
/// 4): the answers to that packet have a translation, and the error takes their way.
#[inline(always)]
fn translate<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>, zone: Zone) -> bool {
    desk.original = NatKey::reply(&Rewrite::of(&desk.other), desk.other.protocol, zone);
    if !kernel.translation(&desk.original, &mut desk.half) {
        return false;
    }
    desk.quoted = desk.half.rewrite.reversed();
    // what its receiver has to say about itself; a router on the way speaks for itself
    let is_receivers = desk.packet.key.source == desk.other.destination;
    desk.wire = Rewrite {
        source: if is_receivers { desk.quoted.destination } else { desk.packet.key.source },
        destination: desk.quoted.source,
        ports: desk.packet.key.ports,
    };
    true
}
