//! Who answers: every engine judges the same questions about the same world.

use anyhow::{Context as _, Result};
use netpol_common::{
    policy::Probe,
    tables::{IfIndex, Network, Subject},
};
use netpol_user::{
    compile::{Workload, compile, lookup::Tables},
    model::{Direction, Endpoint, Opening, Party, World, judge},
};

/// One connection to judge.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    pub from: Party,
    pub to: Party,
    pub opening: Opening,
}

/// A way to enforce policies.
pub trait Engine {
    /// Brings about `world`, and says of each connection whether it is allowed.
    fn verdicts(&mut self, world: &World, questions: &[Question]) -> Result<Vec<bool>>;

    /// Asks about one connection of the same world again, alone, and looks closely. `None`: it would
    /// be the same.
    fn again(&mut self, _question: &Question) -> Result<Option<Again>> {
        Ok(None)
    }
}

/// A second answer.
pub struct Again {
    pub allowed: bool,
    /// Sentences for people.
    pub seen: Vec<String>,
}

/// How to make an engine; each thread makes its own.
pub struct Maker<'a> {
    pub name: &'static str,
    pub make: Box<dyn Fn() -> Result<Box<dyn Engine + 'a>> + Sync + 'a>,
}

/// Needing neither root nor kernel.
pub fn offline() -> [Maker<'static>; 2] {
    [
        Maker { name: "interpreter", make: Box::new(|| Ok(Box::new(Interpreter))) },
        Maker { name: "compiled", make: Box::new(|| Ok(Box::new(Compiled))) },
    ]
}

/// The ordered rules, one by one: what `matrix` and `trace` answer.
struct Interpreter;

impl Engine for Interpreter {
    fn verdicts(&mut self, world: &World, questions: &[Question]) -> Result<Vec<bool>> {
        let allowed = |&Question { from, to, opening }: &Question| judge(world, from, to, opening).allowed();
        Ok(questions.iter().map(allowed).collect())
    }
}

/// The tables that the kernel would read, looked up on the host.
struct Compiled;

impl Engine for Compiled {
    fn verdicts(&mut self, world: &World, questions: &[Question]) -> Result<Vec<bool>> {
        let snapshot = compile(world, &running(world), &[])?;
        let tables = Tables::from(&snapshot);
        questions.iter().map(|question| looked_up(&tables, question)).collect()
    }
}

fn looked_up(tables: &Tables, &Question { from, to, opening }: &Question) -> Result<bool> {
    let identity = |party: Party| {
        let address = party.address().context("the tables know only ends with an address")?;
        Ok::<_, anyhow::Error>(tables.identity_of(Network::SHARED, address))
    };
    let (source, destination) = (identity(from)?, identity(to)?);
    let probe = probe(opening);
    let allowed = |direction| {
        let (party, subject, peer) = match direction {
            Direction::Egress => (from, Subject::egress(source), destination),
            Direction::Ingress => (to, Subject::ingress(destination), source),
        };
        // where the tables have nothing, no policy is about the endpoint
        let allowed = || tables.verdict(subject, peer, probe).is_none_or(|ruling| ruling.is_allowed());
        party.endpoint().is_none() || allowed()
    };
    Ok(allowed(Direction::Egress) && allowed(Direction::Ingress))
}

/// A first packet as the tables see it: ICMP's type and code are where others have a port.
fn probe(Opening { protocol, source_port, destination_port, icmp }: Opening) -> Probe {
    let message = icmp.map(|(kind, code)| u16::from_be_bytes([kind, code]));
    Probe { protocol, source_port, destination_port: message.unwrap_or(destination_port) }
}

/// Every endpoint that has an address, as if it were found on one bridge.
fn running(world: &World) -> Vec<Workload> {
    let found = world.endpoints.iter().enumerate().filter(|(_, endpoint)| !endpoint.addresses.is_empty());
    let workload = |((endpoint, of), ifindex): ((usize, &Endpoint), u32)| Workload {
        master: IfIndex(u32::MAX),
        segment: 1,
        ..Workload::at(endpoint, IfIndex(ifindex), of.addresses.clone())
    };
    found.zip(1..).map(workload).collect()
}
