//! The hot path: entries that speak for a packet, and what they say.

use netpol_common::{
    decide,
    drops::{Drop, Pass, Side},
    flow::{FlowFlags, FlowKey, FlowValue, Ticks},
    tables::IfIndex,
    wire::{Address, MacWords},
};

use crate::{
    act::Fate,
    frame::{Frame, now},
    tables::{FlowMap as _, Maps},
};

/// Whether an entry is this flow's, in this generation. One aligned load; the element may have been
/// given to another flow since the lookup.
#[inline(always)]
fn speaks_for<A: Address>(frame: &Frame, key: &FlowKey<A>, entry: *mut FlowValue) -> bool {
    // SAFETY: elements of a preallocated map stay mapped.
    let word = unsafe { core::ptr::read_volatile(&raw const (*entry).word) };
    word.generation() == frame.live.generation && word.tag() == key.tag()
}

/// The hot path: a valid entry speaks for the packet. An open fate: the slow path must look.
#[inline(always)]
pub(crate) fn established<A: Address>(frame: &Frame, key: &FlowKey<A>, entry: *mut FlowValue, tcp_flags: u8) -> Fate {
    if !speaks_for(frame, key, entry) {
        return Fate::UNDECIDED;
    }
    // SAFETY: elements of a preallocated map stay mapped; each field read is whole.
    let value = unsafe { &*entry };
    let came_from_elsewhere = match frame.place.side() {
        Side::From => value.source_mac != frame.ethernet.source,
        Side::To => value.ifindex != frame.skb.ingress(),
    };
    let now = now();
    if came_from_elsewhere || decide::is_due(value, now, tcp_flags) {
        return Fate::DUE;
    }
    let (flags, interface, mac) = (value.word.flags(), value.ifindex, value.destination_mac);
    // the element may have become another flow's while this read it
    if !speaks_for(frame, key, entry) {
        return Fate::UNDECIDED;
    }
    touch(frame, entry, tcp_flags, now);
    deliver(frame, flags, (interface, mac))
}

/// The slow path has just confirmed the entry: act on it.
#[inline(always)]
pub(crate) fn confirmed<F: Maps>(frame: &Frame, key: &FlowKey<F::Address>, tcp_flags: u8) -> Fate {
    let Some(entry) = F::FLOWS.find(key) else { return Fate::dropped(Drop::FlowTable) };
    // SAFETY: as in `established`.
    let value = unsafe { &*entry };
    let (flags, interface, mac) = (value.word.flags(), value.ifindex, value.destination_mac);
    if !speaks_for(frame, key, entry) {
        return Fate::dropped(Drop::FlowTable);
    }
    touch(frame, entry, tcp_flags, now());
    deliver(frame, flags, (interface, mac))
}

/// Sends an allowed packet on, the way that its entry says.
#[inline(always)]
pub(crate) fn deliver(frame: &Frame, flags: FlowFlags, (interface, mac): (IfIndex, MacWords)) -> Fate {
    if flags.has(FlowFlags::DIRECT) && mac == frame.ethernet.destination {
        return Fate::direct(frame.skb, interface);
    }
    if flags.has(FlowFlags::ROUTED) {
        return Fate::routed(frame.skb, interface, mac);
    }
    if let Side::From = frame.place.side()
        && interface != IfIndex::NONE
    {
        frame.skb.vouch_for(interface);
    }
    Fate::passed(Pass::Stack)
}

/// Counts a packet in its flow.
#[inline(always)]
fn touch(frame: &Frame, entry: *mut FlowValue, tcp_flags: u8, now: Ticks) {
    // SAFETY: elements of a preallocated map stay mapped; the counters are added to atomically, the
    // others are single stores of whole fields.
    unsafe {
        add(&raw mut (*entry).packets, u64::from(frame.skb.packets()));
        add(&raw mut (*entry).bytes, u64::from(frame.skb.bytes()));
        (*entry).seen = now;
        if (*entry).tcp_flags | tcp_flags != (*entry).tcp_flags {
            (*entry).tcp_flags |= tcp_flags;
        }
    }
}

/// Adds to a counter that other CPUs add to as well. `AtomicU64` is absent on BPF targets, which have
/// the instruction all the same.
///
/// # Safety
///
/// The pointer is aligned and valid for reads and writes.
#[inline(always)]
unsafe fn add(counter: *mut u64, n: u64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: the caller's.
    unsafe {
        core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::Relaxed }>(counter, n);
    }
    // for clippy and editors, which look at the host's target
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller's.
    unsafe {
        core::sync::atomic::AtomicU64::from_ptr(counter).fetch_add(n, core::sync::atomic::Ordering::Relaxed);
    }
}

/// A remembered denial. [`Fate::UNDECIDED`]: it does not speak for this packet.
#[inline(always)]
pub(crate) fn denied<A: Address>(frame: &Frame, key: &FlowKey<A>, entry: *mut FlowValue, tcp_flags: u8) -> Fate {
    // SAFETY: elements of a preallocated map stay mapped.
    let value = unsafe { &*entry };
    let flags = value.word.flags();
    if !speaks_for(frame, key, entry) || !decide::is_denial_valid(value, now(), tcp_flags) {
        return Fate::UNDECIDED;
    }
    // SAFETY: as above; atomically.
    unsafe {
        add(&raw mut (*entry).packets, u64::from(frame.skb.packets()));
        add(&raw mut (*entry).bytes, u64::from(frame.skb.bytes()));
    }
    Fate::dropped(if flags.has(FlowFlags::EGRESS_DENIED) { Drop::PolicyEgress } else { Drop::PolicyIngress })
}
