//! The slow path's walk through a snapshot, on the host: for tests, and for tools that ask what the
//! kernel would say.

use std::{collections::HashMap, net::IpAddr};

use ipnet::IpNet;
use netpol_common::{
    policy::{PolicyTables, Probe, verdict},
    tables::{AddressValue, Identity, Network, PairKey, PairValue, PortKey, Range, Ruling, Subject},
};

use super::Snapshot;

/// A snapshot's tables with the kernel's ways to look things up.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    addresses: HashMap<(Network, IpAddr), AddressValue>,
    networks: HashMap<IpNet, Identity>,
    pairs: HashMap<PairKey, PairValue>,
    ports: HashMap<PortKey, Ruling>,
    ranges: Vec<Range>,
}

impl From<&Snapshot> for Tables {
    fn from(snapshot: &Snapshot) -> Self {
        let four = snapshot.addresses4.iter().map(|&(key, value)| ((key.network, key.address.into()), value));
        let six = snapshot.addresses6.iter().map(|&(key, value)| ((key.network, key.address.into()), value));
        let networks4 = snapshot.networks4.iter().map(|&(net, identity)| (IpNet::V4(net), identity));
        let networks6 = snapshot.networks6.iter().map(|&(net, identity)| (IpNet::V6(net), identity));
        Self {
            addresses: four.chain(six).collect(),
            networks: networks4.chain(networks6).collect(),
            pairs: snapshot.pairs.iter().copied().collect(),
            ports: snapshot.ports.iter().copied().collect(),
            ranges: snapshot.ranges.clone(),
        }
    }
}

impl Tables {
    /// Who has the address, as seen from an endpoint in `network`: its own network is asked first.
    pub fn address(&self, network: Network, address: IpAddr) -> Option<AddressValue> {
        let own = self.addresses.get(&(network, address));
        own.or_else(|| self.addresses.get(&(Network::SHARED, address))).copied()
    }

    /// The exact address, else the longest prefix, else [`Identity::WORLD`].
    pub fn identity_of(&self, network: Network, address: IpAddr) -> Identity {
        if let Some(value) = self.address(network, address) {
            return value.identity;
        }
        let mut prefix = Some(IpNet::from(address));
        while let Some(net) = prefix {
            if let Some(&identity) = self.networks.get(&net) {
                return identity;
            }
            prefix = net.supernet();
        }
        Identity::WORLD
    }

    /// See [`verdict`].
    pub fn verdict(&self, subject: Subject, peer: Identity, probe: Probe) -> Option<Ruling> {
        verdict(self, subject, peer, probe)
    }
}

impl PolicyTables for Tables {
    fn pair(&self, key: &PairKey) -> Option<&PairValue> {
        self.pairs.get(key)
    }

    fn port(&self, key: &PortKey) -> Option<&Ruling> {
        self.ports.get(key)
    }

    fn range(&self, index: u32) -> Option<&Range> {
        self.ranges.get(usize::try_from(index).ok()?)
    }
}
