mod document;

use std::{
    io::{self, Write as _},
    time::SystemTime,
};

use anyhow::Result;
use clap::{Args, ValueEnum};
use document::Document;
use serde::{Serialize, Serializer};

use super::{Format, Instance, Outcome, OutputArgs, output};
use crate::{
    datapath::{Datapath, Record},
    observe::{Filter, Flow, Leaving, Reader},
};

/// List the flows that the kernel remembers, with the rule behind each verdict.
#[derive(Args)]
pub struct Flows {
    /// Only these.
    #[arg(long, value_enum)]
    verdict: Option<Wanted>,
    /// Only flows for which this holds: `from:shop/api to:10.0.0.0/8 port:5432 proto:tcp verdict:denied
    /// rule:default-deny`, or any text; `-` or `not` before a term turns it around.
    #[arg(long, value_name = "FILTER")]
    filter: Option<Filter>,
    /// Replies, and verdicts of earlier policies, too (JSON and YAML always have them), what is translated
    /// where, and what passes interfaces to the outside.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Wanted {
    Allowed,
    Denied,
    /// Allowed, and audited policies would deny it.
    WouldDrop,
}

/// Records, each of which becomes a flow when it is written: there may be a million.
struct Listing {
    reader: Reader,
    now: SystemTime,
    records: Vec<Record>,
}

impl Flows {
    pub fn run(&self, instance: &Instance) -> Result<Outcome> {
        let instance = instance.open();
        let datapath = Datapath::open(&instance.pins)?;
        let reader = Reader::new(instance.names(&datapath)?.into());
        let mut listing = Listing { reader, now: SystemTime::now(), records: datapath.records()? };
        let Listing { reader, now, records } = &mut listing;
        records.retain(|record| {
            (self.all || !reader.only_passes(record)) && self.wants(record, || reader.flow(record, *now))
        });
        records.sort_unstable_by_key(|record| record.idle);
        match self.output.output {
            Format::Json => listing.json()?,
            format => output::print(format, &listing, |listing| self.table(listing))?,
        }
        Ok(Outcome::Done)
    }

    fn wants<'a>(&self, record: &Record, flow: impl FnOnce() -> Flow<'a>) -> bool {
        let verdict = match self.verdict {
            None => true,
            Some(Wanted::Allowed) => record.denied.is_none(),
            Some(Wanted::Denied) => record.denied.is_some(),
            Some(Wanted::WouldDrop) => record.audited.is_some(),
        };
        verdict && self.filter.as_ref().is_none_or(|filter| filter.matches(&flow()))
    }

    /// With what becomes of the packet: `10.96.0.1:80 => 10.0.0.1:40000 > 10.0.0.2:8080`.
    fn destination(&self, flow: &Flow) -> String {
        let to = flow.destination.describe();
        match flow.translated {
            Some(Leaving { source, destination }) if self.all => format!("{to} => {source} > {destination}"),
            _ => to,
        }
    }

    fn table(&self, listing: &Listing) -> String {
        let header = ["VERDICT", "FROM", "TO", "PROTOCOL", "PACKETS", "BYTES", "RULE"];
        let shown = listing.flows().filter(|flow| self.all || (flow.current && !flow.is_reply));
        let cells = shown.map(|flow| {
            let allowed = if flow.would_drop.is_some() { "would-drop" } else { flow.verdict };
            let verdict = flow.drop_reason.unwrap_or(allowed);
            [
                verdict.to_owned(),
                flow.source.describe(),
                self.destination(&flow),
                flow.protocol.to_string(),
                flow.packets.to_string(),
                flow.bytes.to_string(),
                flow.audit_explanation.unwrap_or(flow.explanation).to_string(),
            ]
        });
        output::table(header, cells)
    }
}

impl Listing {
    fn flows(&self) -> impl Iterator<Item = Flow<'_>> {
        self.records.iter().map(|record| self.reader.flow(record, self.now))
    }

    fn json(&self) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let mut document = Document::new(&mut out);
        self.flows().try_for_each(|flow| document.flow(&flow))?;
        document.finish()?;
        out.write_all(b"\n")?;
        out.flush()
    }
}

impl Serialize for Listing {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.flows())
    }
}
