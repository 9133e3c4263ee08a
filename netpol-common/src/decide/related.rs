//! ICMP errors: judged by the packet that they quote.

use super::{
    Action, Desk,
    ends::{ends, find, other_place, receiver},
};
use crate::{
    drops::{Drop, Side},
    flow::{Place, Rewrite},
    guard,
    kernel::Kernel,
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
    let entry = kernel.recall(&desk.other.at(sender));
    if entry.word.generation() == desk.packet.generation { Ok(Action::Related) } else { Err(Drop::IcmpUnrelated) }
}
