use std::{fmt::Write as _, path::PathBuf};

use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;

use super::{
    Instance, Outcome, OutputArgs,
    grid::Colour,
    output::{self, escape},
    question,
};
use crate::model::{
    Direction, Endpoint, Party, Question, Step, TierDefault,
    explain::{PolicyName, Service, direction_name, standing, verb},
    probe::{Place, Probe, pairs},
    row::{Row, Side, Traffic, rows},
};

/// Explain the verdict about one connection.
#[derive(Args)]
pub struct Trace {
    /// Who opens the connection: NAMESPACE/NAME, a name, or an address.
    #[arg(long, value_name = "END")]
    from: String,
    /// Who is spoken to: NAMESPACE/NAME, a name, or an address.
    #[arg(long, value_name = "END")]
    to: String,
    /// 80/tcp, 53/udp, 9/sctp, icmp (an echo request), icmp/TYPE/CODE.
    #[arg(long, value_name = "PORT")]
    port: Probe,
    /// The client's port. Default: one that the system would choose.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    source_port: Option<u16>,
    /// Policy files, and folders of them. Without any: the documents of the last load.
    path: Vec<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

/// The verdict, as scripts read it.
#[derive(Debug, Serialize)]
struct Verdict {
    #[serde(flatten)]
    row: Row,
    /// Verdicts of the ends' other addresses, where those differ.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    other_addresses: Vec<Row>,
}

impl Trace {
    pub fn run(&self, instance: &Instance) -> Result<Outcome> {
        let world = if self.path.is_empty() { question::loaded(instance)? } else { question::read(&self.path)? };
        let (from, to) = (question::place(&world, &self.from)?, question::place(&world, &self.to)?);
        let ((Some(_), _) | (_, Some(_))) = (from.endpoint(), to.endpoint()) else {
            bail!("neither {} nor {} is an endpoint: nobody judges that connection", self.from, self.to);
        };
        if from.endpoint() == to.endpoint() {
            bail!("{} and {} are the same endpoint: what it says to itself is not judged", self.from, self.to);
        }
        let traffic = Traffic { probe: self.port, source_port: self.source_port };
        let mut rows = rows(&world, from, to, traffic);
        let row = rows.remove(0);
        let question = traffic.question(&world, pairs(&world, from, to)[0]);
        let verdict = Verdict { row, other_addresses: rows };
        output::print(self.output.output, &verdict, |verdict| story(&question, (from, to), verdict))?;
        Ok(Outcome::Done)
    }
}

/// The way to the verdict, for people.
fn story(question: &Question<'_>, (from, to): (Place, Place), verdict: &Verdict) -> String {
    let colour = Colour::of_stdout();
    let mut text = format!("{}\n", colour.paint(Some("1"), &headline(question)));
    for (word, place, party) in [("from", from, question.from), ("to", to, question.to)] {
        text.push_str(&end(question, word, place, party));
    }
    for (direction, side) in [(Direction::Egress, &verdict.row.egress), (Direction::Ingress, &verdict.row.ingress)] {
        let name = escape(&question.name(question.subject(direction)));
        let _ = write!(text, "\n{} of {name}: ", direction_name(direction));
        match side {
            None => text.push_str("not judged, it is no endpoint\n"),
            Some(side) => {
                let _ = writeln!(text, "{}", said(side.allowed, colour));
                text.push_str(&steps(question, direction));
                let _ = writeln!(text, "  {} because: {}", mark(side), escape(&side.reason));
            }
        }
    }
    let _ = writeln!(text, "\nverdict: {}", said(verdict.row.allowed, colour));
    if let Some(audit) = &verdict.row.audit {
        let would = match (verdict.row.allowed, audit.allowed) {
            (true, true) | (false, false) => "would still be",
            (true, false) | (false, true) => "would be",
        };
        let (verdict, reason) = (said(audit.allowed, colour), escape(&audit.reason));
        let _ = writeln!(text, "  {would} {verdict} by the audited policies, if they were enforced: {reason}");
    }
    for row in &verdict.other_addresses {
        let address = |address: &Option<std::net::IpAddr>| address.map_or_else(|| "-".to_owned(), |a| a.to_string());
        let (source, destination) = (address(&row.source_address), address(&row.destination_address));
        let _ = writeln!(text, "from {source} to {destination} it is {}", said(row.allowed, colour));
    }
    text
}

fn headline(question: &Question<'_>) -> String {
    let opening = question.opening;
    let (from, to) = (question.name(question.from), question.name(question.to));
    escape(&format!("{} from {from} to {to}", Service(opening)))
}

/// Who an end is: name, address, labels.
fn end(question: &Question<'_>, word: &str, place: Place, party: Party) -> String {
    let Some(index) = place.endpoint() else {
        return format!(
            "  {word:<4}  {}  outside: only network rules and network sets know it\n",
            question.name(party)
        );
    };
    let Endpoint { name, labels, origin, .. } = &question.world.endpoints[index];
    let address = party.address().map_or_else(|| "no address".to_owned(), |address| address.to_string());
    let labels: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let labels = if labels.is_empty() { "no labels".to_owned() } else { labels.join(",") };
    escape(&format!("  {word:<4}  {name}  {address}  {labels}  ({origin})")) + "\n"
}

/// Every policy that was considered, in order, and what its rules said.
fn steps(question: &Question<'_>, direction: Direction) -> String {
    let mut text = String::new();
    let mut current = None;
    let tiers = &question.world.tiers;
    let steps = question.walk(direction).unwrap_or_default();
    for step in steps {
        let (Step::Policy { tier, .. } | Step::Rule { tier, .. } | Step::TierEnd { tier }) = step;
        if current != Some(tier) {
            current = Some(tier);
            let _ = writeln!(text, "  tier {}", escape(&tiers[tier].name));
        }
        let line = match step {
            Step::Policy { tier, policy, standing: stands } => {
                let policy = question.policy(tier, policy);
                format!("    {} ({}) {}", PolicyName(policy), policy.origin, standing(stands, direction))
            }
            Step::Rule { tier, policy, rule, mismatch } => {
                let Some(rule) = question.policy(tier, policy).rules(direction).and_then(|rules| rules.get(rule))
                else {
                    continue;
                };
                let says = match mismatch {
                    None => format!("{} it", verb(rule.action)),
                    Some(mismatch) => format!("does not match: {}", question.mismatch(mismatch)),
                };
                format!("      rule {} ({}) {says}", rule.index, rule.origin)
            }
            Step::TierEnd { tier } => {
                let says = match tiers[tier].default {
                    TierDefault::Deny => "denies",
                    TierDefault::Pass => "passes it on",
                };
                format!("    end of the tier: no rule decided, it {says}")
            }
        };
        let _ = writeln!(text, "{}", escape(&line));
    }
    text
}

fn said(allowed: bool, colour: Colour) -> String {
    if allowed { colour.paint(Some("32"), "allowed") } else { colour.paint(Some("31"), "denied") }
}

const fn mark(side: &Side) -> &'static str {
    if side.allowed { "✓" } else { "✗" }
}
