use anyhow::Result;
use clap::Args;

use super::{Instance, Outcome, OutputArgs, output};
use crate::{
    observe::{
        Condition,
        condition::{Observers, Row},
    },
    privileges,
};

/// Say whether the policy is enforced, and what is not. Exits with 1 if it is not enforced.
///
/// Enforced means: every endpoint that runs has both classifiers, first in their chains, at the
/// present generation. Pending endpoints are listed and don't count.
#[derive(Args)]
pub struct Status {
    #[command(flatten)]
    output: OutputArgs,
}

impl Status {
    pub fn run(&self, instance: &Instance) -> Result<Outcome> {
        // without it nothing is found, and "not enforced" would be a lie
        privileges::require(&[privileges::OPEN_PINS])?;
        let report = Condition::of(&instance.open())?;
        output::print(self.output.output, &report, text)?;
        Ok(if report.enforced { Outcome::Done } else { Outcome::DoesNotHold })
    }
}

/// `enforced: generation 1, 2 policies, ...`, or that it is not.
pub(super) fn headline(report: &Condition) -> String {
    let Condition { enforced, generation, policies, endpoints, identities, .. } = report;
    if !enforced {
        return "NOT ENFORCED".to_owned();
    }
    format!(
        "enforced: generation {generation}, {}{}, {}, {}",
        output::counted(*policies, "policy", "policies"),
        output::audited(report.audited.len()),
        output::counted(*endpoints, "endpoint", "endpoints"),
        output::counted(*identities, "identity", "identities"),
    )
}

fn text(report: &Condition) -> String {
    let mut text = headline(report) + "\n";
    let mut section = |title: &str, lines: Vec<String>| {
        if !lines.is_empty() {
            text.push_str(&format!("\n{title}\n"));
            lines.iter().for_each(|line| text.push_str(&format!("  {}\n", output::escape(line))));
        }
    };
    section("problems", report.problems.clone());
    section("audited, not enforced", report.audited.iter().map(ToString::to_string).collect());
    section("settings", report.settings.iter().map(ToString::to_string).collect());
    let pending = report.pending.iter().map(|p| format!("{}/{}: {}", p.namespace, p.name, p.reason));
    section("pending endpoints", pending.collect());
    section("unprotected interfaces", report.unprotected.clone());
    section("through the host's stack", report.stack.iter().map(|s| format!("{}: {}", s.endpoint, s.reason)).collect());
    section("observers", observers(report.observers).into_iter().collect());
    section("packets", counted(&report.counters));
    section("packets that passed, and audited policies would have dropped", counted(&report.would_drop));
    text
}

fn observers(Observers { count, lost_events, suppressed_drops }: Observers) -> Option<String> {
    let anything = count > 0 || lost_events > 0 || suppressed_drops > 0;
    anything.then(|| {
        format!(
            "{count} now; not told to observers until now: {} for want of room, {} like others",
            output::counted(lost_events as usize, "event", "events"),
            output::counted(suppressed_drops as usize, "drop", "drops"),
        )
    })
}

fn counted(rows: &[Row]) -> Vec<String> {
    let cells = rows.iter().map(|c| {
        [c.direction.to_owned(), c.verdict.to_owned(), c.reason.to_owned(), c.packets.to_string(), c.bytes.to_string()]
    });
    let table = output::table(["DIRECTION", "VERDICT", "REASON", "PACKETS", "BYTES"], cells);
    if rows.is_empty() { Vec::new() } else { table.lines().map(ToOwned::to_owned).collect() }
}
