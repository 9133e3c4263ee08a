//! What happens, with names: the kernel's records of flows and denials, made readable.

mod clock;
mod conversation;

use std::{collections::HashMap, net::IpAddr, time::SystemTime};

use netpol_common::{tables::IfIndex, wire::Protocol};
use serde::Serialize;

use crate::{
    datapath::{Drop, FlowFlags, Record, Side},
    model::Labels,
    state::{Endpoint, Names, Rule},
};

pub use conversation::{Conversation, Speaker, conversations};

/// A flow, as scripts see it: one direction of a connection at one place, or a denial.
#[derive(Clone, Debug, Serialize)]
pub struct Flow {
    /// Of the last packet, in RFC 3339's form.
    pub time: String,
    pub verdict: &'static str,
    pub drop_reason: Option<&'static str>,
    pub source: Peer,
    pub destination: Peer,
    pub protocol: String,
    /// `egress`: seen where it leaves the source; `ingress`: where it reaches the destination.
    pub direction: &'static str,
    pub is_reply: bool,
    /// The rule that decided; `null` where no policy had a say.
    pub rule: Option<Rule>,
    pub egress_rule: Option<Rule>,
    pub ingress_rule: Option<Rule>,
    pub packets: u64,
    pub bytes: u64,
    /// Since the last packet.
    pub idle_seconds: f64,
    /// The flags seen in this direction, for TCP.
    pub tcp_flags: Option<String>,
    pub delivery: &'static str,
    /// The verdict is of the policy that is enforced now.
    pub current: bool,
    pub interface: String,
}

/// One end of a flow.
#[derive(Clone, Debug, Serialize)]
pub struct Peer {
    pub namespace: Option<String>,
    pub name: Option<String>,
    pub labels: Labels,
    pub identity: Option<u32>,
    pub address: IpAddr,
    /// `null` for protocols without ports.
    pub port: Option<u16>,
}

impl Peer {
    /// `namespace/name`, else the address, with the port.
    pub fn describe(&self) -> String {
        let who = match (&self.namespace, &self.name) {
            (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
            _ => self.address.to_string(),
        };
        self.port.map_or(who.clone(), |port| format!("{who}:{port}"))
    }
}

/// Turns records into flows.
pub struct Reader<'a> {
    names: &'a Names,
    now: SystemTime,
    /// By address: an address that several endpoints have is told apart by the interface.
    endpoints: HashMap<IpAddr, Vec<usize>>,
    identities: HashMap<&'a str, u32>,
}

impl<'a> Reader<'a> {
    pub fn new(names: &'a Names) -> Self {
        let mut endpoints: HashMap<IpAddr, Vec<usize>> = HashMap::new();
        for (index, endpoint) in names.endpoints.iter().enumerate() {
            for address in &endpoint.addresses {
                endpoints.entry(*address).or_default().push(index);
            }
        }
        let first = netpol_common::tables::Identity::FIRST.0;
        let numbered = (first..).zip(&names.identities);
        let identities = numbered.flat_map(|(id, i)| i.endpoints.iter().map(move |name| (name.as_str(), id))).collect();
        Self { names, now: SystemTime::now(), endpoints, identities }
    }

    pub fn flow(&self, record: &Record) -> Flow {
        let current = self.is_current(record);
        let rule = |number: u32| if current { self.names.rule(number).cloned() } else { None };
        let (egress_rule, ingress_rule) = (rule(record.egress_rule.0), rule(record.ingress_rule.0));
        let decided = match record.denied {
            Some(Drop::PolicyEgress) => egress_rule.clone(),
            Some(_) => ingress_rule.clone(),
            None => ingress_rule.clone().or_else(|| egress_rule.clone()),
        };
        let is_reply = record.denied.is_none() && record.flags.has(FlowFlags::REPLY);
        Flow {
            time: clock::rfc3339(self.now.checked_sub(record.idle).unwrap_or(SystemTime::UNIX_EPOCH)),
            verdict: if record.denied.is_some() { "denied" } else { "allowed" },
            drop_reason: record.denied.map(Drop::name),
            source: self.peer(record, record.source, record.source_port, Side::From),
            destination: self.peer(record, record.destination, record.destination_port, Side::To),
            protocol: record.protocol.to_string(),
            direction: match record.side {
                Side::From => "egress",
                Side::To => "ingress",
            },
            is_reply,
            rule: decided,
            egress_rule,
            ingress_rule,
            packets: record.packets,
            bytes: record.bytes,
            idle_seconds: record.idle.as_secs_f64(),
            tcp_flags: (record.protocol == Protocol::TCP).then(|| tcp_flags(record.tcp_flags)),
            delivery: delivery(record),
            current,
            interface: self.interface(record),
        }
    }

    fn interface(&self, record: &Record) -> String {
        let known = self.behind(record.interface);
        known.map_or_else(|| format!("#{}", record.interface.0), |endpoint| endpoint.interface.clone())
    }

    fn behind(&self, interface: IfIndex) -> Option<&'a Endpoint> {
        self.names.endpoints.iter().find(|endpoint| endpoint.ifindex == interface.0)
    }

    /// The verdict is of the policy that is enforced now.
    fn is_current(&self, record: &Record) -> bool {
        record.generation.0 == self.names.generation
    }

    /// Who has the address at one end of the record; `None`: no endpoint.
    fn endpoint(&self, record: &Record, address: IpAddr, side: Side) -> Option<&'a Endpoint> {
        let candidates = self.endpoints.get(&address).map_or(&[][..], Vec::as_slice);
        // the end at whose interface the record is
        let here = candidates.iter().find(|index| self.names.endpoints[**index].ifindex == record.interface.0);
        let known = if record.side as u8 == side as u8 { here } else { here.or(candidates.first()) };
        known.or(candidates.first()).map(|index| &self.names.endpoints[*index])
    }

    fn peer(&self, record: &Record, address: IpAddr, port: u16, side: Side) -> Peer {
        let endpoint = self.endpoint(record, address, side);
        let name = endpoint.map(|endpoint| format!("{}/{}", endpoint.namespace, endpoint.name));
        Peer {
            namespace: endpoint.map(|endpoint| endpoint.namespace.clone()),
            name: endpoint.map(|endpoint| endpoint.name.clone()),
            labels: endpoint.map(|endpoint| endpoint.labels.clone()).unwrap_or_default(),
            identity: name.and_then(|name| self.identities.get(name.as_str()).copied()),
            address,
            port: record.protocol.has_ports().then_some(port),
        }
    }
}

fn delivery(record: &Record) -> &'static str {
    if record.flags.has(FlowFlags::DIRECT) {
        "direct"
    } else if record.flags.has(FlowFlags::ROUTED) {
        "routed"
    } else {
        "stack"
    }
}

/// `SYN,ACK`: what was seen so far (RFC 9293 section 3.1).
fn tcp_flags(flags: u8) -> String {
    const NAMES: [&str; 8] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
    let seen = NAMES.iter().enumerate().filter(|(bit, _)| flags & (1 << bit) != 0);
    seen.map(|(_, name)| *name).collect::<Vec<_>>().join(",")
}
