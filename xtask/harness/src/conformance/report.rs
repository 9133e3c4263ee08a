//! What held, what did not, and what was left out and why.

use std::{collections::BTreeMap, fmt};

/// How many failures of one case are told; all are counted.
const TOLD: usize = 3;

#[derive(Debug, Default)]
pub struct Report {
    /// By what was asked and who answered.
    pub sets: BTreeMap<(String, &'static str), Tally>,
    /// By case.
    pub failures: BTreeMap<String, Vec<String>>,
    /// By case: what was wrong at first and right when it was asked again.
    pub unsteady: BTreeMap<String, Vec<String>>,
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

/// Who answered which case of which set.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub set: &'a str,
    pub case: &'a str,
    pub engine: &'static str,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}]", self.case, self.engine)
    }
}

impl Report {
    pub fn holds(&self) -> bool {
        self.sets.values().all(|tally| tally.failed == 0)
    }

    pub fn tally(&mut self, set: &str, engine: &'static str) -> &mut Tally {
        self.sets.entry((set.to_owned(), engine)).or_default()
    }

    /// Counts rows of a case that were compared, or could not be.
    pub fn rows(&mut self, place: &Place<'_>, rows: usize, failures: Vec<String>) {
        let tally = self.tally(place.set, place.engine);
        tally.rows += rows;
        tally.failed += failures.len().min(rows).max(usize::from(!failures.is_empty()));
        if !failures.is_empty() {
            self.failures.entry(place.to_string()).or_default().extend(failures);
        }
    }

    pub fn unsteady(&mut self, place: &Place<'_>, rows: Vec<String>) {
        if !rows.is_empty() {
            self.unsteady.entry(place.to_string()).or_default().extend(rows);
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
        for (ours, theirs) in [(&mut self.failures, other.failures), (&mut self.unsteady, other.unsteady)] {
            for (case, told) in theirs {
                ours.entry(case).or_default().extend(told);
            }
        }
        self.left_out.extend(other.left_out);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told = self.failures.iter().map(|told| ("FAILED", told));
        for (what, (case, rows)) in told.chain(self.unsteady.iter().map(|told| ("UNSTEADY", told))) {
            writeln!(f, "{what} {case}")?;
            for row in rows.iter().take(TOLD) {
                writeln!(f, "  {row}")?;
            }
            if rows.len() > TOLD {
                writeln!(f, "  ... and {} more", rows.len() - TOLD)?;
            }
        }
        if !self.left_out.is_empty() {
            writeln!(f, "\nleft out:")?;
        }
        for (name, reason) in &self.left_out {
            writeln!(f, "  {name}: {reason}")?;
        }
        writeln!(f, "\n{:<24} {:<14} {:>6} {:>8} {:>7}", "SET", "ENGINE", "CASES", "ROWS", "FAILED")?;
        for ((set, engine), Tally { cases, rows, failed }) in &self.sets {
            writeln!(f, "{set:<24} {engine:<14} {cases:>6} {rows:>8} {failed:>7}")?;
        }
        let sum = |of: fn(&Tally) -> usize| self.sets.values().map(of).sum::<usize>();
        let (cases, rows, failed) = (sum(|t| t.cases), sum(|t| t.rows), sum(|t| t.failed));
        writeln!(f, "{:<24} {:<14} {cases:>6} {rows:>8} {failed:>7}", "all", "")
    }
}
