//! `netpol top`: who talks to whom now, how much, and by which rule.
//!
//! | file | one idea |
//! |---|---|
//! | `feed` | threads that read: the kernel's memory, whether it is enforced, keys, signals |
//! | `app` | what is on the screen, and what a key does to it |
//! | `tables` | the tabs: columns, their order, their cells |
//! | `draw` | from that to characters |
//! | `terminal` | the terminal, given back however the program ends |
//! | `units` | numbers that fit into a column |

mod app;
mod draw;
mod feed;
mod tables;
mod terminal;
#[cfg(test)]
mod tests;
mod units;

use std::{
    io::{IsTerminal as _, stdin, stdout},
    time::Duration,
};

use anyhow::{Result, bail};
use clap::Args;
use serde::{Serialize, Serializer};

use super::{
    Format, Instance, Outcome,
    output::{self, escape},
};
use crate::{
    enforce,
    observe::{Condition, Connection, Filter, Sample},
};
use feed::Source;

/// Watch connections live: who talks to whom, how much, allowed or denied by which rule.
///
/// What the kernel remembers of flows and denials is read again and again; nothing is asked of the packet
/// path. Press ? for the keys.
#[derive(Args)]
pub struct Top {
    /// Time between two readings.
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    interval: Duration,
    /// Show only these: `from:shop/api to:10.0.0.0/8 port:5432 proto:tcp verdict:denied rule:default-deny`, or any
    /// text; `-` or `not` before a term turns it around.
    #[arg(long, value_name = "FILTER", default_value = "")]
    filter: Filter,
    /// Read twice, print the connections, and end: for scripts.
    #[arg(long)]
    once: bool,
    /// How to print.
    #[arg(short, long, value_enum, requires = "once")]
    output: Option<Format>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let wanted = "from 0.1 to 3600 seconds".to_owned();
    let seconds: f64 = text.parse().map_err(|_| wanted.clone())?;
    if (0.1..=3600.0).contains(&seconds) { Ok(Duration::from_secs_f64(seconds)) } else { Err(wanted) }
}

impl Top {
    pub fn run(&self, instance: &Instance) -> Result<Outcome> {
        let instance = instance.open();
        if self.once {
            return self.print(&instance);
        }
        if !stdin().is_terminal() || !stdout().is_terminal() {
            bail!("top needs a terminal; for scripts: netpol top --once -o json");
        }
        let events = feed::start(&instance, self.interval)?;
        let mut terminal = terminal::Terminal::take()?;
        app::App::new(self.filter.clone()).run(&events, &mut terminal)?;
        Ok(Outcome::Done)
    }

    fn print(&self, instance: &enforce::Instance) -> Result<Outcome> {
        let mut source = Source::new(instance);
        source.read()?;
        std::thread::sleep(self.interval);
        let sample = source.read()?;
        let report = Condition::of(instance)?;
        if !report.enforced {
            eprintln!("netpol: NOT ENFORCED: {}", escape(&report.problems.join("; ")));
        }
        let matches =
            |connection: &&Connection| self.filter.is_empty() || self.filter.matches(&connection.flow(&sample));
        let mut connections: Vec<_> = sample.connections.iter().filter(matches).collect();
        connections.sort_by(|a, b| b.packets_per_second.total_cmp(&a.packets_per_second));
        let listing = Listing { sample: &sample, connections };
        output::print(self.output.unwrap_or(Format::Table), &listing, Listing::table)?;
        Ok(Outcome::Done)
    }
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
                flow.drop_reason.unwrap_or(flow.verdict).to_owned(),
                flow.source.describe(),
                flow.destination.describe(),
                flow.protocol.to_string(),
                connection.tcp_state().map_or("-", |state| state.name()).to_owned(),
                units::rate(connection.packets_per_second),
                units::rate(connection.bytes_per_second),
                (flow.packets + connection.reply_packets).to_string(),
                (flow.bytes + connection.reply_bytes).to_string(),
                flow.explanation.to_string(),
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
