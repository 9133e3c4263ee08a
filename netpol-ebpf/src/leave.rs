//! The hop that the host would have been: what leaves by an uplink directly is treated as the host's routing would.

use aya_ebpf::{
    bindings::{BPF_F_RECOMPUTE_CSUM, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_check_mtu_flags},
    helpers::generated::{bpf_check_mtu, bpf_fib_lookup, bpf_skb_store_bytes},
};
use netpol_common::{
    flow::FlowKey,
    headers::{HopWord, View as _},
    parse::{Family, NETWORK},
    tables::IfIndex,
};

use crate::{family::Maps, frame::Skb, tables::uplink};

/// The interface that the host would route a packet out of; [`IfIndex::NONE`]: none, it does not forward, the packet
/// at hand is too large for it, or the route takes less than the uplink does by which the packet leaves or has come.
#[inline(always)]
pub fn route<F: Maps>(skb: Skb, slot: u32, key: &FlowKey<F::Address>, from: IfIndex) -> IfIndex {
    let found = look::<F>(skb, key, (from, 0));
    // each packet is compared with the uplink's size alone
    match uplink(slot, found).or_else(|| uplink(slot, from)) {
        Some(uplink) => look::<F>(skb, key, (from, uplink.mtu as u16)),
        None => found,
    }
}

/// The same for a packet of so many bytes (0: the one at hand).
#[inline(always)]
fn look<F: Maps>(skb: Skb, key: &FlowKey<F::Address>, (from, bytes): (IfIndex, u16)) -> IfIndex {
    let mut asked = F::question(key);
    asked.ifindex = from.0;
    asked.__bindgen_anon_1.tot_len = bytes;
    let size = size_of_val(&asked) as i32;
    // SAFETY: a live context, and a whole structure that the kernel may write to.
    let answer = unsafe { bpf_fib_lookup(skb.0.cast(), &raw mut asked, size, 0) } as u32;
    // an unknown neighbour is no obstacle: the kernel asks for it when the packet is there
    if answer == BPF_FIB_LKUP_RET_SUCCESS || answer == BPF_FIB_LKUP_RET_NO_NEIGH {
        IfIndex(asked.ifindex)
    } else {
        IfIndex::NONE
    }
}

/// Takes one hop off a packet. `false`: it has none left, or is too large for the uplink, and is as it was.
#[inline(always)]
pub fn hop<F: Family>(skb: Skb, uplink: IfIndex) -> bool {
    let at = NETWORK + F::HOPS;
    let Ok(word) = skb.linear().read::<HopWord>(at) else { return false };
    let Some(word) = F::hop(word) else { return false };
    // 0: the interface's
    let mut mtu = 0;
    // SAFETY: a live context, and a word that the kernel may write to.
    let fits =
        unsafe { bpf_check_mtu(skb.0.cast(), uplink.0, &raw mut mtu, 0, bpf_check_mtu_flags::BPF_MTU_CHK_SEGS.into()) }
            == 0;
    // SAFETY: a live context, and four readable bytes.
    fits && unsafe {
        bpf_skb_store_bytes(
            skb.0,
            at as u32,
            (&raw const word).cast(),
            size_of::<HopWord>() as u32,
            BPF_F_RECOMPUTE_CSUM.into(),
        )
    } == 0
}
