//! bpf(2) itself, for what aya has no function for: outer maps without BTF, many entries at once, and links by
//! the number of an interface, which are taken off at once.
//!
//! Structures are the beginning of `union bpf_attr` (linux/bpf.h) for their command; the kernel takes the
//! rest for zero.

use std::{
    cell::Cell,
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use netpol_common::{drops::Side, tables::IfIndex};

/// `enum bpf_cmd`
#[derive(Clone, Copy)]
#[repr(i32)]
pub(super) enum Command {
    MapCreate = 0,
    MapUpdate = 2,
    MapDelete = 3,
    ObjPin = 6,
    ObjGet = 7,
    ProgQuery = 16,
    MapLookupBatch = 24,
    MapUpdateBatch = 26,
    LinkCreate = 28,
    LinkUpdate = 29,
    LinkDetach = 34,
}

#[repr(C)]
pub(super) struct CreateMap {
    pub kind: u32,
    pub key: u32,
    pub value: u32,
    pub entries: u32,
    pub flags: u32,
    pub inner: i32,
}

/// `batch`. Keys and values are arrays of the sizes that the map has.
#[repr(C)]
#[derive(Default)]
pub(super) struct Batch {
    /// Where an earlier call ended; 0 at the beginning.
    pub from: u64,
    pub ended: u64,
    pub keys: u64,
    pub values: u64,
    /// How many there is room for; the kernel writes how many there are.
    pub count: Cell<u32>,
    pub map: i32,
    pub element_flags: u64,
    pub flags: u64,
}

/// The elements that two numbers name: of an array of maps.
#[repr(C)]
struct Element {
    map: i32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct CreateLink {
    program: i32,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    padding: u32,
    /// 0: whatever was attached meanwhile.
    expected_revision: u64,
}

#[repr(C)]
struct Pin {
    path: u64,
    object: i32,
    flags: u32,
}

#[repr(C)]
struct UpdateLink {
    link: i32,
    program: i32,
    flags: u32,
    old_program: u32,
}

/// As long as the newest kernel's: it writes to the last field.
#[repr(C)]
#[derive(Default)]
struct Query {
    target: i32,
    attach_type: u32,
    flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    padding: u32,
    program_flags: u64,
    links: u64,
    link_flags: u64,
    revision: u64,
}

#[repr(C)]
struct DetachLink {
    link: i32,
}

pub(super) fn create_map(attributes: &CreateMap) -> io::Result<OwnedFd> {
    call(Command::MapCreate, attributes).map(owned)
}

/// Puts a map into a place of an array of maps.
pub(super) fn put_map(outer: BorrowedFd<'_>, place: u32, inner: BorrowedFd<'_>) -> io::Result<()> {
    let inner = inner.as_raw_fd();
    let (key, value) = (&raw const place as u64, &raw const inner as u64);
    call(Command::MapUpdate, &Element { map: outer.as_raw_fd(), padding: 0, key, value, flags: 0 }).map(drop)
}

/// Takes it out again. It is no error if there is none.
pub(super) fn take_map(outer: BorrowedFd<'_>, place: u32) -> io::Result<()> {
    let key = &raw const place as u64;
    match call(Command::MapDelete, &Element { map: outer.as_raw_fd(), padding: 0, key, value: 0, flags: 0 }) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        outcome => outcome.map(drop),
    }
}

/// Attaches a program to one side of an interface of this namespace, in front of all others: `BPF_F_BEFORE`
/// without another program to be before (kernel/bpf/mprog.c, `bpf_mprog_attach`).
///
/// # Errors
/// `ENODEV`: there is no such interface (any more).
pub(super) fn attach_first(program: BorrowedFd<'_>, ifindex: IfIndex, side: Side) -> io::Result<OwnedFd> {
    const BPF_F_BEFORE: u32 = 1 << 3;
    const BPF_TCX_INGRESS: u32 = 46;
    const BPF_TCX_EGRESS: u32 = 47;
    let attach_type = match side {
        Side::From => BPF_TCX_INGRESS,
        Side::To => BPF_TCX_EGRESS,
    };
    let attributes = CreateLink {
        program: program.as_raw_fd(),
        ifindex: ifindex.0,
        attach_type,
        flags: BPF_F_BEFORE,
        relative: 0,
        padding: 0,
        expected_revision: 0,
    };
    call(Command::LinkCreate, &attributes).map(owned)
}

/// Takes a link's program off its interface. When this returns no packet meets it any more, whoever holds
/// the link (`tcx_link_release` in kernel/bpf/tcx.c waits for RCU). It is no error if the interface is gone.
pub(super) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    call(Command::LinkDetach, &DetachLink { link: link.as_raw_fd() }).map(drop)
}

/// Gives a link another program, in place.
///
/// # Errors
/// `ENOLINK`: it is not attached any more.
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = UpdateLink { link: link.as_raw_fd(), program: program.as_raw_fd(), flags: 0, old_program: 0 };
    call(Command::LinkUpdate, &attributes).map(drop)
}

/// The numbers of the programs that are attached to a control group itself.
pub(super) fn programs_of(group: BorrowedFd<'_>, attach_type: u32) -> io::Result<Vec<u32>> {
    /// `BPF_CGROUP_MAX_PROGS` of linux/bpf-cgroup.h
    const MOST: usize = 64;
    let mut programs = [0u32; MOST];
    let mut query = Query {
        target: group.as_raw_fd(),
        attach_type,
        programs: programs.as_mut_ptr() as u64,
        count: MOST as u32,
        ..Query::default()
    };
    // SAFETY: pointer and size are those of a local, which may be written, and so may be the array that it names.
    unsafe { bpf(Command::ProgQuery, (&raw mut query).cast(), size_of::<Query>()) }?;
    Ok(programs.into_iter().take(query.count as usize).collect())
}

pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    call(Command::ObjPin, &Pin { path: path.as_ptr() as u64, object: object.as_raw_fd(), flags: 0 }).map(drop)
}

/// Opens what is pinned.
pub(super) fn open(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    call(Command::ObjGet, &Pin { path: path.as_ptr() as u64, object: 0, flags: 0 }).map(owned)
}

pub(super) fn call<A>(command: Command, attributes: &A) -> io::Result<i32> {
    // SAFETY: pointer and size are those of a structure that outlives the call, and so does what it points to.
    unsafe { bpf(command, (&raw const *attributes).cast(), size_of::<A>()) }
}

/// # Safety
/// Pointer and size are those of a structure that fits the command and outlives the call, and so does what it points to.
unsafe fn bpf(command: Command, attributes: *const libc::c_void, size: usize) -> io::Result<i32> {
    // SAFETY: the caller's.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as libc::c_int, attributes, size as libc::c_uint) };
    match i32::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A descriptor that a call has just returned.
fn owned(fd: i32) -> OwnedFd {
    // SAFETY: it is open and nobody else's.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
