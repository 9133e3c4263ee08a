//! How full the maps are that the classifiers fill themselves. The kernel keeps no count for a hash, so entries
//! are counted by walking the keys.

use aya::maps::{HashMap, MapData, MapInfo};
use netpol_common::{
    kernel::{FragmentKey, FragmentPorts},
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
}

impl Datapath {
    /// The maps of flows, denials and fragments; `records` are what [`Self::records`] has just read.
    pub fn usage(&self, records: &[Record]) -> Result<Vec<Usage>, Error> {
        let mut entries = usage_of(records).to_vec();
        entries.push(("FRAGMENTS4", "fragments", "ipv4", self.fragments::<Addr4>("FRAGMENTS4")?));
        entries.push(("FRAGMENTS6", "fragments", "ipv6", self.fragments::<Addr6>("FRAGMENTS6")?));
        let usage = |(name, map, family, entries)| {
            let info = MapInfo::from_pin(self.pins.maps().join(name)).map_err(Error::map(name))?;
            Ok(Usage { map, family, entries, capacity: info.max_entries().into() })
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

/// The pin's name, map and family of each map of flows and denials, with how many of the records are its.
fn usage_of(records: &[Record]) -> [(&'static str, &'static str, &'static str, u64); 4] {
    let count = |denied: bool, v4: bool| {
        records.iter().filter(|r| r.denied.is_some() == denied && r.source.is_ipv4() == v4).count() as u64
    };
    [
        ("FLOWS4", "flows", "ipv4", count(false, true)),
        ("FLOWS6", "flows", "ipv6", count(false, false)),
        ("DENIALS4", "denials", "ipv4", count(true, true)),
        ("DENIALS6", "denials", "ipv6", count(true, false)),
    ]
}
