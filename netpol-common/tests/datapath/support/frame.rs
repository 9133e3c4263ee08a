//! Frames, built from the inside out: `ethernet(to, from, IPV4, &ipv4(a, b, TCP, &tcp(1, 2, SYN)))`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netpol_common::{
    parse::ethertype,
    wire::{Mac, Protocol},
};

pub const BROADCAST: Mac = [0xff; 6];

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const ACK: u8 = 0x10;

fn join(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

pub fn ethernet(to: Mac, from: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    join(&[&to, &from, &ethertype.to_be_bytes(), payload])
}

/// What an IPv4 header says beside addresses and protocol.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    pub id: u16,
    /// Flags and offset, as in the header.
    pub fragment: u16,
    /// Words of options (no-operation).
    pub words: u8,
}

pub fn ipv4_with(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: Protocol,
    with: Options,
    payload: &[u8],
) -> Vec<u8> {
    let header = 20 + usize::from(with.words) * 4;
    let length = (header + payload.len()) as u16;
    join(&[
        &[0x45 + with.words, 0],
        &length.to_be_bytes(),
        &with.id.to_be_bytes(),
        &with.fragment.to_be_bytes(),
        &[64, protocol.0, 0, 0],
        &source.octets(),
        &destination.octets(),
        &vec![1; usize::from(with.words) * 4],
        payload,
    ])
}

pub fn ipv6(source: Ipv6Addr, destination: Ipv6Addr, protocol: Protocol, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u16).to_be_bytes();
    join(&[&[0x60, 0, 0, 0], &length, &[protocol.0, 64], &source.octets(), &destination.octets(), payload])
}

/// A packet of the addresses' family, and its EtherType.
pub fn ip(source: IpAddr, destination: IpAddr, protocol: Protocol, payload: &[u8]) -> (u16, Vec<u8>) {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            (ethertype::IPV4, ipv4_with(source, destination, protocol, Options::default(), payload))
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            (ethertype::IPV6, ipv6(source, destination, protocol, payload))
        }
        _ => panic!("two families in one packet"),
    }
}

/// One fragment of a packet; `offset` in units of 8 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    pub id: u16,
    pub offset: u16,
    pub more: bool,
}

pub fn fragment(
    source: IpAddr,
    destination: IpAddr,
    protocol: Protocol,
    piece: Piece,
    payload: &[u8],
) -> (u16, Vec<u8>) {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let fragment = piece.offset | u16::from(piece.more) << 13;
            let with = Options { id: piece.id, fragment, words: 0 };
            (ethertype::IPV4, ipv4_with(source, destination, protocol, with, payload))
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let word = (piece.offset << 3 | u16::from(piece.more)).to_be_bytes();
            let id = u32::from(piece.id).to_be_bytes();
            let payload = join(&[&[protocol.0, 0], &word, &id, payload]);
            (ethertype::IPV6, ipv6(source, destination, Protocol(44), &payload))
        }
        _ => panic!("two families in one packet"),
    }
}

pub fn tcp(source: u16, destination: u16, flags: u8) -> Vec<u8> {
    join(&[&source.to_be_bytes(), &destination.to_be_bytes(), &[0; 8], &[0x50, flags, 0xff, 0xff, 0, 0, 0, 0]])
}

/// UDP, UDP-Lite, or the beginning of SCTP.
pub fn udp(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len() as u16).to_be_bytes();
    join(&[&source.to_be_bytes(), &destination.to_be_bytes(), &length, &[0; 2], payload])
}

pub fn icmp(kind: u8, code: u8, id: u16, payload: &[u8]) -> Vec<u8> {
    join(&[&[kind, code, 0, 0], &id.to_be_bytes(), &[0, 1], payload])
}

/// Request (1) or reply (2).
pub fn arp(operation: u16, (sender_mac, sender): (Mac, Ipv4Addr), (target_mac, target): (Mac, Ipv4Addr)) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4];
    join(&[&head, &operation.to_be_bytes(), &sender_mac, &sender.octets(), &target_mac, &target.octets()])
}
