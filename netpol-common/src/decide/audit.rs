//! What the policies of both ends would say if the audited ones were enforced, too. Nothing is stopped for it: the
//! connection's entries say so, and their packets are counted.

use super::{
    Action, Desk,
    judge::{self, View},
    opening::Orientation,
};
use crate::{
    drops::{Drop, Side},
    flow::{FlowFlags, Place},
    kernel::{Kernel, Settings},
    nat::{NatKey, Zone},
    wire::Address,
};

/// A stage of its own, after [`judge`](super::judge) has allowed the packet on the desk. [`Action::Settle`], or
/// [`Action::Claim`] before that.
///
/// # Errors
///
/// None: stages have one type.
#[inline(always)]
pub fn audit<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>) -> Result<Action, Drop> {
    let orientation = if desk.flags.has(FlowFlags::REPLY) {
        Orientation::Reply
    } else if desk.flags.has(FlowFlags::UNCLEAR) {
        Orientation::Unclear
    } else {
        Orientation::Forward
    };
    if let Err(denial) = judge::judge(kernel, desk, orientation, View::AUDITED) {
        desk.flags = desk.flags.with(FlowFlags::AUDITED);
        if matches!(denial.reason, Drop::PolicyEgress) {
            desk.flags = desk.flags.with(FlowFlags::EGRESS_DENIED);
            desk.rules.egress = denial.rule;
        } else {
            desk.rules.ingress = denial.rule;
        }
        if is_counted(kernel, desk) {
            desk.flags = desk.flags.with(FlowFlags::COUNTED);
        }
    }
    Ok(desk.after_judge())
}

/// Whether the sender's own hook has marked the packet just before: what passes two hooks counts once.
#[inline(always)]
fn is_counted<A: Address, K: Kernel<A>>(kernel: &K, desk: &mut Desk<A>) -> bool {
    if !matches!(desk.packet.key.place.side(), Side::To) || !desk.source.is_local() {
        return false;
    }
    let place = Place::new(desk.source.ifindex, Side::From);
    desk.sent = kernel.recall(&desk.packet.key.at(place));
    if !desk.sent.exists() && desk.packet.settings.has(Settings::TRANSLATE) {
        // it was to a service when it passed there
        desk.original = NatKey::of(&desk.other, Zone::of(desk.hook.network));
        kernel.translation(&desk.original, &mut desk.half);
        if !desk.half.is_reply() {
            return false;
        }
        desk.sent = kernel.recall(&desk.other.rewritten(&desk.half.rewrite).reversed(place));
    }
    desk.sent.word.generation() == desk.packet.generation && desk.sent.word.flags().has(FlowFlags::AUDITED)
}
