//! Two endpoints, a host and the outside, connected in either way that netpol knows.

use std::net::IpAddr;

use netpol_user::netns::Namespace;

use super::{
    Attempt, Endpoint, Family, Host, Seen, check,
    policy::{from, ingress},
};

/// How endpoints are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Ports of one bridge.
    Bridged,
    /// A veth each, and the host routes.
    Routed,
}

pub const LAYOUTS: [Layout; 2] = [Layout::Bridged, Layout::Routed];

/// Endpoints `a`, `b` and `c`, and a machine elsewhere that the host routes to.
pub struct Scene {
    pub host: Host,
    pub a: Endpoint,
    pub b: Endpoint,
    pub c: Endpoint,
    pub outside: Endpoint,
}

/// Addresses of the host that all of them reach.
pub const HOST: [&str; 2] = ["192.0.2.1", "2001:db8::1"];

/// No more than two endpoints on one bridge, `a` (.10) and `b` (.20).
pub fn pair() -> (Host, Endpoint, Endpoint) {
    let host = Host::new();
    host.bridge("br0", &["10.0.0.1/16", "fd00::1/64"]);
    let [a, b] = [("a", 10), ("b", 20)].map(|(name, number)| host.numbered(name, number));
    (host, a, b)
}

impl Scene {
    pub fn new(layout: Layout) -> Self {
        let host = Host::new();
        if layout == Layout::Bridged {
            host.bridge("br0", &["10.0.0.1/16", "fd00::1/64"]);
        }
        let outside = host.outside();
        let make = |name: &str, number: u8| match layout {
            Layout::Bridged => {
                let endpoint = host.numbered(name, number);
                endpoint.gateways(&["10.0.0.1", "fd00::1"]);
                endpoint
            }
            Layout::Routed => host.routed_endpoint(name, &[&format!("10.1.0.{number}"), &format!("fd01::{number}")]),
        };
        let (a, b, c) = (make("a", 10), make("b", 20), make("c", 30));
        Self { a, b, c, outside, host }
    }

    pub fn bridged() -> Self {
        Self::new(Layout::Bridged)
    }

    /// An audited policy would let `a` alone ask `b` on port 80; `a` and `c` both have been answered there.
    pub fn audited() -> Self {
        let scene = Self::bridged();
        let Self { host, a, b, c, .. } = &scene;
        let _server = b.serve_tcp(80);
        let audited = ingress("b", &[from("a", &["80/TCP"])])
            .replace("metadata: {", "metadata: {annotations: {netpol.dev/audit: 'true'}, ");
        host.load(&[a, b, c], &[audited]);
        let to = || Attempt::Tcp(b.at(Family::V4, 80));
        check(&[(a, to(), Seen::Answered), (c, to(), Seen::Answered)]);
        scene
    }

    /// All endpoints, for [`Host::load`].
    pub fn all(&self) -> [&Endpoint; 3] {
        [&self.a, &self.b, &self.c]
    }
}

impl Host {
    /// A container on `br0` that has this number in both families: `10.0.0.10/16`, `fd00::10/64`.
    pub fn numbered(&self, name: &str, number: u8) -> Endpoint {
        self.endpoint("br0", name, &[&format!("10.0.0.{number}/16"), &format!("fd00::{number}/64")])
    }

    /// The host as one that speaks and listens.
    pub fn itself(&self) -> Endpoint {
        let namespace = Namespace::open(self.namespace.path()).expect("its own namespace");
        let addresses = HOST.map(|address| address.parse().expect("an address")).to_vec();
        Endpoint { name: "host".to_owned(), namespace, host_interface: String::new(), addresses }
    }

    /// A machine outside, behind a router: the host itself.
    pub fn outside(&self) -> Endpoint {
        for setting in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            self.sysctl(setting, "1");
        }
        let addresses = ["192.0.2.9/24", "2001:db8::9/64"];
        let outside = self.attach("outside", &addresses);
        self.net(async |net| {
            for address in HOST {
                let prefix = if address.contains(':') { "64" } else { "24" };
                net.address("v-outside", format!("{address}/{prefix}").parse().expect("an address")).await;
            }
            net.settle("v-outside").await;
        });
        outside.net(async |net| {
            for address in addresses {
                net.address("eth0", address.parse().expect("an address")).await;
            }
            net.settle("eth0").await;
        });
        outside.gateways(&HOST);
        outside
    }
}

impl Endpoint {
    /// Default routes.
    pub fn gateways(&self, gateways: &[&str]) {
        self.net(async |net| {
            for gateway in gateways {
                let gateway: IpAddr = gateway.parse().expect("an address");
                let everywhere = if gateway.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
                net.route(everywhere.parse().expect("a network"), "eth0", Some(gateway)).await;
            }
        });
    }
}
