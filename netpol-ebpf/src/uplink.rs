//! The way of a frame at an uplink: translated, or left alone. The host's own traffic is neither judged nor counted; of
//! that, only errors about translated packets are changed.

use aya_ebpf::bindings::__sk_buff;
use netpol_common::{
    decide::Action,
    drops::{Drop, Pass, Side},
    flow::Place,
    headers::{ETHERTYPE, Ethertype, View as _},
    kernel::Settings,
    parse::{NETWORK, V4, V6, ethertype},
    tables::IfIndex,
};

use crate::{
    act::{self, Fate},
    classify::{confirmed, judged},
    family::Maps,
    frame::Skb,
    refuse::refuse,
    tables::{hook, live},
    tell::{self, about},
    unusual::decode,
};

/// The whole way of a frame; returns a TC action.
#[inline(always)]
pub fn uplink(skb: *mut __sk_buff, side: Side) -> i32 {
    let skb = Skb(skb);
    let is_others = match side {
        Side::From => !skb.is_for_host(),
        // what one of our interfaces received, and sent out here
        Side::To => skb.is_vouched() && is_of_ours(skb),
    };
    if is_others || skb.is_tagged() || !live().settings.has(Settings::TRANSLATE) {
        return act::NEXT;
    }
    let Ok(Ethertype { ethertype }) = skb.linear().read(ETHERTYPE) else { return act::NEXT };
    let place = Place::new(skb.interface(), side);
    let is_hosts = matches!(side, Side::To) && skb.ingress() == IfIndex::NONE;
    let fate = match u16::from_be(ethertype) {
        ethertype::IPV4 if is_hosts => hosts_own::<V4>(skb, place),
        ethertype::IPV6 if is_hosts => hosts_own::<V6>(skb, place),
        ethertype::IPV4 => ip::<V4>(skb, place),
        ethertype::IPV6 => ip::<V6>(skb, place),
        _ => return act::NEXT,
    };
    act::finish_uplink(skb, side, fate)
}

/// Whether one of our interfaces received it.
#[inline(always)]
fn is_of_ours(skb: Skb) -> bool {
    let generation = live().generation;
    skb.came_like_the_last(generation) || hook(generation.slot(), skb.ingress()).is_some()
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
        // fragments, headers in between: translated like others, if they can be read
        fate = match decode(F::unusual(skb.0, place.0)) {
            Ok(Action::Related) => error::<F>(skb),
            Ok(Action::Remembered) => F::again(skb, place),
            _ => Fate::passed(Pass::Stack),
        };
        about = about::ON_DESK;
    }
    if fate.is_open() {
        // as it came: a refusal has its answer in its place
        fate = slow::<F>(skb, place);
        about = about::ON_DESK | about::JUDGED;
    }
    if !fate.is_settled() && tell::is_observed() {
        F::tell_drop(skb, place, fate.reason() | about);
    }
    fate
}

/// An ICMP error: about a translated packet, it is translated, too.
#[inline(always)]
fn error<F: Maps>(skb: Skb) -> Fate {
    if F::related_uplink() != Action::Translated as u32 || F::rewrite_error(skb.0) == 0 {
        return Fate::passed(Pass::Stack);
    }
    Fate::dropped(Drop::Translation)
}

/// The host's own traffic is left alone, but for what it says about a packet that it has routed (too large, no route,
/// hop limit): it quotes what it saw, and the sender knows only what was sent.
#[inline(always)]
fn hosts_own<F: Maps>(skb: Skb, place: Place) -> Fate {
    match F::network(&skb.linear(), NETWORK) {
        Ok(ip) if ip.protocol == F::ICMP => {}
        _ => return Fate::passed(Pass::Stack),
    }
    if F::unusual(skb.0, place.0) != Action::Related as u32 {
        return Fate::passed(Pass::Stack);
    }
    error::<F>(skb)
}

/// Whether the packet on the desk goes to its endpoint from here.
#[inline(always)]
fn is_direct<F: Maps>() -> bool {
    // SAFETY: this CPU's desk, which no other program uses meanwhile.
    F::desk().is_some_and(|desk| unsafe { (*desk).is_direct() })
}

/// No entry speaks for the packet on the desk.
#[inline(always)]
fn slow<F: Maps>(skb: Skb, place: Place) -> Fate {
    let mut code = F::identify_uplink(skb.0);
    code = judged::<F>(skb, code);
    if code == Action::Settle as u32 {
        code = if is_direct::<F>() { F::settle() } else { F::settle_uplink() };
    }
    match decode(code) {
        Ok(Action::Remembered) => {
            if tell::is_observed() {
                F::tell_remembered(skb);
            }
            F::send(skb, place)
        }
        Ok(Action::Confirmed) => confirmed::<F>(skb, place),
        Ok(_) => Fate::passed(Pass::Stack),
        Err(Drop::NoBackend) => refuse::<F>(skb, place),
        Err(drop) => Fate::dropped(drop),
    }
}
