//! Functions that the verifier looks at once, on their own, whoever calls them: it knows nothing of
//! their arguments but their types, so what it must explore does not multiply.
//!
//! Each has its own stack frame, too: the hot path stays small. What they return is one register.

use aya_ebpf::bindings::__sk_buff;
use netpol_common::{
    decide,
    drops::Drop,
    flow::Generation,
    parse::{V4, V6},
    policy::{self, Probe},
    tables::{Identity, Subject},
};

use crate::{
    tables::{Maps, Tables},
    unusual::{self, encode},
};

/// What [`policy_verdict`] returns when the tables do not know the subject: bits that no ruling has.
pub const UNKNOWN: u32 = u32::MAX;

/// [`policy::verdict`] in a slot.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn policy_verdict(generation: u32, subject: u32, peer: u32, probe: u64) -> u32 {
    let tables = Tables::<V4>::of(Generation(generation));
    match policy::verdict(&tables, Subject(subject), Identity(peer), Probe::unpack(probe)) {
        Some(ruling) => ruling.0,
        None => UNKNOWN,
    }
}

/// [`decide::decide`] on this CPU's desk.
#[inline(always)]
fn slow<F: Maps>() -> u32 {
    let Some(desk) = F::desk() else { return encode(Err(Drop::NoPolicy)) };
    // SAFETY: this CPU's desk, which no other program uses meanwhile.
    let desk = unsafe { &mut *desk };
    encode(decide::decide(&Tables::<F>::of(desk.packet.generation), desk))
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn slow4() -> u32 {
    slow::<V4>()
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn slow6() -> u32 {
    slow::<V6>()
}

/// [`decide::decide_icmp_error`] on this CPU's desk.
#[inline(always)]
fn related<F: Maps>() -> u32 {
    let Some(desk) = F::desk() else { return encode(Err(Drop::NoPolicy)) };
    // SAFETY: this CPU's desk, which no other program uses meanwhile.
    let desk = unsafe { &mut *desk };
    encode(decide::decide_icmp_error(&Tables::<F>::of(desk.packet.generation), desk))
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn related4() -> u32 {
    related::<V4>()
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn related6() -> u32 {
    related::<V6>()
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn unusual4(skb: *mut __sk_buff, place: u32) -> u32 {
    encode(unusual::read::<V4>(skb, place))
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn unusual6(skb: *mut __sk_buff, place: u32) -> u32 {
    encode(unusual::read::<V6>(skb, place))
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn arp(skb: *mut __sk_buff, place: u32) -> u32 {
    encode(unusual::arp(skb, place))
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn link(skb: *mut __sk_buff, place: u32) -> u32 {
    encode(unusual::link(skb, place))
}
