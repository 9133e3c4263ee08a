//! Courses that are translated: all guards stand side by side, and each round measures them in turn.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{
    super::{
        Setting,
        plot::{Bar, Chart, Tone},
        progress::Progress,
        report::{Bound, Goal, Section, Table, Unit, thousands},
        stats::{Shuffle, Spread},
        traffic::{Course, Lane, MODES, Mode, Sample},
    },
    guards::{Built, Guard, PLAIN, VARIANTS, Variant},
    site::Way,
};

/// Spots that are compared with each other: a table of the report.
pub struct Comparison {
    pub name: &'static str,
    title: &'static str,
    ways: &'static [Way],
    modes: &'static [&'static str],
}

pub const COMPARISONS: &[Comparison] = &[
    Comparison {
        name: "virtual",
        title: "container to container, virtual address",
        ways: &[Way::Virtual],
        modes: &["udp", "udp-rr", "tcp-rr", "crr", "tcp-stream"],
    },
    Comparison {
        name: "published",
        title: "outside to container, published port",
        ways: &[Way::Published],
        modes: &["udp", "tcp-rr", "crr", "tcp-stream"],
    },
    Comparison {
        name: "masquerade",
        title: "container to outside, masquerade",
        ways: &[Way::Masquerade],
        modes: &["udp", "udp-rr", "tcp-rr", "crr", "tcp-stream"],
    },
    Comparison {
        name: "host",
        title: "host to container, published port",
        ways: &[Way::Host, Way::Localhost],
        modes: &["udp", "tcp-rr", "crr"],
    },
];

/// What netpol must reach: in which comparison and mode, how many times as fast as what.
const GOALS: &[(&str, &str, &str, &str, f64)] = &[
    ("virtual", "udp", "netpol-100", PLAIN, 1.05),
    ("virtual", "udp", "netpol-10000", "netpol-1", 0.97),
    ("virtual", "crr", "netpol-10000", "netpol-1", 0.95),
    ("published", "crr", "netpol-100", "iptables-100", 1.2),
    ("published", "crr", "netpol-100", "nftables-100", 1.2),
    ("published", "crr", "netpol-10000", "iptables-10000", 3.0),
    ("masquerade", "udp-rr", "netpol-100", "iptables-100", 1.2),
    ("masquerade", "tcp-rr", "netpol-100", "iptables-100", 1.2),
    ("masquerade", "crr", "netpol-100", "iptables-100", 1.2),
];

/// What is drawn.
const CHARTS: &[(&str, &str)] =
    &[("virtual", "udp"), ("published", "crr"), ("masquerade", "tcp-rr"), ("masquerade", "crr")];

/// The host asks itself.
const LOOPBACK: &str = "loopback";

/// Below this share a measurement is of something else than the path.
const DELIVERED: f64 = 0.99;

/// A row of a comparison: something that stands, and what is asked there.
struct Spot<'a> {
    comparison: &'static Comparison,
    name: &'static str,
    what: String,
    guard: Guard,
    built: &'a Built,
    course: Course<'a>,
}

impl Spot<'_> {
    fn tone(&self) -> Tone {
        match self.guard {
            Guard::Nobody => Tone::Reference,
            Guard::Netpol(..) => Tone::Ours,
            Guard::Iptables(_) | Guard::Nftables(_) => Tone::Others,
        }
    }
}

pub fn run(setting: &Setting) -> Result<Section> {
    // there is no ratio without the first
    let is_wanted = |variant: &&Variant| variant.name == PLAIN || setting.only.guard(variant.name);
    let wanted = VARIANTS.iter().filter(is_wanted).collect::<Vec<_>>();
    let progress = Progress::start("building what translates", wanted.len());
    let built = wanted
        .into_iter()
        .map(|variant| {
            let built = Built::new(variant, setting.sandbox, setting.binary).with_context(|| variant.what)?;
            progress.step(variant.what);
            Ok(built)
        })
        .collect::<Result<Vec<_>>>()?;
    progress.done();
    let wanted = COMPARISONS.iter().filter(|comparison| setting.only.comparison(comparison.name));
    let spots = wanted.flat_map(|comparison| spots(comparison, &built)).collect::<Vec<_>>();
    let rounds = measure(setting, &spots)?;
    Ok(describe(&spots, &rounds, setting))
}

fn spots<'a>(comparison: &'static Comparison, built: &'a [Built]) -> Vec<Spot<'a>> {
    let mut spots = Vec::new();
    for built in built {
        let (variant, ways) = (built.variant, comparison.ways);
        let spot = |name, what, course| Spot { comparison, name, what, guard: variant.guard, built, course };
        spots.extend(ways.iter().filter(|way| variant.ways.contains(way)).map(|way| {
            let (name, more) =
                if *way == Way::Localhost { ("netpol-localhost", ", localhost") } else { (variant.name, "") };
            spot(name, format!("{}{more}", variant.what), built.course(*way))
        }));
        if variant.name == PLAIN && ways.contains(&Way::Localhost) {
            spots.push(spot(LOOPBACK, "nobody, server on the host itself".to_owned(), built.site.loopback()));
        }
    }
    spots
}

/// Those that are neither left out of this comparison nor by `--only`.
fn modes(comparison: &'static Comparison, setting: &Setting) -> Vec<&'static Mode> {
    let wanted = |mode: &&Mode| comparison.modes.contains(&mode.name) && setting.only.mode(mode.name);
    MODES.iter().filter(wanted).collect()
}

/// Samples of one round, by comparison, mode and spot.
type Round = BTreeMap<(&'static str, &'static str, &'static str), Sample>;

fn measure(setting: &Setting, spots: &[Spot]) -> Result<Vec<Round>> {
    let each = |comparison: &'static Comparison| {
        let count = spots.iter().filter(|spot| spot.comparison.name == comparison.name).count();
        count * modes(comparison, setting).len()
    };
    let steps = COMPARISONS.iter().map(each).sum::<usize>() * setting.rounds;
    let progress = Progress::start("measuring translations", steps);
    let mut shuffle = Shuffle::seeded(std::process::id().into());
    let mut rounds = Vec::new();
    for number in 1..=setting.rounds {
        let mut round = Round::new();
        for comparison in COMPARISONS {
            let mut order = spots.iter().filter(|spot| spot.comparison.name == comparison.name).collect::<Vec<_>>();
            for mode in modes(comparison, setting) {
                shuffle.shuffle(&mut order);
                for spot in &order {
                    let what = || format!("{}, {}: {}", comparison.name, mode.name, spot.what);
                    let sample = (mode.run)(&lane(setting, spot)).with_context(what)?;
                    round.insert((comparison.name, mode.name, spot.name), sample);
                    progress.step(&format!("round {number} of {}: {}", setting.rounds, what()));
                }
            }
        }
        rounds.push(round);
    }
    progress.done();
    Ok(rounds)
}

fn lane<'a>(setting: &Setting<'a>, spot: &Spot<'a>) -> Lane<'a> {
    let &Setting { cpus, time, timing, .. } = setting;
    // No mode here opens more flows than netpol's limit allows.
    Lane { course: spot.course, topology: &spot.built.site.topology, cpus, time, pause: Duration::ZERO, timing }
}

/// How many times as fast as `other` in each round, and the cost.
fn ratio(
    rounds: &[Round],
    (comparison, mode): (&'static str, &'static str),
    ours: &'static str,
    other: &'static str,
) -> Option<Spread> {
    let cost = |round: &Round, spot| Some(round.get(&(comparison, mode, spot))?.cost());
    let ratios = rounds.iter().filter_map(|round| Some(cost(round, other)? / cost(round, ours)?));
    Spread::of(&ratios.collect::<Vec<_>>())
}

fn cost(rounds: &[Round], key: (&'static str, &'static str, &'static str)) -> Option<Spread> {
    Spread::of(&rounds.iter().filter_map(|round| Some(round.get(&key)?.cost())).collect::<Vec<_>>())
}

/// The worst share of all rounds.
fn delivered(rounds: &[Round], key: (&'static str, &'static str, &'static str)) -> Option<f64> {
    rounds.iter().filter_map(|round| round.get(&key)?.delivered).min_by(f64::total_cmp)
}

fn describe(spots: &[Spot], rounds: &[Round], setting: &Setting) -> Section {
    let mut section = Section { title: "What is translated", ..Section::default() };
    section.notes.push(format!(
        "The same two containers with an uplink and a machine behind it. CPU time per operation as above, as a ratio to the \
         same traffic between the same ends where nobody translates: above 1 is faster. Median of {} rounds of {} ms, in \
         brackets the middle half; `nobody again` is a second host without translation: how far it is from 1 is noise.",
        setting.rounds,
        setting.time.as_millis()
    ));
    section.notes.push(
        "netpol also enforces a policy about both containers. iptables has one rule for each service, the one that is asked \
         last; nftables a map. Both need `bridge-nf-call-iptables`, because the answers of a service on one's own bridge \
         would pass conntrack by; netpol and plain forwarding are measured without. On the host itself, netpol translates at \
         the socket: what is compared is what is left to do for each packet."
            .to_owned(),
    );
    for comparison in COMPARISONS {
        let rows = spots.iter().filter(|spot| spot.comparison.name == comparison.name).collect::<Vec<_>>();
        if rows.is_empty() {
            continue;
        }
        section.tables.push(table(comparison, &rows, rounds, setting));
    }
    section.notes.extend(losses(spots, rounds));
    section.goals = goals(rounds);
    section.samples = samples(rounds);
    section.charts = CHARTS.iter().filter_map(|chart| self::chart(*chart, spots, rounds)).collect();
    section
}

/// The first row says what an operation costs where nobody translates.
fn table(comparison: &'static Comparison, spots: &[&Spot], rounds: &[Round], setting: &Setting) -> Table {
    let modes = modes(comparison, setting);
    let mut table = Table { header: vec![comparison.title.to_owned()], rows: Vec::new() };
    table.header.extend(modes.iter().map(|mode| mode.name.to_owned()));
    for spot in spots {
        let cells = modes.iter().map(|mode| {
            let key = (comparison.name, mode.name, spot.name);
            if spot.name == PLAIN {
                return cost(rounds, key).map_or(String::new(), |cost| Unit::Nanoseconds.format(cost.median));
            }
            let mark = if delivered(rounds, key).is_some_and(|share| share < DELIVERED) { "*" } else { "" };
            let ratio = ratio(rounds, (comparison.name, mode.name), spot.name, PLAIN);
            ratio.map_or(String::new(), |Spread { median, low, high, .. }| {
                format!("{mark}{median:.2} ({low:.2}-{high:.2})")
            })
        });
        table.rows.push([spot.what.clone()].into_iter().chain(cells).collect());
    }
    table
}

fn losses(spots: &[Spot], rounds: &[Round]) -> Option<String> {
    let mut lost = Vec::new();
    for spot in spots {
        for mode in spot.comparison.modes {
            let share = delivered(rounds, (spot.comparison.name, mode, spot.name));
            if let Some(share) = share.filter(|share| *share < DELIVERED) {
                let (title, percent) = (spot.comparison.title, thousands(share * 100.0));
                lost.push(format!("{mode}, {title}, {} {percent} %", spot.what));
            }
        }
    }
    (!lost.is_empty()).then(|| format!("\\* Not all packets came through. Arrived: {}.", lost.join("; ")))
}

fn goals(rounds: &[Round]) -> Vec<Goal> {
    let goal =
        |&(comparison, mode, ours, other, least): &(&'static str, &'static str, &'static str, &'static str, f64)| {
            let measured = ratio(rounds, (comparison, mode), ours, other)?;
            let what = format!("{comparison}, {mode}: {ours} against {other}");
            Some(Goal { what, bound: Bound::AtLeast(least), unit: Unit::Ratio, measured })
        };
    GOALS.iter().filter_map(goal).collect()
}

fn samples(rounds: &[Round]) -> Vec<Value> {
    let of = |(number, round): (usize, &Round)| {
        let sample = |((comparison, mode, spot), sample): (&(&str, &str, &str), &Sample)| {
            json!({
                "round": number, "comparison": comparison, "mode": mode, "path": spot, "operations": sample.operations,
                "nanoseconds": sample.cost(), "delivered": sample.delivered,
            })
        };
        round.iter().map(sample).collect::<Vec<_>>()
    };
    rounds.iter().enumerate().flat_map(of).collect()
}

fn chart((comparison, mode): (&'static str, &'static str), spots: &[Spot], rounds: &[Round]) -> Option<Chart> {
    let rows = spots.iter().filter(|spot| spot.comparison.name == comparison);
    let bars = rows.map(|spot| {
        let value = ratio(rounds, (comparison, mode), spot.name, PLAIN)?.median;
        Some(Bar { label: spot.what.clone(), value, tone: spot.tone() })
    });
    let bars = bars.collect::<Option<Vec<_>>>().filter(|bars| !bars.is_empty())?;
    let title = COMPARISONS.iter().find(|known| known.name == comparison)?.title;
    Some(Chart { title: format!("{mode}: {title}"), reference: 1.0, bars })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(nanoseconds: u64) -> Sample {
        Sample { spent: Duration::from_nanos(nanoseconds * 100), operations: 100, ..Sample::NOTHING }
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        let round = |plain: u64, ours: u64| {
            Round::from([(("virtual", "udp", PLAIN), sample(plain)), (("virtual", "udp", "netpol-100"), sample(ours))])
        };
        let goals = goals(&[round(1_100, 1_000), round(2_200, 2_000)]);
        assert_eq!(goals.len(), 1, "what was not measured has no goal");
        assert_eq!(goals[0].measured, Spread { median: 1.1, low: 1.1, high: 1.1, count: 2 });
        assert!(goals[0].met());
    }

    #[test]
    fn what_is_wanted_and_drawn_is_measured() {
        let known = |comparison: &str, mode: &str| {
            let comparison = COMPARISONS.iter().find(|known| known.name == comparison);
            comparison.filter(|comparison| comparison.modes.contains(&mode))
        };
        for (comparison, mode, ours, other, _) in GOALS {
            let comparison = known(comparison, mode).unwrap_or_else(|| panic!("{comparison}, {mode}"));
            for name in [ours, other] {
                let variant = VARIANTS.iter().find(|variant| variant.name == *name).expect("a variant");
                assert!(variant.ways.iter().any(|way| comparison.ways.contains(way)), "{name} in {}", comparison.name);
            }
        }
        assert!(CHARTS.iter().all(|(comparison, mode)| known(comparison, mode).is_some()));
    }

    #[test]
    fn modes_are_known() {
        for mode in COMPARISONS.iter().flat_map(|comparison| comparison.modes) {
            assert!(MODES.iter().any(|known| known.name == *mode), "{mode}");
        }
    }
}
