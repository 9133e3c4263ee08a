//! The hop that the host would have been: what leaves by an uplink directly is treated as the host's routing would.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{BPF_F_RECOMPUTE_CSUM, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_check_mtu_flags},
    helpers::generated::{bpf_check_mtu, bpf_fib_lookup, bpf_skb_store_bytes},
};
use netpol_common::{
    drops::Drop,
    flow::FlowKey,
    headers::{HopWord, View as _},
    kernel::Way,
    parse::{Family, NETWORK},
    tables::IfIndex,
    wire::MacWords,
};

use crate::{family::Maps, frame::Skb, tables::uplink};

/// The way that the host would route a packet; [`Way::NONE`]: none, it does not forward, or the route takes less than the uplink
/// does by which the packet leaves or has come.
#[inline(always)]
pub fn route<F: Maps>(skb: Skb, slot: u32, key: &FlowKey<F::Address>, from: IfIndex) -> Way<F::Address> {
    let (way, takes) = look::<F>(skb, key, (from, SMALLEST));
    // each packet is compared with the uplink's size alone
    match uplink(slot, way.interface).or_else(|| uplink(slot, from)) {
        Some(uplink) if u32::from(takes) < uplink.mtu => look::<F>(skb, key, (from, uplink.mtu as u16)).0,
        _ => way,
    }
}

/// In bytes: no route takes less. (0 would ask about the packet at hand.)
const SMALLEST: u16 = 1;

/// The way of a packet of so many bytes, and how many it takes; of a neighbour that the host does not know the kernel does
/// not say that, and it is what was asked.
#[inline(always)]
fn look<F: Maps>(skb: Skb, key: &FlowKey<F::Address>, (from, bytes): (IfIndex, u16)) -> (Way<F::Address>, u16) {
    let mut room = MaybeUninit::uninit();
    let asked = F::question(&mut room, key);
    asked.ifindex = from.0;
    asked.__bindgen_anon_1.tot_len = bytes;
    let size = size_of_val(asked) as i32;
    // SAFETY: a live context, and a whole structure that the kernel may write to.
    let answer = unsafe { bpf_fib_lookup(skb.0.cast(), &raw mut *asked, size, 0) } as u32;
    // SAFETY: integers.
    let takes = unsafe { asked.__bindgen_anon_1.mtu_result };
    let (interface, hop) = (IfIndex(asked.ifindex), F::answer(asked));
    match answer {
        BPF_FIB_LKUP_RET_SUCCESS => (Way { interface, hop, next: asked.dmac.into() }, takes),
        // no obstacle: the kernel asks for it when the packet is there
        BPF_FIB_LKUP_RET_NO_NEIGH => (Way { interface, hop, next: MacWords::ZERO }, takes),
        _ => (Way::NONE, takes),
    }
}

/// Whether a packet has a hop to lose, and is not too large for the uplink.
#[inline(always)]
pub fn may_leave<F: Maps>(skb: Skb, uplink: IfIndex) -> bool {
    let Ok(word) = skb.linear().read::<HopWord>(NETWORK + F::HOPS) else { return false };
    // 0: the interface's
    let mut mtu = 0;
    let flags = bpf_check_mtu_flags::BPF_MTU_CHK_SEGS.into();
    // SAFETY: a live context, and a word that the kernel may write to.
    F::hop(word).is_some() && unsafe { bpf_check_mtu(skb.0.cast(), uplink.0, &raw mut mtu, 0, flags) } == 0
}

/// Takes one hop off a packet that has one to lose.
///
/// # Errors
///
/// [`Drop::Delivery`]: it has none, or is as it must not be.
#[inline(always)]
pub fn hop<F: Family>(skb: Skb) -> Result<(), Drop> {
    let at = NETWORK + F::HOPS;
    let Some(word) = F::hop(skb.linear().read(at)?) else { return Err(Drop::Delivery) };
    let (at, size) = (at as u32, size_of::<HopWord>() as u32);
    // SAFETY: a live context, and four readable bytes.
    match unsafe { bpf_skb_store_bytes(skb.0, at, (&raw const word).cast(), size, BPF_F_RECOMPUTE_CSUM.into()) } {
        0 => Ok(()),
        _ => Err(Drop::Delivery),
    }
}
