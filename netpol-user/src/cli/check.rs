use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::{
    Outcome, OutputArgs,
    diagnostics::{self, Line},
    output,
};
use crate::{
    format::{self, Invalid, Loaded},
    model::row::{PolicyRef, audited},
};

/// Validate policies without root.
///
/// Reads every document, reports everything that is wrong with file, line and column, and ends
/// with exit code 1 if anything is.
#[derive(Args)]
pub struct Check {
    /// Files, and folders with .yaml, .yml and .json files.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Serialize)]
struct Answer<'a> {
    valid: bool,
    /// Policies that are not enforced, only judged.
    audited: Vec<PolicyRef>,
    errors: Vec<Line<'a>>,
    warnings: Vec<Line<'a>>,
}

impl Check {
    pub fn run(&self) -> Result<Outcome> {
        let result = format::read(&self.paths);
        let (errors, warnings) = match &result {
            Ok(loaded) => (&[][..], &loaded.warnings),
            Err(invalid) => (&invalid.errors[..], &invalid.warnings),
        };
        let answer = Answer {
            valid: result.is_ok(),
            audited: result.iter().flat_map(|loaded| audited(&loaded.world)).collect(),
            errors: errors.iter().map(Line::from).collect(),
            warnings: warnings.iter().map(Line::from).collect(),
        };
        output::print(self.output.output, &answer, |_| text(&result))?;
        Ok(if answer.valid { Outcome::Done } else { Outcome::DoesNotHold })
    }
}

fn text(result: &Result<Loaded, Invalid>) -> String {
    match result {
        Ok(loaded) => {
            let warnings = diagnostics::render_warnings(&loaded.warnings, &loaded.sources);
            let Loaded { world, policies, documents, .. } = loaded;
            let mut parts = vec![
                output::counted(*documents, "document", "documents"),
                output::counted(world.endpoints.len(), "endpoint", "endpoints"),
                output::counted(*policies, "policy", "policies") + &output::audited(audited(world).count()),
            ];
            if !world.services.is_empty() {
                parts.push(output::counted(world.services.len(), "service", "services"));
            }
            let gap = if warnings.is_empty() { "" } else { "\n" };
            format!("{warnings}{gap}{}: valid", parts.join(", "))
        }
        Err(invalid) => {
            let errors = output::counted(invalid.errors.len(), "error", "errors");
            format!("{}\n{errors}: not valid", diagnostics::render(invalid))
        }
    }
}
