//! The way of a frame at an uplink: translated, or left alone. The host's own traffic is neither judged nor counted.

use aya_ebpf::bindings::__sk_buff;
use netpol_common::{
    decide::Action,
    drops::{Pass, Side},
    flow::{FlowKey, Place},
    headers::{Ethernet, View as _},
    kernel::Settings,
    parse::{self, V4, V6, ethertype},
    tables::IfIndex,
};

use crate::{
    act::{self, Fate},
    classify::put_on_desk,
    flows::{Seen, confirmed, established, send},
    frame::{Frame, Skb},
    tables::{FlowMap as _, Maps, live},
    unusual::decode,
};

/// The whole way of a frame; returns a TC action.
#[inline(always)]
pub fn uplink(skb: *mut __sk_buff, side: Side) -> i32 {
    let skb = Skb(skb);
    let live = live();
    let is_hosts = matches!(side, Side::To) && skb.ingress() == IfIndex::NONE;
    if !live.settings.has(Settings::TRANSLATE) || is_hosts || skb.is_tagged() {
        return act::NEXT;
    }
    let linear = skb.linear();
    let Ok(ethernet) = linear.read::<Ethernet>(0) else { return act::NEXT };
    let frame = Frame { skb, linear, ethernet, place: Place::new(skb.interface(), side), live };
    let fate = match u16::from_be(ethernet.ethertype) {
        ethertype::IPV4 => ip::<V4>(&frame),
        ethertype::IPV6 => ip::<V6>(&frame),
        _ => return act::NEXT,
    };
    act::finish_uplink(skb, side, fate)
}

#[inline(always)]
fn ip<F: Maps>(frame: &Frame) -> Fate {
    let Some((ip, transport)) = parse::plain::<F, _>(&frame.linear) else { return unusual::<F>(frame) };
    let key = parse::key(&ip, transport.ports, transport.protocol, frame.place);
    let seen = Seen { tcp_flags: transport.tcp_flags, transport: ip.transport as u32 };
    let fate = remembered::<F>(frame, &key, seen);
    if !fate.is_open() {
        return fate;
    }
    if put_on_desk::<F>(frame, key, seen).is_err() {
        return Fate::passed(Pass::Stack);
    }
    resolved::<F>(frame, &key, seen)
}

/// Fragments, headers in between: translated like others, if they can be read.
#[inline(always)]
fn unusual<F: Maps>(frame: &Frame) -> Fate {
    if F::unusual(frame.skb.0, frame.place.0) != Action::Remembered as u32 {
        return Fate::passed(Pass::Stack);
    }
    let Some(desk) = F::desk() else { return Fate::passed(Pass::Stack) };
    // SAFETY: this CPU's desk, as `unusual::read` left it.
    let packet = unsafe { &(*desk).packet };
    let (key, seen) = (packet.key, Seen { tcp_flags: packet.tcp_flags, transport: packet.transport });
    let fate = remembered::<F>(frame, &key, seen);
    if fate.is_open() { resolved::<F>(frame, &key, seen) } else { fate }
}

#[inline(always)]
fn remembered<F: Maps>(frame: &Frame, key: &FlowKey<F::Address>, seen: Seen) -> Fate {
    match F::FLOWS.find(key) {
        Some(entry) => established::<F>(frame, key, entry, seen),
        None => Fate::UNDECIDED,
    }
}

/// No entry speaks for the packet on the desk.
#[inline(always)]
fn resolved<F: Maps>(frame: &Frame, key: &FlowKey<F::Address>, seen: Seen) -> Fate {
    let Some(desk) = F::desk() else { return Fate::passed(Pass::Stack) };
    match decode(F::uplink_slow(frame.skb.0)) {
        // SAFETY: this CPU's desk, which no other program uses meanwhile.
        Ok(Action::Remembered) => send::<F>(frame, key, seen.transport, unsafe { &raw const (*desk).value }),
        Ok(Action::Confirmed) => confirmed::<F>(frame, key, seen),
        Ok(_) => Fate::passed(Pass::Stack),
        Err(drop) => Fate::dropped(drop),
    }
}

