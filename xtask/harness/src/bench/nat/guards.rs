//! Who translates: nobody, netpol, or conntrack by rules of iptables or nftables.

use std::{net::UdpSocket, time::Duration};

use anyhow::{Context as _, Result, bail};

use super::{
    super::{
        documents::endpoints,
        netpol::{Binary, Instance},
        topology::{BRIDGE, BridgeNetfilter, Families},
        traffic::{Course, PORT},
        variants::Forwarding,
    },
    documents::{self, idle},
    site::{HOST, PUBLISHED, Site, UPLINK, VIRTUAL, Way},
};
use crate::sandbox::{Sandbox, feed};

/// The number is of services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    Nobody,
    Netpol(Forwarding, u32),
    /// As kube-proxy and Docker do it: a list that is walked by the first packet of a connection.
    Iptables(u32),
    /// A map of addresses and ports.
    Nftables(u32),
}

pub struct Variant {
    pub name: &'static str,
    pub what: &'static str,
    pub guard: Guard,
    /// Where it is measured.
    pub ways: &'static [Way],
}

pub const PLAIN: &str = "plain";

const ALL: &[Way] = &[Way::Virtual, Way::Published, Way::Masquerade, Way::Host];
const PACKETS: &[Way] = &[Way::Virtual, Way::Published, Way::Masquerade];
const SERVICES: &[Way] = &[Way::Virtual, Way::Published];

pub const VARIANTS: &[Variant] = &[
    Variant { name: PLAIN, what: "nobody translates", guard: Guard::Nobody, ways: ALL },
    Variant { name: "control", what: "nobody again", guard: Guard::Nobody, ways: ALL },
    Variant {
        name: "netpol-1",
        what: "netpol, 1 service",
        guard: Guard::Netpol(Forwarding::Direct, 1),
        ways: &[Way::Virtual],
    },
    Variant {
        name: "netpol-100",
        what: "netpol, 100 services",
        guard: Guard::Netpol(Forwarding::Direct, 100),
        ways: &[Way::Virtual, Way::Published, Way::Masquerade, Way::Host, Way::Localhost],
    },
    Variant {
        name: "netpol-10000",
        what: "netpol, 10,000 services",
        guard: Guard::Netpol(Forwarding::Direct, 10_000),
        ways: SERVICES,
    },
    Variant {
        name: "netpol-stack-100",
        what: "netpol, the host forwards, 100",
        guard: Guard::Netpol(Forwarding::Stack, 100),
        ways: PACKETS,
    },
    Variant { name: "iptables-100", what: "iptables, 100 services", guard: Guard::Iptables(100), ways: ALL },
    Variant {
        name: "iptables-10000",
        what: "iptables, 10,000 services",
        guard: Guard::Iptables(10_000),
        ways: SERVICES,
    },
    Variant { name: "nftables-100", what: "nftables, map of 100", guard: Guard::Nftables(100), ways: ALL },
    Variant { name: "nftables-10000", what: "nftables, map of 10,000", guard: Guard::Nftables(10_000), ways: SERVICES },
];

/// A variant that stands.
pub struct Built {
    pub variant: &'static Variant,
    pub site: Site,
}

impl Built {
    pub fn new(variant: &'static Variant, sandbox: &Sandbox, binary: &Binary) -> Result<Self> {
        let site = Site::new(Families::V4)?;
        let host = &site.topology.host;
        // Answers on one bridge pass conntrack only if it sees bridged packets: kube-proxy and Docker ask for it.
        let conntrack = matches!(variant.guard, Guard::Iptables(_) | Guard::Nftables(_));
        site.topology.set_bridge_netfilter(if conntrack { BridgeNetfilter::On } else { BridgeNetfilter::Off })?;
        match variant.guard {
            Guard::Nobody => {}
            Guard::Netpol(forwarding, services) => {
                let instance = Instance::new(sandbox, binary, &format!("nat-{}", variant.name), host)?;
                let documents =
                    [endpoints(&site.topology), documents::policy(), documents::pool(), documents::services(services)];
                instance.write(&documents.concat())?;
                let way: &[&str] = if forwarding == Forwarding::Stack { &["--forwarding", "stack"] } else { &[] };
                instance.load(&[&["--uplink", UPLINK], way].concat())?;
            }
            Guard::Iptables(services) => feed(host, &["iptables-nft-restore"], &iptables(services))?,
            Guard::Nftables(services) => feed(host, &["nft", "-f", "-"], &nftables(services))?,
        }
        let built = Self { variant, site };
        built.variant.ways.iter().try_for_each(|way| built.confirm(*way).with_context(|| format!("{way:?}")))?;
        Ok(built)
    }

    pub fn course(&self, way: Way) -> Course<'_> {
        if self.variant.guard == Guard::Nobody { self.site.plain(way) } else { self.site.translated(way) }
    }

    /// A benchmark of a translation that does not happen would be a fine one.
    fn confirm(&self, way: Way) -> Result<()> {
        let course = self.course(way);
        let bind = || {
            let socket = UdpSocket::bind(("0.0.0.0", PORT))?;
            socket.set_read_timeout(Some(Duration::from_secs(2)))?;
            Ok(socket)
        };
        let server = course.server.run(bind)?;
        let client = course.client.run(bind)?;
        client.connect(course.to)?;
        client.send(b"x")?;
        let (_, from) = server.recv_from(&mut [0]).context("the first packet did not arrive")?;
        server.send_to(b"x", from)?;
        client.recv(&mut [0]).context("the answer did not arrive")?;
        let is_host = from.ip() == HOST;
        if way == Way::Masquerade && is_host == (self.variant.guard == Guard::Nobody) {
            bail!("the server takes the client for {from}");
        }
        Ok(())
    }
}

/// The service's last, as new services are appended; then what leaves the bridge by another interface.
fn iptables(services: u32) -> String {
    let mut text = String::from(
        "*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n\
         :SERVICES - [0:0]\n-A PREROUTING -j SERVICES\n-A OUTPUT -j SERVICES\n",
    );
    for number in 1..services {
        let (address, backend) = idle(number);
        text +=
            &format!("-A SERVICES -d {address}/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination {backend}:8080\n");
    }
    for protocol in ["tcp", "udp"] {
        for (address, port) in [VIRTUAL, (HOST, PUBLISHED)] {
            text += &format!(
                "-A SERVICES -d {address}/32 -p {protocol} -m {protocol} --dport {port} -j DNAT \
                 --to-destination {BACKEND}:{PORT}\n"
            );
        }
    }
    text + &format!("-A POSTROUTING -s 10.77.0.0/16 ! -o {BRIDGE} -j MASQUERADE\nCOMMIT\n")
}

/// Address of the second container.
const BACKEND: &str = "10.77.0.12";

fn nftables(services: u32) -> String {
    let mut map = Vec::new();
    for protocol in ["tcp", "udp"] {
        for (address, port) in [VIRTUAL, (HOST, PUBLISHED)] {
            map.push(format!("{address} . {protocol} . {port} : {BACKEND} . {PORT}"));
        }
    }
    map.extend((1..services).map(|number| {
        let (address, backend) = idle(number);
        format!("{address} . tcp . 80 : {backend} . 8080")
    }));
    let hook = |name: &str, hook: &str, priority: i32| {
        format!(
            " chain {name} {{\n  type nat hook {hook} priority {priority};\n  \
             dnat ip to ip daddr . ip protocol . th dport map @services\n }}\n"
        )
    };
    format!(
        "table ip bench {{\n map services {{\n  type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service\n  \
         elements = {{ {} }}\n }}\n{}{} chain leave {{\n  type nat hook postrouting priority 100;\n  \
         ip saddr 10.77.0.0/16 oifname != \"{BRIDGE}\" masquerade\n }}\n}}\n",
        map.join(",\n"),
        hook("arrive", "prerouting", -100),
        hook("begin", "output", -100)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_that_is_asked_stands_last() {
        let text = iptables(100);
        assert_eq!(text.matches("-A SERVICES").count(), 99 + 4);
        let last = text.lines().rfind(|line| line.starts_with("-A SERVICES")).expect("a rule");
        assert!(last.contains("-d 192.0.2.1/32 -p udp") && last.ends_with("10.77.0.12:7001"), "{last}");
    }

    #[test]
    fn a_map_has_as_many_services_and_ports_as_it_must() {
        assert_eq!(nftables(100).matches(" : ").count(), 99 + 4 + 1);
    }

    #[test]
    fn names_are_unique_and_the_base_comes_first() {
        assert_eq!(VARIANTS[0].name, PLAIN);
        let names = VARIANTS.iter().map(|variant| variant.name).collect::<std::collections::HashSet<_>>();
        assert_eq!(names.len(), VARIANTS.len());
    }
}
