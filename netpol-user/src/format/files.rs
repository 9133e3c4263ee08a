//! Finds and reads the files of PATH...

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, Read as _},
    ops::Range,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Diagnostic, Source, object::MAX_BYTES};
use crate::model::Origin;

/// Folders inside each other. Symbolic links to folders are not followed, so this is no loop.
const MAX_DEPTH: usize = 32;
/// Bytes of all files together.
const MAX_TOTAL: usize = 256 << 20;
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];

#[derive(Default)]
struct Gathered {
    sources: Vec<Source>,
    errors: Vec<Diagnostic>,
    total: usize,
    /// Files come across, read before or not.
    met: usize,
    /// Device and inode of the files read.
    seen: HashSet<(u64, u64)>,
}

/// What is below PATH...: the sources, those of each PATH next to each other.
#[derive(Default)]
pub struct Found {
    pub sources: Vec<Source>,
    pub paths: Vec<Range<usize>>,
    /// What could not be read.
    pub errors: Vec<Diagnostic>,
}

/// Reads what it can; the errors name what it can't.
pub fn gather(paths: &[PathBuf]) -> Found {
    let mut ranges = Vec::new();
    let mut gathered = Gathered::default();
    for path in paths {
        let before = (gathered.met, gathered.errors.len());
        let first = gathered.sources.len();
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => gathered.folder(path, 0),
            Ok(_) => gathered.file(path),
            Err(error) => gathered.error(path, error.to_string(), None),
        }
        if before == (gathered.met, gathered.errors.len()) {
            let help = format!("files here end in .{}", EXTENSIONS.join(", ."));
            gathered.error(path, "no policy documents below this folder".to_owned(), Some(help));
        }
        ranges.push(first..gathered.sources.len());
    }
    Found { sources: gathered.sources, paths: ranges, errors: gathered.errors }
}

impl Gathered {
    fn error(&mut self, path: &Path, message: String, help: Option<String>) {
        let file: Arc<str> = path.to_string_lossy().into();
        self.errors.push(Diagnostic { origin: Origin { file, line: 0, column: 0 }, message, help });
    }

    fn folder(&mut self, path: &Path, depth: usize) {
        let entries = fs::read_dir(path).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
        let mut entries = match entries {
            Ok(entries) => entries,
            Err(error) => return self.error(path, error.to_string(), None),
        };
        if depth >= MAX_DEPTH {
            return self.error(path, format!("more than {MAX_DEPTH} folders inside each other"), None);
        }
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let hidden = entry.file_name().to_string_lossy().starts_with('.');
            let ours = path.extension().and_then(|e| e.to_str()).is_some_and(|e| EXTENSIONS.contains(&e));
            match entry.file_type() {
                _ if hidden => {}
                Ok(kind) if kind.is_dir() => self.folder(&path, depth + 1),
                // A pipe in a folder would be waited for forever.
                Ok(kind) if ours && (kind.is_file() || path.is_file()) => self.file(&path),
                Ok(_) => {}
                Err(error) => self.error(&path, error.to_string(), None),
            }
        }
    }

    fn file(&mut self, path: &Path) {
        self.met += 1;
        // One byte more than allowed is enough to know that it is too long, and a device or pipe can't go on forever.
        let limit = (MAX_BYTES + 1).min(MAX_TOTAL.saturating_sub(self.total) + 1);
        let mut text = Vec::new();
        let read = File::open(path).and_then(|file| {
            let metadata = file.metadata()?;
            // The same file by two ways (`check policies policies/a.yaml`) is read once.
            if metadata.is_file() && !self.seen.insert((metadata.dev(), metadata.ino())) {
                return Ok(false);
            }
            file.take(limit as u64).read_to_end(&mut text)?;
            Ok(true)
        });
        match read {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => return self.error(path, error.to_string(), None),
        }
        self.total += text.len();
        if self.total > MAX_TOTAL {
            let message = format!("more than {} MiB of documents", MAX_TOTAL >> 20);
            return self.error(path, message, Some("load fewer files".to_owned()));
        }
        self.sources.push(Source { name: path.to_string_lossy().into_owned(), text });
    }
}
