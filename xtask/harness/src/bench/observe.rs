//! What observing costs: connections with an observer against the same without, and one packet with and without.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result};

use super::{
    Setting,
    documents::{self, Size},
    netpol::{Instance, Observing},
    packets::{Case, Site, cell},
    progress::Progress,
    report::{Bound, Goal, Section, Table, Unit},
    stats::{Shuffle, Spread},
    topology::{Families, Topology},
    traffic::{Course, Lane, MODES, Mode},
};

/// Who observes meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Audience {
    Nobody,
    /// Again: how far it is from the first is noise.
    NobodyAgain,
    NewFlows,
    Everything,
}

impl Audience {
    const ALL: [Self; 4] = [Self::Nobody, Self::NobodyAgain, Self::NewFlows, Self::Everything];

    fn what(self) -> &'static str {
        match self {
            Self::Nobody => "nobody observes",
            Self::NobodyAgain => "nobody again",
            Self::NewFlows => "`observe --type new`",
            Self::Everything => "`observe`",
        }
    }

    /// What is observed; `None`: nobody does.
    fn arguments(self) -> Option<&'static [&'static str]> {
        match self {
            Self::Nobody | Self::NobodyAgain => None,
            Self::NewFlows => Some(&["--type", "new"]),
            Self::Everything => Some(&[]),
        }
    }
}

/// The kinds of traffic that make events.
const TRAFFIC: [&str; 2] = ["crr", "udp-new"];
/// One observer of new flows costs at most this share of connections per second.
const GOAL: (&str, Audience, f64) = ("crr", Audience::NewFlows, 0.98);
/// Packets that make no event, or one of a kind that is told once a second.
const CASES: [Case; 3] = [Case::EstablishedTcp4, Case::EstablishedUdp4, Case::RememberedDenial];

/// Costs of each round.
type Figures<K> = BTreeMap<(K, Audience), Vec<f64>>;

pub fn run(setting: &Setting) -> Result<Section> {
    let topology = Topology::bridged(2, Families::Both)?;
    let instance = Instance::new(setting.sandbox, setting.binary, "observe", &topology.host)?;
    let policies = documents::pair() + &documents::bulk(Size { networks: 1, ports: 10 });
    instance.write(&(documents::endpoints(&topology) + &policies))?;
    // more flows in a second than a container may open
    instance.load(&["--unlimited-flows"])?;
    let modes: Vec<_> = MODES.iter().filter(|mode| TRAFFIC.contains(&mode.name)).collect();
    let (traffic, packets) = measure(setting, (&instance, &topology), &modes)?;

    let mut section = Section { title: "Observers", ..Section::default() };
    section.notes.push(format!(
        "CPU time of client and server per operation while somebody observes, as a ratio to nobody: above 1 is faster. \
         The observer, which writes to a file that is none, runs on another CPU where there is one: its own work is not \
         counted. Median of {} rounds of {} ms, in brackets the middle half. Below: nanoseconds of one packet above a \
         classifier that does nothing, under BPF_PROG_TEST_RUN.",
        setting.rounds,
        setting.time.as_millis()
    ));
    section.tables.push(of_traffic(&traffic, &modes));
    section.tables.push(of_packets(&packets));
    section.goals = goals(&traffic);
    Ok(section)
}

fn measure(
    setting: &Setting,
    (instance, topology): (&Instance, &Topology),
    modes: &[&'static Mode],
) -> Result<(Figures<&'static str>, Figures<Case>)> {
    let &Setting { cpus, time, timing, rounds, quick, .. } = setting;
    let site = Site::new(setting, instance, topology)?;
    let lane = Lane { course: Course::between(topology), topology, cpus, time, pause: Duration::ZERO, timing };
    let progress = Progress::start("measuring observers", rounds * Audience::ALL.len());
    let mut shuffle = Shuffle::seeded(std::process::id().into());
    let mut order = Audience::ALL;
    let (mut traffic, mut packets) = (Figures::new(), Figures::new());
    for _ in 0..rounds {
        shuffle.shuffle(&mut order);
        for audience in order {
            let observing = audience.arguments().map(|arguments| instance.observe(arguments, &cpus[0])).transpose()?;
            for mode in modes {
                let sample = (mode.run)(&lane).with_context(|| format!("{}, {}", mode.name, audience.what()))?;
                traffic.entry((mode.name, audience)).or_default().push(sample.cost());
            }
            for case in CASES {
                let cost = site.inside(|| site.cost(case, quick)).with_context(|| case.what())?;
                packets.entry((case, audience)).or_default().push(cost);
            }
            observing.map_or(Ok(()), Observing::end)?;
            progress.step(audience.what());
        }
    }
    progress.done();
    Ok((traffic, packets))
}

/// Above 1 is faster than without observers.
fn ratio(traffic: &Figures<&'static str>, mode: &'static str, audience: Audience) -> Option<Spread> {
    let (alone, observed) = (traffic.get(&(mode, Audience::Nobody))?, traffic.get(&(mode, audience))?);
    Spread::of(&alone.iter().zip(observed).map(|(alone, observed)| alone / observed).collect::<Vec<_>>())
}

fn of_traffic(traffic: &Figures<&'static str>, modes: &[&'static Mode]) -> Table {
    let mut table = Table { header: vec!["who observes".to_owned()], rows: Vec::new() };
    table.header.extend(modes.iter().map(|mode| mode.name.to_owned()));
    for audience in Audience::ALL {
        let cells = modes.iter().map(|mode| match ratio(traffic, mode.name, audience) {
            Some(Spread { median, low, high, .. }) => format!("{median:.3} ({low:.3}-{high:.3})"),
            None => String::new(),
        });
        table.rows.push([audience.what().to_owned()].into_iter().chain(cells).collect());
    }
    table
}

fn of_packets(packets: &Figures<Case>) -> Table {
    let mut table = Table { header: vec!["who observes".to_owned()], rows: Vec::new() };
    table.header.extend(CASES.map(|case| case.what().to_owned()));
    for audience in Audience::ALL {
        let spread = |case| Spread::of(packets.get(&(case, audience))?);
        let cells = CASES.map(|case| spread(case).map_or(String::new(), cell));
        table.rows.push([audience.what().to_owned()].into_iter().chain(cells).collect());
    }
    table
}

fn goals(traffic: &Figures<&'static str>) -> Vec<Goal> {
    let (mode, audience, least) = GOAL;
    let goal = ratio(traffic, mode, audience).map(|measured| Goal {
        what: format!("{mode} with one observer of new flows: ratio to none"),
        bound: Bound::AtLeast(least),
        unit: Unit::Ratio,
        measured,
    });
    goal.into_iter().collect()
}
