//! The examples of `policies/`, up and loaded in namespaces of a test.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{Endpoint, Host};

pub fn policies() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies")
}

/// The files of an example, in order.
pub fn files(folder: &Path) -> Vec<PathBuf> {
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
pub struct Example {
    pub host: Host,
    pub endpoints: BTreeMap<String, Endpoint>,
    pub path: String,
}

impl Example {
    pub fn up(folder: &str, gateway: &str) -> Self {
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
    pub fn internet(&self) -> Endpoint {
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
    pub fn proved(&self, ports: &[&str]) -> BTreeMap<String, bool> {
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
