use std::collections::HashSet;

use anyhow::Result;
use clap::Args;

use super::{Instance, Outcome, OutputArgs, output};
use crate::{
    datapath::Datapath,
    state::{Backend, Place, Service},
};

/// List services: where each is published, and who answers.
#[derive(Args)]
pub struct Services {
    #[command(flatten)]
    output: OutputArgs,
}

impl Services {
    pub fn run(&self, instance: &Instance) -> Result<Outcome> {
        let instance = instance.open();
        let names = instance.names(&Datapath::open(&instance.pins)?)?;
        output::print(self.output.output, &names.services, |services| table(services))?;
        Ok(Outcome::Done)
    }
}

fn table(services: &[Service]) -> String {
    let header = ["SERVICE", "PORT", "PUBLISHED", "BACKENDS", "AFFINITY"];
    let cells = services.iter().map(|service| {
        let Service { namespace, name, port_name, port, protocol, affinity, addresses, backends } = service;
        let number = format!("{port}/{}", protocol.to_lowercase());
        [
            format!("{namespace}/{name}"),
            port_name.as_ref().map_or(number.clone(), |port_name| format!("{port_name} {number}")),
            list(addresses.iter().map(|Place { address, port }| endpoint(&address.to_string(), *port))),
            list(backends.iter().map(backend)),
            affinity.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds}s")),
        ]
    });
    output::table(header, cells)
}

/// Who it is, and its state where it gets no packets.
fn backend(Backend { endpoint, address, port, weight, state }: &Backend) -> String {
    let unnamed = || address.map_or_else(String::new, |address| address.to_string());
    let who = self::endpoint(&endpoint.clone().unwrap_or_else(unnamed), *port);
    let weight = if *weight == 1 { String::new() } else { format!("*{weight}") };
    let state = if state.answers() { String::new() } else { format!(" ({})", state.as_str()) };
    format!("{who}{weight}{state}")
}

fn endpoint(who: &str, port: u16) -> String {
    // only addresses of IPv6 have two colons
    if who.matches(':').count() > 1 { format!("[{who}]:{port}") } else { format!("{who}:{port}") }
}

/// What comes twice (an endpoint, by its addresses of both families) is said once.
fn list(items: impl Iterator<Item = String>) -> String {
    let mut seen = HashSet::new();
    let items: Vec<_> = items.filter(|item| seen.insert(item.clone())).collect();
    if items.is_empty() { "-".to_owned() } else { items.join(",") }
}
