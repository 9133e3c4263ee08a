//! Builds the classifiers for the BPF target and leaves the object in `OUT_DIR/netpol`.
//!
//! `cargo xtask setup` provides the toolchain; this only finds it, in the order that
//! `docs/architecture.md` gives ("The eBPF toolchain").

use std::{env, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

fn main() -> Result<()> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../netpol-ebpf");
    let common = concat!(env!("CARGO_MANIFEST_DIR"), "/../netpol-common");
    println!("cargo::rerun-if-changed={common}");
    println!("cargo::rerun-if-env-changed=NETPOL_BPF_TOOLCHAIN");

    let Toolchain { name, bootstrap } = find()?;
    let features: &[&str] = if cfg!(feature = "log") { &["log"] } else { &[] };
    // SAFETY: a build script has one thread here.
    unsafe {
        // Unstable features for these crates only, in the inner cargo only: the outer build stays stable.
        env::set_var("RUSTC_BOOTSTRAP", bootstrap);
        // What the outer cargo says of itself would make the inner one use the wrong compiler.
        for key in ["RUSTC", "CARGO", "RUSTDOC", "RUSTUP_TOOLCHAIN", "RUSTC_WRAPPER"] {
            env::remove_var(key);
        }
    }
    aya_build::build_ebpf(
        [aya_build::Package { name: "netpol-ebpf", root_dir: root, features, ..Default::default() }],
        aya_build::Toolchain::Custom(&name),
    )
}

struct Toolchain {
    /// Its name for `rustup run`.
    name: String,
    /// `RUSTC_BOOTSTRAP` for it.
    bootstrap: &'static str,
}

/// With a `core` for BPF only our own crates need unstable features; without one, cargo itself does (`-Z build-std`).
const PREBUILT: &str = "aya_ebpf,netpol_ebpf";
const BUILD_STD: &str = "1";

fn find() -> Result<Toolchain> {
    let names = match env::var("NETPOL_BPF_TOOLCHAIN") {
        Ok(name) => vec![name],
        Err(_) => {
            let out = Command::new("rustup").args(["toolchain", "list", "--quiet"]).output().context("rustup")?;
            String::from_utf8(out.stdout)?.lines().map(|line| line.trim().to_owned()).collect()
        }
    };
    let has = |name: &str, path: &str| {
        let out = Command::new("rustup").args(["run", name, "rustc", "--print", "sysroot"]).output();
        out.is_ok_and(|out| {
            out.status.success() && Path::new(String::from_utf8_lossy(&out.stdout).trim()).join(path).is_dir()
        })
    };
    for (path, bootstrap) in
        [("lib/rustlib/bpfel-unknown-none", PREBUILT), ("lib/rustlib/src/rust/library/core", BUILD_STD)]
    {
        if let Some(name) = names.iter().find(|name| has(name, path)) {
            return Ok(Toolchain { name: name.clone(), bootstrap });
        }
    }
    bail!("no Rust toolchain here can build for the BPF target; `cargo xtask setup` installs one")
}
