use anyhow::{Result, bail};
use clap::Args;

use super::Outcome;

/// Show who may talk to whom, computed without root or kernel.
#[derive(Args)]
pub struct Matrix {}

impl Matrix {
    pub fn run(&self) -> Result<Outcome> {
        bail!("not written yet")
    }
}
