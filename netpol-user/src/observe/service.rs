//! A service's port as listings and scripts see it: what documents say, and what it does.

use std::collections::HashSet;

use serde::Serialize;

use super::census::{BackendUse, Behaviour, Connections, ServiceUse};
use crate::state::{Backend, Place, Service};

#[derive(Clone, Debug, Serialize)]
pub struct ServiceRow<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    pub port_name: Option<&'a str>,
    pub port: u16,
    pub protocol: &'a str,
    pub affinity: Option<u32>,
    pub addresses: &'a [Place],
    pub backends: Vec<BackendRow<'a>>,
    pub connections: Connections,
    pub former_backends: usize,
    /// Connected sockets of the host itself, which are in none of the other numbers; `null` where that is not known.
    pub host_connections: Option<usize>,
    pub packets: u64,
    pub bytes: u64,
    pub reply_packets: u64,
    pub reply_bytes: u64,
    pub denied_packets: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packets_per_second: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<f64>,
}

#[derive(Clone, Debug, Serialize)]
pub struct BackendRow<'a> {
    #[serde(flatten)]
    pub backend: &'a Backend,
    pub connections: Connections,
    pub refused: usize,
    /// How it behaves; `None`: nobody has asked it lately.
    pub seen: Option<Behaviour>,
}

impl<'a> ServiceRow<'a> {
    pub fn new(service: &'a Service, seen: &ServiceUse) -> Self {
        let Service { namespace, name, port_name, port, protocol, affinity, addresses, backends } = service;
        let of = |(position, backend)| {
            let seen = seen.backends.get(position).copied().unwrap_or_default();
            let BackendUse { connections, refused } = seen;
            BackendRow { backend, connections, refused, seen: seen.behaviour() }
        };
        Self {
            namespace,
            name,
            port_name: port_name.as_deref(),
            port: *port,
            protocol,
            affinity: *affinity,
            addresses,
            backends: backends.iter().enumerate().map(of).collect(),
            connections: seen.connections,
            former_backends: seen.former,
            host_connections: seen.host,
            packets: seen.packets,
            bytes: seen.bytes,
            reply_packets: seen.reply_packets,
            reply_bytes: seen.reply_bytes,
            denied_packets: seen.denied_packets,
            packets_per_second: None,
            bytes_per_second: None,
        }
    }

    /// With rates.
    #[must_use]
    pub fn paced(self, seen: &ServiceUse) -> Self {
        let (packets, bytes) = (Some(seen.packets_per_second), Some(seen.bytes_per_second));
        Self { packets_per_second: packets, bytes_per_second: bytes, ..self }
    }

    /// `namespace/name`
    pub fn name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// `http 80/tcp`
    pub fn port(&self) -> String {
        let number = format!("{}/{}", self.port, self.protocol.to_lowercase());
        self.port_name.map_or(number.clone(), |name| format!("{name} {number}"))
    }

    pub fn published(&self) -> String {
        list(self.addresses.iter().map(|Place { address, port }| (end(&address.to_string(), *port), None)))
    }

    /// Who is behind it, and what is to be said of them.
    pub fn answerers(&self) -> String {
        list(self.backends.iter().map(|row| (row.who(), row.remark())))
    }

    /// Backends that get connections, and answer where they were asked; and all. An endpoint is one, whatever the number
    /// of its addresses.
    pub fn healthy(&self) -> (usize, usize) {
        let ill = |row: &BackendRow<'_>| {
            !row.backend.state.answers() || matches!(row.seen, Some(Behaviour::Refusing | Behaviour::Silent))
        };
        let all: HashSet<_> = self.backends.iter().map(BackendRow::who).collect();
        let not_well: HashSet<_> = self.backends.iter().filter(|row| ill(row)).map(BackendRow::who).collect();
        (all.len() - not_well.len(), all.len())
    }

    /// `2 open, 1 unanswered, 1 of the host`
    pub fn connected(&self) -> String {
        let words = words(&self.connections, 0);
        match self.host_connections {
            None | Some(0) => words,
            Some(host) if self.connections.all() == 0 => format!("{host} of the host"),
            Some(host) => format!("{words}, {host} of the host"),
        }
    }
}

impl BackendRow<'_> {
    pub fn who(&self) -> String {
        let Backend { endpoint, address, port, weight, .. } = self.backend;
        let unnamed = || address.map_or_else(String::new, |address| address.to_string());
        let who = end(&endpoint.clone().unwrap_or_else(unnamed), *port);
        if *weight == 1 { who } else { format!("{who}*{weight}") }
    }

    /// What documents say, where it gets no connections; what is seen of it, where it does not answer.
    fn remark(&self) -> Option<String> {
        let state = self.backend.state;
        match self.seen {
            _ if !state.answers() => Some(state.as_str().to_owned()),
            Some(behaviour @ (Behaviour::Refusing | Behaviour::Silent)) => {
                Some(format!("{}: {}", behaviour.as_str(), words(&self.connections, self.refused)))
            }
            _ if self.connections.unanswered > 0 => Some(words(&self.connections, self.refused)),
            _ => None,
        }
    }
}

fn words(connections: &Connections, refused: usize) -> String {
    let Connections { open, unanswered, closing } = *connections;
    let closing = closing.saturating_sub(refused);
    let counted = [(open, "open"), (unanswered, "unanswered"), (refused, "refused"), (closing, "closing")];
    let said: Vec<_> =
        counted.into_iter().filter(|(count, _)| *count > 0).map(|(n, word)| format!("{n} {word}")).collect();
    if said.is_empty() { "-".to_owned() } else { said.join(", ") }
}

fn end(who: &str, port: u16) -> String {
    // only addresses of IPv6 have two colons
    if who.matches(':').count() > 1 { format!("[{who}]:{port}") } else { format!("{who}:{port}") }
}

/// What comes twice (an endpoint, by its addresses of both families) is said once, with the first remark that there is.
fn list(items: impl Iterator<Item = (String, Option<String>)>) -> String {
    let mut said: Vec<(String, Option<String>)> = Vec::new();
    for (item, remark) in items {
        match said.iter_mut().find(|(before, _)| *before == item) {
            Some((_, before)) => *before = before.take().or(remark),
            None => said.push((item, remark)),
        }
    }
    let text = |(item, remark): (String, Option<String>)| match remark {
        Some(remark) => format!("{item} ({remark})"),
        None => item,
    };
    if said.is_empty() { "-".to_owned() } else { said.into_iter().map(text).collect::<Vec<_>>().join(",") }
}
