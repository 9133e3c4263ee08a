//! The verdict about one direction of a connection, found in the compiled tables.
//!
//! Precedence (tiers, order, pass, defaults) was settled when they were compiled, so at most one
//! entry can answer at each step and the first step that answers is right:
//!
//! 1. the pair of subject and peer, else the subject's pair with [`Identity::ANY`];
//! 2. the exact port;
//! 3. the pair's ranges, in order;
//! 4. the pair's own last word.

use crate::{
    tables::{Identity, MAX_RANGES, PairKey, PairValue, PortKey, Range, RulesetId, Ruling, Subject},
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

/// What rules look at in the first packet of a connection. Host byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Probe {
    pub protocol: Protocol,
    /// 0 for ICMP and protocols without ports.
    pub source_port: u16,
    /// For ICMP: type in the high byte, code in the low one. 0 for protocols without ports.
    pub destination_port: u16,
}

/// What the tables say about `subject` talking with `peer`.
///
/// `None`: they have nothing about the subject (or miss a range that a pair promises), which is
/// right where no policy is about it and a reason to drop where one is.
#[inline(always)]
pub fn verdict(tables: &impl PolicyTables, subject: Subject, peer: Identity, probe: Probe) -> Option<Ruling> {
    let pair = match tables.pair(&PairKey { subject, peer }) {
        Some(pair) => pair,
        None => tables.pair(&PairKey { subject, peer: Identity::ANY })?,
    };
    if pair.ruleset != RulesetId::NONE {
        let Probe { protocol, destination_port, .. } = probe;
        let key = PortKey { ruleset: pair.ruleset, port: destination_port, protocol, reserved: 0 };
        if let Some(ruling) = tables.port(&key) {
            return Some(*ruling);
        }
    }
    // The bound is a constant for the verifier; a longer list is never published.
    let mut index = 0;
    while index < MAX_RANGES {
        if index >= pair.count {
            return Some(pair.otherwise);
        }
        let range = tables.range(pair.first.wrapping_add(index))?;
        if holds(range, probe) {
            return Some(range.ruling);
        }
        index += 1;
    }
    (pair.count <= MAX_RANGES).then_some(pair.otherwise)
}

#[inline(always)]
fn holds(range: &Range, probe: Probe) -> bool {
    let [low, high] = range.destination;
    let [source_low, source_high] = range.source;
    range.protocol == probe.protocol
        && low <= probe.destination_port
        && probe.destination_port <= high
        && source_low <= probe.source_port
        && probe.source_port <= source_high
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::{vec, vec::Vec};

    use super::*;
    use crate::tables::RuleId;

    #[derive(Default)]
    struct Lists {
        pairs: Vec<(PairKey, PairValue)>,
        ports: Vec<(PortKey, Ruling)>,
        ranges: Vec<Range>,
    }

    impl PolicyTables for Lists {
        fn pair(&self, key: &PairKey) -> Option<&PairValue> {
            self.pairs.iter().find_map(|(k, value)| (k == key).then_some(value))
        }

        fn port(&self, key: &PortKey) -> Option<&Ruling> {
            self.ports.iter().find_map(|(k, ruling)| (k == key).then_some(ruling))
        }

        fn range(&self, index: u32) -> Option<&Range> {
            self.ranges.get(index as usize)
        }
    }

    const SUBJECT: Subject = Subject::ingress(Identity(16));
    const PEER: Identity = Identity(17);

    fn rule(n: u32) -> Ruling {
        Ruling::allow(RuleId(n))
    }

    fn tcp(source_port: u16, destination_port: u16) -> Probe {
        Probe { protocol: Protocol::TCP, source_port, destination_port }
    }

    fn range(destination: [u16; 2], source: [u16; 2], ruling: Ruling) -> Range {
        Range { destination, source, protocol: Protocol::TCP, reserved: [0; 3], ruling }
    }

    /// One pair with port 80, two ranges that overlap, and a default deny.
    fn lists(peer: Identity) -> Lists {
        let value = PairValue { ruleset: RulesetId(1), first: 0, count: 2, otherwise: Ruling::deny(RuleId(9)) };
        let port = PortKey { ruleset: RulesetId(1), port: 80, protocol: Protocol::TCP, reserved: 0 };
        Lists {
            pairs: vec![(PairKey { subject: SUBJECT, peer }, value)],
            ports: vec![(port, rule(1))],
            ranges: vec![range([0, 1000], [53, 53], rule(2)), range([0, 100], [0, u16::MAX], rule(3))],
        }
    }

    #[test]
    fn the_first_step_that_answers_is_the_verdict() {
        let lists = lists(PEER);
        let ask = |probe| verdict(&lists, SUBJECT, PEER, probe);
        assert_eq!(ask(tcp(53, 80)), Some(rule(1)), "an exact port comes before ranges");
        assert_eq!(ask(tcp(53, 81)), Some(rule(2)), "ranges are asked in order");
        assert_eq!(ask(tcp(54, 81)), Some(rule(3)));
        assert_eq!(ask(tcp(54, 100)), Some(rule(3)), "ends are included");
        assert_eq!(ask(tcp(54, 101)), Some(Ruling::deny(RuleId(9))));
        assert_eq!(ask(Probe { protocol: Protocol::UDP, ..tcp(53, 80) }), Some(Ruling::deny(RuleId(9))));
    }

    #[test]
    fn a_peer_without_a_pair_is_any_peer() {
        assert_eq!(verdict(&lists(Identity::ANY), SUBJECT, PEER, tcp(1, 80)), Some(rule(1)));
    }

    #[test]
    fn a_subject_without_pairs_has_no_verdict() {
        assert_eq!(verdict(&lists(PEER), SUBJECT, Identity::WORLD, tcp(1, 80)), None);
        assert_eq!(verdict(&Lists::default(), SUBJECT, PEER, tcp(1, 80)), None);
    }

    #[test]
    fn a_missing_range_is_no_verdict() {
        let mut lists = lists(PEER);
        lists.ranges.pop();
        assert_eq!(verdict(&lists, SUBJECT, PEER, tcp(1, 81)), None);
    }

    #[test]
    fn a_list_longer_than_the_bound_is_no_verdict() {
        let mut lists = lists(PEER);
        lists.ranges = vec![range([7, 7], [7, 7], rule(1)); MAX_RANGES as usize + 1];
        lists.pairs[0].1.count = MAX_RANGES;
        assert_eq!(verdict(&lists, SUBJECT, PEER, tcp(1, 81)), Some(Ruling::deny(RuleId(9))));
        lists.pairs[0].1.count = MAX_RANGES + 1;
        assert_eq!(verdict(&lists, SUBJECT, PEER, tcp(1, 81)), None);
    }
}
