use anyhow::{Result, bail};
use clap::Args;

use super::{Instance, Outcome};

/// List the loaded policies.
#[derive(Args)]
pub struct Policies {}

impl Policies {
    pub fn run(&self, _instance: &Instance) -> Result<Outcome> {
        bail!("not written yet")
    }
}
