//! `cargo xtask bench`: what netpol costs, as ratios in one interleaved run.
//!
//! | module | one idea |
//! |---|---|
//! | [`topology`] | a host, a bridge, containers |
//! | [`variants`] | what is compared |
//! | [`traffic`] | what is sent, and what it costs |
//! | [`paths`] | rounds of all variants in turn |
//! | [`packets`], [`testrun`] | one packet in the classifier alone |
//! | [`nat`] | the same for what is translated, and backends that come and go |
//! | [`observe`] | what it costs that somebody observes |
//! | [`scale`] | a thousand endpoints with a thousand policies |
//! | [`publications`] | new policies while packets flow |
//! | [`netpol`], [`documents`] | the program that is measured, and what it loads |
//! | [`stats`] | medians and spread |
//! | [`report`], [`plot`], [`machine`] | what is written |

mod documents;
mod fresh;
mod insn;
mod machine;
mod nat;
mod netpol;
mod observe;
mod only;
mod packets;
mod paths;
mod plot;
mod publications;
mod reading;
mod report;
mod scale;
mod stats;
mod testrun;
mod topology;
mod traffic;
mod variants;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Args;

use machine::Machine;
use netpol::Binary;
use only::Only;
use report::{Report, Section};
use traffic::{Cpu, Timing};

use crate::{progress, sandbox::Sandbox};

/// Measures netpol against a plain bridge, iptables and nftables, and writes docs/benchmarks.md.
#[derive(Args)]
pub struct Bench {
    /// A minute instead of a quarter of an hour: few short rounds, only good for a first look.
    #[arg(long)]
    quick: bool,
    /// Only these: sections (paths, packets, nat, observe, scale, publications), kinds of traffic, paths;
    /// of what is translated, who asks (published, masquerade, ...) and who translates (netpol-100, ...).
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
    /// How many rounds of everything; ratios are medians over them.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
    /// How many publications under traffic.
    #[arg(long, value_name = "N")]
    publications: Option<u32>,
    /// The netpol program to measure [default: the one built together with this].
    #[arg(long, value_name = "FILE")]
    netpol: Option<PathBuf>,
    /// Write benchmarks.md and benchmarks.svg here [default: docs/, after a run of everything that was not quick].
    #[arg(long, value_name = "DIR")]
    docs: Option<PathBuf>,
    /// Write all figures here, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What the sections need to know.
struct Setting<'a> {
    sandbox: &'a Sandbox,
    binary: &'a Binary,
    only: &'a Only,
    /// Those that traffic may run on.
    cpus: &'a [Cpu],
    rounds: usize,
    /// How long one measurement of traffic takes.
    time: Duration,
    timing: Timing,
    publications: u32,
    quick: bool,
}

type Run = fn(&Setting) -> Result<Section>;

/// In the order in which they run and are reported.
const SECTIONS: &[(&str, Run)] = &[
    ("paths", paths::run),
    ("packets", packets::run),
    ("nat-paths", nat::paths::run),
    ("nat-packets", nat::packets::run),
    ("nat-backends", nat::backends::run),
    ("observe", observe::run),
    ("reading", reading::run),
    ("scale", scale::run),
    ("publications", publications::run),
];

const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs");

impl Bench {
    /// Exit code 0: measured and written, whatever the figures are.
    pub fn run(self) -> Result<ExitCode> {
        let only = Only::parse(&self.only)?;
        // Paths given are relative to where the user is: the sandbox hides nothing of that.
        let binary = Binary::find(self.netpol.clone())?;
        let sandbox = Sandbox::enter()?;
        let machine = Machine::this();
        let cpus = Cpu::all()?;
        let setting = Setting {
            sandbox: &sandbox,
            binary: &binary,
            only: &only,
            cpus: &cpus,
            rounds: self.rounds.map_or(if self.quick { 5 } else { 15 }, usize::from),
            time: Duration::from_millis(if self.quick { 50 } else { 250 }),
            timing: machine.timing,
            publications: self.publications.unwrap_or(if self.quick { 20 } else { 500 }),
            quick: self.quick,
        };
        let sections = SECTIONS
            .iter()
            .filter(|(name, _)| only.section(name))
            .map(|(name, run)| run(&setting).with_context(|| format!("section {name}")))
            .collect::<Result<Vec<_>>>()?;
        let report = Report { command: self.command(), machine, sections };
        self.write(&report, &only)?;
        Ok(ExitCode::SUCCESS)
    }

    fn write(&self, report: &Report, only: &Only) -> Result<()> {
        print!("{}", report.markdown(None));
        if let Some(path) = &self.json {
            write(path, &(serde_json::to_string_pretty(report)? + "\n"))?;
        }
        // A part of the figures, or hasty ones, must not silently replace the good ones.
        let complete = only.is_everything() && !self.quick;
        let Some(folder) = self.docs.clone().or_else(|| complete.then(|| DOCS.into())) else {
            eprintln!("docs/benchmarks.md is left alone: only a complete run, or --docs DIR, writes it");
            return Ok(());
        };
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let charts = report.charts().collect::<Vec<_>>();
        let plot = (!charts.is_empty()).then_some("benchmarks.svg");
        if let Some(plot) = plot {
            write(&folder.join(plot), &plot::svg(&charts))?;
        }
        write(&folder.join("benchmarks.md"), &report.markdown(plot))
    }

    /// The command line that makes this report again.
    fn command(&self) -> String {
        let mut words = vec!["cargo xtask bench".to_owned()];
        words.extend(self.quick.then(|| "--quick".to_owned()));
        words.extend((!self.only.is_empty()).then(|| format!("--only {}", self.only.join(","))));
        words.extend(self.rounds.map(|rounds| format!("--rounds {rounds}")));
        words.extend(self.publications.map(|count| format!("--publications {count}")));
        words.join(" ")
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| path.display().to_string())?;
    eprintln!("wrote {}", path.display());
    Ok(())
}
