//! Listings: one table of rows, printed for people, as JSON or as YAML.

use std::io::{BufWriter, Write as _};

use anyhow::Result;
use clap::{Args, ValueEnum};
use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
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
    // a listing may have a million rows
    let mut out = BufWriter::with_capacity(1 << 16, std::io::stdout().lock());
    match format {
        Format::Table => out.write_all(table(value).trim_end().as_bytes())?,
        Format::Json => serde_json::to_writer_pretty(&mut out, value)?,
        Format::Yaml => out.write_all(serde_saphyr::to_string(value)?.trim_end().as_bytes())?,
    }
    out.write_all(b"\n")?;
    out.flush()?;
    Ok(())
}

/// A bar on standard error while something goes on; hidden where that is no terminal.
pub struct Progress(ProgressBar);

impl Progress {
    pub fn of(doing: &'static str) -> Self {
        let style = ProgressStyle::with_template("{msg} {bar:30} {pos}/{len}, {elapsed}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        Self(ProgressBar::no_length().with_style(style).with_message(doing))
    }

    /// So many of so many are done.
    pub fn tell(&self, done: usize, all: usize) {
        self.0.set_length(all as u64);
        self.0.set_position(done as u64);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// A table without lines, in the style of `kubectl get` and `docker ps`.
pub fn table<const N: usize>(header: [&str; N], cells: impl IntoIterator<Item = [String; N]>) -> String {
    rows(header.to_vec(), cells.into_iter().map(Vec::from))
}

/// The same, where the number of columns is not known beforehand.
pub fn rows(header: Vec<&str>, rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    for row in rows {
        table.add_row(row.iter().map(|cell| escape(cell)));
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
