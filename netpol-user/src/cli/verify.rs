use anyhow::{Result, bail};
use clap::Args;

use super::{Instance, Outcome};

/// Prove the loaded policy by real connections between the endpoints.
#[derive(Args)]
pub struct Verify {}

impl Verify {
    pub fn run(&self, _instance: &Instance) -> Result<Outcome> {
        bail!("not written yet")
    }
}
