//! Services, and what goes through them.

use std::cmp::Ordering;

use super::{Column, Kind, Table, Tone, column, id};
use crate::{
    cli::top::units,
    observe::{ServiceRow, census::ServiceUse},
    state::Names,
};

pub struct ServiceTable<'a> {
    pub names: &'a Names,
    pub uses: &'a [ServiceUse],
}

const COLUMNS: [Column; 11] = [
    column("SERVICE", 20, 0, Kind::Text),
    column("PORT", 7, 1, Kind::Text),
    column("OPEN", 5, 2, Kind::Number),
    column("UNANSWERED", 10, 4, Kind::Number),
    column("PKT/S", 6, 3, Kind::Number),
    column("B/S", 6, 6, Kind::Number),
    column("HEALTHY", 7, 5, Kind::Text),
    column("PACKETS", 7, 8, Kind::Number),
    column("BYTES", 7, 9, Kind::Number),
    column("DENIED", 7, 10, Kind::Number),
    column("PUBLISHED", 14, 7, Kind::End),
];

impl ServiceTable<'_> {
    fn row(&self, row: usize) -> ServiceRow<'_> {
        ServiceRow::new(&self.names.services[row], &self.uses[row])
    }
}

impl Table for ServiceTable<'_> {
    fn columns(&self) -> &'static [Column] {
        &COLUMNS
    }

    fn rows(&self) -> usize {
        self.uses.len().min(self.names.services.len())
    }

    fn compare(&self, column: usize, a: usize, b: usize) -> Ordering {
        let (x, y) = (&self.uses[a], &self.uses[b]);
        let (service, other) = (&self.names.services[a], &self.names.services[b]);
        match COLUMNS[column].title {
            "SERVICE" => (&service.namespace, &service.name).cmp(&(&other.namespace, &other.name)),
            "PORT" => (service.port, &service.protocol).cmp(&(other.port, &other.protocol)),
            "OPEN" => x.connections.open.cmp(&y.connections.open),
            "UNANSWERED" => x.connections.unanswered.cmp(&y.connections.unanswered),
            "PKT/S" => x.packets_per_second.total_cmp(&y.packets_per_second),
            "B/S" => x.bytes_per_second.total_cmp(&y.bytes_per_second),
            "HEALTHY" => self.row(a).healthy().cmp(&self.row(b).healthy()),
            "PACKETS" => (x.packets + x.reply_packets).cmp(&(y.packets + y.reply_packets)),
            "BYTES" => (x.bytes + x.reply_bytes).cmp(&(y.bytes + y.reply_bytes)),
            "DENIED" => x.denied_packets.cmp(&y.denied_packets),
            _ => self.row(a).published().cmp(&self.row(b).published()),
        }
    }

    fn cell(&self, column: usize, row: usize) -> String {
        let (service, seen) = (self.row(row), &self.uses[row]);
        match COLUMNS[column].title {
            "SERVICE" => service.name(),
            "PORT" => service.port(),
            "OPEN" => units::count(seen.connections.open as u64),
            "UNANSWERED" => units::count(seen.connections.unanswered as u64),
            "PKT/S" => units::rate(seen.packets_per_second),
            "B/S" => units::rate(seen.bytes_per_second),
            "HEALTHY" => {
                let (well, all) = service.healthy();
                format!("{} {well}/{all}", if well > 0 && well == all { '✓' } else { '✗' })
            }
            "PACKETS" => units::count(seen.packets + seen.reply_packets),
            "BYTES" => units::count(seen.bytes + seen.reply_bytes),
            "DENIED" => units::count(seen.denied_packets),
            _ => service.published(),
        }
    }

    fn tone(&self, row: usize) -> Tone {
        let (well, all) = self.row(row).healthy();
        if well == all && all > 0 { Tone::Plain } else { Tone::Bad }
    }

    fn sentence(&self, row: usize) -> String {
        let row = self.row(row);
        format!("{} {}: {}; connections: {}", row.name(), row.port(), row.answerers(), row.connected())
    }

    fn details(&self, row: usize) -> Vec<(&'static str, String)> {
        let (row, seen) = (self.row(row), &self.uses[row]);
        let mut details = vec![
            ("service", row.name()),
            ("port", row.port()),
            ("published", row.published()),
            ("backends", row.answerers()),
            ("connections", row.connected()),
            ("from clients", format!("{} packets, {} bytes", seen.packets, seen.bytes)),
            ("answers", format!("{} packets, {} bytes", seen.reply_packets, seen.reply_bytes)),
            ("denied", format!("{} packets", seen.denied_packets)),
        ];
        if seen.former > 0 {
            details.push(("former", format!("{} connections with backends that it has no longer", seen.former)));
        }
        details
    }

    fn id(&self, row: usize) -> u64 {
        let row = self.row(row);
        id((row.namespace, row.name, row.port, row.protocol))
    }

    fn packets_per_second(&self, row: usize) -> f64 {
        self.uses[row].packets_per_second
    }
}
