//! Which Rust toolchain builds the classifiers.
//!
//! rustc can compile for BPF, but ships no `core` for that target. A toolchain will do when it has one ready
//! (Debian's), or the library source to build one from. `netpol-user/build.rs` includes this file, so that what
//! set-up provides and what the build looks for can't drift apart.

use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    process::Command,
};

/// Names the toolchain to use, instead of the first that will do.
pub const OVERRIDE: &str = "NETPOL_BPF_TOOLCHAIN";

#[derive(Clone, Debug)]
pub struct Toolchain {
    /// Its name for `rustup run`.
    pub name: String,
    pub sysroot: PathBuf,
    pub core: Core,
}

/// Where a toolchain has `core` for BPF from. In the order of preference: ready-made builds in half the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Core {
    Prebuilt,
    Source,
}

impl Core {
    const ALL: [Core; 2] = [Core::Prebuilt, Core::Source];

    /// The folder of a sysroot that tells.
    fn folder(self) -> &'static str {
        match self {
            Core::Prebuilt => "lib/rustlib/bpfel-unknown-none",
            Core::Source => "lib/rustlib/src/rust/library/core",
        }
    }

    /// `RUSTC_BOOTSTRAP` for the build of the classifiers: which crates may use unstable features. Building `core`
    /// needs them in cargo itself (`-Z build-std`), hence everywhere.
    pub fn bootstrap(self) -> &'static str {
        match self {
            Core::Prebuilt => "aya_ebpf,netpol_ebpf,netpol_common",
            Core::Source => "1",
        }
    }
}

/// The first toolchain that will do; none is not an error. Fails when there is neither rustup nor rustc.
pub fn find() -> io::Result<Option<Toolchain>> {
    let known = known()?;
    let usable = |core: Core| {
        known.iter().find(|(_, sysroot)| serves(sysroot, core)).map(|(name, sysroot)| Toolchain {
            name: name.clone(),
            sysroot: sysroot.clone(),
            core,
        })
    };
    Ok(Core::ALL.into_iter().find_map(usable))
}

/// Whether the toolchain in this folder can build for BPF in this way, and knows the Rust that the workspace asks for.
pub fn serves(sysroot: &Path, core: Core) -> bool {
    sysroot.join(core.folder()).is_dir() && new_enough(sysroot)
}

/// Names and sysroots of what is installed.
fn known() -> io::Result<Vec<(String, PathBuf)>> {
    let listed = match Command::new("rustup").args(["toolchain", "list", "--verbose"]).output() {
        Ok(output) => String::from_utf8_lossy(&output.stdout).lines().filter_map(listed).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => vec![(String::new(), sysroot_of("rustc")?)],
        Err(error) => return Err(error),
    };
    let Ok(wanted) = std::env::var(OVERRIDE) else { return Ok(listed) };
    Ok(listed.into_iter().filter(|(name, _)| *name == wanted).collect())
}

/// `stable-x86_64-unknown-linux-gnu (active, default) /home/me/.rustup/toolchains/stable-x86_64-unknown-linux-gnu`
fn listed(line: &str) -> Option<(String, PathBuf)> {
    let name = line.split_whitespace().next()?;
    let path = &line[line.find('/')?..];
    Some((name.to_owned(), PathBuf::from(path.trim_end())))
}

/// The folder of the toolchain that this compiler belongs to.
pub fn sysroot_of(rustc: impl AsRef<OsStr>) -> io::Result<PathBuf> {
    let output = Command::new(rustc).args(["--print", "sysroot"]).output()?;
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

fn new_enough(sysroot: &Path) -> bool {
    let Ok(output) = Command::new(sysroot.join("bin/rustc")).arg("--version").output() else { return false };
    // rustc 1.96.0 (ac68faa20 2026-05-25)
    let text = String::from_utf8_lossy(&output.stdout);
    let found = text.split_whitespace().nth(1).and_then(major_minor);
    found.is_some_and(|found| Some(found) >= major_minor(env!("CARGO_PKG_RUST_VERSION")))
}

/// `1.96.0-nightly` as (1, 96).
pub fn major_minor(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_rustups_list_is_read() {
        let table = [
            (
                "stable-x86_64-unknown-linux-gnu (active, default) /r/toolchains/stable",
                Some(("stable-x86_64-unknown-linux-gnu", "/r/toolchains/stable")),
            ),
            (
                "nightly-2026-01-01 /home/a b/.rustup/toolchains/n",
                Some(("nightly-2026-01-01", "/home/a b/.rustup/toolchains/n")),
            ),
            ("netpol-bpf\t/usr", Some(("netpol-bpf", "/usr"))),
            ("no installed toolchains", None),
            ("", None),
        ];
        for (line, expected) in table {
            let expected = expected.map(|(name, path)| (name.to_owned(), PathBuf::from(path)));
            assert_eq!(listed(line), expected, "{line}");
        }
    }

    #[test]
    fn versions_compare_by_number_not_by_letter() {
        assert!(major_minor("1.100.0") > major_minor("1.96.0-nightly"));
        assert!(major_minor("1.96.0+dfsg1-1~deb12u2") > major_minor("1.95"));
        assert_eq!(major_minor("(none)"), None);
    }
}
