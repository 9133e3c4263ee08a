//! The real command, run inside a host with an instance of its own.

use std::{
    fs::{self, File},
    path::Path,
    process::Output,
};

use nix::{
    fcntl::{Flock, FlockArg},
    mount::{MsFlags, mount},
    sys::statfs::{FsType, statfs},
};

use super::Host;

/// What became of a command.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// The output of a command that must have exited with 0.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}{}", self.stdout, self.stderr);
        self.stdout
    }

    /// The output, read as JSON, whatever the exit code.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error} in {}{}", self.stdout, self.stderr))
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Host {
    /// Runs `netpol` on this host.
    pub fn netpol(&self, arguments: &[&str]) -> Ran {
        let state = self.folder.join("state");
        let instance = ["--bpffs", text(&self.bpffs), "--state", text(&state)];
        self.command(env!("CARGO_BIN_EXE_netpol"), &[&instance[..], arguments].concat()).into()
    }

    /// The flags `--bpffs` and `--state` have these values in [`Self::netpol`].
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// Writes a file of documents into the host's folder and gives back its path.
    pub fn documents(&self, name: &str, documents: &str) -> String {
        let path = self.folder.join(name);
        fs::write(&path, documents).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        text(&path).to_owned()
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the test's paths are UTF-8")
}

/// Where bpffs is mounted; a machine without init has none, then it is mounted, once.
pub(super) fn bpffs() -> &'static Path {
    const BPF_FS_MAGIC: FsType = FsType(0xcafe_4a11);
    let place = Path::new("/sys/fs/bpf");
    let mounted = || statfs(place).is_ok_and(|there| there.filesystem_type() == BPF_FS_MAGIC);
    if !mounted() {
        // tests are processes of their own: two of them may get here together
        let lock = File::create(std::env::temp_dir().join("netpol-tests.lock")).expect("a lock file");
        let _alone = Flock::lock(lock, FlockArg::LockExclusive).expect("a lock");
        if !mounted() {
            mount(Some("bpf"), place, Some("bpf"), MsFlags::empty(), None::<&str>).expect("mounting bpffs needs root");
        }
    }
    place
}
