//! The examples that people learn from do what their READMEs say: each is loaded as it is, in
//! namespaces of the test's own, and `netpol verify` connects everybody with everybody.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde_json::Value;
use support::{
    Attempt::Tcp,
    Endpoint, Family, HOST, Host, Scene,
    Seen::{Answered, Silent},
    check, client_of,
};

fn policies() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies")
}

/// The files of an example, in order.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    let is_document = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "yaml");
    entries
        .into_iter()
        .flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] })
        .filter(is_document)
        .collect()
}

/// An example that is up: its documents name the test's namespaces instead of those of `ip netns`.
struct Example {
    host: Host,
    endpoints: BTreeMap<String, Endpoint>,
    path: String,
}

impl Example {
    fn up(folder: &str, gateway: &str) -> Self {
        let host = Host::new();
        host.bridge("br0", &[gateway]);
        let prefix = gateway.split_once('/').unwrap().1;
        let mut text: String =
            files(&policies().join(folder)).iter().map(|path| fs::read_to_string(path).unwrap() + "\n---\n").collect();
        let mut endpoints = BTreeMap::new();
        for document in text.clone().split("\n---").filter(|document| document.contains("kind: Endpoint")) {
            let field = |name: &str| {
                let line = document.lines().find_map(|line| line.trim().strip_prefix(name)).unwrap();
                line.split('#').next().unwrap().trim().to_owned()
            };
            let (name, netns) = (field("name:"), field("netns:"));
            let address = format!("{}/{prefix}", field("addresses:").trim_matches(['[', ']']));
            let endpoint = host.endpoint("br0", &format!("e{}", endpoints.len()), &[&address]);
            let lines = text.lines().map(|line| match line.trim().strip_prefix("netns:") {
                Some(found) if found.split('#').next().unwrap().trim() == netns => {
                    format!("  netns: {}", endpoint.netns().display())
                }
                _ => line.to_owned(),
            });
            text = lines.collect::<Vec<_>>().join("\n");
            endpoints.insert(name, endpoint);
        }
        let path = host.documents("example.yaml", &text);
        host.load_path(&["--strict"], &path);
        Self { host, endpoints, path }
    }

    /// A machine outside, where the host's default route leads: customers are there, and every server of the README.
    fn internet(&self) -> Endpoint {
        let outside = self.host.outside();
        outside.net(async |net| {
            for address in ["198.51.100.7/32", "203.0.113.1/32"] {
                net.address("eth0", address.parse().unwrap()).await;
            }
        });
        let everywhere = "0.0.0.0/0".parse().unwrap();
        self.host.net(async |net| net.route(everywhere, "v-outside", Some(outside.ipv4())).await);
        self.endpoints.values().for_each(|endpoint| endpoint.gateways(&["10.0.0.1"]));
        self.host.load_path(&["--strict"], &self.path);
        outside
    }

    /// What real connections say: `from > to:port` with the name alone, and whether it answered.
    fn proved(&self, ports: &[&str]) -> BTreeMap<String, bool> {
        let flags: Vec<&str> = ports.iter().flat_map(|port| ["--port", port]).collect();
        let ran = self.host.netpol(&[&["verify", "-o", "json", &self.path], &flags[..]].concat());
        assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
        let json = ran.json();
        let rows = json["rows"].as_array().unwrap().iter();
        let name = |row: &Value, end: &str| row[end].as_str().unwrap().split_once('/').unwrap().1.to_owned();
        let row = |row: &Value| {
            let pair = format!("{} > {}:{}", name(row, "from"), name(row, "to"), row["port"]);
            assert!(["allowed", "denied"].contains(&row["observed"].as_str().unwrap()), "{row}");
            (pair, row["observed"] == "allowed")
        };
        rows.map(row).collect()
    }
}

/// A README's table number `number`: (row, column, cell) for each cell that says something, lists of names
/// taken apart.
fn table(readme: &str, number: usize) -> Vec<(String, String, bool)> {
    let text = fs::read_to_string(policies().join(readme)).unwrap();
    let mut tables = text.split("| from \\ to ").skip(1).map(|rest| rest.split("\n\n").next().unwrap());
    let table = tables.nth(number).unwrap_or_else(|| panic!("{readme} has no table {number}"));
    let cells = |line: &str| -> Vec<String> {
        let plain = line.replace("**", "").replace(" :", ":");
        plain.trim().trim_matches('|').split('|').map(|cell| cell.trim().to_lowercase()).collect()
    };
    let mut lines = table.lines();
    let columns = cells(lines.next().unwrap());
    let mut found = vec![];
    for line in lines.skip(1) {
        let row = cells(line);
        for (column, cell) in columns.iter().zip(&row[1..]) {
            for (from, to) in row[0].split(", ").flat_map(|from| column.split(", ").map(move |to| (from, to))) {
                match cell.as_str() {
                    "yes" => found.push((from.to_owned(), to.to_owned(), true)),
                    "no" => found.push((from.to_owned(), to.to_owned(), false)),
                    "" => {}
                    other => panic!("{readme}: {other}"),
                }
            }
        }
    }
    found
}

/// Each cell of the table is what was proved; `port` for columns that name none.
fn compare(cells: &[(String, String, bool)], proved: &BTreeMap<String, bool>, port: u16) {
    // lists of names meet themselves
    for (from, to, allowed) in cells.iter().filter(|(from, to, _)| to.split(':').next() != Some(from)) {
        let to = if to.contains(':') { to.clone() } else { format!("{to}:{port}") };
        let pair = format!("{from} > {to}");
        assert_eq!(proved.get(&pair), Some(allowed), "{pair} in {proved:#?}");
    }
}

#[test]
fn shop_is_its_readme() {
    let shop = Example::up("shop", "10.0.0.1/16");
    let (internet, cells): (Vec<_>, Vec<_>) =
        table("shop/README.md", 0).into_iter().partition(|(from, ..)| from == "the internet");
    assert_eq!((internet.len(), cells.len()), (6, 30));
    compare(&cells, &shop.proved(&[]), 80);

    let outside = shop.internet();
    let mut expected = vec![];
    let mut servers = vec![];
    for (_, to, allowed) in &internet {
        let (name, port) = to.split_once(':').unwrap();
        let (endpoint, port) = (&shop.endpoints[name], port.parse().unwrap());
        servers.push(endpoint.serve_tcp(port));
        expected.push((&outside, Tcp(endpoint.at(Family::V4, port)), if *allowed { Answered } else { Silent }));
    }
    check(&expected);
    // "on any other port: no, for everybody"
    let proved = shop.proved(&["8080/tcp", "53/udp"]);
    assert_eq!(proved.len(), 60);
    assert!(proved.values().all(|allowed| !allowed), "{proved:#?}");
    let flows = shop.host.flows();
    let denied = flows.iter().filter(|flow| flow["verdict"] == "denied" && flow["current"] == true);
    assert!(denied.clone().count() >= 30);
    for flow in denied {
        assert!(flow["rule"]["source"].as_str().unwrap().contains("example.yaml:"), "{flow:#}");
    }
}

#[test]
fn shop_is_published_and_masqueraded_as_its_readme_says() {
    let shop = Example::up("shop", "10.0.0.1/16");
    let outside = shop.internet();
    let host: IpAddr = HOST[0].parse().unwrap();
    let published = format!("{host}:8080");
    let nginx = &shop.endpoints["nginx-lb"];
    assert_eq!(client_of(nginx, 80, &outside, &published), outside.ipv4());

    let cells = table("shop/README.md", 1);
    assert_eq!(cells.len(), 5 * shop.endpoints.len());
    let ports: BTreeSet<u16> = cells.iter().map(|(_, to, _)| to.split_once(':').unwrap().1.parse().unwrap()).collect();
    let servers: Vec<_> = ports.into_iter().map(|port| outside.serve_tcp(port)).collect();
    let expected: Vec<_> = cells
        .iter()
        .map(|(from, to, allowed)| (&shop.endpoints[from], Tcp(to.clone()), if *allowed { Answered } else { Silent }))
        .collect();
    check(&expected);
    drop(servers);
    for (from, to, _) in cells.iter().filter(|(.., allowed)| *allowed) {
        let (_, port) = to.split_once(':').unwrap();
        assert_eq!(client_of(&outside, port.parse().unwrap(), &shop.endpoints[from], to), host, "{from} to {to}");
    }
    // what is denied is denied by the host's address, too
    let _server = nginx.serve_tcp(80);
    let siblings = shop.endpoints.iter().filter(|(name, _)| *name != "nginx-lb");
    check(&siblings.map(|(_, endpoint)| (endpoint, Tcp(published.clone()), Silent)).collect::<Vec<_>>());
    let rules = shop.host.run("nft", &["list", "ruleset"]) + &shop.host.run("iptables-save", &[]);
    assert_eq!(rules, "");
}

#[test]
fn abc_is_its_readme() {
    let abc = Example::up("abc", "10.10.0.1/24");
    let cells = table("abc/README.md", 0);
    assert_eq!(cells.len(), 6);
    compare(&cells, &abc.proved(&[]), 80);
    compare(&cells, &abc.proved(&["4711/tcp"]), 4711);
    // "C may not reach A" is about who opens the connection
    let (a, c) = (&abc.endpoints["a"], &abc.endpoints["c"]);
    let _servers = (a.serve_tcp(80), c.serve_tcp(80));
    check(&[(a, Tcp(c.at(Family::V4, 80)), Answered), (c, Tcp(a.at(Family::V4, 80)), Silent)]);
    assert_eq!(abc.host.flow("c", "a", 80)["rule"]["name"], "c-may-not-reach-a");
}

#[test]
fn first_version_of_stars_is_its_readme() {
    let stars = Example::up("stars/v1", "10.20.0.1/24");
    let cells = table("stars/README.md", 0);
    assert_eq!(cells.len(), 12);
    compare(&cells, &stars.proved(&["80/tcp"]), 80);
}

#[test]
fn second_version_of_stars_is_its_readme() {
    let stars = Example::up("stars", "10.20.0.1/24");
    let proved = stars.proved(&["5000/tcp", "15672/tcp", "53/tcp", "8443/tcp", "9001/tcp"]);
    let cells = table("stars/README.md", 1);
    assert!(cells.len() > 25, "{cells:?}");
    compare(&cells, &proved, 5000);
    // "beside the table above"
    compare(&table("stars/README.md", 0), &proved, 5000);
}

#[test]
fn whole_folder_loads_together_with_endpoints_that_are_not_up() {
    let Scene { host, .. } = Scene::bridged();
    let folder = policies();
    let report = host.load_path(&[], folder.to_str().unwrap());
    let pending = report["pending"].as_array().unwrap().len();
    assert_eq!((pending, report["endpoints"].as_u64()), (16, Some(0)), "{report:#}");
    let status = host.netpol(&["status", "-o", "json"]);
    assert_eq!(status.code, 0, "pending endpoints don't count: {}", status.stdout);
    assert_eq!(status.json()["pending"].as_array().unwrap().len(), 16);
    let strict = host.netpol(&["load", "--strict", folder.to_str().unwrap()]);
    assert_eq!(strict.code, 1);
    assert!(strict.stderr.contains("shop/redis-cache: the network namespace"), "{}", strict.stderr);
}
