//! The interfaces to the outside: those with a default route, or those that somebody names.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netpol_common::{
    service,
    tables::IfIndex,
    wire::{Addr6, Address as _, Mac},
};

use super::{
    Discovery, Error,
    links::{self, Assigned, DefaultRoute, Link},
};
use crate::netlink::{Family, Socket};

/// An interface to the outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    pub ifindex: IfIndex,
    pub name: String,
    /// What the host itself would send from; `None`: no usable address of that family.
    pub address4: Option<Ipv4Addr>,
    pub address6: Option<Ipv6Addr>,
    pub mac: Mac,
    /// In bytes, without the link's own header.
    pub mtu: u32,
}

impl From<&Uplink> for service::Uplink {
    fn from(Uplink { address4, address6, mac, mtu, .. }: &Uplink) -> Self {
        Self {
            address4: address4.unwrap_or(Ipv4Addr::UNSPECIFIED).into(),
            address6: address6.map_or(Addr6::UNSPECIFIED, Into::into),
            mac: (*mac).into(),
            reserved: 0,
            mtu: *mtu,
        }
    }
}

/// The uplinks of the calling thread's namespace, in the order of their numbers: those called `named`, or, when
/// none is, those with a default route in the main table. An interface of an endpoint, or a bridge of endpoints, or one
/// without Ethernet frames (a tunnel) never is one.
pub fn uplinks(found: &Discovery, named: &[String]) -> Result<Vec<Uplink>, Error> {
    let failed = |what| move |error| Error::Kernel { what, error };
    let mut socket = Socket::open(Family::Route).map_err(failed("the links"))?;
    let links = links::links(&mut socket).map_err(failed("the links"))?;
    let addresses = links::addresses(&mut socket).map_err(failed("the addresses"))?;
    let routes = links::default_routes(&mut socket).map_err(failed("the routes"))?;
    let inner: HashSet<u32> = found
        .workloads
        .iter()
        .flat_map(|found| [found.workload.ifindex.0, found.workload.master.0])
        .filter(|&index| index != IfIndex::NONE.0)
        .collect();
    let chosen = if named.is_empty() {
        let outside: HashSet<u32> = routes.iter().map(|route| route.link).collect();
        let is_uplink = |link: &Link| outside.contains(&link.index) && !inner.contains(&link.index) && has_frames(link);
        links.into_iter().filter(is_uplink).collect()
    } else {
        by_name(links, &inner, named)?
    };
    let preferred = preferred(&routes);
    let uplink = |link: Link| {
        let own = |family: fn(&IpAddr) -> bool| {
            let wanted = preferred.get(&link.index).into_iter().flatten().copied().find(family);
            wanted.or_else(|| primary(&addresses, link.index, family))
        };
        let (four, six) = (own(IpAddr::is_ipv4), own(IpAddr::is_ipv6));
        Uplink {
            ifindex: IfIndex(link.index),
            address4: four.and_then(|address| if let IpAddr::V4(four) = address { Some(four) } else { None }),
            address6: six.and_then(|address| if let IpAddr::V6(six) = address { Some(six) } else { None }),
            mac: link.mac,
            mtu: link.mtu,
            name: link.name,
        }
    };
    Ok(chosen.into_iter().map(uplink).collect())
}

fn by_name(links: Vec<Link>, inner: &HashSet<u32>, named: &[String]) -> Result<Vec<Link>, Error> {
    let names: HashSet<&str> = named.iter().map(String::as_str).collect();
    let chosen: Vec<Link> = links.into_iter().filter(|link| names.contains(link.name.as_str())).collect();
    let known: HashSet<&str> = chosen.iter().map(|link| link.name.as_str()).collect();
    if let Some(missing) = named.iter().find(|name| !known.contains(name.as_str())) {
        return Err(Error::NoUplink { name: missing.clone() });
    }
    if let Some(link) = chosen.iter().find(|link| inner.contains(&link.index)) {
        return Err(Error::InnerUplink { name: link.name.clone() });
    }
    match chosen.iter().find(|link| !has_frames(link)) {
        Some(link) => Err(Error::BareUplink { name: link.name.clone() }),
        None => Ok(chosen),
    }
}

/// Whether packets have an Ethernet header there, which is what the classifiers read: tunnels have no MAC address.
fn has_frames(link: &Link) -> bool {
    link.mac != [0; 6]
}

/// By interface: the source addresses that its default routes name, those of the best route first.
fn preferred(routes: &[DefaultRoute]) -> HashMap<u32, Vec<IpAddr>> {
    let mut sorted: BTreeMap<(u32, usize), &DefaultRoute> = BTreeMap::new();
    routes.iter().enumerate().for_each(|(order, route)| _ = sorted.insert((route.priority, order), route));
    let mut preferred: HashMap<u32, Vec<IpAddr>> = HashMap::new();
    for route in sorted.into_values() {
        preferred.entry(route.link).or_default().extend(route.source);
    }
    preferred
}

/// The first address that is good everywhere, and that the kernel would not rather avoid.
fn primary(addresses: &[Assigned], link: u32, family: fn(&IpAddr) -> bool) -> Option<IpAddr> {
    let usable = |assigned: &&Assigned| assigned.link == link && assigned.primary && family(&assigned.address);
    addresses.iter().find(usable).map(|assigned| assigned.address)
}
