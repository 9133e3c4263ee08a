//! Single packets against Calico's rules: who is the subject is given, the packet's addresses are
//! arbitrary, so the subject takes each packet's destination in turn.

use std::{net::IpAddr, path::Path};

use anyhow::{Context as _, Result, bail};
use netpol_user::model::{Endpoint, IpVersion, Labels, Opening, Party, Profile, World};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Report, read};
use crate::conformance::{
    connectivity::protocol,
    engine::{Engine, Maker, OFFLINE, Question},
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
    for maker in OFFLINE {
        let mut engine = (maker.make)()?;
        for policies in &table.cases {
            report.tally(SET, maker.name).cases += 1;
            policies.run(maker, engine.as_mut(), report)?;
        }
    }
    Ok(())
}

impl Policies {
    fn run(&self, maker: &Maker, engine: &mut dyn Engine, report: &mut Report) -> Result<()> {
        let name = &self.name;
        let world = match self.world() {
            Ok(world) => world,
            Err(error) => {
                report.row(SET, maker.name, Err(format!("{SET}: \"{name}\": {error:#}")));
                return Ok(());
            }
        };
        for packet in &self.packets {
            let held = match self.allows(&world, packet, engine) {
                Ok(allowed) if allowed == (packet.verdict == Verdict::Allow) => Ok(()),
                Ok(_) => Err(format!("{SET}: \"{name}\": not so: {packet:?}")),
                Err(error) => Err(format!("{SET}: \"{name}\": {packet:?}: {error:#}")),
            };
            report.row(SET, maker.name, held);
        }
        Ok(())
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
        documents.extend(self.policies.iter().cloned());
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
