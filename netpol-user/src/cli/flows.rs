use anyhow::Result;
use clap::{Args, ValueEnum};

use super::{Instance, Outcome, OutputArgs, output};
use crate::{
    datapath::Datapath,
    observe::{Flow, Reader},
};

/// List the flows that the kernel remembers, with the rule behind each verdict.
#[derive(Args)]
pub struct Flows {
    /// Only these.
    #[arg(long, value_enum)]
    verdict: Option<Wanted>,
    /// Replies, and verdicts of earlier policies, too. (JSON and YAML always have them.)
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Wanted {
    Allowed,
    Denied,
}

impl Flows {
    pub fn run(&self, instance: &Instance) -> Result<Outcome> {
        let instance = instance.open();
        let datapath = Datapath::open(&instance.pins)?;
        let names = instance.names(&datapath)?;
        let reader = Reader::new(&names);
        let mut flows: Vec<_> = datapath.records()?.iter().map(|record| reader.flow(record)).collect();
        flows.retain(|flow| self.wants(flow));
        flows.sort_by(|a, b| a.idle_seconds.total_cmp(&b.idle_seconds));
        output::print(self.output.output, &flows, |flows| self.table(flows))?;
        Ok(Outcome::Done)
    }

    fn wants(&self, flow: &Flow) -> bool {
        match self.verdict {
            None => true,
            Some(Wanted::Allowed) => flow.verdict == "allowed",
            Some(Wanted::Denied) => flow.verdict == "denied",
        }
    }

    fn table(&self, flows: &[Flow]) -> String {
        let header = ["VERDICT", "FROM", "TO", "PROTOCOL", "PACKETS", "BYTES", "RULE"];
        let shown = flows.iter().filter(|flow| self.all || (flow.current && !flow.is_reply));
        let cells = shown.map(|flow| {
            let verdict = flow.drop_reason.unwrap_or(flow.verdict);
            [
                verdict.to_owned(),
                flow.source.describe(),
                flow.destination.describe(),
                flow.protocol.clone(),
                flow.packets.to_string(),
                flow.bytes.to_string(),
                flow.rule.as_ref().map_or_else(|| "no policy".to_owned(), |rule| rule.describe()),
            ]
        });
        output::table(header, cells)
    }
}
