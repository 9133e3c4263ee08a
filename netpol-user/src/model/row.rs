//! A verdict as scripts read it: the one shape that `matrix`, `trace` and `verify` print.
//!
//! The names of the fields are a contract; more may be added, none changes its meaning.

use std::net::IpAddr;

use serde::Serialize;

use super::{
    Decision, Direction, Party, Policy, Reason, Rule, World,
    explain::Question,
    judge,
    probe::{Place, Probe, pairs},
};

/// One question, and the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// `namespace/name`, or an address.
    pub from: String,
    pub to: String,
    /// Only where the verdict depends on which of their addresses the two ends use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_address: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_address: Option<IpAddr>,
    /// Of the destination, in host byte order; protocols without ports have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    pub protocol: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_code: Option<u8>,
    /// Only where one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    pub allowed: bool,
    /// `null` where the source is no endpoint: nobody judges it.
    pub egress: Option<Side>,
    /// `null` where the destination is no endpoint.
    pub ingress: Option<Side>,
}

/// What one end's policies say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Side {
    pub allowed: bool,
    /// The rule that decided; `null` where a default did.
    pub rule: Option<RuleRef>,
    /// The policy whose isolation denies where no rule allows; `null` elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isolated_by: Option<PolicyRef>,
    /// A sentence.
    pub reason: String,
}

/// Where a rule is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleRef {
    pub kind: String,
    /// `null` for kinds without a namespace.
    pub namespace: Option<String>,
    pub name: String,
    /// In the document's list, from 0.
    pub index: u32,
    /// `file:line`
    pub source: String,
}

/// Where a policy is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PolicyRef {
    pub kind: String,
    pub namespace: Option<String>,
    pub name: String,
    pub source: String,
}

impl RuleRef {
    pub fn new(policy: &Policy, rule: &Rule) -> Self {
        Self {
            kind: policy.kind.as_str().to_owned(),
            namespace: policy.namespace.clone(),
            name: policy.name.clone(),
            index: rule.index,
            source: rule.origin.to_string(),
        }
    }
}

impl PolicyRef {
    pub fn new(policy: &Policy) -> Self {
        Self {
            kind: policy.kind.as_str().to_owned(),
            namespace: policy.namespace.clone(),
            name: policy.name.clone(),
            source: policy.origin.to_string(),
        }
    }
}

/// What is asked about every pair of ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traffic {
    pub probe: Probe,
    /// The client's port; `None`: any that the system would choose.
    pub source_port: Option<u16>,
}

impl Traffic {
    /// The first packet between two parties.
    pub fn question<'a>(&self, world: &'a World, (from, to): (Party, Party)) -> Question<'a> {
        let client_port = self.source_port.unwrap_or(super::probe::CLIENT_PORT);
        Question { world, from, to, opening: self.probe.opening(from, to, client_port) }
    }
}

/// One row for two places; one for each pair of their addresses where those differ in verdict.
pub fn rows(world: &World, from: Place, to: Place, traffic: Traffic) -> Vec<Row> {
    let mut rows: Vec<Row> =
        pairs(world, from, to).into_iter().map(|pair| row(&traffic.question(world, pair), traffic)).collect();
    let verdict = |row: &Row| [&row.egress, &row.ingress].map(|side| side.as_ref().map(|side| side.allowed));
    if rows.iter().all(|row| verdict(row) == verdict(&rows[0])) {
        rows.truncate(1);
        for row in &mut rows {
            (row.source_address, row.destination_address) = (None, None);
        }
    }
    rows
}

fn row(question: &Question<'_>, traffic: Traffic) -> Row {
    let Question { world, from, to, opening } = *question;
    let judgement = judge(world, from, to, opening);
    let side = |direction, decision: &Option<Decision>| Some(side(question, direction, decision.as_ref()?));
    let has_ports = opening.protocol.has_ports();
    Row {
        from: question.name(from),
        to: question.name(to),
        source_address: from.address(),
        destination_address: to.address(),
        port: has_ports.then_some(opening.destination_port),
        protocol: opening.protocol.to_string(),
        icmp_type: opening.icmp.map(|(kind, _)| kind),
        icmp_code: opening.icmp.map(|(_, code)| code),
        source_port: traffic.source_port.filter(|_| has_ports),
        allowed: judgement.allowed(),
        egress: side(Direction::Egress, &judgement.egress),
        ingress: side(Direction::Ingress, &judgement.ingress),
    }
}

fn side(question: &Question<'_>, direction: Direction, decision: &Decision) -> Side {
    let isolated_by = match decision.reason {
        Reason::TierDefault { tier, policy } => Some(PolicyRef::new(question.policy(tier, policy))),
        Reason::Rule { .. } | Reason::Profile => None,
    };
    Side {
        allowed: decision.allowed,
        rule: question.rule(direction, decision.reason).map(|(policy, rule)| RuleRef::new(policy, rule)),
        isolated_by,
        reason: question.reason(direction, decision),
    }
}
