//! `netpol top`: who talks to whom now, how much, and by which rule.
//!
//! | file | one idea |
//! |---|---|
//! | `feed` | threads that read: the kernel's memory, whether it is enforced, keys, signals |
//! | `app` | what is on the screen, and what a key does to it |
//! | `tables` | the tabs: columns, their order, their cells |
//! | `draw` | from that to characters |
//! | `once` | a tab for scripts |
//! | `terminal` | the terminal, given back however the program ends |
//! | `units` | numbers that fit into a column |

mod app;
mod draw;
mod feed;
mod once;
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

use super::{Format, Instance, Outcome, output::escape};
use crate::{
    enforce,
    observe::{Condition, Filter},
};
use feed::Source;
use tables::Tab;

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
    /// What to show first, or to print.
    #[arg(long, value_enum, default_value_t = Tab::Flows)]
    tab: Tab,
    /// Read twice, print the tab, and end: for scripts.
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
        app::App::new(self.tab, self.filter.clone()).run(&events, &mut terminal)?;
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
        once::print(&sample, self.tab, &self.filter, self.output.unwrap_or(Format::Table))?;
        Ok(Outcome::Done)
    }
}
