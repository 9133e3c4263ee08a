//! A tab for scripts: printed once, as a table, as JSON or as YAML.

use anyhow::Result;
use serde::{Serialize, Serializer};

use super::{
    tables::{DropTable, Dropped, EndpointTable, RuleTable, ServiceTable, Tab, Table, drops},
    units,
};
use crate::{
    cli::{Format, output},
    datapath::Side,
    observe::{
        Connection, Filter, Sample, ServiceRow,
        summary::{self, Sum},
    },
    state::Rule,
};

/// Prints what a tab shows of a reading. Services and drops are counted by the kernel for all: the filter is about flows.
pub fn print(sample: &Sample, tab: Tab, filter: &Filter, format: Format) -> Result<()> {
    let matches = |connection: &&Connection| filter.is_empty() || filter.matches(&connection.flow(sample));
    let matching = sample.connections.iter().filter(matches);
    let names = sample.reader.names();
    match tab {
        Tab::Flows => {
            let mut connections: Vec<_> = matching.collect();
            connections.sort_by(|a, b| b.packets_per_second.total_cmp(&a.packets_per_second));
            output::print(format, &Listing { sample, connections }, Listing::table)
        }
        Tab::Endpoints => {
            let sums = summary::endpoints(names, matching);
            let rows = names.endpoints.iter().zip(&sums).map(|(endpoint, sum)| EndpointRow {
                namespace: &endpoint.namespace,
                name: &endpoint.name,
                allowed: sum.allowed,
                denied: sum.denied,
            });
            output::print(format, &rows.collect::<Vec<_>>(), |_| text(&EndpointTable { names, sums: &sums }))
        }
        Tab::Rules => {
            let sums = summary::rules(names, matching);
            let row = |(rule, sum): (_, &summary::RuleSum)| RuleRow { rule, verdict: sum.verdict, sum: sum.sum };
            let rows: Vec<_> = names.rules.iter().zip(&sums).map(row).collect();
            output::print(format, &rows, |_| text(&RuleTable { names, sums: &sums }))
        }
        Tab::Drops => {
            let rates = drops(sample);
            let rows = rates.iter().map(|Dropped { reason, rate, is_audited }| DropRow {
                reason: reason.name(),
                verdict: if *is_audited { "would-drop" } else { "dropped" },
                direction: match rate.counter.side {
                    Side::From => "egress",
                    Side::To => "ingress",
                },
                packets: rate.counter.packets,
                bytes: rate.counter.bytes,
                packets_per_second: rate.packets_per_second,
            });
            output::print(format, &rows.collect::<Vec<_>>(), |_| text(&DropTable { rates: &rates }))
        }
        Tab::Services => {
            let uses = &sample.services;
            let row = |(service, seen)| ServiceRow::new(service, seen).paced(seen);
            let rows: Vec<_> = names.services.iter().zip(uses).map(row).collect();
            output::print(format, &rows, |_| text(&ServiceTable { names, uses }))
        }
    }
}

#[derive(Serialize)]
struct EndpointRow<'a> {
    namespace: &'a str,
    name: &'a str,
    allowed: Sum,
    denied: Sum,
}

#[derive(Serialize)]
struct RuleRow<'a> {
    rule: &'a Rule,
    verdict: Option<&'static str>,
    #[serde(flatten)]
    sum: Sum,
}

#[derive(Serialize)]
struct DropRow {
    reason: &'static str,
    verdict: &'static str,
    direction: &'static str,
    packets: u64,
    bytes: u64,
    packets_per_second: f64,
}

/// All columns of a tab.
fn text(table: &dyn Table) -> String {
    let columns = table.columns();
    let cells = (0..table.rows()).map(|row| (0..columns.len()).map(|column| table.cell(column, row)).collect());
    output::rows(columns.iter().map(|column| column.title).collect(), cells)
}

/// Connections, each of which becomes a row when it is written.
struct Listing<'a> {
    sample: &'a Sample,
    connections: Vec<&'a Connection>,
}

impl Listing<'_> {
    fn table(&self) -> String {
        let header = ["VERDICT", "FROM", "TO", "PROTOCOL", "STATE", "PKT/S", "B/S", "PACKETS", "BYTES", "RULE"];
        let cells = self.connections.iter().map(|connection| {
            let flow = connection.flow(self.sample);
            [
                flow.drop_reason
                    .unwrap_or(if flow.would_drop.is_some() { "would-drop" } else { flow.verdict })
                    .to_owned(),
                flow.source.describe(),
                flow.destination.describe(),
                flow.protocol.to_string(),
                connection.tcp_state().map_or("-", |state| state.name()).to_owned(),
                units::rate(connection.packets_per_second),
                units::rate(connection.bytes_per_second),
                (flow.packets + connection.reply_packets).to_string(),
                (flow.bytes + connection.reply_bytes).to_string(),
                flow.audit_explanation.unwrap_or(flow.explanation).to_string(),
            ]
        });
        output::table(header, cells)
    }
}

impl Serialize for Listing<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.connections.iter().map(|connection| connection.row(self.sample)))
    }
}
