//! Builds the classifiers for the BPF target and leaves the object in `OUT_DIR/netpol`.
//!
//! `cargo xtask setup` provides the toolchain; this only finds it.

#[path = "../xtask/src/setup/toolchain.rs"]
mod toolchain;

use std::{
    env, fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use toolchain::Toolchain;

/// What the object is made of, beside netpol-ebpf itself (which aya-build names).
const INPUTS: [&str; 3] = ["../netpol-common", "../Cargo.toml", "../Cargo.lock"];

fn main() -> Result<()> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    for input in INPUTS {
        println!("cargo::rerun-if-changed={}", here.join(input).display());
    }
    println!("cargo::rerun-if-env-changed={}", toolchain::OVERRIDE);

    let Toolchain { name, sysroot, core } = toolchain::find()?
        .context("no Rust toolchain here can build for the BPF target; `cargo xtask setup` installs one")?;
    // An upgrade of the compiler makes other classifiers.
    println!("cargo::rerun-if-changed={}", sysroot.join("bin/rustc").display());
    share_target_folder().context("the target folder of the classifiers")?;
    // SAFETY: a build script has one thread here.
    unsafe {
        // Unstable features in the inner cargo only: the outer build stays stable.
        env::set_var("RUSTC_BOOTSTRAP", core.bootstrap());
        // aya-build passes on each line as a warning of this crate: only real ones should be.
        env::set_var("CARGO_TERM_QUIET", "true");
        // What the outer cargo says of itself would make the inner one use the wrong compiler.
        for key in ["RUSTC", "CARGO", "RUSTDOC", "RUSTUP_TOOLCHAIN", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"] {
            env::remove_var(key);
        }
    }
    let root_dir = here.join("../netpol-ebpf");
    let root_dir = root_dir.to_str().context("a path that is not UTF-8")?;
    let features: &[&str] = if cfg!(feature = "log") { &["log"] } else { &[] };
    let package = aya_build::Package { name: "netpol-ebpf", root_dir, features, ..Default::default() };
    aya_build::build_ebpf([package], aya_build::Toolchain::Custom(&name))
}

/// Debug and release builds, `cargo check` and clippy want the same classifiers: aya-build keeps a target folder in each
/// one's `OUT_DIR`, so those are links to one folder.
fn share_target_folder() -> Result<()> {
    let out = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR")?);
    // target/PROFILE/build/netpol-user-HASH/out
    let target = out.ancestors().nth(4).context("OUT_DIR is not in a target folder")?;
    let shared = target.join(if cfg!(feature = "log") { "bpf-log" } else { "bpf" });
    let own = out.join("aya-build");
    fs::create_dir_all(&shared)?;
    fs::create_dir_all(&own)?;
    let link = own.join("target");
    // of a target folder that was copied, the link leads to the other one
    if fs::read_link(&link).is_ok_and(|leads_to| leads_to != shared) {
        fs::remove_file(&link)?;
    }
    match symlink(&shared, link) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error.into()),
        _ => Ok(()),
    }
}
