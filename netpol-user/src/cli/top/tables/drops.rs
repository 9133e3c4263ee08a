//! Why packets were dropped, by the counters: every packet, also where nothing is remembered of it. And what audited
//! policies would have dropped.

use std::cmp::Ordering;

use super::{Column, Kind, Table, Tone, column, id};
use crate::{
    cli::top::units,
    datapath::{Drop, Side},
    observe::{Sample, sampler::Rate},
};

pub struct DropTable<'a> {
    pub rates: &'a [Dropped],
}

/// One counter.
#[derive(Clone, Copy, Debug)]
pub struct Dropped {
    pub reason: Drop,
    pub rate: Rate,
    /// It passed, and audited policies would have dropped it.
    pub is_audited: bool,
}

/// All of them.
pub fn drops(sample: &Sample) -> Vec<Dropped> {
    let of =
        |is_audited| move |rate: &Rate| Some(Dropped { reason: rate.counter.verdict.err()?, rate: *rate, is_audited });
    sample.counters.iter().filter_map(of(false)).chain(sample.would_drop.iter().filter_map(of(true))).collect()
}

impl Dropped {
    const fn mark(&self) -> char {
        if self.is_audited { '!' } else { '✗' }
    }

    fn means(&self) -> String {
        let text = self.reason.explanation();
        if self.is_audited { format!("passes; if audited policies were enforced: {text}") } else { text.to_owned() }
    }
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
        let (this, other) = (&self.rates[a], &self.rates[b]);
        let (x, y) = (&this.rate, &other.rate);
        match COLUMNS[column].title {
            "REASON" => (this.reason.name(), this.is_audited).cmp(&(other.reason.name(), other.is_audited)),
            "AT" => place(x).cmp(place(y)),
            "DROPS/S" => x.packets_per_second.total_cmp(&y.packets_per_second),
            "PACKETS" => x.counter.packets.cmp(&y.counter.packets),
            "BYTES" => x.counter.bytes.cmp(&y.counter.bytes),
            _ => this.means().cmp(&other.means()),
        }
    }

    fn cell(&self, column: usize, row: usize) -> String {
        let this = &self.rates[row];
        let rate = &this.rate;
        match COLUMNS[column].title {
            "REASON" => format!("{} {}", this.mark(), this.reason.name()),
            "AT" => place(rate).to_owned(),
            "DROPS/S" => units::rate(rate.packets_per_second),
            "PACKETS" => units::count(rate.counter.packets),
            "BYTES" => units::count(rate.counter.bytes),
            _ => this.means(),
        }
    }

    fn tone(&self, row: usize) -> Tone {
        match &self.rates[row] {
            this if this.rate.packets_per_second <= 0.0 => Tone::Plain,
            this if this.is_audited => Tone::Doubtful,
            _ => Tone::Bad,
        }
    }

    fn sentence(&self, row: usize) -> String {
        let this = &self.rates[row];
        format!("{} {} at {}: {}", this.mark(), this.reason.name(), place(&this.rate), this.means())
    }

    fn details(&self, row: usize) -> Vec<(&'static str, String)> {
        let this = &self.rates[row];
        let rate = &this.rate;
        let hook = match rate.counter.side {
            Side::From => "egress: what endpoints send, before it leaves them",
            Side::To => "ingress: what would reach endpoints",
        };
        vec![
            ("reason", this.reason.name().to_owned()),
            ("means", this.means()),
            ("at", hook.to_owned()),
            ("total", format!("{} packets, {} bytes", rate.counter.packets, rate.counter.bytes)),
            ("rate", format!("{} packets/s", units::rate(rate.packets_per_second))),
        ]
    }

    fn id(&self, row: usize) -> u64 {
        let this = &self.rates[row];
        id((this.reason.name(), place(&this.rate), this.is_audited))
    }

    fn packets_per_second(&self, row: usize) -> f64 {
        self.rates[row].rate.packets_per_second
    }
}
