//! Endpoints, and what passes them.

use std::cmp::Ordering;

use super::{Column, Kind, Table, Tone, column, id};
use crate::{
    cli::top::units,
    observe::summary::{EndpointSum, Sum},
    state::{Endpoint, Names},
};

pub struct EndpointTable<'a> {
    pub names: &'a Names,
    pub sums: &'a [EndpointSum],
}

const COLUMNS: [Column; 9] = [
    column("ENDPOINT", 20, 0, Kind::Text),
    column("ALLOWED", 9, 1, Kind::Number),
    column("DENIED", 8, 2, Kind::Number),
    column("PKT/S", 6, 3, Kind::Number),
    column("DENIED/S", 8, 4, Kind::Number),
    column("B/S", 6, 5, Kind::Number),
    column("BYTES", 7, 7, Kind::Number),
    column("ISOLATED", 8, 6, Kind::Text),
    column("ADDRESSES", 10, 8, Kind::Text),
];

impl EndpointTable<'_> {
    fn endpoint(&self, row: usize) -> &Endpoint {
        &self.names.endpoints[row]
    }
}

impl Table for EndpointTable<'_> {
    fn columns(&self) -> &'static [Column] {
        &COLUMNS
    }

    fn rows(&self) -> usize {
        self.sums.len()
    }

    fn compare(&self, column: usize, a: usize, b: usize) -> Ordering {
        let (x, y) = (&self.sums[a], &self.sums[b]);
        match COLUMNS[column].title {
            "ENDPOINT" => name(self.endpoint(a)).cmp(&name(self.endpoint(b))),
            "ALLOWED" => x.allowed.connections.cmp(&y.allowed.connections),
            "DENIED" => x.denied.connections.cmp(&y.denied.connections),
            "PKT/S" => x.allowed.packets_per_second.total_cmp(&y.allowed.packets_per_second),
            "DENIED/S" => x.denied.packets_per_second.total_cmp(&y.denied.packets_per_second),
            "B/S" => x.allowed.bytes_per_second.total_cmp(&y.allowed.bytes_per_second),
            "BYTES" => x.allowed.bytes.cmp(&y.allowed.bytes),
            "ISOLATED" => isolated(self.endpoint(a)).cmp(isolated(self.endpoint(b))),
            _ => self.endpoint(a).addresses.cmp(&self.endpoint(b).addresses),
        }
    }

    fn cell(&self, column: usize, row: usize) -> String {
        let (endpoint, sum) = (self.endpoint(row), &self.sums[row]);
        match COLUMNS[column].title {
            "ENDPOINT" => name(endpoint),
            "ALLOWED" => format!("✓ {}", units::count(sum.allowed.connections as u64)),
            "DENIED" => format!("✗ {}", units::count(sum.denied.connections as u64)),
            "PKT/S" => units::rate(sum.allowed.packets_per_second),
            "DENIED/S" => units::rate(sum.denied.packets_per_second),
            "B/S" => units::rate(sum.allowed.bytes_per_second),
            "BYTES" => units::count(sum.allowed.bytes),
            "ISOLATED" => isolated(endpoint).to_owned(),
            _ => addresses(endpoint),
        }
    }

    fn tone(&self, row: usize) -> Tone {
        if self.sums[row].denied.packets_per_second > 0.0 { Tone::Bad } else { Tone::Plain }
    }

    fn sentence(&self, row: usize) -> String {
        let (name, sum) = (name(self.endpoint(row)), &self.sums[row]);
        let (allowed, denied) = (sum.allowed.connections, sum.denied.connections);
        format!(
            "{name}: {allowed} connections allowed, {denied} denied, as far as they are remembered; `/ from:{name}` \
             shows its own"
        )
    }

    fn details(&self, row: usize) -> Vec<(&'static str, String)> {
        let (endpoint, sum) = (self.endpoint(row), &self.sums[row]);
        let labels: Vec<_> = endpoint.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let total = |sum: &Sum| {
            let Sum { connections, packets, bytes, .. } = sum;
            format!("{connections} connections, {packets} packets, {bytes} bytes")
        };
        vec![
            ("endpoint", name(endpoint)),
            ("labels", labels.join(",")),
            ("addresses", addresses(endpoint)),
            ("interface", endpoint.interface.clone()),
            ("isolated", isolated(endpoint).to_owned()),
            ("delivery", endpoint.stack.clone().unwrap_or_else(|| "direct".to_owned())),
            ("allowed", total(&sum.allowed)),
            ("denied", total(&sum.denied)),
        ]
    }

    fn id(&self, row: usize) -> u64 {
        id(name(self.endpoint(row)))
    }

    fn packets_per_second(&self, row: usize) -> f64 {
        self.sums[row].allowed.packets_per_second
    }
}

fn name(endpoint: &Endpoint) -> String {
    format!("{}/{}", endpoint.namespace, endpoint.name)
}

const fn isolated(endpoint: &Endpoint) -> &'static str {
    match (endpoint.ingress, endpoint.egress) {
        (true, true) => "both",
        (true, false) => "ingress",
        (false, true) => "egress",
        (false, false) => "no",
    }
}

fn addresses(endpoint: &Endpoint) -> String {
    endpoint.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}
