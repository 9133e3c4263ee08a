use anyhow::Result;
use clap::Args;
use tokio::runtime;

use super::{Instance, Outcome};
use crate::datapath::Datapath;

/// Print what the classifiers log, until interrupted (with NETPOL_LOG=info).
///
/// Nothing is logged unless you write a line where you look: `aya_log_ebpf::info!` in netpol-ebpf, on a path whose stack
/// has room for it. Only builds with the feature `log` have this command, and only what they have loaded logs.
#[derive(Args)]
pub struct Log {}

impl Log {
    pub fn run(&self, instance: &Instance) -> Result<Outcome> {
        let datapath = Datapath::open(&instance.open().pins)?;
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        match runtime.block_on(datapath.follow_log())? {}
    }
}
