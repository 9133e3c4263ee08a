//! Documents, loading them, and what the command tells afterwards.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use netpol_user::datapath::{Counter, Datapath, Pins, Side};
use serde_json::Value;

use super::{Endpoint, Host};

/// What a test loads: endpoints are labelled `app: NAME`, all in namespace `default`.
pub fn documents(endpoints: &[&Endpoint], policies: &[String]) -> String {
    let endpoints = endpoints.iter().map(|endpoint| endpoint.document());
    endpoints.chain(policies.iter().cloned()).collect::<Vec<_>>().join("---\n")
}

/// A NetworkPolicy that isolates `app` for ingress, with rules like [`from`].
pub fn ingress(app: &str, rules: &[String]) -> String {
    network_policy(app, "Ingress", rules)
}

/// A NetworkPolicy that isolates `app` for egress, with rules like [`to`].
pub fn egress(app: &str, rules: &[String]) -> String {
    network_policy(app, "Egress", rules)
}

fn network_policy(app: &str, direction: &str, rules: &[String]) -> String {
    let (key, rules) = (direction.to_lowercase(), rules.join(", "));
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {app}-{key}-{}}}\nspec:\n  \
         podSelector: {{matchLabels: {{app: {app}}}}}\n  policyTypes: [{direction}]\n  {key}: [{rules}]\n",
        hash(&rules)
    )
}

/// Names of policies must differ where their rules do.
fn hash(text: &str) -> u32 {
    text.bytes().fold(7, |hash, byte| hash * 31 % 65_521 + u32::from(byte))
}

/// An ingress rule; ports like `80/TCP`, none for all of them.
pub fn from(app: &str, ports: &[&str]) -> String {
    format!("{{from: [{{podSelector: {{matchLabels: {{app: {app}}}}}}}]{}}}", port_list(ports))
}

/// An egress rule.
pub fn to(app: &str, ports: &[&str]) -> String {
    format!("{{to: [{{podSelector: {{matchLabels: {{app: {app}}}}}}}]{}}}", port_list(ports))
}

/// A rule about these ports of whoever it is.
pub fn anybody(ports: &[&str]) -> String {
    format!("{{{}}}", port_list(ports).trim_start_matches(", "))
}

fn port_list(ports: &[&str]) -> String {
    let port = |port: &&str| {
        let (port, protocol) = port.split_once('/').expect("80/TCP");
        format!("{{port: {port}, protocol: {protocol}}}")
    };
    let list: Vec<_> = ports.iter().map(port).collect();
    if list.is_empty() { String::new() } else { format!(", ports: [{}]", list.join(", ")) }
}

/// A Calico NetworkPolicy about `app`, with the rest of its `spec` in YAML's flow style.
pub fn calico(app: &str, spec: &str) -> String {
    format!(
        "apiVersion: projectcalico.org/v3\nkind: NetworkPolicy\nmetadata: {{name: c-{app}-{}, namespace: default}}\n\
         spec: {{selector: app == '{app}', {spec}}}\n",
        hash(spec)
    )
}

impl Endpoint {
    /// The document that announces it.
    pub fn document(&self) -> String {
        self.document_with("")
    }

    /// The same, with more in its `spec`: `, ports: [...]`.
    pub fn document_with(&self, more: &str) -> String {
        let (name, netns) = (&self.name, self.netns().display());
        format!(
            "apiVersion: netpol.dev/v1\nkind: Endpoint\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\n\
             spec: {{netns: {netns}, interface: eth0{more}}}\n"
        )
    }

    /// Its port at its address of that family, as [`Endpoint::tcp`] takes it.
    pub fn at(&self, family: Family, port: u16) -> String {
        SocketAddr::new(self.ip(family), port).to_string()
    }

    pub fn ip(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.ipv4(),
            Family::V6 => self.ipv6(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

impl Host {
    /// Loads exactly these endpoints and policies; gives back what the command reports.
    #[track_caller]
    pub fn load(&self, endpoints: &[&Endpoint], policies: &[String]) -> Value {
        self.load_with(&[], endpoints, policies)
    }

    /// The same, with flags.
    #[track_caller]
    pub fn load_with(&self, flags: &[&str], endpoints: &[&Endpoint], policies: &[String]) -> Value {
        let path = self.documents("load.yaml", &documents(endpoints, policies));
        self.load_path(flags, &path)
    }

    #[track_caller]
    pub fn load_path(&self, flags: &[&str], path: &str) -> Value {
        let ran = self.netpol(&[&["load", "-o", "json", path], flags].concat());
        assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
        ran.json()
    }

    #[track_caller]
    pub fn status(&self) -> Value {
        self.netpol(&["status", "-o", "json"]).json()
    }

    #[track_caller]
    pub fn enforced(&self) -> bool {
        self.status()["enforced"].as_bool().expect("`enforced`")
    }

    #[track_caller]
    pub fn generation(&self) -> u64 {
        self.status()["generation"].as_u64().expect("`generation`")
    }

    /// What the classifiers have counted until now: what `status` shows, without the command's other work.
    #[track_caller]
    pub fn counts(&self) -> Counts {
        let datapath = Datapath::open(&Pins::at(self.bpffs())).unwrap_or_else(|error| panic!("{error}"));
        let row = |counter: &Counter| {
            let side = if counter.side == Side::From { "egress" } else { "ingress" };
            let name = match counter.verdict {
                Ok(pass) => format!("{side} passed {}", pass.name()),
                Err(drop) => format!("{side} dropped {}", drop.name()),
            };
            (name, counter.packets)
        };
        Counts(datapath.counters().unwrap_or_else(|error| panic!("{error}")).iter().map(row).collect())
    }

    /// Runs `f` and tells what the classifiers counted meanwhile.
    #[track_caller]
    pub fn counted<T>(&self, f: impl FnOnce() -> T) -> (T, Counts) {
        let before = self.counts();
        let result = f();
        (result, self.counts().since(&before))
    }

    #[track_caller]
    pub fn flows(&self) -> Vec<Value> {
        let flows = self.netpol(&["flows", "-o", "json"]).json();
        flows.as_array().expect("a list").clone()
    }

    /// The flow of the present generation between these, by name (or address) and destination port.
    #[track_caller]
    pub fn flow(&self, from: &str, to: &str, port: u16) -> Value {
        let flows = self.flows();
        let is = |end: &Value, who: &str| end["name"] == who || end["address"] == who;
        let wanted = |flow: &&Value| {
            is(&flow["source"], from)
                && is(&flow["destination"], to)
                && flow["destination"]["port"] == port
                && flow["current"] == true
        };
        flows.iter().find(wanted).unwrap_or_else(|| panic!("no flow {from} > {to}:{port} in {flows:#?}")).clone()
    }
}

/// Packets by what became of them: `egress dropped spoofed`, `ingress passed stack`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts(BTreeMap<String, u64>);

impl Counts {
    pub fn of(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or_default()
    }

    pub fn since(&self, before: &Self) -> Self {
        let growth = self.0.iter().map(|(name, count)| (name.clone(), count - before.of(name)));
        Self(growth.filter(|(_, count)| *count > 0).collect())
    }

    /// The reasons of drops, at the sender's (`egress`) or the receiver's interface.
    pub fn drops(&self) -> Vec<String> {
        self.0.keys().filter(|name| name.contains(" dropped ")).map(|name| name.replace(" dropped", "")).collect()
    }
}
