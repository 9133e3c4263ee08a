//! Who talks to whom, summed up: records of one kind of connection become one row.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use netpol_common::wire::Protocol;

use super::ends::{End, Ends};
use crate::datapath::{Drop, FlowFlags, Record};

/// How many outside addresses of a row are remembered.
const ADDRESSES: usize = 8;

/// What the connections of a row have in common. The client is who opened them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind {
    pub client: End,
    pub server: End,
    /// `None`: allowed.
    pub denied: Option<Reason>,
    /// Allowed, and audited policies would say no.
    pub would_drop: Option<Reason>,
    /// IANA's number.
    pub protocol: u8,
    /// The server's; `None` for protocols without ports.
    pub port: Option<u16>,
    /// Numbers in the names of the present generation; 0: no policy had a say.
    pub egress_rule: u32,
    pub ingress_rule: u32,
    /// The one that would say no.
    pub audit_rule: u32,
    /// Judged by the present generation; else the rules are not known any more.
    pub current: bool,
}

impl Kind {
    /// Numbers of the rules that decided: of a denied connection the one that said no, or would.
    pub fn deciders(&self) -> impl Iterator<Item = u32> + use<> {
        let rules = match (self.denied, self.would_drop) {
            (Some(Reason::Egress), _) => [self.egress_rule, 0],
            (Some(Reason::Ingress), _) => [0, self.ingress_rule],
            (None, Some(_)) => [self.audit_rule, 0],
            (None, None) => [self.egress_rule, self.ingress_rule],
        };
        rules.into_iter().filter(|rule| *rule != 0)
    }
}

/// Which policy said no.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    Egress,
    Ingress,
}

impl From<Drop> for Reason {
    fn from(reason: Drop) -> Self {
        if matches!(reason, Drop::PolicyEgress) { Self::Egress } else { Self::Ingress }
    }
}

impl Reason {
    /// As drop counters and flows name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Egress => Drop::PolicyEgress.name(),
            Self::Ingress => Drop::PolicyIngress.name(),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    pub packets: u64,
    pub bytes: u64,
}

impl Amount {
    fn add(&mut self, packets: u64, bytes: u64) {
        self.packets += packets;
        self.bytes += bytes;
    }

    fn most(of: [Self; 2]) -> Self {
        let [one, other] = of;
        if other.packets > one.packets { other } else { one }
    }
}

/// A row's numbers, by the side at which they were counted: a packet between two endpoints can be
/// remembered at the sender's interface and at the receiver's, and must not count twice.
#[derive(Clone, Debug, Default)]
pub struct Sum {
    sent: [Amount; 2],
    replied: [Amount; 2],
    entries: [u64; 2],
    idle: Option<Duration>,
    /// Outside addresses, the first few in order.
    pub addresses: BTreeSet<IpAddr>,
    /// There are others.
    pub more_addresses: bool,
}

impl Sum {
    /// What clients sent.
    pub fn sent(&self) -> Amount {
        Amount::most(self.sent)
    }

    /// What servers answered.
    pub fn replied(&self) -> Amount {
        Amount::most(self.replied)
    }

    /// Connections, or denied attempts that are remembered.
    pub fn connections(&self) -> u64 {
        self.entries[0].max(self.entries[1])
    }

    /// Since the last packet.
    pub fn idle(&self) -> Duration {
        self.idle.unwrap_or_default()
    }

    fn add(&mut self, record: &Record, is_reply: bool) {
        let side = record.side as usize;
        if is_reply {
            self.replied[side].add(record.packets, record.bytes);
        } else {
            self.sent[side].add(record.packets, record.bytes);
            self.entries[side] += 1;
        }
        self.idle = Some(self.idle.map_or(record.idle, |idle| idle.min(record.idle)));
    }

    fn note(&mut self, address: IpAddr) {
        self.addresses.insert(address);
        if self.addresses.len() > ADDRESSES {
            self.addresses.pop_last();
            self.more_addresses = true;
        }
    }
}

/// Sums up records, in one pass.
pub fn tally(records: &[Record], ends: &Ends, generation: u32) -> BTreeMap<Kind, Sum> {
    let mut rows: BTreeMap<Kind, Sum> = BTreeMap::new();
    for record in records.iter().filter(|record| !ends.only_passes(record)).map(Record::judged) {
        let record = &record;
        let is_reply = record.denied.is_none() && record.flags.has(FlowFlags::REPLY);
        let (source, destination) = ends.of(record);
        let (client, server) = if is_reply { (destination, source) } else { (source, destination) };
        let port = if is_reply { record.source_port } else { record.destination_port };
        let current = record.generation.0 == generation;
        let rule = |number: u32| if current { number } else { 0 };
        let audited = record.audited.filter(|_| record.denied.is_none());
        let kind = Kind {
            client,
            server,
            denied: record.denied.map(Reason::from),
            would_drop: audited.map(|audited| audited.reason.into()),
            protocol: record.protocol.0,
            port: record.protocol.has_ports().then_some(port),
            egress_rule: rule(record.egress_rule.0),
            ingress_rule: rule(record.ingress_rule.0),
            audit_rule: audited.map_or(0, |audited| rule(audited.rule.0)),
            current,
        };
        let sum = rows.entry(kind).or_default();
        sum.add(record, is_reply);
        for (end, address) in [(source, record.source), (destination, record.destination)] {
            if end == End::Outside {
                sum.note(address);
            }
        }
    }
    rows
}

/// The protocol's name, as rules write it.
pub fn protocol(number: u8) -> String {
    Protocol(number).to_string()
}
