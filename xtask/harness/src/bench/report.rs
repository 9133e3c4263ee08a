//! What was found, for the terminal and for `docs/benchmarks.md`.

use std::fmt::{self, Write as _};

use serde::Serialize;
use serde_json::Value;

use super::{machine::Machine, plot::Chart, stats::Spread};

/// One topic of the report.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Section {
    pub title: &'static str,
    /// How it was measured and what to keep in mind: paragraphs.
    pub notes: Vec<String>,
    pub tables: Vec<Table>,
    pub goals: Vec<Goal>,
    /// What the figures were made from, for `--json` only.
    pub samples: Vec<Value>,
    #[serde(skip)]
    pub charts: Vec<Chart>,
}

/// Rows of text under a heading; the first column says what, the others are figures.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Table {
    pub header: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

/// What netpol must reach, and what it reached here.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Goal {
    pub what: String,
    pub bound: Bound,
    pub unit: Unit,
    pub measured: Spread,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    Ratio,
    Nanoseconds,
    Milliseconds,
    Mebibytes,
    Packets,
    Connections,
}

impl Goal {
    pub fn met(&self) -> bool {
        match self.bound {
            Bound::AtLeast(least) => self.measured.median >= least,
            Bound::AtMost(most) => self.measured.median <= most,
        }
    }

    fn row(&self) -> Vec<String> {
        let (word, limit) = match self.bound {
            Bound::AtLeast(least) => ("at least", least),
            Bound::AtMost(most) => ("at most", most),
        };
        let verdict = if self.met() { "met" } else { "**not met**" };
        vec![
            self.what.clone(),
            format!("{word} {}", self.unit.format(limit)),
            self.unit.format(self.measured.median),
            self.unit.spread(self.measured),
            verdict.to_owned(),
        ]
    }
}

impl Unit {
    pub fn format(self, value: f64) -> String {
        match self {
            Self::Ratio => format!("{value:.3}"),
            Self::Nanoseconds => format!("{} ns", thousands(value)),
            Self::Milliseconds if value < 100.0 => format!("{value:.1} ms"),
            Self::Milliseconds => format!("{} ms", thousands(value)),
            Self::Mebibytes => format!("{value:.0} MiB"),
            Self::Packets | Self::Connections => thousands(value),
        }
    }

    /// The middle half, as far as there is one.
    fn spread(self, spread: Spread) -> String {
        match spread.count {
            1 => String::new(),
            _ => format!("{} to {}", self.format(spread.low), self.format(spread.high)),
        }
    }
}

/// Digits in groups: `12,345`; one decimal below ten.
pub fn thousands(value: f64) -> String {
    if value.abs() < 10.0 && value.fract() != 0.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{:.0}", value.abs());
    let sign = if value <= -0.5 { "-" } else { "" };
    let groups = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect::<Vec<_>>();
    format!("{sign}{}", groups.join(","))
}

impl Table {
    pub fn new<const N: usize>(header: [&str; N]) -> Self {
        Self { header: header.map(str::to_owned).into(), rows: Vec::new() }
    }

    /// As Markdown: figures to the right. Padded, because it is read in terminals too.
    fn markdown(&self) -> String {
        let lines = || [&self.header].into_iter().chain(&self.rows);
        let widths = (0..self.header.len())
            .map(|column| lines().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0))
            .collect::<Vec<_>>();
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| match column {
                0 => format!(" {cell:<width$} "),
                _ => format!(" {cell:>width$} "),
            });
            format!("|{}|\n", cells.collect::<Vec<_>>().join("|"))
        };
        let rule = widths.iter().enumerate().map(|(column, width)| match column {
            0 => "-".repeat(width + 2),
            _ => "-".repeat(width + 1) + ":",
        });
        let mut text = line(&self.header);
        let _ = writeln!(text, "|{}|", rule.collect::<Vec<_>>().join("|"));
        self.rows.iter().for_each(|row| text += &line(row));
        text
    }
}

/// Everything that was measured in one run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub command: String,
    pub machine: Machine,
    pub sections: Vec<Section>,
}

impl Report {
    fn goals(&self) -> Table {
        let mut table = Table::new(["figure", "wanted", "measured", "middle half", ""]);
        table.rows = self.sections.iter().flat_map(|section| &section.goals).map(Goal::row).collect();
        table
    }

    pub fn charts(&self) -> impl Iterator<Item = &Chart> {
        self.sections.iter().flat_map(|section| &section.charts)
    }

    /// `plot` is the name of the file with the charts, relative to the document.
    pub fn markdown(&self, plot: Option<&str>) -> String {
        let mut text = format!(
            "# Benchmarks\n\nWritten by `{}`: don't edit. Absolute times differ from machine to machine and from day to \
             day; ratios are taken within a round of one run, in which everything is measured in turn.\n\n",
            self.command
        );
        text += &self.machine.to_string();
        let goals = self.goals();
        if !goals.rows.is_empty() {
            let _ = write!(text, "\n## What must be reached\n\n{}", goals.markdown());
        }
        if let Some(plot) = plot {
            let _ = write!(text, "\n![The paths' speed relative to a plain bridge]({plot})\n");
        }
        for section in &self.sections {
            let _ = write!(text, "\n{section}");
        }
        text
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "## {}", self.title)?;
        self.notes.iter().try_for_each(|note| write!(f, "\n{note}\n"))?;
        self.tables.iter().try_for_each(|table| write!(f, "\n{}", table.markdown()))
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |items: &[String]| if items.is_empty() { "none".to_owned() } else { items.join("; ") };
        let place = self.hypervisor.as_ref().map_or(String::new(), |kind| format!(" ({kind})"));
        writeln!(f, "- CPU: {} x {}{place}, {}", self.cpus, self.cpu, self.architecture)?;
        writeln!(f, "- Kernel: Linux {}", self.kernel)?;
        writeln!(f, "- Mitigations: {}", list(&self.mitigations))?;
        writeln!(f, "- Compared with: {}", list(&self.tools))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn goal(bound: Bound, median: f64) -> Goal {
        let measured = Spread { median, low: median - 0.01, high: median + 0.01, count: 9 };
        Goal { what: "UDP".into(), bound, unit: Unit::Ratio, measured }
    }

    #[test]
    fn a_bound_includes_itself() {
        assert!(goal(Bound::AtLeast(1.15), 1.15).met());
        assert!(!goal(Bound::AtLeast(1.15), 1.149).met());
        assert!(goal(Bound::AtMost(1.03), 1.03).met());
        assert!(!goal(Bound::AtMost(1.03), 1.031).met());
    }

    #[test]
    fn a_missed_goal_stands_out() {
        assert_eq!(
            goal(Bound::AtLeast(1.15), 1.1).row(),
            ["UDP", "at least 1.150", "1.100", "1.090 to 1.110", "**not met**"]
        );
    }

    #[test]
    fn numbers_are_grouped() {
        for (value, text) in
            [(0.0, "0"), (9.5, "9.5"), (999.6, "1,000"), (1_234_567.0, "1,234,567"), (-1500.0, "-1,500")]
        {
            assert_eq!(thousands(value), text);
        }
    }

    #[test]
    fn tables_are_aligned_markdown() {
        let mut table = Table::new(["path", "ratio"]);
        table.rows.push(vec!["bridge".into(), "1".into()]);
        assert_eq!(table.markdown(), "| path   | ratio |\n|--------|------:|\n| bridge |     1 |\n");
    }

    #[test]
    fn the_document_names_machine_command_goals_and_plot() {
        let report = Report {
            command: "cargo xtask bench".into(),
            machine: Machine {
                kernel: "6.1".into(),
                architecture: "x86_64".into(),
                cpu: "A CPU".into(),
                cpus: 2,
                hypervisor: None,
                mitigations: vec![],
                tools: vec!["nft".into()],
                timing: crate::bench::traffic::Timing::Cpu,
            },
            sections: vec![Section {
                title: "Paths",
                notes: vec!["How.".into()],
                goals: vec![goal(Bound::AtLeast(1.0), 1.2)],
                ..Section::default()
            }],
        };
        let text = report.markdown(Some("benchmarks.svg"));
        for part in [
            "`cargo xtask bench`",
            "2 x A CPU, x86_64",
            "Linux 6.1",
            "| met |",
            "](benchmarks.svg)",
            "## Paths\n\nHow.",
        ] {
            assert!(text.contains(part), "{part} is missing:\n{text}");
        }
    }
}
