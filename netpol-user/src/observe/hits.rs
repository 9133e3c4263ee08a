//! Which rules decide how much: packets of the flows and denials that are remembered, by rule.

use std::collections::BTreeMap;

use super::tally::{Kind, Sum};

/// What a rule decided about, of what is remembered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hits {
    /// Connections, or denied attempts.
    pub flows: u64,
    /// Of clients: what is answered needs no rule.
    pub packets: u64,
    pub bytes: u64,
}

impl std::ops::AddAssign for Hits {
    fn add_assign(&mut self, Self { flows, packets, bytes }: Self) {
        self.flows += flows;
        self.packets += packets;
        self.bytes += bytes;
    }
}

/// By rule number. An allowed connection has two rules where both ends are isolated, a denied one has the
/// rule that said no.
pub fn hits(rows: &BTreeMap<Kind, Sum>) -> BTreeMap<u32, Hits> {
    let mut hits: BTreeMap<u32, Hits> = BTreeMap::new();
    for (kind, sum) in rows {
        let sent = sum.sent();
        let of = Hits { flows: sum.connections(), packets: sent.packets, bytes: sent.bytes };
        for rule in kind.deciders() {
            *hits.entry(rule).or_default() += of;
        }
    }
    hits
}
