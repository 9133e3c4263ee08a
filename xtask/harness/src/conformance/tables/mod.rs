//! The tables: what is valid, what a selector selects, what becomes of single packets.

mod packets;
mod selectors;
mod validation;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use serde::de::DeserializeOwned;

use super::report::{Place, Report};

/// Who answers for a table: netpol's reader, and the interpreter where packets are judged.
const READER: &str = "reader";

type Run = fn(&Path, &mut Report) -> Result<()>;

const TABLES: [(&str, Run); 4] = [
    ("calico-selectors", selectors::run),
    ("calico-rule-packets", packets::run),
    ("k8s-netpol-validation", validation::kubernetes),
    ("calico-v3-validation", validation::calico),
];

pub fn run(paths: &[PathBuf], report: &mut Report) -> Result<()> {
    for path in paths {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let Some((_, run)) = TABLES.iter().find(|(table, _)| *table == name) else {
            bail!("{}: nobody knows what this table means", path.display());
        };
        run(path, report)?;
    }
    Ok(())
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("in {}", path.display()))
}
