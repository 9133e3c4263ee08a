//! The timer that ends silent translations, and keeps the clock. It is part of a pinned map, so it runs without any
//! process.

use core::ffi::{c_long, c_void};

use aya_ebpf::helpers::generated::{
    bpf_for_each_map_elem, bpf_map_delete_elem, bpf_timer_init, bpf_timer_set_callback, bpf_timer_start,
};
use netpol_common::{
    nat::{self, NatKey, Translation},
    wire::{Addr4, Addr6, Address},
};

use crate::{
    clock,
    maps::{AGING, Aging, NAT4, NAT6},
};

/// Between two rounds, in nanoseconds.
const PERIOD: u64 = 5_000_000_000;
/// Once in so many rounds translations are looked at. That takes the CPU from packets: 10 to 50 ms for 200,000 halves.
const ROUNDS: u64 = 3;
const CLOCK_MONOTONIC: u64 = 1;

/// Arms the timer, with this build's callback. 0: it runs.
#[inline(always)]
pub fn start() -> i32 {
    let Some(aging) = AGING.get_ptr_mut(0) else { return -1 };
    // SAFETY: an element of the map that is named, which stays as long as the map does.
    unsafe {
        let timer = (&raw mut (*aging).timer).cast();
        // armed already, by an earlier load: then only the callback is new
        bpf_timer_init(timer, (&raw const AGING).cast_mut().cast(), CLOCK_MONOTONIC);
        if bpf_timer_set_callback(timer, round as *mut c_void) != 0 {
            return -1;
        }
        bpf_timer_start(timer, PERIOD, 0) as i32
    }
}

/// Sets the clock, and looks at all translations when it is time.
unsafe extern "C" fn round(_map: *mut c_void, _key: *mut u32, aging: *mut Aging) -> i32 {
    clock::set();
    // SAFETY: the helpers are given the maps that their callbacks are for, and the timer that has just run.
    unsafe {
        if (*aging).rounds.is_multiple_of(ROUNDS) {
            bpf_for_each_map_elem(
                (&raw const NAT4).cast_mut().cast(),
                end::<Addr4> as *mut c_void,
                core::ptr::null_mut(),
                0,
            );
            bpf_for_each_map_elem(
                (&raw const NAT6).cast_mut().cast(),
                end::<Addr6> as *mut c_void,
                core::ptr::null_mut(),
                0,
            );
        }
        (*aging).rounds += 1;
        bpf_timer_start((&raw mut (*aging).timer).cast(), PERIOD, 0);
    }
    0
}

/// Deletes one if it was silent for too long.
unsafe extern "C" fn end<A: Address>(
    map: *mut c_void,
    key: *const NatKey<A>,
    half: *const Translation<A>,
    _: *mut c_void,
) -> c_long {
    // SAFETY: what the kernel gives to the callback: an element of the map, and its key.
    unsafe {
        if nat::is_expired(&*key, &*half, clock::now()) {
            bpf_map_delete_elem(map, key.cast_mut().cast());
        }
    }
    0
}
