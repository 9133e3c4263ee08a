//! Development commands: `cargo xtask COMMAND`.
//!
//! | module | one idea |
//! |---|---|
//! | [`setup`] | what a machine must have, and how it gets it |
//! | [`demo`] | the examples of `policies/`, played with real traffic |
//! | [`test`] | everything that must hold, in one command |
//! | [`harness`] | `conformance` and `bench`: a program of their own, started from here |
//! | [`kernel`] | the oldest kernel that netpol is for, in a machine of its own |
//! | [`shell`], [`say`] | running commands; talking to whoever watches |

mod demo;
mod harness;
mod kernel;
mod say;
mod setup;
mod shell;
mod test;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

/// Development commands of netpol.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Cli {
    Setup(setup::Setup),
    Run(demo::Run),
    CleanUp(demo::CleanUp),
    Test(test::Test),
    Build(harness::Build),
    Conformance(harness::Conformance),
    Bench(harness::Bench),
    #[command(hide = true)]
    Serve(demo::Serve),
}

fn main() -> ExitCode {
    let done: Result<()> = match Cli::parse() {
        Cli::Setup(command) => command.run(),
        Cli::Run(command) => command.run(),
        Cli::CleanUp(command) => command.run(),
        Cli::Test(command) => command.run(),
        Cli::Build(command) => command.run(),
        Cli::Conformance(command) => command.run(),
        Cli::Bench(command) => command.run(),
        Cli::Serve(command) => command.run(),
    };
    let Err(error) = done else { return ExitCode::SUCCESS };
    eprintln!("{} {error:#}", say::bad("xtask:"));
    ExitCode::FAILURE
}
