//! Reading a hash map whole, thousands of entries in one system call (`BPF_MAP_LOOKUP_BATCH`, Linux 5.6).
//!
//! The kernel goes bucket by bucket, each under its lock: an entry is given once, whole, and nothing
//! marks it as used. (aya asks for the next key and then for its value: two calls for each entry.)

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use aya::Pod;

/// How many entries to ask for at once. A bucket must fit; those of a map this large hold a few.
const AT_ONCE: usize = 8192;

/// `batch` of `union bpf_attr` in linux/bpf.h.
#[repr(C)]
struct Attributes {
    /// Where the last call ended, as the kernel wrote it down; null at the beginning.
    from: *const u32,
    ended: *mut u32,
    keys: *mut libc::c_void,
    values: *mut libc::c_void,
    count: u32,
    map: i32,
    element_flags: u64,
    flags: u64,
}

/// Gives every entry of a hash map to `each`.
///
/// # Errors
/// What the kernel says, such as `EINVAL` before Linux 5.6.
pub(super) fn read<K: Pod, V: Pod>(map: BorrowedFd<'_>, mut each: impl FnMut(&K, &V)) -> io::Result<()> {
    let mut room = AT_ONCE;
    let (mut keys, mut values) = (Vec::<K>::with_capacity(room), Vec::<V>::with_capacity(room));
    let mut place: Option<u32> = None;
    loop {
        let mut ended = 0;
        let mut attributes = Attributes {
            from: place.as_ref().map_or(std::ptr::null(), |place| &raw const *place),
            ended: &raw mut ended,
            keys: keys.as_mut_ptr().cast(),
            values: values.as_mut_ptr().cast(),
            count: room as u32,
            map: map.as_raw_fd(),
            element_flags: 0,
            flags: 0,
        };
        let outcome = lookup(&mut attributes);
        match &outcome {
            // a bucket has more entries than there is room for
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && attributes.count == 0 => {
                room *= 2;
                keys.reserve(room);
                values.reserve(room);
                continue;
            }
            Err(error) if !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOSPC)) => return outcome,
            _ => {}
        }
        let count = (attributes.count as usize).min(room);
        // SAFETY: there is room for that many, and the kernel has filled them; any bytes are a valid Pod.
        unsafe {
            keys.set_len(count);
            values.set_len(count);
        }
        keys.iter().zip(&values).for_each(|(key, value)| each(key, value));
        keys.clear();
        values.clear();
        match outcome {
            // the last bucket was among these
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
            _ => place = Some(ended),
        }
    }
}

fn lookup(attributes: &mut Attributes) -> io::Result<()> {
    const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
    // SAFETY: the structure outlives the call, and its buffers have room for `count` entries.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_LOOKUP_BATCH,
            &raw mut *attributes,
            size_of::<Attributes>() as libc::c_uint,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
