//! Listings: one table of rows, printed for people, as JSON or as YAML.

use std::io::Write as _;

use anyhow::Result;
use clap::{Args, ValueEnum};
use comfy_table::{Table, presets};
use serde::Serialize;

/// `-o`, as every listing has it.
#[derive(Args, Clone, Copy, Debug)]
pub struct OutputArgs {
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Table,
    Json,
    Yaml,
}

/// Prints `value` as JSON or YAML, or what `table` makes of it for people.
pub fn print<T: Serialize>(format: Format, value: &T, table: impl FnOnce(&T) -> String) -> Result<()> {
    let text = match format {
        Format::Table => table(value),
        Format::Json => serde_json::to_string_pretty(value)?,
        Format::Yaml => serde_saphyr::to_string(value)?,
    };
    writeln!(std::io::stdout(), "{}", text.trim_end())?;
    Ok(())
}

/// A table without lines, in the style of `kubectl get` and `docker ps`.
pub fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    for row in rows {
        table.add_row(row.map(|cell| escape(&cell)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// `1 policy`, `2 policies`.
pub fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// ` (1 audited, not enforced)`, after a number of policies; nothing where all are enforced.
pub fn audited(count: usize) -> String {
    if count == 0 { String::new() } else { format!(" ({count} audited, not enforced)") }
}

/// Names and labels come from documents: what could move a terminal's cursor is shown as text.
pub fn escape(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}
