//! Proof by trial: opens the connections that policies are about, between the endpoints
//! themselves, and compares what happened with what [`model::judge`] says.
//!
//! All sockets are made inside the endpoints' namespaces by short visits, then driven together by
//! one thread: a socket stays where it was made. Everything of one batch waits at the same time,
//! so silence, which is what a denial looks like, costs one timeout per batch.
//!
//! [`model::judge`]: crate::model::judge

mod plan;
mod probe;

use std::{
    io,
    net::IpAddr,
    time::{Duration, Instant},
};

use serde::{Serialize, Serializer};

pub use plan::Port;

use crate::{
    model::{Opening, Party, World, judge},
    source::Discovery,
};
use plan::Question;
use probe::Answer;

/// What to try, and for how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// Tried at every endpoint; empty: each endpoint's own declared ports.
    pub ports: Vec<Port>,
    /// How long silence is awaited before it counts as a denial.
    pub timeout: Duration,
    /// What has not been tried after this time stays untried, and the report says so.
    pub deadline: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { ports: vec![], timeout: Duration::from_millis(400), deadline: Duration::from_secs(60) }
    }
}

/// What was tried, and whether all of it is as the policies say.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub ok: bool,
    pub rows: Vec<Row>,
    /// What could not be tried, and why.
    pub skipped: Vec<String>,
}

/// One connection.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// `namespace/name`
    pub from: String,
    pub to: String,
    pub port: u16,
    pub protocol: String,
    pub source_address: IpAddr,
    /// Of the destination.
    pub address: IpAddr,
    pub expected: Verdict,
    pub observed: Observed,
    pub ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Allowed,
    Denied,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observed {
    /// It arrived, and the answer came back.
    Allowed,
    /// Silence.
    Denied,
    /// Silence, or no way to try, for a reason that has nothing to do with policy: neither proves
    /// nor refutes.
    Unproven(&'static str),
    /// There was no time left.
    Untried,
    /// It could not even be tried.
    Failed(String),
}

impl Observed {
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Unproven(_) => "unproven",
            Self::Untried => "untried",
            Self::Failed(_) => "failed",
        }
    }

    const fn agrees_with(&self, expected: Verdict) -> bool {
        match self {
            Self::Allowed => matches!(expected, Verdict::Allowed),
            Self::Denied => matches!(expected, Verdict::Denied),
            Self::Unproven(_) => true,
            Self::Untried | Self::Failed(_) => false,
        }
    }

    fn note(&self) -> Option<String> {
        match self {
            Self::Allowed | Self::Denied => None,
            Self::Unproven(why) => Some((*why).to_owned()),
            Self::Untried => Some("no time left: raise the deadline, or name fewer ports".to_owned()),
            Self::Failed(error) => Some(error.clone()),
        }
    }
}

impl Serialize for Observed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("none of the endpoints is running here: nothing to connect")]
    NobodyRunning,
    #[error("no running endpoint declares a TCP or UDP port: name one, like `--port 80/tcp`")]
    NoPorts,
    #[error("can't enter the network namespace of endpoint {endpoint}")]
    Namespace {
        endpoint: String,
        #[source]
        error: io::Error,
    },
    #[error("can't drive sockets")]
    Runtime(#[from] io::Error),
}

/// At most this many connections wait at the same time: each takes up to three descriptors.
const BATCH: usize = 256;
/// What disagrees is tried again with this much more patience: on a busy machine an answer may be
/// late, and only silence can be misread.
const PATIENCE: u32 = 5;

const FAR: &str = "they are on different networks, and the host may not route between them";

/// Tries every connection between the endpoints that were found. `progress` hears how many of how
/// many are done. Takes a batch's timeout, and a second try, longer than the deadline at most.
pub fn verify(
    world: &World,
    discovery: &Discovery,
    options: &Options,
    progress: &dyn Fn(usize, usize),
) -> Result<Report, Error> {
    if discovery.workloads.is_empty() {
        return Err(Error::NobodyRunning);
    }
    let (questions, skipped) = plan::questions(world, discovery, &options.ports);
    if questions.is_empty() && discovery.workloads.len() > 1 && skipped.is_empty() {
        return Err(Error::NoPorts);
    }
    let end = Instant::now() + options.deadline;
    let mut rows = Vec::with_capacity(questions.len());
    for batch in questions.chunks(BATCH) {
        progress(rows.len(), questions.len());
        rows.extend(ask_twice(world, batch, (options.timeout, end))?);
    }
    progress(questions.len(), questions.len());
    Ok(Report { ok: rows.iter().all(|row| row.ok), rows, skipped })
}

/// Asks everything once, and again what disagrees.
fn ask_twice(world: &World, batch: &[Question], (timeout, end): (Duration, Instant)) -> Result<Vec<Row>, Error> {
    let untried = || Answer { source_port: 0, observed: Observed::Untried };
    let ask = |batch: &[Question], timeout| match Instant::now() < end {
        true => probe::ask(world, batch, timeout),
        false => Ok(batch.iter().map(|_| untried()).collect()),
    };
    let answers = ask(batch, timeout)?;
    let mut rows: Vec<_> = batch.iter().zip(answers).map(|(question, answer)| row(world, question, answer)).collect();
    let doubtful: Vec<_> = (0..rows.len()).filter(|&index| !rows[index].ok).collect();
    if doubtful.is_empty() {
        return Ok(rows);
    }
    let again: Vec<_> = doubtful.iter().map(|&index| batch[index]).collect();
    for ((index, question), answer) in doubtful.into_iter().zip(&again).zip(ask(&again, timeout * PATIENCE)?) {
        if answer.observed != Observed::Untried {
            rows[index] = row(world, question, answer);
        }
    }
    Ok(rows)
}

fn row(world: &World, question: &Question, Answer { source_port, observed }: Answer) -> Row {
    let Question { from, to, far, source, destination, port } = *question;
    let party = |(_, index), address| Party::Endpoint { index, address: Some(address) };
    let opening = Opening { protocol: port.protocol, source_port, destination_port: port.number, icmp: None };
    let judgement = judge(world, party(from, source), party(to, destination), opening);
    let expected = if judgement.allowed() { Verdict::Allowed } else { Verdict::Denied };
    let observed = match (observed, expected) {
        (Observed::Denied, Verdict::Allowed) if far => Observed::Unproven(FAR),
        (observed, _) => observed,
    };
    Row {
        from: world.endpoints[from.1].name.to_string(),
        to: world.endpoints[to.1].name.to_string(),
        port: port.number,
        protocol: port.protocol.to_string(),
        source_address: source,
        address: destination,
        expected,
        ok: observed.agrees_with(expected),
        note: observed.note(),
        observed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_contradicts_or_was_not_tried_disagrees() {
        for (observed, with_allowed, with_denied) in [
            (Observed::Allowed, true, false),
            (Observed::Denied, false, true),
            (Observed::Unproven("no route"), true, true),
            (Observed::Untried, false, false),
            (Observed::Failed(String::new()), false, false),
        ] {
            assert_eq!(observed.agrees_with(Verdict::Allowed), with_allowed, "{observed:?}");
            assert_eq!(observed.agrees_with(Verdict::Denied), with_denied, "{observed:?}");
        }
    }
}
