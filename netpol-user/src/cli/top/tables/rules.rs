//! The rules of what is enforced, and what they decide about.

use std::cmp::Ordering;

use super::{Column, Kind, Table, Tone, column, id};
use crate::{
    cli::top::units,
    observe::summary::RuleSum,
    state::{Names, Rule},
};

pub struct RuleTable<'a> {
    pub names: &'a Names,
    pub sums: &'a [RuleSum],
}

const COLUMNS: [Column; 7] = [
    column("VERDICT", 9, 0, Kind::Text),
    column("RULE", 30, 1, Kind::Text),
    column("FLOWS", 6, 3, Kind::Number),
    column("PKT/S", 6, 2, Kind::Number),
    column("PACKETS", 7, 4, Kind::Number),
    column("BYTES", 7, 5, Kind::Number),
    column("SOURCE", 12, 6, Kind::End),
];

impl RuleTable<'_> {
    fn rule(&self, row: usize) -> &Rule {
        &self.names.rules[row]
    }

    fn verdict(&self, row: usize) -> &'static str {
        match self.sums[row].verdict {
            Some("denied") => "✗ denied",
            Some("would-drop") => "! audited",
            Some(_) => "✓ allowed",
            None => "-",
        }
    }
}

impl Table for RuleTable<'_> {
    fn columns(&self) -> &'static [Column] {
        &COLUMNS
    }

    fn rows(&self) -> usize {
        self.sums.len()
    }

    fn compare(&self, column: usize, a: usize, b: usize) -> Ordering {
        let (x, y) = (&self.sums[a], &self.sums[b]);
        match COLUMNS[column].title {
            "VERDICT" => severity(x).cmp(&severity(y)),
            "RULE" => self.rule(a).short().cmp(&self.rule(b).short()),
            "FLOWS" => x.sum.connections.cmp(&y.sum.connections),
            "PKT/S" => x.sum.packets_per_second.total_cmp(&y.sum.packets_per_second),
            "PACKETS" => x.sum.packets.cmp(&y.sum.packets),
            "BYTES" => x.sum.bytes.cmp(&y.sum.bytes),
            _ => self.rule(a).source.cmp(&self.rule(b).source),
        }
    }

    fn cell(&self, column: usize, row: usize) -> String {
        let (rule, sum) = (self.rule(row), &self.sums[row].sum);
        match COLUMNS[column].title {
            "VERDICT" => self.verdict(row).to_owned(),
            "RULE" => rule.short(),
            "FLOWS" => units::count(sum.connections as u64),
            "PKT/S" => units::rate(sum.packets_per_second),
            "PACKETS" => units::count(sum.packets),
            "BYTES" => units::count(sum.bytes),
            _ => rule.source.clone(),
        }
    }

    fn tone(&self, row: usize) -> Tone {
        match self.sums[row].verdict {
            Some("denied") => Tone::Bad,
            Some("would-drop") => Tone::Doubtful,
            Some(_) => Tone::Good,
            None => Tone::Dim,
        }
    }

    fn sentence(&self, row: usize) -> String {
        let (rule, sum) = (self.rule(row), &self.sums[row].sum);
        let flows = match sum.connections {
            0 => "nothing that is remembered was decided by it".to_owned(),
            1 => "1 connection was decided by it, as far as they are remembered".to_owned(),
            count => format!("{count} connections were decided by it, as far as they are remembered"),
        };
        format!("{}: {flows}", rule.describe())
    }

    fn details(&self, row: usize) -> Vec<(&'static str, String)> {
        let (rule, sum) = (self.rule(row), &self.sums[row].sum);
        vec![
            ("rule", format!("{} {}", rule.kind, rule.short())),
            ("source", rule.source.clone()),
            ("verdict", self.verdict(row).to_owned()),
            ("connections", sum.connections.to_string()),
            ("total", format!("{} packets, {} bytes", sum.packets, sum.bytes)),
            (
                "rate",
                format!(
                    "{} packets/s, {} bytes/s",
                    units::rate(sum.packets_per_second),
                    units::rate(sum.bytes_per_second)
                ),
            ),
        ]
    }

    fn id(&self, row: usize) -> u64 {
        let rule = self.rule(row);
        id((rule.short(), &rule.source))
    }

    fn packets_per_second(&self, row: usize) -> f64 {
        self.sums[row].sum.packets_per_second
    }
}

/// As flows have it: what passes before what would not, and that before what does not.
fn severity(sum: &RuleSum) -> Option<u8> {
    sum.verdict.map(|verdict| match verdict {
        "denied" => 2,
        "would-drop" => 1,
        _ => 0,
    })
}
