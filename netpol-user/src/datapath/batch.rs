//! Many entries into a map with one system call, which aya does not have.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::{
    Pod,
    maps::{InnerMap, MapError},
    sys::SyscallError,
};

/// The part of `union bpf_attr` for `BPF_MAP_UPDATE_BATCH` (linux/bpf.h, since Linux 5.6).
#[repr(C)]
#[derive(Default)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    entry_flags: u64,
    flags: u64,
}

/// Inserts or replaces all of them. Not for maps that keep a value for each CPU.
///
/// # Errors
/// Of the first entry that the kernel refuses; those before it are in the map.
pub(super) fn update<K: Pod, V: Pod>(
    map: &impl InnerMap,
    entries: impl ExactSizeIterator<Item = (K, V)>,
) -> Result<(), MapError> {
    const BPF_MAP_UPDATE_BATCH: libc::c_int = 26;
    let (keys, values): (Vec<K>, Vec<V>) = entries.unzip();
    let batch = Batch {
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: u32::try_from(keys.len()).unwrap_or(u32::MAX),
        map: map.fd().as_fd().as_raw_fd() as u32,
        ..Batch::default()
    };
    // SAFETY: the vectors outlive the call and hold `count` keys and values, of the sizes that the map has:
    // the caller made it for these types.
    let done = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_MAP_UPDATE_BATCH, &raw const batch, size_of::<Batch>() as libc::c_uint)
    };
    match done {
        0 => Ok(()),
        _ => Err(SyscallError { call: "bpf_map_update_batch", io_error: io::Error::last_os_error() }.into()),
    }
}
