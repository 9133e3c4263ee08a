//! Millions of entries into an array through its memory: a system call copies them one by one, and takes a
//! second for ten thousand services.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    ptr,
};

use aya::maps::{InnerMap, MapError};

/// The kernel keeps every value of an array at a multiple of 8 bytes (kernel/bpf/arraymap.c).
const STRIDE: usize = 8;

/// Writes `words` into the beginning of an array of `u32` that was made for as many, with `BPF_F_MMAPABLE`.
pub(super) fn write(map: &impl InnerMap, words: &[u32]) -> Result<(), MapError> {
    let length = words.len() * STRIDE;
    if length == 0 {
        return Ok(());
    }
    let fd = map.fd().as_fd().as_raw_fd();
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    // SAFETY: a new mapping, wherever the kernel likes; it refuses a length that the map does not have.
    let memory = unsafe { libc::mmap(ptr::null_mut(), length, protection, flags, fd, 0) };
    if memory == libc::MAP_FAILED {
        return Err(io::Error::last_os_error().into());
    }
    for (index, word) in words.iter().enumerate() {
        // SAFETY: inside of the mapping, which is aligned to a page; nobody else has it mapped or reads the map.
        unsafe { memory.byte_add(index * STRIDE).cast::<u32>().write(*word) };
    }
    // SAFETY: the mapping made above, of which nothing is kept.
    unsafe { libc::munmap(memory, length) };
    Ok(())
}
