//! Publications under traffic: what all versions allow must not be lost, what all versions deny must not leak.

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, UdpSocket},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};

use super::{
    Setting,
    documents::{self, DENIED_PORT, Size},
    netpol::Instance,
    progress::Progress,
    report::{Bound, Goal, Section, Table, Unit, thousands},
    stats::Spread,
    topology::{Families, Topology},
    traffic::{Flood, PORT, set_receive_buffer},
};

/// A kind of traffic during the publications.
struct Kind {
    what: &'static str,
    port: u16,
    allowed: bool,
    /// Packets every [`PAUSE`].
    packets: u16,
    /// Whether every packet opens a flow, instead of all being of one.
    new: bool,
}

const KINDS: [Kind; 4] = [
    Kind { what: "allowed, one flow", port: PORT, allowed: true, packets: 10, new: false },
    Kind { what: "allowed, new flows", port: PORT + 1, allowed: true, packets: 1, new: true },
    Kind { what: "denied, one flow", port: DENIED_PORT, allowed: false, packets: 10, new: false },
    Kind { what: "denied, new flows", port: DENIED_PORT - 1, allowed: false, packets: 1, new: true },
];
const PAUSE: Duration = Duration::from_millis(2);
/// Holds what arrives while the machine is busy with the publication: seconds of traffic.
const BUFFER: usize = 32 << 20;
/// Packets on their way need less.
const SETTLE: Duration = Duration::from_millis(300);

#[derive(Default)]
struct Count {
    sent: AtomicU64,
    received: AtomicU64,
}

pub fn run(setting: &Setting) -> Result<Section> {
    let topology = Topology::bridged(2, Families::V4)?;
    let instance = Instance::new(setting.sandbox, setting.binary, "publications", &topology.host)?;
    publish(&instance, &topology, 0)?;
    let counts = KINDS.map(|_| Count::default());
    let (_, server) = topology.pair();
    let sockets = server.netns.run(|| KINDS.iter().map(listen).collect::<Result<Vec<_>>>())?;
    let (sending, receiving) = (AtomicBool::new(true), AtomicBool::new(true));

    let progress = Progress::start("publishing under traffic", setting.publications as usize);
    let took = thread::scope(|scope| {
        let receivers = sockets.iter().zip(&counts).map(|(socket, count)| {
            let receiving = &receiving;
            scope.spawn(move || receive(socket, count, receiving))
        });
        let receivers = receivers.collect::<Vec<_>>();
        let sender = scope.spawn(|| send(&topology, &counts, &sending));
        let took = (1..=setting.publications)
            .map(|version| {
                let start = Instant::now();
                publish(&instance, &topology, version).with_context(|| format!("publication {version}"))?;
                progress.step("");
                Ok(start.elapsed().as_secs_f64() * 1e3)
            })
            .collect::<Result<Vec<_>>>();
        sending.store(false, Relaxed);
        let sent = sender.join().map_err(|_| anyhow!("the sender panicked"));
        thread::sleep(SETTLE);
        receiving.store(false, Relaxed);
        for receiver in receivers {
            receiver.join().map_err(|_| anyhow!("a receiver panicked"))??;
        }
        sent??;
        took
    })?;
    progress.done();
    Ok(describe(&took, &counts))
}

/// Loads the next version: the same about the traffic, something else besides.
fn publish(instance: &Instance, topology: &Topology, version: u32) -> Result<()> {
    let besides = documents::bulk(Size { networks: 1 + version % 2, ports: 4 });
    instance.write(&(documents::endpoints(topology) + &documents::pair() + &besides))?;
    instance.load(&[])?;
    Ok(())
}

fn listen(kind: &Kind) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, kind.port))?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    set_receive_buffer(&socket, BUFFER)?;
    Ok(socket)
}

fn send(topology: &Topology, counts: &[Count], sending: &AtomicBool) -> Result<()> {
    let mut flood = Flood::new(topology)?;
    let mut next: u16 = 0;
    while sending.load(Relaxed) {
        for (kind, count) in KINDS.iter().zip(counts) {
            let source = if kind.new { 10_000 + next } else { 9_999 };
            let ports = (0..kind.packets).map(|_| [source, kind.port]);
            count.sent.fetch_add(flood.send(ports)?, Relaxed);
        }
        next = (next + 1) % 50_000;
        thread::sleep(PAUSE);
    }
    Ok(())
}

fn receive(socket: &UdpSocket, count: &Count, receiving: &AtomicBool) -> Result<()> {
    let mut packet = [0; 64];
    while receiving.load(Relaxed) {
        match socket.recv(&mut packet) {
            Ok(_) => count.received.fetch_add(1, Relaxed),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(error) => return Err(error).context("receiving"),
        };
    }
    Ok(())
}

fn describe(took: &[f64], counts: &[Count]) -> Section {
    let mut section = Section { title: "Publications under traffic", ..Section::default() };
    let whole = Spread::of(took).map_or(String::new(), |spread| Unit::Milliseconds.format(spread.median));
    section.notes.push(format!(
        "{} publications by `netpol load`, one after the other ({whole} each, from start to exit), while packets flow.",
        thousands(took.len() as f64)
    ));
    let mut table = Table::new(["traffic", "sent", "received"]);
    for (kind, count) in KINDS.iter().zip(counts) {
        let [sent, received] = [&count.sent, &count.received].map(|count| count.load(Relaxed) as f64);
        table.rows.push(vec![kind.what.to_owned(), thousands(sent), thousands(received)]);
    }
    section.tables.push(table);
    section.goals = goals(took.len(), counts);
    section
}

fn goals(publications: usize, counts: &[Count]) -> Vec<Goal> {
    let sum = |allowed: bool, figure: fn(&Count) -> u64| {
        KINDS
            .iter()
            .zip(counts)
            .filter(|(kind, _)| kind.allowed == allowed)
            .map(|(_, count)| figure(count))
            .sum::<u64>()
    };
    let leaked = sum(false, |count| count.received.load(Relaxed));
    let lost = sum(true, |count| count.sent.load(Relaxed).saturating_sub(count.received.load(Relaxed)));
    let goal = |what: &str, count: u64| Goal {
        what: format!("{} publications: packets {what}", thousands(publications as f64)),
        bound: Bound::AtMost(0.0),
        unit: Unit::Packets,
        measured: Spread { median: count as f64, low: count as f64, high: count as f64, count: 1 },
    };
    vec![goal("leaked", leaked), goal("lost", lost)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(numbers: [(u64, u64); 4]) -> [Count; 4] {
        numbers.map(|(sent, received)| Count { sent: sent.into(), received: received.into() })
    }

    #[test]
    fn a_denied_packet_that_arrives_has_leaked() {
        let goals = goals(10, &counts([(5, 5), (5, 5), (5, 0), (5, 1)]));
        assert_eq!(goals.iter().map(Goal::met).collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn an_allowed_packet_that_does_not_arrive_is_lost() {
        let goals = goals(10, &counts([(5, 5), (5, 3), (5, 0), (5, 0)]));
        assert_eq!(goals.iter().map(|goal| goal.measured.median).collect::<Vec<_>>(), [0.0, 2.0]);
    }

    #[test]
    fn source_ports_of_new_flows_never_overflow() {
        assert!(10_000_u32 + 49_999 <= u16::MAX.into());
    }
}
