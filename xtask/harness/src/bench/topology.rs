//! A "host" with a bridge and containers behind veths, in namespaces of its own.
//!
//! Addresses repeat from topology to topology: they never meet.

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};

use crate::{
    frame::Ends,
    sandbox::{Netns, ip},
};

pub(super) const BRIDGE: &str = "br0";
/// The far end of 10.77.0.0/16: containers count from the near one.
pub(super) const BRIDGE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 255, 254);

/// Which families the containers speak. IPv6 makes the kernel send packets of its own, which timed paths do without.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Families {
    V4,
    Both,
}

/// Whether bridged packets meet the host's netfilter rules.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum BridgeNetfilter {
    Off,
    On,
}

/// A container: its number settles its name and all of its addresses.
pub struct Workload {
    pub netns: Netns,
    pub number: u16,
}

impl Workload {
    pub fn name(&self) -> String {
        format!("w{}", self.number)
    }

    /// The interface on the host.
    pub fn host_end(&self) -> String {
        format!("h{}", self.number)
    }

    pub fn v4(&self) -> Ipv4Addr {
        let [high, low] = (self.number + 10).to_be_bytes();
        Ipv4Addr::new(10, 77, high, low)
    }

    pub fn v6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, self.number + 10)
    }

    pub fn mac(&self) -> [u8; 6] {
        let [high, low] = self.number.to_be_bytes();
        [2, 0, 0, 0x77, high, low]
    }

    pub(super) fn mac_text(&self) -> String {
        mac_text(self.mac())
    }
}

/// As `ip` has it.
pub(super) fn mac_text([a, b, c, d, e, f]: [u8; 6]) -> String {
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

impl Ends {
    pub fn v4(from: &Workload, to: &Workload) -> Self {
        Self { macs: [from.mac(), to.mac()], addresses: [from.v4().into(), to.v4().into()] }
    }

    pub fn v6(from: &Workload, to: &Workload) -> Self {
        Self { macs: [from.mac(), to.mac()], addresses: [from.v6().into(), to.v6().into()] }
    }
}

/// The host and its containers.
pub struct Topology {
    pub host: Netns,
    pub workloads: Vec<Workload>,
}

impl Topology {
    /// A bridge with `count` containers, at most 1,000 (a bridge has 1,023 ports).
    pub fn bridged(count: u16, families: Families) -> Result<Self> {
        let host = Netns::new()?;
        let workloads =
            (1..=count).map(|number| Ok(Workload { netns: Netns::new()?, number })).collect::<Result<Vec<_>>>()?;
        let topology = Self { host, workloads };
        topology.set_variables(families)?;
        topology.build_host(families)?;
        topology.workloads.iter().try_for_each(|workload| topology.build_workload(workload, families))?;
        Ok(topology)
    }

    /// The two containers of a topology that has (at least) two.
    pub fn pair(&self) -> (&Workload, &Workload) {
        (&self.workloads[0], &self.workloads[1])
    }

    pub fn set_bridge_netfilter(&self, state: BridgeNetfilter) -> Result<()> {
        if !Path::new("/proc/sys/net/bridge").exists() {
            // Built into some kernels, hence only asked for where it is missing.
            let _ = Command::new("modprobe").arg("br_netfilter").stderr(Stdio::null()).status();
        }
        let value = if state == BridgeNetfilter::On { "1" } else { "0" };
        match self.host.sysctl("net/bridge/bridge-nf-call-iptables", value) {
            Err(_) if state == BridgeNetfilter::Off => Ok(()),
            done => done.context("the kernel has no br_netfilter, which iptables and nftables need here"),
        }
    }

    fn set_variables(&self, families: Families) -> Result<()> {
        let disabled = if families == Families::V4 { "1" } else { "0" };
        for netns in [&self.host].into_iter().chain(self.workloads.iter().map(|workload| &workload.netns)) {
            for which in ["all", "default"] {
                let variable = format!("net/ipv6/conf/{which}/disable_ipv6");
                // A kernel without IPv6 has nothing to switch off.
                match netns.sysctl(&variable, disabled) {
                    Err(_) if families == Families::V4 => {}
                    done => done?,
                }
            }
            // Connections that open and close at full speed need the ports.
            netns.sysctl("net/ipv4/ip_local_port_range", "1024 65000")?;
        }
        Ok(())
    }

    fn build_host(&self, families: Families) -> Result<()> {
        let mut batch = format!(
            "link set lo up\nlink add {BRIDGE} type bridge\nlink set {BRIDGE} up\n\
             addr add {BRIDGE_ADDRESS}/16 dev {BRIDGE}\n"
        );
        if families == Families::Both {
            writeln!(batch, "addr add fd77::ffff/64 dev {BRIDGE} nodad")?;
        }
        for workload in &self.workloads {
            let (port, mac, netns) = (workload.host_end(), workload.mac_text(), workload.netns.path());
            writeln!(batch, "link add {port} type veth peer name eth0 address {mac} netns {netns}")?;
            writeln!(batch, "link set {port} master {BRIDGE} up")?;
        }
        ip(&self.host, &batch)
    }

    fn build_workload(&self, workload: &Workload, families: Families) -> Result<()> {
        let mut batch = format!("link set lo up\nlink set eth0 up\naddr add {}/16 dev eth0\n", workload.v4());
        if families == Families::Both {
            writeln!(batch, "addr add {}/64 dev eth0 nodad", workload.v6())?;
        }
        // Neighbours of the small topologies are settled, so that no measurement meets ARP.
        let neighbours =
            self.workloads.iter().filter(|other| self.workloads.len() == 2 && other.number != workload.number);
        for other in neighbours {
            let mac = other.mac_text();
            writeln!(batch, "neigh replace {} lladdr {mac} nud permanent dev eth0", other.v4())?;
            if families == Families::Both {
                writeln!(batch, "neigh replace {} lladdr {mac} nud permanent dev eth0", other.v6())?;
            }
        }
        ip(&workload.netns, &batch)
    }
}
