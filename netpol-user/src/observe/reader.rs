//! Names for numbers: a record becomes a flow.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::SystemTime};

use netpol_common::{
    tables::{Identity, IfIndex},
    wire::Protocol,
};

use super::flow::{Cause, Explanation, Flow, Interface, Leaving, NO_LABELS, Peer, Place, ServiceName, TcpFlags};
use crate::{
    datapath::{Audited, Drop, FlowFlags, Record, Side, Translated},
    model::Opening,
    state::{self, Names},
};

/// Turns records into flows, by the names of one generation.
#[derive(Debug)]
pub struct Reader {
    names: Arc<Names>,
    /// By address: an address that several endpoints have is told apart by the interface.
    endpoints: HashMap<IpAddr, Vec<usize>>,
    /// By interface.
    interfaces: HashMap<u32, usize>,
    /// By endpoint.
    identities: Vec<Option<u32>>,
}

/// The endpoints at the two ends of a record, by their place in [`Names::endpoints`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Between {
    pub source: Option<usize>,
    pub destination: Option<usize>,
}

impl Between {
    pub const fn reversed(self) -> Self {
        Self { source: self.destination, destination: self.source }
    }
}

impl Reader {
    pub fn new(names: Arc<Names>) -> Self {
        let mut endpoints: HashMap<IpAddr, Vec<usize>> = HashMap::new();
        for (index, endpoint) in names.endpoints.iter().enumerate() {
            for address in &endpoint.addresses {
                endpoints.entry(*address).or_default().push(index);
            }
        }
        let numbered = (Identity::FIRST.0..).zip(&names.identities);
        let of: HashMap<&str, u32> =
            numbered.flat_map(|(id, i)| i.endpoints.iter().map(move |name| (name.as_str(), id))).collect();
        let name = |endpoint: &state::Endpoint| format!("{}/{}", endpoint.namespace, endpoint.name);
        let identities = names.endpoints.iter().map(|endpoint| of.get(name(endpoint).as_str()).copied()).collect();
        let interfaces =
            names.endpoints.iter().enumerate().map(|(index, endpoint)| (endpoint.ifindex, index)).collect();
        Self { endpoints, interfaces, identities, names }
    }

    pub fn names(&self) -> &Names {
        &self.names
    }

    /// The verdict is of the policy that is enforced now.
    pub fn is_current(&self, record: &Record) -> bool {
        record.generation.0 == self.names.generation
    }

    /// Whose interface it is.
    pub fn behind(&self, interface: IfIndex) -> Option<&state::Endpoint> {
        self.interfaces.get(&interface.0).map(|index| &self.names.endpoints[*index])
    }

    /// Packets at an interface to the outside, where they are only translated: they are in the records of endpoints,
    /// too.
    pub fn only_passes(&self, record: &Record) -> bool {
        self.is_at_uplink(record) && !record.ends_at_uplink()
    }

    fn is_at_uplink(&self, record: &Record) -> bool {
        self.names.uplinks.iter().any(|uplink| uplink.ifindex == record.interface.0)
    }

    /// Which way packets pass an endpoint: what comes from outside reaches one, wherever that is seen.
    fn direction(&self, record: &Record) -> &'static str {
        match (record.side, self.is_at_uplink(record)) {
            (Side::From, false) | (Side::To, true) => "egress",
            (Side::To, false) | (Side::From, true) => "ingress",
        }
    }

    /// Which endpoints a record is between, as policy sees it.
    pub fn ends(&self, record: &Record) -> Between {
        let record = &record.judged();
        let end = |address: &IpAddr, interface: IfIndex| -> Option<usize> {
            match self.endpoints.get(address)?.as_slice() {
                [only] => Some(*only),
                several => {
                    let there = |index: &&usize| self.names.endpoints[**index].ifindex == interface.0;
                    several.iter().find(there).or(several.first()).copied()
                }
            }
        };
        let (source, destination) = match record.side {
            Side::From => (record.interface, record.far),
            Side::To => (record.far, record.interface),
        };
        Between { source: end(&record.source, source), destination: end(&record.destination, destination) }
    }

    /// The flow that a record is about, as of `now`.
    pub fn flow(&self, record: &Record, now: SystemTime) -> Flow<'_> {
        self.flow_between(record, self.ends(record), now)
    }

    /// The same, where the endpoints are known already.
    pub fn flow_between(&self, record: &Record, ends: Between, now: SystemTime) -> Flow<'_> {
        let current = self.is_current(record);
        let rule = |number: u32| if current { self.names.rule(number) } else { None };
        let (egress_rule, ingress_rule) = (rule(record.egress_rule.0), rule(record.ingress_rule.0));
        let (decided, number) = match record.denied {
            Some(Drop::PolicyEgress) => (egress_rule, record.egress_rule.0),
            Some(_) => (ingress_rule, record.ingress_rule.0),
            None => (ingress_rule.or(egress_rule), record.ingress_rule.0.max(record.egress_rule.0)),
        };
        let source = self.peer(record, ends.source, (record.source, record.source_port));
        let destination = self.peer(record, ends.destination, (record.destination, record.destination_port));
        // policy is asked about the direction that opened the connection
        let backwards = record.flags.has(FlowFlags::REPLY);
        let (from, to) = if backwards { (destination, source) } else { (source, destination) };
        let cause = match (record.denied.filter(|reason| !reason.is_denial()), decided) {
            (Some(reason), _) => Cause::Reason(reason),
            (None, Some(rule)) => Cause::Rule(rule),
            (None, None) if !current => Cause::Earlier { generation: record.generation.0 },
            (None, None) if number != 0 => Cause::Nameless { rule: number },
            (None, None) if self.is_unsaid(record, ends, backwards) => Cause::Unsaid,
            (None, None) => Cause::NoPolicy,
        };
        let opening = opening(&record.judged(), backwards);
        let audit_rule = record.audited.and_then(|audited| rule(audited.rule.0));
        let would = |audited: Audited| {
            let cause = match audit_rule {
                Some(rule) => Cause::Rule(rule),
                None if !current => Cause::Earlier { generation: record.generation.0 },
                None => Cause::Nameless { rule: audited.rule.0 },
            };
            Explanation { cause, opening, from, to }
        };
        Flow {
            time: now.checked_sub(record.idle).unwrap_or(SystemTime::UNIX_EPOCH),
            verdict: if record.denied.is_some() { "denied" } else { "allowed" },
            drop_reason: record.denied.map(Drop::name),
            source,
            destination,
            protocol: record.protocol,
            direction: self.direction(record),
            is_reply: record.denied.is_none() && backwards,
            rule: decided,
            egress_rule,
            ingress_rule,
            explanation: Explanation { cause, opening, from, to },
            would_drop: record.audited.map(|audited| audited.reason.name()),
            audit_rule,
            audit_explanation: record.audited.map(would),
            packets: record.packets,
            bytes: record.bytes,
            idle_seconds: record.idle.as_secs_f64(),
            tcp_flags: (record.protocol == Protocol::TCP).then_some(TcpFlags(record.tcp_flags)),
            delivery: delivery(record.flags),
            current,
            interface: self.interface(record.interface),
            translated: self.translated(record),
            service: if current { self.names.service(record.service).map(ServiceName) } else { None },
        }
    }

    /// Whether the audited rule stands where one that is enforced would.
    fn is_unsaid(&self, record: &Record, ends: Between, backwards: bool) -> bool {
        let Some(Audited { reason, .. }) = record.audited else { return false };
        let ends = if backwards { ends.reversed() } else { ends };
        let endpoint = |end: Option<usize>| end.map(|end| &self.names.endpoints[end]);
        match reason {
            Drop::PolicyEgress => endpoint(ends.source).is_some_and(|endpoint| endpoint.egress),
            _ => endpoint(ends.destination).is_some_and(|endpoint| endpoint.ingress),
        }
    }

    fn interface(&self, interface: IfIndex) -> Interface<'_> {
        let uplink = || self.names.uplinks.iter().find(|uplink| uplink.ifindex == interface.0);
        let name =
            self.behind(interface).map(|endpoint| &endpoint.interface).or_else(|| uplink().map(|uplink| &uplink.name));
        name.map_or(Interface::Number(interface.0), |name| Interface::Named(name))
    }

    fn translated(&self, record: &Record) -> Option<Leaving> {
        let Translated { source, destination, source_port, destination_port } =
            record.translated.filter(|_| record.denied.is_none())?;
        let has_ports = record.protocol.has_ports();
        let end = |address, port| Place { address, port: has_ports.then_some(port) };
        Some(Leaving { source: end(source, source_port), destination: end(destination, destination_port) })
    }

    fn peer(&self, record: &Record, endpoint: Option<usize>, (address, port): (IpAddr, u16)) -> Peer<'_> {
        let port = record.protocol.has_ports().then_some(port);
        let Some(index) = endpoint else {
            return Peer { namespace: None, name: None, labels: &NO_LABELS, identity: None, address, port };
        };
        let state::Endpoint { namespace, name, labels, .. } = &self.names.endpoints[index];
        let identity = self.identities[index];
        Peer { namespace: Some(namespace), name: Some(name), labels, identity, address, port }
    }
}

/// What rules were asked about. ICMP has type and code where others have a destination port.
fn opening(record: &Record, backwards: bool) -> Opening {
    let (source_port, destination_port) = match backwards {
        true => (record.destination_port, record.source_port),
        false => (record.source_port, record.destination_port),
    };
    let protocol = record.protocol;
    let [kind, code] = destination_port.to_be_bytes();
    let icmp = protocol.is_icmp().then_some((kind, code));
    let has_ports = protocol.has_ports();
    let port = |port| if has_ports { port } else { 0 };
    Opening { protocol, source_port: port(source_port), destination_port: port(destination_port), icmp }
}

fn delivery(flags: FlowFlags) -> &'static str {
    if flags.has(FlowFlags::DIRECT) {
        "direct"
    } else if flags.has(FlowFlags::ROUTED) {
        "routed"
    } else if flags.has(FlowFlags::OUT) {
        "out"
    } else {
        "stack"
    }
}
