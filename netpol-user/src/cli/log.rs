use anyhow::Result;
use clap::Args;
use tokio::runtime;

use super::{Instance, Outcome};
use crate::datapath::Datapath;

/// Print what the classifiers log, until interrupted: with NETPOL_LOG=info, a line for each slow path.
///
/// Only builds with the feature `log` have this, and only what they have loaded logs.
#[derive(Args)]
pub struct Log {}

impl Log {
    pub fn run(&self, instance: &Instance) -> Result<Outcome> {
        let datapath = Datapath::open(&instance.open().pins)?;
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        match runtime.block_on(datapath.follow_log())? {}
    }
}
