//! Entry points. `from_workload` goes to TC ingress of the host end of a veth, `to_workload` to its
//! TC egress.
#![no_std]
#![no_main]

use aya_ebpf::{macros::classifier, programs::TcContext};
use netpol_common::drops::Side;
use netpol_ebpf::classify::classify;

#[classifier]
pub fn from_workload(ctx: TcContext) -> i32 {
    classify(ctx.skb.skb, Side::From)
}

#[classifier]
pub fn to_workload(ctx: TcContext) -> i32 {
    classify(ctx.skb.skb, Side::To)
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
