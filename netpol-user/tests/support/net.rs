//! Links, addresses and routes inside one namespace, over rtnetlink.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd as _, AsRawFd as _},
};

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use netpol_user::netns::Namespace;
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder};

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
        let failed = |error| panic!("veth {name}: {error}");
        // the far end is here for a moment, where another test's name may be taken
        let moving = format!("{name}-far");
        self.0.link().add(LinkVeth::new(name, &moving).build()).execute().await.unwrap_or_else(failed);
        let message = LinkUnspec::new_with_index(self.index(&moving).await)
            .name(far)
            .setns_by_fd(namespace.as_fd().as_raw_fd())
            .build();
        self.0.link().set(message).execute().await.unwrap_or_else(failed);
        self.up(name).await;
    }

    /// Makes `port` a port of `bridge`.
    pub async fn enslave(&self, port: &str, bridge: &str) {
        let message = LinkUnspec::new_with_index(self.index(port).await).controller(self.index(bridge).await).build();
        self.0.link().set(message).execute().await.unwrap_or_else(|error| panic!("{port} to {bridge}: {error}"));
    }

    pub async fn address(&self, name: &str, address: IpNet) {
        let index = self.index(name).await;
        let request = self.0.address().add(index, address.addr(), address.prefix_len());
        request.execute().await.unwrap_or_else(|error| panic!("{address} on {name}: {error}"));
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
