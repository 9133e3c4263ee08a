use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::{Instance, Outcome, OutputArgs, output};
use crate::{
    datapath::Datapath,
    model::{Policy, World},
};

/// List the loaded policies: whom they are about, and where they stand.
#[derive(Args)]
pub struct Policies {
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Serialize)]
struct Row {
    tier: String,
    kind: &'static str,
    namespace: Option<String>,
    name: String,
    /// Endpoints that it selects.
    endpoints: usize,
    /// Rules; `null` where it says nothing about the direction.
    ingress: Option<usize>,
    egress: Option<usize>,
    audit: bool,
    source: String,
}

impl Policies {
    pub fn run(&self, instance: &Instance) -> Result<Outcome> {
        let instance = instance.open();
        let names = instance.names(&Datapath::open(&instance.pins)?)?;
        let world = names.documents()?.world;
        let rows: Vec<_> = world
            .tiers
            .iter()
            .flat_map(|tier| tier.policies.iter().map(|policy| row(&world, &tier.name, policy)))
            .collect();
        output::print(self.output.output, &rows, |rows| table(rows))?;
        Ok(Outcome::Done)
    }
}

fn row(world: &World, tier: &str, policy: &Policy) -> Row {
    let selected = world
        .endpoints
        .iter()
        .filter(|endpoint| policy.subject.selects(world, Some(&endpoint.name.namespace), &endpoint.labels));
    let count = |rules: &Option<Vec<crate::model::Rule>>| {
        rules.as_ref().map(|rules| {
            let mut numbers: Vec<_> = rules.iter().map(|rule| rule.index).collect();
            numbers.dedup();
            numbers.len()
        })
    };
    Row {
        tier: tier.to_owned(),
        kind: policy.kind.as_str(),
        namespace: policy.namespace.clone(),
        name: policy.name.clone(),
        endpoints: selected.count(),
        ingress: count(&policy.ingress),
        egress: count(&policy.egress),
        audit: policy.audit,
        source: policy.origin.to_string(),
    }
}

fn table(rows: &[Row]) -> String {
    let header = ["TIER", "KIND", "POLICY", "ENFORCED", "ENDPOINTS", "INGRESS", "EGRESS", "SOURCE"];
    let rules = |rules: Option<usize>| rules.map_or_else(|| "-".to_owned(), |rules| rules.to_string());
    let cells = rows.iter().map(|row| {
        let name = row.namespace.as_ref().map_or_else(|| row.name.clone(), |ns| format!("{ns}/{}", row.name));
        [
            row.tier.clone(),
            row.kind.to_owned(),
            name,
            if row.audit { "no, audited".to_owned() } else { "yes".to_owned() },
            row.endpoints.to_string(),
            rules(row.ingress),
            rules(row.egress),
            row.source.clone(),
        ]
    });
    output::table(header, cells)
}
