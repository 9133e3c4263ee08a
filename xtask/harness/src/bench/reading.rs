//! What it takes to read many flows: `flows -o json`, and `top` in a terminal.

use std::{io::Read as _, thread, time::Duration};

use anyhow::{Context as _, Result};

use super::{
    Setting,
    documents::{self, Size},
    netpol::Instance,
    packets::Site,
    progress::Progress,
    report::{Bound, Goal, Section, Table, Unit, thousands},
    stats::Spread,
    topology::{Families, Topology},
};

/// Flow entries: two for a connection.
const FLOWS: [u32; 3] = [10_000, 100_000, 1_000_000];
/// With room, so that none of them is evicted.
const ROOM: &str = "1500000";
/// How long `top` runs.
const WHILE: Duration = Duration::from_secs(10);
/// The pause between the two readings of `top --once`.
const PAUSE: Duration = Duration::from_millis(100);

/// What was found with one number of flows.
struct Found {
    flows: u32,
    /// Milliseconds of `flows -o json`.
    json: Vec<f64>,
    /// Milliseconds of one reading of `top`, with the table that it makes of it.
    reading: Vec<f64>,
    /// CPU time of `top` by time.
    share: f64,
    peak_kib: u64,
}

pub fn run(setting: &Setting) -> Result<Section> {
    let topology = Topology::bridged(2, Families::Both)?;
    let instance = Instance::new(setting.sandbox, setting.binary, "reading", &topology.host)?;
    let policies = documents::pair() + &documents::bulk(Size { networks: 1, ports: 10 });
    instance.write(&(documents::endpoints(&topology) + &policies))?;
    instance.load(&["--unlimited-flows", "--flows", ROOM])?;
    let site = Site::new(setting, &instance, &topology)?;
    let rounds = setting.rounds.min(5);
    let progress = Progress::start("reading flows", FLOWS.len());
    let mut found = Vec::new();
    let mut before = 0;
    for flows in FLOWS {
        site.inside(|| site.open_flows((flows - before) / 2))?;
        before = flows;
        found.push(read(&instance, flows, rounds)?);
        progress.step(&thousands(flows.into()));
    }
    progress.done();
    Ok(describe(&found, rounds))
}

fn read(instance: &Instance, flows: u32, rounds: usize) -> Result<Found> {
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    let (mut json, mut reading, mut peak_kib) = (Vec::new(), Vec::new(), 0);
    let pause = PAUSE.as_secs_f64().to_string();
    for _ in 0..rounds {
        let (time, peak) = instance.time(&["flows", "--output", "json"])?;
        json.push(milliseconds(time));
        peak_kib = peak_kib.max(peak);
        let (time, _) = instance.time(&["top", "--once", "--interval", &pause, "--filter", "proto:icmp"])?;
        reading.push(milliseconds(time.saturating_sub(PAUSE)) / 2.0);
    }
    let mut top = instance.in_terminal(&["top"])?;
    let mut screen = top.screen()?;
    // what nobody reads would stop it
    let reader = thread::spawn(move || {
        let mut bytes = [0; 65_536];
        while screen.read(&mut bytes).is_ok_and(|count| count > 0) {}
    });
    thread::sleep(WHILE);
    let share = top.end()?.as_secs_f64() / WHILE.as_secs_f64();
    // the terminal is gone with the program
    reader.join().ok().context("reading the terminal")?;
    Ok(Found { flows, json, reading, share, peak_kib })
}

fn describe(found: &[Found], rounds: usize) -> Section {
    let mut section = Section { title: "Reading many flows", ..Section::default() };
    section.notes.push(format!(
        "Entries of as many flows, two for a connection, in a table with room for {ROOM} (`load --flows`). Medians of {rounds} \
         runs: `netpol flows -o json`, from start to exit; one reading of `top`, of which `top --once` does two (with a \
         filter, because a screen shows few); and the CPU time of `netpol top` in a terminal of 200 columns for {} seconds, as a share of one core.",
        WHILE.as_secs()
    ));
    let mut table =
        Table::new(["flow entries", "`flows -o json`", "its peak memory", "a reading of `top`", "`top`, of one core"]);
    for Found { flows, json, reading, share, peak_kib } in found {
        let median = |values: &[f64]| {
            Spread::of(values).map_or(String::new(), |spread| Unit::Milliseconds.format(spread.median))
        };
        table.rows.push(vec![
            thousands((*flows).into()),
            median(json),
            Unit::Mebibytes.format(*peak_kib as f64 / 1024.0),
            median(reading),
            format!("{:.0} %", share * 100.0),
        ]);
    }
    section.tables.push(table);
    let goal = |what: &str, most: f64, unit, values: &[f64]| {
        Some(Goal { what: what.to_owned(), bound: Bound::AtMost(most), unit, measured: Spread::of(values)? })
    };
    let [_, many, most] = found else { return section };
    section.goals = [
        goal("100,000 flows: a reading of `top`", 200.0, Unit::Milliseconds, &many.reading),
        goal("100,000 flows: `top`, of one core", 0.2, Unit::Ratio, &[many.share]),
        goal("1,000,000 flows: `flows -o json`", 5_000.0, Unit::Milliseconds, &most.json),
    ]
    .into_iter()
    .flatten()
    .collect();
    section
}
