//! Beside Docker: its own NAT, by iptables, keeps working, and policy sees the true client of what it publishes.

mod support;

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use netpol_user::netns::Namespace;
use support::{
    Attempt, Endpoint, FAMILIES, Family, HOST, Host, Seen, check, client_of,
    policy::{documents, egress, ingress},
    translated::{host_address, socket_at, taken_for},
};

/// A daemon that does not answer after this is broken.
const PATIENCE: Duration = Duration::from_secs(60);
const IMAGE: &str = "netpol-test";

/// A Docker daemon of a host's own: in its network namespace, with mounts and processes of its own. When this is gone, or
/// the test's process, the first of those processes ends, and all others with it.
struct Docker<'a> {
    host: &'a Host,
    daemon: Child,
    folder: PathBuf,
}

impl<'a> Docker<'a> {
    fn start(host: &'a Host) -> Self {
        let folder = host.folder().join("docker");
        fs::create_dir_all(&folder).expect("a folder");
        Command::new("dockerd").arg("--version").output().expect("dockerd (Debian's package docker.io)");
        sweep(process::id());
        let at = |name: &str| folder.join(name).display().to_string();
        // It ends with its standard input, which is a pipe from here; this machine's settings of Docker are not its own.
        // What Debian 12 has calls rules for IPv6 experimental.
        let script = format!(
            "mkdir -p /etc/docker && mount -t tmpfs tmpfs /etc/docker && mount -t tmpfs tmpfs /run && \
             dockerd --host unix://{} --data-root {} --exec-root {} --pidfile {} --storage-driver vfs \
             --bip 172.30.0.1/24 --experimental --ip6tables --userland-proxy=false --cgroup-parent /npt-docker-{} >{} 2>&1 & cat",
            at("socket"),
            at("data"),
            at("run"),
            at("pid"),
            process::id(),
            at("log"),
        );
        let alone = ["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"];
        let start = || Command::new("unshare").args(alone).args(["sh", "-c", &script]).stdin(Stdio::piped()).spawn();
        let daemon = host.namespace.enter(start).expect("entering a network namespace needs root");
        let docker = Self { host, daemon: daemon.expect("unshare"), folder };
        docker.await_daemon();
        docker.import();
        docker
    }

    fn await_daemon(&self) {
        let begin = Instant::now();
        while !self.ask(&["version"]).status.success() {
            let log = || fs::read_to_string(self.folder.join("log")).unwrap_or_default();
            assert!(begin.elapsed() < PATIENCE, "dockerd (Debian's package docker.io) does not answer: {}", log());
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// An image that can sleep, of this machine's own files.
    fn import(&self) {
        let script = format!(
            "tar --dereference -c /bin/sleep $(ldd /bin/sleep | grep -o '/[^ ]*') 2>/dev/null | docker --host {} import - {IMAGE}",
            self.socket()
        );
        let done = Command::new("sh").args(["-c", &script]).output().expect("sh");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    fn socket(&self) -> String {
        format!("unix://{}", self.folder.join("socket").display())
    }

    fn ask(&self, arguments: &[&str]) -> process::Output {
        let output = Command::new("docker").args(["--host", &self.socket()]).args(arguments).output();
        output.expect("docker (Debian's package docker.io)")
    }

    #[track_caller]
    fn run(&self, arguments: &[&str]) -> String {
        let done = self.ask(arguments);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8_lossy(&done.stdout).trim().to_owned()
    }

    /// A network of both families.
    fn network(&self, name: &str) {
        let subnets = ["--ipv6", "--subnet", "172.31.0.0/24", "--subnet", "fd31::/64"];
        self.run(&[&["network", "create"], &subnets[..], &[name]].concat());
    }

    /// A container that does nothing by itself.
    fn container(&self, name: &str, more: &[&str]) -> Endpoint {
        self.run(&[&["run", "--detach", "--name", name], more, &[IMAGE, "/bin/sleep", "3600"]].concat());
        let addresses = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.GlobalIPv6Address}}{{end}}";
        let told =
            self.run(&["inspect", "--format", &format!("{{{{.NetworkSettings.SandboxKey}}}} {addresses}"), name]);
        let (key, addresses) = told.split_once(' ').expect("some words");
        // the daemon's mounts are its own
        let path = format!("/proc/{}/root{key}", self.daemon.id());
        let namespace = Namespace::open(Path::new(&path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        let address = |text: &str| text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
        let addresses = addresses.split_whitespace().map(address).collect();
        Endpoint { name: name.to_owned(), namespace, host_interface: String::new(), addresses }
    }

    /// Rules of translation that Docker writes.
    fn rules(&self, family: Family) -> String {
        self.host.run(if family == Family::V4 { "iptables" } else { "ip6tables" }, &["-t", "nat", "-S"])
    }
}

impl Drop for Docker<'_> {
    fn drop(&mut self) {
        drop(self.daemon.stdin.take());
        _ = self.daemon.wait();
        // a panic here would hide the test's own
        sweep(process::id());
    }
}

/// Removes the control groups of a test, and of those that were killed.
fn sweep(own: u32) {
    let root = Path::new("/sys/fs/cgroup");
    let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    // one hierarchy, or one for each controller
    for place in [root.to_owned()].into_iter().chain(entries(root)) {
        for group in entries(&place) {
            let name = group.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let owner = name.strip_prefix("npt-docker-").and_then(|owner| owner.parse().ok());
            let is_gone = |owner: u32| owner == own || !Path::new("/proc").join(owner.to_string()).exists();
            if owner.is_some_and(is_gone) {
                remove(&group);
            }
        }
    }
}

/// A group and those inside, none of which has processes.
fn remove(group: &Path) {
    let inside = fs::read_dir(group).into_iter().flatten().flatten();
    inside.map(|entry| entry.path()).filter(|path| path.is_dir()).for_each(|path| remove(&path));
    _ = fs::remove_dir(group);
}

/// Who may reach `web` at port 80: one of these containers, or somebody elsewhere.
fn ingress_from(who: &Endpoint) -> String {
    let rule = |family| format!("{{from: [{}], ports: [{}]}}", block(who, family), ports(80));
    ingress("web", &FAMILIES.map(rule))
}

/// Where `client` may go: to somebody at a port.
fn egress_to(who: &Endpoint, port: u16) -> String {
    let rule = |family| format!("{{to: [{}], ports: [{}]}}", block(who, family), ports(port));
    egress("client", &FAMILIES.map(rule))
}

fn block(who: &Endpoint, family: Family) -> String {
    format!("{{ipBlock: {{cidr: '{}/{}'}}}}", who.ip(family), if family == Family::V4 { 32 } else { 128 })
}

fn ports(port: u16) -> String {
    format!("{{port: {port}, protocol: TCP}}, {{port: {port}, protocol: UDP}}")
}

/// What Docker publishes.
fn published(family: Family) -> String {
    SocketAddr::new(host_address(family), 8080).to_string()
}

/// Whom a server takes the client for, by TCP and by UDP.
#[track_caller]
fn clients_of(server: &Endpoint, port: u16, client: &Endpoint, family: Family, to: &str) -> [IpAddr; 2] {
    let sockets = [(server, port), (client, 5000)].map(|(end, port)| socket_at(end, end.socket(family, port)));
    [client_of(server, port, client, to), taken_for(&sockets[0], &sockets[1], to).ip()]
}

/// What is seen by TCP and by UDP, over both families.
fn always(from: &Endpoint, to: impl Fn(Family) -> String, seen: Seen) -> Vec<(&Endpoint, Attempt, Seen)> {
    let places = FAMILIES.into_iter().map(to);
    places.flat_map(|to| [(from, Attempt::Tcp(to.clone()), seen), (from, Attempt::Udp(to), seen)]).collect()
}

#[track_caller]
fn load(host: &Host, endpoints: &[&Endpoint], more: &[String]) {
    let path = host.documents("load.yaml", &documents(endpoints, more));
    host.netpol(&["load", "--uplink", "v-outside", &path]).ok();
}

#[test]
fn docker_publishes_and_masquerades_and_policy_sees_the_true_client() {
    let host = Host::new();
    let outside = host.outside();
    let docker = Docker::start(&host);
    docker.network("both");
    let web = docker.container("web", &["--network", "both", "--publish", "8080:80", "--publish", "8080:80/udp"]);
    let client = docker.container("client", &["--network", "both"]);
    let all = [&web, &client];

    // without policies, and with one that allows it: Docker keeps the client's address, and netpol sees it
    for policies in [vec![], vec![ingress_from(&outside)]] {
        load(&host, &all, &policies);
        for family in FAMILIES {
            assert_eq!(clients_of(&web, 80, &outside, family, &published(family)), [outside.ip(family); 2]);
        }
    }
    let _servers = (web.serve_tcp(80), web.serve_udp(80));
    let direct = |family| web.at(family, 80);
    check(
        &[
            always(&outside, published, Seen::Answered),
            always(&client, direct, Seen::Silent),
            always(&client, published, Seen::Silent),
        ]
        .concat(),
    );
    load(&host, &all, &[ingress_from(&client)]);
    check(
        &[
            always(&outside, published, Seen::Silent),
            always(&client, direct, Seen::Answered),
            always(&client, published, Seen::Answered),
            always(&host.itself(), published, Seen::Answered),
        ]
        .concat(),
    );

    // what leaves has the host's address by Docker's masquerade, and policy is asked about the container
    let [one, other] = [9000, 9001].map(|port| (outside.serve_tcp(port), outside.serve_udp(port)));
    load(&host, &all, &[egress_to(&outside, 9000)]);
    check(
        &[
            always(&client, |family| outside.at(family, 9000), Seen::Answered),
            always(&client, |family| outside.at(family, 9001), Seen::Silent),
        ]
        .concat(),
    );
    drop((one, other));
    load(&host, &all, &[egress_to(&outside, 9002)]);
    for family in FAMILIES {
        let to = outside.at(family, 9002);
        assert_eq!(clients_of(&outside, 9002, &client, family, &to), [host_address(family); 2]);
        // all of that was Docker's doing
        let nat = docker.rules(family);
        let is_published = |protocol| nat.contains(&format!("-p {protocol} -m {protocol} --dport 8080 -j DNAT"));
        assert!(is_published("tcp") && is_published("udp") && nat.contains("-j MASQUERADE"), "{nat}");
    }
}

#[test]
fn netpol_publishes_and_masquerades_beside_docker() {
    let host = Host::new();
    let outside = host.outside();
    let docker = Docker::start(&host);
    let (web, client) = (docker.container("web", &["--publish", "8080:80"]), docker.container("client", &[]));
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {type: NodePort, selector: {app: web}, \
                   clusterIP: 10.96.0.10, ports: [{port: 80, targetPort: 80, nodePort: 8000}]}\n"
        .to_owned();
    let pool = "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: docker}\n\
                spec: {cidr: 172.30.0.0/24, natOutgoing: true}\n"
        .to_owned();
    load(&host, &[&web, &client], &[service, pool]);
    let [four, _] = HOST;
    for port in [8000, 8080] {
        assert_eq!(client_of(&web, 80, &outside, &format!("{four}:{port}")), outside.ip(Family::V4), "port {port}");
    }
    assert_eq!(client_of(&web, 80, &client, "10.96.0.10:80"), client.ip(Family::V4));
    let host_address: std::net::IpAddr = four.parse().expect("an address");
    assert_eq!(client_of(&outside, 9000, &client, &outside.at(Family::V4, 9000)), host_address);
    let _server = web.serve_tcp(80);
    check(&[
        (&host.itself(), Attempt::Tcp("127.0.0.1:8000".to_owned()), Seen::Answered),
        (&host.itself(), Attempt::Tcp(format!("{four}:8080")), Seen::Answered),
        (&client, Attempt::Tcp(format!("{four}:8000")), Seen::Answered),
        (&client, Attempt::Tcp(format!("{four}:8080")), Seen::Answered),
    ]);
    assert!(host.enforced());
    // nothing of netpol's is among Docker's rules, and nothing of Docker's is gone
    assert!(docker.rules(Family::V4).contains("--dport 8080"));
    host.netpol(&["unload"]).ok();
    assert_eq!(client_of(&web, 81, &client, &web.at(Family::V4, 81)), client.ip(Family::V4));
}
