use anyhow::Result;
use clap::Args;

use super::{Instance, Outcome, OutputArgs, output};
use crate::{
    datapath::Datapath,
    observe::{ServiceRow, census::Census},
};

/// List services: where each is published, who answers, and what is remembered of its connections.
///
/// Connections are those that are translated: open, unanswered (only the client has spoken) and closing. Packets and
/// bytes are those of the flows that the kernel remembers. What the host's own sockets exchange with a backend is in
/// neither: they are led there before there is a packet.
#[derive(Args)]
pub struct Services {
    #[command(flatten)]
    output: OutputArgs,
}

impl Services {
    pub fn run(&self, instance: &Instance) -> Result<Outcome> {
        let instance = instance.open();
        let datapath = Datapath::open(&instance.pins)?;
        let names = instance.names(&datapath)?;
        let mut census = Census::of(&names);
        if !census.is_empty() {
            datapath.each_pair(|pair| census.pair(&pair))?;
            datapath.each_record(|record| census.record(&record))?;
        }
        let uses = census.finish();
        let rows: Vec<_> =
            names.services.iter().zip(&uses).map(|(service, seen)| ServiceRow::new(service, seen)).collect();
        output::print(self.output.output, &rows, |rows| table(rows))?;
        Ok(Outcome::Done)
    }
}

fn table(rows: &[ServiceRow<'_>]) -> String {
    let header = ["SERVICE", "PORT", "PUBLISHED", "BACKENDS", "CONNECTIONS", "PACKETS", "BYTES", "AFFINITY"];
    let cells = rows.iter().map(|row| {
        [
            row.name(),
            row.port(),
            row.published(),
            row.answerers(),
            row.connected(),
            (row.packets + row.reply_packets).to_string(),
            (row.bytes + row.reply_bytes).to_string(),
            row.affinity.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds}s")),
        ]
    });
    output::table(header, cells)
}
