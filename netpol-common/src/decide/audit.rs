//! What the policies of both ends would say if the audited ones were enforced, too. Nothing is stopped for it: the
//! connection's entries say so, and their packets are counted.

use super::{
    Action, Desk,
    judge::{self, View},
    opening::Orientation,
};
use crate::{drops::Drop, flow::FlowFlags, kernel::Kernel, wire::Address};

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
    }
    Ok(desk.after_judge())
}
