use anyhow::{Result, bail};
use clap::Args;

use super::{Instance, Outcome};

/// Say whether the policy is enforced, and what is not.
#[derive(Args)]
pub struct Status {}

impl Status {
    pub fn run(&self, _instance: &Instance) -> Result<Outcome> {
        bail!("not written yet")
    }
}
