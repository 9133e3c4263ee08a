//! Why packets were dropped, by the counters: every packet, also where nothing is remembered of it.

use std::cmp::Ordering;

use super::{Column, Kind, Table, Tone, column, id};
use crate::{
    cli::top::units,
    datapath::{Drop, Side},
    observe::sampler::Rate,
};

pub struct DropTable<'a> {
    pub rates: &'a [(Drop, Rate)],
}

const COLUMNS: [Column; 6] = [
    column("REASON", 20, 0, Kind::Text),
    column("AT", 7, 1, Kind::Text),
    column("DROPS/S", 7, 2, Kind::Number),
    column("PACKETS", 7, 3, Kind::Number),
    column("BYTES", 7, 4, Kind::Number),
    column("MEANS", 20, 5, Kind::Text),
];

const fn place(rate: &Rate) -> &'static str {
    match rate.counter.side {
        Side::From => "egress",
        Side::To => "ingress",
    }
}

impl Table for DropTable<'_> {
    fn columns(&self) -> &'static [Column] {
        &COLUMNS
    }

    fn rows(&self) -> usize {
        self.rates.len()
    }

    fn compare(&self, column: usize, a: usize, b: usize) -> Ordering {
        let ((reason, x), (other, y)) = (&self.rates[a], &self.rates[b]);
        match COLUMNS[column].title {
            "REASON" => reason.name().cmp(other.name()),
            "AT" => place(x).cmp(place(y)),
            "DROPS/S" => x.packets_per_second.total_cmp(&y.packets_per_second),
            "PACKETS" => x.counter.packets.cmp(&y.counter.packets),
            "BYTES" => x.counter.bytes.cmp(&y.counter.bytes),
            _ => reason.explanation().cmp(other.explanation()),
        }
    }

    fn cell(&self, column: usize, row: usize) -> String {
        let (reason, rate) = &self.rates[row];
        match COLUMNS[column].title {
            "REASON" => format!("✗ {}", reason.name()),
            "AT" => place(rate).to_owned(),
            "DROPS/S" => units::rate(rate.packets_per_second),
            "PACKETS" => units::count(rate.counter.packets),
            "BYTES" => units::count(rate.counter.bytes),
            _ => reason.explanation().to_owned(),
        }
    }

    fn tone(&self, row: usize) -> Tone {
        if self.rates[row].1.packets_per_second > 0.0 { Tone::Bad } else { Tone::Plain }
    }

    fn sentence(&self, row: usize) -> String {
        let (reason, rate) = &self.rates[row];
        format!("✗ {} at {}: {}", reason.name(), place(rate), reason.explanation())
    }

    fn details(&self, row: usize) -> Vec<(&'static str, String)> {
        let (reason, rate) = &self.rates[row];
        let hook = match rate.counter.side {
            Side::From => "egress: what endpoints send, before it leaves them",
            Side::To => "ingress: what would reach endpoints",
        };
        vec![
            ("reason", reason.name().to_owned()),
            ("means", reason.explanation().to_owned()),
            ("at", hook.to_owned()),
            ("total", format!("{} packets, {} bytes", rate.counter.packets, rate.counter.bytes)),
            ("rate", format!("{} packets/s", units::rate(rate.packets_per_second))),
        ]
    }

    fn id(&self, row: usize) -> u64 {
        let (reason, rate) = &self.rates[row];
        id((reason.name(), place(rate)))
    }

    fn packets_per_second(&self, row: usize) -> f64 {
        self.rates[row].1.packets_per_second
    }
}
