//! `cargo xtask conformance DIR`: the suites of netpol's peers.
//!
//! ```text
//! cases/*.json  -> case (what the file says) -> state (the world after each step)
//!               -> plan (as documents, for IPv4 and IPv6) -> netpol's own reader -> engine -> report
//! tables/*.json -> tables (selectors, packets, validation)                                -> report
//! ```
//!
//! An engine answers who may talk to whom; the rows say what it must answer. Nothing here knows
//! how a policy is evaluated. Two engines only reckon; the others (`live`) enforce the policy and
//! send packets.

mod case;
mod connectivity;
mod engine;
mod live;
mod plan;
mod report;
mod sample;
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
    #[arg(long, conflicts_with_all = ["sample", "seed", "keep_going"])]
    offline: bool,
    /// Of the generated cases (cyclonus, grids) and the former API's, only N by real packets.
    #[arg(long, value_name = "N")]
    sample: Option<usize>,
    /// Which ones: other seeds, other samples [default: the commit].
    #[arg(long, value_name = "TEXT")]
    seed: Option<String>,
    /// Send packets, too, when a policy is already wrong on paper.
    #[arg(long)]
    keep_going: bool,
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
        let sandbox = (!self.offline).then(Sandbox::enter).transpose();
        let sandbox = sandbox.context("sending packets (--offline does without)")?;
        let mut report = Report::default();
        connectivity::run("on paper", &cases, &engine::offline(), &mut report)?;
        tables::run(&tables, &mut report)?;
        let live = report.holds() || self.keep_going;
        if let Some(sandbox) = sandbox.as_ref().filter(|_| live) {
            connectivity::run("by packets", &self.sampled(cases), &live::makers(sandbox), &mut report)?;
        }
        print!("{report}");
        if sandbox.is_some() && !live {
            println!("\nNo packets were sent, because of the failures above (--keep-going sends them).");
        }
        Ok(if report.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// The cases that go live. Says so when these are not all.
    fn sampled(&self, cases: Vec<PathBuf>) -> Vec<PathBuf> {
        let Some(size) = self.sample else { return cases };
        let seed = self.seed.clone().unwrap_or_else(sample::seed);
        let chosen = sample::choose(&cases, size, &seed);
        println!("by packets: {} of {} cases (--sample {size} --seed {seed:?}):", chosen.len(), cases.len());
        for case in &chosen {
            println!("  {}", case.file_stem().unwrap_or_default().to_string_lossy());
        }
        chosen
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
