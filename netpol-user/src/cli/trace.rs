use std::{fmt::Write as _, path::PathBuf};

use anyhow::{Result, anyhow, bail};
use clap::Args;
use serde::Serialize;

use super::{
    Instance, Outcome, OutputArgs,
    grid::Colour,
    output::{self, escape},
    question,
};
use crate::{
    model::{
        Direction, Endpoint, Party, Question, Step, TierDefault, World,
        explain::{PolicyName, Service, direction_name, standing, verb},
        probe::{Place, Probe},
        row::{Side, Traffic},
    },
    trace::{self, Answer, Asked, Behind, Explanation, Host, Live, Masquerade, Target, Translation},
};

/// Explain the verdict about one connection.
///
/// With PATH from the documents alone. Without, the kernel is asked as well: a packet of netpol's own goes through a copy
/// of the classifiers, which leaves no trace; a verdict that is not that of the rules is an error.
#[derive(Args)]
pub struct Trace {
    /// Who opens the connection: NAMESPACE/NAME, a name, or an address.
    #[arg(long, value_name = "END")]
    from: String,
    /// Who is spoken to: NAMESPACE/NAME, a name, or an address; of an endpoint or of a service (service/NAMESPACE/NAME
    /// where an endpoint has the name, too).
    #[arg(long, value_name = "END")]
    to: String,
    /// 80/tcp, 53/udp, 9/sctp, icmp (an echo request), icmp/TYPE/CODE.
    #[arg(long, value_name = "PORT")]
    port: Probe,
    /// The client's port. Default: one that the system would choose.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    source_port: Option<u16>,
    /// Policy files, and folders of them. Without any: what is loaded.
    path: Vec<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

/// The verdict, as scripts read it.
#[derive(Debug, Serialize)]
struct Verdict {
    #[serde(flatten)]
    explanation: Explanation,
    /// Only of what is loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel: Option<Answer>,
}

/// How often to begin anew when another policy is published meanwhile.
const ATTEMPTS: u32 = 5;

impl Trace {
    pub fn run(&self, instance: &Instance) -> Result<Outcome> {
        if !self.path.is_empty() {
            return self.on_paper();
        }
        let mut attempts = 1..;
        loop {
            match self.live(instance) {
                Err(error) if is_changed(&error) && attempts.next() < Some(ATTEMPTS) => {}
                outcome => return outcome,
            }
        }
    }

    fn on_paper(&self) -> Result<Outcome> {
        let world = question::read(&self.path)?;
        // a plain question is answered whatever the services are like
        let services = trace::of_documents(&world);
        let known = services.as_deref().unwrap_or_default();
        let (from, to) = self.ends(&world, known).map_err(|error| match &services {
            Err(wrong) => anyhow!("{error:#} (services were not looked at: {wrong})"),
            Ok(_) => error,
        })?;
        let traffic = self.traffic();
        let asked = Asked { world: &world, services: known, from, to, traffic, host: Host::default() };
        let explanation = trace::explain(&asked);
        let verdict = Verdict { explanation, kernel: None };
        output::print(self.output.output, &verdict, |verdict| Story { world: &world, from, to, verdict }.tell())?;
        Ok(Outcome::Done)
    }

    fn live(&self, instance: &Instance) -> Result<Outcome> {
        let mut live = Live::open(&instance.open())?;
        let (from, to) = self.ends(&live.world, &live.services)?;
        let host = live.host(from, to)?;
        let mut explanation = trace::explain(&live.asked(from, to, self.traffic(), host));
        let kernel = live.answer(from, &mut explanation, host)?;
        let differs = !kernel.differences.is_empty();
        let verdict = Verdict { explanation, kernel: Some(kernel) };
        output::print(self.output.output, &verdict, |verdict| Story { world: &live.world, from, to, verdict }.tell())?;
        Ok(if differs { Outcome::DoesNotHold } else { Outcome::Done })
    }

    const fn traffic(&self) -> Traffic {
        Traffic { probe: self.port, source_port: self.source_port }
    }

    /// Who is meant by the arguments.
    fn ends(&self, world: &World, services: &[trace::Service]) -> Result<(Place, Target)> {
        let from = question::place(world, &self.from)?;
        let to = trace::target::<anyhow::Error>(world, services, (&self.to, self.port), question::place)?;
        let Target::Place(place) = to else { return Ok((from, to)) };
        if from.endpoint().is_none() && place.endpoint().is_none() {
            bail!("neither {} nor {} is an endpoint: nobody judges that connection", self.from, self.to);
        }
        if from.endpoint() == place.endpoint() {
            bail!("{} and {} are the same endpoint: what it says to itself is not judged", self.from, self.to);
        }
        Ok((from, to))
    }
}

fn is_changed(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(trace::Error::Changed))
}

/// The way to the verdict, for people.
struct Story<'a> {
    world: &'a World,
    from: Place,
    to: Target,
    verdict: &'a Verdict,
}

impl Story<'_> {
    fn tell(&self) -> String {
        let colour = Colour::of_stdout();
        let Verdict { explanation, kernel } = self.verdict;
        let Explanation { row, other_addresses, translation, masquerade, legs, client } = explanation;
        let leg = legs.first();
        let question = leg.map(|leg| leg.traffic.question(self.world, (leg.from, leg.to)));
        let asked = match (row.port, row.icmp_type) {
            (Some(port), _) => format!("{}/{port}", row.protocol.to_lowercase()),
            (None, _) => question.as_ref().map_or_else(String::new, |q| Service(q.opening).to_string()),
        };
        let headline = escape(&format!("{asked} from {} to {}", row.from, row.to));
        let mut text = format!("{}\n", colour.paint(Some("1"), &headline));
        text.push_str(&end(self.world, "from", self.from, *client));
        match (self.to, translation) {
            (_, Some(translation)) => text.push_str(&published(translation)),
            (Target::Place(to), None) => {
                text.push_str(&question.map_or_else(String::new, |question| end(self.world, "to", to, question.to)));
            }
            (Target::Service { .. }, None) => {}
        }
        if let Some(translation) = translation {
            text.push_str(&backends(translation, colour));
        }
        if let Some(question) = &question {
            let is_loop = leg.is_some_and(trace::Leg::is_loop);
            let sides = leg.map_or((&row.egress, &row.ingress), |leg| (&leg.row.egress, &leg.row.ingress));
            if is_loop {
                text.push_str("\nit speaks to itself, which is not judged\n");
            } else {
                text.push_str(&judged(question, sides, colour));
            }
        }
        if let Some(masquerade) = masquerade {
            text.push_str(&leaving(masquerade));
        }
        let _ = writeln!(text, "\nverdict: {}", self.said(colour));
        if let Some(audit) = &row.audit {
            let would = match (row.allowed, audit.allowed) {
                (true, true) | (false, false) => "would still be",
                (true, false) | (false, true) => "would be",
            };
            let (verdict, reason) = (said(audit.allowed, colour), escape(&audit.reason));
            let _ = writeln!(text, "  {would} {verdict} by the audited policies, if they were enforced: {reason}");
        }
        for row in other_addresses {
            let address =
                |address: &Option<std::net::IpAddr>| address.map_or_else(|| "-".to_owned(), |a| a.to_string());
            let (source, destination) = (address(&row.source_address), address(&row.destination_address));
            let _ = writeln!(text, "from {source} to {destination} it is {}", said(row.allowed, colour));
        }
        if let Some(kernel) = kernel {
            text.push_str(&asked_kernel(kernel, colour));
        }
        text
    }

    fn said(&self, colour: Colour) -> String {
        let Explanation { row, translation, .. } = &self.verdict.explanation;
        let verdicts = || translation.iter().flat_map(|t| &t.backends).filter_map(|backend| backend.allowed);
        let (all, allowed) = (verdicts().count(), verdicts().filter(|allowed| *allowed).count());
        match translation {
            Some(_) if all == 0 => format!("{}: no backend answers", said(false, colour)),
            Some(_) if allowed > 0 && allowed < all => {
                format!("{}: {allowed} of {all} backends may be reached", colour.paint(Some("33"), "it depends"))
            }
            _ => said(row.allowed, colour),
        }
    }
}

/// What each end's policies say.
fn judged(question: &Question<'_>, (egress, ingress): (&Option<Side>, &Option<Side>), colour: Colour) -> String {
    let mut text = String::new();
    for (direction, side) in [(Direction::Egress, egress), (Direction::Ingress, ingress)] {
        let name = escape(&question.name(question.subject(direction)));
        let _ = write!(text, "\n{} of {name}: ", direction_name(direction));
        match side {
            None => text.push_str("not judged, it is no endpoint\n"),
            Some(side) => {
                let _ = writeln!(text, "{}", said(side.allowed, colour));
                text.push_str(&steps(question, direction));
                let _ = writeln!(text, "  {} because: {}", mark(side.allowed), escape(&side.reason));
            }
        }
    }
    text
}

/// The service that is spoken to.
fn published(translation: &Translation) -> String {
    let Translation { service, port, source, published, .. } = translation;
    let place = published.map_or_else(|| "an address of the host".to_owned(), |published| published.to_string());
    escape(&format!("  to    service {service}  {place}  its port {port}  ({source})")) + "\n"
}

/// What becomes of the destination.
fn backends(translation: &Translation, colour: Colour) -> String {
    let how = match translation.affinity {
        None => "by a hash of the client's address and port".to_owned(),
        Some(seconds) => format!("by a hash of the client's address, and kept for {seconds} s"),
    };
    let mut text = format!("\ntranslation: to one backend, {how}\n");
    for backend in &translation.backends {
        let Behind { address, allowed, chosen, state, .. } = backend;
        let place = match (&backend.endpoint, address) {
            (Some(_), Some(address)) => format!("  {address}"),
            _ => String::new(),
        };
        let chosen = if *chosen == Some(true) { "  (the kernel's choice)" } else { "" };
        let verdict = match allowed {
            None => format!("{state}: it gets no packets"),
            Some(true) => said(true, colour),
            Some(false) => format!("{}: {}", said(false, colour), escape(backend.reason().unwrap_or_default())),
        };
        let mark = mark(*allowed == Some(true));
        let _ = writeln!(text, "  {mark} {}{place}{chosen}  {verdict}", escape(&backend.who()));
    }
    if translation.backends.is_empty() {
        text.push_str("  nobody is behind it\n");
    }
    text
}

/// What becomes of the source.
fn leaving(masquerade: &Masquerade) -> String {
    let Masquerade { pool, source, before, after, uplink, possible } = masquerade;
    let becomes = if *possible {
        let after = after.as_deref().unwrap_or("the uplink's address");
        let uplink = uplink.as_ref().map_or_else(String::new, |uplink| format!(" out of {uplink}"));
        format!("{before} becomes {after}{uplink}, by pool {pool} ({source})")
    } else {
        format!("pool {pool} ({source}) translates what leaves it, which this protocol cannot be: it is dropped")
    };
    format!("\nmasquerade: {}\n", escape(&becomes))
}

/// The kernel's answer, hook by hook.
fn asked_kernel(answer: &Answer, colour: Colour) -> String {
    let Answer { generation, allowed, not_asked, steps, delivery, differences, .. } = answer;
    let mut text = String::new();
    let verdict = match (allowed, not_asked) {
        (Some(allowed), _) => said(*allowed, colour),
        (None, Some(reason)) => format!("not asked: {reason}"),
        (None, None) => "not asked".to_owned(),
    };
    let _ = writeln!(text, "\nthe kernel (generation {generation}): {verdict}");
    for step in steps {
        let trace::Step { hook, interface, source, destination, verdict, reason, translated, .. } = step;
        let reason = reason.map_or_else(String::new, |reason| format!(" {reason}"));
        let line = format!("  {hook} on {interface}: {source} to {destination}: {verdict}{reason}");
        let _ = writeln!(text, "{}", escape(&line));
        if let Some(to) = translated {
            let _ = writeln!(text, "    leaves as {} to {}", to.source, to.destination);
        }
        for rule in [&step.egress_rule, &step.ingress_rule].into_iter().flatten() {
            let _ = writeln!(text, "    by {}", escape(&rule.describe()));
        }
    }
    if let Some(delivery) = delivery {
        let _ = writeln!(text, "  delivery: {}: {}", delivery.way, escape(&delivery.reason));
    }
    if differences.is_empty() && allowed.is_some() {
        text.push_str(
            "  as the rules say (asked of a copy of the classifiers, to the instruction, that no packet passes)\n",
        );
    }
    for difference in differences {
        let _ = writeln!(text, "  {} {}", colour.paint(Some("31"), "differs:"), escape(difference));
    }
    text
}

/// Who an end is: name, address, labels.
fn end(world: &World, word: &str, place: Place, party: Party) -> String {
    let Some(index) = place.endpoint() else {
        return format!(
            "  {word:<4}  {}  outside: only network rules and network sets know it\n",
            party.address().map_or_else(String::new, |address| address.to_string())
        );
    };
    let Endpoint { name, labels, origin, .. } = &world.endpoints[index];
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

const fn mark(allowed: bool) -> &'static str {
    if allowed { "✓" } else { "✗" }
}
