//! Entry points. `from_workload` goes to TC ingress of the host end of a veth, `to_workload` to its
//! TC egress.
#![no_std]
#![no_main]

use aya_ebpf::{
    macros::{cgroup_sock_addr, classifier},
    programs::{SockAddrContext, TcContext},
};
use netpol_common::drops::Side;
use netpol_ebpf::{
    aging,
    classify::classify,
    clock,
    socket::{reach4, reach6, tell4, tell6},
    uplink::uplink,
};

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

/// The loader runs it once, for no packet, before any other.
#[classifier]
pub fn set_clock(_: TcContext) -> i32 {
    clock::set();
    0
}

/// Starts the timer that ends silent translations. The loader runs it once, for no packet.
#[classifier]
pub fn age(_: TcContext) -> i32 {
    aging::start()
}

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    reach4(ctx.sock_addr)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    reach4(ctx.sock_addr)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    tell4(ctx.sock_addr)
}

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    tell4(ctx.sock_addr)
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    reach6(ctx.sock_addr)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    reach6(ctx.sock_addr)
}

#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    tell6(ctx.sock_addr)
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    tell6(ctx.sock_addr)
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
