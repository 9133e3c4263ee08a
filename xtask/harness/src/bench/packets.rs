//! One packet under BPF_PROG_TEST_RUN: nanoseconds above a classifier that does nothing.
//!
//! A packet that may be repeated (an established flow, a denial that is remembered) runs hundreds of thousands of
//! times in one call. One that may not (each opens a flow) runs once per call, so the caches are colder and the clock
//! itself counts; the empty classifier, called in the same way, takes the clock out again.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::{
    Setting,
    documents::{self, DENIED_PORT, Size},
    netpol::Instance,
    progress::Progress,
    report::{Bound, Goal, Section, Table, Unit, thousands},
    stats::{Spread, median},
    testrun::{Arrival, DROP, Program, ifindex},
    topology::{Families, Topology},
    traffic::{Cpu, PORT, PORTS},
};
use crate::frame::{Ends, Ports, TcpFlags, Transport, frame};

/// The client's port of flows that stay.
const CLIENT_PORT: u16 = 40_000;
/// Below [`DENIED_PORT`], so many ports are denied as well: for denials that nobody remembers.
const DENIED_PORTS: u16 = 1_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Case {
    EstablishedTcp4,
    EstablishedTcp6,
    EstablishedUdp4,
    NewFlow,
    RememberedDenial,
    FirstDenial,
}

impl Case {
    const ALL: [Self; 6] = [
        Self::EstablishedTcp4,
        Self::EstablishedTcp6,
        Self::EstablishedUdp4,
        Self::NewFlow,
        Self::RememberedDenial,
        Self::FirstDenial,
    ];

    pub fn what(self) -> &'static str {
        match self {
            Self::EstablishedTcp4 => "established TCP, IPv4",
            Self::EstablishedTcp6 => "established TCP, IPv6",
            Self::EstablishedUdp4 => "established UDP, IPv4",
            Self::NewFlow => "new UDP flow",
            Self::RememberedDenial => "remembered denial",
            Self::FirstDenial => "first denial",
        }
    }

    /// At most so many nanoseconds above an empty classifier.
    fn budget(self) -> Option<f64> {
        match self {
            Self::EstablishedTcp4 | Self::RememberedDenial => Some(75.0),
            Self::EstablishedTcp6 => Some(95.0),
            Self::FirstDenial => Some(250.0),
            Self::EstablishedUdp4 | Self::NewFlow => None,
        }
    }

    /// At most so many times as much with 100,000 policy entries as with 10.
    fn growth(self) -> f64 {
        match self {
            Self::EstablishedTcp4 | Self::EstablishedTcp6 | Self::EstablishedUdp4 => 1.03,
            Self::NewFlow | Self::RememberedDenial | Self::FirstDenial => 1.15,
        }
    }

    fn is_denied(self) -> bool {
        matches!(self, Self::RememberedDenial | Self::FirstDenial)
    }
}

/// A loaded netpol whose classifiers are called.
pub struct Site<'a> {
    topology: &'a Topology,
    program: Program,
    empty: Program,
    /// Where they are called.
    cpu: &'a Cpu,
    /// Of the host's ends.
    ports: [u32; 2],
    /// Tuples used so far: none may come twice.
    used: AtomicU64,
}

/// First the entries grow, then the networks.
const SIZES: [Size; 5] = [
    Size { networks: 1, ports: 10 },
    Size { networks: 100, ports: 10 },
    Size { networks: 1_000, ports: 100 },
    Size { networks: 1_000, ports: 1 },
    Size { networks: 10_000, ports: 1 },
];
/// Those that the goals compare: 10 entries and 100,000.
const FEW: usize = 0;
const MANY: usize = 2;
const FLOWS: [u16; 3] = [1, 1_000, u16::MAX];

pub fn run(setting: &Setting) -> Result<Section> {
    let topology = Topology::bridged(2, Families::Both)?;
    let instance = Instance::new(setting.sandbox, setting.binary, "packets", &topology.host)?;
    publish(&instance, &topology, SIZES[0])?;
    let site = Site::new(setting, &instance, &topology)?;

    let mut section = Section { title: "One packet in the classifier", ..Section::default() };
    section.notes.push(format!(
        "`from_workload` under BPF_PROG_TEST_RUN, nanoseconds above a classifier that does nothing. Median of {} rounds, \
         in brackets the middle half. Hot caches: what many flows cost is in the last table and in `flows-64k` above.",
        setting.rounds
    ));
    section.notes.push(
        "The sizes are published one after the other to the same classifiers in each round, because two copies of a \
         program differ by more than what is looked for."
            .to_owned(),
    );
    let figures = measure(setting, &site, |size| publish(&instance, &topology, size))?;
    section.tables.push(table(&figures));
    section.goals = goals(&figures);
    section.tables.push(many_flows(setting, &site)?);
    Ok(section)
}

fn publish(instance: &Instance, topology: &Topology, size: Size) -> Result<()> {
    instance.write(&(documents::endpoints(topology) + &documents::pair() + &documents::bulk(size)))?;
    instance.load(&[]).with_context(|| format!("{} policy entries", size.entries()))?;
    Ok(())
}

impl<'a> Site<'a> {
    pub fn new(setting: &Setting<'a>, instance: &Instance, topology: &'a Topology) -> Result<Self> {
        let (a, b) = topology.pair();
        let site = Self {
            topology,
            program: Program::pinned(&instance.program("from_workload"))?,
            empty: Program::empty()?,
            cpu: setting.cpus.last().context("no CPU")?,
            ports: [ifindex(&topology.host, &a.host_end())?, ifindex(&topology.host, &b.host_end())?],
            used: AtomicU64::new(0),
        };
        site.inside(|| site.establish())?;
        Ok(site)
    }

    /// Runs `action` where the numbers of the interfaces mean these interfaces, on the CPU of the measurements.
    pub fn inside<T: Send>(&self, action: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.topology.host.run(|| {
            self.cpu.take()?;
            action()
        })
    }

    fn arrival(&self, end: usize) -> Arrival {
        Arrival { ifindex: self.ports[end], ingress_ifindex: self.ports[end] }
    }

    fn ends(&self, case: Case) -> Ends {
        let (a, b) = self.topology.pair();
        if case == Case::EstablishedTcp6 { Ends::v6(a, b) } else { Ends::v4(a, b) }
    }

    /// Opens the flows that the cases are about.
    fn establish(&self) -> Result<()> {
        for case in [Case::EstablishedTcp4, Case::EstablishedTcp6] {
            let (there, back) = ([CLIENT_PORT, PORT], [PORT, CLIENT_PORT]);
            let (ends, syn, reply) =
                (self.ends(case), Transport::Tcp(TcpFlags::SYN), Transport::Tcp(TcpFlags::SYN_ACK));
            self.pass(&frame(ends, syn, there), 0)?;
            self.pass(&frame(ends.reversed(), reply, back), 1)?;
            self.pass(&self.packet(case), 0)?;
        }
        let udp = self.ends(Case::EstablishedUdp4);
        self.pass(&self.packet(Case::EstablishedUdp4), 0)?;
        self.pass(&frame(udp.reversed(), Transport::Udp, [PORT, CLIENT_PORT]), 1)
    }

    /// Insists on the packet: new flows may be limited in number per second.
    fn pass(&self, packet: &[u8], end: usize) -> Result<()> {
        for _ in 0..200 {
            if self.program.run(packet, &self.arrival(end), 1)?.action != DROP {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(5));
        }
        bail!("the classifier drops a packet that the policy allows");
    }

    /// The next packet of the case.
    fn packet(&self, case: Case) -> Vec<u8> {
        let fresh = |first: u16, count: u16| -> Ports {
            let number = self.used.fetch_add(1, Relaxed);
            // The ports of the client first: CLIENT_PORT itself belongs to the flows that stay.
            let client = 1_024 + (number % u64::from(CLIENT_PORT - 1_024)) as u16;
            [client, first + (number / u64::from(CLIENT_PORT - 1_024) % u64::from(count)) as u16]
        };
        let (transport, ports) = match case {
            Case::EstablishedTcp4 | Case::EstablishedTcp6 => (Transport::Tcp(TcpFlags::ACK), [CLIENT_PORT, PORT]),
            Case::EstablishedUdp4 => (Transport::Udp, [CLIENT_PORT, PORT]),
            Case::NewFlow => (Transport::Udp, fresh(PORT, PORTS)),
            Case::RememberedDenial => (Transport::Udp, [CLIENT_PORT, DENIED_PORT]),
            Case::FirstDenial => (Transport::Udp, fresh(DENIED_PORT - DENIED_PORTS, DENIED_PORTS)),
        };
        frame(self.ends(case), transport, ports)
    }

    /// Nanoseconds above the empty classifier.
    pub fn cost(&self, case: Case, quick: bool) -> Result<f64> {
        match case {
            Case::NewFlow | Case::FirstDenial => {
                self.cold((0..if quick { 500 } else { 2_000 }).map(|_| self.packet(case)), case.is_denied())
            }
            _ => self.hot(&self.packet(case), case.is_denied(), if quick { 50_000 } else { 200_000 }),
        }
    }

    fn hot(&self, packet: &[u8], denied: bool, repeat: u32) -> Result<f64> {
        let arrival = self.arrival(0);
        // A denial is remembered from the second packet on.
        self.program.run(packet, &arrival, 10)?;
        let empty = self.empty.run(packet, &arrival, repeat)?;
        let full = self.program.run(packet, &arrival, repeat)?;
        if (full.action == DROP) != denied {
            bail!("the classifier returned {} for a packet that is {}", full.action, word(denied));
        }
        Ok(f64::from(full.nanoseconds) - f64::from(empty.nanoseconds))
    }

    fn cold(&self, packets: impl Iterator<Item = Vec<u8>>, denied: bool) -> Result<f64> {
        let arrival = self.arrival(0);
        // One after the other: programs that take turns would find the CPU's caches with the other's code.
        let packets = packets.collect::<Vec<_>>();
        let alone = |packet: &Vec<u8>| Ok(f64::from(self.empty.run(packet, &arrival, 1)?.nanoseconds));
        let empty = packets.iter().map(alone).collect::<Result<Vec<_>>>()?;
        let (mut full, mut odd) = (Vec::new(), 0);
        for packet in &packets {
            let outcome = self.program.run(packet, &arrival, 1)?;
            if (outcome.action == DROP) == denied {
                full.push(f64::from(outcome.nanoseconds));
            } else {
                odd += 1;
                // Too many new flows for a while, perhaps.
                thread::sleep(Duration::from_millis(1));
            }
        }
        if odd > full.len() {
            bail!("the classifier treated {odd} of {} packets as not {}", odd + full.len(), word(denied));
        }
        let middle = |values: &[f64]| median(values).context("no packets");
        Ok(middle(&full)? - middle(&empty)?)
    }
}

fn word(denied: bool) -> &'static str {
    if denied { "denied" } else { "allowed" }
}

/// Nanoseconds of each round, by case and place among the sizes.
type Figures = BTreeMap<(Case, usize), Vec<f64>>;

fn measure(setting: &Setting, site: &Site, publish: impl Fn(Size) -> Result<()>) -> Result<Figures> {
    let progress = Progress::start("measuring packets", setting.rounds * SIZES.len() * Case::ALL.len());
    let mut figures = Figures::new();
    for _ in 0..setting.rounds {
        for (place, size) in SIZES.into_iter().enumerate() {
            publish(size)?;
            for case in Case::ALL {
                let cost = site.inside(|| site.cost(case, setting.quick)).with_context(|| case.what())?;
                figures.entry((case, place)).or_default().push(cost);
                progress.step(case.what());
            }
        }
    }
    progress.done();
    Ok(figures)
}

fn spread(figures: &Figures, case: Case, size: usize) -> Option<Spread> {
    Spread::of(figures.get(&(case, size))?)
}

fn table(figures: &Figures) -> Table {
    let mut table = Table { header: vec!["packet".to_owned()], rows: Vec::new() };
    table.header.extend(SIZES.iter().map(|size| {
        format!("{} entries, {} networks", thousands(size.entries().into()), thousands(size.networks.into()))
    }));
    for case in Case::ALL {
        let cells = (0..SIZES.len()).map(|size| spread(figures, case, size).map_or(String::new(), cell));
        table.rows.push([case.what().to_owned()].into_iter().chain(cells).collect());
    }
    table
}

pub fn cell(Spread { median, low, high, .. }: Spread) -> String {
    format!("{median:.0} ({low:.0}-{high:.0})")
}

fn goals(figures: &Figures) -> Vec<Goal> {
    let mut goals = Vec::new();
    for case in Case::ALL {
        if let (Some(most), Some(measured)) = (case.budget(), spread(figures, case, FEW)) {
            let what = format!("{}: above an empty classifier", case.what());
            goals.push(Goal { what, bound: Bound::AtMost(most), unit: Unit::Nanoseconds, measured });
        }
    }
    for case in Case::ALL {
        let (Some(few), Some(many)) = (figures.get(&(case, FEW)), figures.get(&(case, MANY))) else { continue };
        let ratios = few.iter().zip(many).map(|(few, many)| many / few).collect::<Vec<_>>();
        let Some(measured) = Spread::of(&ratios) else { continue };
        let sizes = [MANY, FEW].map(|place| thousands(SIZES[place].entries().into()));
        let what = format!("{}: {} policy entries against {}", case.what(), sizes[0], sizes[1]);
        goals.push(Goal { what, bound: Bound::AtMost(case.growth()), unit: Unit::Ratio, measured });
    }
    goals
}

/// Established flows in an order that no cache foresees, one packet per call.
fn many_flows(setting: &Setting, site: &Site) -> Result<Table> {
    let mut table = Table::new(["UDP flows", "one packet of them, ns above an empty classifier"]);
    let progress = Progress::start("measuring many flows", FLOWS.len());
    for count in FLOWS {
        let measured = site.inside(|| {
            let flow = |number: u16| {
                frame(site.ends(Case::NewFlow), Transport::Udp, [1_024 + number % 32_768, PORT + number / 32_768])
            };
            (0..count).try_for_each(|number| site.pass(&flow(number), 0))?;
            let rounds = (0..setting.rounds).map(|_| {
                // A step without a common factor with the count visits them all, far from each other.
                let order = (0..u64::from(count.clamp(500, 5_000))).map(|i| (i * 40_503 % u64::from(count)) as u16);
                site.cold(order.map(flow), false)
            });
            rounds.collect::<Result<Vec<_>>>()
        })?;
        let spread = Spread::of(&measured).map_or(String::new(), cell);
        table.rows.push(vec![thousands(count.into()), spread]);
        progress.step("");
    }
    progress.done();
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sizes_are_those_of_the_goals() {
        assert_eq!([FEW, MANY].map(|place| SIZES[place].entries()), [10, 100_000]);
    }
}
