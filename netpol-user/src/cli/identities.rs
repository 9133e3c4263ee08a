use anyhow::Result;
use clap::Args;
use netpol_common::tables::Identity;
use serde::Serialize;

use super::{Instance, Outcome, OutputArgs, output};
use crate::datapath::Datapath;

/// List identities: who the loaded policies can't tell apart.
#[derive(Args)]
pub struct Identities {
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Serialize)]
struct Row {
    identity: u32,
    endpoints: Vec<String>,
    networks: Vec<String>,
}

impl Identities {
    pub fn run(&self, instance: &Instance) -> Result<Outcome> {
        let instance = instance.open();
        let names = instance.names(&Datapath::open(&instance.pins)?)?;
        let reserved = [(Identity::HOST, "the host"), (Identity::WORLD, "every other address")].map(|(id, who)| Row {
            identity: id.0,
            endpoints: vec![],
            networks: vec![who.into()],
        });
        let named = (Identity::FIRST.0..).zip(names.identities).map(|(identity, name)| Row {
            identity,
            endpoints: name.endpoints,
            networks: name.networks,
        });
        let rows: Vec<_> = reserved.into_iter().chain(named).collect();
        output::print(self.output.output, &rows, |rows| {
            let cells = rows.iter().map(|Row { identity, endpoints, networks }| {
                [identity.to_string(), [endpoints.clone(), networks.clone()].concat().join(" ")]
            });
            output::table(["IDENTITY", "WHO"], cells)
        })?;
        Ok(Outcome::Done)
    }
}
