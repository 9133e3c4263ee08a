//! The hot path: entries that speak for a packet, and what they say.

use netpol_common::{
    decide,
    drops::{Drop, Pass, Side},
    flow::{FlowFlags, FlowKey, FlowValue, Rewrite, Ticks},
    tables::IfIndex,
    wire::Address,
};

use crate::{
    act::Fate,
    frame::{Frame, now},
    rewrite,
    tables::{FlowMap as _, Maps},
};

/// What the way of a packet needs to know beside its key.
#[derive(Clone, Copy)]
pub struct Seen {
    pub tcp_flags: u8,
    /// Offset of the transport header; 0: there is none.
    pub transport: u32,
}

/// Whether an entry is this flow's, in this generation. One aligned load; the element may have been
/// given to another flow since the lookup.
#[inline(always)]
fn speaks_for<A: Address>(frame: &Frame, key: &FlowKey<A>, entry: *mut FlowValue<A>) -> bool {
    // SAFETY: elements of a preallocated map stay mapped.
    let word = unsafe { core::ptr::read_volatile(&raw const (*entry).word) };
    word.generation() == frame.live.generation && word.tag() == key.tag()
}

/// The hot path: a valid entry speaks for the packet. An open fate: the slow path must look.
#[inline(always)]
pub(crate) fn established<F: Maps>(
    frame: &Frame,
    key: &FlowKey<F::Address>,
    entry: *mut FlowValue<F::Address>,
    seen: Seen,
) -> Fate {
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
    if came_from_elsewhere || decide::is_due(value, now, seen.tcp_flags) {
        return Fate::DUE;
    }
    entry_says::<F>(frame, key, entry, (seen, now)).unwrap_or(Fate::UNDECIDED)
}

/// The slow path has just confirmed the entry: act on it.
#[inline(always)]
pub(crate) fn confirmed<F: Maps>(frame: &Frame, key: &FlowKey<F::Address>, seen: Seen) -> Fate {
    let Some(entry) = F::FLOWS.find(key) else { return Fate::dropped(Drop::FlowTable) };
    entry_says::<F>(frame, key, entry, (seen, now())).unwrap_or(Fate::dropped(Drop::FlowTable))
}

/// Counts a packet in its flow and sends it on. `None`: the element has become another flow's.
#[inline(always)]
fn entry_says<F: Maps>(
    frame: &Frame,
    key: &FlowKey<F::Address>,
    entry: *mut FlowValue<F::Address>,
    (seen, now): (Seen, Ticks),
) -> Option<Fate> {
    // SAFETY: as in `established`.
    let value = unsafe { &*entry };
    let flags = value.word.flags();
    if flags.has(FlowFlags::TRANSLATED) {
        // off the way of what is not translated
        return translated::<F>(frame, key, entry, (seen, now));
    }
    let (interface, mac) = (value.ifindex, value.destination_mac);
    // the element may have become another flow's while this read it
    if !speaks_for(frame, key, entry) {
        return None;
    }
    touch(frame, entry, seen.tcp_flags, now);
    if flags.has(FlowFlags::DIRECT) && mac == frame.ethernet.destination {
        return Some(Fate::direct(frame.skb, interface));
    }
    if flags.has(FlowFlags::ROUTED) {
        return Some(Fate::routed(frame.skb, interface, mac));
    }
    Some(to_stack(frame, flags, interface))
}

#[inline(always)]
fn translated<F: Maps>(
    frame: &Frame,
    key: &FlowKey<F::Address>,
    entry: *mut FlowValue<F::Address>,
    (seen, now): (Seen, Ticks),
) -> Option<Fate> {
    // SAFETY: as in `established`.
    let value = unsafe { &*entry };
    let (flags, interface, mac, to) = (value.word.flags(), value.ifindex, value.destination_mac, value.rewrite);
    if !speaks_for(frame, key, entry) {
        return None;
    }
    touch(frame, entry, seen.tcp_flags, now);
    if rewritten::<F>(frame, key, seen.transport, &to).is_err() {
        return Some(Fate::dropped(Drop::Translation));
    }
    Some(if flags.has(FlowFlags::ROUTED) {
        Fate::routed(frame.skb, interface, mac)
    } else {
        to_stack(frame, flags, interface)
    })
}

/// Sends an allowed packet on, the way that its new entry says; its desk has a copy.
#[inline(always)]
pub(crate) fn send<F: Maps>(
    frame: &Frame,
    key: &FlowKey<F::Address>,
    transport: u32,
    value: *const FlowValue<F::Address>,
) -> Fate {
    // SAFETY: this CPU's desk, which no other program uses meanwhile.
    let value = unsafe { &*value };
    let (flags, interface, mac) = (value.word.flags(), value.ifindex, value.destination_mac);
    if flags.has(FlowFlags::TRANSLATED) && rewritten::<F>(frame, key, transport, &value.rewrite).is_err() {
        return Fate::dropped(Drop::Translation);
    }
    if flags.has(FlowFlags::DIRECT) && mac == frame.ethernet.destination {
        return Fate::direct(frame.skb, interface);
    }
    if flags.has(FlowFlags::ROUTED) {
        return Fate::routed(frame.skb, interface, mac);
    }
    to_stack(frame, flags, interface)
}

/// To the host's stack; the receiver's hook learns that the packet was judged here.
#[inline(always)]
fn to_stack(frame: &Frame, flags: FlowFlags, interface: IfIndex) -> Fate {
    if let Side::From = frame.place.side()
        && interface != IfIndex::NONE
        && !flags.has(FlowFlags::UNVOUCHED)
    {
        frame.skb.vouch_for(interface);
    }
    Fate::passed(Pass::Stack)
}

#[inline(always)]
fn rewritten<F: Maps>(
    frame: &Frame,
    key: &FlowKey<F::Address>,
    transport: u32,
    to: &Rewrite<F::Address>,
) -> Result<(), Drop> {
    let from = Rewrite::of(key);
    match F::rewrite(frame.skb.0, &from, to, rewrite::at(transport, key.protocol)) {
        0 => Ok(()),
        _ => Err(Drop::Translation),
    }
}

/// Counts a packet in its flow.
#[inline(always)]
fn touch<A: Address>(frame: &Frame, entry: *mut FlowValue<A>, tcp_flags: u8, now: Ticks) {
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
pub(crate) fn denied<A: Address>(frame: &Frame, key: &FlowKey<A>, entry: *mut FlowValue<A>, tcp_flags: u8) -> Fate {
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
