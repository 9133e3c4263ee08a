//! What held, what did not, and what was left out and why.

use std::{collections::BTreeMap, fmt};

/// How many failures are told in full; all are counted.
const TOLD: usize = 40;

#[derive(Debug, Default)]
pub struct Report {
    /// By what was asked and who answered.
    pub sets: BTreeMap<(String, &'static str), Tally>,
    pub failures: Vec<String>,
    /// Name, and the reason.
    pub left_out: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub cases: usize,
    /// Expected rows that were compared.
    pub rows: usize,
    pub failed: usize,
}

impl Report {
    pub fn holds(&self) -> bool {
        self.sets.values().all(|tally| tally.failed == 0)
    }

    pub fn tally(&mut self, set: &str, engine: &'static str) -> &mut Tally {
        self.sets.entry((set.to_owned(), engine)).or_default()
    }

    /// Compares one row.
    pub fn row(&mut self, set: &str, engine: &'static str, held: Result<(), String>) {
        let tally = self.tally(set, engine);
        tally.rows += 1;
        if let Err(failure) = held {
            tally.failed += 1;
            self.failures.push(format!("{failure} [{engine}]"));
        }
    }

    pub fn leave_out(&mut self, name: &str, reason: &str) {
        self.left_out.insert(name.to_owned(), reason.to_owned());
    }

    pub fn merge(&mut self, other: Self) {
        for ((set, engine), Tally { cases, rows, failed }) in other.sets {
            let tally = self.tally(&set, engine);
            tally.cases += cases;
            tally.rows += rows;
            tally.failed += failed;
        }
        self.failures.extend(other.failures);
        self.left_out.extend(other.left_out);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut failures = self.failures.clone();
        failures.sort_unstable();
        for failure in failures.iter().take(TOLD) {
            writeln!(f, "FAILED {failure}")?;
        }
        if failures.len() > TOLD {
            writeln!(f, "... and {} more", failures.len() - TOLD)?;
        }
        if !self.left_out.is_empty() {
            writeln!(f, "\nleft out:")?;
        }
        for (name, reason) in &self.left_out {
            writeln!(f, "  {name}: {reason}")?;
        }
        writeln!(f, "\n{:<24} {:<12} {:>6} {:>8} {:>7}", "SET", "ENGINE", "CASES", "ROWS", "FAILED")?;
        for ((set, engine), Tally { cases, rows, failed }) in &self.sets {
            writeln!(f, "{set:<24} {engine:<12} {cases:>6} {rows:>8} {failed:>7}")?;
        }
        let sum = |of: fn(&Tally) -> usize| self.sets.values().map(of).sum::<usize>();
        let (cases, rows, failed) = (sum(|t| t.cases), sum(|t| t.rows), sum(|t| t.failed));
        writeln!(f, "{:<24} {:<12} {cases:>6} {rows:>8} {failed:>7}", "all", "")
    }
}
