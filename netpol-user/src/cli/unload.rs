use anyhow::Result;
use clap::Args;

use super::{Instance, Outcome, output::Progress};

/// Remove everything that this instance pinned, and nothing else.
#[derive(Args)]
pub struct Unload {}

impl Unload {
    pub fn run(&self, instance: &Instance) -> Result<Outcome> {
        let progress = Progress::of("taking off");
        let existed = instance.open().unload(&|done, all| progress.tell(done, all))?;
        drop(progress);
        println!("{}", if existed { "unloaded: nothing is enforced any more" } else { "nothing was loaded" });
        Ok(Outcome::Done)
    }
}
