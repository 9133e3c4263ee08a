//! Direct delivery (`bpf_redirect_peer`) puts a packet into the destination's namespace without
//! asking anybody: not the bridge's isolation, not its spanning tree, not netfilter, not the
//! routing table. So it is for paths on which nobody would object: everything else takes the
//! stack, and says why.

use std::{collections::HashMap, net::IpAddr};

use super::{
    Found,
    host::Settings,
    links::{Link, PortState},
    netfilter::{Layer, Netfilter},
};

/// How packets reach an endpoint from its neighbours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Straight from interface to interface.
    Direct,
    /// Through the bridge or the routing of the host, for this reason.
    Stack(String),
}

/// What decides about the paths between endpoints.
pub(super) struct Paths<'a> {
    pub links: &'a HashMap<u32, Link>,
    pub settings: Settings,
    pub netfilter: &'a Netfilter,
    /// For the addresses of routed endpoints: the interface that the host would send to.
    pub routes: &'a HashMap<IpAddr, Option<u32>>,
}

impl Paths<'_> {
    /// Who would have a say about packets to or from this endpoint.
    pub fn obstacle(&self, found: &Found) -> Option<String> {
        let link = self.links.get(&found.workload.ifindex.0)?;
        if let Some(rules) = self.netfilter.on(&link.name) {
            return Some(format!("{} is on {}", rules.name, link.name));
        }
        match link.master {
            Some(master) => self.on_master(link, self.links.get(&master)),
            None => self.routed(link, found),
        }
    }

    fn on_master(&self, link: &Link, master: Option<&Link>) -> Option<String> {
        let Some(master) = master.filter(|master| master.bridge.is_some()) else {
            let name = master.map_or("an unknown interface", |master| &master.name);
            return Some(format!("{} belongs to {name}, which is no bridge of the kernel", link.name));
        };
        port(link, &master.name).or_else(|| self.bridge(master))
    }

    fn bridge(&self, bridge: &Link) -> Option<String> {
        let options = bridge.bridge.unwrap_or_default();
        let name = &bridge.name;
        if !bridge.up {
            return Some(format!("bridge {name} is down"));
        }
        if options.vlan_filtering {
            return Some(format!("bridge {name} filters by VLAN"));
        }
        if let Some(rules) = self.netfilter.at(Layer::Bridge) {
            return Some(format!("bridge {name}: {} sees bridged packets", rules.name));
        }
        let calls = [
            (Layer::Ip, self.settings.bridge_nf_call_iptables || options.nf_call_iptables, "bridge-nf-call-iptables"),
            (
                Layer::Ip6,
                self.settings.bridge_nf_call_ip6tables || options.nf_call_ip6tables,
                "bridge-nf-call-ip6tables",
            ),
        ];
        calls.into_iter().filter(|&(_, called, _)| called).find_map(|(layer, _, setting)| {
            let rules = self.netfilter.at(layer)?;
            Some(format!("bridge {name}: {} sees bridged packets ({setting}=1)", rules.name))
        })
    }

    fn routed(&self, link: &Link, found: &Found) -> Option<String> {
        if !link.up {
            return Some(format!("{} is down", link.name));
        }
        let addresses =
            found.workload.addresses.iter().filter_map(|address| Some((address, self.routes.get(address)?)));
        for (address, route) in addresses {
            let (forwards, layer, setting) = match address {
                IpAddr::V4(_) => (link.forwards_ipv4, Layer::Ip, format!("net.ipv4.conf.{}.forwarding", link.name)),
                IpAddr::V6(_) => (self.settings.forwards_ipv6, Layer::Ip6, "net.ipv6.conf.all.forwarding".to_owned()),
            };
            if !forwards {
                return Some(format!("the host does not route: {setting}=0"));
            }
            if let Some(rules) = self.netfilter.at(layer) {
                return Some(format!("{} sees routed packets", rules.name));
            }
            if *route != Some(link.index) {
                let instead = route.and_then(|index| self.links.get(&index)).map_or("nowhere", |link| &link.name);
                return Some(format!("the host routes {address} to {instead}, not to {}", link.name));
            }
        }
        None
    }
}

/// What the bridge would not do for this port. (Isolation concerns pairs of ports: the classifier
/// knows it from both ends.)
fn port(link: &Link, bridge: &str) -> Option<String> {
    let Link { name, .. } = link;
    let Some(port) = link.port else {
        return Some(format!("the state of {name} as a port of bridge {bridge} is unknown"));
    };
    if port.state != PortState::Forwarding {
        return Some(format!("port {name} of bridge {bridge} is {}, not forwarding", port.state.as_str()));
    }
    if port.locked {
        return Some(format!("port {name} of bridge {bridge} is locked"));
    }
    if !port.learning || !port.unicast_flood {
        return Some(format!("bridge {bridge} does not learn or flood at port {name}"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{
        super::links::{BridgeOptions, Port},
        *,
    };

    const PORT: Port =
        Port { isolated: false, state: PortState::Forwarding, learning: true, unicast_flood: true, locked: false };

    fn link(index: u32, name: &str) -> Link {
        Link { index, name: name.to_owned(), up: true, ..Link::default() }
    }

    /// Why a port of that bridge takes the stack.
    fn reason(port: Port, master: &Link) -> Option<String> {
        let netfilter = Netfilter::default();
        let (links, routes) = (HashMap::new(), HashMap::new());
        let paths = Paths { links: &links, settings: Settings::default(), netfilter: &netfilter, routes: &routes };
        let link = Link { master: Some(master.index), port: Some(port), ..link(7, "v-a") };
        paths.on_master(&link, Some(master))
    }

    #[test]
    fn forwarding_port_of_a_plain_bridge_has_no_obstacle() {
        let bridge = Link { bridge: Some(BridgeOptions::default()), ..link(3, "br0") };
        assert_eq!(reason(PORT, &bridge), None);
        assert_eq!(reason(Port { isolated: true, ..PORT }, &bridge), None, "the classifier looks at both ends");
    }

    #[test]
    fn settings_of_the_bridge_are_obstacles() {
        let options = BridgeOptions { vlan_filtering: true, ..BridgeOptions::default() };
        let bridge = Link { bridge: Some(options), ..link(3, "br0") };
        assert_eq!(reason(PORT, &bridge).as_deref(), Some("bridge br0 filters by VLAN"));
        let bridge = Link { bridge: Some(BridgeOptions::default()), up: false, ..link(3, "br0") };
        assert_eq!(reason(PORT, &bridge).as_deref(), Some("bridge br0 is down"));
        let expected = "v-a belongs to vrf0, which is no bridge of the kernel";
        assert_eq!(reason(PORT, &link(3, "vrf0")).as_deref(), Some(expected));
    }

    #[test]
    fn settings_of_the_port_are_obstacles() {
        let bridge = Link { bridge: Some(BridgeOptions::default()), ..link(3, "br0") };
        for (port, expected) in [
            (Port { state: PortState::Blocking, ..PORT }, "port v-a of bridge br0 is blocking, not forwarding"),
            (Port { locked: true, ..PORT }, "port v-a of bridge br0 is locked"),
            (Port { learning: false, ..PORT }, "bridge br0 does not learn or flood at port v-a"),
            (Port { unicast_flood: false, ..PORT }, "bridge br0 does not learn or flood at port v-a"),
        ] {
            assert_eq!(reason(port, &bridge).as_deref(), Some(expected));
        }
    }
}
