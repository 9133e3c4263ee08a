use anyhow::{Result, bail};
use clap::Args;

use super::Outcome;

/// Validate policies without root.
#[derive(Args)]
pub struct Check {}

impl Check {
    pub fn run(&self) -> Result<Outcome> {
        bail!("not written yet")
    }
}
