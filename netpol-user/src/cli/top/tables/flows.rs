//! Connections, or groups of them.

use std::cmp::Ordering;

use super::{Column, Kind, Table, Tone, column, id, mark};
use crate::{
    cli::top::units,
    datapath::Record,
    observe::{Cause, Connection, Flow, Leaving, Peer, Sample, ServiceName, TcpFlags, summary::Grouping},
};

pub struct FlowTable<'a> {
    pub sample: &'a Sample,
    pub connections: &'a [Connection],
    pub grouping: Option<Grouping>,
}

const COLUMNS: [Column; 14] = [
    column("VERDICT", 9, 0, Kind::Text),
    column("FROM", 15, 1, Kind::End),
    column("TO", 20, 2, Kind::End),
    column("PROTO", 5, 5, Kind::Text),
    column("PKT/S", 6, 4, Kind::Number),
    column("B/S", 6, 6, Kind::Number),
    column("PACKETS", 7, 8, Kind::Number),
    column("BYTES", 7, 9, Kind::Number),
    column("AGE", 4, 10, Kind::Number),
    column("STATE", 11, 7, Kind::Text),
    column("WAY", 7, 12, Kind::Text),
    column("CONNS", 5, 11, Kind::Number),
    column("TRANSLATED", 12, 13, Kind::Text),
    column("RULE", 20, 3, Kind::Text),
];

impl FlowTable<'_> {
    fn flow(&self, row: usize) -> Flow<'_> {
        self.connections[row].flow(self.sample)
    }

    /// Whom a group is about where it is a service, rather than one of its backends.
    fn service<'b>(&self, flow: &Flow<'b>) -> Option<ServiceName<'b>> {
        flow.service.filter(|_| self.grouping == Some(Grouping::Services))
    }

    fn is_current(&self, row: usize) -> bool {
        self.sample.reader.is_current(&self.connections[row].record)
    }
}

impl Table for FlowTable<'_> {
    fn columns(&self) -> &'static [Column] {
        &COLUMNS
    }

    fn rows(&self) -> usize {
        self.connections.len()
    }

    fn compare(&self, column: usize, a: usize, b: usize) -> Ordering {
        let (x, y) = (&self.connections[a], &self.connections[b]);
        let total = |c: &Connection| (c.record.packets + c.reply_packets, c.record.bytes + c.reply_bytes);
        match COLUMNS[column].title {
            "VERDICT" => severity(x).cmp(&severity(y)),
            "FROM" => by_name(&self.flow(a).source, &self.flow(b).source),
            "TO" if self.grouping == Some(Grouping::Services) => self.cell(column, a).cmp(&self.cell(column, b)),
            "TO" => by_name(&self.flow(a).destination, &self.flow(b).destination),
            "PROTO" => x.record.protocol.cmp(&y.record.protocol),
            "PKT/S" => x.packets_per_second.total_cmp(&y.packets_per_second),
            "B/S" => x.bytes_per_second.total_cmp(&y.bytes_per_second),
            "PACKETS" => total(x).0.cmp(&total(y).0),
            "BYTES" => total(x).1.cmp(&total(y).1),
            "AGE" => x.age.cmp(&y.age),
            "STATE" => x.tcp_state().cmp(&y.tcp_state()),
            "WAY" => (x.record.side as u8).cmp(&(y.record.side as u8)),
            "CONNS" => x.members.cmp(&y.members),
            "TRANSLATED" => self.cell(column, a).cmp(&self.cell(column, b)),
            _ => by_rule(&self.flow(a), &self.flow(b)),
        }
    }

    /// The latest first.
    fn tie(&self, a: usize, b: usize) -> Ordering {
        let (x, y) = (&self.connections[a].record, &self.connections[b].record);
        let key = |record: &Record| (record.idle, record.source_port, record.destination_port);
        key(x).cmp(&key(y)).then(a.cmp(&b))
    }

    fn cell(&self, column: usize, row: usize) -> String {
        let (connection, flow) = (&self.connections[row], self.flow(row));
        match COLUMNS[column].title {
            "VERDICT" => mark(&flow).to_owned(),
            "FROM" => flow.source.describe(),
            "TO" => match self.service(&flow) {
                Some(service) => format!("service {service}"),
                None => flow.destination.describe(),
            },
            "PROTO" => flow.protocol.to_string(),
            "PKT/S" => units::rate(connection.packets_per_second),
            "B/S" => units::rate(connection.bytes_per_second),
            "PACKETS" => units::count(flow.packets + connection.reply_packets),
            "BYTES" => units::count(flow.bytes + connection.reply_bytes),
            "AGE" => units::span(connection.age),
            "STATE" => connection.tcp_state().map_or("-", |state| state.name()).to_owned(),
            "WAY" => flow.direction.to_owned(),
            "CONNS" => connection.members.unwrap_or(1).to_string(),
            "TRANSLATED" => translated(&flow),
            _ => match flow.audit_explanation.unwrap_or(flow.explanation).cause {
                Cause::Rule(rule) => format!("{} ({})", rule.short(), rule.source),
                _ => flow.audit_explanation.unwrap_or(flow.explanation).to_string(),
            },
        }
    }

    fn tone(&self, row: usize) -> Tone {
        let record = &self.connections[row].record;
        match (self.is_current(row), record.denied, record.audited) {
            (false, ..) => Tone::Dim,
            (true, Some(_), _) => Tone::Bad,
            (true, None, Some(_)) => Tone::Doubtful,
            (true, None, None) => Tone::Good,
        }
    }

    fn sentence(&self, row: usize) -> String {
        let flow = self.flow(row);
        match flow.audit_explanation {
            Some(would) => format!("{}: it passes, and would be denied: {would}", mark(&flow)),
            None => format!("{}: {}", mark(&flow), flow.explanation),
        }
    }

    fn details(&self, row: usize) -> Vec<(&'static str, String)> {
        let (connection, flow) = (&self.connections[row], self.flow(row));
        let mut details = vec![
            ("verdict", format!("{}{}", mark(&flow), reason(&flow))),
            ("because", flow.explanation.to_string()),
            ("from", end(&flow.source)),
            (
                "to",
                match self.service(&flow) {
                    Some(service) => format!("service {service}, whoever answers"),
                    None => end(&flow.destination),
                },
            ),
            ("protocol", flow.protocol.to_string()),
            ("seen", format!("{} at {}{}", flow.direction, flow.interface, delivery(&flow))),
            ("rate", per_second(connection)),
            ("forward", total(flow.packets, flow.bytes, flow.tcp_flags)),
            ("reply", {
                let flags = flow.tcp_flags.map(|_| TcpFlags(connection.reply_tcp_flags));
                total(connection.reply_packets, connection.reply_bytes, flags)
            }),
            ("age", format!("{}, idle {}", units::span(connection.age), units::span(connection.record.idle))),
        ];
        details.extend(flow.service.map(|service| ("service", service.to_string())));
        details.extend(
            flow.translated.map(|Leaving { source, destination }| ("leaves as", format!("{source} > {destination}"))),
        );
        details.extend(flow.audit_explanation.map(|would| ("would deny", would.to_string())));
        for (name, rule) in [("egress rule", flow.egress_rule), ("ingress rule", flow.ingress_rule)] {
            details.extend(rule.map(|rule| (name, rule.describe())));
        }
        details.extend(connection.tcp_state().map(|state| ("tcp state", state.name().to_owned())));
        details.extend(connection.members.map(|members| ("connections", members.to_string())));
        details
    }

    fn id(&self, row: usize) -> u64 {
        let connection = &self.connections[row];
        if connection.members.is_none() {
            return id(connection.key(&self.sample.reader));
        }
        let (flow, record) = (self.flow(row), &connection.record);
        let to =
            self.service(&flow).map_or_else(|| flow.destination.describe(), |service| format!("service {service}"));
        let ends = (flow.source.who().to_string(), to);
        id((ends, record.protocol.0, record.denied, record.egress_rule.0, record.ingress_rule.0))
    }

    fn packets_per_second(&self, row: usize) -> f64 {
        self.connections[row].packets_per_second
    }
}

/// What passes before what would not, and that before what does not.
fn severity(connection: &Connection) -> (Option<u8>, bool) {
    (connection.record.denied.map(|drop| drop as u8), connection.record.audited.is_some())
}

fn by_name(a: &Peer<'_>, b: &Peer<'_>) -> Ordering {
    let key = |peer: &Peer<'_>| (peer.address, peer.port);
    a.namespace.cmp(&b.namespace).then(a.name.cmp(&b.name)).then_with(|| key(a).cmp(&key(b)))
}

fn by_rule(a: &Flow<'_>, b: &Flow<'_>) -> Ordering {
    let (a, b) = (a.audit_rule.or(a.rule), b.audit_rule.or(b.rule));
    let key = |rule: &'_ crate::state::Rule| (rule.index, rule.source.clone());
    let name = |rule: Option<&crate::state::Rule>| rule.map(|rule| rule.policy().to_string());
    name(a).cmp(&name(b)).then_with(|| a.map(key).cmp(&b.map(key)))
}

/// The service, else what becomes of the sender.
fn translated(flow: &Flow<'_>) -> String {
    match (flow.service, flow.translated) {
        (Some(service), _) => service.to_string(),
        (None, Some(Leaving { source, .. })) => format!("as {source}"),
        (None, None) => "-".to_owned(),
    }
}

fn delivery(flow: &Flow<'_>) -> String {
    if flow.drop_reason.is_some() { String::new() } else { format!(", delivery {}", flow.delivery) }
}

fn reason(flow: &Flow<'_>) -> String {
    flow.drop_reason.map(|reason| format!(" ({reason})")).unwrap_or_default()
}

/// Name, address and port, identity and labels.
fn end(peer: &Peer<'_>) -> String {
    let port = peer.port.map(|port| format!(" port {port}")).unwrap_or_default();
    if peer.name.is_none() {
        return format!("{}{port}, no endpoint", peer.address);
    }
    let identity = peer.identity.map(|identity| format!(", identity {identity}")).unwrap_or_default();
    let labels: Vec<_> = peer.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    format!("{}, {}{port}{identity}, {}", peer.who(), peer.address, labels.join(","))
}

fn per_second(connection: &Connection) -> String {
    let (packets, bytes) = (connection.packets_per_second, connection.bytes_per_second);
    format!("{} packets/s, {} bytes/s", units::rate(packets), units::rate(bytes))
}

fn total(packets: u64, bytes: u64, flags: Option<TcpFlags>) -> String {
    let flags = flags.filter(|flags| flags.0 != 0).map(|flags| format!(", flags {flags}")).unwrap_or_default();
    format!("{packets} packets, {bytes} bytes{flags}")
}
