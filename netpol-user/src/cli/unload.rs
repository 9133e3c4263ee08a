use anyhow::{Result, bail};
use clap::Args;

use super::{Instance, Outcome};

/// Remove everything that this instance pinned.
#[derive(Args)]
pub struct Unload {}

impl Unload {
    pub fn run(&self, _instance: &Instance) -> Result<Outcome> {
        bail!("not written yet")
    }
}
