//! Objects that must be refused, and objects that must not.

use std::path::Path;

use anyhow::Result;
use netpol_user::format;
use serde::Deserialize;
use serde_json::Value;

use super::{Place, READER, Report, read};
use crate::conformance::{connectivity::mentions, plan};

#[derive(Deserialize)]
struct Table {
    cases: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    name: String,
    valid: bool,
    #[serde(alias = "policy")]
    object: Value,
}

/// What valid objects may say that has no meaning outside of Calico: such an object may be refused.
const MEANINGLESS: [(&str, &str); 8] = [
    ("http", "a match on HTTP needs a proxy"),
    ("services", "a peer by Kubernetes service is not supported"),
    ("preDNAT", "about host endpoints"),
    ("doNotTrack", "about host endpoints"),
    ("applyOnForward", "about host endpoints"),
    ("serviceAccounts", "only Kubernetes gives service accounts to workloads"),
    ("serviceAccountSelector", "only Kubernetes gives service accounts to workloads"),
    ("performanceHints", "a hint to Calico's own agent"),
];

/// What the upstream test gives to the validator in memory, and no document can say.
const INEXPRESSIBLE: [(&str, &str); 1] = [(
    "should reject Rule with invalid port (name + number)",
    "a port with both a name and a number: as a document it is a port with a name, which is valid",
)];

pub fn kubernetes(path: &Path, report: &mut Report) -> Result<()> {
    run("k8s-netpol-validation", path, report)
}

pub fn calico(path: &Path, report: &mut Report) -> Result<()> {
    run("calico-v3-validation", path, report)
}

fn run(set: &str, path: &Path, report: &mut Report) -> Result<()> {
    let table: Table = read(path)?;
    for Object { name, valid, object } in &table.cases {
        report.tally(set, READER).cases += 1;
        let place = Place { set, case: name, engine: READER };
        let parsed = format::parse(vec![plan::source("object", std::slice::from_ref(object))]);
        match (parsed, valid) {
            (Ok(_), true) | (Err(_), false) => report.rows(&place, 1, vec![]),
            (Ok(_), false) if INEXPRESSIBLE.iter().any(|(known, _)| known == name) => {
                let reasons = INEXPRESSIBLE.iter().filter(|(known, _)| known == name);
                reasons.for_each(|(_, reason)| report.leave_out(&format!("{set}: \"{name}\""), reason));
            }
            (Ok(_), false) => report.rows(&place, 1, vec![format!("was accepted: {object}")]),
            (Err(invalid), true) => {
                let reason = MEANINGLESS.iter().find(|(field, _)| mentions(object, &[field]));
                if let Some((field, reason)) = reason {
                    report.leave_out(&format!("{set}: \"{name}\""), &format!("`{field}`: {reason}"));
                    continue;
                }
                let errors: Vec<_> = invalid.errors.iter().map(|error| error.message.as_str()).collect();
                report.rows(&place, 1, vec![format!("was refused: {}: {object}", errors.join("; "))]);
            }
        }
    }
    Ok(())
}
