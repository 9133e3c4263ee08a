use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{
    Instance, Outcome, OutputArgs,
    diagnostics::{self, Line},
    output::{self, Progress, counted},
    question,
};
use crate::{
    datapath::{Settings, Way},
    enforce::{Options, Report, Timings},
    model::Pool,
    state::Pending,
};

/// Enforce exactly what PATH... says: what it no longer holds is gone.
///
/// Validates, finds the endpoints, compiles, and switches to the new policy with one write. Nothing
/// needs to run afterwards. A load that fails changes nothing.
#[derive(Args)]
pub struct Load {
    /// Policy files, and folders of them: the whole desired state.
    #[arg(required = true)]
    path: Vec<PathBuf>,
    /// Say what would change, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Judge all policies for information only: nothing is stopped. `netpol diff --audit` says what
    /// would be.
    #[arg(long)]
    audit: bool,
    /// Endpoints that are not running are an error.
    #[arg(long)]
    strict: bool,
    /// Believe the addresses that interfaces have now, also those that they were first seen without.
    #[arg(long)]
    accept_addresses: bool,
    /// How packets between two endpoints travel.
    #[arg(long, value_enum, default_value_t = Forwarding::Direct)]
    forwarding: Forwarding,
    /// How the classifiers are put on interfaces.
    #[arg(long, value_enum, default_value_t = Attach::Auto)]
    attach: Attach,
    /// Police what the host itself sends to containers, too. By default a host reaches its own.
    #[arg(long)]
    police_host: bool,
    /// Do not limit how fast a container may open connections (50,000 a second).
    #[arg(long)]
    unlimited_flows: bool,
    /// Room for so many flows (up to the next multiple of 32), of IPv6 half as many: entries of 98 bytes (IPv6: 146), two
    /// for a connection. As long as anything is loaded, it stays what it is. [default: 262144]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1_024..=16_777_216))]
    flows: Option<u32>,
    /// An interface to the outside (may be given again). By default: those with a default route.
    #[arg(long, value_name = "NAME")]
    uplink: Vec<String>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Forwarding {
    /// Straight from one to the other where the host would only have passed them on.
    Direct,
    /// Always through the host's bridge or routing.
    Stack,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Attach {
    /// By TCX where the kernel has it, else by cls.
    Auto,
    /// Linux 6.6 and later: the cheaper one for each packet.
    Tcx,
    /// A clsact qdisc and its filters, as on older kernels.
    Cls,
}

#[derive(Serialize)]
struct Json<'a> {
    generation: u32,
    endpoints: usize,
    identities: usize,
    policies: usize,
    audited: usize,
    changed: bool,
    dry_run: bool,
    attached: &'a [String],
    detached: usize,
    pending: &'a [Pending],
    warnings: Vec<Line<'a>>,
    uplinks: &'a [String],
    closed_sockets: usize,
    timings: Milliseconds,
}

#[derive(Serialize)]
struct Milliseconds {
    read_ms: f64,
    discover_ms: f64,
    compile_ms: f64,
    open_ms: f64,
    attach_ms: f64,
    publish_ms: f64,
}

impl Load {
    pub fn run(&self, instance: &Instance) -> Result<Outcome> {
        let begin = Instant::now();
        let loaded = question::load(&self.path)?;
        let read = begin.elapsed();
        let progress = Progress::of("attaching");
        let report = instance.open().load(&loaded, &self.options(), &|done, all| progress.tell(done, all))?;
        drop(progress);
        if !report.warnings.is_empty() {
            eprintln!("{}", diagnostics::render_warnings(&report.warnings, &loaded.sources));
        }
        let translates = loaded.world.pools.iter().any(Pool::masquerades);
        output::print(self.output.output, &self.json(&report, read), |_| self.text(&report, translates))?;
        Ok(Outcome::Done)
    }

    fn options(&self) -> Options {
        let chosen = [
            (self.forwarding == Forwarding::Stack, Settings::STACK),
            (self.police_host, Settings::POLICE_HOST),
            (self.unlimited_flows, Settings::UNLIMITED),
        ];
        let settings = chosen.into_iter().filter(|(on, _)| *on).fold(Settings::default(), |all, (_, s)| all.with(s));
        let attach = match self.attach {
            Attach::Auto => None,
            Attach::Tcx => Some(Way::Tcx),
            Attach::Cls => Some(Way::Cls),
        };
        Options {
            settings,
            attach,
            audit: self.audit,
            strict: self.strict,
            uplinks: self.uplink.clone(),
            accept_addresses: self.accept_addresses,
            flows: self.flows,
            dry_run: self.dry_run,
        }
    }

    fn json<'a>(&self, report: &'a Report, read: Duration) -> Json<'a> {
        let Report {
            generation,
            endpoints,
            identities,
            policies,
            audited,
            changed,
            attached,
            detached,
            pending,
            warnings,
            uplinks,
            closed_sockets,
            timings,
        } = report;
        let ms = |time: Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
        let Timings { discover, compile, open, attach, publish } = *timings;
        Json {
            generation: *generation,
            endpoints: *endpoints,
            identities: *identities,
            policies: *policies,
            audited: *audited,
            changed: *changed,
            dry_run: self.dry_run,
            attached,
            detached: *detached,
            pending,
            warnings: warnings.iter().map(Line::from).collect(),
            uplinks,
            closed_sockets: *closed_sockets,
            timings: Milliseconds {
                read_ms: ms(read),
                discover_ms: ms(discover),
                compile_ms: ms(compile),
                open_ms: ms(open),
                attach_ms: ms(attach),
                publish_ms: ms(publish),
            },
        }
    }

    fn text(&self, report: &Report, translates: bool) -> String {
        let Report { generation, endpoints, identities, policies, changed, attached, detached, pending, .. } = report;
        let verb = match (self.dry_run, changed, self.audit) {
            (true, true, false) => "would enforce",
            (true, true, true) => "would audit",
            (true, false, _) => "would change nothing:",
            (false, true, false) => "enforcing",
            (false, true, true) => "auditing",
            (false, false, _) => "nothing changed:",
        };
        let mut lines = vec![format!(
            "{verb} {}{} for {} ({}), generation {generation}",
            counted(*policies, "policy", "policies"),
            output::audited(report.audited),
            counted(*endpoints, "endpoint", "endpoints"),
            counted(*identities, "identity", "identities"),
        )];
        if self.audit {
            lines.push(
                "nothing is stopped: `netpol diff --audit` says what would be, `netpol flows --verdict would-drop` what \
                 would have been"
                    .to_owned(),
            );
        }
        if !attached.is_empty() {
            lines.push(format!("attached to {}", attached.join(" ")));
        }
        if *detached > 0 {
            lines.push(format!("detached from {}", counted(*detached, "interface", "interfaces")));
        }
        if report.closed_sockets > 0 {
            let closed = counted(report.closed_sockets, "socket", "sockets");
            lines.push(format!("closed {closed} of the host's own that were connected with former backends"));
        }
        match (translates, &report.uplinks[..]) {
            (true, []) => lines.push("no uplink: nothing is masqueraded; name one by --uplink".to_owned()),
            (true, uplinks) => lines.push(format!("uplink {}", uplinks.join(" "))),
            (false, _) => {}
        }
        if !pending.is_empty() {
            let pending = counted(pending.len(), "endpoint is", "endpoints are");
            lines.push(format!("{pending} pending; `netpol status` says why"));
        }
        lines.join("\n")
    }
}
