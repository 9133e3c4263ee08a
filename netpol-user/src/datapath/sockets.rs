//! Programs for the host's own sockets: one for each hook of the root control group, each held by a link, and each link
//! by a pin. They are attached while a service is published.
//!
//! The kernel runs the programs of all links, so several instances live beside each other; each knows its own
//! sockets by the cookie of their network namespace (`HOST`).

use std::{
    fs::{self, File},
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::ffi::OsStringExt as _,
    },
    path::{Path, PathBuf},
};

use aya::{
    maps::{Array, MapData},
    programs::{CgroupAttachMode, CgroupSockAddr, CgroupSockAddrAttachType as Hook, links::FdLink},
};

use super::{Datapath, Error, Pins, calls, links::take_off};
use crate::netns;

/// One of the programs.
#[derive(Clone, Copy, Debug)]
pub(super) struct SocketProgram {
    /// The name of its function.
    pub name: &'static str,
    hook: Hook,
    /// `enum bpf_attach_type`
    number: u32,
}

pub(super) const PROGRAMS: [SocketProgram; 8] = [
    SocketProgram { name: "connect4", hook: Hook::Connect4, number: 10 },
    SocketProgram { name: "connect6", hook: Hook::Connect6, number: 11 },
    SocketProgram { name: "sendmsg4", hook: Hook::UDPSendMsg4, number: 14 },
    SocketProgram { name: "sendmsg6", hook: Hook::UDPSendMsg6, number: 15 },
    SocketProgram { name: "recvmsg4", hook: Hook::UDPRecvMsg4, number: 19 },
    SocketProgram { name: "recvmsg6", hook: Hook::UDPRecvMsg6, number: 20 },
    SocketProgram { name: "getpeername4", hook: Hook::GetPeerName4, number: 29 },
    SocketProgram { name: "getpeername6", hook: Hook::GetPeerName6, number: 30 },
];

impl SocketProgram {
    fn link(self, pins: &Pins) -> PathBuf {
        pins.links().join(format!("cgroup-{}", self.name))
    }

    fn error(self) -> impl Fn(aya::programs::ProgramError) -> Error {
        move |error| Error::Program { what: self.name.to_owned(), error: Box::new(error) }
    }

    /// Opens what is pinned.
    pub(super) fn open(self, pins: &Pins) -> Result<CgroupSockAddr, Error> {
        CgroupSockAddr::from_pin(pins.programs().join(self.name), self.hook).map_err(self.error())
    }

    /// Whether the group has this very program.
    fn is_attached(self, program: &CgroupSockAddr, group: BorrowedFd<'_>) -> Result<bool, Error> {
        let ours = program.info().map_err(self.error())?.id();
        let attached = calls::programs_of(group, self.number)
            .map_err(|error| Error::ControlGroup { what: format!("to list programs at {}", self.name), error })?;
        Ok(attached.contains(&ours))
    }
}

/// Where the root of control groups (version 2) is mounted; `None`: nowhere.
pub fn control_group() -> Option<PathBuf> {
    find(&fs::read("/proc/thread-self/mountinfo").ok()?)
}

/// The first such mount in a file of proc_pid_mountinfo(5): of the root itself, if there is one.
fn find(mounts: &[u8]) -> Option<PathBuf> {
    let mount = |line: &[u8]| {
        let fields: Vec<_> = line.split(|byte| *byte == b' ').collect();
        let dash = fields.iter().position(|field| *field == b"-")?;
        let is_it = fields.get(dash + 1).is_some_and(|kind| *kind == b"cgroup2");
        let path = PathBuf::from(std::ffi::OsString::from_vec(unescaped(fields.get(4)?)));
        is_it.then_some((*fields.get(3)? != b"/", path))
    };
    mounts.split(|byte| *byte == b'\n').filter_map(mount).min_by_key(|(is_part, _)| *is_part).map(|(_, path)| path)
}

/// Blanks are written as `\040`, and so on.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut rest = field;
    let mut path = Vec::with_capacity(field.len());
    loop {
        (path, rest) = match rest {
            [] => return path,
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] => {
                path.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                (path, after)
            }
            [byte, after @ ..] => {
                path.push(*byte);
                (path, after)
            }
        };
    }
}

impl Datapath {
    /// Makes sure that the programs of this build are at all hooks of the control group, for the sockets of the calling
    /// thread's network namespace. `true`: none of them was.
    ///
    /// What is there already, of this build or an earlier one, is replaced in place.
    pub fn attach_sockets(&mut self, group: &Path) -> Result<bool, Error> {
        let open = |error| Error::ControlGroup { what: format!("to open {}", group.display()), error };
        let group = File::open(group).map_err(open)?;
        let cookie = netns::cookie()
            .map_err(|error| Error::ControlGroup { what: "to number this network namespace".to_owned(), error })?;
        self.set_host(cookie)?;
        let mut is_new = true;
        let mut programs = PROGRAMS.iter().zip(&mut self.sockets);
        let attached = programs.try_for_each(|(which, program)| {
            is_new &= attach(*which, program, &group, &which.link(&self.pins))?;
            Ok(())
        });
        if attached.is_err() && is_new {
            // the first error is the one to report
            let _ = self.detach_sockets();
        }
        attached.map(|()| is_new)
    }

    /// Takes them off again. When this returns no socket meets them any more.
    pub fn detach_sockets(&self) -> Result<(), Error> {
        PROGRAMS.iter().try_for_each(|which| take_off(&which.link(&self.pins)))?;
        self.set_host(0)
    }

    /// The hooks where the programs of this instance are not.
    pub fn missing_sockets(&self, group: &Path) -> Result<Vec<&'static str>, Error> {
        let open = |error| Error::ControlGroup { what: format!("to open {}", group.display()), error };
        let group = File::open(group).map_err(open)?;
        let mut missing = Vec::new();
        for (which, program) in PROGRAMS.iter().zip(&self.sockets) {
            if !which.is_attached(program, group.as_fd())? {
                missing.push(which.name);
            }
        }
        Ok(missing)
    }

    fn set_host(&self, cookie: u64) -> Result<(), Error> {
        let mut host = Array::<MapData, u64>::try_from(self.pins.map("HOST")?).map_err(Error::map("HOST"))?;
        host.set(0, cookie, 0).map_err(Error::map("HOST"))
    }
}

/// `true`: nothing was there.
fn attach(which: SocketProgram, program: &mut CgroupSockAddr, group: &File, path: &Path) -> Result<bool, Error> {
    let refused = which.error();
    if path.exists() {
        if which.is_attached(program, group.as_fd())? {
            return Ok(false);
        }
        let fd = program.fd().map_err(&refused)?;
        if calls::open(path).and_then(|link| calls::update_link(link.as_fd(), fd.as_fd())).is_ok()
            && which.is_attached(program, group.as_fd())?
        {
            return Ok(false);
        }
        // it was detached, or is at another group
        take_off(path)?;
    }
    // links allow each other, whatever the mode: it is about programs without one
    let id = program.attach(group, CgroupAttachMode::Single).map_err(&refused)?;
    let link = program.take_link(id).map_err(&refused)?;
    let link = FdLink::try_from(link).map_err(|error| Error::Link { path: path.to_owned(), error: Box::new(error) })?;
    // the pin holds it from here on
    link.pin(path).map_err(|error| Error::Pin { path: path.to_owned(), error: Box::new(error) })?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_of_control_groups_is_found_where_it_is_mounted() {
        let hybrid = b"25 1 0:22 / /sys/fs/cgroup rw shared:9 - tmpfs tmpfs rw,mode=755\n\
            26 25 0:23 /part /sys/fs/cgroup/part rw - cgroup2 cgroup2 rw\n\
            27 25 0:24 / /sys/fs/cgroup/a\\040b rw master:1 shared:2 - cgroup2 cgroup2 rw\n\
            28 25 0:25 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        assert_eq!(find(hybrid), Some(PathBuf::from("/sys/fs/cgroup/a b")), "the root before a part");
        assert_eq!(find(&hybrid[..140]), Some(PathBuf::from("/sys/fs/cgroup/part")), "a container sees no other");
        assert_eq!(find(b"25 1 0:22 / /cgroup2 rw - tmpfs cgroup2 rw\n\nx y z\n"), None);
    }
}
