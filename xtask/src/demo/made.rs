//! What a demo has made, and how all of it goes again.
//!
//! What is made is written to a list before it is made. Only what is in that list is ever removed.

use std::{fs, io, os::unix::process::CommandExt as _, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

use super::{
    real,
    topology::{FOLDER, LIST, NAMESPACES, is_bpffs, own_bpffs, pins},
};
use crate::{say, shell::quietly};

/// What the demo has made; removed when dropped.
pub struct Made {
    remove_on_drop: bool,
}

impl Made {
    pub fn removed_when_dropped() -> Made {
        Made { remove_on_drop: true }
    }

    /// What an earlier demo left here.
    pub fn left_behind() -> Result<Option<Made>> {
        Ok(Path::new(FOLDER).try_exists()?.then_some(Made { remove_on_drop: false }))
    }

    pub fn keep(mut self) {
        self.remove_on_drop = false;
    }

    pub fn remove(mut self) -> Result<()> {
        self.remove_on_drop = false;
        remove()
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if !self.remove_on_drop {
            return;
        }
        if let Err(error) = remove() {
            say::failed(format_args!("{error:#}; `cargo xtask clean-up` tries again"));
        }
    }
}

/// What was made, by name.
pub fn namespaces() -> Vec<String> {
    fs::read_to_string(LIST).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// Removes what the list names. A step that fails does not keep the others from being done.
fn remove() -> Result<()> {
    let list = namespaces();
    let mut failures = vec![];
    let mut attempt = |what: &str, outcome: Result<()>| {
        if let Err(error) = outcome {
            failures.push(format!("{what}: {error:#}"));
        }
    };
    attempt("programs and maps", remove_pins());
    attempt("the services", real::end());
    for namespace in &list {
        if Path::new(NAMESPACES).join(namespace).exists() {
            attempt(namespace, end_servers(namespace));
            attempt(namespace, quietly(undisturbed("ip").args(["netns", "del", namespace])).map(drop));
        }
    }
    if is_bpffs(&own_bpffs()) {
        attempt("bpffs", quietly(undisturbed("umount").arg(own_bpffs())).map(drop));
    }
    if !failures.is_empty() {
        bail!("could not remove everything: {}", failures.join("; "));
    }
    fs::remove_dir_all(FOLDER).with_context(|| FOLDER.to_owned())
}

/// A command that a second Ctrl-C does not reach.
fn undisturbed(program: &str) -> Command {
    let mut command = Command::new(program);
    command.process_group(0);
    command
}

/// A pin is what keeps a program attached, so removing pins is all it takes, with or without a netpol that works.
fn remove_pins() -> Result<()> {
    match fs::remove_dir_all(pins()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Ends the servers in a namespace, and nothing else that somebody runs there.
fn end_servers(namespace: &str) -> Result<()> {
    let output = quietly(undisturbed("ip").args(["netns", "pids", namespace]))?;
    for pid in String::from_utf8_lossy(&output.stdout).lines() {
        let Ok(words) = fs::read(format!("/proc/{pid}/cmdline")) else { continue };
        let mut words = words.split(|byte| *byte == 0);
        let ours = words.next().is_some_and(|program| program.ends_with(b"/xtask")) && words.next() == Some(b"serve");
        let (true, Ok(pid)) = (ours, pid.parse()) else { continue };
        // SAFETY: sends a signal; touches no memory.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
    Ok(())
}
