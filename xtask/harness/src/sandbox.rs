//! What a command makes exists for its own processes alone, so it is gone however they end.
//!
//! Network namespaces have no name and live as long as a descriptor of ours is open; pins and files lie in a mount
//! namespace that the last process takes with it. So Ctrl-C and `kill -9` need no cleaning up.

use std::{
    fs::{self, File},
    io::Write as _,
    os::fd::{AsFd as _, AsRawFd as _},
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    sys::resource::{Resource, getrlimit, setrlimit},
    unistd::Uid,
};

/// Both exist on every machine with BPF; what is below them stays visible to everybody else.
const BPFFS: &str = "/sys/fs/bpf";
const FILES: &str = "/dev/shm";

/// The private mounts of this process and of those that it starts.
pub struct Sandbox {
    _private: (),
}

impl Sandbox {
    /// To be called before any other thread exists: a mount namespace belongs to a thread and its descendants.
    pub fn enter() -> Result<Self> {
        if !Uid::effective().is_root() {
            bail!("this needs root: it builds network namespaces and loads classifiers");
        }
        unshare(CloneFlags::CLONE_NEWNS).context("no mount namespace of our own")?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("making mounts private")?;
        mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), none).context("mounting a private bpffs")?;
        mount(Some("tmpfs"), FILES, Some("tmpfs"), MsFlags::empty(), none).context("mounting a private tmpfs")?;
        // A thousand endpoints are a thousand namespaces held open.
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
        Ok(Self { _private: () })
    }

    /// A folder for pins.
    pub fn bpffs(&self, name: &str) -> PathBuf {
        Path::new(BPFFS).join(name)
    }

    /// A new folder for files.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = Path::new(FILES).join(name);
        fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        Ok(path)
    }
}

/// A network namespace without a name.
pub struct Netns {
    handle: File,
}

impl Netns {
    pub fn new() -> Result<Self> {
        // A thread of its own: unsharing would move the caller.
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    unshare(CloneFlags::CLONE_NEWNET).context("no network namespace of our own")?;
                    Ok(Self { handle: File::open("/proc/thread-self/ns/net")? })
                })
                .join()
                .map_err(|_| anyhow::anyhow!("the thread that makes a namespace panicked"))?
        })
    }

    /// How other programs open it, while this process lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", process::id(), self.handle.as_raw_fd())
    }

    /// Moves the calling thread.
    pub fn enter(&self) -> Result<()> {
        setns(self.handle.as_fd(), CloneFlags::CLONE_NEWNET).context("entering a network namespace")
    }

    /// Runs `action` inside, on a thread of its own; programs that it starts are inside too.
    pub fn run<T: Send>(&self, action: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter()?;
                    action()
                })
                .join()
                .map_err(|_| anyhow::anyhow!("a thread in a namespace panicked"))?
        })
    }

    /// Sets a variable below `/proc/sys`; its path is given with slashes.
    pub fn sysctl(&self, variable: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{variable}");
        self.run(|| fs::write(&path, value).with_context(|| path.clone()))
    }
}

/// Runs lines of `ip -batch` inside `netns`.
pub fn ip(netns: &Netns, batch: &str) -> Result<()> {
    feed(netns, &["ip", "-batch", "-"], batch)
}

/// Runs a program inside `netns` with `input` as its standard input.
pub fn feed(netns: &Netns, command: &[&str], input: &str) -> Result<()> {
    let (program, arguments) = command.split_first().context("no program")?;
    netns.run(|| {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("{program} (`cargo xtask setup` installs it)"))?;
        // One that refuses its input closes the pipe early; what it says is the better error.
        let fed = child.stdin.take().context("no pipe")?.write_all(input.as_bytes());
        let done = child.wait_with_output()?;
        if !done.status.success() {
            bail!("{}: {}", command.join(" "), String::from_utf8_lossy(&done.stderr).trim());
        }
        fed.with_context(|| program.to_string())
    })
}
