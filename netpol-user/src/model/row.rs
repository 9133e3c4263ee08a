//! A verdict as scripts read it: the one shape that `matrix`, `trace` and `verify` print.
//!
//! The names of the fields are a contract; more may be added, none changes its meaning.

use std::{fmt, net::IpAddr};

use serde::Serialize;

use super::{
    Decision, Direction, Party, Policy, Question, Reason, Regime, Rule, World,
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
    /// The end that would decide if the audited policies were enforced too; `null` where none is about it.
    pub audit: Option<Side>,
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

/// The policies that are audited, not enforced.
pub fn audited(world: &World) -> impl Iterator<Item = PolicyRef> + '_ {
    world.policies().filter(|policy| policy.audit).map(PolicyRef::new)
}

impl fmt::Display for PolicyRef {
    /// `NetworkPolicy shop/db (policies.yaml:3)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, namespace, name, source } = self;
        let name = namespace.as_ref().map_or_else(|| name.clone(), |namespace| format!("{namespace}/{name}"));
        write!(f, "{kind} {name} ({source})")
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
        let opening = self.probe.opening(from, to, client_port);
        Question { world, from, to, opening, regime: Regime::Enforced }
    }
}

/// One row for two places; one for each pair of their addresses where those differ in verdict.
pub fn rows(world: &World, from: Place, to: Place, traffic: Traffic) -> Vec<Row> {
    let mut rows: Vec<Row> =
        pairs(world, from, to).into_iter().map(|pair| row(&traffic.question(world, pair), traffic)).collect();
    let verdict =
        |row: &Row| [&row.egress, &row.ingress, &row.audit].map(|side| side.as_ref().map(|side| side.allowed));
    if rows.iter().all(|row| verdict(row) == verdict(&rows[0])) {
        rows.truncate(1);
        for row in &mut rows {
            (row.source_address, row.destination_address) = (None, None);
        }
    }
    rows
}

/// The row of one question, which `traffic` has made.
pub fn row(question: &Question<'_>, traffic: Traffic) -> Row {
    let Question { from, to, opening, .. } = *question;
    let judgement = question.judge();
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
        audit: audit(question),
    }
}

fn audit(question: &Question<'_>) -> Option<Side> {
    if !question.is_audited() {
        return None;
    }
    let audited = Question { regime: Regime::WithAudited, ..*question };
    let judgement = audited.judge();
    let (direction, decision) = judgement.decisive()?;
    Some(side(&audited, direction, decision))
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

#[cfg(test)]
mod tests {
    use ipnet::IpNet;
    use serde_json::json;

    use super::*;
    use crate::model::{Action, EntityMatch, Match, PolicyKind, TierDefault, sample::*};

    /// `x/web` and `x/db`, both with two families; only this rule lets anything into `x/db`.
    fn only(matches: Match) -> World {
        let mut world = world(&[endpoint("x/web", "10.0.0.1,fd00::1"), endpoint("x/db", "10.0.0.2,fd00::2")]);
        let policy = Policy {
            kind: PolicyKind::NetworkPolicy,
            namespace: Some("x".to_owned()),
            subject: named("db"),
            ingress: Some(vec![rule(Action::Allow, matches)]),
            ..policy("p")
        };
        world.tiers = vec![tier("default", TierDefault::Deny, vec![policy])];
        world
    }

    fn about(text: &str) -> Traffic {
        Traffic { probe: text.parse().unwrap(), source_port: None }
    }

    fn into_db(world: &World, traffic: Traffic) -> Vec<serde_json::Value> {
        let rows = rows(world, Place::Endpoint(0), Place::Endpoint(1), traffic);
        rows.into_iter().map(|row| serde_json::to_value(row).unwrap()).collect()
    }

    #[test]
    fn row_has_the_fields_of_the_contract() {
        let rows = into_db(&only(Match::default()), about("80/tcp"));
        let expected = json!({
            "from": "x/web", "to": "x/db", "port": 80, "protocol": "TCP", "allowed": true,
            "audit": null,
            "egress": {
                "allowed": true, "rule": null,
                "reason": "no policy is about the egress of x/web, so it is open",
            },
            "ingress": {
                "allowed": true,
                "rule": {
                    "kind": "NetworkPolicy", "namespace": "x", "name": "p", "index": 0, "source": "policies.yaml:12",
                },
                "reason": "rule 0 of NetworkPolicy x/p ingress at policies.yaml:12 allows tcp/80 from x/web",
            },
        });
        assert_eq!(rows, [expected]);
    }

    #[test]
    fn denial_by_default_names_who_isolates() {
        let rows = into_db(&only(from(EntityMatch { nets: Some(vec![]), ..EntityMatch::default() })), about("80/tcp"));
        let expected = json!({
            "allowed": false, "rule": null,
            "isolated_by": {"kind": "NetworkPolicy", "namespace": "x", "name": "p", "source": "policies.yaml:10"},
            "reason": "isolated by NetworkPolicy x/p ingress at policies.yaml:10, and no rule allows tcp/80 from x/web",
        });
        assert_eq!(rows[0]["ingress"], expected);
    }

    #[test]
    fn outside_end_is_not_judged() {
        let world = only(Match::default());
        let outside = Place::Outside("192.0.2.1".parse().unwrap());
        let into = &rows(&world, outside, Place::Endpoint(1), about("80/tcp"))[0];
        assert_eq!((into.from.as_str(), &into.egress), ("192.0.2.1", &None));
        let out = &rows(&world, Place::Endpoint(0), outside, about("80/tcp"))[0];
        assert_eq!((out.to.as_str(), &out.ingress, out.allowed), ("192.0.2.1", &None, true));
    }

    #[test]
    fn icmp_row_has_type_and_code_instead_of_a_port() {
        let row = &into_db(&only(Match::default()), about("icmp"))[0];
        assert_eq!((&row["protocol"], &row["icmp_type"], &row["icmp_code"]), (&json!("ICMP"), &json!(8), &json!(0)));
        assert_eq!(row.get("port"), None);
    }

    #[test]
    fn source_port_is_in_the_row_when_it_was_asked_for() {
        let source = EntityMatch { ports: Some(vec![range(1000, 1000)]), ..EntityMatch::default() };
        let world = only(from(source));
        let row = |source_port| into_db(&world, Traffic { source_port, ..about("80/tcp") }).remove(0);
        assert_eq!((&row(None)["allowed"], row(None).get("source_port")), (&json!(false), None));
        let asked = row(Some(1000));
        assert_eq!((&asked["allowed"], &asked["source_port"]), (&json!(true), &json!(1000)));
    }

    #[test]
    fn addresses_are_told_apart_only_where_the_verdict_does() {
        let same = into_db(&only(Match::default()), about("80/tcp"));
        assert_eq!((same.len(), same[0].get("source_address")), (1, None));
        let v4: IpNet = "10.0.0.0/8".parse().unwrap();
        let world = only(from(EntityMatch { nets: Some(vec![v4]), ..EntityMatch::default() }));
        let different = into_db(&world, about("80/tcp"));
        let told: Vec<_> = different
            .iter()
            .map(|row| json!([row["source_address"], row["destination_address"], row["allowed"]]))
            .collect();
        assert_eq!(told, [json!(["10.0.0.1", "10.0.0.2", true]), json!(["fd00::1", "fd00::2", false])]);
    }
}
