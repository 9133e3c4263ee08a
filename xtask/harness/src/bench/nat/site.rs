//! A host with two containers on a bridge, an uplink, and a machine behind that.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;

use super::super::{
    topology::{BRIDGE, BRIDGE_ADDRESS, Families, Topology, mac_text},
    traffic::{Course, PORT},
};
use crate::sandbox::{Netns, ip};

pub const UPLINK: &str = "up0";
pub const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
/// Where the second container's service is for containers, and for everybody else.
pub const VIRTUAL: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 96, 0, 10), 80);
pub const PUBLISHED: u16 = 8_000;

pub const HOST_MAC: [u8; 6] = [2, 0, 0, 0x78, 0, 1];
pub const OUTSIDE_MAC: [u8; 6] = [2, 0, 0, 0x78, 0, 9];
pub const BRIDGE_MAC: [u8; 6] = [2, 0, 0, 0x77, 0xff, 0xfe];

pub struct Site {
    pub topology: Topology,
    pub outside: Netns,
}

/// Who asks whom, by which address if somebody translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The first container asks the second by its service's virtual address.
    Virtual,
    /// The machine outside asks the second container by a port of the host's.
    Published,
    /// The first container asks the machine outside, which must not see the container's address.
    Masquerade,
    /// The host asks the second container by its own address and the published port.
    Host,
    /// The same by `localhost`.
    Localhost,
}

impl Site {
    pub fn new(families: Families) -> Result<Self> {
        let site = Self { topology: Topology::bridged(2, families)?, outside: Netns::new()? };
        let Self { topology, outside } = &site;
        let host = &topology.host;
        host.sysctl("net/ipv4/ip_forward", "1")?;
        outside.sysctl("net/ipv4/ip_local_port_range", "1024 65000")?;
        for which in ["all", "default"] {
            host.sysctl(&format!("net/ipv4/conf/{which}/rp_filter"), "0")?;
            // A kernel without IPv6 has nothing to switch off.
            let _ = outside.sysctl(&format!("net/ipv6/conf/{which}/disable_ipv6"), "1");
        }
        // All neighbours are settled, so that no measurement meets ARP.
        let [host_mac, outside_mac, bridge_mac] = [HOST_MAC, OUTSIDE_MAC, BRIDGE_MAC].map(mac_text);
        let mut batch = format!(
            "link add {UPLINK} address {host_mac} type veth peer name eth0 address {outside_mac} netns {}\n\
             link set {UPLINK} up\naddr add {HOST}/24 dev {UPLINK}\n\
             neigh replace {OUTSIDE} lladdr {outside_mac} nud permanent dev {UPLINK}\n\
             link set {BRIDGE} address {bridge_mac}\n",
            outside.path()
        );
        for workload in &topology.workloads {
            let (address, mac) = (workload.v4(), workload.mac_text());
            batch += &format!("neigh replace {address} lladdr {mac} nud permanent dev {BRIDGE}\n");
        }
        ip(host, &batch)?;
        ip(
            outside,
            &format!(
                "link set lo up\nlink set eth0 up\naddr add {OUTSIDE}/24 dev eth0\n\
                 route add 10.77.0.0/16 via {HOST}\nneigh replace {HOST} lladdr {host_mac} nud permanent dev eth0\n"
            ),
        )?;
        for workload in &topology.workloads {
            let batch = format!(
                "route add default via {BRIDGE_ADDRESS}\n\
                 neigh replace {BRIDGE_ADDRESS} lladdr {bridge_mac} nud permanent dev eth0\n"
            );
            ip(&workload.netns, &batch)?;
        }
        Ok(site)
    }

    /// What traffic a way stands for where somebody translates.
    pub fn translated(&self, way: Way) -> Course<'_> {
        let to: SocketAddr = match way {
            Way::Virtual => VIRTUAL.into(),
            Way::Published | Way::Host => (HOST, PUBLISHED).into(),
            Way::Masquerade => (OUTSIDE, PORT).into(),
            Way::Localhost => (Ipv4Addr::LOCALHOST, PUBLISHED).into(),
        };
        Course { to, ..self.plain(way) }
    }

    /// The same traffic where nobody does: the server's own address.
    pub fn plain(&self, way: Way) -> Course<'_> {
        let (a, b) = self.topology.pair();
        let host = &self.topology.host;
        let (client, server, address) = match way {
            Way::Virtual => (&a.netns, &b.netns, b.v4()),
            Way::Published => (&self.outside, &b.netns, b.v4()),
            Way::Masquerade => (&a.netns, &self.outside, OUTSIDE),
            Way::Host | Way::Localhost => (host, &b.netns, b.v4()),
        };
        Course { client, server, to: (address, PORT).into(), interface: "eth0" }
    }

    /// The host asks itself: no packet leaves it.
    pub fn loopback(&self) -> Course<'_> {
        let host = &self.topology.host;
        Course { client: host, server: host, to: (Ipv4Addr::LOCALHOST, PORT).into(), interface: "lo" }
    }
}
