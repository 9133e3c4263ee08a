//! What services do: their connections, from the table of pairs; their packets, from flow entries; and what both say
//! about the health of each backend.
//!
//! Numbers of services change from generation to generation, places where they are published do not, so connections
//! of before a load are found by these. The host's own sockets are translated before there is a packet: they are in
//! neither table, and counted by themselves.

use std::{collections::HashMap, net::IpAddr};

use netpol_common::{parse::tcp, wire::Protocol};
use serde::{Deserialize, Serialize};

use crate::{
    datapath::{Asked, Pair, Record, Translated},
    state::{Names, Service},
};

/// Connections that are remembered, each once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connections {
    /// Answered, and nobody has closed.
    pub open: usize,
    /// Only the client has spoken.
    pub unanswered: usize,
    /// Answered, and a FIN or RST was seen.
    pub closing: usize,
}

/// What is seen of a backend, whatever documents say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendUse {
    pub connections: Connections,
    /// Of those that are closing: TCP that was answered by nothing but a RST.
    pub refused: usize,
}

/// How a backend behaves, by the connections that are remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Behaviour {
    Answering,
    /// Each answer was a RST.
    Refusing,
    /// Nothing was answered.
    Silent,
}

/// What one port of a service does.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServiceUse {
    pub connections: Connections,
    /// Of those: with a backend that it has no longer.
    pub former: usize,
    /// Connected sockets of the host itself; `None`: nobody has looked.
    pub host: Option<usize>,
    /// What clients have sent, as far as their flow entries are remembered.
    pub packets: u64,
    pub bytes: u64,
    /// What backends have answered.
    pub reply_packets: u64,
    pub reply_bytes: u64,
    /// What policy has denied to its clients.
    pub denied_packets: u64,
    /// Of both directions, since the reading before.
    pub packets_per_second: f64,
    pub bytes_per_second: f64,
    /// By the place of the backend in [`Service::backends`].
    pub backends: Vec<BackendUse>,
}

/// Counts, by the place of the service in [`Names::services`].
#[derive(Clone, Debug, Default)]
pub struct Census {
    /// Published address, port and protocol.
    places: HashMap<(IpAddr, u16, u8), usize>,
    /// Service, address and port.
    backends: HashMap<(usize, IpAddr, u16), usize>,
    services: Vec<ServiceUse>,
}

impl Connections {
    fn add(&mut self, pair: &Pair) {
        match (pair.answered, pair.closing) {
            (false, _) => self.unanswered += 1,
            (true, true) => self.closing += 1,
            (true, false) => self.open += 1,
        }
    }

    pub const fn all(&self) -> usize {
        self.open + self.unanswered + self.closing
    }
}

impl BackendUse {
    /// `None`: nobody has asked it lately.
    pub const fn behaviour(&self) -> Option<Behaviour> {
        let Self { connections: Connections { open, unanswered, closing }, refused } = *self;
        Some(match (open, closing) {
            (0, 0) if unanswered == 0 && refused == 0 => return None,
            (0, 0) if refused == 0 => Behaviour::Silent,
            (0, closing) if refused >= closing => Behaviour::Refusing,
            _ => Behaviour::Answering,
        })
    }
}

impl Behaviour {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Answering => "answering",
            Self::Refusing => "refusing",
            Self::Silent => "silent",
        }
    }
}

impl Census {
    pub fn of(names: &Names) -> Self {
        let mut census = Self::default();
        for (index, service) in names.services.iter().enumerate() {
            let Service { protocol, addresses, backends, .. } = service;
            let Some(protocol) = number(protocol) else { continue };
            for place in addresses {
                census.places.insert((place.address, place.port, protocol.0), index);
            }
            for (position, backend) in backends.iter().enumerate() {
                if let Some(address) = backend.address {
                    census.backends.insert((index, address, backend.port), position);
                }
            }
        }
        let of_none = |service: &Service| ServiceUse {
            backends: vec![BackendUse::default(); service.backends.len()],
            ..ServiceUse::default()
        };
        census.services = names.services.iter().map(of_none).collect();
        census
    }

    /// There is nothing to count.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    pub fn pair(&mut self, pair: &Pair) {
        let Some(&index) = self.places.get(&(pair.asked, pair.asked_port, pair.protocol.0)) else { return };
        let service = &mut self.services[index];
        service.connections.add(pair);
        match self.backends.get(&(index, pair.receiver, pair.receiver_port)) {
            Some(&position) => service.backends[position].connections.add(pair),
            None => service.former += 1,
        }
    }

    /// The host's sockets are looked at, all of them.
    pub fn looks_at_host(&mut self) {
        self.services.iter_mut().for_each(|service| service.host = Some(0));
    }

    /// A socket of the host that is connected now.
    pub fn socket(&mut self, asked: &Asked) {
        let place = (asked.published, asked.published_port, asked.protocol.0);
        if let Some(&index) = self.places.get(&place) {
            *self.services[index].host.get_or_insert_default() += 1;
        }
    }

    /// Each packet is translated at one hook, so it is counted once.
    pub fn record(&mut self, record: &Record) {
        let Some(Translated { source, source_port, .. }) = record.translated else { return };
        let place = |address, port| self.places.get(&(address, port, record.protocol.0)).copied();
        if let Some(index) = place(record.destination, record.destination_port) {
            let service = &mut self.services[index];
            if record.denied.is_some() {
                service.denied_packets += record.packets;
            } else {
                service.packets += record.packets;
                service.bytes += record.bytes;
            }
        } else if let Some(index) = place(source, source_port).filter(|_| record.denied.is_none()) {
            let service = &mut self.services[index];
            service.reply_packets += record.packets;
            service.reply_bytes += record.bytes;
            let refused = record.protocol == Protocol::TCP && record.tcp_flags & (tcp::RST | tcp::SYN) == tcp::RST;
            if let Some(&position) = self.backends.get(&(index, record.source, record.source_port)).filter(|_| refused)
            {
                service.backends[position].refused += 1;
            }
        }
    }

    pub fn finish(self) -> Vec<ServiceUse> {
        self.services
    }
}

/// Of the protocols that can be published.
fn number(name: &str) -> Option<Protocol> {
    match name {
        "TCP" => Some(Protocol::TCP),
        "UDP" => Some(Protocol::UDP),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        datapath::{Drop, FlowFlags},
        observe::scene::{DB, SERVICE, WEB, answered, asked, names, record},
        state::{Backend, Health, Place},
    };

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn census() -> Census {
        let mut names = names();
        names.services[0].addresses = vec![Place { address: address(SERVICE), port: 80 }];
        names.services[0].backends = vec![Backend {
            endpoint: Some("shop/db".into()),
            address: Some(address(DB)),
            port: 5432,
            weight: 1,
            state: Health::Running,
        }];
        Census::of(&names)
    }

    fn pair(receiver: &str, answered: bool, closing: bool) -> Pair {
        Pair {
            protocol: Protocol::TCP,
            client: address(WEB),
            client_port: 40_000,
            asked: address(SERVICE),
            asked_port: 80,
            receiver: address(receiver),
            receiver_port: 5432,
            answered,
            closing,
        }
    }

    #[test]
    fn connections_are_counted_by_service_and_backend() {
        let mut census = census();
        for pair in [pair(DB, true, false), pair(DB, false, false), pair(DB, false, true), pair(DB, true, true)] {
            census.pair(&pair);
        }
        // a backend that it has no longer, another port, another protocol
        census.pair(&pair(WEB, true, false));
        census.pair(&Pair { asked_port: 81, ..pair(DB, true, false) });
        census.pair(&Pair { protocol: Protocol::UDP, ..pair(DB, true, false) });
        let service = census.finish().remove(0);
        assert_eq!(service.connections, Connections { open: 2, unanswered: 2, closing: 1 });
        assert_eq!((service.former, service.connections.all()), (1, 5));
        assert_eq!(service.backends[0].connections, Connections { open: 1, unanswered: 2, closing: 1 });
    }

    #[test]
    fn packets_are_counted_where_they_are_translated() {
        let mut census = census();
        let denied = Record { denied: Some(Drop::PolicyIngress), flags: FlowFlags::NONE, ..asked(WEB, 4) };
        for record in [asked(WEB, 5), answered(WEB, 3), denied, record(WEB, DB, 100)] {
            census.record(&record);
        }
        let service = census.finish().remove(0);
        assert_eq!((service.packets, service.bytes), (5, 500));
        assert_eq!((service.reply_packets, service.reply_bytes), (3, 300));
        assert_eq!(service.denied_packets, 4);
        assert_eq!(service.backends[0].refused, 0);
    }

    #[test]
    fn a_backend_behaves_as_its_connections_say() {
        let of = |open, unanswered, closing, refused| {
            BackendUse { connections: Connections { open, unanswered, closing }, refused }.behaviour()
        };
        assert_eq!(of(0, 0, 0, 0), None);
        assert_eq!(of(0, 3, 0, 0), Some(Behaviour::Silent));
        assert_eq!(of(0, 3, 2, 2), Some(Behaviour::Refusing));
        assert_eq!(of(0, 3, 2, 1), Some(Behaviour::Answering));
        assert_eq!(of(1, 3, 0, 5), Some(Behaviour::Answering));
        let mut census = census();
        census.pair(&pair(DB, true, true));
        census.record(&Record { tcp_flags: 0x14, ..answered(WEB, 1) });
        assert_eq!(census.finish()[0].backends[0].behaviour(), Some(Behaviour::Refusing));
    }
}
