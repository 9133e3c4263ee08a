//! Documents in a folder of their own, for the commands that need neither a host nor root.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use super::Ran;

/// A folder of its own for one test; gone when the test is.
pub struct Folder(PathBuf);

impl Folder {
    /// With these files, by their names.
    pub fn with(files: &[(&str, &str)]) -> Self {
        // tests may be threads of one process
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("documents-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&path).unwrap();
        files.iter().for_each(|(name, text)| fs::write(path.join(name), text).unwrap());
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The real command, in this folder.
    pub fn netpol(&self, arguments: &[&str]) -> Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_netpol"));
        command.args(arguments).current_dir(&self.0).output().unwrap().into()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
