//! Verdicts become return codes, redirections and counters: here and nowhere else.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_redir_neigh},
    helpers::generated::{bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer},
};
use netpol_common::{
    drops::{Drop, Pass, Side, Verdict, counter, verdict_code},
    flow::Generation,
    kernel::Turnover,
    tables::IfIndex,
    wire::{Address, MacWords},
};

use crate::{family::Maps, frame::Skb, maps};

/// `TCX_NEXT` and `TC_ACT_UNSPEC`: the next program, then the stack.
pub const NEXT: i32 = TC_ACT_UNSPEC;
const DROP: i32 = TC_ACT_SHOT;

/// What becomes of a packet, in one register: the TC action (bits 0-31) and the verdict's code (32-62). The highest bit
/// is set where more is to be done than to count and to return: nothing is decided yet, or the packet is dropped,
/// which somebody may want to hear. One comparison tells that from everything that an established packet meets.
/// (As an enum with fields its undefined parts would be copied about, which the verifier refuses.)
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fate(u64);

impl Fate {
    /// Nothing is decided yet.
    pub const UNDECIDED: Self = Self(u64::MAX);
    /// The same, and there is a valid entry, at which the slow path must look.
    pub const DUE: Self = Self(u64::MAX - 1);
    /// The same, and nothing was looked for: the packet is not of the usual kind.
    pub const UNUSUAL: Self = Self(u64::MAX - 2);

    /// The highest bit; a counter's number has no room for it.
    const UNSETTLED: u64 = 1 << 63;

    #[inline(always)]
    pub const fn is_open(self) -> bool {
        self.0 >= Self::UNUSUAL.0
    }

    /// Decided, and not dropped.
    #[inline(always)]
    pub const fn is_settled(self) -> bool {
        self.0 & Self::UNSETTLED == 0
    }

    /// The code of a dropped packet's reason.
    #[inline(always)]
    pub const fn reason(self) -> u32 {
        ((self.0 >> 32) as u32 & 0xff).wrapping_sub(verdict_code(Err(Drop::PolicyEgress)))
    }

    /// In a register, between functions.
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        self.0
    }

    /// The reverse of [`Fate::pack`].
    #[inline(always)]
    pub const fn unpack(packed: u64) -> Self {
        Self(packed)
    }

    #[inline(always)]
    const fn new(action: i32, verdict: Verdict) -> Self {
        Self((verdict_code(verdict) as u64) << 32 | action as u32 as u64)
    }

    #[inline(always)]
    pub const fn dropped(reason: Drop) -> Self {
        Self(Self::new(DROP, Err(reason)).0 | Self::UNSETTLED)
    }

    /// On to the next program and the host's stack.
    #[inline(always)]
    pub const fn passed(pass: Pass) -> Self {
        Self::new(NEXT, Ok(pass))
    }

    /// Into the namespace behind the interface, over the same bridge.
    #[inline(always)]
    pub fn direct(skb: Skb, interface: IfIndex) -> Self {
        Self::redirected(skb, interface, Pass::Direct)
    }

    /// The same, with a next hop's MAC address, as the host would have routed.
    #[inline(always)]
    pub fn routed(skb: Skb, interface: IfIndex, mac: MacWords) -> Self {
        if !skb.address_to(mac) {
            return Self::dropped(Drop::Delivery);
        }
        Self::redirected(skb, interface, Pass::Routed)
    }

    /// Dropped, and an answer is in its place: into the namespace behind the interface, or out of it.
    #[inline(always)]
    pub fn answered(skb: Skb, interface: IfIndex, is_workload: bool, reason: Drop) -> Self {
        skb.clear_mark();
        // SAFETY: no pointers.
        let action =
            unsafe { if is_workload { bpf_redirect_peer(interface.0, 0) } else { bpf_redirect(interface.0, 0) } };
        Self(Self::new(action as i32, Err(reason)).0 | Self::UNSETTLED)
    }

    /// Out of an uplink, to the next hop on the desk, as an entry of this generation says; an unspecified one costs a search
    /// for the route.
    #[inline(always)]
    pub fn out<F: Maps>(skb: Skb, uplink: IfIndex, generation: Generation) -> Self {
        const SIZE: i32 = size_of::<bpf_redir_neigh>() as i32;
        let Some(desk) = F::desk() else { return Self::dropped(Drop::Delivery) };
        skb.leaves_by(uplink, generation);
        // SAFETY: this CPU's desk, with a next hop as large as the kernel wants it, or none.
        let action = unsafe {
            let next = &raw mut (*desk).next;
            if (*next).address.is_unspecified() {
                bpf_redirect_neigh(uplink.0, core::ptr::null_mut(), 0, 0)
            } else {
                bpf_redirect_neigh(uplink.0, next.cast(), SIZE, 0)
            }
        } as i32;
        if action == DROP { Self::dropped(Drop::Delivery) } else { Self::new(action, Ok(Pass::Out)) }
    }

    /// Into the namespace behind the interface, as it is.
    #[inline(always)]
    pub fn redirected(skb: Skb, interface: IfIndex, pass: Pass) -> Self {
        skb.clear_mark();
        // SAFETY: no pointers. It refuses flags only; a target that is gone is found out later.
        let action = unsafe { bpf_redirect_peer(interface.0, 0) } as i32;
        if action == DROP { Self::dropped(Drop::Delivery) } else { Self::new(action, Ok(pass)) }
    }
}

/// Ends a packet's way through the program.
#[inline(always)]
pub fn finish(skb: Skb, side: Side, fate: Fate) -> i32 {
    count(skb, counter(side, (fate.0 >> 32) as u32));
    fate.0 as u32 as i32
}

/// Ends a packet's way at an uplink. What the stack brings there or takes from there is counted at the workload's
/// interface. To endpoints is their ingress, wherever it is seen.
#[inline(always)]
pub fn finish_uplink(skb: Skb, side: Side, fate: Fate) -> i32 {
    const STACK: u32 = verdict_code(Ok(Pass::Stack));
    let verdict = (fate.0 >> 32) as u32;
    if verdict != STACK {
        count(skb, counter(side.opposite(), verdict));
    }
    fate.0 as u32 as i32
}

#[inline(always)]
pub fn count(skb: Skb, index: u32) {
    let Some(count) = maps::COUNTS.get_ptr_mut(index) else { return };
    // SAFETY: this CPU's element; classifiers are not preempted by one another on a CPU.
    unsafe {
        (*count).packets += u64::from(skb.packets());
        (*count).bytes += u64::from(skb.bytes());
    }
}

/// Counts what becomes of what is remembered.
#[inline(always)]
pub fn tally<A: Address>(what: Turnover) {
    let Some(count) = maps::TURNOVER.get_ptr_mut(what.place::<A>()) else { return };
    // SAFETY: as in `count`.
    unsafe { *count += 1 }
}
