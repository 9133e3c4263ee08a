//! Hosts, bridges and endpoints.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{self, Command, Output},
    sync::atomic::{AtomicU32, Ordering},
};

use ipnet::IpNet;
use netpol_user::netns::Namespace;

use super::net::{Net, within};

/// A namespace that plays the host: the test's netpol runs here.
pub struct Host {
    pub namespace: Namespace,
    /// This instance's pins and state, as flags of the command; gone with the host.
    pub(super) bpffs: PathBuf,
    pub(super) folder: PathBuf,
}

/// A container: a namespace with `eth0`.
pub struct Endpoint {
    pub name: String,
    pub namespace: Namespace,
    /// The other end of `eth0`, on the host.
    pub host_interface: String,
    pub addresses: Vec<IpAddr>,
}

/// Makes the names of one process's hosts unique.
static HOSTS: AtomicU32 = AtomicU32::new(0);

/// The next hop of routed endpoints, on the host end of each of their veths.
const GATEWAYS: [&str; 2] = ["169.254.1.1", "fe80::1"];

impl Host {
    pub fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this test makes network namespaces: run it as root");
        sweep();
        let name = format!("npt-{}-{}", process::id(), HOSTS.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(&name);
        fs::create_dir_all(&folder).expect("a folder for the test");
        let bpffs = super::netpol::bpffs().join(&name);
        let host = Self { namespace: namespace(), bpffs, folder };
        host.sysctl("net/ipv4/conf/all/rp_filter", "0");
        host
    }

    /// A folder of this host alone, removed with it.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn net<T: Send>(&self, f: impl AsyncFnOnce(Net) -> T + Send) -> T {
        within(&self.namespace, f)
    }

    pub fn bridge(&self, name: &str, addresses: &[&str]) {
        self.net(async |net| {
            net.bridge(name).await;
            for address in addresses {
                net.address(name, parse(address)).await;
            }
        });
    }

    /// A container on a bridge, with addresses like `10.0.0.10/16`. Its interface is `eth0`, its
    /// host end `v-NAME` (names of at most nine characters).
    pub fn endpoint(&self, bridge: &str, name: &str, addresses: &[&str]) -> Endpoint {
        let endpoint = self.attach(name, addresses);
        self.net(async |net| {
            net.enslave(&endpoint.host_interface, bridge).await;
            net.forwards(&endpoint.host_interface).await;
            net.settle(bridge).await;
        });
        within(&endpoint.namespace, async |net| {
            for address in addresses {
                net.address("eth0", parse(address)).await;
            }
            net.settle("eth0").await;
        });
        endpoint
    }

    /// A container behind a veth of its own, with addresses like `10.1.0.5`; the host routes.
    pub fn routed_endpoint(&self, name: &str, addresses: &[&str]) -> Endpoint {
        let endpoint = self.attach(name, addresses);
        for setting in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            self.sysctl(setting, "1");
        }
        let gateways = GATEWAYS.map(|gateway| gateway.parse::<IpAddr>().expect("an address"));
        self.net(async |net| {
            for gateway in gateways {
                net.address(&endpoint.host_interface, gateway.into()).await;
            }
            net.settle(&endpoint.host_interface).await;
            for &address in &endpoint.addresses {
                net.route(address.into(), &endpoint.host_interface, None).await;
            }
        });
        within(&endpoint.namespace, async |net| {
            for &address in &endpoint.addresses {
                net.address("eth0", address.into()).await;
            }
            net.settle("eth0").await;
            for (everywhere, gateway) in ["0.0.0.0/0", "::/0"].into_iter().zip(gateways) {
                net.route(parse(everywhere), "eth0", Some(gateway)).await;
            }
        });
        endpoint
    }

    /// A namespace with `eth0`, whose host end is up and belongs to nothing yet.
    pub fn attach(&self, name: &str, addresses: &[&str]) -> Endpoint {
        let namespace = namespace();
        let host_interface = format!("v-{name}");
        self.net(async |net| net.veth(&host_interface, "eth0", &namespace).await);
        within(&namespace, async |net| net.up("eth0").await);
        let addresses = addresses.iter().map(|address| parse(address).addr()).collect();
        Endpoint { name: name.to_owned(), namespace, host_interface, addresses }
    }

    /// Writes a file below /proc/sys.
    pub fn sysctl(&self, name: &str, value: &str) {
        sysctl(&self.namespace, name, value);
    }

    /// Runs a command inside, which must succeed; gives back what it printed.
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        succeed(self.command(program, arguments), program, arguments)
    }

    /// Runs a command inside.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Output {
        command(&self.namespace, program, arguments)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // a panic here would hide the test's own
        _ = fs::remove_dir_all(&self.bpffs);
        _ = fs::remove_dir_all(&self.folder);
    }
}

impl Endpoint {
    /// For `spec.netns`: a path that other processes can open, too.
    pub fn netns(&self) -> &Path {
        self.namespace.path()
    }

    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        self.namespace.enter(f).expect("entering a network namespace needs root")
    }

    pub fn net<T: Send>(&self, f: impl AsyncFnOnce(Net) -> T + Send) -> T {
        within(&self.namespace, f)
    }

    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        succeed(command(&self.namespace, program, arguments), program, arguments)
    }

    pub fn ipv4(&self) -> IpAddr {
        *self.addresses.iter().find(|address| address.is_ipv4()).expect("an IPv4 address")
    }

    pub fn ipv6(&self) -> IpAddr {
        *self.addresses.iter().find(|address| address.is_ipv6()).expect("an IPv6 address")
    }
}

/// A new namespace, loopback up, where addresses can be used at once.
pub(super) fn namespace() -> Namespace {
    let namespace = Namespace::anonymous().expect("making a network namespace needs root");
    for place in ["all", "default"] {
        sysctl(&namespace, &format!("net/ipv6/conf/{place}/accept_dad"), "0");
    }
    within(&namespace, async |net| net.up("lo").await);
    namespace
}

pub(super) fn sysctl(namespace: &Namespace, name: &str, value: &str) {
    let file = Path::new("/proc/sys").join(name);
    // the file shows the namespace of the thread that opens it
    let written = namespace.enter(|| fs::write(&file, value)).expect("entering a network namespace needs root");
    written.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
}

fn command(namespace: &Namespace, program: &str, arguments: &[&str]) -> Output {
    let output = namespace.enter(|| Command::new(program).args(arguments).output());
    let output = output.expect("entering a network namespace needs root");
    output.unwrap_or_else(|error| panic!("{program}: {error} (is its package installed?)"))
}

fn succeed(output: Output, program: &str, arguments: &[&str]) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {error}", arguments.join(" "));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// `10.0.0.1/16`, or a bare address for itself alone.
fn parse(text: &str) -> IpNet {
    let bare = || text.parse::<IpAddr>().map(IpNet::from);
    text.parse().or_else(|_| bare()).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// Removes what test processes that were killed have left.
fn sweep() {
    for place in [super::netpol::bpffs(), std::env::temp_dir().as_path()] {
        let entries = fs::read_dir(place).into_iter().flatten().flatten();
        for entry in entries {
            let name = entry.file_name().into_string().unwrap_or_default();
            let owner = name.strip_prefix("npt-").and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
            if owner.is_some_and(|owner| !Path::new("/proc").join(owner.to_string()).exists()) {
                _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}
