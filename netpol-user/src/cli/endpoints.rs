use std::net::IpAddr;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::{Instance, Outcome, OutputArgs, output};
use crate::{
    datapath::Datapath,
    model::Labels,
    state::{Endpoint, Pending},
};

/// List endpoints: where they are, what isolates them, how packets reach them.
#[derive(Args)]
pub struct Endpoints {
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Serialize)]
struct Row<'a> {
    namespace: &'a str,
    name: &'a str,
    state: &'static str,
    labels: Labels,
    addresses: &'a [IpAddr],
    interface: &'a str,
    isolated: Isolated,
    /// `direct`, or why packets between endpoints go through the host.
    delivery: &'a str,
    /// The same for what passes the uplinks, where addresses are translated.
    outside: &'a str,
    /// Why the endpoint is pending.
    reason: Option<&'a str>,
}

#[derive(Clone, Copy, Serialize)]
struct Isolated {
    ingress: bool,
    egress: bool,
}

impl Endpoints {
    pub fn run(&self, instance: &Instance) -> Result<Outcome> {
        let instance = instance.open();
        let names = instance.names(&Datapath::open(&instance.pins)?)?;
        let rows: Vec<_> = names.endpoints.iter().map(running).chain(names.pending.iter().map(pending)).collect();
        output::print(self.output.output, &rows, |rows| table(rows))?;
        Ok(Outcome::Done)
    }
}

fn running(endpoint: &Endpoint) -> Row<'_> {
    Row {
        namespace: &endpoint.namespace,
        name: &endpoint.name,
        state: "running",
        labels: endpoint.labels.clone(),
        addresses: &endpoint.addresses,
        interface: &endpoint.interface,
        isolated: Isolated { ingress: endpoint.ingress, egress: endpoint.egress },
        delivery: endpoint.stack.as_deref().unwrap_or("direct"),
        outside: endpoint.stack.as_deref().or(endpoint.outside.as_deref()).unwrap_or("direct"),
        reason: None,
    }
}

fn pending(Pending { namespace, name, reason, held }: &Pending) -> Row<'_> {
    Row {
        namespace,
        name,
        state: "pending",
        labels: Labels::new(),
        addresses: &[],
        interface: held.as_ref().map_or("", |held| &held.interface),
        isolated: Isolated { ingress: false, egress: false },
        delivery: "",
        outside: "",
        reason: Some(reason),
    }
}

fn table(rows: &[Row<'_>]) -> String {
    let header = ["ENDPOINT", "STATE", "INTERFACE", "ADDRESSES", "ISOLATED", "DELIVERY"];
    let cells = rows.iter().map(|row| {
        let addresses = row.addresses.iter().filter(|a| !is_link_local(a)).map(ToString::to_string);
        let isolated = match row.isolated {
            Isolated { ingress: true, egress: true } => "both",
            Isolated { ingress: true, .. } => "ingress",
            Isolated { egress: true, .. } => "egress",
            _ => "-",
        };
        [
            format!("{}/{}", row.namespace, row.name),
            row.state.to_owned(),
            row.interface.to_owned(),
            addresses.collect::<Vec<_>>().join(","),
            isolated.to_owned(),
            row.reason.unwrap_or(row.delivery).to_owned(),
        ]
    });
    output::table(header, cells)
}

/// Every IPv6 interface has one: for people it only takes room.
fn is_link_local(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}
