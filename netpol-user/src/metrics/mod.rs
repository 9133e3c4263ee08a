//! What monitoring wants to know, read from the kernel for each scrape. Nothing is counted here, so nothing is lost
//! when nobody asks, and the numbers are those of `status` and `flows`.

mod exposition;

use std::collections::BTreeMap;

use crate::{
    datapath::{Counter, Datapath, Drop, Pass, Side, Untold, Usage},
    enforce,
    observe::{Condition, Ends, Hits, hits, tally},
    state::{Publication, Rule},
};
pub use exposition::CONTENT_TYPE;
use exposition::{Exposition, Kind};

/// Series of one family about rules: those with the most packets, and one for the rest.
const RULES: usize = 1000;

/// Names, helps and values of families about the same things.
type Families<T, V, const N: usize> = [(&'static str, &'static str, fn(&T) -> V); N];

/// Everything that one scrape tells.
#[derive(Debug)]
pub struct Sample {
    condition: Condition,
    /// `None`: nothing is loaded.
    loaded: Option<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    counters: Vec<Counter>,
    would_drop: Vec<Counter>,
    usage: Vec<Usage>,
    published: Option<Publication>,
    rules: Vec<(Option<Rule>, Hits)>,
    /// How many observe, and what they were not told.
    observers: (u32, Untold),
}

impl Sample {
    /// Reads counters, flows and denials, and looks whether the policy is enforced.
    pub fn read(instance: &enforce::Instance) -> Result<Self, enforce::Error> {
        let condition = Condition::of(instance)?;
        if !instance.pins.exist() {
            return Ok(Self { condition, loaded: None });
        }
        let datapath = Datapath::open(&instance.pins)?;
        let names = instance.names(&datapath)?;
        let turned = datapath.turned()?;
        let records = datapath.records()?;
        let rows = tally(&records, &Ends::new(&names, &condition.host_addresses), names.generation);
        let rules = most(hits(&rows), |number| names.rule(number).cloned());
        let loaded = Loaded {
            counters: datapath.counters()?,
            would_drop: datapath.would_drop()?,
            usage: datapath.usage(turned, &records)?,
            published: names.published,
            rules,
            observers: datapath.observers()?,
        };
        Ok(Self { condition, loaded: Some(loaded) })
    }

    /// In Prometheus' text format.
    pub fn text(&self) -> String {
        let mut text = Exposition::default();
        state(&mut text, &self.condition);
        if let Some(Loaded { counters, would_drop, usage, published, rules, observers }) = &self.loaded {
            packets(&mut text, counters);
            audited(&mut text, would_drop);
            maps(&mut text, usage);
            publication(&mut text, *published);
            by_rule(&mut text, rules);
            observation(&mut text, *observers);
        }
        text.finish()
    }
}

/// The rules with the most packets, by number, and all others as one without a name. Cardinality is bounded, whatever
/// documents hold.
fn most(hits: BTreeMap<u32, Hits>, name: impl Fn(u32) -> Option<Rule>) -> Vec<(Option<Rule>, Hits)> {
    let mut named: Vec<(u32, Rule, Hits)> = Vec::new();
    let mut other: Option<Hits> = None;
    for (number, hits) in hits {
        match name(number) {
            Some(rule) => named.push((number, rule, hits)),
            None => *other.get_or_insert_default() += hits,
        }
    }
    if named.len() >= RULES {
        named.sort_by_key(|(number, _, hits)| (std::cmp::Reverse(hits.packets), *number));
        for (.., hits) in named.drain(RULES - 1..) {
            *other.get_or_insert_default() += hits;
        }
        named.sort_by_key(|(number, ..)| *number);
    }
    let named = named.into_iter().map(|(_, rule, hits)| (Some(rule), hits));
    named.chain(other.map(|hits| (None, hits))).collect()
}

fn state(text: &mut Exposition, condition: &Condition) {
    let mut gauge = |name, help, value: usize| {
        text.family(name, Kind::Gauge, help).sample(&[], value);
    };
    gauge("netpol_enforced", "Whether the loaded policy is enforced (1), or not (0).", condition.enforced.into());
    gauge(
        "netpol_problems",
        "Reasons why the policy is not enforced; netpol status names them.",
        condition.problems.len(),
    );
    gauge("netpol_generation", "Number of the publication that is enforced.", condition.generation as usize);
    gauge("netpol_policies", "Policies that are loaded.", condition.policies);
    gauge("netpol_endpoints", "Endpoints that were running at the last load.", condition.endpoints);
    gauge("netpol_pending_endpoints", "Endpoints that are not running.", condition.pending.len());
    gauge("netpol_identities", "Identities that the loaded policies tell apart.", condition.identities);
    gauge(
        "netpol_unprotected_interfaces",
        "Interfaces on bridges of endpoints that no policy protects.",
        condition.unprotected.len(),
    );
    gauge(
        "netpol_stack_endpoints",
        "Endpoints whose packets pass the host's stack rather than being delivered directly.",
        condition.stack.len(),
    );
}

/// Every reason has its series from the beginning, so the first drop is already an increase.
fn packets(text: &mut Exposition, counters: &[Counter]) {
    let passes = Pass::ALL.iter().map(|pass| Ok(*pass));
    let verdicts: Vec<_> = passes.chain(Drop::ALL.iter().map(|drop| Err(*drop))).collect();
    let families: Families<Counter, u64, 2> = [
        ("netpol_packets_total", "Packets by what became of them; GSO packets count as their segments.", |c| c.packets),
        ("netpol_bytes_total", "Bytes of frames by what became of them.", |c| c.bytes),
    ];
    for (name, help, value) in families {
        let mut family = text.family(name, Kind::Counter, help);
        for (side, direction) in [(Side::From, "egress"), (Side::To, "ingress")] {
            for verdict in &verdicts {
                let counted = counters.iter().find(|c| (c.side, c.verdict) == (side, *verdict)).map_or(0, value);
                let (verdict, reason) = match verdict {
                    Ok(pass) => ("passed", pass.name()),
                    Err(drop) => ("dropped", drop.name()),
                };
                family.sample(&[("direction", direction), ("verdict", verdict), ("reason", reason)], counted);
            }
        }
    }
}

/// These packets are in `netpol_packets_total`, too, as what became of them.
fn audited(text: &mut Exposition, counters: &[Counter]) {
    let families: Families<Counter, u64, 2> = [
        (
            "netpol_would_drop_packets_total",
            "Packets that passed, and would have been dropped if audited policies were enforced.",
            |c| c.packets,
        ),
        ("netpol_would_drop_bytes_total", "Bytes of their frames.", |c| c.bytes),
    ];
    for (name, help, value) in families {
        let mut family = text.family(name, Kind::Counter, help);
        for (side, direction) in [(Side::From, "egress"), (Side::To, "ingress")] {
            for reason in [Drop::PolicyEgress, Drop::PolicyIngress] {
                let counted = counters.iter().find(|c| (c.side, c.verdict) == (side, Err(reason))).map_or(0, value);
                family.sample(&[("direction", direction), ("reason", reason.name())], counted);
            }
        }
    }
}

fn maps(text: &mut Exposition, usage: &[Usage]) {
    let families: Families<Usage, f64, 3> = [
        ("netpol_map_entries", "Entries of a map that the datapath fills: flows, denials, fragments.", |u| {
            u.entries as f64
        }),
        (
            "netpol_map_capacity",
            "Entries that the map has room for; where it is full, what was not used for longest makes room.",
            |u| u.capacity as f64,
        ),
        ("netpol_map_pressure_ratio", "Entries of the map by its capacity.", |u| {
            u.entries as f64 / u.capacity.max(1) as f64
        }),
    ];
    for (name, help, value) in families {
        let mut family = text.family(name, Kind::Gauge, help);
        for usage in usage {
            family.sample(&[("map", usage.map), ("family", usage.family)], value(usage));
        }
    }
    // no counter: entries are counted at another moment than those that were made, so it may go back a little
    let mut family = text.family(
        "netpol_map_evicted_entries",
        Kind::Gauge,
        "Entries that made room for others since the first load: their packets are judged again.",
    );
    for Usage { map, family: of, evicted, .. } in usage {
        if let Some(evicted) = evicted {
            family.sample(&[("map", map), ("family", of)], *evicted);
        }
    }
}

fn publication(text: &mut Exposition, published: Option<Publication>) {
    let Some(Publication { at_ms, took_us }) = published else { return };
    let at = at_ms as f64 / 1e3;
    text.family("netpol_last_publication_timestamp_seconds", Kind::Gauge, "When the policy was published, since 1970.")
        .sample(&[], at);
    text.family("netpol_last_publication_duration_seconds", Kind::Gauge, "How long that publication took.")
        .sample(&[], took_us as f64 / 1e6);
}

fn observation(text: &mut Exposition, (observers, Untold { lost, suppressed }): (u32, Untold)) {
    text.family("netpol_observers", Kind::Gauge, "Observers (netpol observe) whose leases hold.")
        .sample(&[], observers);
    let families = [
        (
            "netpol_observer_lost_events_total",
            "Events that observers were not told, because they did not read them in time.",
            lost,
        ),
        (
            "netpol_observer_suppressed_drops_total",
            "Drops that observers were not told, because they were like others or too many of one interface.",
            suppressed,
        ),
    ];
    for (name, help, value) in families {
        text.family(name, Kind::Counter, help).sample(&[], value);
    }
}

/// Gauges: what a flow counted goes with its entry.
fn by_rule(text: &mut Exposition, rules: &[(Option<Rule>, Hits)]) {
    let families: Families<Hits, u64, 3> = [
        ("netpol_rule_flows", "Connections and denied attempts that are remembered, by the rule that decided.", |h| {
            h.flows
        }),
        ("netpol_rule_packets", "Packets of clients in these, by the rule that decided.", |h| h.packets),
        ("netpol_rule_bytes", "Bytes of clients in these, by the rule that decided.", |h| h.bytes),
    ];
    for (name, help, value) in families {
        let mut family = text.family(name, Kind::Gauge, help);
        for (rule, hits) in rules {
            let Some(Rule { kind, namespace, name, direction, index, source }) = rule else {
                family.sample(&[("rule", "other")], value(hits));
                continue;
            };
            let index = index.map_or_else(|| "default-deny".to_owned(), |index| index.to_string());
            let namespace = namespace.as_deref().unwrap_or_default();
            let labels = [
                ("kind", kind.as_str()),
                ("namespace", namespace),
                ("name", name),
                ("direction", direction),
                ("rule", &index),
                ("source", source),
            ];
            family.sample(&labels, value(hits));
        }
    }
}

#[cfg(test)]
mod tests;
