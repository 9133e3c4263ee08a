//! The commands. Each is a file: its arguments, what it does, what it prints.

mod check;
pub mod diagnostics;
mod diff;
mod endpoints;
mod flows;
mod grid;
mod identities;
mod listen;
mod load;
#[cfg(feature = "log")]
mod log;
mod map;
mod matrix;
mod metrics;
mod observe;
mod output;
mod policies;
mod question;
mod services;
mod status;
mod suggest;
mod top;
mod trace;
mod unload;
mod verify;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

use crate::enforce;

pub use output::{Format, OutputArgs};

/// Label-based network policy for containers on plain Linux hosts, enforced in the kernel.
#[derive(Parser)]
#[command(name = "netpol", version, propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    instance: Instance,
    #[command(subcommand)]
    command: Command,
}

/// Which netpol on this machine: several may live side by side.
#[derive(Args, Clone, Debug)]
pub struct Instance {
    /// Where programs, maps and links are pinned.
    #[arg(long, global = true, value_name = "DIR", default_value = "/sys/fs/bpf/netpol")]
    pub bpffs: PathBuf,
    /// Where the names of what is enforced are kept.
    #[arg(long, global = true, value_name = "DIR", default_value = "/run/netpol")]
    pub state: PathBuf,
}

impl Instance {
    /// The instance that the arguments name.
    fn open(&self) -> enforce::Instance {
        enforce::Instance::new(&self.bpffs, &self.state)
    }
}

#[derive(Subcommand)]
enum Command {
    Load(load::Load),
    Unload(unload::Unload),
    Check(check::Check),
    Matrix(matrix::Matrix),
    Trace(trace::Trace),
    Diff(diff::Diff),
    Suggest(suggest::Suggest),
    Verify(verify::Verify),
    Status(status::Status),
    Endpoints(endpoints::Endpoints),
    Identities(identities::Identities),
    Services(services::Services),
    Flows(flows::Flows),
    Top(top::Top),
    Observe(observe::Observe),
    Map(map::Map),
    Metrics(metrics::Metrics),
    Policies(policies::Policies),
    #[cfg(feature = "log")]
    Log(log::Log),
}

/// How a command that ran ended. (Wrong usage, exit code 2, is clap's.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done, and what was asked holds: exit code 0.
    Done,
    /// It ran, and the answer is no: exit code 1.
    DoesNotHold,
}

/// The whole program: parses the command line, runs the command, says what went wrong.
pub fn main() -> ExitCode {
    // A closed pipe (`netpol flows | head`) ends the program quietly, as it does other tools.
    // SAFETY: sets a signal's disposition before any thread exists.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_env("NETPOL_LOG"))
        .with_writer(std::io::stderr)
        .init();
    let Cli { instance, command } = Cli::parse();
    let outcome = match command {
        Command::Load(command) => command.run(&instance),
        Command::Unload(command) => command.run(&instance),
        Command::Check(command) => command.run(),
        Command::Matrix(command) => command.run(),
        Command::Trace(command) => command.run(&instance),
        Command::Diff(command) => command.run(&instance),
        Command::Suggest(command) => command.run(&instance),
        Command::Verify(command) => command.run(&instance),
        Command::Status(command) => command.run(&instance),
        Command::Endpoints(command) => command.run(&instance),
        Command::Identities(command) => command.run(&instance),
        Command::Services(command) => command.run(&instance),
        Command::Flows(command) => command.run(&instance),
        Command::Top(command) => command.run(&instance),
        Command::Observe(command) => command.run(&instance),
        Command::Map(command) => command.run(&instance),
        Command::Metrics(command) => command.run(&instance),
        Command::Policies(command) => command.run(&instance),
        #[cfg(feature = "log")]
        Command::Log(command) => command.run(&instance),
    };
    match outcome {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::DoesNotHold) => ExitCode::from(1),
        Err(error) => {
            eprintln!("netpol: {error:#}");
            ExitCode::from(1)
        }
    }
}
