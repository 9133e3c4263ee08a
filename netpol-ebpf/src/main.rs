//! Entry points. `from_workload` goes to TC ingress of the host end of a veth, `to_workload` to its
//! TC egress.
#![no_std]
#![no_main]

use aya_ebpf::{macros::classifier, programs::TcContext};
use netpol_common::drops::Side;
use netpol_ebpf::{aging, classify::classify, uplink::uplink};

#[classifier]
pub fn from_workload(ctx: TcContext) -> i32 {
    classify(ctx.skb.skb, Side::From)
}

#[classifier]
pub fn to_workload(ctx: TcContext) -> i32 {
    classify(ctx.skb.skb, Side::To)
}

/// TC ingress of an uplink.
#[classifier]
pub fn from_uplink(ctx: TcContext) -> i32 {
    uplink(ctx.skb.skb, Side::From)
}

/// TC egress of an uplink.
#[classifier]
pub fn to_uplink(ctx: TcContext) -> i32 {
    uplink(ctx.skb.skb, Side::To)
}

/// Starts the timer that ends silent translations. The loader runs it once, for no packet.
#[classifier]
pub fn age(_: TcContext) -> i32 {
    aging::start()
}

/// Unreachable: a test asserts that the object calls no panicking function.
#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Some helpers are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
