//! Single packets against Calico's rules: who is the subject is given, the packet's addresses are
//! arbitrary, so the subject takes each packet's destination in turn.

use std::{net::IpAddr, path::Path};

use anyhow::{Context as _, Result, bail};
use netpol_user::model::{Endpoint, IpVersion, Labels, Opening, Party, Profile, World};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Place, Report, read};
use crate::conformance::{
    connectivity::protocol,
    engine::{Engine, Maker, Question, offline},
    plan,
};

const SET: &str = "calico-rule-packets";

#[derive(Deserialize)]
struct Table {
    cases: Vec<Policies>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Policies {
    name: String,
    ip_version: u8,
    subject_labels: Labels,
    profile: String,
    /// Others whose named ports count.
    endpoints: Vec<Other>,
    policies: Vec<Value>,
    packets: Vec<Packet>,
}

#[derive(Deserialize)]
struct Other {
    ip: IpAddr,
    ports: Value,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Packet {
    /// A name or a number.
    protocol: Value,
    src: IpAddr,
    dst: IpAddr,
    #[serde(default)]
    src_port: u16,
    #[serde(default)]
    dst_port: u16,
    icmp_type: Option<u8>,
    icmp_code: Option<u8>,
    verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Allow,
    Deny,
}

pub fn run(path: &Path, report: &mut Report) -> Result<()> {
    let table: Table = read(path)?;
    for maker in &offline() {
        let mut engine = (maker.make)()?;
        for policies in &table.cases {
            report.tally(SET, maker.name).cases += 1;
            policies.run(maker, engine.as_mut(), report);
        }
    }
    Ok(())
}

impl Policies {
    fn run(&self, maker: &Maker<'_>, engine: &mut dyn Engine, report: &mut Report) {
        let place = Place { set: SET, case: &self.name, engine: maker.name };
        let failed = match self.world() {
            Ok(world) => self.packets.iter().filter_map(|packet| self.wrong(&world, packet, engine)).collect(),
            Err(error) => vec![format!("{error:#}"); self.packets.len()],
        };
        report.rows(&place, self.packets.len(), failed);
    }

    fn wrong(&self, world: &World, packet: &Packet, engine: &mut dyn Engine) -> Option<String> {
        match self.allows(world, packet, engine) {
            Ok(allowed) if allowed == (packet.verdict == Verdict::Allow) => None,
            Ok(_) => Some(format!("not so: {packet:?}")),
            Err(error) => Some(format!("{packet:?}: {error:#}")),
        }
    }

    /// The subject, then the others.
    fn world(&self) -> Result<World> {
        let endpoint = |name: &str, labels: &Labels, spec: Value| {
            json!({
                "apiVersion": "netpol.dev/v1", "kind": "Endpoint",
                "metadata": {"name": name, "labels": labels}, "spec": spec,
            })
        };
        let mut documents = vec![endpoint("subject", &self.subject_labels, json!({}))];
        for (number, Other { ip, ports }) in self.endpoints.iter().enumerate() {
            let spec = json!({"addresses": [ip], "ports": ports});
            documents.push(endpoint(&format!("other-{number}"), &Labels::new(), spec));
        }
        documents.push(speak_freely());
        documents.extend(self.policies.iter().map(reword));
        let mut world = plan::parse(vec![plan::source("policies", &documents)])?.world;
        world.profile = match self.profile.as_str() {
            "allow" => Profile::Allow,
            "deny" => Profile::Deny,
            other => bail!("unknown profile {other:?}"),
        };
        Ok(world)
    }

    fn allows(&self, world: &World, packet: &Packet, engine: &mut dyn Engine) -> Result<bool> {
        let mut world = world.clone();
        let at =
            |world: &World, address| world.endpoints.iter().position(|endpoint| endpoint.addresses.contains(&address));
        let subject = world.endpoints.iter().position(|endpoint| endpoint.labels == self.subject_labels);
        let subject = subject.context("the subject is missing")?;
        if let Some(same) = at(&world, packet.dst) {
            // the subject has the ports of whoever has its address
            world.endpoints[subject].ports = world.endpoints[same].ports.clone();
            world.endpoints[same].addresses.clear();
        }
        let Endpoint { addresses, .. } = &mut world.endpoints[subject];
        *addresses = vec![packet.dst];
        let from = match at(&world, packet.src) {
            Some(index) => Party::Endpoint { index, address: Some(packet.src) },
            None => Party::Outside(packet.src),
        };
        let to = Party::Endpoint { index: subject, address: Some(packet.dst) };
        let question = Question { from, to, opening: self.opening(packet)? };
        let verdicts = engine.verdicts(&world, &[question])?;
        verdicts.first().copied().context("no verdict")
    }

    fn opening(&self, packet: &Packet) -> Result<Opening> {
        let family = if self.ip_version == 6 { IpVersion::V6 } else { IpVersion::V4 };
        let name = packet.protocol.as_str().map_or_else(|| packet.protocol.to_string(), str::to_owned);
        Ok(Opening {
            protocol: protocol(&name, family)?,
            source_port: packet.src_port,
            destination_port: packet.dst_port,
            icmp: packet.icmp_type.map(|kind| (kind, packet.icmp_code.unwrap_or_default())),
        })
    }
}

/// Only the subject's ingress is asked about: whoever is the source may say anything.
fn speak_freely() -> Value {
    json!({
        "apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkPolicy",
        "metadata": {"name": "speak-freely"},
        "spec": {"selector": "all()", "types": ["Egress"], "egress": [{"action": "Allow"}]},
    })
}

/// The upstream tests feed Calico's compiled rules, which may say what its validator refuses in a
/// document (`calico-v3-validation` has them). Here they are written as what a document may say.
fn reword(policy: &Value) -> Value {
    let mut policy = policy.clone();
    if let Some(rules) = policy.pointer_mut("/spec/ingress").and_then(Value::as_array_mut) {
        *rules = rules.iter().flat_map(reword_rule).collect();
    }
    policy
}

fn reword_rule(rule: &Value) -> Vec<Value> {
    let mut rule = rule.clone();
    for end in ["source", "destination"] {
        let Some(entity) = rule.get_mut(end).and_then(Value::as_object_mut) else { continue };
        if let Some(last) = entity.get("ports").and_then(up_to) {
            entity.remove("ports");
            entity.insert("notPorts".to_owned(), json!([format!("{}:65535", last + 1)]));
        }
        if let Some(nets) = entity.get_mut("notNets").and_then(Value::as_array_mut) {
            *nets = nets.iter().flat_map(halves).collect();
        }
    }
    by_protocol(rule)
}

/// `["0:80"]`: port 0 can't be written, but that all others are left out can.
fn up_to(ports: &Value) -> Option<u16> {
    let [only] = ports.as_array()?.as_slice() else { return None };
    only.as_str()?.strip_prefix("0:")?.parse().ok()
}

/// Every address, as two networks.
fn halves(net: &Value) -> Vec<Value> {
    match net.as_str() {
        Some("0.0.0.0/0") => vec![json!("0.0.0.0/1"), json!("128.0.0.0/1")],
        Some("::/0") => vec![json!("::/1"), json!("8000::/1")],
        _ => vec![net.clone()],
    }
}

/// Numbers of ports need a protocol: without one, a rule for each that has ports.
fn by_protocol(rule: Value) -> Vec<Value> {
    let ports = rule.pointer("/destination/ports").and_then(Value::as_array);
    let named = |port: &&Value| port.as_str().is_some_and(|port| port.starts_with(|c: char| c.is_ascii_alphabetic()));
    let Some(ports) = ports.filter(|ports| rule.get("protocol").is_none() && !ports.iter().all(|port| named(&port)))
    else {
        return vec![rule];
    };
    let (names, numbers): (Vec<_>, Vec<_>) = ports.iter().cloned().partition(|port| named(&port));
    let with = |ports: &[Value]| {
        let mut rule = rule.clone();
        rule["destination"]["ports"] = json!(ports);
        rule
    };
    let numbered = ["TCP", "UDP", "SCTP"].map(|protocol| {
        let mut rule = with(&numbers);
        rule["protocol"] = json!(protocol);
        rule
    });
    let named = (!names.is_empty()).then(|| with(&names));
    numbered.into_iter().chain(named).collect()
}
