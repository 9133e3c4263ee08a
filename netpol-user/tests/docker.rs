//! Beside Docker: its own NAT, by iptables, keeps working, and policy sees the true client of what it publishes.

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use netpol_user::netns::Namespace;
use support::{Attempt, Endpoint, Family, HOST, Host, Seen, check, client_of, policy::documents};

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
        let script = format!(
            "mkdir -p /etc/docker && mount -t tmpfs tmpfs /etc/docker && mount -t tmpfs tmpfs /run && \
             dockerd --host unix://{} --data-root {} --exec-root {} --pidfile {} --storage-driver vfs \
             --bip 172.30.0.1/24 --userland-proxy=false --cgroup-parent /npt-docker-{} >{} 2>&1 & cat",
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

    /// A container that does nothing by itself.
    fn container(&self, name: &str, more: &[&str]) -> Endpoint {
        self.run(&[&["run", "--detach", "--name", name], more, &[IMAGE, "/bin/sleep", "3600"]].concat());
        let format = "{{.NetworkSettings.SandboxKey}} {{.NetworkSettings.IPAddress}}";
        let told = self.run(&["inspect", "--format", format, name]);
        let (key, address) = told.split_once(' ').expect("two words");
        // the daemon's mounts are its own
        let path = format!("/proc/{}/root{key}", self.daemon.id());
        let namespace = Namespace::open(Path::new(&path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        let address = address.parse().unwrap_or_else(|error| panic!("{address}: {error}"));
        Endpoint { name: name.to_owned(), namespace, host_interface: String::new(), addresses: vec![address] }
    }

    /// Rules of the tables that Docker writes.
    fn rules(&self, table: &str) -> String {
        self.host.run("iptables", &["-t", table, "-S"])
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

/// Who may reach `web` at port 80: an address.
fn ingress_from(address: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: web}}\nspec:\n  \
         podSelector: {{matchLabels: {{app: web}}}}\n  policyTypes: [Ingress]\n  \
         ingress: [{{from: [{{ipBlock: {{cidr: {address}/32}}}}], ports: [{{port: 80}}]}}]\n"
    )
}

/// Where `client` may go: an address and a port.
fn egress_to(address: &str, port: u16) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: client}}\nspec:\n  \
         podSelector: {{matchLabels: {{app: client}}}}\n  policyTypes: [Egress]\n  \
         egress: [{{to: [{{ipBlock: {{cidr: {address}/32}}}}], ports: [{{port: {port}}}]}}]\n"
    )
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
    let (web, client) = (docker.container("web", &["--publish", "8080:80"]), docker.container("client", &[]));
    let all = [&web, &client];
    let [four, _] = HOST;
    let published = format!("{four}:8080");
    let [from_outside, from_client] = [&outside, &client].map(|who| ingress_from(&who.ip(Family::V4).to_string()));

    // without policies, and with one that allows it: Docker keeps the client's address, and netpol sees it
    for policies in [vec![], vec![from_outside.clone()]] {
        load(&host, &all, &policies);
        assert_eq!(client_of(&web, 80, &outside, &published), outside.ip(Family::V4));
    }
    let _servers = (web.serve_tcp(80), outside.serve_tcp(9000), outside.serve_tcp(9001));
    let direct = web.at(Family::V4, 80);
    check(&[
        (&outside, Attempt::Tcp(published.clone()), Seen::Answered),
        (&client, Attempt::Tcp(direct.clone()), Seen::Silent),
        (&client, Attempt::Tcp(published.clone()), Seen::Silent),
    ]);
    load(&host, &all, std::slice::from_ref(&from_client));
    check(&[
        (&outside, Attempt::Tcp(published.clone()), Seen::Silent),
        (&client, Attempt::Tcp(direct), Seen::Answered),
        (&client, Attempt::Tcp(published.clone()), Seen::Answered),
        (&host.itself(), Attempt::Tcp(published), Seen::Answered),
    ]);

    // what leaves has the host's address by Docker's masquerade, and policy is asked about the container
    let elsewhere = outside.ip(Family::V4).to_string();
    load(&host, &all, &[egress_to(&elsewhere, 9000)]);
    check(&[
        (&client, Attempt::Tcp(outside.at(Family::V4, 9000)), Seen::Answered),
        (&client, Attempt::Tcp(outside.at(Family::V4, 9001)), Seen::Silent),
    ]);
    load(&host, &all, &[egress_to(&elsewhere, 9002)]);
    let host_address: std::net::IpAddr = four.parse().expect("an address");
    assert_eq!(client_of(&outside, 9002, &client, &outside.at(Family::V4, 9002)), host_address);
    // all of that was Docker's doing
    let nat = docker.rules("nat");
    assert!(nat.contains("-j DNAT --to-destination") && nat.contains("-j MASQUERADE"), "{nat}");
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
    assert!(
        docker.rules("nat").contains("-A DOCKER ! -i docker0 -p tcp") || docker.rules("nat").contains("--dport 8080")
    );
    host.netpol(&["unload"]).ok();
    assert_eq!(client_of(&web, 81, &client, &web.at(Family::V4, 81)), client.ip(Family::V4));
}
