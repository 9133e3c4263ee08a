use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::{Instance, Outcome, OutputArgs, output};
use crate::{
    datapath::{self, Counter, Datapath, Hook, Position, Role, Settings, Side, Way},
    enforce,
    format::{self, Diagnostic},
    model::{ObjectName, World},
    privileges,
    source::{self, Discovery, Known, Reason},
    state::{Endpoint, Names, Pending},
};
use netpol_common::tables::IfIndex;

/// Say whether the policy is enforced, and what is not. Exits with 1 if it is not enforced.
///
/// Enforced means: every endpoint that runs has both classifiers, first in their chains, at the
/// present generation. Pending endpoints are listed and don't count.
#[derive(Args)]
pub struct Status {
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Serialize)]
struct Report {
    enforced: bool,
    generation: u32,
    policies: usize,
    endpoints: usize,
    identities: usize,
    settings: Vec<&'static str>,
    problems: Vec<String>,
    pending: Vec<Pending>,
    /// Interfaces on bridges of endpoints that no policy protects.
    unprotected: Vec<String>,
    /// Endpoints whose packets go through the host's stack, and why.
    stack: Vec<Stack>,
    counters: Vec<Row>,
}

#[derive(Serialize)]
struct Stack {
    endpoint: String,
    reason: String,
}

#[derive(Serialize)]
struct Row {
    direction: &'static str,
    verdict: &'static str,
    reason: &'static str,
    packets: u64,
    bytes: u64,
}

impl Status {
    pub fn run(&self, instance: &Instance) -> Result<Outcome> {
        // without it nothing is found, and "not enforced" would be a lie
        privileges::require(&[privileges::OPEN_PINS])?;
        let report = Report::of(&instance.open())?;
        output::print(self.output.output, &report, text)?;
        Ok(if report.enforced { Outcome::Done } else { Outcome::DoesNotHold })
    }
}

impl Report {
    fn of(instance: &enforce::Instance) -> Result<Self> {
        if !instance.pins.exist() {
            return Ok(Self::nothing());
        }
        let datapath = Datapath::open(&instance.pins)?;
        let live = datapath.live()?;
        let names = instance.names(&datapath)?;
        let mut problems = Vec::new();
        if live.generation.0 == 0 {
            problems.push("a load was interrupted before its first publication; run `netpol load` again".into());
        } else if names.rules.is_empty() && names.endpoints.is_empty() && names.sources.is_empty() {
            problems.push(format!(
                "the names of generation {} are lost; run `netpol load` again to know what is enforced",
                live.generation.0
            ));
        }
        let now = now(&names);
        let pending = now.as_ref().map_or_else(|| names.pending.clone(), Now::pending);
        // who is not there any more has nothing to be attached to
        let stopped = |endpoint: &Endpoint| {
            pending.iter().any(|p| (&p.namespace, &p.name) == (&endpoint.namespace, &endpoint.name))
        };
        for endpoint in names.endpoints.iter().filter(|endpoint| !stopped(endpoint)) {
            problems.extend(problem(&datapath, endpoint)?);
        }
        if !names.services.is_empty() {
            problems.extend(sockets(&datapath)?);
        }
        if let Some(now) = &now {
            problems.extend(moved(&names, now));
            problems.extend(refused(now));
        }
        Ok(Self {
            enforced: problems.is_empty(),
            generation: live.generation.0,
            policies: names.policies,
            endpoints: names.endpoints.len(),
            identities: names.identities.len(),
            settings: settings(live.settings, names.attach),
            problems,
            unprotected: now.map(|now| unprotected(&names, &now.found)).unwrap_or_default(),
            stack: names.endpoints.iter().filter_map(stack).collect(),
            counters: datapath.counters()?.iter().map(row).collect(),
            pending,
        })
    }

    fn nothing() -> Self {
        Self {
            enforced: false,
            generation: 0,
            policies: 0,
            endpoints: 0,
            identities: 0,
            settings: vec![],
            problems: vec!["nothing is loaded; run `netpol load PATH`".into()],
            pending: vec![],
            unprotected: vec![],
            stack: vec![],
            counters: vec![],
        }
    }
}

/// What the documents' endpoints look like now.
struct Now {
    world: World,
    found: Discovery,
}

/// `None` where that cannot be found out.
fn now(names: &Names) -> Option<Now> {
    let world = format::parse(names.sources.iter().map(Into::into).collect()).ok()?.world;
    let found = source::discover(&world, Known { seen: &names.seen, accept: false }).ok()?;
    Some(Now { world, found })
}

impl Now {
    fn pending(&self) -> Vec<Pending> {
        let named = |pending: &source::Pending| {
            let ObjectName { namespace, name } = self.world.endpoints[pending.endpoint].name.clone();
            Pending { namespace, name, reason: pending.reason.clone(), held: None }
        };
        self.found.pending.iter().map(named).collect()
    }
}

fn problem(datapath: &Datapath, endpoint: &Endpoint) -> Result<Option<String>> {
    let Endpoint { namespace, name, interface, ifindex, .. } = endpoint;
    let hook = Hook { interface: interface.clone(), ifindex: IfIndex(*ifindex), role: Role::Workload };
    Ok(match datapath.position(&hook) {
        Ok(Position::First) => None,
        Ok(Position::Behind(program)) => {
            Some(format!("{namespace}/{name}: program {program} on {interface} is in front of netpol and can hide it"))
        }
        Ok(Position::Missing) => {
            Some(format!("{namespace}/{name}: nothing is attached to {interface}; run `netpol load` again"))
        }
        Err(error) => Some(format!(
            "{namespace}/{name}: {interface} cannot be looked at ({error}); is the endpoint gone? run `netpol load` again"
        )),
    })
}

/// Why the host itself does not reach services.
fn sockets(datapath: &Datapath) -> Result<Option<String>> {
    let Some(group) = datapath::control_group() else {
        let what = "the host itself does not reach services: no file system of type cgroup2 is mounted";
        return Ok(Some(what.to_owned()));
    };
    let missing = datapath.missing_sockets(&group)?;
    let what = format!(
        "the host itself does not reach services: nothing is attached to {} at {}; run `netpol load` again",
        missing.join(", "),
        group.display()
    );
    Ok((!missing.is_empty()).then_some(what))
}

/// Addresses that endpoints have and are not believed. What a document leaves out on purpose is no problem.
fn refused(Now { world, found }: &Now) -> Vec<String> {
    let problems = found.refused.iter().filter(|refused| refused.reason != Reason::Undeclared);
    let line = |Diagnostic { message, help, .. }: Diagnostic| match help {
        Some(help) => format!("{message} ({help})"),
        None => message,
    };
    problems.map(|refused| line(refused.diagnostic(world))).collect()
}

/// Endpoints that are somewhere else than they were at load: restarted, renumbered.
fn moved(names: &Names, Now { world, found }: &Now) -> Vec<String> {
    let loaded: std::collections::HashSet<u32> = names.endpoints.iter().map(|endpoint| endpoint.ifindex).collect();
    let new = found.workloads.iter().filter(|found| !loaded.contains(&found.workload.ifindex.0));
    let mut moved: Vec<String> = new
        .map(|found| {
            let name = &world.endpoints[found.workload.endpoint].name;
            format!("{name} is now behind {}, where nothing is attached; run `netpol load` again", found.interface)
        })
        .collect();
    for endpoint in &names.endpoints {
        let now = found.workloads.iter().find(|found| found.workload.ifindex.0 == endpoint.ifindex);
        let new: Vec<_> = now
            .iter()
            .flat_map(|now| &now.workload.addresses)
            .filter(|address| !endpoint.addresses.contains(address))
            .map(ToString::to_string)
            .collect();
        if !new.is_empty() {
            moved.push(format!(
                "{}/{} has addresses that were not there at load ({}): what it sends from them is dropped; run `netpol load` again",
                endpoint.namespace,
                endpoint.name,
                new.join(", ")
            ));
        }
    }
    moved
}

fn unprotected(names: &Names, found: &Discovery) -> Vec<String> {
    let attached: std::collections::HashSet<u32> = names.endpoints.iter().map(|endpoint| endpoint.ifindex).collect();
    let known =
        found.bridges.iter().filter(|bridge| bridge.ports.iter().any(|port| attached.contains(&port.ifindex.0)));
    known
        .flat_map(|bridge| {
            bridge.ports.iter().filter(|port| !attached.contains(&port.ifindex.0)).map(move |p| (bridge, p))
        })
        .map(|(bridge, port)| format!("{} on {}", port.name, bridge.name))
        .collect()
}

fn stack(endpoint: &Endpoint) -> Option<Stack> {
    let reason = endpoint.stack.clone()?;
    Some(Stack { endpoint: format!("{}/{}", endpoint.namespace, endpoint.name), reason })
}

fn settings(settings: Settings, attach: Way) -> Vec<&'static str> {
    let all = [
        (Settings::STACK, "forwarding stack"),
        (Settings::POLICE_HOST, "police host"),
        (Settings::ISOLATE_WAITING, "isolate waiting"),
        (Settings::UNLIMITED, "unlimited flows"),
    ];
    let chosen = all.into_iter().filter(|(setting, _)| settings.has(*setting)).map(|(_, name)| name);
    chosen.chain((attach == Way::Cls).then_some("attach cls")).collect()
}

fn row(counter: &Counter) -> Row {
    let (verdict, reason) = match counter.verdict {
        Ok(pass) => ("passed", pass.name()),
        Err(drop) => ("dropped", drop.name()),
    };
    let direction = match counter.side {
        Side::From => "egress",
        Side::To => "ingress",
    };
    Row { direction, verdict, reason, packets: counter.packets, bytes: counter.bytes }
}

fn text(report: &Report) -> String {
    let Report { enforced, generation, policies, endpoints, identities, .. } = report;
    let mut text = if *enforced {
        format!(
            "enforced: generation {generation}, {}, {}, {}\n",
            output::counted(*policies, "policy", "policies"),
            output::counted(*endpoints, "endpoint", "endpoints"),
            output::counted(*identities, "identity", "identities"),
        )
    } else {
        "NOT ENFORCED\n".to_owned()
    };
    let mut section = |title: &str, lines: Vec<String>| {
        if !lines.is_empty() {
            text.push_str(&format!("\n{title}\n"));
            lines.iter().for_each(|line| text.push_str(&format!("  {}\n", output::escape(line))));
        }
    };
    section("problems", report.problems.clone());
    section("settings", report.settings.iter().map(ToString::to_string).collect());
    let pending = report.pending.iter().map(|p| format!("{}/{}: {}", p.namespace, p.name, p.reason));
    section("pending endpoints", pending.collect());
    section("unprotected interfaces", report.unprotected.clone());
    section("through the host's stack", report.stack.iter().map(|s| format!("{}: {}", s.endpoint, s.reason)).collect());
    let counters = report.counters.iter().map(|c| {
        [c.direction.to_owned(), c.verdict.to_owned(), c.reason.to_owned(), c.packets.to_string(), c.bytes.to_string()]
    });
    let table = output::table(["DIRECTION", "VERDICT", "REASON", "PACKETS", "BYTES"], counters);
    if !report.counters.is_empty() {
        section("packets", table.lines().map(ToOwned::to_owned).collect());
    }
    text
}
