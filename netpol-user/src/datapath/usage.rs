//! How full the maps are that the classifiers fill themselves. The kernel keeps no count for a hash, so entries
//! are counted by walking the keys.

use aya::maps::{HashMap, MapData, MapInfo, PerCpuArray};
use netpol_common::{
    kernel::{FragmentKey, FragmentPorts, Turnover},
    table::ALL,
    wire::{Addr4, Addr6, Address},
};

use super::{Datapath, Error, Record};

/// One map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// `flows`, `denials` or `fragments`.
    pub map: &'static str,
    /// `ipv4` or `ipv6`.
    pub family: &'static str,
    pub entries: u64,
    pub capacity: u64,
    /// Entries that made room for others since the first load, where that is counted.
    pub evicted: Option<u64>,
}

/// What was counted of the memory, to be read before the records are: those that are made meanwhile were not evicted.
#[derive(Clone, Copy, Debug)]
pub struct Turned([u64; Turnover::ROOM]);

impl Turned {
    fn of<A: Address>(self, what: Turnover) -> u64 {
        self.0[what.place::<A>() as usize]
    }
}

impl Datapath {
    /// All CPUs' counts.
    pub fn turned(&self) -> Result<Turned, Error> {
        let map: PerCpuArray<MapData, u64> = self.pins.map("TURNOVER")?.try_into().map_err(Error::map("TURNOVER"))?;
        let mut turned = [0; Turnover::ROOM];
        for (place, count) in (0..).zip(&mut turned) {
            *count = map.get(&place, 0).map_err(Error::map("TURNOVER"))?.iter().sum();
        }
        Ok(Turned(turned))
    }

    /// The maps of flows, denials and fragments; `records` are what [`Self::records`] has just read, after `turned`.
    pub fn usage(&self, turned: Turned, records: &[Record]) -> Result<Vec<Usage>, Error> {
        let count = |denied: bool, v4: bool| {
            records.iter().filter(|r| r.denied.is_some() == denied && r.source.is_ipv4() == v4).count() as u64
        };
        let flows = |entries: u64, made: u64| (entries, Some(made.saturating_sub(entries)));
        let denials = |entries, forgotten| (entries, Some(forgotten));
        let entries = [
            ("FLOWS4", "flows", "ipv4", flows(count(false, true), turned.of::<Addr4>(Turnover::FlowsMade))),
            ("FLOWS6", "flows", "ipv6", flows(count(false, false), turned.of::<Addr6>(Turnover::FlowsMade))),
            ("DENIALS4", "denials", "ipv4", denials(count(true, true), turned.of::<Addr4>(Turnover::DenialsForgotten))),
            (
                "DENIALS6",
                "denials",
                "ipv6",
                denials(count(true, false), turned.of::<Addr6>(Turnover::DenialsForgotten)),
            ),
            ("FRAGMENTS4", "fragments", "ipv4", (self.fragments::<Addr4>("FRAGMENTS4")?, None)),
            ("FRAGMENTS6", "fragments", "ipv6", (self.fragments::<Addr6>("FRAGMENTS6")?, None)),
        ];
        let usage = |(name, map, family, (entries, evicted))| {
            let info = MapInfo::from_pin(self.pins.maps().join(name)).map_err(Error::map(name))?;
            let places = if map == "flows" { ALL as u64 } else { 1 };
            Ok(Usage { map, family, entries, capacity: u64::from(info.max_entries()) * places, evicted })
        };
        entries.into_iter().map(usage).collect()
    }

    fn fragments<A: Address>(&self, name: &'static str) -> Result<u64, Error>
    where
        FragmentKey<A>: aya::Pod,
    {
        let map: HashMap<MapData, FragmentKey<A>, FragmentPorts> =
            self.pins.map(name)?.try_into().map_err(Error::map(name))?;
        // an entry that is evicted under the walk ends it or starts it anew: no more than there is room for
        let room = MapInfo::from_pin(self.pins.maps().join(name)).map_err(Error::map(name))?.max_entries();
        Ok(map.keys().take(room as usize).count() as u64)
    }
}
