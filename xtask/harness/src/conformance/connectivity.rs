//! Runs connectivity cases: every step, every row, in IPv4 and IPv6.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    panic::resume_unwind,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use anyhow::{Context as _, Result, bail};
use netpol_user::model::{self, Direction, IpVersion, Opening, Party, Protocol, Regime, World, probe::CLIENT_PORT};
use serde_json::Value;

use super::{
    case::{Case, Row},
    engine::{Engine, Maker, Question},
    plan,
    report::{Place, Report},
    state::State,
};
use crate::progress::Progress;

/// Fields that only mean something where Kubernetes issues service accounts.
const SERVICE_ACCOUNTS: [&str; 2] = ["serviceAccountSelector", "serviceAccounts"];

/// Runs every case with all engines at the same time, each of them on several threads; adds to `report`.
pub fn run(what: &str, paths: &[PathBuf], makers: &[Maker<'_>], report: &mut Report) -> Result<()> {
    let progress = Progress::start(what, paths.len() * makers.len());
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let next: Vec<_> = makers.iter().map(|_| AtomicUsize::new(0)).collect();
    let parts = thread::scope(|scope| {
        let mut workers = Vec::new();
        for (maker, next) in makers.iter().zip(&next) {
            let next = || paths.get(next.fetch_add(1, Ordering::Relaxed));
            let progress = &progress;
            let worker = move || work(maker, next, progress);
            workers.extend((0..threads.min(paths.len())).map(|_| scope.spawn(worker)));
        }
        let parts = workers.into_iter().map(|worker| worker.join().unwrap_or_else(|panic| resume_unwind(panic)));
        parts.collect::<Vec<_>>()
    });
    progress.done();
    let (parts, done): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
    parts.into_iter().for_each(|part| report.merge(part));
    done.into_iter().collect()
}

/// Runs cases with an engine of its own, until there are no more.
fn work<'a>(
    maker: &Maker<'_>,
    mut next: impl FnMut() -> Option<&'a PathBuf>,
    progress: &Progress,
) -> (Report, Result<()>) {
    let mut report = Report::default();
    let mut work = || -> Result<()> {
        let mut engine = (maker.make)()?;
        while let Some(path) = next() {
            run_case(path, maker.name, engine.as_mut(), &mut report)?;
            progress.step(maker.name);
        }
        Ok(())
    };
    let done = work().with_context(|| format!("engine {}", maker.name));
    (report, done)
}

fn run_case(path: &Path, engine_name: &'static str, engine: &mut dyn Engine, report: &mut Report) -> Result<()> {
    let file = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let set = set(path);
    let case = Case::read(path)?;
    if let Some(reason) = meaningless(&case) {
        report.leave_out(&file, reason);
        return Ok(());
    }
    report.tally(&set, engine_name).cases += 1;
    for family in plan::FAMILIES {
        let mut state = State::new(&case.model);
        for (number, step) in case.steps.iter().enumerate() {
            state.take(step).with_context(|| format!("{file} step {number}"))?;
            let Compared { failed, unsteady } = match compare(&state, &case, &step.expected, (family, &mut *engine)) {
                Ok(compared) => compared,
                // A step that can't be judged fails with all its rows.
                Err(error) => {
                    Compared { failed: vec![format!("{error:#}"); step.expected.len().max(1)], unsteady: vec![] }
                }
            };
            let name = step.name.as_deref().unwrap_or_default();
            let told = |told: Vec<String>| {
                told.into_iter().map(|what| format!("{family:?} step {number} {name}: {what}")).collect()
            };
            let place = Place { set: &set, case: &file, engine: engine_name };
            report.rows(&place, step.expected.len(), told(failed));
            report.unsteady(&place, told(unsteady));
        }
    }
    Ok(())
}

/// The suite of a case.
pub fn set(path: &Path) -> String {
    let file = path.file_stem().unwrap_or_default().to_string_lossy();
    file.split('-').next().unwrap_or_default().to_owned()
}

/// Why a case cannot have a meaning without Kubernetes.
fn meaningless(case: &Case) -> Option<&'static str> {
    let objects = case.steps.iter().flat_map(|step| &step.apply);
    let mut objects = objects.filter(|object| mentions(object, &SERVICE_ACCOUNTS));
    objects.next().map(|_| "selects by service account, which only Kubernetes gives to a workload")
}

/// Whether a field of one of these names occurs anywhere.
pub fn mentions(value: &Value, fields: &[&str]) -> bool {
    match value {
        Value::Object(object) => {
            object.iter().any(|(key, value)| fields.contains(&key.as_str()) || mentions(value, fields))
        }
        Value::Array(items) => items.iter().any(|item| mentions(item, fields)),
        _ => false,
    }
}

/// What did not hold, and what held only when it was asked again.
#[derive(Default)]
struct Compared {
    failed: Vec<String>,
    unsteady: Vec<String>,
}

/// How many rows of a step are asked again: more of them don't tell more.
const ASKED_AGAIN: usize = 5;

fn compare(
    state: &State,
    case: &Case,
    expected: &[Row],
    (family, engine): (IpVersion, &mut dyn Engine),
) -> Result<Compared> {
    let world = plan::load(state, case.model.calico_profile, family)?.world;
    let parties = parties(state, &world, family);
    let questions = expected.iter().map(|row| question(row, &parties, family)).collect::<Result<Vec<_>>>()?;
    let verdicts = engine.verdicts(&world, &questions)?;
    if verdicts.len() != expected.len() {
        bail!("{} verdicts for {} rows", verdicts.len(), expected.len());
    }
    let rows = expected.iter().zip(&questions).zip(verdicts);
    let wrong = rows.filter(|((row, _), allowed)| row.allowed != *allowed);
    let mut compared = Compared::default();
    for (number, ((row, question), allowed)) in wrong.enumerate() {
        let wrong = describe(&world, row, question, allowed);
        let again = if number < ASKED_AGAIN { engine.again(question)? } else { None };
        match again {
            Some(again) if again.allowed == row.allowed => compared.unsteady.push(wrong),
            Some(again) => compared.failed.push([vec![wrong], again.seen].concat().join("\n      ")),
            None => compared.failed.push(wrong),
        }
    }
    Ok(compared)
}

fn describe(world: &World, Row { from, to, port, protocol, .. }: &Row, question: &Question, allowed: bool) -> String {
    let said = if allowed { "allowed" } else { "denied" };
    format!("{from} -> {to} {port}/{protocol} was {said}; by the rules: {}", why(world, question))
}

/// What the interpreter says of a connection, whoever judged it wrongly.
fn why(world: &World, &Question { from, to, opening }: &Question) -> String {
    let question = model::Question { world, from, to, opening, regime: Regime::Enforced };
    let judgement = question.judge();
    let sides = [(Direction::Egress, judgement.egress), (Direction::Ingress, judgement.ingress)];
    let reason = |(direction, decision): (Direction, Option<_>)| Some(question.reason(direction, &decision?));
    sides.into_iter().filter_map(reason).collect::<Vec<_>>().join("; ")
}

/// Everybody by the name that rows use.
fn parties(state: &State, world: &World, family: IpVersion) -> BTreeMap<String, Party> {
    let endpoints = world.endpoints.iter().enumerate().map(|(index, endpoint)| {
        let address: Option<IpAddr> = endpoint.addresses.first().copied();
        (endpoint.name.to_string(), Party::Endpoint { index, address })
    });
    let outside = state
        .externals
        .iter()
        .map(|(name, external)| (name.clone(), Party::Outside(plan::address(external.ip, family))));
    endpoints.chain(outside).collect()
}

fn question(row: &Row, parties: &BTreeMap<String, Party>, family: IpVersion) -> Result<Question> {
    let party = |name: &String| parties.get(name).copied().with_context(|| format!("nobody is called {name}"));
    let icmp = row.icmp_type.map(|kind| (kind, row.icmp_code.unwrap_or_default()));
    let protocol = protocol(&row.protocol, family)?;
    let (source_port, destination_port) =
        if protocol.has_ports() { (row.src_port.unwrap_or(CLIENT_PORT), row.port) } else { (0, 0) };
    let opening = Opening { protocol, source_port, destination_port, icmp };
    Ok(Question { from: party(&row.from)?, to: party(&row.to)?, opening })
}

/// By name or number; ICMP is that of the family.
pub fn protocol(name: &str, family: IpVersion) -> Result<Protocol> {
    Ok(match (name, family) {
        ("TCP", _) => Protocol::TCP,
        ("UDP", _) => Protocol::UDP,
        ("SCTP", _) => Protocol::SCTP,
        ("ICMP", IpVersion::V4) => Protocol::ICMP,
        ("ICMP", IpVersion::V6) | ("ICMPv6", _) => Protocol::ICMPV6,
        (number, _) => Protocol(number.parse().with_context(|| format!("{number:?} is no protocol"))?),
    })
}
