//! `cargo xtask conformance DIR`: the suites of netpol's peers.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Result, bail};
use clap::Args;

/// Runs the cases below DIR through the compiler, `matrix` and the kernel.
#[derive(Args)]
pub struct Conformance {
    /// Folder of cases.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

impl Conformance {
    /// Exit code 0: every case holds.
    pub fn run(self) -> Result<ExitCode> {
        bail!("this build has no conformance runner for {}", self.dir.display())
    }
}
