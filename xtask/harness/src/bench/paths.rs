//! Whole paths between two containers: all variants stand side by side, and each round measures them in turn.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{
    Setting,
    plot::{Bar, Chart, Tone},
    progress::Progress,
    report::{Bound, Goal, Section, Table, Unit, thousands},
    stats::{Shuffle, Spread},
    traffic::{Course, Lane, MODES, Mode, Sample},
    variants::{BASE, Built, CONTROL, VARIANTS, Variant},
};

/// What netpol must reach: of which variant, in which mode.
const GOALS: &[(&str, &str, f64)] = &[
    ("netpol", "udp", 1.15),
    ("netpol", "tcp-rr", 1.05),
    ("netpol", "crr", 1.00),
    ("netpol", "flows-64k", 0.93),
    ("netpol-stack", "udp", 0.90),
    ("netpol-stack", "tcp-rr", 0.93),
    ("netpol-stack", "crr", 0.86),
];
/// Cost per packet with two CPUs sending, relative to one.
const SCALING: (&str, &str, f64) = ("netpol", "two-cpus", 1.3);

/// Below this share a measurement is of something else than the path.
const DELIVERED: f64 = 0.99;

pub fn run(setting: &Setting) -> Result<Section> {
    let cpus = setting.cpus;
    let variants = chosen_variants(setting);
    let modes = MODES.iter().filter(|mode| setting.only.mode(mode.name)).collect::<Vec<_>>();
    let (possible, impossible) = modes.into_iter().partition::<Vec<_>, _>(|mode| mode.cpus <= cpus.len());

    let progress = Progress::start("building the paths", variants.len());
    let built = variants
        .into_iter()
        .map(|variant| {
            let built = variant.build(setting.sandbox, setting.binary).with_context(|| variant.what)?;
            progress.step(variant.what);
            Ok(built)
        })
        .collect::<Result<Vec<_>>>()?;
    progress.done();

    let rounds = measure(setting, &built, &possible)?;
    let mut section = describe(&built, &possible, &rounds, setting);
    section.notes.extend(impossible.iter().map(|mode| {
        format!("Not measured: {} needs {} CPUs, and this process has {}.", mode.name, mode.cpus, cpus.len())
    }));
    Ok(section)
}

/// The base is always among them: there is no ratio without it.
fn chosen_variants(setting: &Setting) -> Vec<&'static Variant> {
    VARIANTS.iter().filter(|variant| variant.name == BASE || setting.only.variant(variant.name)).collect()
}

/// Samples of one round, by mode and variant.
type Round = BTreeMap<(&'static str, &'static str), Sample>;

fn measure(setting: &Setting, built: &[Built], modes: &[&'static Mode]) -> Result<Vec<Round>> {
    let progress = Progress::start("measuring the paths", setting.rounds * modes.len() * built.len());
    let mut shuffle = Shuffle::seeded(std::process::id().into());
    let mut order = built.iter().collect::<Vec<_>>();
    let mut rounds = Vec::new();
    for number in 1..=setting.rounds {
        let mut round = Round::new();
        for mode in modes {
            shuffle.shuffle(&mut order);
            for Built { variant, topology } in &order {
                let &Setting { cpus, time, timing, .. } = setting;
                let course = Course::between(topology);
                let lane = Lane { course, topology, cpus, time, pause: variant.pause(), timing };
                let sample = (mode.run)(&lane).with_context(|| format!("{} over {}", mode.name, variant.name))?;
                round.insert((mode.name, variant.name), sample);
                progress.step(&format!("round {number} of {}: {}, {}", setting.rounds, mode.name, variant.what));
            }
        }
        rounds.push(round);
    }
    progress.done();
    Ok(rounds)
}

/// What the rounds say about a mode over a variant.
struct Figure {
    /// Nanoseconds per operation.
    cost: Spread,
    /// Above 1 is faster than the base.
    ratio: Spread,
    scaling: Option<Spread>,
    /// The worst of all rounds.
    delivered: Option<f64>,
}

impl Figure {
    fn of(rounds: &[Round], mode: &'static str, variant: &'static str) -> Option<Self> {
        let samples = rounds.iter().filter_map(|round| round.get(&(mode, variant))).collect::<Vec<_>>();
        let costs = samples.iter().map(|sample| sample.cost()).collect::<Vec<_>>();
        let ratios = rounds
            .iter()
            .filter_map(|round| Some(round.get(&(mode, BASE))?.cost() / round.get(&(mode, variant))?.cost()))
            .collect::<Vec<_>>();
        let scalings = samples.iter().filter_map(|sample| sample.scaling).collect::<Vec<_>>();
        Some(Self {
            cost: Spread::of(&costs)?,
            ratio: Spread::of(&ratios)?,
            scaling: Spread::of(&scalings),
            delivered: samples.iter().filter_map(|sample| sample.delivered).min_by(f64::total_cmp),
        })
    }

    fn cell(&self) -> String {
        let mark = if self.delivered.is_some_and(|share| share < DELIVERED) { "*" } else { "" };
        let Spread { median, low, high, .. } = self.ratio;
        // A long list of rules ends in ratios that two decimals don't tell from nothing.
        if median < 0.1 { format!("{mark}{median:.3}") } else { format!("{mark}{median:.2} ({low:.2}-{high:.2})") }
    }
}

fn describe(built: &[Built], modes: &[&'static Mode], rounds: &[Round], setting: &Setting) -> Section {
    let mut section = Section { title: "Paths between two containers", ..Section::default() };
    section.notes.push(format!(
        "CPU time of client and server per operation, both on one CPU, as a ratio to the plain bridge: above 1 is \
         faster. Median of {} rounds of {} ms, in brackets the middle half. `{CONTROL}` is a second plain bridge: \
         how far it is from 1 is noise.",
        setting.rounds,
        setting.time.as_millis()
    ));
    section.tables.push(ratios(built, modes, rounds));
    section.tables.push(legend(modes, rounds));
    section.tables.extend(scaling(built, rounds));
    section.notes.extend(losses(built, modes, rounds));
    section.goals = goals(rounds);
    section.samples = samples(rounds);
    section.charts = modes.iter().filter_map(|mode| chart(mode, built, rounds)).collect();
    section
}

fn samples(rounds: &[Round]) -> Vec<Value> {
    let of = |(number, round): (usize, &Round)| {
        let sample = |((mode, variant), sample): (&(&str, &str), &Sample)| {
            let Sample { operations, delivered, scaling, .. } = sample;
            json!({
                "round": number, "mode": mode, "path": variant, "operations": operations,
                "nanoseconds": sample.cost(), "delivered": delivered, "scaling": scaling,
            })
        };
        round.iter().map(sample).collect::<Vec<_>>()
    };
    rounds.iter().enumerate().flat_map(of).collect()
}

fn ratios(built: &[Built], modes: &[&'static Mode], rounds: &[Round]) -> Table {
    let mut table = Table { header: vec!["path".to_owned()], rows: Vec::new() };
    table.header.extend(modes.iter().map(|mode| mode.name.to_owned()));
    for Built { variant, .. } in built {
        let cells = modes.iter().map(|mode| Figure::of(rounds, mode.name, variant.name));
        let cells = cells.map(|figure| figure.map_or(String::new(), |figure| figure.cell()));
        table.rows.push([variant.what.to_owned()].into_iter().chain(cells).collect());
    }
    table
}

/// What the modes are, and what one operation costs over the plain bridge.
fn legend(modes: &[&'static Mode], rounds: &[Round]) -> Table {
    let mut table = Table::new(["mode", "one operation", "plain bridge"]);
    for mode in modes {
        let cost = Figure::of(rounds, mode.name, BASE).map(|figure| Unit::Nanoseconds.format(figure.cost.median));
        table.rows.push(vec![mode.name.to_owned(), mode.what.to_owned(), cost.unwrap_or_default()]);
    }
    table
}

fn scaling(built: &[Built], rounds: &[Round]) -> Option<Table> {
    let mut table = Table::new(["path", "cost per packet, two CPUs against one", "middle half"]);
    for Built { variant, .. } in built {
        let Some(Spread { median, low, high, .. }) = Figure::of(rounds, SCALING.1, variant.name)?.scaling else {
            continue;
        };
        let row = [variant.what.to_owned(), format!("{median:.2}"), format!("{low:.2} to {high:.2}")];
        table.rows.push(row.into());
    }
    Some(table)
}

fn losses(built: &[Built], modes: &[&'static Mode], rounds: &[Round]) -> Option<String> {
    let mut lost = Vec::new();
    for (mode, built) in modes.iter().flat_map(|mode| built.iter().map(move |built| (mode, built))) {
        let delivered = Figure::of(rounds, mode.name, built.variant.name).and_then(|figure| figure.delivered);
        if let Some(share) = delivered.filter(|share| *share < DELIVERED) {
            lost.push(format!("{} over {} {} %", mode.name, built.variant.what, thousands(share * 100.0)));
        }
    }
    (!lost.is_empty()).then(|| {
        let list = lost.join("; ");
        format!("\\* Not all packets came through, so this is not the cost of the path alone. Arrived: {list}.")
    })
}

fn goals(rounds: &[Round]) -> Vec<Goal> {
    let ratios = GOALS.iter().filter_map(|(variant, mode, least)| {
        let measured = Figure::of(rounds, mode, variant)?.ratio;
        let what = format!("{variant}, {mode}: ratio to the plain bridge");
        Some(Goal { what, bound: Bound::AtLeast(*least), unit: Unit::Ratio, measured })
    });
    let (variant, mode, most) = SCALING;
    let scaling = Figure::of(rounds, mode, variant).and_then(|figure| figure.scaling).map(|measured| Goal {
        what: format!("{variant}, {mode}: cost per packet against one CPU"),
        bound: Bound::AtMost(most),
        unit: Unit::Ratio,
        measured,
    });
    ratios.chain(scaling).collect()
}

fn chart(mode: &Mode, built: &[Built], rounds: &[Round]) -> Option<Chart> {
    let bars = built
        .iter()
        .map(|Built { variant, .. }| {
            let tone = match variant.name {
                BASE | CONTROL => Tone::Reference,
                name if name.starts_with("netpol") => Tone::Ours,
                _ => Tone::Others,
            };
            let value = Figure::of(rounds, mode.name, variant.name)?.ratio.median;
            Some(Bar { label: variant.what.to_owned(), value, tone })
        })
        .collect::<Option<Vec<_>>>()?;
    Some(Chart { title: format!("{}: {}", mode.name, mode.what), reference: 1.0, bars })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn sample(nanoseconds: u64) -> Sample {
        Sample { spent: Duration::from_nanos(nanoseconds * 100), operations: 100, ..Sample::NOTHING }
    }

    fn round(base: u64, netpol: u64) -> Round {
        Round::from([(("udp", BASE), sample(base)), (("udp", "netpol"), sample(netpol))])
    }

    #[test]
    fn a_slow_round_is_slow_for_both_and_leaves_the_ratio_alone() {
        let figure = Figure::of(&[round(1200, 1000), round(2400, 2000)], "udp", "netpol").expect("measured");
        assert_eq!(figure.ratio, Spread { median: 1.2, low: 1.2, high: 1.2, count: 2 });
    }

    #[test]
    fn what_was_not_measured_has_no_goal() {
        let goals = goals(&[round(1200, 1000)]);
        assert_eq!(
            goals.iter().map(|goal| goal.what.as_str()).collect::<Vec<_>>(),
            ["netpol, udp: ratio to the plain bridge"]
        );
        assert!(goals[0].met());
    }

    #[test]
    fn every_goal_is_about_a_variant_and_a_mode_that_exist() {
        for (variant, mode, _) in GOALS.iter().chain([&SCALING]) {
            assert!(VARIANTS.iter().any(|known| known.name == *variant), "{variant}");
            assert!(MODES.iter().any(|known| known.name == *mode), "{mode}");
        }
    }

    #[test]
    fn lost_packets_mark_the_figure() {
        let lossy = Sample { delivered: Some(0.5), ..sample(1000) };
        let rounds = [Round::from([(("udp", BASE), sample(1000)), (("udp", "netpol"), lossy)])];
        assert_eq!(Figure::of(&rounds, "udp", "netpol").expect("measured").cell(), "*1.00 (1.00-1.00)");
    }
}
