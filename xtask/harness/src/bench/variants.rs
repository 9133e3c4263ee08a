//! What is compared: the same two containers on a bridge, with different guards in between.

use std::{
    fmt::Write as _,
    io::ErrorKind,
    net::{Ipv4Addr, TcpStream},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::{
    documents::{self, DENIED_PORT},
    netpol::{Binary, Instance},
    topology::{BridgeNetfilter, Families, Topology},
};
use crate::sandbox::{Netns, Sandbox, feed};

/// How netpol forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarding {
    Direct,
    Stack,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Guard {
    Nothing,
    Netpol(Forwarding),
    /// A list with so many rules before the one that matches.
    Iptables(u32),
    /// A verdict map with so many elements.
    Nftables(u32),
}

pub struct Variant {
    /// As `--only` has it.
    pub name: &'static str,
    pub what: &'static str,
    guard: Guard,
}

/// The variant that all others are compared with.
pub const BASE: &str = "bridge";
/// The same again: how far its ratio is from 1 is what the others can't be told apart by.
pub const CONTROL: &str = "control";

pub const VARIANTS: &[Variant] = &[
    Variant { name: BASE, what: "plain bridge, no policy", guard: Guard::Nothing },
    Variant { name: CONTROL, what: "plain bridge again", guard: Guard::Nothing },
    Variant { name: "netpol", what: "netpol", guard: Guard::Netpol(Forwarding::Direct) },
    Variant { name: "netpol-stack", what: "netpol, the bridge forwards", guard: Guard::Netpol(Forwarding::Stack) },
    Variant { name: "iptables-10", what: "iptables, 10 rules", guard: Guard::Iptables(10) },
    Variant { name: "iptables-100", what: "iptables, 100 rules", guard: Guard::Iptables(100) },
    Variant { name: "iptables-1000", what: "iptables, 1,000 rules", guard: Guard::Iptables(1_000) },
    Variant { name: "iptables-10000", what: "iptables, 10,000 rules", guard: Guard::Iptables(10_000) },
    Variant { name: "nftables-10", what: "nftables, map of 10", guard: Guard::Nftables(10) },
    Variant { name: "nftables-1000", what: "nftables, map of 1,000", guard: Guard::Nftables(1_000) },
    Variant { name: "nftables-100000", what: "nftables, map of 100,000", guard: Guard::Nftables(100_000) },
];

/// A variant that stands.
pub struct Built {
    pub variant: &'static Variant,
    pub topology: Topology,
}

/// Earns what half of 65,536 flows need, at the 50,000 per second that an interface may open.
const PAUSE: Duration = Duration::from_millis(700);

impl Variant {
    /// See [`Lane::pause`](super::traffic::Lane::pause).
    pub fn pause(&self) -> Duration {
        match self.guard {
            Guard::Netpol(_) => PAUSE,
            Guard::Nothing | Guard::Iptables(_) | Guard::Nftables(_) => Duration::ZERO,
        }
    }

    pub fn build(&'static self, sandbox: &Sandbox, binary: &Binary) -> Result<Built> {
        let topology = Topology::bridged(2, Families::V4)?;
        let host = &topology.host;
        match self.guard {
            Guard::Nothing => topology.set_bridge_netfilter(BridgeNetfilter::Off)?,
            Guard::Netpol(forwarding) => {
                topology.set_bridge_netfilter(BridgeNetfilter::Off)?;
                load(sandbox, binary, self.name, &topology, forwarding)?;
                confirm_denial(&topology)?;
            }
            Guard::Iptables(rules) => {
                topology.set_bridge_netfilter(BridgeNetfilter::On)?;
                feed(host, &["iptables-nft-restore"], &iptables(rules))?;
                forget_soon(host)?;
            }
            Guard::Nftables(elements) => {
                topology.set_bridge_netfilter(BridgeNetfilter::On)?;
                feed(host, &["nft", "-f", "-"], &nftables(elements))?;
                forget_soon(host)?;
            }
        }
        Ok(Built { variant: self, topology })
    }
}

fn load(sandbox: &Sandbox, binary: &Binary, name: &str, topology: &Topology, forwarding: Forwarding) -> Result<()> {
    let instance = Instance::new(sandbox, binary, name, &topology.host)?;
    instance.write(&(documents::endpoints(topology) + &documents::pair()))?;
    let arguments: &[&str] = match forwarding {
        Forwarding::Direct => &[],
        Forwarding::Stack => &["--forwarding", "stack"],
    };
    instance.load(arguments)?;
    Ok(())
}

/// A benchmark of a policy that isn't enforced would be a fine one: nobody listens at the port, so a plain bridge
/// answers with a reset, and only a guard makes the attempt time out.
fn confirm_denial(topology: &Topology) -> Result<()> {
    let (a, b) = topology.pair();
    let server = (b.v4(), DENIED_PORT).into();
    let attempt = a.netns.run(|| Ok(TcpStream::connect_timeout(&server, Duration::from_millis(300))))?;
    match attempt {
        Err(error) if error.kind() == ErrorKind::TimedOut => Ok(()),
        Err(error) => bail!("port {DENIED_PORT} is denied, but an attempt to connect was answered: {error}"),
        Ok(_) => bail!("port {DENIED_PORT} is denied, but a connection was opened"),
    }
}

/// Flows of one measurement must not fill the connection table of the next.
fn forget_soon(host: &Netns) -> Result<()> {
    host.sysctl("net/netfilter/nf_conntrack_udp_timeout", "1").context("connection tracking")
}

/// The usual way: established connections first, then a list of rules that don't match, then the one that does.
fn iptables(rules: u32) -> String {
    let mut text = String::from(
        "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n:POLICY - [0:0]\n\
         -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A FORWARD -j POLICY\n",
    );
    for rule in 0..rules {
        let (address, port, protocol) = (elsewhere(rule), 1_000 + rule % 50_000, protocol(rule));
        let _ = writeln!(text, "-A POLICY -d {address}/32 -p {protocol} -m {protocol} --dport {port} -j DROP");
    }
    text + "-A POLICY -d 10.77.0.0/16 -j ACCEPT\nCOMMIT\n"
}

/// The same by one lookup, however many elements there are.
fn nftables(elements: u32) -> String {
    let mut map = Vec::new();
    for protocol in ["tcp", "udp"] {
        map.push(format!("10.77.0.11 . 10.77.0.12 . {protocol} : accept"));
        map.push(format!("10.77.0.12 . 10.77.0.11 . {protocol} : accept"));
    }
    map.extend((0..elements).map(|i| format!("{} . 10.77.0.12 . {} : accept", elsewhere(i), protocol(i))));
    format!(
        "table ip bench {{\n map verdicts {{\n  type ipv4_addr . ipv4_addr . inet_proto : verdict\n  elements = {{ {} }}\n }}\n \
         chain forward {{\n  type filter hook forward priority 0; policy drop;\n  \
         ct state vmap {{ established : accept, related : accept }}\n  \
         ip saddr . ip daddr . meta l4proto vmap @verdicts\n }}\n}}\n",
        map.join(",\n")
    )
}

/// Addresses that no container has.
fn elsewhere(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 100, 0, 0).to_bits() + number)
}

fn protocol(number: u32) -> &'static str {
    if number.is_multiple_of(2) { "udp" } else { "tcp" }
}

/// Versions of what netpol is compared with.
pub fn versions() -> Vec<String> {
    [&["iptables-nft", "--version"], &["nft", "--version"]]
        .iter()
        .filter_map(|command| {
            let said = Command::new(command[0]).args(&command[1..]).output().ok()?;
            Some(String::from_utf8_lossy(&said.stdout).trim().to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_the_base_comes_first() {
        assert_eq!(VARIANTS[0].name, BASE);
        let names = VARIANTS.iter().map(|variant| variant.name).collect::<std::collections::HashSet<_>>();
        assert_eq!(names.len(), VARIANTS.len());
    }

    #[test]
    fn rules_stand_before_the_one_that_matches() {
        let text = iptables(100);
        assert_eq!(text.matches("-j DROP").count(), 100);
        assert!(text.ends_with("-A POLICY -d 10.77.0.0/16 -j ACCEPT\nCOMMIT\n"));
        assert!(text.contains("-d 10.100.0.99/32 -p tcp -m tcp --dport 1099"));
    }

    #[test]
    fn a_map_has_its_elements_and_the_four_that_match() {
        assert_eq!(nftables(10).matches(": accept").count(), 10 + 4 + 2);
    }
}
