//! Who is at the two ends of a record: an endpoint, the host itself, or somebody outside.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use crate::{
    datapath::{Record, Side},
    state::Names,
};

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum End {
    /// Index into [`Names::endpoints`].
    Endpoint(usize),
    Host,
    Outside,
}

/// Finds ends by interface, else by address.
pub struct Ends {
    interfaces: HashMap<u32, usize>,
    addresses: HashMap<IpAddr, usize>,
    host: HashSet<IpAddr>,
    uplinks: HashSet<u32>,
}

impl Ends {
    pub fn new(names: &Names, host: &[IpAddr]) -> Self {
        let mut addresses = HashMap::new();
        for (index, endpoint) in names.endpoints.iter().enumerate() {
            for address in &endpoint.addresses {
                // of several endpoints with one address the first stands for all, as in the listing of flows
                addresses.entry(*address).or_insert(index);
            }
        }
        let uplinks = names.uplinks.iter().map(|uplink| uplink.ifindex).collect();
        let interfaces = names.endpoints.iter().enumerate().map(|(index, endpoint)| (endpoint.ifindex, index));
        Self { interfaces: interfaces.collect(), addresses, host: host.iter().copied().collect(), uplinks }
    }

    /// See [`Reader::only_passes`](super::Reader::only_passes).
    pub fn only_passes(&self, record: &Record) -> bool {
        self.uplinks.contains(&record.interface.0) && !record.ends_at_uplink()
    }

    /// Source and destination of the packets that a record counts.
    pub fn of(&self, record: &Record) -> (End, End) {
        // the interface knows its endpoint, whatever the address says
        let here = self.interfaces.get(&record.interface.0).map(|index| End::Endpoint(*index));
        let elsewhere = |address: IpAddr| match self.addresses.get(&address) {
            Some(index) => End::Endpoint(*index),
            None if self.host.contains(&address) => End::Host,
            None => End::Outside,
        };
        let (from, to) = (elsewhere(record.source), elsewhere(record.destination));
        match record.side {
            Side::From => (here.unwrap_or(from), to),
            Side::To => (from, here.unwrap_or(to)),
        }
    }
}
