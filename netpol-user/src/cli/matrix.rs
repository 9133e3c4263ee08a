use std::{net::IpAddr, path::PathBuf};

use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;

use super::{
    Outcome, OutputArgs,
    grid::{Canvas, Cell, Grid, legend},
    output::{self, escape},
    question,
};
use crate::model::{
    World,
    probe::{Place, Probe},
    row::{Row, Traffic, audited, rows},
};

/// Show who may talk to whom, computed without root or kernel.
///
/// Every ordered pair of different endpoints, and every endpoint with every --outside address in
/// both directions, is judged for every port.
#[derive(Args)]
pub struct Matrix {
    /// Policy files, and folders of them.
    #[arg(required = true)]
    path: Vec<PathBuf>,
    /// Port to judge: 80/tcp, 53/udp, 9/sctp, icmp (an echo request), icmp/TYPE/CODE; may be
    /// repeated. Default: every port that any endpoint declares.
    #[arg(long, value_name = "PORT")]
    port: Vec<Probe>,
    /// An address that no endpoint has, to judge as one more peer; may be repeated.
    #[arg(long, value_name = "ADDRESS")]
    outside: Vec<IpAddr>,
    /// The client's port. Default: one that the system would choose.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    source_port: Option<u16>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Every verdict, as scripts read it.
#[derive(Debug, Serialize)]
struct Listing<'a> {
    rows: Vec<&'a Row>,
}

impl Matrix {
    pub fn run(&self) -> Result<Outcome> {
        let world = question::read(&self.path)?;
        let places = self.places(&world)?;
        let verdicts: Vec<_> =
            self.probes(&world)?.into_iter().map(|probe| self.verdicts(&world, &places, probe)).collect();
        let rows = verdicts.iter().flat_map(|verdicts| verdicts.rows.iter().flatten().flatten());
        let listing = Listing { rows: rows.collect() };
        output::print(self.output.output, &listing, |_| table(&world, &places, &verdicts))?;
        Ok(Outcome::Done)
    }

    fn places(&self, world: &World) -> Result<Vec<Place>> {
        let endpoints = (0..world.endpoints.len()).map(|index| Ok(Place::Endpoint(index)));
        let mut addresses = self.outside.clone();
        addresses.sort_unstable();
        addresses.dedup();
        endpoints.chain(addresses.into_iter().map(|address| question::outside(world, address))).collect()
    }

    fn probes(&self, world: &World) -> Result<Vec<Probe>> {
        let mut probes = self.port.clone();
        if probes.is_empty() {
            probes = Probe::declared(world);
        }
        if probes.is_empty() && !world.endpoints.is_empty() {
            bail!("no endpoint declares a port: say which one to judge, like `--port 80/tcp`");
        }
        probes.sort_unstable();
        probes.dedup();
        Ok(probes)
    }

    fn verdicts(&self, world: &World, places: &[Place], probe: Probe) -> Verdicts {
        let traffic = Traffic { probe, source_port: self.source_port };
        let judged = |from: Place, to: Place| from != to && (from.endpoint().is_some() || to.endpoint().is_some());
        let between = |from, to| if judged(from, to) { rows(world, from, to, traffic) } else { vec![] };
        let of = |&from: &Place| places.iter().map(|&to| between(from, to)).collect();
        Verdicts { probe, rows: places.iter().map(of).collect() }
    }
}

/// All verdicts about one port.
struct Verdicts {
    probe: Probe,
    /// `rows[from][to]`: one for most pairs, none where nobody judges.
    rows: Vec<Vec<Vec<Row>>>,
}

fn table(world: &World, places: &[Place], verdicts: &[Verdicts]) -> String {
    if world.endpoints.is_empty() {
        return "The documents hold no endpoint: nobody to judge.".to_owned();
    }
    let names = names(world, places);
    let grid = |Verdicts { probe, rows }: &Verdicts| Grid {
        title: probe.to_string(),
        names: &names,
        cells: rows.iter().map(|row| row.iter().map(|rows| cell(rows)).collect()).collect(),
    };
    let grids: Vec<_> = verdicts.iter().map(grid).collect();
    let canvas = Canvas::of_stdout();
    let audited: Vec<_> = audited(world).map(|policy| format!("  {}\n", escape(&policy.to_string()))).collect();
    let note = (!audited.is_empty()).then(|| format!("audited, not enforced:\n{}", audited.concat()));
    let text: Vec<_> = grids.iter().map(|grid| grid.render(canvas)).chain([legend(&grids)]).chain(note).collect();
    text.join("\n")
}

/// As short as they can be: without the namespace where all endpoints share one.
fn names(world: &World, places: &[Place]) -> Vec<String> {
    let first = world.endpoints.first().map(|endpoint| &endpoint.name.namespace);
    let shared = world.endpoints.iter().all(|endpoint| Some(&endpoint.name.namespace) == first);
    let name = |place: &Place| match *place {
        Place::Outside(address) => address.to_string(),
        Place::Endpoint(index) | Place::At { endpoint: index, .. } if shared => {
            world.endpoints[index].name.name.clone()
        }
        Place::Endpoint(index) | Place::At { endpoint: index, .. } => world.endpoints[index].name.to_string(),
    };
    places.iter().map(name).collect()
}

fn cell(rows: &[Row]) -> Cell {
    let allowed = rows.iter().filter(|row| row.allowed).count();
    let is_audited_otherwise = |row: &Row| row.audit.as_ref().is_some_and(|audit| audit.allowed != row.allowed);
    match rows.len() {
        0 => Cell::Nothing,
        all if (allowed == 0 || allowed == all) && rows.iter().any(is_audited_otherwise) => {
            if allowed == 0 {
                Cell::WouldAllow
            } else {
                Cell::WouldDeny
            }
        }
        _ if allowed == 0 => Cell::Denied,
        all if all == allowed => Cell::Allowed,
        _ => Cell::Mixed,
    }
}
