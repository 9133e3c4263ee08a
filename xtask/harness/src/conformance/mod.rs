//! `cargo xtask conformance DIR`: the suites of netpol's peers.
//!
//! ```text
//! cases/*.json  -> case (what the file says) -> state (the world after each step)
//!               -> plan (as documents, for IPv4 and IPv6) -> netpol's own reader -> engine -> report
//! tables/*.json -> tables (selectors, packets, validation)                                -> report
//! ```
//!
//! An engine answers who may talk to whom; the rows say what it must answer. Nothing here knows
//! how a policy is evaluated.

mod case;
mod connectivity;
mod engine;
mod live;
mod plan;
mod report;
mod state;
mod tables;

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::sandbox::Sandbox;
use report::Report;

/// Runs what other projects expect of network policy through netpol.
#[derive(Args)]
pub struct Conformance {
    /// Folder with `cases/` and `tables/`.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Only the cases and tables whose file name contains this.
    #[arg(long, value_name = "SUBSTRING", default_value = "")]
    only: String,
    /// Only the engines that need neither root nor kernel.
    #[arg(long)]
    offline: bool,
}

impl Conformance {
    /// Exit code 0: every row of every case and table holds.
    pub fn run(self) -> Result<ExitCode> {
        let cases = self.files("cases")?;
        let tables = self.files("tables")?;
        if cases.is_empty() && tables.is_empty() {
            bail!("{} holds no case and no table whose name contains {:?}", self.dir.display(), self.only);
        }
        // before any thread exists: its mounts are the calling thread's
        let sandbox = if self.offline { None } else { Some(Sandbox::enter()?) };
        let mut report = Report::default();
        connectivity::run(&cases, &engine::offline(), &mut report)?;
        tables::run(&tables, &mut report)?;
        if let Some(sandbox) = &sandbox {
            connectivity::run(&cases, &live::makers(sandbox), &mut report)?;
        }
        print!("{report}");
        Ok(if report.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn files(&self, folder: &str) -> Result<Vec<PathBuf>> {
        let folder = self.dir.join(folder);
        let entries = fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))?;
        let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
        paths.retain(|path| path.to_string_lossy().rsplit('/').next().is_some_and(|name| name.contains(&self.only)));
        paths.sort_unstable();
        Ok(paths)
    }
}
