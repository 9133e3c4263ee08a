use anyhow::{Result, bail};
use clap::Args;

use super::{Instance, Outcome};

/// List the flows that the kernel remembers.
#[derive(Args)]
pub struct Flows {}

impl Flows {
    pub fn run(&self, _instance: &Instance) -> Result<Outcome> {
        bail!("not written yet")
    }
}
