//! What is tried: each endpoint to each other one's addresses and ports.

use std::{
    collections::{BTreeSet, HashSet},
    fmt,
    net::IpAddr,
    str::FromStr,
};

use crate::{
    model::{Protocol, World},
    source::{Discovery, Found},
};

/// A port to connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port {
    pub number: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.protocol.to_string().to_lowercase())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a port like 80, 80/tcp or 53/udp (verify opens TCP and UDP connections)")]
pub struct InvalidPort;

impl FromStr for Port {
    type Err = InvalidPort;

    fn from_str(text: &str) -> Result<Self, InvalidPort> {
        let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol = match protocol.to_ascii_lowercase().as_str() {
            "tcp" => Protocol::TCP,
            "udp" => Protocol::UDP,
            _ => return Err(InvalidPort),
        };
        match number.parse() {
            Ok(number) if number > 0 => Ok(Self { number, protocol }),
            _ => Err(InvalidPort),
        }
    }
}

/// An endpoint by its index in [`Discovery::workloads`] and in [`World::endpoints`].
pub type End = (usize, usize);

/// One connection to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    pub from: End,
    pub to: End,
    /// They are not on the same bridge, nor both routed.
    pub far: bool,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub port: Port,
}

/// All connections to try, and what can't be tried. Those to one destination are neighbours: its
/// listeners are needed only once.
pub fn questions(world: &World, discovery: &Discovery, ports: &[Port]) -> (Vec<Question>, Vec<String>) {
    let found = &discovery.workloads;
    let mut questions = Vec::new();
    let mut skipped = BTreeSet::new();
    let taken: HashSet<_> = found.iter().flat_map(|one| usable(one).map(|a| (one.workload.network, a))).collect();
    for (to, target) in found.iter().enumerate() {
        let ports = ports_of(world, target, ports, &mut skipped);
        for destination in usable(target) {
            for (from, client) in found.iter().enumerate().filter(|&(from, _)| from != to) {
                let family = |address: &IpAddr| address.is_ipv4() == destination.is_ipv4();
                let Some(source) = usable(client).find(family) else { continue };
                // the same address nearer to the client would answer instead
                let far = client.workload.network != target.workload.network;
                if far && taken.contains(&(client.workload.network, destination)) {
                    let names = [client, target].map(|one| &world.endpoints[one.workload.endpoint].name);
                    let [client, target] = names;
                    skipped.insert(format!("{client} to {target}: {destination} is also on the client's own network"));
                    continue;
                }
                let ends = ((from, client.workload.endpoint), (to, target.workload.endpoint));
                let question = |&port| Question { from: ends.0, to: ends.1, far, source, destination, port };
                questions.extend(ports.iter().map(question));
            }
        }
    }
    (questions, skipped.into_iter().collect())
}

fn ports_of(world: &World, target: &Found, wanted: &[Port], skipped: &mut BTreeSet<String>) -> BTreeSet<Port> {
    if !wanted.is_empty() {
        return wanted.iter().copied().collect();
    }
    let endpoint = &world.endpoints[target.workload.endpoint];
    let mut ports = BTreeSet::new();
    for declared in &endpoint.ports {
        let port = Port { number: declared.port, protocol: declared.protocol };
        if matches!(declared.protocol, Protocol::TCP | Protocol::UDP) {
            ports.insert(port);
        } else {
            skipped.insert(format!("{} port {port}: verify opens TCP and UDP connections only", endpoint.name));
        }
    }
    ports
}

/// Addresses that mean the same on every link.
fn usable(found: &Found) -> impl Iterator<Item = IpAddr> {
    found.workload.addresses.iter().copied().filter(|address| match address {
        IpAddr::V4(address) => !address.is_link_local(),
        IpAddr::V6(address) => !address.is_unicast_link_local(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_written_with_their_protocol_and_default_to_tcp() {
        for (text, number, protocol) in
            [("80", 80, Protocol::TCP), ("80/tcp", 80, Protocol::TCP), ("53/UDP", 53, Protocol::UDP)]
        {
            assert_eq!(text.parse(), Ok(Port { number, protocol }), "{text}");
        }
        for text in ["", "0", "65536", "80/", "80/sctp", "http", "80/tcp/x"] {
            assert_eq!(text.parse::<Port>(), Err(InvalidPort), "{text}");
        }
    }
}
