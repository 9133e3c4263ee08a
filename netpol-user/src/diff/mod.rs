//! What would change: the verdicts of two worlds beside each other, and what the second says about
//! connections that are open now.

mod outside;

use std::{collections::HashMap, net::IpAddr};

use serde::Serialize;

use crate::{
    model::{
        Decision, Direction, Endpoint, ObjectName, Party, Question, Reason, Regime, World,
        probe::{Place, Probe, pairs},
        row::Traffic,
    },
    observe::Conversation,
    state::Rule,
};

/// A world, and which of its policies count.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    pub world: &'a World,
    pub regime: Regime,
}

/// What differs between two views. The names of the fields are a contract.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Changes {
    pub endpoints: Listed,
    pub pairs: Vec<Pair>,
}

/// Endpoints of one side alone. Pairs with them are not compared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Listed {
    pub added: Vec<String>,
    pub removed: Vec<String>,
}

/// A connection whose verdict differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pair {
    /// `namespace/name`, an address, or the prefix that is the longest match of outside addresses.
    pub from: String,
    pub to: String,
    /// Only where the change depends on which of their addresses the two ends use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_address: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_address: Option<IpAddr>,
    /// Of the destination, in host byte order; `null` for protocols without ports.
    pub port: Option<u16>,
    pub protocol: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_code: Option<u8>,
    pub before: Verdict,
    pub after: Verdict,
    /// The rule that decides; `null` where no policy does.
    pub rule_before: Option<Rule>,
    pub rule_after: Option<Rule>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Allowed,
    Denied,
}

impl Verdict {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
        }
    }
}

/// What is asked about every pair.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub probes: Vec<Probe>,
    /// Outside addresses, besides one of each class that the rules tell apart.
    pub outside: Vec<IpAddr>,
}

/// Compares every pair of endpoints that both sides have, and each of these endpoints with the outside.
pub fn compare(before: View<'_>, after: View<'_>, options: &Options) -> Changes {
    let known: HashMap<&ObjectName, usize> = index(before.world);
    let name = |endpoint: &Endpoint| endpoint.name.to_string();
    let added = after.world.endpoints.iter().filter(|endpoint| !known.contains_key(&endpoint.name)).map(name);
    let there = index(after.world);
    let removed = before.world.endpoints.iter().filter(|endpoint| !there.contains_key(&endpoint.name)).map(name);
    let mut endpoints = Listed { added: added.collect(), removed: removed.collect() };
    endpoints.added.sort();
    endpoints.removed.sort();

    let mut ends: Vec<End> = after
        .world
        .endpoints
        .iter()
        .enumerate()
        .filter_map(|(index, endpoint)| {
            let before = *known.get(&endpoint.name)?;
            Some(End { name: name(endpoint), place: Place::Endpoint(index), before: Some(before) })
        })
        .collect();
    let outside = |name: String, address| End { name, place: Place::Outside(address), before: None };
    ends.extend(options.outside.iter().map(|address| outside(address.to_string(), *address)));
    let classes = outside::classes(&[before.world, after.world]);
    ends.extend(classes.iter().map(|class| outside(class.prefix.to_string(), class.address)));

    let mut changes = Changes { endpoints, pairs: Vec::new() };
    for probe in &options.probes {
        for from in &ends {
            let judged = |to: &&End| from.place != to.place && (from.before.is_some() || to.before.is_some());
            for to in ends.iter().filter(judged) {
                changes.pairs.extend(differences((before, after), (from, to), *probe));
            }
        }
    }
    changes
}

fn index(world: &World) -> HashMap<&ObjectName, usize> {
    world.endpoints.iter().enumerate().map(|(index, endpoint)| (&endpoint.name, index)).collect()
}

/// An end of pairs.
struct End {
    name: String,
    /// In the world after.
    place: Place,
    /// The index in the world before; `None` for an outside address.
    before: Option<usize>,
}

impl End {
    /// The same party in the world before.
    fn earlier(&self, party: Party) -> Party {
        match (party, self.before) {
            (Party::Endpoint { address, .. }, Some(index)) => Party::Endpoint { index, address },
            (party, _) => party,
        }
    }
}

fn differences((before, after): (View<'_>, View<'_>), (from, to): (&End, &End), probe: Probe) -> Vec<Pair> {
    let traffic = Traffic { probe, source_port: None };
    let speaking = pairs(after.world, from.place, to.place);
    // an outside address of the other family than all of the endpoint's cannot meet it
    let is_outside = |end: &End| end.before.is_none();
    let ways = speaking.len();
    let compared = speaking.into_iter().filter_map(|parties| {
        let earlier = (from.earlier(parties.0), to.earlier(parties.1));
        let later = Question { regime: after.regime, ..traffic.question(after.world, parties) };
        // the message is the same on both sides, whatever the one world knows of addresses
        let earlier = Question { regime: before.regime, opening: later.opening, ..traffic.question(before.world, earlier) };
        let foreign = is_outside(from) != is_outside(to)
            && [later.from, later.to].iter().any(|party| {
                matches!(party, Party::Endpoint { index, address: None } if !after.world.endpoints[*index].addresses.is_empty())
            });
        (!foreign).then_some((earlier, later, [&earlier, &later].map(verdict)))
    });
    let compared: Vec<_> = compared.collect();
    let is_uniform = ways == 1 || compared.iter().all(|(.., verdicts)| *verdicts == compared[0].2);
    let changed = compared.iter().filter(|(.., [before, after])| before != after);
    let changed = changed.map(|(earlier, later, _)| pair(earlier, later, (from, to)));
    let mut changed: Vec<Pair> = changed.take(if is_uniform { 1 } else { usize::MAX }).collect();
    if is_uniform {
        for pair in &mut changed {
            (pair.source_address, pair.destination_address) = (None, None);
        }
    }
    changed
}

fn verdict(question: &Question<'_>) -> Verdict {
    if question.judge().allowed() { Verdict::Allowed } else { Verdict::Denied }
}

fn pair(before: &Question<'_>, after: &Question<'_>, (from, to): (&End, &End)) -> Pair {
    let opening = after.opening;
    Pair {
        from: from.name.clone(),
        to: to.name.clone(),
        source_address: after.from.address(),
        destination_address: after.to.address(),
        port: opening.protocol.has_ports().then_some(opening.destination_port),
        protocol: opening.protocol.to_string(),
        icmp_type: opening.icmp.map(|(kind, _)| kind),
        icmp_code: opening.icmp.map(|(_, code)| code),
        before: verdict(before),
        after: verdict(after),
        rule_before: deciding(before),
        rule_after: deciding(after),
    }
}

/// The rule that settles it; `None` where no policy does.
fn deciding(question: &Question<'_>) -> Option<Rule> {
    let judgement = question.judge();
    let (direction, decision) = judgement.decisive()?;
    rule(question, direction, decision)
}

fn rule(question: &Question<'_>, direction: Direction, decision: &Decision) -> Option<Rule> {
    let (policy, index, source) = match decision.reason {
        Reason::Rule { .. } => {
            let (policy, rule) = question.rule(direction, decision.reason)?;
            (policy, Some(rule.index), &rule.origin)
        }
        Reason::TierDefault { tier, policy } => {
            let policy = question.policy(tier, policy);
            (policy, None, &policy.origin)
        }
        Reason::Profile => return None,
    };
    Some(Rule {
        kind: policy.kind.as_str().to_owned(),
        namespace: policy.namespace.clone(),
        name: policy.name.clone(),
        direction: Rule::word(direction).to_owned(),
        index,
        source: source.to_string(),
    })
}

/// What a view says about connections that the kernel remembers, and about attempts that were denied.
#[derive(Clone, Debug, Default)]
pub struct Live<'a> {
    pub cut: Vec<&'a Conversation>,
    pub opened: Vec<&'a Conversation>,
}

/// Judges what happens now by what would be enforced.
pub fn live<'a>(after: View<'_>, conversations: &'a [Conversation]) -> Live<'a> {
    let named = index(after.world);
    let mut live = Live::default();
    for conversation in conversations {
        let allows = conversation.questions(after.world, &named).all(|question| {
            let question = Question { regime: after.regime, ..question };
            question.judge().allowed()
        });
        match (conversation.is_denied(), allows) {
            (false, false) => live.cut.push(conversation),
            (true, true) => live.opened.push(conversation),
            (false, true) | (true, false) => {}
        }
    }
    live
}

#[cfg(test)]
mod tests;
