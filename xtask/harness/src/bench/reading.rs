//! What it takes to read many flows: `flows -o json`, and `top` in a terminal.

use std::{
    fs::File,
    io::Read as _,
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{
    Setting,
    documents::{self, Size},
    netpol::{InTerminal, Instance, TERMINAL},
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

/// How often keys are pressed.
const KEYS: usize = 20;
/// Between keys: no multiple of the time between two readings.
const APART: Duration = Duration::from_millis(130);
/// How long the answer to a key is awaited.
const PATIENCE: Duration = Duration::from_secs(30);

/// What was found with one number of flows.
struct Found {
    flows: u32,
    /// Milliseconds of `flows -o json`.
    json: Vec<f64>,
    /// Milliseconds of one reading of `top`, with the table that it makes of it.
    reading: Vec<f64>,
    /// CPU time of `top` by time.
    share: f64,
    /// Milliseconds from a key until `top` shows what it is for.
    answers: Vec<f64>,
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
    let screen = Screen::of(top.screen()?);
    thread::sleep(WHILE);
    let share = top.end()?.as_secs_f64() / WHILE.as_secs_f64();
    screen.end()?;
    Ok(Found { flows, json, reading, share, answers: answers(instance)?, peak_kib })
}

/// Presses keys while `top` reads, of which each changes what is shown, and all of it.
fn answers(instance: &Instance) -> Result<Vec<f64>> {
    let mut top = instance.in_terminal(&["top"])?;
    let screen = Screen::of(top.screen()?);
    screen.wait(|text| text.contains(" ▼") && text.contains("UDP"))?;
    let mut answers = Vec::new();
    let mut press = |top: &mut InTerminal, key: &str, shown: &dyn Fn(&str) -> bool| -> Result<()> {
        thread::sleep(APART);
        let begin = Instant::now();
        top.press(key)?;
        screen.wait(shown)?;
        answers.push(begin.elapsed().as_secs_f64() * 1e3);
        Ok(())
    };
    for _ in 0..KEYS {
        press(&mut top, "?", &|text| text.contains("Esc back"))?;
        press(&mut top, "?", &|text| !text.contains("Esc back"))?;
        // the same column the other way around
        press(&mut top, "r", &|text| text.contains(" ▲"))?;
        press(&mut top, "r", &|text| text.contains(" ▼"))?;
    }
    top.end()?;
    screen.end()?;
    Ok(answers)
}

/// What a terminal shows, as it comes: a program that nobody reads would stop.
struct Screen {
    parser: Arc<Mutex<vt100::Parser>>,
    reader: JoinHandle<()>,
}

impl Screen {
    fn of(mut output: File) -> Self {
        let [rows, columns] = TERMINAL;
        let parser = Arc::new(Mutex::new(vt100::Parser::new(rows, columns, 0)));
        let shown = Arc::clone(&parser);
        let reader = thread::spawn(move || {
            let mut bytes = [0; 65_536];
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                shown.lock().unwrap_or_else(PoisonError::into_inner).process(&bytes[..count]);
            }
        });
        Self { parser, reader }
    }

    fn wait(&self, shown: impl Fn(&str) -> bool) -> Result<()> {
        let begin = Instant::now();
        loop {
            let text = self.parser.lock().unwrap_or_else(PoisonError::into_inner).screen().contents();
            if shown(&text) {
                return Ok(());
            }
            if begin.elapsed() > PATIENCE {
                bail!("`top` does not show what it was asked for\n{text}");
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// The terminal is gone with the program.
    fn end(self) -> Result<()> {
        self.reader.join().ok().context("reading the terminal")
    }
}

fn describe(found: &[Found], rounds: usize) -> Section {
    let mut section = Section { title: "Reading many flows", ..Section::default() };
    section.notes.push(format!(
        "Entries of as many flows, two for a connection, in a table with room for {ROOM} (`load --flows`). Medians of {rounds} \
         runs: `netpol flows -o json`, from start to exit; one reading of `top`, of which `top --once` does two (with a \
         filter, because a screen shows few); the CPU time of `netpol top` in a terminal of 200 columns for {} seconds, as a share of one core; and \
         the longest of {} times from a key (help, and sorting all rows the other way around) until the screen shows what it is for, while \
         `top` goes on reading.",
        WHILE.as_secs(),
        4 * KEYS
    ));
    let mut table = Table::new([
        "flow entries",
        "`flows -o json`",
        "its peak memory",
        "a reading of `top`",
        "`top`, of one core",
        "a key of `top`",
    ]);
    for Found { flows, json, reading, share, answers, peak_kib } in found {
        let median = |values: &[f64]| {
            Spread::of(values).map_or(String::new(), |spread| Unit::Milliseconds.format(spread.median))
        };
        table.rows.push(vec![
            thousands((*flows).into()),
            median(json),
            Unit::Mebibytes.format(*peak_kib as f64 / 1024.0),
            median(reading),
            format!("{:.0} %", share * 100.0),
            Unit::Milliseconds.format(longest(answers)),
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
        goal(
            "1,000,000 flows: the slowest answer of `top` to a key",
            500.0,
            Unit::Milliseconds,
            &[longest(&most.answers)],
        ),
    ]
    .into_iter()
    .flatten()
    .collect();
    section
}

fn longest(times: &[f64]) -> f64 {
    times.iter().copied().fold(0.0, f64::max)
}
