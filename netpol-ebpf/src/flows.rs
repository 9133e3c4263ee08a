//! The hot path: entries that speak for a packet, and what they say.

use netpol_common::{
    decide::{self, Known, Packet, opens},
    drops::{Drop, Pass, Side, audit_code, counter},
    flow::{FlowFlags, FlowKey, FlowValue, Place, Rewrite, Ticks},
    headers::{Ethernet, View as _},
    kernel::Settings,
    parse::{self, tcp},
    tables::IfIndex,
    wire::{Address, MacWords},
};

use crate::{
    act::Fate,
    clock::now,
    denials::{self, DenialMap as _},
    family::{Maps, NatMap as _},
    frame::{Frame, Skb},
    places::Found,
    rewrite::{self, Onward},
    tell, verified,
};

/// What the way of a packet needs to know beside its key.
#[derive(Clone, Copy)]
pub struct Seen {
    pub tcp_flags: u8,
    /// Offset of the transport header; 0: there is none.
    pub transport: u32,
}

/// A packet of the usual kind: what is remembered of its flow decides. [`Fate::UNUSUAL`]: it is of another kind; another
/// open fate: it is on the desk.
#[inline(always)]
pub fn fast<F: Maps>(skb: Skb, place: Place) -> Fate {
    let Ok(frame) = Frame::read(skb, place) else { return Fate::dropped(Drop::Malformed) };
    let Some((ip, transport)) = parse::plain::<F, _>(&frame.linear) else { return Fate::UNUSUAL };
    let key = parse::key(&ip, transport.ports, transport.protocol, place);
    let seen = Seen { tcp_flags: transport.tcp_flags, transport: ip.transport as u32 };
    let ahead = look_ahead::<F>(&frame, &key, seen);
    let (fate, known) = remembered::<F>(&frame, &key, seen);
    let known = known.with(ahead);
    if fate.is_open() && put_on_desk::<F>(&frame, key, seen, known).is_err() {
        return Fate::dropped(Drop::NoPolicy);
    }
    fate
}

/// Who opens a connection will be asked for a pair of translations, and neither that nor the flow is likely to be in a cache.
/// Asked right before the flow, the CPU waits for both at once: of what a connection costs, a hundredth.
#[inline(always)]
fn look_ahead<F: Maps>(frame: &Frame, key: &FlowKey<F::Address>, seen: Seen) -> Known {
    let is_asked = opens(seen.tcp_flags)
        && matches!(frame.place.side(), Side::From)
        && frame.live.settings.has(Settings::TRANSLATE);
    if !is_asked {
        return Known::NOTHING;
    }
    let Some(desk) = F::desk() else { return Known::NOTHING };
    // SAFETY: this CPU's desk, which no other program uses meanwhile.
    let key = unsafe { (*desk).at_uplinks(key) };
    if F::NAT.find(key).is_none() { Known::UNPAIRED } else { Known::NOTHING }
}

/// As [`fast`], for the packet on the desk.
#[inline(always)]
pub fn again<F: Maps>(skb: Skb, place: Place) -> Fate {
    let Ok(frame) = Frame::read(skb, place) else { return Fate::dropped(Drop::Malformed) };
    let Some(desk) = F::desk() else { return Fate::dropped(Drop::NoPolicy) };
    // SAFETY: this CPU's desk, as `unusual::read` left it.
    let packet = unsafe { &(*desk).packet };
    let (key, seen) = (packet.key, Seen { tcp_flags: packet.tcp_flags, transport: packet.transport });
    let (fate, known) = remembered::<F>(&frame, &key, seen);
    // SAFETY: as above.
    unsafe { (*desk).known = known };
    fate
}

/// Sends the packet on the desk on, the way that its new entry says.
#[inline(always)]
pub fn send<F: Maps>(skb: Skb, place: Place) -> Fate {
    let Ok(mut frame) = Frame::read(skb, place) else { return Fate::dropped(Drop::Malformed) };
    let Some(desk) = F::desk() else { return Fate::dropped(Drop::NoPolicy) };
    // SAFETY: this CPU's desk, which no other program uses meanwhile.
    let (packet, value) = unsafe { (&(*desk).packet, &(*desk).value) };
    let (flags, interface, mac) = (value.word.flags(), value.ifindex, value.destination_mac);
    // the next one may have begun since: the entry is of this one
    frame.live.generation = packet.generation;
    if flags.counts_as_audited() {
        would_drop(skb, place.side(), flags);
    }
    on_its_way::<F>(&frame, (&packet.key, packet.transport), value.rewrite, (flags, interface, mac))
}

/// The slow path has just confirmed the entry of the packet on the desk: acts on it. An open fate: it is not there any more.
#[inline(always)]
pub fn confirm<F: Maps>(skb: Skb, place: Place) -> Fate {
    let Ok(frame) = Frame::read(skb, place) else { return Fate::dropped(Drop::Malformed) };
    let Some(desk) = F::desk() else { return Fate::dropped(Drop::NoPolicy) };
    // SAFETY: this CPU's desk, which no other program uses meanwhile.
    let packet = unsafe { &(*desk).packet };
    let (key, seen) = (packet.key, Seen { tcp_flags: packet.tcp_flags, transport: packet.transport });
    let Some(found) = F::FLOWS.find(&key).filter(|found| speaks_for(&frame, found)) else { return Fate::UNDECIDED };
    entry_says::<F>(&frame, &key, &found, (seen, now())).unwrap_or(Fate::UNDECIDED)
}

/// What is remembered of a packet: its flow's entry, else a denial, decides; else the fate is open, and the
/// slow path learns what there is.
#[inline(always)]
fn remembered<F: Maps>(frame: &Frame, key: &FlowKey<F::Address>, seen: Seen) -> (Fate, Known) {
    let mut known = Known::NOTHING;
    if let Some(found) = F::FLOWS.find(key) {
        known = known.with(Known::FLOW);
        let fate = established::<F>(frame, key, &found, seen);
        // a denial is older than an entry that is valid
        if fate != Fate::UNDECIDED {
            return (fate, known);
        }
    }
    if !denials::may_speak(frame.live.generation, now()) {
        return (Fate::UNDECIDED, known);
    }
    let Some(found) = F::DENIALS.find(key) else { return (Fate::UNDECIDED, known) };
    (denied(frame, &found, seen.tcp_flags), known)
}

/// Writes down what the slow path needs to know.
#[inline(always)]
pub fn put_on_desk<F: Maps>(frame: &Frame, key: FlowKey<F::Address>, seen: Seen, known: Known) -> Result<(), Drop> {
    let Some(desk) = F::desk() else { return Err(Drop::NoPolicy) };
    // SAFETY: this CPU's desk, which no other program uses meanwhile.
    let desk = unsafe { &mut *desk };
    desk.known = known;
    // from the frame as it is now: Linux 6.1 does not see that a frame whose fate is open was not changed
    let ethernet: Ethernet = frame.skb.linear().read(0)?;
    desk.packet = Packet {
        key,
        source_mac: ethernet.source,
        destination_mac: ethernet.destination,
        ingress: frame.skb.ingress(),
        tcp_flags: seen.tcp_flags,
        transport: seen.transport,
        packets: frame.skb.packets(),
        bytes: frame.skb.bytes(),
        generation: frame.live.generation,
        settings: frame.live.settings,
        now: now(),
    };
    Ok(())
}

/// Whether an entry is valid: of this generation, which no other store makes it.
#[inline(always)]
fn speaks_for<A: Address>(frame: &Frame, found: &Found<A>) -> bool {
    found.word.is_current(frame.live.generation)
}

/// The hot path: a valid entry speaks for the packet. An open fate: the slow path must look.
#[inline(always)]
fn established<F: Maps>(frame: &Frame, key: &FlowKey<F::Address>, found: &Found<F::Address>, seen: Seen) -> Fate {
    if !speaks_for(frame, found) {
        return Fate::UNDECIDED;
    }
    // SAFETY: elements of an array map stay mapped; each field read is whole.
    let value = unsafe { &*found.entry() };
    let came_from_elsewhere = match frame.place.side() {
        Side::From => value.source_mac != frame.ethernet().source,
        Side::To => value.ifindex != frame.skb.ingress(),
    };
    let now = now();
    if came_from_elsewhere || decide::is_due(found.word.flags(), value, now, seen.tcp_flags) {
        return Fate::DUE;
    }
    let flags = found.word.flags();
    // asked first: what is neither translated nor audited has a way of its own
    let tells = flags.has(FlowFlags::SPECIAL) && decide::tells(flags, value, seen.tcp_flags);
    if tells && !told::<F>(frame, key, found, (seen, now)) {
        return Fate::DUE;
    }
    entry_says::<F>(frame, key, found, (seen, now)).unwrap_or(Fate::UNDECIDED)
}

/// Tells the pair of the packet's translation what that says. `false`: it has none any more.
#[inline(always)]
fn told<F: Maps>(
    frame: &Frame,
    key: &FlowKey<F::Address>,
    found: &Found<F::Address>,
    (seen, now): (Seen, Ticks),
) -> bool {
    let Some(desk) = F::desk() else { return false };
    // SAFETY: this CPU's desk, which no other program uses meanwhile; and as in `established`. (Of a place that is another
    // flow's by now no pair knows the translation.)
    let (desk, rewrite) = unsafe { (&mut *desk, (*found.entry()).rewrite) };
    desk.tells(key, (found.word.flags(), rewrite), (frame.live, now, seen.tcp_flags));
    F::renew() == 0
}

/// Counts a packet in its flow and sends it on. `None`: the place has become another flow's.
#[inline(always)]
fn entry_says<F: Maps>(
    frame: &Frame,
    key: &FlowKey<F::Address>,
    found: &Found<F::Address>,
    (seen, now): (Seen, Ticks),
) -> Option<Fate> {
    if found.word.flags().has(FlowFlags::SPECIAL) {
        special::<F>(frame, key, found, (seen, now))
    } else {
        plain::<F>(frame, key, found, (seen, now))
    }
}

#[inline(always)]
fn plain<F: Maps>(
    frame: &Frame,
    key: &FlowKey<F::Address>,
    found: &Found<F::Address>,
    (seen, now): (Seen, Ticks),
) -> Option<Fate> {
    // SAFETY: as in `established`.
    let value = unsafe { &*found.entry() };
    let (flags, interface, mac) = (found.word.flags(), value.ifindex, value.destination_mac);
    // the place may have become another flow's while this read it
    if found.has_changed() {
        return None;
    }
    touch::<F>(frame, key, found.entry(), (seen, now));
    Some(deliver(frame, flags, (interface, mac), mac == frame.ethernet().destination))
}

/// What else is to be done with a packet before it is sent on.
#[inline(always)]
fn special<F: Maps>(
    frame: &Frame,
    key: &FlowKey<F::Address>,
    found: &Found<F::Address>,
    (seen, now): (Seen, Ticks),
) -> Option<Fate> {
    // SAFETY: as in `established`.
    let value = unsafe { &*found.entry() };
    let (flags, interface, mac, to) = (found.word.flags(), value.ifindex, value.destination_mac, value.rewrite);
    if found.has_changed() {
        return None;
    }
    touch::<F>(frame, key, found.entry(), (seen, now));
    if flags.counts_as_audited() {
        would_drop(frame.skb, frame.place.side(), flags);
    }
    Some(on_its_way::<F>(frame, (key, seen.transport), to, (flags, interface, mac)))
}

/// Translates an allowed packet, where its entry says so, and sends it on.
#[inline(always)]
fn on_its_way<F: Maps>(
    frame: &Frame,
    (key, transport): (&FlowKey<F::Address>, u32),
    mut to: Rewrite<F::Address>,
    (flags, interface, mac): (FlowFlags, IfIndex, MacWords),
) -> Fate {
    // asked before the frame is changed
    let receiver = frame.ethernet().destination;
    let is_for_receiver = mac == receiver;
    if flags.has(FlowFlags::OUT) {
        // the host answers what is too large or has come too far, and needs it as it came
        if !is_for_receiver || !F::may_leave(frame.skb, interface) {
            return Fate::passed(Pass::Stack);
        }
        let Some(desk) = F::desk() else { return Fate::dropped(Drop::Delivery) };
        // SAFETY: this CPU's desk, which no other program uses meanwhile.
        unsafe { F::leads_to(&mut (*desk).next, to.destination) };
        to = to.of_entry(flags, key);
    }
    if flags.has(FlowFlags::TRANSLATED) {
        let (is_routed, takes_hop) = (flags.has(FlowFlags::ROUTED), flags.has(FlowFlags::OUT));
        let onward = Onward { mac: if is_routed { mac } else { receiver }, takes_hop };
        let at = rewrite::at(transport, key.protocol);
        if let Err(drop) = rewrite::rewrite::<F>(frame.skb, (rewrite::of(key), &to), at, onward) {
            return Fate::dropped(drop);
        }
        if flags.has(FlowFlags::OUT) {
            return Fate::out::<F>(frame.skb, interface, frame.live.generation);
        }
        if is_routed {
            return Fate::redirected(frame.skb, interface, Pass::Routed);
        }
    }
    deliver(frame, flags, (interface, mac), is_for_receiver)
}

/// Sends an allowed packet on, the way that its entry says. `is_for_receiver`: the frame came addressed to `mac`.
#[inline(always)]
fn deliver(frame: &Frame, flags: FlowFlags, (interface, mac): (IfIndex, MacWords), is_for_receiver: bool) -> Fate {
    if flags.has(FlowFlags::DIRECT) && is_for_receiver {
        return Fate::direct(frame.skb, interface);
    }
    if flags.has(FlowFlags::ROUTED) {
        return Fate::routed(frame.skb, interface, mac);
    }
    // to the host's stack; the receiver's hook learns that the packet was judged here
    if let Side::From = frame.place.side()
        && interface != IfIndex::NONE
        && !flags.has(FlowFlags::UNVOUCHED)
    {
        frame.skb.vouch_for(interface);
    }
    Fate::passed(Pass::Stack)
}

/// Counts what audited policies would have stopped.
#[inline(always)]
fn would_drop(skb: Skb, side: Side, flags: FlowFlags) {
    let reason = if flags.has(FlowFlags::EGRESS_DENIED) { Drop::PolicyEgress } else { Drop::PolicyIngress };
    verified::would_drop(skb.0, counter(side, audit_code(reason)));
}

/// Counts a packet in its flow. Only a flag that its direction had not yet makes more work.
#[inline(always)]
fn touch<F: Maps>(
    frame: &Frame,
    key: &FlowKey<F::Address>,
    entry: *mut FlowValue<F::Address>,
    (seen, now): (Seen, Ticks),
) {
    // SAFETY: elements of an array map stay mapped; the counters are added to atomically, the
    // others are single stores of whole fields.
    unsafe {
        add(&raw mut (*entry).packets, u64::from(frame.skb.packets()));
        add(&raw mut (*entry).bytes, u64::from(frame.skb.bytes()));
        (*entry).seen = now;
        let before = (*entry).tcp_flags;
        if before | seen.tcp_flags != before {
            (*entry).tcp_flags = before | seen.tcp_flags;
            if seen.tcp_flags & !before & (tcp::FIN | tcp::RST) != 0 && tell::is_observed() {
                F::tell_closing(frame.skb, key, &*entry);
            }
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
pub unsafe fn add(counter: *mut u64, n: u64) {
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
fn denied<A: Address>(frame: &Frame, found: &Found<A>, tcp_flags: u8) -> Fate {
    // SAFETY: elements of an array map stay mapped.
    let judged = unsafe { (*found.entry()).judged };
    let flags = found.word.flags();
    if !speaks_for(frame, found) || !decide::is_denial_valid((flags, judged), now(), tcp_flags) || found.has_changed() {
        return Fate::UNDECIDED;
    }
    // SAFETY: as above; atomically.
    unsafe {
        add(&raw mut (*found.entry()).packets, u64::from(frame.skb.packets()));
        add(&raw mut (*found.entry()).bytes, u64::from(frame.skb.bytes()));
    }
    Fate::dropped(if flags.has(FlowFlags::EGRESS_DENIED) { Drop::PolicyEgress } else { Drop::PolicyIngress })
}
