//! What observers are told: events in the ring of each. Nobody observes: one word is read, and only where a flow
//! begins or a packet is dropped.
//!
//! These are functions of their own ([`crate::verified`]), called when a packet's fate is known, so they are never on
//! the stack together with the stages that decided it. An observer that does not keep up has no room: then it is
//! counted what it missed, and nobody waits.

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_NO_WAKEUP, BPF_RB_RING_SIZE},
    helpers::generated::{bpf_ktime_get_coarse_ns, bpf_ringbuf_output, bpf_ringbuf_query, bpf_skb_load_bytes},
};
use netpol_common::{
    drops::{Drop, Side},
    event::{self, Event, Head, Hush, Kind, Lease, OBSERVERS, Ration, SNAP, SUPPRESSED, Told, Wants, drop_tag},
    flow::{FlowFlags, FlowKey, FlowValue, KeyProtocol, Place, PortPair, Ticks, Word},
    headers::{Arp, Ethernet, View as _},
    parse::{self, NETWORK, ethertype},
    tables::IfIndex,
    wire::{Addr4, Address},
};

use crate::{
    denials::DenialMap as _,
    family::Maps,
    flows::add,
    frame::{Frame, Skb},
    maps,
    tables::live,
};

/// Whether anybody may be observing: all that it costs when nobody is.
#[inline(always)]
pub fn is_observed() -> bool {
    match maps::LEASES.get_ptr(0) {
        // SAFETY: an aligned word of an array map; observers write it whole.
        Some(lease) => unsafe { core::ptr::read_volatile(lease) != Lease::NONE },
        None => false,
    }
}

/// How [`drop`] is told what is known beside the reason, in one register.
pub mod about {
    /// Bits 0-7: the reason.
    pub const REASON: u32 = 0xff;
    /// The packet is on the desk.
    pub const ON_DESK: u32 = 1 << 8;
    /// The slow path has judged it.
    pub const JUDGED: u32 = 1 << 9;
}

/// The coarse monotonic clock.
#[inline(always)]
fn nanos() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// A lease, by its place.
#[inline(always)]
fn lease(place: u32) -> Lease {
    match maps::LEASES.get_ptr(place) {
        // SAFETY: as in `is_observed`.
        Some(lease) => unsafe { core::ptr::read_volatile(lease) },
        None => Lease::NONE,
    }
}

/// Whether any observer wants to hear of this. Their leases are read one by one: a word of them all would be written by all
/// observers, and one could take back what another has just written.
#[inline(always)]
fn is_wanted(kind: Kind, time: u64) -> bool {
    lease(0).holds(time) && (0..OBSERVERS).any(|observer| wants(observer, kind, time).is_some())
}

/// The lease of an observer that wants to hear of this.
#[inline(always)]
fn wants(observer: u32, kind: Kind, time: u64) -> Option<Lease> {
    let lease = lease(observer + 1);
    (lease.wants().has(kind.wanted()) && lease.holds(time)).then_some(lease)
}

/// Counts frames that an observer, or all of them, were not told about.
#[inline(always)]
fn miss(place: u32) {
    let Some(untold) = maps::UNTOLD.get_ptr_mut(place) else { return };
    // SAFETY: this CPU's element.
    unsafe { *untold += 1 }
}

/// The event of the packet on the desk, which the slow path has just allowed and remembered: it begins a
/// connection, or ends one.
#[inline(always)]
pub fn remembered<F: Maps>(skb: Skb) {
    let (Some(desk), Some(told)) = (F::desk(), F::told()) else { return };
    // SAFETY: this CPU's, which no other program uses meanwhile.
    let (desk, told) = unsafe { (&*desk, &mut *told) };
    let kind = if desk.is_new() {
        Kind::New
    } else if desk.is_closing() {
        Kind::Closing
    } else {
        return;
    };
    let time = nanos();
    if !is_wanted(kind, time) {
        return;
    }
    told.event.key.copy_from(&desk.packet.key);
    told.event.value.copy_from(&desk.value);
    told.event.reserved = 0;
    head(skb, &mut told.event.head, (kind, family::<F::Address>()), time);
    publish(skb, told, (kind, time));
}

/// The event of a flow's packet with the first FIN or RST of its direction, where the hot path has counted it.
#[inline(always)]
pub fn closing<F: Maps>(skb: Skb, key: &FlowKey<F::Address>, value: &FlowValue<F::Address>) {
    let time = nanos();
    if !is_wanted(Kind::Closing, time) {
        return;
    }
    let Some(told) = F::told() else { return };
    // SAFETY: this CPU's, which no other program uses meanwhile.
    let told = unsafe { &mut *told };
    told.event.key.copy_from(key);
    told.event.value.copy_from(value);
    // another may have been written there meanwhile
    let is_it = told.event.value.word.tag() == key.tag() && !told.event.value.word.is_writing();
    // SAFETY: a reference.
    let word = unsafe { (&raw const value.word).read_volatile() };
    if !is_it || word.0 != told.event.value.word.0 {
        return miss(SUPPRESSED);
    }
    told.event.reserved = 0;
    head(skb, &mut told.event.head, (Kind::Closing, family::<F::Address>()), time);
    publish(skb, told, (Kind::Closing, time));
}

/// The event of a dropped packet; `about`: see there.
#[inline(always)]
pub fn drop<F: Maps>(skb: Skb, place: Place, about: u32) {
    let time = nanos();
    if !is_wanted(Kind::Drop, time) {
        return;
    }
    let reason = about & about::REASON;
    let Ok(frame) = Frame::read(skb, place) else { return miss(SUPPRESSED) };
    let (Some(desk), Some(told)) = (F::desk(), F::told()) else { return };
    // SAFETY: as in `remembered`.
    let (desk, told) = unsafe { (&*desk, &mut *told) };
    let event = &mut told.event;
    if about & about::ON_DESK != 0 {
        event.key.copy_from(&desk.packet.key);
    } else if let Some((ip, transport)) = parse::plain::<F, _>(&frame.linear) {
        event.key = parse::key(&ip, transport.ports, transport.protocol, place);
    } else if let Ok(ip) = F::network(&frame.linear, NETWORK) {
        event.key = parse::key(&ip, PortPair::NONE, KeyProtocol::from(ip.protocol), place);
    } else {
        event.key = nobody(place);
    }
    event.reserved = 0;
    let Some(suppressed) = admit(&event.key, reason, Ticks::from_nanos(time)) else { return miss(SUPPRESSED) };
    let is_denial = Drop::from_code(reason as u8).is_some_and(Drop::is_denial);
    if is_denial && about & about::JUDGED != 0 {
        // just now: whoever else denies may have taken its place already
        event.value.copy_from(&desk.value);
    } else if !is_denial || !denial::<F>(event) {
        event.value = unknown(skb, &event.key, time);
    }
    head(skb, &mut event.head, (Kind::Drop, family::<F::Address>()), time);
    event.head.reason = reason as u8;
    event.head.suppressed = suppressed;
    event.head.was_known = u8::from(is_denial && about & about::JUDGED != 0 && desk.is_known());
    publish(skb, told, (Kind::Drop, time));
}

/// The event of a dropped frame that is not IP.
#[inline(always)]
pub fn frame<F: Maps<Address = Addr4>>(skb: Skb, place: Place, reason: u32) {
    let time = nanos();
    if !is_wanted(Kind::Drop, time) {
        return;
    }
    let Some(told) = F::told() else { return };
    // SAFETY: this CPU's, which no other program uses meanwhile.
    let told = unsafe { &mut *told };
    let event = &mut told.event;
    event.key = nobody(place);
    let linear = skb.linear();
    if let Ok(Ethernet { ethertype, .. }) = linear.read(0)
        && ethertype == ethertype::ARP.to_be()
        && let Ok(Arp { sender, target, .. }) = linear.read::<Arp>(NETWORK)
    {
        event.key.source = sender;
        event.key.destination = target;
    }
    event.reserved = 0;
    let Some(suppressed) = admit(&event.key, reason, Ticks::from_nanos(time)) else { return miss(SUPPRESSED) };
    event.value = unknown(skb, &event.key, time);
    head(skb, &mut event.head, (Kind::Drop, 0), time);
    event.head.reason = reason as u8;
    event.head.suppressed = suppressed;
    publish(skb, told, (Kind::Drop, time));
}

/// What the packet itself tells, where no table knows it.
#[inline(always)]
fn unknown<A: Address>(skb: Skb, key: &FlowKey<A>, time: u64) -> FlowValue<A> {
    let now = Ticks::from_nanos(time);
    let from = match key.place.side() {
        Side::From => IfIndex::NONE,
        Side::To => skb.ingress(),
    };
    FlowValue {
        word: Word::new(live().generation, key.tag(), FlowFlags::NONE),
        packets: u64::from(skb.packets()),
        bytes: u64::from(skb.bytes()),
        seen: now,
        judged: now,
        ifindex: from,
        ..FlowValue::EMPTY
    }
}

/// Whether the denial of the event's key is remembered, which then is in the event.
#[inline(always)]
fn denial<F: Maps>(event: &mut Event<F::Address>) -> bool {
    let Some(found) = F::DENIALS.find(&event.key) else { return false };
    // SAFETY: elements of an array map stay mapped.
    event.value.copy_from(unsafe { &*found.entry() });
    found.word.is_used() && !found.word.is_writing() && !found.has_changed()
}

#[inline(always)]
fn nobody<A: Address>(place: Place) -> FlowKey<A> {
    FlowKey { place, ..FlowKey::NOBODY }
}

/// Whether a drop is told, and how many like it were not since the last one. (Two CPUs may tell the same one.)
#[inline(always)]
fn admit<A: Address>(key: &FlowKey<A>, reason: u32, now: Ticks) -> Option<u64> {
    let tag = drop_tag(key, reason);
    let hush = maps::HUSHES.get_ptr_mut(Hush::place(tag))?;
    // SAFETY: an element of an array map; each field is read and written whole, and counted atomically.
    let suppressed = unsafe {
        if (*hush).keeps_back(tag, now) {
            add(&raw mut (*hush).suppressed, 1);
            return None;
        }
        (*hush).kept_back(tag)
    };
    let ration = maps::RATIONS.get_ptr_mut(Ration::place(key.place.ifindex()))?;
    // SAFETY: as above.
    unsafe {
        let rest = (*ration).after_one(now);
        *ration = rest;
        if rest.told > event::RATION {
            return None;
        }
        *hush = Hush { tag, told: now, suppressed: 0 };
    }
    Some(suppressed)
}

const fn family<A: Address>() -> u8 {
    if A::BITS == Addr4::BITS { 4 } else { 6 }
}

/// What every event has in front.
#[inline(always)]
fn head(skb: Skb, head: &mut Head, (kind, family): (Kind, u8), time: u64) {
    *head = Head { time, length: skb.bytes(), kind: kind as u8, family, ..Head::EMPTY };
    if let Ok(Ethernet { source, destination, ethertype }) = skb.linear().read(0) {
        head.source_mac = source;
        head.destination_mac = destination;
        head.ethertype = ethertype;
    }
}

/// Gives the event to everybody who wants it.
#[inline(always)]
fn publish<A: Address>(skb: Skb, told: &mut Told<A>, (kind, time): (Kind, u64)) {
    let mut is_captured = false;
    for observer in 0..OBSERVERS {
        let Some(lease) = wants(observer, kind, time) else { continue };
        let Some(ring) = maps::RINGS.get(observer) else { continue };
        let ring = core::ptr::from_ref(ring).cast_mut().cast();
        // what a flood of connections fills leaves a quarter to drops
        // SAFETY: a ring that the program was given.
        let has_room = kind as u8 == Kind::Drop as u8
            || unsafe {
                let (used, size) = (
                    bpf_ringbuf_query(ring, BPF_RB_AVAIL_DATA.into()),
                    bpf_ringbuf_query(ring, BPF_RB_RING_SIZE.into()),
                );
                used < size - size / 4
            };
        let with_frame = lease.wants().has(Wants::FRAMES);
        if with_frame && !is_captured {
            capture(skb, told);
            is_captured = true;
        }
        let size = if with_frame { size_of::<Told<A>>() } else { size_of::<Event<A>>() };
        // Without waking anybody: observers look often enough, and a wakeup costs more than all of this.
        // SAFETY: `size` bytes of the event, which is this CPU's.
        let told = has_room
            && unsafe { bpf_ringbuf_output(ring, (&raw mut *told).cast(), size as u64, BPF_RB_NO_WAKEUP.into()) } == 0;
        if !told {
            miss(observer);
        }
    }
}

/// Copies the beginning of the frame.
#[inline(always)]
fn capture<A: Address>(skb: Skb, told: &mut Told<A>) {
    let length = skb.bytes();
    let length = if length > SNAP as u32 { SNAP as u32 } else { length };
    // no frame is shorter; and older verifiers learn from this comparison, not from one with 0, that it is none of size 0
    if length < size_of::<Ethernet>() as u32 {
        return;
    }
    // SAFETY: a live context, and as many writable bytes.
    let failed = unsafe { bpf_skb_load_bytes(skb.0.cast(), 0, (&raw mut told.frame).cast(), length) };
    if failed == 0 {
        told.event.head.captured = length;
    }
}
