//! Functions that the verifier looks at once, on their own, whoever calls them: it knows nothing of
//! their arguments but their types, so what it must explore does not multiply.
//!
//! Each has its own stack frame, too: the hot path stays small. What they return is one register.

use aya_ebpf::bindings::__sk_buff;
use netpol_common::{
    decide,
    drops::Drop,
    flow::{Generation, Rewrite},
    parse::{V4, V6},
    policy::{self, Probe},
    tables::{Identity, Subject},
    wire::{Addr4, Addr6},
};

use crate::{
    frame::Skb,
    rewrite,
    tables::{Maps, Tables},
    unusual::{self, encode},
};

/// What [`policy_verdict`] returns when the tables do not know the subject: bits that no ruling has.
pub const UNKNOWN: u32 = u32::MAX;

/// For questions that are not about a packet's sockets.
const NO_PACKET: Skb = Skb(core::ptr::null_mut());

/// [`policy::verdict`] in a slot.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn policy_verdict(generation: u32, subject: u32, peer: u32, probe: u64) -> u32 {
    let tables = Tables::<V4>::of(NO_PACKET, Generation(generation));
    match policy::verdict(&tables, Subject(subject), Identity(peer), Probe::unpack(probe)) {
        Some(ruling) => ruling.0,
        None => UNKNOWN,
    }
}

/// [`decide::decide`] on this CPU's desk.
#[inline(always)]
fn slow<F: Maps>(skb: *mut __sk_buff) -> u32 {
    let Some(desk) = F::desk() else { return encode(Err(Drop::NoPolicy)) };
    // SAFETY: this CPU's desk, which no other program uses meanwhile.
    let desk = unsafe { &mut *desk };
    encode(decide::decide(&Tables::<F>::of(Skb(skb), desk.packet.generation), desk))
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn slow4(skb: *mut __sk_buff) -> u32 {
    slow::<V4>(skb)
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn slow6(skb: *mut __sk_buff) -> u32 {
    slow::<V6>(skb)
}

/// [`decide::decide_uplink`] on this CPU's desk.
#[inline(always)]
fn uplink<F: Maps>(skb: *mut __sk_buff) -> u32 {
    let Some(desk) = F::desk() else { return encode(Err(Drop::NoPolicy)) };
    // SAFETY: this CPU's desk, which no other program uses meanwhile.
    let desk = unsafe { &mut *desk };
    encode(decide::decide_uplink(&Tables::<F>::of(Skb(skb), desk.packet.generation), desk))
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn uplink4(skb: *mut __sk_buff) -> u32 {
    uplink::<V4>(skb)
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn uplink6(skb: *mut __sk_buff) -> u32 {
    uplink::<V6>(skb)
}

/// [`rewrite::rewrite`]. 0: done.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn rewrite4(
    skb: *mut __sk_buff,
    from: *const Rewrite<Addr4>,
    to: *const Rewrite<Addr4>,
    at: u32,
) -> u32 {
    // SAFETY: what the caller has on its stack or in a map, as the verifier proves; null is what it asks to be told from.
    let (Some(from), Some(to)) = (unsafe { from.as_ref() }, unsafe { to.as_ref() }) else { return 1 };
    u32::from(rewrite::rewrite::<V4>(Skb(skb), from, to, at).is_err())
}

/// The same for IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn rewrite6(
    skb: *mut __sk_buff,
    from: *const Rewrite<Addr6>,
    to: *const Rewrite<Addr6>,
    at: u32,
) -> u32 {
    // SAFETY: as in `rewrite4`.
    let (Some(from), Some(to)) = (unsafe { from.as_ref() }, unsafe { to.as_ref() }) else { return 1 };
    u32::from(rewrite::rewrite::<V6>(Skb(skb), from, to, at).is_err())
}

/// [`decide::decide_icmp_error`] on this CPU's desk.
#[inline(always)]
fn related<F: Maps>() -> u32 {
    let Some(desk) = F::desk() else { return encode(Err(Drop::NoPolicy)) };
    // SAFETY: this CPU's desk, which no other program uses meanwhile.
    let desk = unsafe { &mut *desk };
    encode(decide::decide_icmp_error(&Tables::<F>::of(NO_PACKET, desk.packet.generation), desk))
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
