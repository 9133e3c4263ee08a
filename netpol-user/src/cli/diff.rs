use std::{net::IpAddr, path::PathBuf, time::SystemTime};

use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;

use super::{
    Instance, Outcome, OutputArgs,
    output::{self, counted, escape},
    question,
};
use crate::{
    datapath::{Datapath, Settings},
    diff::{self, Changes, Live, Options, Verdict, View},
    model::{Regime, World, probe::Probe},
    observe::{Flow, Reader, TcpFlags, conversations},
    privileges, source,
    state::Rule,
};

/// Show which verdicts would change, and which live flows would be cut.
///
/// Compares what is enforced with what PATH... says: every pair of endpoints, and every endpoint with
/// the outside, once for each prefix that rules tell apart. Of flows and denials those count that the
/// kernel remembers of the present policy, also such as have ended. Ends with exit code 0 when nothing
/// would change, with 1 when something would.
#[derive(Args)]
pub struct Diff {
    /// Policy files, and folders of them: what would be loaded.
    #[arg(required_unless_present = "audit", conflicts_with = "audit")]
    path: Vec<PathBuf>,
    /// Compare with these files instead of what is enforced: needs neither root nor kernel, and says
    /// nothing about flows. May be repeated.
    #[arg(long, value_name = "PATH")]
    from: Vec<PathBuf>,
    /// Compare what is enforced with what it would be if the audited policies were enforced, too.
    #[arg(long)]
    audit: bool,
    /// Port to judge: 80/tcp, 53/udp, 9/sctp, icmp (an echo request), icmp/TYPE/CODE; may be
    /// repeated. Default: every port that any endpoint of both sides declares.
    #[arg(long, value_name = "PORT")]
    port: Vec<Probe>,
    /// An address that no endpoint has, to judge as one more peer; may be repeated.
    #[arg(long, value_name = "ADDRESS")]
    outside: Vec<IpAddr>,
    #[command(flatten)]
    output: OutputArgs,
}

/// What PATH... is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Before {
    Enforced,
    /// Nothing is loaded, so everything is allowed.
    Nothing,
    Files,
}

#[derive(Serialize)]
struct Answer<'a> {
    before: Before,
    ports: Vec<String>,
    #[serde(flatten)]
    changes: Changes,
    flows_cut: Vec<Flow<'a>>,
    flows_opened: Vec<Flow<'a>>,
}

impl Answer<'_> {
    fn is_empty(&self) -> bool {
        let Self { changes: Changes { endpoints, pairs }, flows_cut, flows_opened, .. } = self;
        [endpoints.added.is_empty(), endpoints.removed.is_empty(), pairs.is_empty()].iter().all(|empty| *empty)
            && flows_cut.is_empty()
            && flows_opened.is_empty()
    }
}

/// Two worlds, and what happens in the first.
struct Sides {
    what: Before,
    before: World,
    after: World,
    live: Option<Running>,
}

/// What the kernel knows, and the addresses where the host is trusted.
struct Running {
    datapath: Datapath,
    reader: Reader,
    host: Vec<IpAddr>,
}

impl Diff {
    pub fn run(&self, instance: &Instance) -> Result<Outcome> {
        let Sides { what, before, after, live } = self.sides(instance)?;
        let regime = if self.audit { Regime::WithAudited } else { Regime::Enforced };
        let (before, after) = (View { world: &before, regime: Regime::Enforced }, View { world: &after, regime });
        let probes = self.probes(before.world, after.world)?;
        for address in &self.outside {
            question::outside(after.world, *address)?;
        }
        let ports = probes.iter().map(ToString::to_string).collect();
        let changes = diff::compare(before, after, &Options { probes, outside: self.outside.clone() });
        let mut answer = Answer { before: what, ports, changes, flows_cut: vec![], flows_opened: vec![] };
        if let Some(Running { datapath, reader, host }) = &live {
            let now = SystemTime::now();
            let conversations = conversations(reader, &datapath.records()?, host);
            let Live { cut, opened } = diff::live(after, &conversations);
            answer.flows_cut = cut.iter().map(|one| reader.flow(&one.record, now)).collect();
            answer.flows_opened = opened.iter().map(|one| reader.flow(&one.record, now)).collect();
        }
        output::print(self.output.output, &answer, |answer| self.text(answer))?;
        Ok(if answer.is_empty() { Outcome::Done } else { Outcome::DoesNotHold })
    }

    fn sides(&self, instance: &Instance) -> Result<Sides> {
        if !self.from.is_empty() {
            let before = question::read(&self.from)?;
            let after = if self.audit { before.clone() } else { question::read(&self.path)? };
            return Ok(Sides { what: Before::Files, before, after, live: None });
        }
        // without it nothing is found, and "nothing is enforced" would be a lie
        privileges::require(&[privileges::OPEN_PINS])?;
        let opened = instance.open();
        if !opened.pins.exist() {
            if self.audit {
                bail!("nothing is loaded here; run `netpol load PATH`, or name the documents with --from");
            }
            let after = question::read(&self.path)?;
            let before = World { tiers: Vec::new(), ..after.clone() };
            return Ok(Sides { what: Before::Nothing, before, after, live: None });
        }
        let datapath = Datapath::open(&opened.pins)?;
        let names = opened.names(&datapath)?;
        let mut before = question::world_of(&names)?;
        let mut after = if self.audit { before.clone() } else { question::read(&self.path)? };
        for world in [&mut before, &mut after] {
            names.place_endpoints(world);
        }
        let is_trusted = !datapath.live()?.settings.has(Settings::POLICE_HOST);
        let host = if is_trusted { source::host_addresses()? } else { Vec::new() };
        Ok(Sides {
            what: Before::Enforced,
            before,
            after,
            live: Some(Running { datapath, reader: Reader::new(names.into()), host }),
        })
    }

    fn probes(&self, before: &World, after: &World) -> Result<Vec<Probe>> {
        let mut probes = self.port.clone();
        if probes.is_empty() {
            probes = [before, after].into_iter().flat_map(Probe::declared).collect();
        }
        if probes.is_empty() && !after.endpoints.is_empty() {
            bail!("no endpoint declares a port: say which one to judge, like `--port 80/tcp`");
        }
        probes.sort_unstable();
        probes.dedup();
        Ok(probes)
    }

    fn text(&self, answer: &Answer<'_>) -> String {
        let Answer { before, ports, changes: Changes { endpoints, pairs }, flows_cut, flows_opened } = answer;
        let mut parts = Vec::new();
        if *before == Before::Nothing {
            parts.push("Nothing is enforced: compared with everything allowed.\n".to_owned());
        }
        for (title, names) in [("added", &endpoints.added), ("removed", &endpoints.removed)] {
            if !names.is_empty() {
                let names: Vec<_> = names.iter().map(|name| escape(name)).collect();
                parts.push(format!(
                    "{} {title}: {}\n",
                    counted(names.len(), "endpoint", "endpoints"),
                    names.join(", ")
                ));
            }
        }
        if !pairs.is_empty() {
            let rows = pairs.iter().map(|pair| {
                let end = |name: &String, address: &Option<IpAddr>| {
                    address.map_or_else(|| name.clone(), |address| format!("{name} ({address})"))
                };
                let service = match (pair.port, pair.icmp_type) {
                    (Some(port), _) => format!("{port}/{}", pair.protocol.to_lowercase()),
                    (None, Some(kind)) => {
                        format!("{}/{kind}/{}", pair.protocol.to_lowercase(), pair.icmp_code.unwrap_or_default())
                    }
                    (None, None) => pair.protocol.to_lowercase(),
                };
                // what opens is the old rule's matter, when the new one is silence
                let (before, after) = (described(pair.rule_before.as_ref()), described(pair.rule_after.as_ref()));
                [
                    end(&pair.from, &pair.source_address),
                    end(&pair.to, &pair.destination_address),
                    service,
                    format!("{} -> {}", pair.before.as_str(), pair.after.as_str()),
                    if pair.after == Verdict::Allowed && pair.rule_after.is_none() {
                        format!("{after} (was {before})")
                    } else {
                        after
                    },
                ]
            });
            parts.push(output::table(["FROM", "TO", "PORT", "VERDICT", "RULE"], rows));
        }
        for (title, flows) in [("flows that would be cut", flows_cut), ("denials that would be allowed", flows_opened)]
        {
            if !flows.is_empty() {
                let rows = flows.iter().map(|flow| {
                    let [from, to] = [&flow.source, &flow.destination].map(|peer| peer.describe());
                    [from, to, flow.protocol.to_string(), flow.packets.to_string(), last(flow), described(flow.rule)]
                });
                let table = output::table(["FROM", "TO", "PROTOCOL", "PACKETS", "LAST", "RULE NOW"], rows);
                parts.push(format!("{title}\n{table}"));
            }
        }
        let judged = if ports.is_empty() { "no port".to_owned() } else { ports.join(" ") };
        parts.push(if answer.is_empty() {
            format!("Nothing would change (judged: {judged}).\n")
        } else {
            let flows = match before {
                Before::Enforced => format!(
                    ", {} cut, {} allowed",
                    counted(flows_cut.len(), "flow", "flows"),
                    counted(flows_opened.len(), "denial", "denials"),
                ),
                Before::Nothing | Before::Files => String::new(),
            };
            format!("{} would change{flows} (judged: {judged}).\n", counted(pairs.len(), "verdict", "verdicts"))
        });
        parts.join("\n")
    }
}

/// When the last packet was, and whether it may have been the last one of all (FIN or RST).
fn last(flow: &Flow<'_>) -> String {
    let ended = if flow.tcp_flags.is_some_and(TcpFlags::ended) { ", ended" } else { "" };
    format!("{:.0} s ago{ended}", flow.idle_seconds)
}

fn described(rule: Option<&Rule>) -> String {
    rule.map_or_else(|| "no policy".to_owned(), Rule::describe)
}
