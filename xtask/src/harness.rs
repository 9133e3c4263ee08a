//! Commands that need netpol as a library, and the build itself: cargo does them, once the machine is set up.

use std::{
    ffi::OsString,
    io::IsTerminal as _,
    path::{Path, PathBuf},
};

use anyhow::Result;
use clap::Args;

use crate::{
    setup::Install,
    shell::{self, cargo},
};

/// Runs the cases of other projects' suites through netpol: `cargo xtask conformance DIR`.
#[derive(Args)]
#[command(disable_help_flag = true)]
pub struct Conformance {
    /// As `cargo xtask conformance --help` says.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// Measures netpol against a plain bridge, iptables and nftables.
#[derive(Args)]
#[command(disable_help_flag = true)]
pub struct Bench {
    /// As `cargo xtask bench --help` says.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// Builds netpol as it is meant to be run: `target/release/netpol`.
#[derive(Args)]
pub struct Build {
    #[command(flatten)]
    install: Install,
}

impl Conformance {
    pub fn run(self) -> Result<()> {
        start("conformance", self.args)
    }
}

impl Bench {
    pub fn run(self) -> Result<()> {
        start("bench", self.args)
    }
}

impl Build {
    pub fn run(self) -> Result<()> {
        self.install.ensure()?;
        netpol().map(drop)
    }
}

/// Starts the harness with the arguments as they were given, except for set-up's own.
fn start(command: &str, args: Vec<OsString>) -> Result<()> {
    let (own, args): (Vec<_>, Vec<_>) = args.into_iter().partition(|arg| arg == Install::NO_INSTALL);
    Install { no_install: !own.is_empty() }.ensure()?;
    // What is measured is the program itself: the harness looks for it beside its own.
    netpol()?;
    // Release: measurements need it, and so do a hundred thousand expected rows.
    let mut cargo = cargo();
    cargo.args(["run", "--quiet", "--release", "--package", "netpol-harness", "--", command]).args(args);
    // Relative paths mean the folder that the reader is in.
    shell::run(cargo.current_dir(std::env::current_dir()?))
}

/// The conformance cases in this folder, on a machine that is set up.
pub fn conformance(cases: &Path) -> Result<()> {
    start("conformance", vec![cases.into()])
}

/// Builds the release binary; where it is.
pub fn netpol() -> Result<PathBuf> {
    let mut build = cargo();
    build.args(["build", "--release", "--package", "netpol-user", "--bin", "netpol"]);
    if !std::io::stderr().is_terminal() {
        build.arg("--quiet");
    }
    shell::run(&mut build)?;
    Ok(shell::target()?.join("release/netpol"))
}
