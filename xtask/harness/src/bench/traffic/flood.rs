//! Floods of frames: as many flows as wanted from one packet socket, whose ports change from frame to frame.

use std::{
    net::{Ipv4Addr, UdpSocket},
    os::fd::OwnedFd,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
};

use anyhow::{Result, anyhow};

use super::{Lane, PORT, PORTS, Sample, Stopwatch, ThreadClock, counted, socket};
use crate::{
    bench::topology::Topology,
    frame::{Ends, Ports, Transport, frame, set_udp4_ports},
};

const FLOWS: u64 = 1 << 16;
/// New flows in a millisecond of a measurement.
const MOST_PER_MILLISECOND: u64 = 40;
/// Source ports: all but the privileged ones.
const SOURCES: u64 = 65_536 - 1_024;

/// Sends frames from the first container to the second.
pub struct Flood {
    socket: OwnedFd,
    frames: Vec<Vec<u8>>,
}

impl Flood {
    pub fn new(topology: &Topology) -> Result<Self> {
        let (a, b) = topology.pair();
        let template = frame(Ends::v4(a, b), Transport::Udp, [0, 0]);
        Ok(Self { socket: a.netns.run(socket::packet_socket)?, frames: vec![template; socket::BATCH] })
    }

    /// Sends a frame for each of the ports, at most a batch of them, and says how many went out.
    pub fn send(&mut self, ports: impl IntoIterator<Item = Ports>) -> Result<u64> {
        let mut count = 0;
        for (frame, ports) in self.frames.iter_mut().zip(ports) {
            set_udp4_ports(frame, ports);
            count += 1;
        }
        let frames = self.frames[..count].iter().map(Vec::as_slice).collect::<Vec<_>>();
        socket::send_batch(&self.socket, &frames)
    }
}

/// 65,536 flows in an order that no cache foresees.
pub fn many_flows(lane: &Lane) -> Result<Sample> {
    let mut place = 0;
    flood(lane, Plan { warm_up: FLOWS, most: u64::MAX }, &mut move || {
        place = scattered(place);
        // 32,768 source ports for each of two servers.
        [16_384 + (place & 0x7fff) as u16, PORT + (place >> 15) as u16]
    })
}

/// Every packet opens a flow. The next run goes on where the last one stopped: 16 million pass before one returns.
///
/// Few enough that a limit on new flows per second, which netpol has, stays out of it.
pub fn new_flows(lane: &Lane) -> Result<Sample> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let most = lane.time.as_millis() as u64 * MOST_PER_MILLISECOND;
    flood(lane, Plan { warm_up: 0, most }, &mut || {
        let number = NEXT.fetch_add(1, Relaxed);
        [1_024 + (number % SOURCES) as u16, PORT + (number / SOURCES % u64::from(PORTS)) as u16]
    })
}

/// The next of all 16-bit numbers: a linear congruential generator of full period.
fn scattered(place: u64) -> u64 {
    (place * 40_501 + 12_345) % FLOWS
}

struct Plan {
    /// Packets before the watch starts.
    warm_up: u64,
    /// Packets that are measured, where the time isn't over before.
    most: u64,
}

fn flood(lane: &Lane, plan: Plan, ports: &mut (dyn FnMut() -> Ports + Send)) -> Result<Sample> {
    let _servers = servers(lane.topology)?;
    let mut flood = Flood::new(lane.topology)?;
    counted(lane, || {
        thread::scope(|scope| {
            let sender = scope.spawn(|| {
                lane.cpu().take()?;
                let mut batch = || flood.send((0..socket::BATCH).map(|_| ports()));
                let mut warmed = 0;
                for part in [plan.warm_up / 2, plan.warm_up] {
                    if warmed > 0 {
                        thread::sleep(lane.pause);
                    }
                    while warmed < part {
                        warmed += batch()?;
                    }
                }
                let clock = [ThreadClock::mine()?];
                let watch = Stopwatch::start(lane, lane.cpu(), &clock)?;
                let mut operations = 0;
                while operations < plan.most && watch.running() {
                    operations += batch()?;
                }
                Ok(watch.stop(operations)?.after(warmed))
            });
            sender.join().map_err(|_| anyhow!("the sender panicked"))?
        })
    })
}

/// A socket at every port: without one, the kernel would answer with ICMP errors.
fn servers(topology: &Topology) -> Result<Vec<UdpSocket>> {
    let (_, b) = topology.pair();
    b.netns.run(|| {
        (PORT..PORT + PORTS)
            .map(|port| {
                let server = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
                socket::drop_everything(&server)?;
                Ok(server)
            })
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_flow_has_its_turn() {
        let mut place = 0;
        let seen = (0..FLOWS)
            .map(|_| {
                place = scattered(place);
                place
            })
            .collect::<HashSet<_>>();
        assert_eq!(seen.len() as u64, FLOWS);
    }
}
