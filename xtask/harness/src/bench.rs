//! `cargo xtask bench`: what netpol costs, as ratios in one interleaved run.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

/// Measures netpol against a plain bridge, iptables and nftables.
#[derive(Args)]
pub struct Bench {}

impl Bench {
    /// Exit code 0: measured and written.
    pub fn run(self) -> Result<ExitCode> {
        bail!("this build has no benchmark")
    }
}
