//! A verdict from the policy tables.

use crate::{
    tables::{Identity, MAX_RANGES, PairKey, PairValue, PortKey, ProtocolMatch, Range, Ruling, Subject},
    wire::Protocol,
};

/// The policy tables of one generation. Answers are references: of an `Option` of a value the compiler
/// copies undefined parts about, which the verifier refuses.
pub trait PolicyTables {
    fn pair(&self, key: &PairKey) -> Option<&PairValue>;
    fn port(&self, key: &PortKey) -> Option<&Ruling>;
    fn range(&self, index: u32) -> Option<&Range>;

    /// See [`verdict`]. The classifiers call it as a function that the verifier looks at on its own.
    #[inline(always)]
    fn verdict(&self, subject: Subject, peer: Identity, probe: Probe) -> Option<Ruling>
    where
        Self: Sized,
    {
        verdict(self, subject, peer, probe)
    }
}

/// What rules look at, in host byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Probe {
    pub protocol: Protocol,
    /// 0 for protocols without ports.
    pub source_port: u16,
    /// For ICMP: type in the high byte, code in the low one. 0 for protocols without ports.
    pub destination_port: u16,
}

impl Probe {
    /// In one register: protocol (bits 32-39), source port (16-31), destination port (0-15).
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        (self.protocol.0 as u64) << 32 | (self.source_port as u64) << 16 | self.destination_port as u64
    }

    /// The reverse of [`Probe::pack`].
    #[inline(always)]
    pub const fn unpack(packed: u64) -> Self {
        Self {
            protocol: Protocol((packed >> 32) as u8),
            source_port: (packed >> 16) as u16,
            destination_port: packed as u16,
        }
    }
}

impl Range {
    #[inline(always)]
    fn matches(&self, probe: Probe) -> bool {
        let same = self.protocol == probe.protocol;
        let protocol = match self.protocols {
            ProtocolMatch::EXACT => same,
            ProtocolMatch::NOT => !same,
            _ => true,
        };
        let within = |[low, high]: [u16; 2], port: u16| low <= port && port <= high;
        protocol && within(self.destination, probe.destination_port) && within(self.source, probe.source_port)
    }
}

/// What the policy says about `subject` and `peer`; `None`: the tables do not know the subject.
#[inline(always)]
pub fn verdict<T: PolicyTables>(tables: &T, subject: Subject, peer: Identity, probe: Probe) -> Option<Ruling> {
    let pair = match tables.pair(&PairKey { subject, peer }) {
        Some(pair) => pair,
        None => tables.pair(&PairKey { subject, peer: Identity::ANY })?,
    };
    let port = PortKey { ruleset: pair.ruleset, port: probe.destination_port, protocol: probe.protocol, reserved: 0 };
    if let Some(ruling) = tables.port(&port) {
        return Some(*ruling);
    }
    let mut index = 0;
    while index < MAX_RANGES && index < pair.count {
        let range = tables.range(pair.first.wrapping_add(index))?;
        if range.matches(probe) {
            return Some(range.ruling);
        }
        index += 1;
    }
    Some(pair.otherwise)
}
