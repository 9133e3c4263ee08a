//! Probes: the first packet of a connection and the answer to it, each with a mark by which it is
//! known where it arrives.

use anyhow::{Result, ensure};
use netpol_user::model::{Opening, Protocol};

use crate::frame::{Ends, checksum_between, datagram};

/// Tells one probe from all others of this topology.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub wave: u16,
    /// In its wave.
    pub index: u16,
}

impl Mark {
    const fn bytes(self) -> [u8; 4] {
        let ([a, b], [c, d]) = (self.wave.to_be_bytes(), self.index.to_be_bytes());
        [a, b, c, d]
    }
}

/// Which of a connection's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Opening,
    /// From the server; ports and ends are those of the answer itself.
    Answer,
}

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
/// RFC 9260 section 3.2.
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
/// Of the SCTP common header, RFC 9260 section 3.1.
const SCTP_SUM: usize = 8;
const ETHERNET: usize = 14;
/// EtherTypes.
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];

/// Types of echo requests and replies: RFC 792, RFC 4443 section 4.
pub const ECHOES: [(Protocol, u8, u8); 2] = [(Protocol::ICMP, 8, 0), (Protocol::ICMPV6, 128, 129)];

/// The frame of a probe.
pub fn frame(ends: Ends, opening: Opening, turn: Turn, mark: Mark) -> Vec<u8> {
    datagram(ends, opening.protocol.0, &segment(ends, opening, turn, mark))
}

/// The answer's ports and message; `None`: nobody answers such a packet.
pub fn answer(opening: Opening) -> Option<Opening> {
    let Opening { protocol, source_port, destination_port, icmp } = opening;
    let icmp = match icmp {
        None => None,
        Some((kind, _)) => {
            let (.., reply) = ECHOES.iter().find(|(of, request, _)| *of == protocol && *request == kind)?;
            Some((*reply, 0))
        }
    };
    Some(Opening { protocol, source_port: destination_port, destination_port: source_port, icmp })
}

fn segment(ends: Ends, opening: Opening, turn: Turn, mark: Mark) -> Vec<u8> {
    let Opening { protocol, source_port, destination_port, icmp } = opening;
    let ports = [source_port.to_be_bytes(), destination_port.to_be_bytes()].concat();
    let mark = mark.bytes();
    match protocol {
        Protocol::TCP => {
            let flags = if turn == Turn::Opening { SYN } else { SYN | ACK };
            let rest = [0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0];
            summed(ends, protocol, [&ports[..], &mark, &rest].concat(), 16)
        }
        Protocol::UDP => summed(ends, protocol, [&ports[..], &[0, 12, 0, 0], &mark].concat(), 6),
        Protocol::SCTP => sctp(&ports, turn, mark),
        Protocol::ICMP | Protocol::ICMPV6 => {
            let (kind, code) = icmp.unwrap_or_default();
            // identifier and sequence number, then data
            icmp_sum(ends, protocol, [&[kind, code, 0, 0, 0x6e, 0x70, 0, 1], &mark[..]].concat())
        }
        _ => mark.to_vec(),
    }
}

fn summed(ends: Ends, protocol: Protocol, mut segment: Vec<u8>, at: usize) -> Vec<u8> {
    let sum = checksum_between(ends, protocol.0, &segment);
    segment[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    segment
}

/// ICMP has no pseudo-header, ICMPv6 has.
fn icmp_sum(ends: Ends, protocol: Protocol, mut segment: Vec<u8>) -> Vec<u8> {
    if protocol == Protocol::ICMPV6 {
        return summed(ends, protocol, segment, 2);
    }
    let sum = crate::frame::checksum(&segment);
    segment[2..4].copy_from_slice(&sum.to_be_bytes());
    segment
}

/// INIT with tag 0, or INIT ACK with the tag of the other side's INIT (RFC 9260 sections 3.3.2, 3.3.3).
fn sctp(ports: &[u8], turn: Turn, mark: [u8; 4]) -> Vec<u8> {
    let (kind, tag) = if turn == Turn::Opening { (INIT, [0; 4]) } else { (INIT_ACK, mark) };
    let chunk = [kind, 0, 0, 20];
    let rest = [0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1];
    let mut packet = [ports, &tag, &[0; 4], &chunk, &mark, &rest].concat();
    let sum = crc32c(&packet).to_le_bytes();
    packet[SCTP_SUM..SCTP_SUM + 4].copy_from_slice(&sum);
    packet
}

/// RFC 9260 appendix A.
fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let step = |sum: u32| if sum & 1 == 0 { sum >> 1 } else { (sum >> 1) ^ POLYNOMIAL };
    !bytes.iter().fold(u32::MAX, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), |sum, _| step(sum)))
}

/// The mark of a frame; `None`: it is no probe.
pub fn mark(frame: &[u8]) -> Option<Mark> {
    let (protocol, segment) = open(frame)?;
    let at = match protocol {
        Protocol::TCP => 4,
        Protocol::UDP | Protocol::ICMP | Protocol::ICMPV6 => 8,
        Protocol::SCTP => 16,
        _ => 0,
    };
    let [a, b, c, d] = *segment.get(at..)?.first_chunk()?;
    Some(Mark { wave: u16::from_be_bytes([a, b]), index: u16::from_be_bytes([c, d]) })
}

/// What must be as it was sent: the addresses and everything behind the IP header.
pub fn check_unchanged(sent: &[u8], arrived: &[u8]) -> Result<()> {
    let addresses = |frame: &[u8]| if is_ipv4(frame) { frame[26..34].to_vec() } else { frame[22..54].to_vec() };
    ensure!(open(arrived) == open(sent) && addresses(arrived) == addresses(sent), "a packet was changed on its way");
    Ok(())
}

fn is_ipv4(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&IPV4)
}

/// Protocol and segment of a frame without IP options or extension headers.
fn open(frame: &[u8]) -> Option<(Protocol, &[u8])> {
    let header = frame.get(ETHERNET..)?;
    let (protocol, length) = match *frame.get(12..14)?.first_chunk()? {
        IPV4 => (*header.get(9)?, 20),
        IPV6 => (*header.get(6)?, 40),
        _ => return None,
    };
    Some((Protocol(protocol), header.get(length..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: Mark = Mark { wave: 7, index: 300 };

    fn ends() -> [Ends; 2] {
        [["10.0.0.1", "10.0.0.2"], ["fd00::1", "fd00::2"]].map(|addresses| Ends {
            macs: [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]],
            addresses: addresses.map(|text| text.parse().unwrap()),
        })
    }

    fn openings() -> impl Iterator<Item = Opening> {
        let ported = [Protocol::TCP, Protocol::UDP, Protocol::SCTP].map(|protocol| Opening {
            protocol,
            source_port: 50_000,
            destination_port: 80,
            icmp: None,
        });
        let echoes = ECHOES.map(|(protocol, request, _)| Opening {
            protocol,
            source_port: 0,
            destination_port: 0,
            icmp: Some((request, 0)),
        });
        let other = Opening { protocol: Protocol(253), ..ported[0] };
        ported.into_iter().chain(echoes).chain([other])
    }

    #[test]
    fn every_probe_is_known_by_its_mark() {
        for ends in ends() {
            for opening in openings() {
                for turn in [Turn::Opening, Turn::Answer] {
                    let frame = frame(ends, opening, turn, MARK);
                    assert_eq!(mark(&frame), Some(MARK), "{opening:?}");
                    check_unchanged(&frame, &frame).unwrap();
                }
            }
        }
    }

    #[test]
    fn change_on_the_way_is_noticed() {
        for ends in ends() {
            for opening in openings() {
                let sent = frame(ends, opening, Turn::Opening, MARK);
                let mut arrived = sent.clone();
                *arrived.last_mut().unwrap() ^= 1;
                assert!(check_unchanged(&sent, &arrived).is_err(), "{opening:?}");
            }
        }
    }

    #[test]
    fn answers_go_back_to_where_the_opening_came_from() {
        for opening in openings() {
            let answer = answer(opening).unwrap();
            assert_eq!((answer.source_port, answer.destination_port), (opening.destination_port, opening.source_port));
        }
        let unreachable = Opening { protocol: Protocol::ICMP, source_port: 0, destination_port: 0, icmp: Some((3, 1)) };
        assert_eq!(answer(unreachable), None);
    }

    #[test]
    fn crc32c_of_the_check_string() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn noise_is_no_probe() {
        assert_eq!(mark(&[]), None);
        assert_eq!(mark(&[0; 20]), None);
    }
}
