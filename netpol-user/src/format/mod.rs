//! Documents: YAML to a [`World`], with the position of everything that is wrong.

use std::path::PathBuf;

use crate::model::{Origin, World};

/// Text to read documents from, under the name that positions carry.
#[derive(Clone, Debug)]
pub struct Source {
    pub name: String,
    pub text: Vec<u8>,
}

/// What a set of documents says.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    pub world: World,
    pub warnings: Vec<Diagnostic>,
    /// Policy documents read, the staged ones included.
    pub policies: usize,
}

/// Something wrong, or doubtful, in a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    pub origin: Origin,
    pub message: String,
    /// What was meant, or what to do.
    pub help: Option<String>,
}

/// Everything that is wrong with a set of documents: never only the first thing.
#[derive(Debug, thiserror::Error)]
#[error("{} error(s) in the policy documents", errors.len())]
pub struct Invalid {
    pub errors: Vec<Diagnostic>,
    pub warnings: Vec<Diagnostic>,
    /// For showing the lines that errors point at.
    pub sources: Vec<Source>,
}

/// Reads files, and folders with all `.yaml`, `.yml` and `.json` files below them.
pub fn read(paths: &[PathBuf]) -> Result<Loaded, Invalid> {
    let _ = paths;
    parse(vec![])
}

/// Reads documents that are already in memory.
pub fn parse(sources: Vec<Source>) -> Result<Loaded, Invalid> {
    let _ = sources;
    Ok(Loaded::default())
}
