//! This namespace, where the host ends of the veths are: one dump of its interfaces and addresses,
//! and the settings that decide what it does between two of them.

use std::{collections::HashMap, fs, io, net::IpAddr};

use netpol_common::tables::{IfIndex, Network};

use super::{
    Bridge, BridgePort, Delivery, Error, Found, Inside, Obstacle, PortState, ROUTED,
    delivery::Paths,
    is_link_local,
    links::{self, Link},
    netfilter::Netfilter,
};
use crate::{
    compile::Workload,
    netlink::{Family, Socket},
    netns::{Namespace, NamespaceId},
};

pub(super) struct Host {
    pub namespace: NamespaceId,
    pub addresses: Vec<IpAddr>,
    pub settings: Settings,
    links: HashMap<u32, Link>,
    socket: Socket,
}

/// What /proc/sys says.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Settings {
    /// Bridged packets meet the hooks of ip and ip6 as well.
    pub bridge_nf_call_iptables: bool,
    pub bridge_nf_call_ip6tables: bool,
    pub forwards_ipv6: bool,
}

impl Settings {
    fn read() -> Self {
        // /proc/sys/net shows the reader's own namespace
        let on = |name: &str| fs::read_to_string(format!("/proc/sys/net/{name}")).is_ok_and(|text| text.trim() != "0");
        Self {
            bridge_nf_call_iptables: on("bridge/bridge-nf-call-iptables"),
            bridge_nf_call_ip6tables: on("bridge/bridge-nf-call-ip6tables"),
            forwards_ipv6: on("ipv6/conf/all/forwarding"),
        }
    }
}

impl Host {
    pub(super) fn read() -> Result<Self, Error> {
        let failed = |what| move |error| Error::Kernel { what, error };
        let namespace = Namespace::current().and_then(|namespace| namespace.id()).map_err(failed("the identity"))?;
        let mut socket = Socket::open(Family::Route).map_err(failed("the links"))?;
        let links = links::links(&mut socket).map_err(failed("the links"))?;
        let addresses = links::addresses(&mut socket).map_err(failed("the addresses"))?;
        let mut addresses: Vec<_> = addresses.into_iter().map(|assigned| assigned.address).collect();
        addresses.sort_unstable();
        addresses.dedup();
        let links = links.into_iter().map(|link| (link.index, link)).collect();
        Ok(Self { namespace, addresses, settings: Settings::read(), links, socket })
    }

    /// Finds the host end of an endpoint's veth.
    pub(super) fn pair(&self, endpoint: usize, inside: Inside) -> Result<Found, Obstacle> {
        let Inside { namespace, place, number, index, interface, mac, peer, addresses } = inside;
        if namespace == self.namespace {
            let reason = format!("{place} is the network namespace that netpol runs in: nothing is between them");
            return Err(Obstacle::Pending(reason));
        }
        // numbers repeat between namespaces: each end must name the other one
        let is_peer = |link: &&Link| {
            link.kind == "veth" && link.peer == Some(index) && number.is_some() && link.peer_namespace == number
        };
        let Some(link) = self.links.get(&peer).filter(is_peer) else {
            let reason = format!(
                "the other end of {interface} in {place} is not in this network namespace: run netpol where it is"
            );
            return Err(Obstacle::Pending(reason));
        };
        let master = link.master.map_or(IfIndex::NONE, IfIndex);
        let workload = Workload {
            endpoint,
            ifindex: IfIndex(link.index),
            network: if master == IfIndex::NONE { ROUTED } else { Network(master.0) },
            master,
            segment: 0,
            mac,
            host_mac: link.mac,
            router_mac: link.master.and_then(|master| self.links.get(&master)).map_or(link.mac, |bridge| bridge.mac),
            port_isolated: link.port.is_some_and(|port| port.isolated),
            routed: master == IfIndex::NONE,
            outward: false,
            addresses,
        };
        let unknown = Delivery::Stack(String::new());
        Ok(Found {
            workload,
            interface: link.name.clone(),
            container_interface: interface,
            namespace,
            delivery: unknown.clone(),
            outside: unknown,
        })
    }

    /// Decides for each endpoint how packets between it and its neighbours travel.
    pub(super) fn deliver(&mut self, found: &mut [Found]) -> Result<(), Error> {
        if found.is_empty() {
            return Ok(());
        }
        let interfaces = found.iter().map(|found| found.interface.as_str());
        let netfilter =
            Netfilter::read(interfaces).map_err(|error| Error::Kernel { what: "the netfilter rules", error })?;
        let routes = self.routes(found).map_err(|error| Error::Kernel { what: "the routes", error })?;
        let paths = Paths { links: &self.links, settings: self.settings, netfilter: &netfilter, routes: &routes };
        for one in found {
            let obstacle = paths.obstacle(one);
            one.workload.segment = if obstacle.is_none() { one.workload.network.0 } else { 0 };
            one.delivery = obstacle.map_or(Delivery::Direct, Delivery::Stack);
        }
        Ok(())
    }

    /// Where this namespace would send what is for the addresses of routed endpoints.
    fn routes(&mut self, found: &[Found]) -> io::Result<HashMap<IpAddr, Option<u32>>> {
        let routed = found.iter().filter(|found| found.workload.routed);
        let addresses = routed.flat_map(|found| found.workload.addresses.iter().copied());
        let addresses = addresses.filter(|&address| !is_link_local(address));
        addresses.map(|address| Ok((address, links::route(&mut self.socket, address)?))).collect()
    }

    pub(super) fn bridges(&self, found: &[Found]) -> Vec<Bridge> {
        let endpoints: HashMap<_, _> = found.iter().map(|f| (f.workload.ifindex.0, f.workload.endpoint)).collect();
        let ports = |bridge: u32| {
            let ports = self.links.values().filter(move |link| link.master == Some(bridge));
            let mut ports: Vec<_> = ports
                .map(|link| BridgePort {
                    ifindex: IfIndex(link.index),
                    name: link.name.clone(),
                    endpoint: endpoints.get(&link.index).copied(),
                    isolated: link.port.is_some_and(|port| port.isolated),
                    state: link.port.map_or(PortState::Disabled, |port| port.state),
                })
                .collect();
            ports.sort_unstable_by_key(|port| port.ifindex);
            ports
        };
        let bridge = |link: &Link| {
            link.bridge.map(|options| Bridge {
                ifindex: IfIndex(link.index),
                name: link.name.clone(),
                up: link.up,
                vlan_filtering: options.vlan_filtering,
                ports: ports(link.index),
            })
        };
        let mut bridges: Vec<_> = self.links.values().filter_map(bridge).collect();
        bridges.sort_unstable_by_key(|bridge| bridge.ifindex);
        bridges
    }
}
