//! Connections put together: a row for each pair of ends, each client of a service, each endpoint, each rule.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
};

use super::connection::Connection;
use crate::{
    datapath::{Audited, Drop, Record},
    state::Names,
};

/// What passed, or was stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Sum {
    /// Rows of the kernel's memory: what was evicted is not among them.
    pub connections: usize,
    /// Of both directions.
    pub packets_per_second: f64,
    pub bytes_per_second: f64,
    pub packets: u64,
    pub bytes: u64,
}

/// What an endpoint takes part in.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EndpointSum {
    pub allowed: Sum,
    pub denied: Sum,
}

/// What a rule has decided.
#[derive(Clone, Copy, Debug, Default)]
pub struct RuleSum {
    /// `None`: it has decided about nothing that is remembered.
    pub verdict: Option<&'static str>,
    pub sum: Sum,
}

impl Sum {
    fn add(&mut self, connection: &Connection) {
        self.connections += connection.members.unwrap_or(1);
        self.packets_per_second += connection.packets_per_second;
        self.bytes_per_second += connection.bytes_per_second;
        self.packets += connection.record.packets + connection.reply_packets;
        self.bytes += connection.record.bytes + connection.reply_bytes;
    }
}

/// By the place of the endpoint in [`Names::endpoints`].
pub fn endpoints<'a>(names: &Names, connections: impl IntoIterator<Item = &'a Connection>) -> Vec<EndpointSum> {
    let mut sums = vec![EndpointSum::default(); names.endpoints.len()];
    for connection in connections {
        let (source, destination) = (connection.ends.source, connection.ends.destination);
        for end in source.into_iter().chain(destination.filter(|end| Some(*end) != source)) {
            let sum = &mut sums[end];
            let sum = if connection.record.denied.is_some() { &mut sum.denied } else { &mut sum.allowed };
            sum.add(connection);
        }
    }
    sums
}

/// By the place of the rule in [`Names::rules`].
pub fn rules<'a>(names: &Names, connections: impl IntoIterator<Item = &'a Connection>) -> Vec<RuleSum> {
    let mut sums = vec![RuleSum::default(); names.rules.len()];
    let current = connections.into_iter().filter(|connection| connection.record.generation.0 == names.generation);
    for connection in current {
        let record = &connection.record;
        let (verdict, decisive) = match record.denied {
            Some(Drop::PolicyEgress) => ("denied", [record.egress_rule.0, 0]),
            Some(_) => ("denied", [record.ingress_rule.0, 0]),
            None => ("allowed", [record.egress_rule.0, record.ingress_rule.0]),
        };
        let decisive = decisive.map(|number| (number, verdict)).into_iter();
        let would = record.audited.map(|audited| (audited.rule.0, "would-drop"));
        for (number, verdict) in decisive.chain(would).filter(|(number, _)| *number > 0) {
            if let Some(sum) = sums.get_mut(number as usize - 1) {
                sum.verdict = Some(verdict);
                sum.sum.add(connection);
            }
        }
    }
    sums
}

/// Whom a group is about. The opener's port is what its connections differ by.
#[derive(PartialEq, Eq, Hash)]
struct Group {
    source: End,
    destination: End,
    /// 0: any, of the service's backends.
    port: u16,
    protocol: u8,
    denied: Option<Drop>,
    audited: Option<Audited>,
    rules: (u32, u32),
}

#[derive(PartialEq, Eq, Hash)]
enum End {
    Endpoint(usize),
    Outside(IpAddr),
    /// By its number in the present generation.
    Service(u32),
}

/// What connections have in common that become one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grouping {
    /// The two ends.
    Ends,
    /// Who asks, and the service's port that is asked, whoever answers; without a service the two ends.
    Services,
}

/// One row for all connections between the same two ends, or to the same service, to the same port, with the same verdict
/// by the same rules.
pub fn groups<'a>(
    names: &Names,
    grouping: Grouping,
    connections: impl IntoIterator<Item = &'a Connection>,
) -> Vec<Connection> {
    let mut groups: HashMap<Group, usize> = HashMap::new();
    let mut rows: Vec<Connection> = Vec::new();
    for connection in connections {
        let record = &connection.record;
        let end = |endpoint: Option<usize>, address| endpoint.map_or(End::Outside(address), End::Endpoint);
        let is_of_service =
            grouping == Grouping::Services && record.service != 0 && record.generation.0 == names.generation;
        let (destination, port) = match is_of_service {
            true => (End::Service(record.service), 0),
            false => (end(connection.ends.destination, record.destination), record.destination_port),
        };
        let group = Group {
            source: end(connection.ends.source, record.source),
            destination,
            port,
            protocol: record.protocol.0,
            denied: record.denied,
            audited: record.audited,
            rules: (record.egress_rule.0, record.ingress_rule.0),
        };
        match groups.entry(group) {
            Entry::Occupied(entry) => join(&mut rows[*entry.get()], connection),
            Entry::Vacant(entry) => {
                entry.insert(rows.len());
                // another backend's packets leave with another address
                let translated = record.translated.filter(|_| !is_of_service);
                rows.push(Connection {
                    record: Record { translated, ..*record },
                    members: Some(1),
                    ..connection.clone()
                });
            }
        }
    }
    rows
}

fn join(row: &mut Connection, connection: &Connection) {
    let (sum, record) = (&mut row.record, &connection.record);
    sum.packets += record.packets;
    sum.bytes += record.bytes;
    sum.idle = sum.idle.min(record.idle);
    sum.tcp_flags |= record.tcp_flags;
    row.reply_packets += connection.reply_packets;
    row.reply_bytes += connection.reply_bytes;
    row.reply_tcp_flags |= connection.reply_tcp_flags;
    row.packets_per_second += connection.packets_per_second;
    row.bytes_per_second += connection.bytes_per_second;
    row.age = row.age.max(connection.age);
    row.members = row.members.map(|members| members + 1);
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::observe::{
        Sample, Sampler,
        scene::{DB, OUTSIDE, WEB, answered, asked, denial, reader, record, reply, through},
    };

    fn sample(records: &[Record]) -> Sample {
        Sampler::default().of(&reader(), records)
    }

    #[test]
    fn connections_between_the_same_ends_are_one_row() {
        let again = |port, record: Record| Record { source_port: port, ..record };
        let sample = sample(&[
            record(WEB, DB, 5),
            reply(DB, WEB, 4),
            again(40_001, record(WEB, DB, 7)),
            Record { destination_port: 80, ..record(WEB, DB, 1) },
            denial(OUTSIDE, DB, 2),
            again(40_001, denial(OUTSIDE, DB, 3)),
        ]);
        let groups = groups(sample.reader.names(), Grouping::Ends, &sample.connections);
        let mut rows: Vec<_> = groups
            .iter()
            .map(|group| {
                let flow = sample.reader.flow_between(&group.record, group.ends, SystemTime::UNIX_EPOCH);
                let (packets, replies) = (group.record.packets, group.reply_packets);
                (flow.source.who().to_string(), flow.destination.describe(), group.members, packets, replies)
            })
            .collect();
        rows.sort_unstable();
        let row = |from: &str, to: &str, members, packets, replies| {
            (from.to_owned(), to.to_owned(), Some(members), packets, replies)
        };
        assert_eq!(
            rows,
            [
                row(OUTSIDE, "shop/db:5432", 2, 5, 0),
                row("shop/web", "shop/db:5432", 2, 12, 4),
                row("shop/web", "shop/db:80", 1, 1, 0)
            ]
        );
        assert_eq!(groups[0].flow(&sample).source.port, None);
    }

    #[test]
    fn connections_to_a_service_are_one_row_whoever_answers() {
        let other = through(asked(WEB, 7), (WEB, 40_001), (OUTSIDE, 9000));
        let sample = sample(&[
            asked(WEB, 5),
            answered(WEB, 4),
            Record { source_port: 40_001, ..other },
            Record { source_port: 40_002, ..record(WEB, DB, 1) },
            denial(OUTSIDE, DB, 2),
        ]);
        let groups = |grouping| groups(sample.reader.names(), grouping, &sample.connections);
        let packets = |rows: &[Connection]| {
            let mut packets: Vec<_> = rows.iter().map(|row| (row.record.packets, row.members)).collect();
            packets.sort_unstable();
            packets
        };
        let by_service = groups(Grouping::Services);
        assert_eq!(packets(&by_service), [(1, Some(1)), (2, Some(1)), (12, Some(2))]);
        assert_eq!(packets(&groups(Grouping::Ends)), [(2, Some(1)), (6, Some(2)), (7, Some(1))]);
        let row = by_service.iter().find(|row| row.record.service != 0).expect("the service's");
        let flow = row.flow(&sample);
        let service = flow.service.map(|service| service.to_string());
        assert_eq!((service.as_deref(), flow.translated, row.reply_packets), (Some("shop/store:80"), None, 4));
    }

    #[test]
    fn endpoints_and_rules_sum_up_what_is_remembered_of_them() {
        let sample = sample(&[record(WEB, DB, 5), reply(DB, WEB, 4), denial(OUTSIDE, DB, 2)]);
        let names = sample.reader.names();
        let ends = endpoints(names, &sample.connections);
        let packets = |end: &EndpointSum| (end.allowed.packets, end.denied.packets);
        assert_eq!((packets(&ends[0]), packets(&ends[1])), ((9, 0), (9, 2)));
        let rules = rules(names, &sample.connections);
        let decided: Vec<_> = rules.iter().map(|rule| (rule.verdict, rule.sum.connections, rule.sum.packets)).collect();
        assert_eq!(decided, [(Some("allowed"), 1, 9), (Some("denied"), 1, 2)]);
    }
}
