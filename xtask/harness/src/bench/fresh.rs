//! Packets that no classifier has seen before, one after the other without leaving the kernel, as in a flood: a small
//! program gives the packet new ports and passes it on, by a tail call, to the classifier that is measured.

use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result};

use super::{
    insn,
    testrun::{ARRAY, Arrival, Map, Outcome, PROG_ARRAY, Program},
};

/// A classifier that gets another tuple with each run.
pub struct Fresh {
    program: Program,
    /// A program array that nobody holds forgets its programs.
    _targets: Map,
    counter: Map,
}

/// Which ports packets get: all source ports come before the next destination port.
#[derive(Clone, Copy)]
pub struct Range {
    /// So many source ports, from [`FIRST_CLIENT`] on: a power of two.
    pub clients: u16,
    pub first: u16,
    /// So many destination ports.
    pub count: u16,
}

pub const FIRST_CLIENT: u16 = 1_024;

impl Fresh {
    pub fn of(target: &Program, Range { clients, first, count }: Range) -> Result<Self> {
        let targets = Map::new(PROG_ARRAY, 4)?;
        targets.set(0, &target.descriptor().to_ne_bytes())?;
        let counter = Map::new(ARRAY, 8)?;
        let [target_low, target_high] = insn::map(2, targets.0.as_raw_fd(), false);
        let [count_low, count_high] = insn::map(2, counter.0.as_raw_fd(), true);
        let code = [
            insn::mov(6, 1),
            // r7, r8: the frame and its end
            insn::load32(7, 6, 76),
            insn::load32(8, 6, 80),
            insn::mov(9, 7),
            insn::add(9, PORTS as i32 + 4),
            insn::jump_if_greater(9, 8, 20),
            // r3: how many there were
            count_low,
            count_high,
            insn::load64(3, 2, 0),
            insn::add(3, 1),
            insn::store64(2, 3, 0),
            insn::mov(4, 3),
            insn::and(4, i32::from(clients) - 1),
            insn::add(4, FIRST_CLIENT.into()),
            insn::be16(4),
            insn::store16(7, 4, PORTS),
            insn::shift_right(3, clients.ilog2() as i32),
            insn::modulo(3, count.into()),
            insn::add(3, first.into()),
            insn::be16(3),
            insn::store16(7, 3, PORTS + 2),
            insn::mov(1, 6),
            target_low,
            target_high,
            insn::set(3, 0),
            insn::call(TAIL_CALL),
            // an action that no classifier returns
            insn::set(0, NOT_CALLED),
            insn::EXIT,
        ];
        let program = Program::load(&code).context("loading the program that gives new ports")?;
        Ok(Self { program, _targets: targets, counter })
    }

    /// As if so many had run already.
    pub fn skip(&self, count: u64) -> Result<()> {
        self.counter.set(0, &count.to_ne_bytes())
    }

    /// `packet`: UDP over IPv4 without options.
    pub fn run(&self, packet: &[u8], arrival: &Arrival, repeat: u32) -> Result<Outcome> {
        let outcome = self.program.run(packet, arrival, repeat)?;
        anyhow::ensure!(outcome.action != NOT_CALLED, "the classifier cannot be reached by a tail call");
        Ok(outcome)
    }
}

/// `bpf_tail_call`: of the context in r1 to the element r3 of the program array in r2.
const TAIL_CALL: i32 = 12;
const NOT_CALLED: i32 = 99;
/// Offset of the ports in a frame of IPv4 without options.
const PORTS: i16 = 34;

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::frame::{Ends, Transport, frame};

    #[test]
    fn each_run_has_other_ports() -> Result<()> {
        let echo = Program::load(&[
            insn::load32(2, 1, 76),
            insn::load32(3, 1, 80),
            insn::mov(4, 2),
            insn::add(4, 38),
            insn::set(0, 0),
            insn::jump_if_greater(4, 3, 1),
            // both ports at once
            insn::load32(0, 2, PORTS),
            insn::EXIT,
        ])?;
        let fresh = Fresh::of(&echo, Range { clients: 256, first: 7_000, count: 2 })?;
        let address = |last| IpAddr::V4(Ipv4Addr::new(192, 0, 2, last));
        let ends = Ends { macs: [[2; 6], [4; 6]], addresses: [address(1), address(2)] };
        let packet = frame(ends, Transport::Udp, [1, 2]);
        let ports = |runs| -> Result<[u16; 2]> {
            let bytes = fresh.run(&packet, &Arrival { ifindex: 1, ingress_ifindex: 0 }, runs)?.action.to_ne_bytes();
            Ok([u16::from_be_bytes([bytes[0], bytes[1]]), u16::from_be_bytes([bytes[2], bytes[3]])])
        };
        assert_eq!(ports(1)?, [1_025, 7_000]);
        assert_eq!(ports(2)?, [1_027, 7_000]);
        assert_eq!(ports(256)?, [1_027, 7_001]);
        assert_eq!(ports(256)?, [1_027, 7_000]);
        Ok(())
    }
}
