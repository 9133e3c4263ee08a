//! All probes of a step at once, and when to stop waiting for them.
//!
//! What is denied never arrives, so something else must say when everything that may arrive has.
//! A frame that a veth sends goes into the queue of the CPU that sends it (`netif_rx`, per-CPU
//! backlog), first in, first out, and so does the frame that the host forwards in its turn. So all
//! probes leave from one CPU, and after them a canary, which no classifier sees and which needs as
//! many steps as the longest of them: when it has arrived, so have they, or never will.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use netpol_user::{
    datapath::Record,
    model::{Opening, Protocol},
};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity},
    unistd::Pid,
};

use super::{
    packet::{self, Mark, Turn},
    site::{self, Neighbour, Place, Site},
};
use crate::{conformance::plan, frame::Ends};

/// How long a frame may take that nobody drops.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait for an interface that has just been made, before the next attempt.
const ATTEMPT: Duration = Duration::from_millis(3);

/// A connection's packet: between whom, and what it says.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    pub places: [Place; 2],
    pub addresses: [IpAddr; 2],
    pub opening: Opening,
}

impl Probe {
    /// What the server sends when this has reached it; `None`: nothing.
    pub fn answer(&self) -> Option<Self> {
        let ([from, to], [source, destination]) = (self.places, self.addresses);
        Some(Self { places: [to, from], addresses: [destination, source], opening: packet::answer(self.opening)? })
    }

    /// Whether a record is about this connection, in either direction.
    pub fn is_of(&self, record: &Record) -> bool {
        let Opening { protocol, source_port, destination_port, .. } = self.opening;
        let there = [(self.addresses[0], source_port), (self.addresses[1], destination_port)];
        let back = [there[1], there[0]];
        let ports = if protocol.has_ports() { [record.source_port, record.destination_port] } else { [0, 0] };
        let recorded = [(record.source, ports[0]), (record.destination, ports[1])];
        record.protocol == protocol && (recorded == there || recorded == back)
    }

    fn frame(&self, site: &Site, turn: Turn, mark: Mark) -> Result<Vec<u8>> {
        let [from, to] = self.places;
        let ends = Ends { macs: site.macs(from, to)?, addresses: self.addresses };
        Ok(packet::frame(ends, self.opening, turn, mark))
    }
}

/// Numbers the waves, so that a late frame is not taken for one of the next wave.
#[derive(Default)]
pub struct Waves {
    last: u16,
}

impl Waves {
    /// Sends all probes, and says of each whether it arrived.
    pub fn send(&mut self, site: &Site, probes: &[Probe], turn: Turn) -> Result<Vec<bool>> {
        if probes.is_empty() {
            return Ok(vec![]);
        }
        ensure!(probes.len() < usize::from(LAST), "too many probes for one wave");
        let wave = self.next();
        let marks = (0..).map(|index| Mark { wave, index });
        let frames = probes.iter().zip(marks).map(|(probe, mark)| probe.frame(site, turn, mark));
        let frames = frames.collect::<Result<Vec<_>>>()?;
        on_one_cpu(|| {
            for (probe, frame) in probes.iter().zip(&frames) {
                site.at(probe.places[0])?.wire.send(frame)?;
            }
            pass_canary(site, wave)
        })?;
        let mut arrived = vec![false; probes.len()];
        for neighbour in site.neighbours() {
            for (index, frame) in heard(neighbour, wave)? {
                let index = usize::from(index);
                let is_for_it = probes.get(index).map(|probe| site.at(probe.places[1])).transpose()?;
                if is_for_it.is_some_and(|place| place == neighbour) {
                    packet::check_unchanged(&frames[index], &frame)?;
                    arrived[index] = true;
                }
            }
        }
        Ok(arrived)
    }

    /// Waits until the uplinks of a new site carry frames.
    pub fn await_uplinks(&mut self, site: &Site) -> Result<()> {
        self.await_way(site, &canary())
    }

    /// Waits until a new container is reached, and reaches others.
    pub fn await_container(&mut self, site: &Site, address: IpAddr) -> Result<()> {
        let (container, outside) = (Place::Container(address), Place::Outside);
        for address in plan::addresses(address) {
            let keeper = if address.is_ipv4() { KEEPER.into() } else { KEEPER.to_ipv6_mapped().into() };
            self.await_way(site, &discard([container, outside], [address, keeper]))?;
            self.await_way(site, &discard([outside, container], [keeper, address]))?;
        }
        Ok(())
    }

    fn await_way(&mut self, site: &Site, hello: &Probe) -> Result<()> {
        let begin = Instant::now();
        let wave = self.next();
        let frame = hello.frame(site, Turn::Opening, Mark { wave, index: LAST })?;
        let [from, to] = [site.at(hello.places[0])?, site.at(hello.places[1])?];
        while begin.elapsed() < PATIENCE {
            // an interface that is not quite up refuses it, or loses it
            let _ = from.wire.send(&frame);
            to.wire.wait(ATTEMPT)?;
            if heard(to, wave)?.iter().any(|(index, _)| *index == LAST) {
                return Ok(());
            }
        }
        bail!("nothing came from {} to {}", hello.addresses[0], hello.addresses[1])
    }

    const fn next(&mut self) -> u16 {
        self.last = self.last.wrapping_add(1);
        self.last
    }
}

/// The mark of what goes behind all probes of a wave.
const LAST: u16 = u16::MAX;

/// Outside, too, and of that network (RFC 5737).
const KEEPER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 78);

fn canary() -> Probe {
    discard([Place::Outside, Place::Canary], [KEEPER, site::CANARY].map(IpAddr::from))
}

/// A harmless datagram: to the discard service (RFC 863).
fn discard(places: [Place; 2], addresses: [IpAddr; 2]) -> Probe {
    const PORT: u16 = 9;
    let opening = Opening { protocol: Protocol::UDP, source_port: PORT, destination_port: PORT, icmp: None };
    Probe { places, addresses, opening }
}

fn pass_canary(site: &Site, wave: u16) -> Result<()> {
    let canary = canary();
    let [cage, mine] = [site.at(canary.places[0])?, site.at(canary.places[1])?];
    cage.wire.send(&canary.frame(site, Turn::Opening, Mark { wave, index: LAST })?)?;
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        mine.wire.wait(PATIENCE)?;
        if heard(mine, wave)?.iter().any(|(index, _)| *index == LAST) {
            return Ok(());
        }
    }
    bail!("the packet that nobody drops did not arrive")
}

/// The probes of a wave that passed an interface, in either direction, by their index.
fn heard(at: &Neighbour, wave: u16) -> Result<Vec<(u16, Vec<u8>)>> {
    let mut heard = Vec::new();
    while let Some(frame) = at.wire.next()? {
        if let Some(mark) = packet::mark(&frame).filter(|mark| mark.wave == wave) {
            heard.push((mark.index, frame));
        }
    }
    Ok(heard)
}

/// Keeps the calling thread on the CPU that it is on.
fn on_one_cpu(work: impl FnOnce() -> Result<()>) -> Result<()> {
    let this = Pid::from_raw(0);
    let before = sched_getaffinity(this)?;
    let mut only = CpuSet::new();
    only.set(sched_getcpu()?)?;
    sched_setaffinity(this, &only).context("staying on one CPU")?;
    let done = work();
    sched_setaffinity(this, &before)?;
    done
}
