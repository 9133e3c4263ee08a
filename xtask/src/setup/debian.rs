//! Packages, where apt has them.

use std::{path::Path, process::Command};

use anyhow::{Result, bail};

use super::{Step, step};
use crate::{say, shell};

fn is_here() -> bool {
    Path::new("/etc/debian_version").exists() && shell::which("apt-get").is_some()
}

/// What apt would install.
pub enum Candidate {
    Version(String),
    Unknown,
    /// No list was ever fetched: apt knows nothing of anything.
    NeverAsked,
}

pub fn candidate(package: &str) -> Candidate {
    if !is_here() {
        return Candidate::Unknown;
    }
    let Some(version) = policy(package) else {
        return if policy("rustc").is_none() { Candidate::NeverAsked } else { Candidate::Unknown };
    };
    Candidate::Version(version)
}

fn policy(package: &str) -> Option<String> {
    let output = Command::new("apt-cache").args(["policy", package]).env("LC_ALL", "C").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then(|| version.to_owned())
}

/// Fetches the lists of packages, without which nothing is known.
pub fn refresh() -> Result<()> {
    if !is_here() || !shell::is_root() {
        return Ok(());
    }
    let mut update = Command::new("apt-get");
    update.args(["update", "-qq"]);
    say::command(shell::Line(&update));
    // One source of many that doesn't answer need not matter: the installation will tell.
    if let Err(error) = shell::run(&mut update) {
        say::note(error);
    }
    Ok(())
}

/// The command that installs all of these.
pub fn steps(packages: &[String]) -> Result<Vec<Step>> {
    if packages.is_empty() {
        return Ok(vec![]);
    }
    if !is_here() {
        bail!("only Debian's packages are installed here; get these in your system's way: {}", packages.join(" "));
    }
    // The toolchain's packages recommend all of clang, Chromium's a desktop.
    let mut step = step("of the system; may take a minute", &["apt-get", "install", "-qq", "--no-install-recommends"]);
    step.needs_root = true;
    step.quiet = true;
    step.command.env("DEBIAN_FRONTEND", "noninteractive").args(packages);
    Ok(vec![step])
}
