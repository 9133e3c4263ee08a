//! The development commands that use netpol as a library.
//!
//! A crate beside `xtask`, not a part of it: this one needs the classifiers, hence the BPF toolchain, and `xtask` must
//! build on a machine that has none yet in order to install it. `cargo xtask conformance` and `cargo xtask bench` do the
//! set-up and then start this program with the arguments as they were given.
//!
//! Both live in a [`sandbox`] and speak in [`frame`]s.

mod bench;
mod conformance;
mod frame;
mod progress;
mod sandbox;

use std::process::ExitCode;

use clap::Parser;

/// Measures netpol, and compares it with what others expect of network policy.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
enum Cli {
    Conformance(conformance::Conformance),
    Bench(bench::Bench),
}

fn main() -> ExitCode {
    let done = match Cli::parse() {
        Cli::Conformance(command) => command.run(),
        Cli::Bench(command) => command.run(),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
