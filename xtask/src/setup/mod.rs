//! What a machine must have to build, show and test netpol, and how it gets it.
//!
//! Each need is looked for first; when all is there, set-up says nothing and changes nothing. What is missing is
//! installed in one go, each step naming what it does and why, or with `--no-install` only named.

mod debian;
mod linker;
mod toolchain;

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
pub use debian::refresh;
use toolchain::Core;

use crate::{say, shell};

/// Installs what is needed to build, show and test netpol, once.
#[derive(Args)]
pub struct Setup {
    #[command(flatten)]
    install: Install,
}

impl Setup {
    pub fn run(self) -> Result<()> {
        self.install.ensure()?;
        let bpf = toolchain::find()?.context("the BPF toolchain is gone again")?;
        say::done(format_args!("this machine is set up; the classifiers are built by toolchain `{}`", bpf.name));
        Ok(())
    }
}

#[derive(Args, Clone, Copy, Debug)]
pub struct Install {
    /// Only name what is missing, and how to get it.
    #[arg(long)]
    pub no_install: bool,
}

impl Install {
    pub const NO_INSTALL: &str = "--no-install";

    /// Makes sure that all is there. Silent when it is.
    pub fn ensure(self) -> Result<()> {
        self.ensure_with(&[])
    }

    /// The same, and these programs.
    pub fn ensure_with(self, more: &[Program]) -> Result<()> {
        let mut missing = missing(more)?;
        if missing.is_empty() {
            return Ok(());
        }
        say::heading("Set-up");
        if self.no_install {
            name(&missing)?;
            bail!("{} missing; `cargo xtask setup` installs what is", missing.len());
        }
        debian::refresh()?;
        for round in ROUNDS {
            missing.iter().for_each(|need| say::note(format_args!("missing: {need}")));
            perform(plan(&missing, round)?)?;
            missing = self::missing(more)?;
            if missing.is_empty() {
                say::done("set up");
                return Ok(());
            }
        }
        bail!("still missing: {}", missing.iter().map(Need::to_string).collect::<Vec<_>>().join("; "))
    }
}

fn name(missing: &[Need]) -> Result<()> {
    missing.iter().for_each(|need| say::note(format_args!("missing: {need}")));
    say::note("to get it:");
    for round in ROUNDS {
        plan(missing, round)?.iter().for_each(|step| println!("     {}", step.by_hand()));
    }
    Ok(())
}

/// A program's name, its Debian package, and what it is for.
pub type Program = (&'static str, &'static str, &'static str);

/// Something that isn't there.
#[derive(Debug)]
enum Need {
    /// A program, from the Debian package of this name.
    Program { program: &'static str, package: &'static str, purpose: &'static str },
    /// A component of the toolchain that builds the rest.
    Component { component: &'static str },
    /// A toolchain that can build for BPF.
    Toolchain,
    /// A linker that understands what the toolchain emits.
    Linker { why: String },
}

impl std::fmt::Display for Need {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Need::Program { program, purpose, .. } => write!(f, "`{program}` ({purpose})"),
            Need::Component { component } => write!(f, "the {component} component of Rust"),
            Need::Toolchain => {
                write!(f, "a Rust toolchain for the BPF target: with its `core`, or the source to build that from")
            }
            Need::Linker { why, .. } => write!(f, "bpf-linker {}: {why}", linker::VERSION),
        }
    }
}

/// Programs that building does without, but showing and testing do not.
const PROGRAMS: [(&str, &str, &str); 7] = [
    ("ip", "iproute2", "namespaces and interfaces of demo and tests"),
    ("nsenter", "util-linux", "commands inside a namespace"),
    ("curl", "curl", "requests of the demo"),
    ("iptables", "iptables", "what netpol is compared with"),
    ("nft", "nftables", "what netpol is compared with"),
    ("chromium", "chromium", "tests of the page of `netpol map`"),
    ("dockerd", "docker.io", "tests of netpol beside Docker; Debian starts its service"),
];

const COMPONENTS: [(&str, &str); 2] = [("rustfmt", "cargo-fmt"), ("clippy", "cargo-clippy")];

fn missing(more: &[Program]) -> Result<Vec<Need>> {
    let programs = PROGRAMS.iter().chain(more).copied().filter(|(program, ..)| shell::which(program).is_none());
    let mut missing: Vec<Need> =
        programs.map(|(program, package, purpose)| Need::Program { program, package, purpose }).collect();

    let programs = toolchain_programs()?;
    let components = COMPONENTS.into_iter().filter(|(_, program)| !programs.join(program).is_file());
    missing.extend(components.map(|(component, _)| Need::Component { component }));

    let toolchain = toolchain::find().context("neither rustup nor rustc is here: https://rustup.rs")?;
    if toolchain.is_none() {
        missing.push(Need::Toolchain);
    }
    if let Err(why) = linker::check(toolchain.as_ref()) {
        // The outermost reason is enough: what rustc says of a failed link fills a screen.
        missing.push(Need::Linker { why: why.to_string() });
    }
    Ok(missing)
}

/// Where the programs of the toolchain are that builds the rest. (rustup has a stub in `PATH` for each, there or not.)
fn toolchain_programs() -> Result<PathBuf> {
    // Set by the cargo that started us.
    let cargo = env::var_os("CARGO").map(PathBuf::from);
    if let Some(folder) = cargo.as_deref().and_then(Path::parent) {
        return Ok(folder.to_owned());
    }
    Ok(toolchain::sysroot_of("rustc").context("no rustc in PATH: https://rustup.rs")?.join("bin"))
}

/// One command that brings something.
struct Step {
    why: &'static str,
    needs_root: bool,
    /// What it says is only of interest when it fails.
    quiet: bool,
    command: Command,
}

impl Step {
    /// As one would type it.
    fn by_hand(&self) -> String {
        let sudo = if self.needs_root && !shell::is_root() { "sudo " } else { "" };
        let variables = self
            .command
            .get_envs()
            .filter_map(|(key, value)| Some(format!("{}={} ", key.to_string_lossy(), value?.to_string_lossy())));
        format!("{sudo}{}{}", variables.collect::<String>(), shell::Line(&self.command))
    }
}

fn step(why: &'static str, line: &[&str]) -> Step {
    let mut command = Command::new(line[0]);
    command.args(&line[1..]);
    Step { why, needs_root: false, quiet: false, command }
}

/// The linker is built for the compiler's LLVM, so the compiler must be there first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Round {
    AllButLinker,
    Linker,
}

const ROUNDS: [Round; 2] = [Round::AllButLinker, Round::Linker];

/// What to do about it, in order.
fn plan(missing: &[Need], round: Round) -> Result<Vec<Step>> {
    let mut packages: Vec<String> = vec![];
    let mut after: Vec<Step> = vec![];
    for need in missing {
        match (need, round) {
            (Need::Program { package, .. }, Round::AllButLinker) => packages.push((*package).to_owned()),
            (Need::Component { component }, Round::AllButLinker) => {
                after.push(step(
                    "formatting and lints are part of the tests",
                    &["rustup", "component", "add", component],
                ));
            }
            (Need::Toolchain, Round::AllButLinker) => after.extend(toolchain_steps(&mut packages)),
            (Need::Linker { .. }, Round::Linker) => after.push(linker::step(&mut packages)?),
            _ => {}
        }
    }
    let mut steps = debian::steps(&packages)?;
    steps.append(&mut after);
    Ok(steps)
}

/// Where a toolchain for BPF will come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// Debian's packages, which have `core` for BPF ready-made.
    Debian,
    /// The system has that toolchain already; rustup only doesn't know it.
    System,
    Nightly,
}

/// The name under which rustup knows the system's toolchain.
const LINKED: &str = "netpol-bpf";
const DEBIAN_TOOLCHAIN: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];

fn toolchain_source() -> Source {
    if toolchain::serves("/usr".as_ref(), Core::Prebuilt) {
        return Source::System;
    }
    // Older releases have these packages with an older compiler.
    let new_enough =
        |version: &str| toolchain::major_minor(version) >= toolchain::major_minor(env!("CARGO_PKG_RUST_VERSION"));
    match debian::candidate("libstd-rust-web-dev-bpf") {
        debian::Candidate::Version(version) if new_enough(&version) => Source::Debian,
        debian::Candidate::NeverAsked => Source::Debian,
        _ => Source::Nightly,
    }
}

fn toolchain_steps(packages: &mut Vec<String>) -> Vec<Step> {
    let source = toolchain_source();
    if source == Source::Nightly {
        let line = ["rustup", "toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"];
        return vec![step("a compiler with the source of `core`, to build that for BPF", &line)];
    }
    if source == Source::Debian {
        packages.extend(DEBIAN_TOOLCHAIN.map(str::to_owned));
    }
    if shell::which("rustup").is_none() {
        return vec![];
    }
    vec![step("makes the system's compiler known to rustup", &["rustup", "toolchain", "link", LINKED, "/usr"])]
}

fn perform(plan: Vec<Step>) -> Result<()> {
    if let Some(step) = plan.iter().find(|step| step.needs_root && !shell::is_root()) {
        bail!("this needs root:\n  {}\nthen run this again", step.by_hand());
    }
    for mut step in plan {
        say::command(step.by_hand());
        say::note(say::faint(step.why));
        if step.quiet {
            shell::quietly(&mut step.command)?;
        } else {
            shell::run(&mut step.command)?;
        }
    }
    Ok(())
}
