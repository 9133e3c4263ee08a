//! Links, addresses and routes inside one namespace, over rtnetlink.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd as _, AsRawFd as _},
    time::Duration,
};

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use netpol_user::netns::Namespace;
use rtnetlink::{
    Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::link::{
        BridgePortState, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoVeth, LinkAttribute, LinkInfo,
    },
};

/// rtnetlink of the namespace that [`within`] was called for.
pub struct Net(pub Handle);

/// Runs `f` inside `namespace`, with netlink at hand.
pub fn within<T: Send>(namespace: &Namespace, f: impl AsyncFnOnce(Net) -> T + Send) -> T {
    let inside = namespace.block_on(async || {
        let (connection, handle, _) = rtnetlink::new_connection().expect("rtnetlink");
        tokio::spawn(connection);
        f(Net(handle)).await
    });
    inside.expect("entering a network namespace needs root")
}

impl Net {
    pub async fn index(&self, name: &str) -> u32 {
        let links = self.0.link().get().match_name(name.to_owned()).execute().try_next().await;
        let link = links.unwrap_or_else(|error| panic!("link {name}: {error}"));
        link.unwrap_or_else(|| panic!("no link {name}")).header.index
    }

    pub async fn mac(&self, name: &str) -> [u8; 6] {
        let link = self.0.link().get().match_name(name.to_owned()).execute().try_next().await;
        let link = link.ok().flatten().unwrap_or_else(|| panic!("no link {name}"));
        let mac = link.attributes.into_iter().find_map(|attribute| match attribute {
            LinkAttribute::Address(mac) => mac.try_into().ok(),
            _ => None,
        });
        mac.unwrap_or_else(|| panic!("{name} has no MAC address"))
    }

    pub async fn up(&self, name: &str) {
        let message = LinkUnspec::new_with_index(self.index(name).await).up().build();
        self.0.link().set(message).execute().await.unwrap_or_else(|error| panic!("{name} up: {error}"));
    }

    pub async fn down(&self, name: &str) {
        let message = LinkUnspec::new_with_index(self.index(name).await).down().build();
        self.0.link().set(message).execute().await.unwrap_or_else(|error| panic!("{name} down: {error}"));
    }

    pub async fn delete(&self, name: &str) {
        let index = self.index(name).await;
        self.0.link().del(index).execute().await.unwrap_or_else(|error| panic!("{name} delete: {error}"));
    }

    pub async fn bridge(&self, name: &str) {
        let message = LinkBridge::new(name).up().build();
        self.0.link().add(message).execute().await.unwrap_or_else(|error| panic!("bridge {name}: {error}"));
    }

    /// A veth pair: `name` stays here and is up, the far end goes into `namespace` as `far`.
    pub async fn veth(&self, name: &str, far: &str, namespace: &Namespace) {
        // made where it belongs: moving an interface waits for RCU
        let peer = LinkMessageBuilder::<LinkUnspec>::new().name(far).setns_by_fd(namespace.as_fd().as_raw_fd());
        let pair = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(name)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build())));
        let made = self.0.link().add(pair.build()).execute().await;
        made.unwrap_or_else(|error| panic!("veth {name}: {error}"));
        self.up(name).await;
    }

    /// Makes `port` a port of `bridge`.
    pub async fn enslave(&self, port: &str, bridge: &str) {
        let message = LinkUnspec::new_with_index(self.index(port).await).controller(self.index(bridge).await).build();
        self.0.link().set(message).execute().await.unwrap_or_else(|error| panic!("{port} to {bridge}: {error}"));
    }

    /// Waits until the bridge forwards through one of its ports.
    pub async fn forwards(&self, port: &str) {
        for _ in 0..1000 {
            let link = self.0.link().get().match_name(port.to_owned()).execute().try_next().await;
            let attributes = link.ok().flatten().map(|link| link.attributes).unwrap_or_default();
            let infos = attributes.into_iter().filter_map(|attribute| match attribute {
                LinkAttribute::LinkInfo(infos) => Some(infos),
                _ => None,
            });
            let is_forwarding = |info: &LinkInfo| match info {
                LinkInfo::PortData(InfoPortData::BridgePort(settings)) => {
                    settings.contains(&InfoBridgePort::State(BridgePortState::Forwarding))
                }
                _ => false,
            };
            if infos.flatten().any(|info| is_forwarding(&info)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        panic!("the bridge does not forward through {port}");
    }

    pub async fn address(&self, name: &str, address: IpNet) {
        let index = self.index(name).await;
        let request = self.0.address().add(index, address.addr(), address.prefix_len());
        request.execute().await.unwrap_or_else(|error| panic!("{address} on {name}: {error}"));
    }

    /// Waits until an interface has its IPv6 link-local address and all of them can be found by
    /// neighbours: the kernel does both some time later, even without duplicate detection. (The flag
    /// `nodad` would only hide that from us.)
    pub async fn settle(&self, name: &str) {
        const TENTATIVE: u8 = 0x40;
        for _ in 0..1000 {
            let table = fs::read_to_string("/proc/thread-self/net/if_inet6").expect("IPv6");
            // address, index, prefix, scope, flags, name
            let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            let flags = rows.filter(|row| row.last() == Some(&name)).map(|row| u8::from_str_radix(row[4], 16));
            let flags: Vec<_> = flags.collect::<Result<_, _>>().expect("flags of an address");
            if !flags.is_empty() && flags.iter().all(|flags| flags & TENTATIVE == 0) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        panic!("{name} got no usable IPv6 address");
    }

    /// A route to `to` through `name`, straight or via a gateway.
    pub async fn route(&self, to: IpNet, name: &str, gateway: Option<IpAddr>) {
        let index = self.index(name).await;
        let message = match to {
            IpNet::V4(to) => {
                let route = RouteMessageBuilder::<Ipv4Addr>::new().output_interface(index);
                let route = route.destination_prefix(to.addr(), to.prefix_len());
                match gateway {
                    Some(IpAddr::V4(gateway)) => route.gateway(gateway).onlink().build(),
                    _ => route.scope(rtnetlink::packet_route::route::RouteScope::Link).build(),
                }
            }
            IpNet::V6(to) => {
                let route = RouteMessageBuilder::<Ipv6Addr>::new().output_interface(index);
                let route = route.destination_prefix(to.addr(), to.prefix_len());
                match gateway {
                    Some(IpAddr::V6(gateway)) => route.gateway(gateway).onlink().build(),
                    _ => route.build(),
                }
            }
        };
        self.0.route().add(message).execute().await.unwrap_or_else(|error| panic!("route {to} via {name}: {error}"));
    }
}
