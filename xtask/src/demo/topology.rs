//! The namespaces of an example: a host with a bridge, a service at each port of it, and an Internet behind its uplink.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::Ipv4Addr,
    os::unix::{fs::DirBuilderExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use super::{
    examples::{Example, Service},
    interrupt,
    made::Made,
    serve::Serve,
};
use crate::shell::quietly;

/// The namespace that plays the host.
pub const HOST: &str = "netpol-demo-host";
/// The host's address on its uplink.
pub const HOST_ADDRESS: &str = "192.0.2.1";
/// What the host's default route leads to: a router, and a server at each of its addresses.
pub const INTERNET: &str = "netpol-demo-internet";
const ROUTER: &str = "192.0.2.254";
pub const UPDATES: &str = "198.51.100.7";
/// Where the router has the customer's network.
pub const ELSEWHERE: &str = "203.0.113.1";
const INTERNET_PORTS: [u16; 2] = [80, 25];
/// A machine outside, behind the router.
pub const CUSTOMER: &str = "netpol-demo-customer";
pub const CUSTOMER_ADDRESS: &str = "203.0.113.10";

/// What netpol keeps of the demo's instance.
pub const STATE: &str = "/run/netpol-demo/state";
pub const FOLDER: &str = "/run/netpol-demo";
/// Where programs have their data.
pub const DATA: &str = "/run/netpol-demo/data";
/// Their process ids, a line each.
pub const PROGRAMS: &str = "/run/netpol-demo/programs";
pub const LIST: &str = "/run/netpol-demo/namespaces";
pub const NAMESPACES: &str = "/run/netns";
const BPFFS: &str = "/sys/fs/bpf";

/// Where the demo's instance is pinned: the machine's bpffs, or, when there is none, one of the demo's own.
pub fn pins() -> PathBuf {
    let machine = Path::new(BPFFS);
    if is_bpffs(machine) { machine.join("netpol-demo") } else { own_bpffs().join("netpol") }
}

pub fn own_bpffs() -> PathBuf {
    Path::new(FOLDER).join("bpf")
}

pub fn is_bpffs(folder: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.lines().any(|mount| {
        let mut fields = mount.split(' ').skip(1);
        fields.next().map(Path::new) == Some(folder) && fields.next() == Some("bpf")
    })
}

/// A command inside a namespace. Not `ip netns exec`: that mounts a fresh /sys over the pins.
pub fn inside(namespace: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={NAMESPACES}/{namespace}")).arg(program);
    command
}

/// Builds the topology, with the server of its Internet alone.
pub fn build(example: &Example) -> Result<Made> {
    let wanted: Vec<&str> =
        [HOST, INTERNET, CUSTOMER].into_iter().chain(example.services.iter().map(|s| s.netns)).collect();
    refuse_to_overwrite(&wanted)?;
    // The folder is the lock: of two demos at once, one makes it.
    // Others may pass, for a program that does not run as root to reach its data.
    fs::DirBuilder::new().mode(0o711).create(FOLDER).with_context(|| format!("{FOLDER}: another demo is here"))?;
    let made = Made::removed_when_dropped();
    fs::create_dir(STATE)?;
    if !is_bpffs(Path::new(BPFFS)) {
        fs::create_dir(own_bpffs())?;
        quietly(Command::new("mount").args(["-t", "bpf", "bpf"]).arg(own_bpffs()))?;
    }
    for (index, namespace) in wanted.iter().enumerate() {
        interrupt::check()?;
        fs::write(LIST, wanted[..=index].join("\n"))?;
        if let Err(error) = quietly(Command::new("ip").args(["netns", "add", namespace])) {
            // Whoever was faster keeps it.
            fs::write(LIST, wanted[..index].join("\n"))?;
            return Err(error);
        }
    }
    lay_cables(example)?;
    start(INTERNET, INTERNET, &INTERNET_PORTS)?;
    Ok(made)
}

/// Starts a server for each service.
pub fn start_servers(example: &Example) -> Result<()> {
    for service in example.services {
        interrupt::check()?;
        start(service.netns, service.endpoint, service.ports)?;
    }
    Ok(())
}

fn refuse_to_overwrite(wanted: &[&str]) -> Result<()> {
    if Path::new(FOLDER).exists() {
        bail!("a demo is here already; `cargo xtask clean-up` removes it");
    }
    let taken: Vec<_> = wanted.iter().filter(|name| Path::new(NAMESPACES).join(name).exists()).copied().collect();
    if !taken.is_empty() {
        bail!("network namespaces of these names are here already, and not mine: {}", taken.join(", "));
    }
    Ok(())
}

fn lay_cables(example: &Example) -> Result<()> {
    let Example { bridge, gateway, prefix, .. } = example;
    ip(
        HOST,
        &format!(
            "link set lo up\nlink add {bridge} type bridge\naddr add {gateway}/{prefix} dev {bridge}\nlink set {bridge} up\n"
        ),
    )?;
    for Service { netns, address, .. } in example.services {
        let port = port_of(address);
        let plug =
            format!("link add {port} type veth peer name eth0 netns {netns}\nlink set {port} master {bridge} up\n");
        ip(HOST, &plug)?;
        ip(
            netns,
            &format!(
                "link set lo up\naddr add {address}/{prefix} dev eth0\nlink set eth0 up\nroute add default via {gateway}\n"
            ),
        )?;
    }
    lay_uplink(example)
}

/// The host, the router and the customer, in a row. The router knows a way to the bridge, as a neighbour on the same
/// network would: what a policy stops must be stopped by the policy.
fn lay_uplink(example: &Example) -> Result<()> {
    let Example { gateway, prefix, .. } = example;
    ip(
        HOST,
        &format!(
            "link add uplink type veth peer name eth0 netns {INTERNET}\naddr add {HOST_ADDRESS}/24 dev uplink\n\
             link set uplink up\nroute add default via {ROUTER}\n"
        ),
    )?;
    let network = network_of(gateway, *prefix)?;
    ip(
        INTERNET,
        &format!(
            "link set lo up\naddr add {ROUTER}/24 dev eth0\nlink set eth0 up\nroute add {network} via {HOST_ADDRESS}\n\
             addr add {UPDATES}/32 dev lo\nlink add eth1 type veth peer name eth0 netns {CUSTOMER}\n\
             addr add {ELSEWHERE}/24 dev eth1\nlink set eth1 up\n"
        ),
    )?;
    ip(
        CUSTOMER,
        &format!("addr add {CUSTOMER_ADDRESS}/24 dev eth0\nlink set eth0 up\nroute add default via {ELSEWHERE}\n"),
    )?;
    for router in [HOST, INTERNET] {
        let forward = "echo 1 > /proc/sys/net/ipv4/ip_forward";
        quietly(inside(router, "sh").args(["-c", forward]))?;
    }
    Ok(())
}

/// 10.0.0.1/16 is in 10.0.0.0/16.
fn network_of(address: &str, prefix: u8) -> Result<String> {
    let address: Ipv4Addr = address.parse().context("the bridge's address")?;
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    Ok(format!("{}/{prefix}", Ipv4Addr::from_bits(address.to_bits() & mask)))
}

/// The bridge port of a service is named after its address: 10.0.0.10 is plugged into veth10.
fn port_of(address: &str) -> String {
    let last = address.rsplit('.').next().unwrap_or(address);
    format!("veth{last}")
}

/// `ip -batch` inside a namespace.
fn ip(namespace: &str, batch: &str) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(["-n", namespace, "-batch", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("ip")?;
    child.stdin.take().context("no pipe to ip")?.write_all(batch.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("interfaces of {namespace}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Starts a server and waits until it listens.
fn start(namespace: &str, name: &str, ports: &[u16]) -> Result<()> {
    let mut server = inside(namespace, std::env::current_exe()?);
    server.args(["serve", name]).args(ports.iter().map(u16::to_string));
    // In a process group of its own: Ctrl-C is for the demo, which ends its servers itself.
    server.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = server.spawn().context("nsenter")?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("no pipe from the server")?).read_line(&mut line)?;
    if line.trim_end() != Serve::READY {
        bail!("the server of {name} does not start");
    }
    Ok(())
}
