use anyhow::{Result, bail};
use clap::Args;

use super::{Instance, Outcome};

/// List identities.
#[derive(Args)]
pub struct Identities {}

impl Identities {
    pub fn run(&self, _instance: &Instance) -> Result<Outcome> {
        bail!("not written yet")
    }
}
