//! What a command needs from the kernel is asked before it begins: an error names the capability
//! that is missing and what it is for.

use std::{fs, io};

/// A capability, with the number that linux/capability.h gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Capability {
    NetAdmin = 12,
    NetRaw = 13,
    SysAdmin = 21,
    Perfmon = 38,
    Bpf = 39,
}

impl Capability {
    const fn name(self) -> &'static str {
        match self {
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::NetRaw => "CAP_NET_RAW",
            Self::SysAdmin => "CAP_SYS_ADMIN",
            Self::Perfmon => "CAP_PERFMON",
            Self::Bpf => "CAP_BPF",
        }
    }

    const fn bit(self) -> u64 {
        1 << self as u8
    }

    /// CAP_SYS_ADMIN still stands for the two that were split off from it (capabilities(7)).
    const fn held_by(self, effective: u64) -> bool {
        let stand_in = match self {
            Self::Perfmon | Self::Bpf => Self::SysAdmin.bit(),
            _ => 0,
        };
        effective & (self.bit() | stand_in) != 0
    }
}

/// A capability and what it is needed for.
pub type Need = (Capability, &'static str);

pub const ENTER_NAMESPACES: Need = (Capability::SysAdmin, "to enter network namespaces");
pub const READ_NETFILTER: Need = (Capability::NetAdmin, "to read netfilter rules");
pub const ATTACH: Need = (Capability::NetAdmin, "to attach programs");
pub const LOAD_CLASSIFIERS: Need = (Capability::NetAdmin, "to load classifiers");
pub const LOAD_PROGRAMS: Need = (Capability::Bpf, "to load programs");
pub const OPEN_PINS: Need = (Capability::Bpf, "to open what is pinned");
pub const VERIFY_POINTERS: Need = (Capability::Perfmon, "to load programs that read packets");

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("needs {missing}: run it as root")]
    Missing { missing: String },
    #[error("can't read this thread's capabilities from /proc/thread-self/status")]
    Unreadable(#[from] io::Error),
}

/// All of these must be effective in the calling thread.
pub fn require(needs: &[Need]) -> Result<(), Error> {
    check(needs, effective()?)
}

fn check(needs: &[Need], effective: u64) -> Result<(), Error> {
    let missing: Vec<_> = needs
        .iter()
        .filter(|(capability, _)| !capability.held_by(effective))
        .map(|(capability, purpose)| format!("{} ({purpose})", capability.name()))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::Missing { missing: missing.join(" and ") })
}

fn effective() -> io::Result<u64> {
    let status = fs::read_to_string("/proc/thread-self/status")?;
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    mask.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no CapEff line"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_names_each_missing_capability_and_its_purpose() {
        let error = check(&[ATTACH, ENTER_NAMESPACES, LOAD_PROGRAMS], Capability::Bpf.bit()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "needs CAP_NET_ADMIN (to attach programs) and CAP_SYS_ADMIN (to enter network namespaces): run it as root"
        );
    }

    #[test]
    fn sys_admin_stands_for_bpf_and_perfmon_only() {
        let held = Capability::SysAdmin.bit();
        assert!(check(&[LOAD_PROGRAMS, VERIFY_POINTERS, ENTER_NAMESPACES], held).is_ok());
        assert!(check(&[ATTACH], held).is_err());
    }
}
