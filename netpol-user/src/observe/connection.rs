//! A connection: the entries of both directions as one row, in the direction that opened it.

use std::{net::IpAddr, time::Duration};

use netpol_common::wire::Protocol;
use serde::Serialize;

use super::{
    flow::{Flow, TcpFlags},
    reader::{Between, Reader},
    sampler::Sample,
    tcp,
};
use crate::datapath::{FlowFlags, Record, Side};

/// A connection, or what was denied of one: both directions together.
#[derive(Clone, Debug)]
pub struct Connection {
    /// The entry of the direction that opened it, with its counters.
    pub record: Record,
    pub ends: Between,
    pub reply_packets: u64,
    pub reply_bytes: u64,
    pub reply_tcp_flags: u8,
    /// Of both directions.
    pub packets_per_second: f64,
    pub bytes_per_second: f64,
    /// Since it was first seen; at least since its last packet.
    pub age: Duration,
    /// How many connections this row stands for, where it is a group's.
    pub members: Option<usize>,
}

/// A connection as scripts see it: its flow in the direction that opened it, and what only two readings
/// and both directions tell.
#[derive(Debug, Serialize)]
pub struct Row<'a> {
    #[serde(flatten)]
    pub flow: Flow<'a>,
    pub reply_packets: u64,
    pub reply_bytes: u64,
    pub reply_tcp_flags: Option<String>,
    pub packets_per_second: f64,
    pub bytes_per_second: f64,
    pub age_seconds: f64,
    pub tcp_state: Option<tcp::State>,
}

/// Addresses as IPv6 has them (RFC 4291 section 2.5.5.2), which are quicker to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    source: u128,
    destination: u128,
    /// Addresses may repeat between bridges: the interfaces of both ends, or the one of the entry.
    interfaces: (u32, u32),
    source_port: u16,
    destination_port: u16,
    protocol: u8,
    denied: bool,
}

impl Key {
    pub fn new(reader: &Reader, record: &Record, ends: Between) -> Self {
        let interface = |end: Option<usize>| end.map_or(0, |end| reader.names().endpoints[end].ifindex);
        let interfaces = match (interface(ends.source), interface(ends.destination)) {
            (0, 0) => (record.interface.0, 0),
            known => known,
        };
        Self {
            source: wide(record.source),
            destination: wide(record.destination),
            interfaces,
            source_port: record.source_port,
            destination_port: record.destination_port,
            protocol: record.protocol.0,
            denied: record.denied.is_some(),
        }
    }
}

impl Connection {
    /// What it looks like by the names of its reading.
    pub fn flow<'a>(&self, sample: &'a Sample) -> Flow<'a> {
        let mut flow = sample.reader.flow_between(&self.record, self.ends, sample.now);
        if self.members.is_some() {
            // a group's connections have different ones
            flow.source.port = None;
        }
        flow
    }

    pub fn row<'a>(&self, sample: &'a Sample) -> Row<'a> {
        let is_tcp = self.record.protocol == Protocol::TCP;
        Row {
            flow: self.flow(sample),
            reply_packets: self.reply_packets,
            reply_bytes: self.reply_bytes,
            reply_tcp_flags: is_tcp.then(|| TcpFlags(self.reply_tcp_flags).to_string()),
            packets_per_second: self.packets_per_second,
            bytes_per_second: self.bytes_per_second,
            age_seconds: self.age.as_secs_f64(),
            tcp_state: self.tcp_state(),
        }
    }

    /// `None`: it is not TCP, was denied, or stands for several.
    pub fn tcp_state(&self) -> Option<tcp::State> {
        let known = self.record.protocol == Protocol::TCP && self.record.denied.is_none() && self.members.is_none();
        known.then(|| tcp::State::of(self.record.tcp_flags, self.reply_tcp_flags))
    }

    /// The same connection, in another reading.
    pub fn key(&self, reader: &Reader) -> Key {
        Key::new(reader, &self.record, self.ends)
    }
}

/// The entry is of the direction that did not open the connection. Where that was not to be seen, the
/// lower port is taken for the server's.
pub fn is_backwards(record: &Record) -> bool {
    if record.flags.has(FlowFlags::UNCLEAR) {
        return (record.source_port, record.source) < (record.destination_port, record.destination);
    }
    record.flags.has(FlowFlags::REPLY)
}

/// The same connection in the other direction. It passes the same interface on the other side.
pub fn reversed(record: &Record) -> Record {
    Record {
        source: record.destination,
        destination: record.source,
        source_port: record.destination_port,
        destination_port: record.source_port,
        side: match record.side {
            Side::From => Side::To,
            Side::To => Side::From,
        },
        flags: FlowFlags(record.flags.0 & !FlowFlags::REPLY.0),
        // what becomes of the answers says too little
        translated: None,
        ..*record
    }
}

const fn wide(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}
