//! Arrays through their memory: a system call copies elements one by one, which takes a second for ten thousand services,
//! and a quarter of one for a large table of flows that is nearly empty.

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    ptr::{self, NonNull},
};

use aya::{
    Pod,
    maps::{InnerMap, MapError},
};

/// The kernel keeps every value of an array at a multiple of 8 bytes (kernel/bpf/arraymap.c).
const STRIDE: usize = 8;

/// What is to be done with the memory.
#[derive(Clone, Copy, Debug)]
pub(super) enum Access {
    Read,
    Write,
}

/// The memory of an array that was made with `BPF_F_MMAPABLE`, in this process.
pub(super) struct Mapped<V: Pod> {
    memory: NonNull<u8>,
    elements: u32,
    of: PhantomData<V>,
}

impl<V: Pod> Mapped<V> {
    const SIZE: usize = size_of::<V>().next_multiple_of(STRIDE);

    /// So many elements.
    ///
    /// # Errors
    /// What the kernel says: the array has fewer, or is none that can be mapped.
    pub(super) fn of(map: BorrowedFd<'_>, elements: u32, access: Access) -> io::Result<Self> {
        const { assert!(align_of::<V>() <= STRIDE) };
        let protection = match access {
            Access::Read => libc::PROT_READ,
            Access::Write => libc::PROT_READ | libc::PROT_WRITE,
        };
        let (length, fd) = (elements as usize * Self::SIZE, map.as_raw_fd());
        // SAFETY: a new mapping, wherever the kernel likes; it refuses a length that the map does not have.
        let memory = unsafe { libc::mmap(ptr::null_mut(), length, protection, libc::MAP_SHARED, fd, 0) };
        match NonNull::new(memory.cast()) {
            Some(memory) if memory.as_ptr() != libc::MAP_FAILED.cast() => {
                Ok(Self { memory, elements, of: PhantomData })
            }
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Where each element is, which the kernel may write to at any time; so may we, if that was said.
    pub(super) fn elements(&self) -> impl Iterator<Item = *mut V> {
        // SAFETY: inside of the mapping, which is aligned to a page.
        (0..self.elements as usize).map(|index| unsafe { self.memory.add(index * Self::SIZE) }.cast().as_ptr())
    }
}

impl<V: Pod> Drop for Mapped<V> {
    fn drop(&mut self) {
        // SAFETY: the mapping that was made, of which nothing is kept.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.elements as usize * Self::SIZE) };
    }
}

/// Writes `words` into the beginning of an array of `u32` that was made for as many, with `BPF_F_MMAPABLE`.
pub(super) fn write(map: &impl InnerMap, words: &[u32]) -> Result<(), MapError> {
    if words.is_empty() {
        return Ok(());
    }
    let count = u32::try_from(words.len()).map_err(io::Error::other)?;
    let memory = Mapped::<u32>::of(map.fd().as_fd(), count, Access::Write)?;
    for (element, word) in memory.elements().zip(words) {
        // SAFETY: an element, which nobody else has mapped or reads.
        unsafe { element.write(*word) };
    }
    Ok(())
}
