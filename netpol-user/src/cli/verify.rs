use std::{path::PathBuf, time::Duration};

use anyhow::Result;
use clap::Args;

use super::{
    Instance, Outcome, OutputArgs,
    output::{self, Progress},
    question,
};
use crate::{
    source::{self, Known, Pending},
    verify::{self, Options, Port, Report, Row},
};

/// Prove the loaded policy by real connections between the endpoints.
///
/// Opens TCP and UDP connections from every running endpoint to every other one, with listeners of
/// its own where none listens, and compares what arrives with the matrix. Exits with 1 if anything
/// differs.
#[derive(Args)]
pub struct Verify {
    /// Policy files, and folders of them. Without any: the documents of the last load.
    path: Vec<PathBuf>,
    /// Port to try at every endpoint: 80/tcp, 53/udp; may be repeated. Default: the ports that each
    /// endpoint declares.
    #[arg(long, value_name = "PORT")]
    port: Vec<Port>,
    /// Silence for this long, in milliseconds, is a denial.
    #[arg(long, value_name = "MS", default_value_t = 400, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    timeout: u64,
    /// What has not been tried after this many seconds stays untried.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    deadline: u64,
    #[command(flatten)]
    output: OutputArgs,
}

impl Verify {
    pub fn run(&self, instance: &Instance) -> Result<Outcome> {
        let world = if self.path.is_empty() { question::loaded(instance)? } else { question::read(&self.path)? };
        let seen = instance.open().present()?.map(|names| names.seen).unwrap_or_default();
        let discovery = source::discover(&world, Known { seen: &seen, accept: false })?;
        for Pending { endpoint, reason } in &discovery.pending {
            let name = world.endpoints[*endpoint].name.to_string();
            eprintln!("warning: endpoint {} is pending: {}", output::escape(&name), output::escape(reason));
        }
        let options = Options {
            ports: self.port.clone(),
            timeout: Duration::from_millis(self.timeout),
            deadline: Duration::from_secs(self.deadline),
        };
        let progress = Progress::of("connections");
        let report = verify::verify(&world, &discovery, &options, &|done, all| progress.tell(done, all))?;
        drop(progress);
        output::print(self.output.output, &report, table)?;
        Ok(if report.ok { Outcome::Done } else { Outcome::DoesNotHold })
    }
}

fn table(report: &Report) -> String {
    let header = ["FROM", "TO", "PORT", "ADDRESS", "EXPECTED", "SEEN", "OK"];
    let rows = report.rows.iter().map(|row| {
        let Row { from, to, port, protocol, address, expected, observed, ok, note, .. } = row;
        let expected = match expected {
            verify::Verdict::Allowed => "allowed",
            verify::Verdict::Denied => "denied",
        };
        let seen = note.as_ref().map_or(observed.as_str().to_owned(), |note| format!("{}: {note}", observed.as_str()));
        let port = format!("{port}/{}", protocol.to_lowercase());
        let ok = if *ok { "yes" } else { "NO" };
        [from.clone(), to.clone(), port, address.to_string(), expected.to_owned(), seen, ok.to_owned()]
    });
    let listing = output::table(header, rows);
    let skipped: String = report.skipped.iter().map(|what| format!("not tried: {}\n", output::escape(what))).collect();
    let wrong = report.rows.iter().filter(|row| !row.ok).count();
    let tried = report.rows.len();
    let summary = match wrong {
        0 => format!("{tried} connections tried: all as the policies say."),
        _ => format!("{tried} connections tried: {wrong} not as the policies say."),
    };
    format!("{listing}{skipped}{summary}")
}
