//! The time, in ticks of the monotonic clock, from the kernel's jiffies.
//!
//! Both advance at the same interrupts. But the clock is asked by a call that is three functions deep, which cost an
//! established packet a quarter of its time; jiffies are one load. How far the two are apart is measured when the programs
//! are loaded, and by the timer ever after.

use aya_ebpf::{
    Global,
    helpers::generated::{bpf_jiffies64, bpf_ktime_get_coarse_ns},
};
use netpol_common::flow::Ticks;

/// Nanoseconds of a jiffy. The loader writes it, since no helper tells.
#[unsafe(no_mangle)]
static JIFFY: Global<u64> = Global::new(0);
/// What is added to jiffies to get the clock, in nanoseconds, modulo 2^64.
static mut AHEAD: u64 = 0;

#[inline(always)]
pub fn now() -> Ticks {
    // SAFETY: an aligned word, of which each store is whole.
    let ahead = unsafe { (&raw const AHEAD).read_volatile() };
    Ticks::from_nanos(jiffies().wrapping_add(ahead))
}

/// Measures how far the clock is ahead: to a jiffy, since one of the two may advance in between. (Ticks of the future count as
/// now.)
#[inline(always)]
pub fn set() {
    // SAFETY: no arguments, and as in `now`: two that do this at once find nearly the same.
    unsafe { (&raw mut AHEAD).write_volatile(bpf_ktime_get_coarse_ns().wrapping_sub(jiffies())) }
}

/// Nanoseconds, from a beginning of their own.
#[inline(always)]
fn jiffies() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_jiffies64() }.wrapping_mul(JIFFY.load())
}
