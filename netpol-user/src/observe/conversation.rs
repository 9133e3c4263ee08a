//! Records as questions: who opened which connection to whom, said once for each connection.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    net::IpAddr,
    time::Duration,
};

use super::{Flow, Peer, Reader};
use crate::{
    datapath::{FlowFlags, Record, Side},
    model::{ObjectName, Opening, Party, Question, Regime, World, probe::Place},
};

/// A connection, or an attempt that was denied, as the one who opened it sees it.
#[derive(Clone, Debug)]
pub struct Conversation {
    pub from: Speaker,
    pub to: Speaker,
    pub opening: Opening,
    /// Since the last packet in this direction.
    pub idle: Duration,
    /// Who opened it was not to be seen: it passes while either of both may have.
    pub unclear: bool,
    /// The record that it was read from.
    pub flow: Flow,
}

/// One end of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Speaker {
    Endpoint {
        name: ObjectName,
        address: IpAddr,
    },
    /// The host itself, which reaches its containers whatever the policy says.
    Host(IpAddr),
    Outside(IpAddr),
}

impl fmt::Display for Speaker {
    /// `namespace/name`, or the address.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Endpoint { name, .. } => name.fmt(f),
            Self::Host(address) | Self::Outside(address) => address.fmt(f),
        }
    }
}

impl Speaker {
    fn of(peer: &Peer, host: &[IpAddr]) -> Self {
        match (&peer.namespace, &peer.name) {
            (Some(namespace), Some(name)) => {
                let name = ObjectName { namespace: namespace.clone(), name: name.clone() };
                Self::Endpoint { name, address: peer.address }
            }
            _ if host.contains(&peer.address) => Self::Host(peer.address),
            _ => Self::Outside(peer.address),
        }
    }

    /// In a world that may know another set of endpoints.
    fn party(&self, world: &World, named: &HashMap<&ObjectName, usize>) -> Party {
        let (name, address) = match self {
            Self::Endpoint { name, address } => (Some(name), *address),
            Self::Host(address) | Self::Outside(address) => (None, *address),
        };
        let place = match name.and_then(|name| named.get(name)) {
            Some(index) => Place::At { endpoint: *index, address },
            None => Place::of_address(world, address),
        };
        match place.endpoint() {
            Some(index) => Party::Endpoint { index, address: Some(address) },
            None => Party::Outside(address),
        }
    }
}

impl Conversation {
    pub fn is_denied(&self) -> bool {
        self.flow.verdict == "denied"
    }

    /// What policy is asked about it: nothing where the host is trusted, both directions where it is
    /// unclear who opened. `named` has the world's endpoints by name.
    pub fn questions<'a>(
        &self,
        world: &'a World,
        named: &HashMap<&ObjectName, usize>,
    ) -> impl Iterator<Item = Question<'a>> + use<'a> {
        let Opening { source_port, destination_port, .. } = self.opening;
        let reversed = Opening { source_port: destination_port, destination_port: source_port, ..self.opening };
        let (from, to) = (self.from.party(world, named), self.to.party(world, named));
        let forward = Question { world, from, to, opening: self.opening, regime: Regime::Enforced };
        let backward = Question { from: to, to: from, opening: reversed, ..forward };
        let asked = |speaker: &Speaker| !matches!(speaker, Speaker::Host(_));
        let backward = (self.unclear && asked(&self.to)).then_some(backward);
        asked(&self.from).then_some(forward).into_iter().chain(backward)
    }
}

/// The conversations of the policy that is enforced now, replies left out. `host` has the addresses of the
/// host where it is trusted; where it is policed they are like any other.
pub fn conversations(reader: &Reader<'_>, records: &[Record], host: &[IpAddr]) -> Vec<Conversation> {
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for record in records.iter().filter(|record| !record.flags.has(FlowFlags::REPLY)) {
        let flow = reader.flow(record);
        if !flow.current {
            continue;
        }
        let from = Speaker::of(&flow.source, host);
        // whoever is reached by a group's address is judged as itself
        let receiver = reader.name_at(record.interface).filter(|_| record.side == Side::To);
        let to = match (Speaker::of(&flow.destination, host), receiver) {
            (Speaker::Outside(address), Some(name)) => Speaker::Endpoint { name, address },
            (to, _) => to,
        };
        let opening = opening(record);
        // each end's interface may have a record of it
        if seen.insert((from.clone(), to.clone(), opening, record.denied.is_some())) {
            let unclear = record.flags.has(FlowFlags::UNCLEAR);
            found.push(Conversation { from, to, opening, idle: record.idle, unclear, flow });
        }
    }
    found
}

/// See [`netpol_common::flow::FlowKey`] about ICMP.
fn opening(record: &Record) -> Opening {
    let Record { protocol, source_port, destination_port, .. } = *record;
    let [kind, code] = destination_port.to_be_bytes();
    let icmp = protocol.is_icmp().then_some((kind, code));
    let (source_port, destination_port) = if protocol.has_ports() { (source_port, destination_port) } else { (0, 0) };
    Opening { protocol, source_port, destination_port, icmp }
}
