//! The real program, run as somebody would run it, inside a topology's host.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write as _,
    num::NonZero,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    pty::{OpenptyResult, Winsize, openpty},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::traffic::Cpu;
use crate::sandbox::{Netns, Sandbox};

/// The `netpol` program.
#[derive(Clone)]
pub struct Binary(PathBuf);

impl Binary {
    /// `given`, else the one that was built together with this program.
    pub fn find(given: Option<PathBuf>) -> Result<Self> {
        let path = match given {
            Some(path) => path,
            None => std::env::current_exe()?.with_file_name("netpol"),
        };
        let path = path
            .canonicalize()
            .with_context(|| format!("{}: `cargo build --release --package netpol-user` builds it", path.display()))?;
        Ok(Self(path))
    }
}

/// One netpol: its pins, its state and the documents that it loads.
pub struct Instance<'a> {
    binary: Binary,
    host: &'a Netns,
    bpffs: PathBuf,
    state: PathBuf,
    documents: PathBuf,
}

/// How long an observer may take to begin.
const PATIENCE: Duration = Duration::from_secs(10);

/// A `netpol observe`, until it is ended or dropped.
pub struct Observing(Child);

impl Observing {
    /// As Ctrl-C does, so that it leaves nothing behind.
    pub fn end(mut self) -> Result<()> {
        kill(Pid::from_raw(self.0.id() as i32), Signal::SIGINT)?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Observing {
    fn drop(&mut self) {
        // it has ended, or what it left is cleared by the next
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Its lines and columns.
pub const TERMINAL: [NonZero<u16>; 2] = [NonZero::new(50).unwrap(), NonZero::new(200).unwrap()];

/// A command in a terminal, until it is ended or dropped.
pub struct InTerminal {
    /// `None`: it has ended.
    child: Option<Child>,
    screen: File,
}

impl InTerminal {
    /// What it writes there.
    pub fn screen(&mut self) -> Result<File> {
        self.screen.try_clone().context("a terminal")
    }

    pub fn press(&mut self, keys: &str) -> Result<()> {
        self.screen.write_all(keys.as_bytes()).context("typing into the terminal")
    }

    /// Ends it, as somebody who types q does: the CPU time that it took.
    pub fn end(mut self) -> Result<Duration> {
        self.press("q")?;
        let child = self.child.take().context("it runs")?;
        let (status, usage) = wait(child.id())?;
        if !status.success() {
            bail!("netpol in a terminal: {status}");
        }
        let time = |time: libc::timeval| {
            Duration::from_secs(time.tv_sec.unsigned_abs()) + Duration::from_micros(time.tv_usec.unsigned_abs())
        };
        Ok(time(usage.ru_utime) + time(usage.ru_stime))
    }
}

impl Drop for InTerminal {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What a `load` said and what it took.
pub struct Loaded {
    pub identities: u64,
    /// Milliseconds of each step.
    pub timings: BTreeMap<String, f64>,
    pub wall: Duration,
    /// Peak resident memory.
    pub peak_kib: u64,
}

impl<'a> Instance<'a> {
    /// `name` must be its own among the instances of this run.
    pub fn new(sandbox: &Sandbox, binary: &Binary, name: &str, host: &'a Netns) -> Result<Self> {
        Ok(Self {
            binary: binary.clone(),
            host,
            bpffs: sandbox.bpffs(name),
            state: sandbox.folder(&format!("{name}/state"))?,
            documents: sandbox.folder(&format!("{name}/documents"))?,
        })
    }

    /// Where a program of this instance is pinned.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bpffs.join("programs").join(name)
    }

    /// Where a map of this instance is pinned.
    pub fn map(&self, name: &str) -> PathBuf {
        self.bpffs.join("maps").join(name)
    }

    /// Replaces the documents.
    pub fn write(&self, documents: &str) -> Result<()> {
        fs::write(self.documents.join("bench.yaml"), documents).context("writing documents")
    }

    /// `netpol load`, with more arguments.
    pub fn load(&self, arguments: &[&str]) -> Result<Loaded> {
        let documents = self.documents.display().to_string();
        let load = ["load", &documents, "--output", "json"];
        let start = Instant::now();
        let (said, peak_kib) = self.run(&[&load, arguments].concat())?;
        let wall = start.elapsed();
        let said = serde_json::from_str::<Value>(&said).context("the JSON of `netpol load`")?;
        let number = |name: &str| said[name].as_u64().with_context(|| format!("`netpol load` told no {name}"));
        let timings = said["timings"].as_object().into_iter().flatten();
        Ok(Loaded {
            // A number or a list of them: only how many is of interest.
            identities: said["identities"]
                .as_array()
                .map_or_else(|| number("identities"), |all| Ok(all.len() as u64))?,
            timings: timings.filter_map(|(name, value)| Some((name.clone(), value.as_f64()?))).collect(),
            wall,
            peak_kib,
        })
    }

    /// Whether `load` has an option.
    pub fn offers(&self, option: &str) -> Result<bool> {
        Ok(self.run(&["load", "--help"])?.0.contains(option))
    }

    pub fn unload(&self) -> Result<Duration> {
        let start = Instant::now();
        self.run(&["unload"])?;
        Ok(start.elapsed())
    }

    /// Begins to observe, on a CPU; what is told goes nowhere. It observes when this returns.
    pub fn observe(&self, arguments: &[&str], cpu: &Cpu) -> Result<Observing> {
        let child = self.host.run(|| {
            cpu.take()?;
            let mut command = self.command();
            command.arg("observe").args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command.spawn().with_context(|| self.binary.0.display().to_string())
        })?;
        let observing = Observing(child);
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            let said = serde_json::from_str::<Value>(&self.run(&["status", "--output", "json"])?.0)?;
            if said["observers"]["count"] != 0 {
                return Ok(observing);
            }
            thread::sleep(Duration::from_millis(20));
        }
        bail!("netpol observe does not begin to observe");
    }

    /// How long a command takes, and its peak of resident memory in KiB.
    pub fn time(&self, arguments: &[&str]) -> Result<(Duration, u64)> {
        let start = Instant::now();
        let child = self.host.run(|| {
            let mut command = self.command();
            command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command.spawn().with_context(|| self.binary.0.display().to_string())
        })?;
        let (status, usage) = wait(child.id())?;
        let time = start.elapsed();
        if !status.success() {
            bail!("netpol {}: {status}", arguments.join(" "));
        }
        Ok((time, peak_kib(&usage)))
    }

    /// Begins a command in a terminal of its own, of [`TERMINAL`].
    pub fn in_terminal(&self, arguments: &[&str]) -> Result<InTerminal> {
        let [ws_row, ws_col] = TERMINAL.map(NonZero::get);
        let size = Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 };
        let OpenptyResult { master, slave } = openpty(&size, None).context("opening a terminal")?;
        let child = self.host.run(|| {
            let mut command = self.command();
            command.args(arguments).env("TERM", "xterm-256color");
            command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave.try_clone()?);
            command.spawn().with_context(|| self.binary.0.display().to_string())
        })?;
        Ok(InTerminal { child: Some(child), screen: File::from(master) })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.binary.0);
        command.arg("--bpffs").arg(&self.bpffs).arg("--state").arg(&self.state);
        command
    }

    /// Standard output and the peak of resident memory in KiB.
    fn run(&self, arguments: &[&str]) -> Result<(String, u64)> {
        let complaints = self.state.with_file_name("stderr");
        let output = self.state.with_file_name("stdout");
        let child = self.host.run(|| {
            self.command()
                .args(arguments)
                .stdin(Stdio::null())
                .stdout(fs::File::create(&output)?)
                .stderr(fs::File::create(&complaints)?)
                .spawn()
                .with_context(|| self.binary.0.display().to_string())
        })?;
        let (status, usage) = wait(child.id())?;
        if !status.success() {
            bail!("netpol {}: {status}\n{}", arguments.join(" "), read(&complaints)?.trim_end());
        }
        Ok((read(&output)?, peak_kib(&usage)))
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| path.display().to_string())
}

fn peak_kib(usage: &libc::rusage) -> u64 {
    usage.ru_maxrss.unsigned_abs()
}

/// Waits for a child in the way that tells what it has used.
fn wait(child: u32) -> Result<(ExitStatus, libc::rusage)> {
    let mut status = 0;
    // SAFETY: all zeroes is a valid rusage.
    let mut usage = unsafe { std::mem::zeroed::<libc::rusage>() };
    // SAFETY: fills in both; the child is ours and nobody else waits for it.
    let waited = unsafe { libc::wait4(child as libc::pid_t, &mut status, 0, &mut usage) };
    if waited < 0 {
        return Err(std::io::Error::last_os_error()).context("waiting for netpol");
    }
    Ok((ExitStatus::from_raw(status), usage))
}
