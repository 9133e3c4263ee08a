use std::collections::HashMap;

use anyhow::Result;
use clap::Args;

use super::{Instance, Outcome, OutputArgs, output};
use crate::{
    datapath::{self, Datapath},
    observe::{ServiceRow, census::Census},
    sockets::{self, Connected},
};

/// List services: where each is published, who answers, and what is remembered of its connections.
///
/// Connections are those that are translated: open, unanswered (only the client has spoken) and closing. Packets and
/// bytes are those of the flows that the kernel remembers. The host's own sockets are led to a backend before there is a
/// packet: they are counted by themselves, and what they exchange is not.
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
            host(&datapath, &mut census)?;
        }
        let uses = census.finish();
        let rows: Vec<_> =
            names.services.iter().zip(&uses).map(|(service, seen)| ServiceRow::new(service, seen)).collect();
        output::print(self.output.output, &rows, |rows| table(rows))?;
        Ok(Outcome::Done)
    }
}

/// The host's own sockets that were led to a backend, and are connected with it now.
fn host(datapath: &Datapath, census: &mut Census) -> Result<(), datapath::Error> {
    let mut led = HashMap::new();
    datapath.each_asked(|asked| {
        let datapath::Asked { cookie, protocol, backend, backend_port, .. } = asked;
        led.insert(Connected { cookie, protocol, peer: backend, peer_port: backend_port }, asked);
    })?;
    let mut connected = Vec::new();
    if led.is_empty() || sockets::each(|socket| connected.extend(led.get(socket))).is_ok() {
        census.looks_at_host();
        connected.iter().for_each(|asked| census.socket(asked));
    }
    Ok(())
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
