//! Documents: YAML to a [`World`], with the position of everything that is wrong.
//!
//! ```text
//! files -> documents -> trees (node) -> readers by kind (reader + one file per family)
//!       -> everything collected -> tiers in order -> World, and what is doubtful in it (lint)
//! ```
//!
//! No stage stops at the first error: what can't be read is reported and left out, and the next
//! field, rule or document is read. Only when nothing at all was wrong is there a [`World`].

mod calico;
mod cluster;
mod endpoint;
mod files;
mod kubernetes;
mod lint;
mod node;
mod object;
mod pool;
mod published;
mod reader;
pub mod selector;
mod service;
mod slice;
#[cfg(test)]
mod tests;
mod tiers;
mod validate;

use std::path::PathBuf;

use crate::model::{Origin, World};

pub use object::NAMESPACE_NAME;

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
    /// Documents of all kinds.
    pub documents: usize,
    /// For showing the lines that warnings point at.
    pub sources: Vec<Source>,
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
    object::load(files::gather(paths))
}

/// Reads documents that are already in memory.
pub fn parse(sources: Vec<Source>) -> Result<Loaded, Invalid> {
    let all = 0..sources.len();
    object::load(files::Found { sources, paths: vec![all], errors: Vec::new() })
}
