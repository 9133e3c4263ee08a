use anyhow::{Result, bail};
use clap::Args;

use super::{Instance, Outcome};

/// Enforce exactly what PATH... says.
#[derive(Args)]
pub struct Load {}

impl Load {
    pub fn run(&self, _instance: &Instance) -> Result<Outcome> {
        bail!("not written yet")
    }
}
