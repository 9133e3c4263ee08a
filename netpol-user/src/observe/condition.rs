//! Whether what was loaded is enforced. Stated once: `status`, the map and the metrics say the same.
//!
//! Enforced means: every endpoint that runs has both classifiers, first in their chains, at the present
//! generation. Pending endpoints are listed and don't count.

use std::net::IpAddr;

use netpol_common::tables::IfIndex;
use serde::Serialize;

use crate::{
    datapath::{self, Counter, Datapath, Hook, Position, Role, Settings, Side, Untold, Way},
    enforce,
    format::Diagnostic,
    model::{
        ObjectName, World,
        row::{PolicyRef, audited},
    },
    source::{self, Discovery, Known, Reason},
    state::{Endpoint, Names, Pending},
};

/// Whether the policy is enforced, and what is not protected.
#[derive(Clone, Debug, Serialize)]
pub struct Condition {
    pub enforced: bool,
    pub generation: u32,
    pub policies: usize,
    /// The whole load is audited: nothing is enforced (`load --audit`).
    pub audit: bool,
    /// Policies that are not enforced, only judged.
    pub audited: Vec<PolicyRef>,
    pub endpoints: usize,
    pub identities: usize,
    pub settings: Vec<&'static str>,
    pub problems: Vec<String>,
    pub pending: Vec<Pending>,
    /// Interfaces on bridges of endpoints that no policy protects.
    pub unprotected: Vec<String>,
    /// Endpoints whose packets go through the host's stack, and why.
    pub stack: Vec<Stack>,
    pub observers: Observers,
    pub counters: Vec<Row>,
    /// Of those that passed, what audited policies would have dropped.
    pub would_drop: Vec<Row>,
    /// Addresses of the host itself, where they could be found out.
    #[serde(skip)]
    pub host_addresses: Vec<IpAddr>,
}

/// An endpoint whose packets the host passes on, and why.
#[derive(Clone, Debug, Serialize)]
pub struct Stack {
    pub endpoint: String,
    pub reason: String,
}

/// Who observes (`netpol observe`), and what they all were not told since the maps were made.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Observers {
    /// So many leases hold now.
    pub count: u32,
    /// Events for which an observer had no room.
    pub lost_events: u64,
    /// Drops like others that were told, or too many of one interface.
    pub suppressed_drops: u64,
}

/// Packets by what became of them, since the maps were made.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub direction: &'static str,
    pub verdict: &'static str,
    pub reason: &'static str,
    pub packets: u64,
    pub bytes: u64,
}

impl Condition {
    /// Looks at everything anew.
    pub fn of(instance: &enforce::Instance) -> Result<Self, enforce::Error> {
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
        if names.audit {
            problems.push(
                "loaded with --audit, so nothing is stopped; `netpol diff --audit` says what would be, \
                 `netpol load` without --audit enforces it"
                    .into(),
            );
        }
        let world = names.documents().ok().map(|loaded| loaded.world);
        let audited = world.iter().flat_map(audited).collect();
        let now = world.and_then(|world| now(world, &names));
        let pending = now.as_ref().map_or_else(|| names.pending.clone(), Now::pending);
        // who is not there any more has nothing to be attached to
        let stopped = |endpoint: &Endpoint| {
            pending.iter().any(|p| (&p.namespace, &p.name) == (&endpoint.namespace, &endpoint.name))
        };
        for endpoint in names.endpoints.iter().filter(|endpoint| !stopped(endpoint)) {
            problems.extend(problem(&datapath, endpoint));
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
            audit: names.audit,
            audited,
            endpoints: names.endpoints.len(),
            identities: names.identities.len(),
            settings: settings(live.settings, names.attach),
            problems,
            host_addresses: now.as_ref().map(|now| now.found.host_addresses.clone()).unwrap_or_default(),
            unprotected: now.map(|now| unprotected(&names, &now.found)).unwrap_or_default(),
            stack: names.endpoints.iter().filter_map(stack).collect(),
            observers: observers(&datapath)?,
            counters: datapath.counters()?.iter().map(row).collect(),
            would_drop: datapath.would_drop()?.iter().map(|c| Row { verdict: "would-drop", ..row(c) }).collect(),
            pending,
        })
    }

    /// Nothing is loaded.
    fn nothing() -> Self {
        Self {
            enforced: false,
            generation: 0,
            policies: 0,
            audit: false,
            audited: vec![],
            endpoints: 0,
            identities: 0,
            settings: vec![],
            problems: vec!["nothing is loaded; run `netpol load PATH`".into()],
            pending: vec![],
            unprotected: vec![],
            stack: vec![],
            observers: Observers::default(),
            counters: vec![],
            would_drop: vec![],
            host_addresses: vec![],
        }
    }
}

/// What the documents' endpoints look like now.
struct Now {
    world: World,
    found: Discovery,
}

/// `None` where that cannot be found out.
fn now(world: World, names: &Names) -> Option<Now> {
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

/// Why the host itself does not reach services.
fn sockets(datapath: &Datapath) -> Result<Option<String>, enforce::Error> {
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

fn problem(datapath: &Datapath, endpoint: &Endpoint) -> Option<String> {
    let Endpoint { namespace, name, interface, ifindex, .. } = endpoint;
    let hook = Hook { interface: interface.clone(), ifindex: IfIndex(*ifindex), role: Role::Workload };
    match datapath.position(&hook) {
        Ok(Position::First) => None,
        Ok(Position::Behind(program)) => Some(format!(
            "{namespace}/{name}: program {program} on {interface} is in front of netpol and can hide it; take it off, or \
                 `netpol unload` and `netpol load` again, which puts netpol in front"
        )),
        Ok(Position::Missing) => {
            Some(format!("{namespace}/{name}: nothing is attached to {interface}; run `netpol load` again"))
        }
        Err(error) => Some(format!(
            "{namespace}/{name}: {interface} cannot be looked at ({error}); is the endpoint gone? run `netpol load` again"
        )),
    }
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

fn observers(datapath: &Datapath) -> Result<Observers, datapath::Error> {
    let (count, Untold { lost, suppressed }) = datapath.observers()?;
    Ok(Observers { count, lost_events: lost, suppressed_drops: suppressed })
}

fn stack(endpoint: &Endpoint) -> Option<Stack> {
    let outside = || endpoint.outside.as_ref().map(|reason| format!("to and from the uplinks: {reason}"));
    let reason = endpoint.stack.clone().or_else(outside)?;
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
