//! Running commands, and saying which one failed.

use std::{
    env, fmt, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// A command as a line for a shell.
pub struct Line<'a>(pub &'a Command);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.get_program().to_string_lossy())?;
        self.0.get_args().try_for_each(|arg| {
            let arg = arg.to_string_lossy();
            let plain = !arg.is_empty() && arg.chars().all(|c| c.is_ascii_alphanumeric() || "-_=/.,:+@".contains(c));
            if plain { write!(f, " {arg}") } else { write!(f, " '{arg}'") }
        })
    }
}

/// Runs it before everybody's eyes.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| Line(command).to_string())?;
    if !status.success() {
        bail!("`{}` failed ({status})", Line(command));
    }
    Ok(())
}

/// Runs it quietly; what it said is part of the error.
pub fn quietly(command: &mut Command) -> Result<Output> {
    let output = command.stdin(Stdio::null()).output().with_context(|| Line(command).to_string())?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed ({}): {}", Line(command), output.status, said.trim());
    }
    Ok(output)
}

/// The cargo that started us, in the root of the workspace.
pub fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    cargo
}

/// The root of the workspace.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the workspace")
}

/// The folder that cargo builds into.
pub fn target() -> Result<PathBuf> {
    let own = env::current_exe()?;
    // target/debug/xtask
    Ok(own.ancestors().nth(2).context("xtask does not run from a target folder")?.to_owned())
}

/// Where a program is: in `PATH`, or where Debian keeps the administrator's and PostgreSQL's.
pub fn which(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let postgres = versions.map(|version| version.path().join("bin"));
    let folders = env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from)).chain(postgres);
    folders.map(|folder| folder.join(program)).find(|file| is_program(file))
}

fn is_program(file: &Path) -> bool {
    file.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

pub fn is_root() -> bool {
    // SAFETY: reads a number of this process.
    unsafe { libc::geteuid() == 0 }
}
