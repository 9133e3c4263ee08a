//! Many entries of a map with one system call, which aya does not have (Linux 5.6).

use std::{
    cell::Cell,
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
};

use aya::{
    Pod,
    maps::{InnerMap, Map, MapError},
    sys::SyscallError,
};

use super::calls::{Batch, Command, call};

/// How many bytes of entries to ask for at once. A bucket must fit; those of a map this large hold a few.
const AT_ONCE: usize = 1 << 20;

/// Gives every entry of a hash map or an array to `each`.
///
/// The kernel goes through a hash bucket by bucket, each under its lock: an entry is given once, whole, and nothing
/// marks it as used; an element of an array may be written while it is copied. (aya asks for the next key and then for its value: two calls for each entry.)
///
/// # Errors
/// What the kernel says, such as `EINVAL` before Linux 5.6.
pub(super) fn read<K: Pod, V: Pod>(map: BorrowedFd<'_>, mut each: impl FnMut(&K, &V)) -> io::Result<()> {
    let mut room = (AT_ONCE / (size_of::<K>() + size_of::<V>())).max(1);
    let (mut keys, mut values) = (Vec::<K>::with_capacity(room), Vec::<V>::with_capacity(room));
    // where the last call ended, as the kernel wrote it down
    let mut place: Option<u32> = None;
    loop {
        let mut ended = 0_u32;
        let batch = Batch {
            from: place.as_ref().map_or(0, |place| &raw const *place as u64),
            ended: &raw mut ended as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: Cell::new(room as u32),
            map: map.as_raw_fd(),
            ..Batch::default()
        };
        let outcome = call(Command::MapLookupBatch, &batch);
        let count = batch.count.get() as usize;
        match outcome.as_ref().map_err(io::Error::raw_os_error) {
            // a bucket has more entries than there is room for
            Err(Some(libc::ENOSPC)) if count == 0 => {
                room *= 2;
                keys.reserve(room);
                values.reserve(room);
                continue;
            }
            Ok(_) | Err(Some(libc::ENOENT | libc::ENOSPC)) => {}
            Err(_) => return outcome.map(drop),
        }
        // SAFETY: there is room for that many, and the kernel has filled them; any bytes are a valid Pod.
        unsafe {
            keys.set_len(count.min(room));
            values.set_len(count.min(room));
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

/// Gives every element of an array to `each`.
///
/// # Errors
/// As for [`read`].
pub(super) fn elements<V: Pod>(map: &Map, each: impl FnMut(&u32, &V)) -> io::Result<()> {
    let Map::Array(map) = map else {
        unreachable!("the type of a pinned map is checked where it is opened");
    };
    read(map.fd().as_fd(), each)
}

/// Inserts or replaces all of them. Not for maps that keep a value for each CPU.
///
/// # Errors
/// Of the first entry that the kernel refuses; those before it are in the map.
pub(super) fn update<K: Pod, V: Pod>(
    map: &impl InnerMap,
    entries: impl ExactSizeIterator<Item = (K, V)>,
) -> Result<(), MapError> {
    let (keys, values): (Vec<K>, Vec<V>) = entries.unzip();
    let batch = Batch {
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: Cell::new(u32::try_from(keys.len()).unwrap_or(u32::MAX)),
        map: map.fd().as_fd().as_raw_fd(),
        ..Batch::default()
    };
    match call(Command::MapUpdateBatch, &batch) {
        Ok(_) => Ok(()),
        Err(io_error) => Err(SyscallError { call: "bpf_map_update_batch", io_error }.into()),
    }
}
