//! A host with containers, bridged or routed, and the world outside behind an uplink.
//!
//! A container stands for an address, not for a pod: it is made when the first world needs its
//! address and then serves every pod of every later world that has it. Nothing in here answers or
//! asks by itself (no routes inside, every neighbour settled), so what moves is what was sent.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};

use anyhow::{Context as _, Result};
use netpol_user::model::Attachment;

use super::socket::Wire;
use crate::{
    conformance::plan,
    sandbox::{Netns, ip},
};

/// How containers are connected to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Ports of one bridge.
    Bridged,
    /// Each behind a veth of its own; the host routes between them.
    Routed,
    /// In turn on one bridge, on another, and on none; the host routes between those.
    Mixed,
}

impl Plan {
    const fn bridge_of(self, number: u8) -> Option<Bridge> {
        match (self, number % 3) {
            (Self::Routed, _) | (Self::Mixed, 0) => None,
            (Self::Mixed, 1) => Some(Bridge(1)),
            _ => Some(Bridge(0)),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bridge(u8);

impl Bridge {
    const ALL: [Self; 2] = [Self(0), Self(1)];

    fn name(self) -> String {
        format!("br{}", self.0)
    }

    const fn mac(self) -> Mac {
        [2, 0x6e, 0x70, 1, 0, self.0]
    }
}

type Mac = [u8; 6];

/// The gateways of the uplink, for each family.
const GATEWAYS: [(&str, &str); 2] = [("0.0.0.0/0", "169.254.0.2"), ("::/0", "fe80::2")];

pub struct Site {
    plan: Plan,
    pub host: Netns,
    outside: Neighbour,
    canary: Neighbour,
    /// By their IPv4 address.
    containers: BTreeMap<Ipv4Addr, Neighbour>,
}

/// A namespace behind a veth of the host.
pub struct Neighbour {
    pub netns: Netns,
    pub wire: Wire,
    number: u8,
    bridge: Option<Bridge>,
}

/// Where packets come from and go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// That has this address, of either family.
    Container(IpAddr),
    /// All addresses that nobody here has.
    Outside,
    /// Behind another uplink: no classifier sees what comes there from outside.
    Canary,
}

/// The canary's address: of a network for documentation (RFC 5737), not one that cases use.
pub const CANARY: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 77);

impl Site {
    pub fn new(plan: Plan) -> Result<Self> {
        let host = Netns::new()?;
        for (variable, value) in [
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            // no route leads back to where outside addresses come from
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
            ("net/ipv6/conf/default/accept_dad", "0"),
        ] {
            host.sysctl(variable, value)?;
        }
        let bridges = Bridge::ALL.map(|bridge| {
            let (name, mac) = (bridge.name(), text(bridge.mac()));
            format!("link add {name} address {mac} type bridge\nlink set {name} up\n")
        });
        ip(&host, &("link set lo up\n".to_owned() + &bridges.concat()))?;
        let (outside, canary) = (Neighbour::new(&host, (0, None))?, Neighbour::new(&host, (1, None))?);
        let uplinks = GATEWAYS.map(|(everywhere, gateway)| {
            let (port, mac) = (outside.port(), text(outside.mac()));
            format!(
                "route add {everywhere} via {gateway} dev {port} onlink\n\
                 neigh replace {gateway} lladdr {mac} nud permanent dev {port}\n"
            )
        });
        ip(&host, &uplinks.concat())?;
        ip(&host, &canary.way(CANARY.into(), &canary.port()))?;
        Ok(Self { plan, host, outside, canary, containers: BTreeMap::new() })
    }

    pub fn has(&self, address: IpAddr) -> bool {
        self.container(address).is_some()
    }

    /// Makes the container that has this address.
    pub fn add(&mut self, address: IpAddr) -> Result<()> {
        let number = u8::try_from(self.containers.len() + 2).context("too many addresses for one host")?;
        let container = Neighbour::new(&self.host, (number, self.plan.bridge_of(number)))?;
        let addresses = plan::addresses(address);
        let inside = addresses.map(|address| format!("addr add {address} dev eth0 nodad\n"));
        ip(&container.netns, &inside.concat())?;
        let way = container.bridge.map_or_else(|| container.port(), Bridge::name);
        ip(&self.host, &addresses.map(|address| container.way(address, &way)).concat())?;
        self.containers.insert(plan::v4(address), container);
        Ok(())
    }

    /// How netpol finds the container that has this address.
    pub fn attachment(&self, address: IpAddr) -> Result<Attachment> {
        let netns = PathBuf::from(self.at(Place::Container(address))?.netns.path());
        Ok(Attachment { netns, interface: Some("eth0".to_owned()) })
    }

    pub fn at(&self, place: Place) -> Result<&Neighbour> {
        match place {
            Place::Container(address) => self.container(address).with_context(|| format!("no container has {address}")),
            Place::Outside => Ok(&self.outside),
            Place::Canary => Ok(&self.canary),
        }
    }

    /// The MAC addresses of a frame as its sender writes it.
    pub fn macs(&self, from: Place, to: Place) -> Result<[Mac; 2]> {
        let (source, destination) = (self.at(from)?, self.at(to)?);
        let next = match source.bridge {
            Some(bridge) if destination.bridge == Some(bridge) => destination.mac(),
            Some(bridge) => bridge.mac(),
            None => source.host_mac(),
        };
        Ok([source.mac(), next])
    }

    /// Everybody.
    pub fn neighbours(&self) -> impl Iterator<Item = &Neighbour> {
        self.containers.values().chain([&self.outside, &self.canary])
    }

    fn container(&self, address: IpAddr) -> Option<&Neighbour> {
        self.containers.get(&plan::v4(address))
    }
}

impl PartialEq for Neighbour {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Neighbour {
    /// Its host end has no address: whoever is behind it is settled for good.
    fn new(host: &Netns, (number, bridge): (u8, Option<Bridge>)) -> Result<Self> {
        let netns = Netns::new()?;
        let (port, own, there) = (format!("c{number}"), text(mac(number)), text(host_mac(number)));
        let peer = format!("peer name eth0 address {own} netns {}", netns.path());
        let joins = bridge.map_or_else(String::new, |bridge| format!("link set {port} master {}\n", bridge.name()));
        ip(host, &format!("link add {port} address {there} type veth {peer}\n{joins}link set {port} up\n"))?;
        ip(&netns, "link set eth0 up\n")?;
        Ok(Self { wire: netns.run(Wire::open)?, netns, number, bridge })
    }

    /// The lines that lead the host to one of its addresses, through that interface.
    fn way(&self, address: IpAddr, interface: &str) -> String {
        let mac = text(self.mac());
        format!(
            "route add {address} dev {interface}\nneigh replace {address} lladdr {mac} nud permanent dev {interface}\n"
        )
    }

    /// The interface on the host.
    fn port(&self) -> String {
        format!("c{}", self.number)
    }

    const fn mac(&self) -> Mac {
        mac(self.number)
    }

    /// Of the host's end.
    const fn host_mac(&self) -> Mac {
        host_mac(self.number)
    }
}

const fn mac(number: u8) -> Mac {
    [2, 0x6e, 0x70, 2, 0, number]
}

const fn host_mac(number: u8) -> Mac {
    [2, 0x6e, 0x70, 3, 0, number]
}

fn text([a, b, c, d, e, f]: Mac) -> String {
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}
