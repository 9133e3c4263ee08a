use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::Write as _,
    time::{Duration, SystemTime},
};

use anyhow::Result;
use clap::{Args, ValueEnum};

use super::{
    Instance, Outcome,
    output::{counted, escape},
    question,
};
use crate::{
    datapath::{Datapath, Settings},
    model::explain::Service,
    observe::{Conversation, Reader, Speaker, conversations, rfc3339},
    source,
    state::Rule,
    suggest::{self, Seen, Suggestion},
};

/// Write the least policies that allow the flows that were seen.
///
/// Every workload gets one policy that isolates both its directions and allows what the kernel
/// remembers of it, by labels where the peer is an endpoint. Loaded with the documents of the
/// endpoints, in place of the present policies, they change no verdict of what was seen. Denials are
/// listed as comments. Writes to standard output.
#[derive(Args)]
pub struct Suggest {
    /// Only what was seen in so much time until now: 90s, 10m, 2h, 1d. Default: all that is remembered.
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<Duration>,
    /// The kind of the documents.
    #[arg(long, value_enum, default_value_t = Kind::Kubernetes)]
    format: Kind,
    /// Allow what was denied, too.
    #[arg(long)]
    include_denied: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// NetworkPolicy of networking.k8s.io/v1.
    Kubernetes,
    /// NetworkPolicy of projectcalico.org/v3, with rules about ICMP and other protocols.
    Calico,
}

/// A number and its unit.
fn time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time such as 90s, 10m, 2h or 1d");
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let seconds: u64 = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

impl Suggest {
    pub fn run(&self, instance: &Instance) -> Result<Outcome> {
        let instance = instance.open();
        let datapath = Datapath::open(&instance.pins)?;
        let names = instance.names(&datapath)?;
        let world = question::world_of(&names)?;
        let is_trusted = !datapath.live()?.settings.has(Settings::POLICE_HOST);
        let host = if is_trusted { source::host_addresses()? } else { Vec::new() };
        let reader = Reader::new(names.into());
        let mut all = conversations(&reader, &datapath.records()?, &host);
        all.retain(|one| self.since.is_none_or(|since| one.record.idle <= since));
        let (unclear, all): (Vec<_>, Vec<_>) = all.into_iter().partition(Conversation::is_unclear);
        let (denied, allowed): (Vec<_>, Vec<_>) = all.into_iter().partition(Conversation::is_denied);
        let is_host = |one: &Conversation| matches!(one.from, Speaker::Host(_));
        let (by_host, allowed): (Vec<_>, Vec<_>) = allowed.into_iter().partition(is_host);
        if allowed.is_empty() {
            eprintln!("warning: no connection was seen: these policies deny everything");
        }
        let also = denied.iter().filter(|_| self.include_denied);
        let seen = |one: &Conversation| Seen { from: one.from.clone(), to: one.to.clone(), opening: one.opening };
        let seen: Vec<_> = allowed.iter().chain(&by_host).chain(also).map(seen).collect();
        let format = match self.format {
            Kind::Kubernetes => suggest::Format::Kubernetes,
            Kind::Calico => suggest::Format::Calico,
        };
        let policies = Suggestion::new(&world, &seen).write(format)?;
        let header = self.header(&reader, (&allowed, &denied), unclear.len());
        write!(std::io::stdout(), "{header}{policies}")?;
        Ok(Outcome::Done)
    }

    fn header(&self, reader: &Reader, (allowed, denied): (&[Conversation], &[Conversation]), unclear: usize) -> String {
        let mut text = format!("# Suggested by netpol from {}", counted(allowed.len(), "connection", "connections"));
        // the latest comes first
        if let (Some(first), Some(last)) = (allowed.last(), allowed.first()) {
            let now = SystemTime::now();
            let [first, last] = [first, last].map(|one| rfc3339(now.checked_sub(one.record.idle).unwrap_or(now)));
            let _ = write!(text, ", last seen from {first} to {last}");
        }
        text.push_str(".\n# Load it with the documents of the endpoints, in place of the present policies.\n");
        if !denied.is_empty() {
            let attempts = counted(denied.len(), "attempt was", "attempts were");
            let _ = match self.include_denied {
                true => writeln!(text, "#\n# {attempts} denied until now, and allowed here (--include-denied):"),
                false => writeln!(text, "#\n# {attempts} denied, also here (--include-denied allows them):"),
            };
            for (what, (count, packets, rule)) in grouped(reader, denied) {
                let counts =
                    format!("{}, {}", counted(count, "attempt", "attempts"), counted(packets, "packet", "packets"));
                let _ = writeln!(text, "#   {}", escape(&format!("{what}: {counts}, {rule}")));
            }
        }
        if unclear > 0 {
            let left_out = counted(unclear, "connection is", "connections are");
            let _ = writeln!(text, "#\n# {left_out} left out: who opened it was not to be seen.");
        }
        text + "\n"
    }
}

/// What was denied, with attempts, packets and the rule.
fn grouped(reader: &Reader, denied: &[Conversation]) -> BTreeMap<String, (usize, usize, String)> {
    let mut groups = BTreeMap::new();
    for one in denied {
        let rule =
            reader.flow(&one.record, SystemTime::now()).rule.map_or_else(|| "no rule".to_owned(), Rule::describe);
        let what = format!("{} from {} to {}", Service(one.opening), one.from, one.to);
        let group = groups.entry(what).or_insert((0, 0, rule));
        group.0 += 1;
        group.1 += usize::try_from(one.record.packets).unwrap_or(usize::MAX);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit() {
        for (text, seconds) in [("90s", 90), ("10m", 600), ("2h", 7200), ("1d", 86_400), ("0s", 0)] {
            assert_eq!(time(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "m", "10", "1.5h", "-1m", "10 m", "1w", "99999999999999999999d", "999999999999999999d", "1µ"]
        {
            assert!(time(text).is_err(), "{text}");
        }
    }
}
