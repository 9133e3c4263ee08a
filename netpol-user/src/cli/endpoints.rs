use anyhow::{Result, bail};
use clap::Args;

use super::{Instance, Outcome};

/// List endpoints.
#[derive(Args)]
pub struct Endpoints {}

impl Endpoints {
    pub fn run(&self, _instance: &Instance) -> Result<Outcome> {
        bail!("not written yet")
    }
}
