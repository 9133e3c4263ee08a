//! One translated packet under BPF_PROG_TEST_RUN: nanoseconds above a classifier that does nothing.
//!
//! A repeated call gets the packet as the last one left it, translated. So there are two services, each of which leads to
//! the other's address: a packet to one becomes a packet to the other and back again, and every call translates an
//! established flow. At an uplink nothing can be translated twice; there each call is one of its own, with colder caches,
//! and compared with the same call at a workload's interface.

use std::{collections::BTreeMap, thread, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    super::{
        Setting,
        documents::{NAMESPACE, endpoints},
        netpol::Instance,
        progress::Progress,
        report::{Bound, Goal, Section, Table, Unit, thousands},
        stats::{Spread, median},
        testrun::{Arrival, DROP, Program, STRETCHES, ifindex},
        topology::{BRIDGE, Families},
        traffic::{Cpu, PORT},
    },
    documents::{self, elsewhere, slice},
    site::{BRIDGE_MAC, HOST, HOST_MAC, OUTSIDE, OUTSIDE_MAC, PUBLISHED, Site, UPLINK},
};
use crate::frame::{Ends, Ports, TcpFlags, Transport, frame};

/// The two services that lead to each other.
const HERE: [&str; 2] = ["10.98.0.1", "fd98::1"];
const THERE: [&str; 2] = ["10.98.0.2", "fd98::2"];
const CLIENT_PORT: u16 = 40_000;
/// How many idle services stand beside them.
const SERVICES: [u32; 3] = [1, 100, 10_000];
const FEW: usize = 0;
const MANY: usize = SERVICES.len() - 1;
/// The most that an established translated packet may cost.
const BUDGET: f64 = 110.0;
/// The most that it may cost with 10,000 services, relative to one.
const GROWTH: f64 = 1.03;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Case {
    Udp4,
    Tcp4,
    Udp6,
    Tcp6,
}

impl Case {
    const ALL: [Self; 4] = [Self::Udp4, Self::Tcp4, Self::Udp6, Self::Tcp6];

    fn what(self) -> &'static str {
        match self {
            Self::Udp4 => "established UDP, IPv4, translated",
            Self::Tcp4 => "established TCP, IPv4, translated",
            Self::Udp6 => "established UDP, IPv6, translated",
            Self::Tcp6 => "established TCP, IPv6, translated",
        }
    }

    fn family(self) -> usize {
        usize::from(matches!(self, Self::Udp6 | Self::Tcp6))
    }

    fn transport(self) -> Transport {
        if matches!(self, Self::Udp4 | Self::Udp6) { Transport::Udp } else { Transport::Tcp(TcpFlags::ACK) }
    }
}

/// What a call of its own is made with, for hooks at which a packet is translated once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Single {
    Plain,
    Service,
    Masquerade,
    Published,
}

impl Single {
    const ALL: [Self; 4] = [Self::Plain, Self::Service, Self::Masquerade, Self::Published];

    fn what(self) -> &'static str {
        match self {
            Self::Plain => "from_workload, not translated",
            Self::Service => "from_workload, to a service",
            Self::Masquerade => "to_uplink, masqueraded",
            Self::Published => "from_uplink, to a published port",
        }
    }
}

/// A loaded netpol whose classifiers are called.
struct Bench<'a> {
    site: &'a Site,
    cpu: &'a Cpu,
    empty: Program,
    from_workload: Program,
    to_workload: Program,
    from_uplink: Program,
    to_uplink: Program,
    /// Numbers of the first container's host end, of the bridge, of the uplink.
    workload: u32,
    bridge: u32,
    uplink: u32,
}

pub fn run(setting: &Setting) -> Result<Section> {
    let site = Site::new(Families::Both)?;
    let instance = Instance::new(setting.sandbox, setting.binary, "nat-packets", &site.topology.host)?;
    publish(&instance, &site, SERVICES[FEW])?;
    let bench = Bench::new(setting, &instance, &site)?;
    let progress = Progress::start("measuring translated packets", setting.rounds * (SERVICES.len() + 1));
    let (mut hot, mut single) = (BTreeMap::<_, Vec<f64>>::new(), BTreeMap::<_, Vec<f64>>::new());
    for _ in 0..setting.rounds {
        for (place, services) in SERVICES.into_iter().enumerate() {
            publish(&instance, &site, services)?;
            for case in Case::ALL {
                let cost = bench.inside(|| bench.hot(case, setting.quick)).with_context(|| case.what())?;
                hot.entry((case, place)).or_default().push(cost);
            }
            progress.step(&format!("{services} services"));
        }
        for case in Single::ALL {
            let cost = bench.inside(|| bench.single(case, setting.quick)).with_context(|| case.what())?;
            single.entry(case).or_default().push(cost);
        }
        progress.step("the uplink");
    }
    progress.done();
    Ok(describe(&hot, &single, setting))
}

/// The services that lead to each other, for a protocol each, and those of the paths.
fn publish(instance: &Instance, site: &Site, count: u32) -> Result<()> {
    let mut text = endpoints(&site.topology) + &documents::pool() + &documents::services(count) + &policy();
    for protocol in ["TCP", "UDP"] {
        for (name, at, to) in [("here", HERE, THERE), ("there", THERE, HERE)] {
            let name = format!("{name}-{}", protocol.to_lowercase());
            text += &elsewhere(&name, &at, protocol, (PORT, PORT));
            text += &to.iter().map(|to| slice(&name, 0, protocol, PORT, &[to])).collect::<String>();
        }
    }
    instance.write(&text)?;
    instance.load(&["--uplink", UPLINK]).with_context(|| format!("{count} services"))?;
    Ok(())
}

/// Both containers are isolated, and may do what is measured.
fn policy() -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: both, namespace: {NAMESPACE}}}\n\
         spec: {{podSelector: {{}}, policyTypes: [Ingress, Egress], ingress: [{{}}], egress: [{{}}]}}\n"
    )
}

impl<'a> Bench<'a> {
    fn new(setting: &Setting<'a>, instance: &Instance, site: &'a Site) -> Result<Self> {
        let program = |name| Program::pinned(&instance.program(name));
        let host = &site.topology.host;
        let bench = Self {
            site,
            cpu: setting.cpus.last().context("no CPU")?,
            empty: Program::empty()?,
            from_workload: program("from_workload")?,
            to_workload: program("to_workload")?,
            from_uplink: program("from_uplink")?,
            to_uplink: program("to_uplink")?,
            workload: ifindex(host, &site.topology.workloads[0].host_end())?,
            bridge: ifindex(host, BRIDGE)?,
            uplink: ifindex(host, UPLINK)?,
        };
        bench.inside(|| {
            Case::ALL.into_iter().try_for_each(|case| bench.establish(case).with_context(|| case.what()))?;
            Single::ALL.into_iter().try_for_each(|case| bench.establish_single(case).with_context(|| case.what()))
        })?;
        Ok(bench)
    }

    /// Runs `action` where the numbers of the interfaces mean these interfaces, on the CPU of the measurements.
    fn inside<T: Send>(&self, action: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.site.topology.host.run(|| {
            self.cpu.take()?;
            action()
        })
    }

    fn sent(&self) -> Arrival {
        Arrival { ifindex: self.workload, ingress_ifindex: self.workload }
    }

    /// From the first container to a service, by way of its gateway.
    fn ends(&self, to: &str) -> Result<Ends> {
        let (a, _) = self.site.topology.pair();
        let to = to.parse()?;
        let own = if matches!(to, std::net::IpAddr::V4(_)) { a.v4().into() } else { a.v6().into() };
        Ok(Ends { macs: [a.mac(), BRIDGE_MAC], addresses: [own, to] })
    }

    /// Opens both flows of a case, answers included; then a packet must come back to where it began.
    fn establish(&self, case: Case) -> Result<()> {
        let (family, ports) = (case.family(), [CLIENT_PORT, PORT]);
        for (asked, answers) in [(HERE, THERE), (THERE, HERE)] {
            let (asked, answers) = (self.ends(asked[family])?, self.ends(answers[family])?);
            let (first, answer) = match case.transport() {
                Transport::Udp => (Transport::Udp, Transport::Udp),
                Transport::Tcp(_) => (Transport::Tcp(TcpFlags::SYN), Transport::Tcp(TcpFlags::SYN_ACK)),
            };
            pass(&self.from_workload, &frame(asked, first, ports), &self.sent())?;
            let back = Arrival { ifindex: self.workload, ingress_ifindex: self.bridge };
            pass(&self.to_workload, &frame(answers.reversed(), answer, [PORT, CLIENT_PORT]), &back)?;
        }
        self.confirm(case)
    }

    /// A measurement of a translation that does not happen would be a fine one.
    fn confirm(&self, case: Case) -> Result<()> {
        let packet = self.packet(case)?;
        let once = self.from_workload.rewritten(&packet, &self.sent(), 1)?;
        let twice = self.from_workload.rewritten(&packet, &self.sent(), 2)?;
        ensure!(once != packet && twice == packet, "a packet is not translated there and back");
        Ok(())
    }

    fn packet(&self, case: Case) -> Result<Vec<u8>> {
        Ok(frame(self.ends(HERE[case.family()])?, case.transport(), [CLIENT_PORT, PORT]))
    }

    /// Nanoseconds above the empty classifier, caches hot.
    fn hot(&self, case: Case, quick: bool) -> Result<f64> {
        // An even number: the flows are looked at again every five seconds, and after a publication.
        self.confirm(case)?;
        let (packet, arrival, repeat) = (self.packet(case)?, self.sent(), if quick { 50_000 } else { 200_000 });
        let programs = [&self.empty, &self.from_workload];
        let [empty, full] = Program::both(programs, &packet, &arrival, repeat / STRETCHES)?;
        if full.action == DROP {
            bail!("the classifier drops a packet that the policy allows");
        }
        Ok(full.nanoseconds - empty.nanoseconds)
    }

    /// A packet of each hook, and how it arrives there.
    fn one(&self, case: Single) -> Result<(&Program, Vec<u8>, Arrival)> {
        let (_, b) = self.site.topology.pair();
        let udp = |ends, ports: Ports| frame(ends, Transport::Udp, ports);
        let out = Arrival { ifindex: self.uplink, ingress_ifindex: self.bridge };
        let come = Arrival { ifindex: self.uplink, ingress_ifindex: self.uplink };
        let outside = OUTSIDE.to_string();
        Ok(match case {
            Single::Plain => {
                let ends = Ends { macs: [self.ends(&outside)?.macs[0], b.mac()], ..self.ends(&b.v4().to_string())? };
                (&self.from_workload, udp(ends, [CLIENT_PORT, PORT]), self.sent())
            }
            Single::Service => (&self.from_workload, self.packet(Case::Udp4)?, self.sent()),
            Single::Masquerade => {
                let ends = Ends { macs: [HOST_MAC, OUTSIDE_MAC], ..self.ends(&outside)? };
                (&self.to_uplink, udp(ends, [CLIENT_PORT, PORT]), out)
            }
            Single::Published => {
                let ends = Ends { macs: [OUTSIDE_MAC, HOST_MAC], addresses: [OUTSIDE.into(), HOST.into()] };
                (&self.from_uplink, udp(ends, [CLIENT_PORT, PUBLISHED]), come)
            }
        })
    }

    /// The packet and its answer.
    fn establish_single(&self, case: Single) -> Result<()> {
        let (_, b) = self.site.topology.pair();
        let (program, packet, arrival) = self.one(case)?;
        pass(program, &packet, &arrival)?;
        let udp = |macs, addresses, ports| frame(Ends { macs, addresses }, Transport::Udp, ports);
        let (out, come) = ([HOST_MAC, OUTSIDE_MAC], [OUTSIDE_MAC, HOST_MAC]);
        match case {
            Single::Plain | Single::Service => Ok(()),
            Single::Masquerade => {
                let answer = udp(come, [OUTSIDE.into(), HOST.into()], [PORT, CLIENT_PORT]);
                pass(&self.from_uplink, &answer, &Arrival { ifindex: self.uplink, ingress_ifindex: self.uplink })
            }
            Single::Published => {
                let answer = udp(out, [b.v4().into(), OUTSIDE.into()], [PORT, CLIENT_PORT]);
                pass(&self.to_uplink, &answer, &Arrival { ifindex: self.uplink, ingress_ifindex: self.bridge })
            }
        }?;
        let changed = program.rewritten(&packet, &arrival, 1)?;
        ensure!((changed != packet) == (case != Single::Plain), "a packet is translated or not, contrary to the plan");
        Ok(())
    }

    /// Nanoseconds above the empty classifier, one call for each packet.
    fn single(&self, case: Single, quick: bool) -> Result<f64> {
        let (program, packet, arrival) = self.one(case)?;
        let times = if quick { 500 } else { 5_000 };
        let cost = |program: &Program| -> Result<f64> {
            let costs = (0..times).map(|_| Ok(program.run(&packet, &arrival, 1)?.nanoseconds));
            median(&costs.collect::<Result<Vec<_>>>()?).context("no packets")
        };
        // One after the other: programs that take turns would find the CPU's caches with the other's code.
        let empty = cost(&self.empty)?;
        Ok(cost(program)? - empty)
    }
}

/// Insists on the packet: new flows may be limited in number per second.
fn pass(program: &Program, packet: &[u8], arrival: &Arrival) -> Result<()> {
    for _ in 0..200 {
        if program.run(packet, arrival, 1)?.action != DROP {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(5));
    }
    bail!("the classifier drops a packet that the policy allows");
}

fn describe(
    hot: &BTreeMap<(Case, usize), Vec<f64>>,
    single: &BTreeMap<Single, Vec<f64>>,
    setting: &Setting,
) -> Section {
    let cell = |values: &Vec<f64>| {
        Spread::of(values)
            .map_or(String::new(), |Spread { median, low, high, .. }| format!("{median:.0} ({low:.0}-{high:.0})"))
    };
    let mut section = Section { title: "One translated packet in the classifier", ..Section::default() };
    section.notes.push(format!(
        "`from_workload` under BPF_PROG_TEST_RUN, nanoseconds above a classifier that does nothing, measured in short \
         stretches as above. Median of {} rounds, in brackets the middle half. Each call translates: there are two services, \
         each of which leads to the other's address, and the packet of one call is that of the next. Hot caches.",
        setting.rounds
    ));
    section.notes.push(
        "At an uplink a packet is translated only once, so the last table is of single calls: colder, and to be compared with \
         each other."
            .to_owned(),
    );
    let mut table = Table { header: vec!["packet".to_owned()], rows: Vec::new() };
    table.header.extend(SERVICES.iter().map(|count| match count {
        1 => "1 service beside".to_owned(),
        _ => format!("{} services", thousands((*count).into())),
    }));
    for case in Case::ALL {
        let cells = (0..SERVICES.len()).map(|place| hot.get(&(case, place)).map_or(String::new(), cell));
        table.rows.push([case.what().to_owned()].into_iter().chain(cells).collect());
    }
    section.tables.push(table);
    let mut table = Table::new(["established UDP, IPv4, one call each", "ns above an empty classifier"]);
    table.rows.extend(single.iter().map(|(case, values)| vec![case.what().to_owned(), cell(values)]));
    section.tables.push(table);
    section.goals = goals(hot);
    section
}

fn goals(hot: &BTreeMap<(Case, usize), Vec<f64>>) -> Vec<Goal> {
    let mut goals = Vec::new();
    for case in Case::ALL {
        let (Some(few), Some(many)) = (hot.get(&(case, FEW)), hot.get(&(case, MANY))) else { continue };
        if let Some(measured) = Spread::of(few) {
            let what = format!("{}: above an empty classifier", case.what());
            goals.push(Goal { what, bound: Bound::AtMost(BUDGET), unit: Unit::Nanoseconds, measured });
        }
        let ratios = few.iter().zip(many).map(|(few, many)| many / few).collect::<Vec<_>>();
        if let Some(measured) = Spread::of(&ratios) {
            let what = format!("{}: 10,000 services against 1", case.what());
            goals.push(Goal { what, bound: Bound::AtMost(GROWTH), unit: Unit::Ratio, measured });
        }
    }
    goals
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_and_many_services_are_compared_round_by_round() {
        let hot = BTreeMap::from([((Case::Udp4, FEW), vec![100.0, 200.0]), ((Case::Udp4, MANY), vec![102.0, 204.0])]);
        let goals = goals(&hot);
        assert_eq!(goals.len(), 2);
        assert_eq!(goals[1].measured.median, 1.02);
        assert!(goals[1].met() && !goals[0].met(), "{goals:?}");
    }
}
