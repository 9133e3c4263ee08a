//! The way of a frame at a workload's interface.
//!
//! ```text
//! fast (a function of its own)    parse -> flow entry -> valid: tell its translation, count it, translate it, act
//!                                                     -> else: remembered denial -> drop
//!                                                                    -> else: the desk
//! slow (one function a stage)     identify -> resolve (-> depart) -> judge -> audit -> claim a translation -> settle (netpol_common::decide)
//! ```
//!
//! What is not a whole packet with ports takes the way through [`unusual`](crate::unusual) first. Each stage is a
//! function that the verifier looks at on its own, called from here: nested, their stack frames would be too large.

use aya_ebpf::bindings::__sk_buff;
use netpol_common::{
    decide::Action,
    drops::{Drop, Pass, Side},
    flow::Place,
    guard,
    headers::{ETHERTYPE, Ethernet, Ethertype, View as _},
    nat::{self, Claim},
    parse::{V4, V6, ethertype},
    tables::{AddressFlags, IfIndex},
};

use crate::{
    act::{self, Fate},
    family::Maps,
    frame::Skb,
    refuse::refuse,
    tables::{hook, live},
    tell::{self, about},
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
    let Ok(Ethertype { ethertype }) = skb.linear().read(ETHERTYPE) else { return Fate::dropped(Drop::Malformed) };
    // A tag beside the frame is stripped after us (VID 0), so the host would see what we did not.
    let place = Place::new(skb.interface(), side);
    if skb.is_tagged() {
        return told(skb, place, Fate::dropped(Drop::Vlan));
    }
    let fate = match u16::from_be(ethertype) {
        ethertype::IPV4 => return ip::<V4>(skb, place),
        ethertype::IPV6 => return ip::<V6>(skb, place),
        ethertype::ARP => undisputed(verified::arp(skb.0, place.0)),
        ethertype::VLAN | ethertype::QINQ => Fate::dropped(Drop::Vlan),
        _ => unknown(skb, place),
    };
    told(skb, place, fate)
}

/// The fate of a frame that is not IP: observers are told if it is dropped.
#[inline(always)]
fn told(skb: Skb, place: Place, fate: Fate) -> Fate {
    if !fate.is_settled() && tell::is_observed() {
        verified::tell_frame(skb.0, place.0, fate.reason());
    }
    fate
}

/// An EtherType that policy says nothing about.
#[inline(always)]
fn unknown(skb: Skb, place: Place) -> Fate {
    let live = live();
    let Ok(ethernet) = skb.linear().read::<Ethernet>(0) else { return Fate::dropped(Drop::Malformed) };
    let Some(hook) = hook(live.generation.slot(), place.ifindex()) else {
        return undisputed(encode(guard::waiting(live.settings)));
    };
    let isolated = match place.side() {
        // bridges learn from any frame: another's MAC address would draw the other's traffic here
        Side::From if ethernet.source != hook.mac => return Fate::dropped(Drop::Spoofed),
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
        Ok(_) => Fate::dropped(Drop::NoPolicy),
        Err(drop) => Fate::dropped(drop),
    }
}

#[inline(always)]
fn ip<F: Maps>(skb: Skb, place: Place) -> Fate {
    let fate = F::fast(skb, place);
    if fate.is_settled() { fate } else { unsettled::<F>(skb, place, fate) }
}

/// Everything but the packets of established connections.
#[inline(always)]
fn unsettled<F: Maps>(skb: Skb, place: Place, mut fate: Fate) -> Fate {
    let mut about = 0;
    if fate == Fate::UNUSUAL {
        let code = F::unusual(skb.0, place.0);
        if decode(code).is_ok() {
            about = about::ON_DESK;
        }
        fate = unusual::<F>(skb, place, code);
    }
    if fate.is_open() {
        fate = slow::<F>(skb, place);
        about = about::ON_DESK | about::JUDGED;
    }
    if !fate.is_settled() && tell::is_observed() {
        F::tell_drop(skb, place, fate.reason() | about);
    }
    fate
}

/// A packet that takes a longer way to its flow, or has none; `code` is what was found out about it.
#[inline(always)]
fn unusual<F: Maps>(skb: Skb, place: Place, code: u32) -> Fate {
    if code == Action::Related as u32 {
        let code = F::related();
        return if code == Action::Translated as u32 { error::<F>(skb, place.side()) } else { undisputed(code) };
    }
    if code == Action::Link as u32 {
        return undisputed(verified::link(skb.0, place.0));
    }
    if code != Action::Remembered as u32 {
        return undisputed(code);
    }
    F::again(skb, place)
}

/// An ICMP error about a translated packet. Between endpoints it is delivered directly: it comes from the service's address
/// now, which may be the host's own, and the host takes no such packet from an interface.
#[inline(always)]
fn error<F: Maps>(skb: Skb, side: Side) -> Fate {
    let Some(desk) = F::desk() else { return Fate::dropped(Drop::NoPolicy) };
    if F::rewrite_error(skb.0) != 0 {
        return Fate::dropped(Drop::Translation);
    }
    // SAFETY: this CPU's desk, which no other program uses meanwhile.
    let (interface, mac) = unsafe { (*desk).receiver() };
    match side {
        Side::From if interface != IfIndex::NONE => Fate::routed(skb, interface, mac),
        _ => Fate::passed(Pass::Stack),
    }
}

/// No entry has decided about the packet on the desk: the policy does.
#[inline(always)]
fn slow<F: Maps>(skb: Skb, place: Place) -> Fate {
    let mut code = F::identify();
    if code == Action::Resolve as u32 {
        code = F::resolve();
    }
    if code == Action::Depart as u32 {
        code = F::depart(skb.0);
    }
    code = judged::<F>(skb, code);
    if code == Action::Settle as u32 {
        code = F::settle();
    }
    if code == Action::Remembered as u32 {
        // as it came: it may be translated next
        if tell::is_observed() {
            F::tell_remembered(skb);
        }
        return F::send(skb, place);
    }
    if code == Action::Confirmed as u32 {
        return confirmed::<F>(skb, place);
    }
    if code == encode(Err(Drop::NoBackend)) { refuse::<F>(skb, place) } else { undisputed(code) }
}

/// The entry of the packet on the desk decides; where it is not there any more, what it said is on the desk, too.
#[inline(always)]
pub fn confirmed<F: Maps>(skb: Skb, place: Place) -> Fate {
    let fate = F::confirm(skb, place);
    if fate.is_open() { F::send(skb, place) } else { fate }
}

/// From [`Action::Judge`] on, as far as [`Action::Settle`].
#[inline(always)]
pub fn judged<F: Maps>(skb: Skb, mut code: u32) -> u32 {
    if code == Action::Judge as u32 {
        code = F::judge();
    }
    if code == Action::Audit as u32 {
        code = F::audit();
    }
    if code == Action::Claim as u32 {
        code = claimed::<F>(skb);
    }
    code
}

/// Gets a pair of translations for the packet on the desk: [`Action::Settle`], or why not.
#[inline(always)]
fn claimed<F: Maps>(skb: Skb) -> u32 {
    for _ in 0..nat::ATTEMPTS {
        let claim = F::attempt(skb.0);
        if claim == Claim::Made as u32 {
            return Action::Settle as u32;
        }
        if claim != Claim::Taken as u32 {
            break;
        }
    }
    encode(Err(Drop::Translation))
}
