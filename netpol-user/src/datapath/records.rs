//! What the classifiers remember and count, read from their maps.

use std::{borrow::Borrow, io, net::IpAddr, time::Duration};

use aya::{
    Pod,
    maps::{Map, MapData, PerCpuArray},
};
use netpol_common::{
    drops::{Count, Drop, Pass, Side, Verdict, audit_code, counter, verdict_code},
    flow::{FlowFlags, FlowKey, FlowValue, Generation, Ticks},
    table::{Block, Slot},
    tables::{IfIndex, RuleId},
    wire::{Addr4, Addr6, Address, PortBe, Protocol},
};

use super::{
    Datapath, Error, batch,
    table::{self, TABLES},
};

/// One entry: a direction of a connection at one place, or a remembered denial.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    pub interface: IfIndex,
    /// The interface of the other end, where the classifiers know it: where packets are delivered, or
    /// come from.
    pub far: IfIndex,
    pub side: Side,
    pub source: IpAddr,
    pub destination: IpAddr,
    /// See [`FlowKey`] about ICMP.
    pub source_port: u16,
    pub destination_port: u16,
    pub protocol: Protocol,
    pub generation: Generation,
    pub flags: FlowFlags,
    /// `None`: allowed.
    pub denied: Option<Drop>,
    pub packets: u64,
    pub bytes: u64,
    /// Since the last packet.
    pub idle: Duration,
    /// [`RuleId::NONE`] also in the direction of `audited`: there is room for one.
    pub egress_rule: RuleId,
    pub ingress_rule: RuleId,
    /// What passes, and audited policies would stop.
    pub audited: Option<Audited>,
    pub tcp_flags: u8,
    /// The packet as it leaves the hook, where it is translated there; of a denial, as it would leave.
    pub translated: Option<Translated>,
    /// The number of the service's port, from 1; 0: no service.
    pub service: u32,
}

/// Why audited policies would stop it: [`Drop::PolicyEgress`] or [`Drop::PolicyIngress`], and the rule that would.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Audited {
    pub reason: Drop,
    pub rule: RuleId,
}

/// Addresses and ports that a packet is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translated {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub source_port: u16,
    pub destination_port: u16,
}

impl Record {
    /// Of a record at an interface to the outside: it is all that there is of its packets. (Others pass an endpoint's
    /// interface, too, and are in the records of that.)
    pub fn ends_at_uplink(&self) -> bool {
        self.denied.is_some() || self.flags.has(FlowFlags::ROUTED)
    }

    /// Between whom policy judges: the one who sends the packet and, behind a service, the one who gets it.
    pub fn judged(&self) -> Self {
        match self.translated {
            None => *self,
            Some(Translated { destination, destination_port, .. }) => Self { destination, destination_port, ..*self },
        }
    }
}

/// A verdict's counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    pub side: Side,
    pub verdict: Verdict,
    pub packets: u64,
    pub bytes: u64,
}

impl Datapath {
    /// All flows and denials. An entry that comes or goes meanwhile may be missing or old.
    pub fn records(&self) -> Result<Vec<Record>, Error> {
        let mut records = Vec::new();
        self.each_record(|record| records.push(record))?;
        Ok(records)
    }

    /// The same, one by one.
    pub fn each_record(&self, each: impl FnMut(Record)) -> Result<(), Error> {
        each_of(|name| self.pins.map(name), each)
    }

    /// The counters of all verdicts that occurred.
    pub fn counters(&self) -> Result<Vec<Counter>, Error> {
        let passes = Pass::ALL.iter().map(|pass| Ok(*pass));
        let verdicts = passes.chain(Drop::ALL.iter().map(|drop| Err(*drop)));
        self.counted(verdicts.map(|verdict| (verdict, verdict_code(verdict))))
    }

    /// What passed, and audited policies would have stopped, by the verdict that it would have had. These packets are among
    /// [`Self::counters`], as what became of them.
    pub fn would_drop(&self) -> Result<Vec<Counter>, Error> {
        let reasons = [Drop::PolicyEgress, Drop::PolicyIngress];
        self.counted(reasons.into_iter().map(|reason| (Err(reason), audit_code(reason))))
    }

    fn counted(&self, codes: impl Iterator<Item = (Verdict, u32)>) -> Result<Vec<Counter>, Error> {
        let map: PerCpuArray<MapData, Count> = self.pins.map("COUNTS")?.try_into().map_err(Error::map("COUNTS"))?;
        let mut counters = Vec::new();
        for (verdict, code) in codes {
            for side in [Side::From, Side::To] {
                let index = counter(side, code);
                let counts = map.get(&index, 0).map_err(Error::map("COUNTS"))?;
                let (packets, bytes) = counts.iter().fold((0, 0), |(p, b), c| (p + c.packets, b + c.bytes));
                if packets > 0 {
                    counters.push(Counter { side, verdict, packets, bytes });
                }
            }
        }
        Ok(counters)
    }
}

/// Gives the flows and denials of these maps to `each`.
pub(super) fn each_of<M: Borrow<Map>>(
    map: impl Fn(&'static str) -> Result<M, Error>,
    mut each: impl FnMut(Record),
) -> Result<(), Error> {
    let [v4, v6] = TABLES.map(|table| table.map);
    of_family::<Addr4, M>([v4, "DENIALS4"], &map, &mut each)?;
    of_family::<Addr6, M>([v6, "DENIALS6"], &map, &mut each)
}

fn of_family<A: Address, M: Borrow<Map>>(
    [flows, refused]: [&'static str; 2],
    map: &impl Fn(&'static str) -> Result<M, Error>,
    each: &mut impl FnMut(Record),
) -> Result<(), Error>
where
    Block<A>: Pod,
    Slot<A>: Pod,
{
    let (now, error) = (now(), |map| move |error| Error::Read { map, error });
    let mut give = |slot: &Slot<A>, is_denial| each(record(&slot.key, &slot.value, (is_denial, now)));
    table::read(map(flows)?.borrow(), |slot| give(slot, false)).map_err(error(flows))?;
    denials(map(refused)?.borrow(), |_, slot| give(slot, true)).map_err(error(refused))
}

/// Each place of a table of denials where one is, with its number.
pub(super) fn denials<A: Address>(map: &Map, mut each: impl FnMut(u32, &Slot<A>)) -> io::Result<()>
where
    Slot<A>: Pod,
{
    // one that is being written is what was there before, or comes later
    batch::elements(map, |place, slot: &Slot<A>| {
        if slot.is_of(&slot.key) {
            each(*place, slot);
        }
    })
}

/// The clock that the classifiers' ticks are of, and theirs to a jiffy.
pub(super) fn now() -> Ticks {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC_COARSE)
        .unwrap_or(nix::sys::time::TimeSpec::new(0, 0));
    Ticks::from_nanos(Duration::from(time).as_nanos() as u64)
}

pub(super) fn record<A: Address>(key: &FlowKey<A>, value: &FlowValue<A>, (denials, now): (bool, Ticks)) -> Record {
    let flags = value.word.flags();
    let reason = if flags.has(FlowFlags::EGRESS_DENIED) { Drop::PolicyEgress } else { Drop::PolicyIngress };
    let (egress_rule, ingress_rule) = (value.egress_rule.rule(), value.ingress_rule.rule());
    let (egress_rule, ingress_rule, audited) = match (flags.has(FlowFlags::AUDITED), reason) {
        (false, _) => (egress_rule, ingress_rule, None),
        (true, Drop::PolicyEgress) => (RuleId::NONE, ingress_rule, Some(Audited { reason, rule: egress_rule })),
        (true, _) => (egress_rule, RuleId::NONE, Some(Audited { reason, rule: ingress_rule })),
    };
    let (becomes, port) = (value.becomes(key), |port: PortBe| port.to_host());
    Record {
        interface: key.place.ifindex(),
        far: value.ifindex,
        side: key.place.side(),
        source: key.source.into(),
        destination: key.destination.into(),
        source_port: port(key.ports.source()),
        destination_port: port(key.ports.destination()),
        protocol: key.protocol(),
        generation: value.word.generation(),
        flags,
        denied: denials.then_some(reason),
        packets: value.packets,
        bytes: value.bytes,
        idle: Duration::from_nanos(u64::from(now.since(value.seen)) << 20),
        egress_rule,
        ingress_rule,
        audited,
        tcp_flags: value.tcp_flags,
        translated: (flags.has(FlowFlags::TRANSLATED) || denials && value.service != 0).then(|| Translated {
            source: becomes.source.into(),
            destination: becomes.destination.into(),
            source_port: port(becomes.ports.source()),
            destination_port: port(becomes.ports.destination()),
        }),
        service: value.service,
    }
}

impl std::fmt::Debug for Datapath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Datapath").field("pins", &self.pins).finish_non_exhaustive()
    }
}
