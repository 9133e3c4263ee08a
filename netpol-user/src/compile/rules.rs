//! The rules in the order in which they are asked, each with its number: what log says is gone, selectors and
//! CIDRs have become numbered [`Condition`]s. Audited policies are among the others, each in its place.

use ipnet::IpNet;
use netpol_common::tables::{RuleId, Ruling};

use super::{CompileError, RuleName, select::Numbering};
use crate::model::{
    Action, Direction, EntityMatch, Match, Policy, PolicyKind, PortMatch, Selector, TierDefault, World,
};

/// What a rule asks of one end besides its ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Condition<'w> {
    pub selector: Option<&'w Selector>,
    pub not_selector: Option<&'w Selector>,
    pub nets: Option<&'w [IpNet]>,
    pub not_nets: &'w [IpNet],
    /// Whether the selectors find network sets: [`PolicyKind::selects_sets`].
    pub finds_sets: bool,
}

impl<'w> Condition<'w> {
    /// `None`: it holds for everybody.
    fn of(m: &'w EntityMatch, kind: PolicyKind) -> Option<Self> {
        let EntityMatch { selector, not_selector, nets, not_nets, ports: _, not_ports: _ } = m;
        (!m.any_peer()).then_some(Self {
            selector: selector.as_ref(),
            not_selector: not_selector.as_ref(),
            nets: nets.as_deref(),
            not_nets,
            finds_sets: kind.selects_sets(),
        })
    }
}

/// A rule that decides something.
pub(super) struct RuleEntry<'w> {
    pub matches: &'w Match,
    /// `None`: pass.
    pub ruling: Option<Ruling>,
    /// Indices into [`Book::conditions`]; `None` holds for everybody.
    pub subject: Option<usize>,
    pub peer: Option<usize>,
    /// Whether its ports depend on what the peer declares.
    pub names_peer_ports: bool,
}

/// A policy about one direction.
pub(super) struct PolicyEntry {
    /// Index into [`Book::subjects`].
    pub subject: usize,
    /// Into [`Book::rules`].
    pub rules: std::ops::Range<usize>,
    /// It has no say in what is enforced.
    pub audit: bool,
    /// What the end of the tier says if this is the first policy that isolates. `None`: pass.
    pub end: Option<Ruling>,
}

/// Everything that is enforced or audited.
#[derive(Default)]
pub(super) struct Book<'w> {
    pub rules: Vec<RuleEntry<'w>>,
    pub conditions: Vec<Condition<'w>>,
    pub subjects: Vec<&'w Selector>,
    /// By direction ([`Direction::Egress`] first), then tier.
    pub tiers: [Vec<Vec<PolicyEntry>>; 2],
    pub names: Vec<RuleName>,
    /// Some rule asks for an IP version.
    pub asks_version: bool,
    condition_numbers: Numbering<Condition<'w>>,
    subject_numbers: Numbering<&'w Selector>,
}

impl<'w> Book<'w> {
    pub fn new(world: &'w World) -> Result<Self, CompileError> {
        let mut book = Self::default();
        for tier in &world.tiers {
            for (index, direction) in [Direction::Egress, Direction::Ingress].into_iter().enumerate() {
                let entries = tier.policies.iter().filter_map(|policy| book.enter(policy, direction, tier.default));
                let entries = entries.collect();
                book.tiers[index].push(entries);
            }
        }
        if book.names.len() > RuleId::MAX.0 as usize {
            return Err(CompileError::TooManyRules { count: book.names.len() });
        }
        Ok(book)
    }

    /// `None`: the policy says nothing about the direction.
    fn enter(&mut self, policy: &'w Policy, direction: Direction, default: TierDefault) -> Option<PolicyEntry> {
        let rules = policy.rules(direction)?;
        let name = |index, origin| RuleName {
            kind: policy.kind,
            namespace: policy.namespace.clone(),
            name: policy.name.clone(),
            direction,
            index,
            origin,
        };
        let (subject, is_new) = self.subject_numbers.number(&policy.subject);
        if is_new {
            self.subjects.push(&policy.subject);
        }
        let end = match default {
            TierDefault::Deny => Some(Ruling::deny(self.call(name(None, policy.origin.clone())))),
            TierDefault::Pass => None,
        };
        let first = self.rules.len();
        for rule in rules {
            let mut id = || self.call(name(Some(rule.index), rule.origin.clone()));
            let ruling = match rule.action {
                Action::Allow => Some(Ruling::allow(id())),
                Action::Deny => Some(Ruling::deny(id())),
                Action::Pass => None,
                Action::Log => continue,
            };
            let (of_subject, of_peer) = match direction {
                Direction::Egress => (&rule.matches.source, &rule.matches.destination),
                Direction::Ingress => (&rule.matches.destination, &rule.matches.source),
            };
            let entry = RuleEntry {
                matches: &rule.matches,
                ruling,
                subject: self.condition(of_subject, policy.kind),
                peer: self.condition(of_peer, policy.kind),
                names_peer_ports: names_ports(of_peer),
            };
            self.asks_version |= rule.matches.version.is_some();
            self.rules.push(entry);
        }
        Some(PolicyEntry { subject, rules: first..self.rules.len(), audit: policy.audit, end })
    }

    fn condition(&mut self, m: &'w EntityMatch, kind: PolicyKind) -> Option<usize> {
        let condition = Condition::of(m, kind)?;
        let (number, is_new) = self.condition_numbers.number(condition);
        if is_new {
            self.conditions.push(condition);
        }
        Some(number)
    }

    /// The number of a rule: what a document says as one has one.
    fn call(&mut self, name: RuleName) -> RuleId {
        if self.names.last() != Some(&name) {
            self.names.push(name);
        }
        RuleId(u32::try_from(self.names.len()).unwrap_or(u32::MAX))
    }

    /// The names of ports that rules use.
    pub fn port_names(&self) -> impl Iterator<Item = &'w str> + '_ {
        let ends = self.rules.iter().flat_map(|rule| [&rule.matches.source, &rule.matches.destination]);
        ends.flat_map(port_matches).filter_map(|port| match port {
            PortMatch::Named(name) => Some(name.as_str()),
            PortMatch::Range(_) => None,
        })
    }
}

fn port_matches(m: &EntityMatch) -> impl Iterator<Item = &PortMatch> {
    m.ports.iter().flatten().chain(&m.not_ports)
}

fn names_ports(m: &EntityMatch) -> bool {
    port_matches(m).any(|port| matches!(port, PortMatch::Named(_)))
}
