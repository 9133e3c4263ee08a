//! Calico's selector language: what is one, and what it selects.

use std::path::Path;

use anyhow::Result;
use netpol_user::{
    format::selector,
    model::{Expr, Labels},
};
use serde::Deserialize;

use super::{Place, READER, Report, read};

const SET: &str = "calico-selectors";

#[derive(Deserialize)]
struct Table {
    expressions: Vec<Expression>,
    canonicalisation: Vec<Canonical>,
}

#[derive(Deserialize)]
struct Expression {
    expression: String,
    valid: bool,
    #[serde(default)]
    labels: Vec<Verdict>,
}

#[derive(Deserialize)]
struct Verdict {
    labels: Labels,
    r#match: bool,
}

/// Two ways to write one selector.
#[derive(Deserialize)]
struct Canonical {
    input: String,
    canonical: String,
}

pub fn run(path: &Path, report: &mut Report) -> Result<()> {
    let table: Table = read(path)?;
    for expression in &table.expressions {
        report.tally(SET, READER).cases += 1;
        expression.check(report);
    }
    for Canonical { input, canonical } in &table.canonicalisation {
        report.tally(SET, READER).cases += 1;
        let place = Place { set: SET, case: input, engine: READER };
        report.rows(&place, 1, same(input, canonical).err().into_iter().collect());
    }
    Ok(())
}

impl Expression {
    fn check(&self, report: &mut Report) {
        let text = &self.expression;
        let place = Place { set: SET, case: text, engine: READER };
        let parsed = selector::parse(text);
        let wrong = match (&parsed, self.valid) {
            (Ok(_), false) => Some("was accepted".to_owned()),
            (Err(error), true) => Some(format!("was refused: {error}")),
            _ => None,
        };
        report.rows(&place, 1, wrong.into_iter().collect());
        let Ok(expr) = parsed else { return };
        let wrong = self.labels.iter().filter(|verdict| expr.matches(&verdict.labels) != verdict.r#match);
        let wrong =
            wrong.map(|Verdict { labels, r#match }| format!("about {labels:?} is not {match}", match = r#match));
        report.rows(&place, self.labels.len(), wrong.collect());
    }
}

fn same(input: &str, canonical: &str) -> Result<(), String> {
    match (selector::parse(input), selector::parse(canonical)) {
        (Ok(a), Ok(b)) if flat(a.clone()) == flat(b.clone()) => Ok(()),
        (Ok(a), Ok(b)) => Err(format!("`{input}` is {a:?}, `{canonical}` is {b:?}")),
        (a, b) => Err(format!("`{input}` or `{canonical}` was refused: {:?}, {:?}", a.err(), b.err())),
    }
}

/// Without what parentheses leave behind: `(a && b) && c` means `a && b && c`, sets have no order.
fn flat(expr: Expr) -> Expr {
    let flat_all = |all: Vec<Expr>| all.into_iter().map(flat).collect::<Vec<_>>();
    let sorted = |mut set: Vec<String>| {
        set.sort_unstable();
        set.dedup();
        set
    };
    match expr {
        Expr::And(all) => Expr::And(
            flat_all(all).into_iter().flat_map(|e| if let Expr::And(inner) = e { inner } else { vec![e] }).collect(),
        ),
        Expr::Or(any) => Expr::Or(
            flat_all(any).into_iter().flat_map(|e| if let Expr::Or(inner) = e { inner } else { vec![e] }).collect(),
        ),
        Expr::Not(inner) => match flat(*inner) {
            Expr::Not(twice) => *twice,
            other => Expr::Not(Box::new(other)),
        },
        Expr::In(key, set) => Expr::In(key, sorted(set)),
        Expr::NotIn(key, set) => Expr::NotIn(key, sorted(set)),
        other => other,
    }
}
