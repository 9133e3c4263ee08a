//! The way of a frame.
//!
//! ```text
//! parse -> flow entry -> valid: count it, act
//!                     -> else: remembered denial -> drop
//!                                                -> else: the desk, and the slow path (netpol_common::decide)
//! ```
//!
//! What is not a whole packet with ports takes the way through [`unusual`](crate::unusual) first.

use aya_ebpf::bindings::__sk_buff;
use netpol_common::{
    decide::{Action, Known, Packet},
    drops::{Drop, Pass, Side},
    flow::{FlowKey, Place},
    guard,
    headers::{Ethernet, View as _},
    parse::{self, Transport, V4, V6, ethertype},
    tables::AddressFlags,
};

use crate::{
    act::{self, Fate},
    flows::{confirmed, deliver, denied, established},
    frame::{Frame, Skb, now},
    tables::{FlowMap as _, Maps, hook, live},
    unusual::{decode, encode},
    verified,
};

/// The whole way of a frame; returns a TC action.
#[inline(always)]
pub fn classify(skb: *mut __sk_buff, side: Side) -> i32 {
    let skb = Skb(skb);
    match side {
        Side::From => skb.clear_vouch(),
        // what one of our interfaces received has been through the classifier there
        Side::To if skb.is_vouched() && hook(live().generation.slot(), skb.ingress()).is_some() => {
            return act::finish(skb, side, Fate::passed(Pass::Vouched));
        }
        Side::To => {}
    }
    act::finish(skb, side, frame(skb, side))
}

#[inline(always)]
fn frame(skb: Skb, side: Side) -> Fate {
    let linear = skb.linear();
    let Ok(ethernet) = linear.read::<Ethernet>(0) else { return Fate::dropped(Drop::Malformed) };
    let frame = Frame { skb, linear, ethernet, place: Place::new(skb.interface(), side), live: live() };
    // A tag beside the frame is stripped after us (VID 0), so the host would see what we did not.
    if skb.is_tagged() {
        return Fate::dropped(Drop::Vlan);
    }
    match u16::from_be(ethernet.ethertype) {
        ethertype::IPV4 => ip::<V4>(&frame),
        ethertype::IPV6 => ip::<V6>(&frame),
        ethertype::ARP => undisputed(verified::arp(skb.0, frame.place.0)),
        ethertype::VLAN | ethertype::QINQ => Fate::dropped(Drop::Vlan),
        _ => unknown(&frame),
    }
}

/// An EtherType that policy says nothing about.
#[inline(always)]
fn unknown(frame: &Frame) -> Fate {
    let Some(hook) = hook(frame.live.generation.slot(), frame.place.ifindex()) else {
        return undisputed(encode(guard::waiting(frame.live.settings)));
    };
    let isolated = match frame.place.side() {
        // bridges learn from any frame: another's MAC address would draw the other's traffic here
        Side::From if frame.ethernet.source != hook.mac => return Fate::dropped(Drop::Spoofed),
        Side::From => AddressFlags::ISOLATED_EGRESS,
        Side::To => AddressFlags::ISOLATED_INGRESS,
    };
    if hook.flags.has(isolated) { Fate::dropped(Drop::Ethertype) } else { Fate::passed(Pass::Unjudged) }
}

/// The fate of a packet that no flow speaks for.
#[inline(always)]
fn undisputed(code: u32) -> Fate {
    match decode(code) {
        Ok(Action::Related) => Fate::passed(Pass::Stack),
        Ok(Action::Control) => Fate::passed(Pass::Control),
        Ok(Action::Waiting) => Fate::passed(Pass::Waiting),
        Ok(Action::Remembered | Action::Link | Action::Confirmed) => Fate::dropped(Drop::NoPolicy),
        Err(drop) => Fate::dropped(drop),
    }
}

#[inline(always)]
fn ip<F: Maps>(frame: &Frame) -> Fate {
    let Some((ip, transport)) = parse::plain::<F, _>(&frame.linear) else { return unusual::<F>(frame) };
    let key = parse::key(&ip, transport.source, transport.destination, frame.place);
    let (fate, known) = remembered::<F>(frame, &key, transport.tcp_flags);
    if !fate.is_open() {
        return fate;
    }
    if put_on_desk::<F>(frame, key, &transport).is_err() {
        return Fate::dropped(Drop::NoPolicy);
    }
    judged::<F>(frame, &key, transport.tcp_flags, known)
}

/// A packet that takes a longer way to its flow, or has none.
#[inline(always)]
fn unusual<F: Maps>(frame: &Frame) -> Fate {
    let code = F::unusual(frame.skb.0, frame.place.0);
    if code == Action::Related as u32 {
        return undisputed(F::related());
    }
    if code == Action::Link as u32 {
        return undisputed(verified::link(frame.skb.0, frame.place.0));
    }
    if code != Action::Remembered as u32 {
        return undisputed(code);
    }
    let Some(desk) = F::desk() else { return Fate::dropped(Drop::NoPolicy) };
    // SAFETY: this CPU's desk, as `unusual::read` left it.
    let packet = unsafe { &(*desk).packet };
    let (key, tcp_flags) = (packet.key, packet.tcp_flags);
    let (fate, known) = remembered::<F>(frame, &key, tcp_flags);
    if fate.is_open() { judged::<F>(frame, &key, tcp_flags, known) } else { fate }
}

/// What is remembered of a packet: its flow's entry, else a denial, decides; else the fate is open, and the
/// slow path learns what there is.
#[inline(always)]
fn remembered<F: Maps>(frame: &Frame, key: &FlowKey<F::Address>, tcp_flags: u8) -> (Fate, Known) {
    let entry = F::FLOWS.find(key);
    let mut known = Known::NOTHING;
    if let Some(entry) = entry {
        known = known.with(Known::FLOW);
        let fate = established(frame, key, entry, tcp_flags);
        // a denial is older than an entry that is valid
        if fate != Fate::UNDECIDED {
            return (fate, known.with(Known::DENIAL));
        }
    }
    let Some(entry) = F::DENIALS.find(key) else { return (Fate::UNDECIDED, known) };
    (denied(frame, key, entry, tcp_flags), known.with(Known::DENIAL))
}

/// No entry has decided about the packet on the desk: the policy does.
#[inline(always)]
fn judged<F: Maps>(frame: &Frame, key: &FlowKey<F::Address>, tcp_flags: u8, known: Known) -> Fate {
    let Some(desk) = F::desk() else { return Fate::dropped(Drop::NoPolicy) };
    // SAFETY: this CPU's desk, which no other program uses meanwhile.
    unsafe { (*desk).known = known };
    let code = F::slow();
    if code == Action::Remembered as u32 {
        // SAFETY: as above.
        let value = unsafe { &(*desk).value };
        return deliver(frame, value.word.flags(), (value.ifindex, value.destination_mac));
    }
    if code == Action::Confirmed as u32 { confirmed::<F>(frame, key, tcp_flags) } else { undisputed(code) }
}

/// Writes down what the slow path needs to know.
#[inline(always)]
pub fn put_on_desk<F: Maps>(frame: &Frame, key: FlowKey<F::Address>, transport: &Transport) -> Result<(), Drop> {
    let Some(desk) = F::desk() else { return Err(Drop::NoPolicy) };
    // SAFETY: this CPU's desk, which no other program uses meanwhile.
    let desk = unsafe { &mut *desk };
    desk.packet = Packet {
        key,
        source_mac: frame.ethernet.source,
        destination_mac: frame.ethernet.destination,
        ingress: frame.skb.ingress(),
        tcp_flags: transport.tcp_flags,
        packets: frame.skb.packets(),
        bytes: frame.skb.bytes(),
        generation: frame.live.generation,
        settings: frame.live.settings,
        now: now(),
    };
    Ok(())
}
