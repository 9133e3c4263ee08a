//! Services and pools for tests about translated packets, and a machine outside that is behind a router of its own.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use netpol_user::netns::Namespace;

use super::{
    Endpoint, Family, HOST, Layout, Scene,
    policy::documents,
    topology::{namespace, sysctl},
};

/// The addresses of services.
const VIRTUAL: [&str; 2] = ["10.96.0.10", "fd96::10"];
/// The machine far away, and the router's address there.
const FAR: [&str; 2] = ["198.51.100.9", "2001:db8:9::9"];
const FAR_ROUTER: [&str; 2] = ["198.51.100.1/24", "2001:db8:9::1/64"];
const FAR_NETWORKS: [&str; 2] = ["198.51.100.0/24", "2001:db8:9::/64"];

/// The least that IPv6 allows.
pub const NARROW: u32 = 1280;

/// Every way of forwarding, as flags of `load`.
pub const WAYS: [&[&str]; 2] = [&[], &["--forwarding", "stack"]];

const PATIENCE: Duration = Duration::from_secs(2);

/// A UDP socket over IPv4, which does not wait for ever.
pub fn socket(of: &Endpoint, port: u16) -> UdpSocket {
    socket_at(of, SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))
}

/// The same at any address.
pub fn socket_at(of: &Endpoint, at: SocketAddr) -> UdpSocket {
    let socket = of.enter(|| UdpSocket::bind(at)).unwrap_or_else(|error| panic!("udp {at}: {error}"));
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket
}

/// What a server takes a client for, whose packet arrives; and the answer gets back.
#[track_caller]
pub fn taken_for(server: &UdpSocket, client: &UdpSocket, to: &str) -> SocketAddr {
    client.send_to(b"?", to).expect("a packet");
    let (_, from) = server.recv_from(&mut [0]).expect("the packet");
    server.send_to(b"!", from).expect("an answer");
    assert_eq!(client.recv(&mut [0]).expect("the answer"), 1);
    from
}

fn of(family: Family, [four, six]: [&str; 2]) -> IpAddr {
    if family == Family::V4 { four } else { six }.parse().expect("an address")
}

/// Where [`service`] is.
pub fn virtual_address(family: Family) -> String {
    SocketAddr::new(of(family, VIRTUAL), 80).to_string()
}

pub fn host_address(family: Family) -> IpAddr {
    of(family, HOST)
}

/// Where [`published`] is.
pub fn host_port(family: Family) -> String {
    SocketAddr::new(host_address(family), 8000).to_string()
}

/// A service at both virtual addresses: port 80 goes to 8080 of `app`, by TCP and UDP.
pub fn service(app: &str) -> String {
    let [four, six] = VIRTUAL;
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {app}}}\nspec:\n  selector: {{app: {app}}}\n  \
         clusterIPs: ['{four}', '{six}']\n  clusterIP: '{four}'\n  ports:\n  \
         - {{name: t, port: 80, targetPort: 8080, protocol: TCP}}\n  \
         - {{name: u, port: 80, targetPort: 8080, protocol: UDP}}\n"
    )
}

/// `app`'s port 8080 at port 8000 of the host.
pub fn published(app: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {app}-published}}\nspec:\n  type: NodePort\n  \
         selector: {{app: {app}}}\n  ports:\n  \
         - {{name: t, port: 8080, nodePort: 8000, protocol: TCP}}\n  \
         - {{name: u, port: 8080, nodePort: 8000, protocol: UDP}}\n"
    )
}

/// Pools of the addresses that a layout's endpoints have.
pub fn pools(layout: Layout) -> String {
    let networks = match layout {
        Layout::Bridged => ["10.0.0.0/16", "fd00::/64"],
        Layout::Routed => ["10.1.0.0/16", "fd01::/64"],
    };
    let pool = |(number, network): (usize, &str)| {
        format!(
            "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: pool-{number}}}\n\
             spec: {{cidr: '{network}', natOutgoing: true}}\n"
        )
    };
    networks.into_iter().enumerate().map(pool).collect::<Vec<_>>().join("---\n")
}

impl Scene {
    /// Loads all endpoints, and this.
    #[track_caller]
    pub fn load_nat(&self, flags: &[&str], more: &[String]) {
        let path = self.host.documents("nat.yaml", &documents(&self.all(), more));
        self.host.netpol(&[&["load", "--uplink", "v-outside"], flags, &[&path]].concat()).ok();
    }

    /// Loads [`service`], [`published`] of `b`, and pools.
    #[track_caller]
    pub fn load_translated(&self, layout: Layout, flags: &[&str]) {
        self.load_nat(flags, &[service("b"), published("b"), pools(layout)]);
    }

    /// A machine with `outside` as its router, whose way there takes no packet above `mtu`; the way back does.
    pub fn far(&self, mtu: u32) -> Endpoint {
        let namespace = namespace();
        let router = &self.outside;
        for setting in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            sysctl(&router.namespace, setting, "1");
        }
        router.net(async |net| net.veth("far", "eth0", &namespace).await);
        let far = Endpoint {
            name: "far".to_owned(),
            namespace,
            host_interface: "far".to_owned(),
            addresses: FAR.map(|address| address.parse().expect("an address")).to_vec(),
        };
        router.net(async |net| {
            for address in FAR_ROUTER {
                net.address("far", address.parse().expect("an address")).await;
            }
            net.settle("far").await;
        });
        far.net(async |net| {
            net.up("eth0").await;
            for (address, width) in FAR.into_iter().zip(["24", "64"]) {
                net.address("eth0", format!("{address}/{width}").parse().expect("an address")).await;
            }
            net.settle("eth0").await;
        });
        far.gateways(&["198.51.100.1", "2001:db8:9::1"]);
        for (network, gateway) in FAR_NETWORKS.into_iter().zip(["192.0.2.9", "2001:db8::9"]) {
            self.host.run("ip", &["route", "add", network, "via", gateway, "dev", "v-outside"]);
            // locked: else a router looks at the interface alone; and before the route that the address has made
            let (mtu, metric) = (mtu.to_string(), if network.contains(':') { "1" } else { "0" });
            router.run("ip", &["route", "replace", network, "dev", "far", "metric", metric, "mtu", "lock", &mtu]);
        }
        far
    }

    /// Lets everybody send as many ICMP errors as there are reasons: the kernel sends one a second.
    pub fn unlimited_errors(&self, more: &[&Namespace]) {
        let all = [&self.a, &self.b, &self.outside].map(|endpoint| &endpoint.namespace);
        for namespace in all.into_iter().chain([&self.host.namespace]).chain(more.iter().copied()) {
            sysctl(namespace, "net/ipv4/icmp_ratelimit", "0");
            sysctl(namespace, "net/ipv6/icmp/ratelimit", "0");
        }
    }
}
