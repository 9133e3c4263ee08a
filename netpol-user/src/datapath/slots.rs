//! The outer maps of tables that a publication fills, each with two slots.
//!
//! aya would make them with the object's BTF, and the maps of a publication have none. Before Linux 6.2
//! that is a difference to the kernel: `bpf_map_meta_equal` compares the offset of a timer that neither
//! has, which reads -ENOENT where a structure was searched and -EINVAL where there is no BTF. So
//! they are made here, without BTF, and the object finds them pinned.

use std::{os::fd::AsRawFd as _, path::Path};

use aya::maps::{MapData, lpm_trie::Key};
use netpol_common::event::OBSERVERS;
use netpol_common::service::{Backend, MemberKey, ServiceKey, ServiceValue, Uplink};
use netpol_common::tables::{
    AddressKey, AddressValue, HookValue, Identity, PairKey, PairValue, PortKey, Range, Ruling,
};
use netpol_common::wire::{Addr4, Addr6};

use super::{
    Error, Pins,
    calls::{self, CreateMap},
};

/// `BPF_F_NO_PREALLOC`, which the kernel wants of every LPM trie.
pub(super) const NO_PREALLOC: u32 = 1;
/// `BPF_F_INNER_MAP`: the array may have another size than its template.
pub(super) const INNER_MAP: u32 = 1 << 12;

/// `BPF_F_MMAPABLE`: userspace may write the array's memory.
pub(super) const MAPPABLE: u32 = 1 << 10;

/// `enum bpf_map_type` of linux/bpf.h
#[derive(Clone, Copy)]
#[repr(u32)]
enum Kind {
    Hash = 1,
    Array = 2,
    LpmTrie = 11,
    ArrayOfMaps = 12,
    RingBuf = 27,
}

/// Every table in slots, and what its inner maps are like.
const SLOTS: [(&str, Kind, usize, usize); 18] = [
    ("ADDRESSES4", Kind::Hash, size_of::<AddressKey<Addr4>>(), size_of::<AddressValue>()),
    ("ADDRESSES6", Kind::Hash, size_of::<AddressKey<Addr6>>(), size_of::<AddressValue>()),
    ("NETWORKS4", Kind::LpmTrie, size_of::<Key<Addr4>>(), size_of::<Identity>()),
    ("NETWORKS6", Kind::LpmTrie, size_of::<Key<Addr6>>(), size_of::<Identity>()),
    ("HOOKS", Kind::Hash, size_of::<u32>(), size_of::<HookValue>()),
    ("PAIRS", Kind::Hash, size_of::<PairKey>(), size_of::<PairValue>()),
    ("PORTS", Kind::Hash, size_of::<PortKey>(), size_of::<Ruling>()),
    ("RANGES", Kind::Array, size_of::<u32>(), size_of::<Range>()),
    ("SERVICES4", Kind::Hash, size_of::<ServiceKey<Addr4>>(), size_of::<ServiceValue>()),
    ("SERVICES6", Kind::Hash, size_of::<ServiceKey<Addr6>>(), size_of::<ServiceValue>()),
    ("BACKENDS4", Kind::Array, size_of::<u32>(), size_of::<Backend<Addr4>>()),
    ("BACKENDS6", Kind::Array, size_of::<u32>(), size_of::<Backend<Addr6>>()),
    (MAPPED, Kind::Array, size_of::<u32>(), size_of::<u32>()),
    ("MEMBERS4", Kind::Hash, size_of::<MemberKey<Addr4>>(), size_of::<u32>()),
    ("MEMBERS6", Kind::Hash, size_of::<MemberKey<Addr6>>(), size_of::<u32>()),
    ("POOLS4", Kind::LpmTrie, size_of::<Key<Addr4>>(), size_of::<u32>()),
    ("POOLS6", Kind::LpmTrie, size_of::<Key<Addr6>>(), size_of::<u32>()),
    ("UPLINKS", Kind::Hash, size_of::<u32>(), size_of::<Uplink>()),
];

/// The only array with millions of entries.
pub(super) const MAPPED: &str = "MAGLEV";

/// The names of all of them.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    SLOTS.iter().map(|(name, ..)| *name)
}

/// Makes and pins those that are not there.
pub(super) fn create(pins: &Pins) -> Result<(), Error> {
    for (name, kind, key, value) in SLOTS {
        let path = pins.maps().join(name);
        if path.exists() {
            continue;
        }
        let flags = flags(name, kind);
        let inner = CreateMap { kind: kind as u32, key: key as u32, value: value as u32, entries: 1, flags, inner: 0 };
        outer(name, &path, &inner, 2)?;
    }
    let path = pins.maps().join(RINGS);
    if path.exists() {
        return Ok(());
    }
    outer(RINGS, &path, &ring(page_size()), OBSERVERS)
}

fn flags(name: &str, kind: Kind) -> u32 {
    match kind {
        Kind::LpmTrie => NO_PREALLOC,
        Kind::Array if name == MAPPED => INNER_MAP | MAPPABLE,
        Kind::Array => INNER_MAP,
        Kind::Hash | Kind::ArrayOfMaps | Kind::RingBuf => 0,
    }
}

/// An array of maps like this one, pinned.
fn outer(name: &'static str, path: &Path, inner: &CreateMap, entries: u32) -> Result<(), Error> {
    let made = calls::create_map(inner).and_then(|template| {
        let (kind, inner) = (Kind::ArrayOfMaps as u32, template.as_raw_fd());
        calls::create_map(&CreateMap { kind, key: 4, value: 4, entries, flags: 0, inner })
    });
    let made = made.map_err(|error| Error::Slots { map: name, error })?;
    let map = MapData::from_fd(made).map_err(Error::map(name))?;
    map.pin(path).map_err(|error| Error::Pin { path: path.to_owned(), error: Box::new(error) })
}

/// The array of the observers' rings, which is in no slot: nothing of it is published.
pub(super) const RINGS: &str = "RINGS";

/// A ring buffer with room for so many bytes: a power of two, whole pages.
pub(super) const fn ring(bytes: u32) -> CreateMap {
    CreateMap { kind: Kind::RingBuf as u32, key: 0, value: 0, entries: bytes, flags: 0, inner: 0 }
}

/// The smallest ring.
pub(super) fn page_size() -> u32 {
    // SAFETY: no pointers.
    u32::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}
