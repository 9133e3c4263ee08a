//! Whether the kernel would take a packet straight from an endpoint out of an uplink, and back: as in [`delivery`], only
//! where nobody on the way would have a say but the host's routing, which the classifiers ask.
//!
//! [`delivery`]: super::delivery

use std::{collections::HashMap, io, net::IpAddr};

use netpol_common::tables::IfIndex;

use super::{
    Delivery, Discovery, Error, Found, Uplink, is_link_local,
    links::{self, Link},
    netfilter::{Layer, Netfilter},
};
use crate::netlink::{Family, Socket, attribute, word};

/// Decides for each endpoint how what passes the uplinks reaches it and leaves it.
///
/// # Errors
/// What the kernel does not tell.
pub fn outward(found: &mut Discovery, uplinks: &[Uplink]) -> Result<(), Error> {
    if found.workloads.is_empty() || uplinks.is_empty() {
        return Ok(());
    }
    let failed = |what| move |error| Error::Kernel { what, error };
    let mut socket = Socket::open(Family::Route).map_err(failed("the links"))?;
    let links = links::links(&mut socket).map_err(failed("the links"))?;
    let links: HashMap<u32, Link> = links.into_iter().map(|link| (link.index, link)).collect();
    // rules on an endpoint's own interface keep it from direct delivery altogether
    let interfaces = uplinks.iter().map(|uplink| uplink.name.as_str());
    let netfilter = Netfilter::read(interfaces).map_err(failed("the netfilter rules"))?;
    let encrypts = encrypts().map_err(failed("the IPsec policies"))?;
    let ways = Ways { links: &links, uplinks, netfilter: &netfilter, encrypts };
    for one in &mut found.workloads {
        let obstacle = ways.obstacle(one);
        one.workload.outward = obstacle.is_none();
        one.outside = obstacle.map_or(Delivery::Direct, Delivery::Stack);
    }
    Ok(())
}

/// What decides about the ways between endpoints and uplinks.
struct Ways<'a> {
    links: &'a HashMap<u32, Link>,
    uplinks: &'a [Uplink],
    netfilter: &'a Netfilter,
    /// There are IPsec policies.
    encrypts: bool,
}

impl Ways<'_> {
    /// Who would have a say about packets between this endpoint and the outside.
    fn obstacle(&self, found: &Found) -> Option<String> {
        if let Delivery::Stack(reason) = &found.delivery {
            return Some(reason.clone());
        }
        if self.encrypts {
            return Some("IPsec policies see what leaves by an uplink".to_owned());
        }
        let has = |family: fn(&IpAddr) -> bool| {
            found.workload.addresses.iter().any(|address| family(address) && !is_link_local(*address))
        };
        let (four, six) = (has(IpAddr::is_ipv4), has(IpAddr::is_ipv6));
        let layers = [(Layer::Ip, four), (Layer::Ip6, six)];
        if let Some(rules) = layers.into_iter().filter(|(_, has)| *has).find_map(|(layer, _)| self.netfilter.at(layer))
        {
            return Some(format!("{} sees routed packets", rules.name));
        }
        self.uplinks.iter().find_map(|uplink| self.uplink(found, uplink, four))
    }

    /// The same for one of the uplinks.
    fn uplink(&self, found: &Found, uplink: &Uplink, four: bool) -> Option<String> {
        if let Some(rules) = self.netfilter.on(&uplink.name) {
            return Some(format!("{} is on {}", rules.name, uplink.name));
        }
        let forwards = self.links.get(&uplink.ifindex.0).is_none_or(|link| link.forwards_ipv4);
        if four && !forwards {
            return Some(format!("the host does not route: net.ipv4.conf.{}.forwarding=0", uplink.name));
        }
        let own = [found.workload.ifindex, found.workload.master];
        let own = own.into_iter().filter(|&index| index != IfIndex::NONE);
        let narrow = own.filter_map(|index| self.links.get(&index.0)).find(|link| link.mtu < uplink.mtu)?;
        Some(format!("{} takes packets of {} bytes, uplink {} of {}", narrow.name, narrow.mtu, uplink.name, uplink.mtu))
    }
}

/// Whether this namespace has IPsec policies (linux/xfrm.h `XFRM_MSG_GETSPDINFO`).
fn encrypts() -> io::Result<bool> {
    const XFRM_MSG_GETSPDINFO: u16 = 0x25;
    const XFRMA_SPD_INFO: u16 = 1;
    let mut socket = match Socket::open(Family::Xfrm) {
        Ok(socket) => socket,
        // a kernel without IPsec
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(false),
        Err(error) => return Err(error),
    };
    let flags = [0; 4];
    let answer = socket.get(XFRM_MSG_GETSPDINFO, &flags)?;
    let counts = answer.get(flags.len()..).and_then(|attributes| attribute(attributes, XFRMA_SPD_INFO));
    // of packets that come in, go out and are forwarded; then the same of sockets, which are no concern here
    let counts = counts.unwrap_or_default().chunks_exact(size_of::<u32>()).take(3);
    Ok(counts.filter_map(word).any(|count| count != 0))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::{compile::Workload, netns::NamespaceId};

    fn link(index: u32, name: &str, mtu: u32) -> Link {
        Link { index, name: name.to_owned(), up: true, mtu, forwards_ipv4: true, ..Link::default() }
    }

    fn found() -> Found {
        let workload =
            Workload { master: IfIndex(3), ..Workload::at(0, IfIndex(7), vec![Ipv4Addr::new(10, 0, 0, 1).into()]) };
        Found {
            workload,
            interface: "v-a".into(),
            container_interface: "eth0".into(),
            namespace: NamespaceId { device: 0, inode: 0 },
            delivery: Delivery::Direct,
            outside: Delivery::Direct,
        }
    }

    /// Why an endpoint on a bridge takes the stack to an uplink.
    fn reason(found: &Found, (port, bridge, uplink): (u32, u32, Link), encrypts: bool) -> Option<String> {
        let uplinks = [Uplink {
            ifindex: IfIndex(uplink.index),
            name: uplink.name.clone(),
            address4: Some(Ipv4Addr::new(192, 0, 2, 1)),
            address6: None,
            mac: [8; 6],
            mtu: uplink.mtu,
        }];
        let links = [link(7, "v-a", port), link(3, "br0", bridge), uplink].map(|link| (link.index, link)).into();
        let netfilter = Netfilter::default();
        Ways { links: &links, uplinks: &uplinks, netfilter: &netfilter, encrypts }.obstacle(found)
    }

    #[test]
    fn nobody_has_a_say_on_a_plain_way_out() {
        assert_eq!(reason(&found(), (1500, 1500, link(2, "eth0", 1500)), false), None);
    }

    #[test]
    fn who_has_a_say_is_named() {
        let narrow = "v-a takes packets of 1400 bytes, uplink eth0 of 1500";
        assert_eq!(reason(&found(), (1400, 1500, link(2, "eth0", 1500)), false).as_deref(), Some(narrow));
        let narrow = "br0 takes packets of 1400 bytes, uplink eth0 of 1500";
        assert_eq!(reason(&found(), (1500, 1400, link(2, "eth0", 1500)), false).as_deref(), Some(narrow));
        let host = Link { forwards_ipv4: false, ..link(2, "eth0", 1500) };
        let still = "the host does not route: net.ipv4.conf.eth0.forwarding=0";
        assert_eq!(reason(&found(), (1500, 1500, host), false).as_deref(), Some(still));
        let encrypted = "IPsec policies see what leaves by an uplink";
        assert_eq!(reason(&found(), (1500, 1500, link(2, "eth0", 1500)), true).as_deref(), Some(encrypted));
        let bridged = Found { delivery: Delivery::Stack("bridge br0 filters by VLAN".into()), ..found() };
        let filters = "bridge br0 filters by VLAN";
        assert_eq!(reason(&bridged, (1500, 1500, link(2, "eth0", 1500)), false).as_deref(), Some(filters));
    }
}
