//! What was published about services and uplinks, read back from the live slot.

use std::net::IpAddr;

use aya::{
    Pod,
    maps::{Array, ArrayOfMaps, FromMapData, HashMap, InnerMap, LpmTrie, Map, MapData, MapError},
};
use ipnet::IpNet;
use netpol_common::{
    service::{Backend, MemberKey, ServiceKey, ServiceValue, Uplink},
    tables::IfIndex,
    wire::{Addr4, Addr6, Address, Protocol},
};

use super::{Datapath, Error};

/// The tables of the live generation, IPv4 before IPv6.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// Address, port and protocol, and what is there.
    pub services: Vec<(IpAddr, u16, Protocol, ServiceValue)>,
    /// Address and port, by index.
    pub backends4: Vec<(IpAddr, u16)>,
    pub backends6: Vec<(IpAddr, u16)>,
    pub maglev: Vec<u32>,
    /// Published address, port and protocol, and the index of a backend.
    pub members: Vec<(IpAddr, u16, Protocol, u32)>,
    pub pools: Vec<IpNet>,
    pub uplinks: Vec<(IfIndex, Uplink)>,
}

impl Datapath {
    /// Reads the live slot. While another publication runs, it may be of either.
    pub fn published(&self) -> Result<Published, Error> {
        let slot = self.live()?.generation.slot();
        let read = Reader { datapath: self, slot };
        let mut published = Published {
            services: read.services::<Addr4>("SERVICES4")?,
            backends4: read.backends::<Addr4>("BACKENDS4")?,
            backends6: read.backends::<Addr6>("BACKENDS6")?,
            maglev: read.array("MAGLEV")?,
            members: read.members::<Addr4>("MEMBERS4")?,
            pools: read.pools::<Addr4>("POOLS4")?,
            uplinks: read
                .hash::<u32, Uplink>("UPLINKS")?
                .into_iter()
                .map(|(key, value)| (IfIndex(key), value))
                .collect(),
        };
        published.services.extend(read.services::<Addr6>("SERVICES6")?);
        published.members.extend(read.members::<Addr6>("MEMBERS6")?);
        published.pools.extend(read.pools::<Addr6>("POOLS6")?);
        Ok(published)
    }
}

struct Reader<'a> {
    datapath: &'a Datapath,
    slot: u32,
}

impl Reader<'_> {
    fn services<A: Address + Into<IpAddr>>(
        &self,
        name: &str,
    ) -> Result<Vec<(IpAddr, u16, Protocol, ServiceValue)>, Error>
    where
        ServiceKey<A>: Pod,
    {
        let row = |(key, value): (ServiceKey<A>, _)| (key.address.into(), key.port.to_host(), key.protocol, value);
        Ok(self.hash(name)?.into_iter().map(row).collect())
    }

    fn members<A: Address + Into<IpAddr>>(&self, name: &str) -> Result<Vec<(IpAddr, u16, Protocol, u32)>, Error>
    where
        MemberKey<A>: Pod,
    {
        let row = |(key, index): (MemberKey<A>, _)| (key.address.into(), key.port.to_host(), key.protocol, index);
        Ok(self.hash(name)?.into_iter().filter(|(key, _): &(MemberKey<A>, u32)| !key.is_of_any()).map(row).collect())
    }

    fn backends<A: Address + Into<IpAddr>>(&self, name: &str) -> Result<Vec<(IpAddr, u16)>, Error>
    where
        Backend<A>: Pod,
    {
        let row = |backend: Backend<A>| (backend.address.into(), backend.port.to_host());
        Ok(self.array(name)?.into_iter().map(row).collect())
    }

    fn pools<A: Pod + Into<IpAddr>>(&self, name: &str) -> Result<Vec<IpNet>, Error> {
        let trie: LpmTrie<MapData, A, u32> = self.inner(name)?;
        let keys: Result<Vec<_>, _> = trie.keys().collect();
        let net = |(address, length): (IpAddr, u32)| IpNet::new(address, length as u8).ok();
        let keys = keys.map_err(Error::map(name))?;
        Ok(keys.into_iter().filter_map(|key| net((key.data().into(), key.prefix_len()))).collect())
    }

    fn hash<K: Pod, V: Pod>(&self, name: &str) -> Result<Vec<(K, V)>, Error> {
        let map: HashMap<MapData, K, V> = self.inner(name)?;
        map.iter().collect::<Result<_, _>>().map_err(Error::map(name))
    }

    fn array<V: Pod>(&self, name: &str) -> Result<Vec<V>, Error> {
        let map: Array<MapData, V> = self.inner(name)?;
        map.iter().collect::<Result<_, _>>().map_err(Error::map(name))
    }

    fn inner<M: FromMapData + InnerMap>(&self, name: &str) -> Result<M, Error> {
        let outer: Map = self.datapath.pins.map(name)?;
        let inner = || -> Result<M, MapError> { ArrayOfMaps::<MapData, M>::try_from(outer)?.get(&self.slot, 0) };
        inner().map_err(Error::map(name))
    }
}
