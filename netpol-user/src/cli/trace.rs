use anyhow::{Result, bail};
use clap::Args;

use super::{Instance, Outcome};

/// Explain the verdict about one connection.
#[derive(Args)]
pub struct Trace {}

impl Trace {
    pub fn run(&self, _instance: &Instance) -> Result<Outcome> {
        bail!("not written yet")
    }
}
