//! `cargo xtask test`: everything that must hold. CI runs this, and nothing else.

use std::{
    env,
    num::NonZeroUsize,
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::{
    demo, harness, kernel, say,
    setup::Install,
    shell::{self, cargo},
};

/// Runs lints, tests, the conformance cases when they are there, and the demo of each example.
#[derive(Args)]
pub struct Test {
    /// Only these parts.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    #[command(flatten)]
    install: Install,
}

/// In the order in which they run: what fails fastest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Formatting, and clippy with -D warnings, of both halves.
    Lint,
    /// Tests inside the crates, and the examples of their documentation.
    Unit,
    /// Tests of the tests/ folders: the kernel, namespaces, the command.
    E2e,
    /// The cases of other projects' suites.
    Conformance,
    /// `cargo xtask run` of each example, and of the shop with real programs.
    Demo,
    /// The classifiers on the oldest kernel that netpol is for, in a machine of its own.
    Kernel,
}

/// Where the conformance cases are, relative to the workspace; another folder can be named in the environment.
const CASES: &str = "../shared/conformance";
const CASES_VARIABLE: &str = "NETPOL_CONFORMANCE";

impl Part {
    fn run(self) -> Result<()> {
        match self {
            Part::Lint => lint(),
            Part::Unit => unit(),
            Part::E2e => tests(&["--test", "*"], WAITING),
            Part::Conformance => conformance(),
            Part::Demo => demo::play_all(),
            Part::Kernel => kernel::run(),
        }
    }
}

/// How a part went.
struct Outcome {
    part: Part,
    took: Duration,
    result: Result<()>,
}

impl Test {
    pub fn run(self) -> Result<()> {
        let wanted = |part: &Part| self.only.is_empty() || self.only.contains(part);
        let mut programs = Vec::new();
        if wanted(&Part::Kernel) {
            programs.extend(kernel::PROGRAMS);
        }
        if wanted(&Part::Demo) {
            programs.extend(demo::PROGRAMS);
        }
        self.install.ensure_with(&programs)?;
        let parts = Part::value_variants().iter().copied().filter(wanted);
        // A part that fails does not hide what the others have to say.
        let outcomes: Vec<Outcome> = parts.map(observe).collect();
        say::heading("Summary");
        outcomes.iter().for_each(Outcome::report);
        let failed = outcomes.iter().filter(|outcome| outcome.result.is_err()).count();
        println!("\n{} passed, {failed} failed", outcomes.len() - failed);
        if failed > 0 {
            bail!("{failed} of {} parts failed", outcomes.len());
        }
        Ok(())
    }
}

fn observe(part: Part) -> Outcome {
    say::heading(format_args!("test: {part:?}"));
    let started = Instant::now();
    let result = part.run();
    if let Err(error) = &result {
        say::failed(format_args!("{error:#}"));
    }
    Outcome { part, took: started.elapsed(), result }
}

impl Outcome {
    fn report(&self) {
        let line = format!("{:<12} {:>6.1} s", format!("{:?}", self.part), self.took.as_secs_f64());
        match &self.result {
            Ok(()) => say::done(line),
            Err(error) => say::failed(format_args!("{line}  {error:#}")),
        }
    }
}

/// The classifiers' crate is not for this machine's target: it gets commands of its own.
const HOST_CRATES: [&str; 3] = ["--workspace", "--exclude", "netpol-ebpf"];

/// All three, whatever the first says.
fn lint() -> Result<()> {
    let formatting = step(cargo().args(["fmt", "--all", "--check"]));
    let clippy = ["clippy", "--quiet"];
    let host = step(cargo().args(clippy).args(HOST_CRATES).args(["--all-targets", "--", "-D", "warnings"]));
    // Without std there is no unwinding: the classifiers only build with aborts.
    let mut classifiers = cargo();
    classifiers.env("CARGO_PROFILE_DEV_PANIC", "abort").args(clippy);
    let classifiers = step(classifiers.args(["--package", "netpol-ebpf", "--", "-D", "warnings"]));
    formatting.and(host).and(classifiers)
}

fn unit() -> Result<()> {
    tests(&["--lib", "--bins"], 0)?;
    step(cargo().args(["test", "--quiet", "--doc"]).args(HOST_CRATES))
}

/// Tests that run beside those that keep the CPUs busy: end-to-end tests spend much of their time waiting for programs,
/// packets and timers.
const WAITING: usize = 1;

/// By nextest where it is (each test a process of its own, hence in parallel), else by cargo. `waiting`: so many more at
/// once than there are CPUs.
fn tests(which: &[&str], waiting: usize) -> Result<()> {
    let mut command = cargo();
    match shell::which("cargo-nextest") {
        Some(_) => {
            let cpus = thread::available_parallelism().map_or(1, NonZeroUsize::get);
            let threads = (cpus + waiting).to_string();
            command.args(["nextest", "run", "--no-fail-fast", "--status-level", "fail", "--test-threads", &threads])
        }
        None => command.args(["test", "--no-fail-fast"]),
    };
    step(command.args(HOST_CRATES).args(which))
}

fn conformance() -> Result<()> {
    let given = env::var_os(CASES_VARIABLE).map(PathBuf::from);
    let cases = given.clone().unwrap_or_else(|| shell::root().join(CASES));
    if !cases.is_dir() {
        if given.is_some() {
            bail!("{CASES_VARIABLE} names {}, which is no folder", cases.display());
        }
        say::note(format_args!("no cases at {CASES} ({CASES_VARIABLE} names another folder): nothing to run"));
        return Ok(());
    }
    harness::conformance(&cases)
}

fn step(command: &mut Command) -> Result<()> {
    say::command(shell::Line(command));
    shell::run(command)
}
