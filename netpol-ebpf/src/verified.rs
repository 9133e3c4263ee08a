//! Functions that the verifier looks at once, on their own, whoever calls them: it knows nothing of
//! their arguments but their types, so what it must explore does not multiply.
//!
//! Each has its own stack frame, too: the hot path stays small. What they return is one register.

use aya_ebpf::bindings::__sk_buff;
use netpol_common::{
    decide::{self, Action, Desk, translate},
    drops::Drop,
    flow::{FlowKey, FlowValue, Generation, Place, Ticks},
    nat::Claim,
    parse::{Family as _, Followed, NETWORK, V4, V6},
    policy::{self, Probe},
    table::{Block, Stalest},
    tables::{Identity, IfIndex, Subject},
    wire::{Addr4, Addr6},
};

use crate::{
    act,
    family::Maps,
    flows,
    frame::Skb,
    leave, refuse, rewrite,
    tables::Tables,
    tell,
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

/// A stage of [`decide`], on this CPU's desk.
#[inline(always)]
fn stage<F: Maps>(skb: Skb, stage: impl FnOnce(&Tables<F>, &mut Desk<F::Address>) -> Result<Action, Drop>) -> u32 {
    let Some(desk) = F::desk() else { return encode(Err(Drop::NoPolicy)) };
    // SAFETY: this CPU's desk, which no other program uses meanwhile.
    let desk = unsafe { &mut *desk };
    encode(stage(&Tables::<F>::of(skb, desk.packet.generation), desk))
}

/// Declares a function for each family: `decide`'s stages, each with a stack frame of its own.
macro_rules! stages {
    ($($four:ident, $six:ident: $stage:expr;)*) => {$(
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $four() -> u32 {
            stage::<V4>(NO_PACKET, $stage)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $six() -> u32 {
            stage::<V6>(NO_PACKET, $stage)
        }
    )*};
}

/// The same for stages that ask the kernel about the packet itself.
macro_rules! stages_of_packet {
    ($($four:ident, $six:ident: $stage:expr;)*) => {$(
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $four(skb: *mut __sk_buff) -> u32 {
            stage::<V4>(Skb(skb), $stage)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $six(skb: *mut __sk_buff) -> u32 {
            stage::<V6>(Skb(skb), $stage)
        }
    )*};
}

stages_of_packet! {
    depart4, depart6: decide::depart;
    identify_uplink4, identify_uplink6: decide::identify_uplink;
}

stages! {
    identify4, identify6: decide::identify;
    resolve4, resolve6: decide::resolve;
    judge4, judge6: decide::judge;
    audit4, audit6: decide::audit;
    settle4, settle6: decide::settle;
    settle_uplink4, settle_uplink6: decide::settle_uplink;
    related4, related6: decide::decide_icmp_error;
    related_uplink4, related_uplink6: decide::decide_uplink_error;
}

/// The chain of headers of an IPv6 packet, which other functions would have the verifier walk again and again.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn follow6(skb: *mut __sk_buff) -> u64 {
    let linear = Skb(skb).linear();
    Followed::pack(V6::network(&linear, NETWORK).and_then(|ip| V6::follow(&linear, ip))).0
}

/// [`rewrite::error`] of the packet on this CPU's desk. 0: done.
#[inline(always)]
fn rewrite_error<F: Maps>(skb: *mut __sk_buff) -> u32 {
    let Some(desk) = F::desk() else { return 1 };
    // SAFETY: this CPU's desk, which no other program uses meanwhile.
    let desk = unsafe { &*desk };
    u32::from(rewrite::error::<F>(Skb(skb), desk).is_err())
}

/// Declares a function for each family: what is done with a packet. They return a packed [`Fate`].
macro_rules! ways {
    ($($four:ident, $six:ident: $module:ident::$way:ident;)*) => {$(
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $four(skb: *mut __sk_buff, place: u32) -> u64 {
            $module::$way::<V4>(Skb(skb), Place(place)).pack()
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $six(skb: *mut __sk_buff, place: u32) -> u64 {
            $module::$way::<V6>(Skb(skb), Place(place)).pack()
        }
    )*};
}

ways! {
    fast4, fast6: flows::fast;
    again4, again6: flows::again;
    send4, send6: flows::send;
    confirm4, confirm6: flows::confirm;
    reset4, reset6: refuse::reset;
    unreachable4, unreachable6: refuse::unreachable;
}

/// Counts a packet that passes, and that audited policies would have stopped: see
/// [`audit_code`](netpol_common::drops::audit_code).
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn would_drop(skb: *mut __sk_buff, index: u32) -> u32 {
    act::count(Skb(skb), index);
    0
}

/// [`leave::may_leave`]. 0: it may.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn may_leave4(skb: *mut __sk_buff, uplink: u32) -> u32 {
    u32::from(!leave::may_leave::<V4>(Skb(skb), IfIndex(uplink)))
}

/// The same for IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn may_leave6(skb: *mut __sk_buff, uplink: u32) -> u32 {
    u32::from(!leave::may_leave::<V6>(Skb(skb), IfIndex(uplink)))
}

/// [`translate::attempt`] on this CPU's desk. It searches the sockets of the packet's namespace.
#[inline(always)]
fn attempt<F: Maps>(skb: *mut __sk_buff) -> u32 {
    let Some(desk) = F::desk() else { return Claim::Full as u32 };
    // SAFETY: this CPU's desk, which no other program uses meanwhile.
    let desk = unsafe { &mut *desk };
    translate::attempt(&Tables::<F>::of(Skb(skb), desk.packet.generation), desk) as u32
}

/// [`decide::renew`] on this CPU's desk. 0: done.
#[inline(always)]
fn renew<F: Maps>() -> u32 {
    let Some(desk) = F::desk() else { return 1 };
    // SAFETY: this CPU's desk, which no other program uses meanwhile.
    let desk = unsafe { &mut *desk };
    u32::from(!decide::renew(&Tables::<F>::of(NO_PACKET, desk.packet.generation), desk))
}

/// Declares a function for each family, with its code above: what else is done with the packet on this CPU's desk.
macro_rules! of_desk {
    ($($four:ident, $six:ident($($skb:ident)?): $what:ident;)*) => {$(
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $four($($skb: *mut __sk_buff)?) -> u32 {
            $what::<V4>($($skb)?)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $six($($skb: *mut __sk_buff)?) -> u32 {
            $what::<V6>($($skb)?)
        }
    )*};
}

of_desk! {
    rewrite_error4, rewrite_error6(skb): rewrite_error;
    attempt4, attempt6(skb): attempt;
    renew4, renew6(): renew;
}

/// Another CPU was in the way of what is to be put down.
pub const AGAIN: u32 = 2;

/// Declares functions for each family: [`Table::refresh`](crate::places::Table::refresh),
/// [`Table::put`](crate::places::Table::put), of which 0 says that it is done, and
/// [`Block::stalest`].
macro_rules! tables {
    ($($family:ident, $address:ty: $refresh:ident, $put:ident, $stalest:ident;)*) => {$(
        /// # Safety
        ///
        /// The pointer is null or valid for reads.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub unsafe extern "C" fn $refresh(key: *const FlowKey<$address>, generation: u32, now: u32) -> u32 {
            // SAFETY: the caller's, and the verifier proves it; null is what it asks to be told from.
            let Some(key) = (unsafe { key.as_ref() }) else { return 0 };
            u32::from($family::FLOWS.refresh(key, Generation(generation), Ticks(now)))
        }

        /// # Safety
        ///
        /// The pointers are null or valid for reads.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub unsafe extern "C" fn $put(key: *const FlowKey<$address>, value: *const FlowValue<$address>) -> u32 {
            // SAFETY: the caller's, and the verifier proves it; null is what it asks to be told from.
            let (Some(key), Some(value)) = (unsafe { key.as_ref() }, unsafe { value.as_ref() }) else { return 1 };
            let stalest = |block: &Block<$address>, group, now: Ticks| {
                // SAFETY: a reference.
                Stalest(unsafe { $stalest(block, group as u32, now.0) })
            };
            match $family::FLOWS.put(key, value, stalest) {
                Some(true) => 0,
                Some(false) => AGAIN,
                None => 1,
            }
        }

        /// # Safety
        ///
        /// As above.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub unsafe extern "C" fn $stalest(block: *const Block<$address>, group: u32, now: u32) -> u64 {
            // SAFETY: as above.
            unsafe { block.as_ref() }.map_or(0, |block| block.stalest(group as usize, Ticks(now)).0)
        }
    )*};
}

tables! {
    V4, Addr4: refresh4, put4, stalest4;
    V6, Addr6: refresh6, put6, stalest6;
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

/// Declares functions for a family: what observers are told ([`tell`]). The verifier wants global functions to return
/// something.
macro_rules! tells {
    ($($family:ident, $address:ty: $remembered:ident, $closing:ident, $drop:ident;)*) => {$(
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $remembered(skb: *mut __sk_buff) -> u32 {
            tell::remembered::<$family>(Skb(skb));
            0
        }

        /// # Safety
        ///
        /// The pointers are null or valid for reads.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub unsafe extern "C" fn $closing(
            skb: *mut __sk_buff,
            key: *const FlowKey<$address>,
            value: *const FlowValue<$address>,
        ) -> u32 {
            // SAFETY: the caller's, and the verifier proves it; null is what it asks to be told from.
            if let (Some(key), Some(value)) = unsafe { (key.as_ref(), value.as_ref()) } {
                tell::closing::<$family>(Skb(skb), key, value);
            }
            0
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $drop(skb: *mut __sk_buff, place: u32, about: u32) -> u32 {
            tell::drop::<$family>(Skb(skb), Place(place), about);
            0
        }
    )*};
}

tells! {
    V4, Addr4: tell_remembered4, tell_closing4, tell_drop4;
    V6, Addr6: tell_remembered6, tell_closing6, tell_drop6;
}

/// [`tell::frame`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tell_frame(skb: *mut __sk_buff, place: u32, reason: u32) -> u32 {
    tell::frame::<V4>(Skb(skb), Place(place), reason);
    0
}
