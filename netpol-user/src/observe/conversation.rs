//! Records as questions: who opened which connection to whom, said once for each connection.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    net::IpAddr,
};

use super::Reader;
use crate::{
    datapath::{FlowFlags, Record, Side},
    model::{ObjectName, Opening, Party, Question, Regime, World, probe::Place},
    state::Endpoint,
};

/// A connection, or an attempt that was denied, as the one who opened it sees it.
#[derive(Clone, Debug)]
pub struct Conversation {
    pub from: Speaker,
    pub to: Speaker,
    pub opening: Opening,
    /// What it was read from; see [`Reader::flow`].
    pub record: Record,
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
    fn of(endpoint: Option<&Endpoint>, address: IpAddr, host: &[IpAddr]) -> Self {
        match endpoint {
            Some(Endpoint { namespace, name, .. }) => {
                let name = ObjectName { namespace: namespace.clone(), name: name.clone() };
                Self::Endpoint { name, address }
            }
            None if host.contains(&address) => Self::Host(address),
            None => Self::Outside(address),
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
        self.record.denied.is_some()
    }

    /// Who opened it was not to be seen: it passes while both may have.
    pub fn is_unclear(&self) -> bool {
        self.record.flags.has(FlowFlags::UNCLEAR)
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
        let backward = (self.is_unclear() && asked(&self.to)).then_some(backward);
        asked(&self.from).then_some(forward).into_iter().chain(backward)
    }
}

/// The conversations of the policy that is enforced now, the latest first, replies left out. `host` has the addresses of the
/// host where it is trusted; where it is policed they are like any other.
pub fn conversations(reader: &Reader, records: &[Record], host: &[IpAddr]) -> Vec<Conversation> {
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    let is_opener = |record: &&Record| {
        reader.is_current(record) && !record.flags.has(FlowFlags::REPLY) && !reader.only_passes(record)
    };
    for record in records.iter().filter(is_opener).map(Record::judged) {
        let record = &record;
        let ends = reader.ends(record);
        let [from, to] = [ends.source, ends.destination].map(|end| Some(&reader.names().endpoints[end?]));
        // whoever is reached by a group's address is judged as itself
        let to = to.or_else(|| reader.behind(record.interface).filter(|_| record.side == Side::To));
        let (from, to) = (Speaker::of(from, record.source, host), Speaker::of(to, record.destination, host));
        let opening = opening(record);
        // each end's interface may have a record of it
        if seen.insert((from.clone(), to.clone(), opening, record.denied.is_some())) {
            found.push(Conversation { from, to, opening, record: *record });
        }
    }
    found.sort_by_key(|conversation| conversation.record.idle);
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
