//! One packet under BPF_PROG_TEST_RUN: nanoseconds above a classifier that does nothing.
//!
//! Hundreds of thousands of packets run in one call. Where each must be of another flow, [`fresh`](super::fresh) gives it
//! other ports, in front of the empty classifier as well: a few hundred flows that are forgotten between the calls, or, in
//! a flood, so many that the tables are full and far larger than the caches.
//!
//! Many established flows run one packet per call, so the caches are colder and the clock itself counts; the empty
//! classifier, called in the same way, takes the clock out again.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use netpol_common::{
    denial,
    drops::Side,
    flow::{FlowKey, Place, PortPair},
    table::{ALL, Block, FLOWS as ROOM, HashKeys, Home, Slot},
    tables::IfIndex,
    wire::{Addr4, PortBe, Protocol},
};

use super::{
    Setting,
    documents::{self, DENIED_PORT, Size},
    fresh::{FIRST_CLIENT, Fresh, Range},
    netpol::Instance,
    progress::Progress,
    report::{Bound, Goal, Section, Table, Unit, thousands},
    stats::{Spread, at_rest, median},
    testrun::{Arrival, DROP, Map, Outcome, Program, STRETCHES, ifindex},
    topology::{Families, Topology},
    traffic::{Cpu, PORT, PORTS},
};
use crate::frame::{Ends, Ports, TcpFlags, Transport, frame};

/// The client's port of flows that stay.
const CLIENT_PORT: u16 = 40_000;
/// Below [`DENIED_PORT`], so many ports are denied as well: for denials that nobody remembers.
const DENIED_PORTS: u16 = 1_000;
/// Flows whose memory stays in the caches.
const FEW_FLOWS: u16 = 256;
/// Clients of a flood.
const MANY_CLIENTS: u16 = 32_768;
/// More flows than are remembered.
const MOST_FLOWS: u32 = 300_000;

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
    /// Where flows and denials are remembered.
    memory: [Map; 2],
    /// The secret of the table of flows.
    keys: HashKeys,
    /// Where they are called.
    cpu: &'a Cpu,
    /// Of the host's ends.
    ports: [u32; 2],
    /// Connections of [`Site::open_flows`]: none comes twice.
    opened: AtomicU64,
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
        "`from_workload` under BPF_PROG_TEST_RUN, nanoseconds above a classifier that does nothing. Each round measures \
         in many short stretches and takes what the fastest tenth of them need at most: other work on the machine only ever \
         makes one slower. Median of {} rounds, in brackets the middle half. Hot caches: what many flows cost is in the last \
         table and in `flows-64k` above.",
        setting.rounds
    ));
    let yardstick = site.inside(|| site.yardstick(setting.rounds))?;
    section.notes.push(format!(
        "How fast the machine is at this moment: one lookup in a small LRU hash, and nothing else, takes {yardstick:.0} ns \
         above the empty classifier. The limits in nanoseconds are those of a machine at rest."
    ));
    section.notes.push(
        "The sizes are published one after the other to the same classifiers in each round, because two copies of a \
         program differ by more than what is looked for."
            .to_owned(),
    );
    let figures = measure(setting, &site, |size| publish(&instance, &topology, size))?;
    section.tables.push(table(&figures));
    section.goals = goals(&figures);
    section.tables.push(flood(setting, &site)?);
    section.tables.push(many_flows(setting, &site)?);
    Ok(section)
}

fn publish(instance: &Instance, topology: &Topology, size: Size) -> Result<()> {
    instance.write(&(documents::endpoints(topology) + &documents::pair() + &documents::bulk(size)))?;
    // a flood of new flows is what is measured
    instance.load(&["--unlimited-flows"]).with_context(|| format!("{} policy entries", size.entries()))?;
    Ok(())
}

impl<'a> Site<'a> {
    pub fn new(setting: &Setting<'a>, instance: &Instance, topology: &'a Topology) -> Result<Self> {
        let (a, b) = topology.pair();
        let pinned = |name| Map::pinned(&instance.map(name));
        let seed = pinned("SEED")?.get(0, 0_u64)?;
        let site = Self {
            topology,
            keys: HashKeys::of(seed),
            program: Program::pinned(&instance.program("from_workload"))?,
            empty: Program::empty()?,
            memory: [pinned("FLOWS4")?, pinned("DENIALS4")?],
            cpu: setting.cpus.last().context("no CPU")?,
            opened: AtomicU64::new(0),
            ports: [ifindex(&topology.host, &a.host_end())?, ifindex(&topology.host, &b.host_end())?],
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

    /// Nanoseconds of one lookup in an LRU hash.
    fn yardstick(&self, rounds: usize) -> Result<f64> {
        const REPEAT: u32 = 20_000;
        let (lookup, packet, arrival) = (Program::lookup()?, self.packet(Case::EstablishedUdp4), self.arrival(0));
        let measured = (0..rounds).map(|_| {
            let [empty, full] = Program::both([&self.empty, &lookup], &packet, &arrival, REPEAT)?;
            Ok(full.nanoseconds - empty.nanoseconds)
        });
        median(&measured.collect::<Result<Vec<_>>>()?).context("no rounds")
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

    /// A packet of the case. Its ports are still to be given where each packet must have its own.
    fn packet(&self, case: Case) -> Vec<u8> {
        let (transport, ports) = match case {
            Case::EstablishedTcp4 | Case::EstablishedTcp6 => (Transport::Tcp(TcpFlags::ACK), [CLIENT_PORT, PORT]),
            Case::EstablishedUdp4 | Case::NewFlow | Case::FirstDenial => (Transport::Udp, [CLIENT_PORT, PORT]),
            Case::RememberedDenial => (Transport::Udp, [CLIENT_PORT, DENIED_PORT]),
        };
        frame(self.ends(case), transport, ports)
    }

    /// Nanoseconds above the empty classifier.
    pub fn cost(&self, case: Case, quick: bool) -> Result<f64> {
        let repeat = if quick { 50_000 } else { 200_000 };
        if matches!(case, Case::NewFlow | Case::FirstDenial) {
            return self.first(case, repeat / u32::from(FEW_FLOWS));
        }
        let (packet, arrival) = (self.packet(case), self.arrival(0));
        // A denial is remembered from the second packet on.
        self.program.run(&packet, &arrival, 10)?;
        let programs = [&self.empty, &self.program];
        difference(case, Program::both(programs, &packet, &arrival, repeat / STRETCHES)?)
    }

    /// Of the first packets of a few flows, which are forgotten before each call.
    fn first(&self, case: Case, calls: u32) -> Result<f64> {
        let port = if case.is_denied() { DENIED_PORT } else { PORT };
        let range = Range { clients: FEW_FLOWS, first: port, count: 1 };
        let [empty, full] = [Fresh::of(&self.empty, range)?, Fresh::of(&self.program, range)?];
        let (packet, arrival) = (self.packet(case), self.arrival(0));
        let mut costs = Vec::new();
        for _ in 0..calls {
            (0..FEW_FLOWS).try_for_each(|client| self.forget([FIRST_CLIENT + client, port]))?;
            let [empty, full] = [&empty, &full].map(|program| program.run(&packet, &arrival, FEW_FLOWS.into()));
            costs.push(difference(case, [empty?, full?])?);
        }
        at_rest(&costs).context("no calls")
    }

    /// Opens as many connections.
    pub fn open_flows(&self, count: u32) -> Result<()> {
        let range = Range { clients: MANY_CLIENTS, first: PORT, count: PORTS };
        let program = Fresh::of(&self.program, range)?;
        program.skip(self.opened.fetch_add(count.into(), Relaxed))?;
        let outcome = program.run(&self.packet(Case::NewFlow), &self.arrival(0), count)?;
        difference(Case::NewFlow, [Outcome::NOTHING, outcome])?;
        Ok(())
    }

    /// Forgets a UDP flow over IPv4, allowed or denied, in both directions.
    fn forget(&self, [client, server]: Ports) -> Result<()> {
        let (a, b) = self.topology.pair();
        let place = |end: usize| Place::new(IfIndex(self.ports[end]), Side::From);
        let key = FlowKey::<Addr4> {
            source: a.v4().into(),
            destination: b.v4().into(),
            ports: PortPair::new(PortBe::from_host(client), PortBe::from_host(server)),
            place: place(0),
            protocol: Protocol::UDP.into(),
        };
        let [flows, denials] = &self.memory;
        for key in [key, key.reversed(place(1))] {
            let home = Home::of(key.keyed_hash(|number| self.keys.0[number]), ROOM / ALL as u32);
            let mut block = flows.get(home.block, Block::<Addr4>::EMPTY)?;
            if let Some(at) = block.find(&key, &home) {
                (block.tags[at], block.slots[at]) = (0, Slot::EMPTY);
                flows.set(home.block, &block)?;
            }
        }
        denial::places(&key).into_iter().try_for_each(|place| denials.set(place, &Slot::<Addr4>::EMPTY))
    }

    /// Of first packets, when more flows came before them than are remembered.
    fn flood(&self, case: Case, repeat: u32) -> Result<f64> {
        let (first, count) = if case.is_denied() { (DENIED_PORT - DENIED_PORTS, DENIED_PORTS) } else { (PORT, PORTS) };
        let range = Range { clients: MANY_CLIENTS, first, count };
        let [empty, full] = [Fresh::of(&self.empty, range)?, Fresh::of(&self.program, range)?];
        let (packet, arrival) = (self.packet(case), self.arrival(0));
        full.run(&packet, &arrival, MOST_FLOWS)?;
        difference(case, [empty.run(&packet, &arrival, repeat)?, full.run(&packet, &arrival, repeat)?])
    }

    fn cold(&self, packets: impl Iterator<Item = Vec<u8>>) -> Result<f64> {
        let arrival = self.arrival(0);
        // One after the other: programs that take turns would find the CPU's caches with the other's code.
        let packets = packets.collect::<Vec<_>>();
        let alone = |packet: &Vec<u8>| Ok(self.empty.run(packet, &arrival, 1)?.nanoseconds);
        let empty = packets.iter().map(alone).collect::<Result<Vec<_>>>()?;
        let (mut full, mut odd) = (Vec::new(), 0);
        for packet in &packets {
            let outcome = self.program.run(packet, &arrival, 1)?;
            if outcome.action != DROP {
                full.push(outcome.nanoseconds);
            } else {
                odd += 1;
                // Too many new flows for a while, perhaps.
                thread::sleep(Duration::from_millis(1));
            }
        }
        if odd > full.len() {
            bail!("the classifier dropped {odd} of {} packets that are allowed", odd + full.len());
        }
        let middle = |values: &[f64]| median(values).context("no packets");
        Ok(middle(&full)? - middle(&empty)?)
    }
}

fn difference(case: Case, [empty, full]: [Outcome; 2]) -> Result<f64> {
    if (full.action == DROP) != case.is_denied() {
        bail!("the classifier returned {} for a packet that is {}", full.action, word(case.is_denied()));
    }
    Ok(full.nanoseconds - empty.nanoseconds)
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

/// First packets of ever more flows.
fn flood(setting: &Setting, site: &Site) -> Result<Table> {
    let mut table = Table::new(["flood of", "one packet of it, ns above an empty classifier"]);
    let repeat = if setting.quick { 50_000 } else { 500_000 };
    let progress = Progress::start("measuring floods", 2);
    for (case, what) in [(Case::NewFlow, "new UDP flows"), (Case::FirstDenial, "first denials")] {
        let measured =
            (0..setting.rounds).map(|_| site.inside(|| site.flood(case, repeat))).collect::<Result<Vec<_>>>()?;
        table.rows.push(vec![what.to_owned(), Spread::of(&measured).map_or(String::new(), cell)]);
        progress.step(what);
    }
    progress.done();
    Ok(table)
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
                site.cold(order.map(flow))
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
