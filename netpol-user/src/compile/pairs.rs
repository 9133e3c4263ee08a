//! Which table holds between a subject and a peer, with as few pairs as that takes.
//!
//! Subjects with the same policies are worked out once. Among peers, the unmentioned outside
//! address ([`Identity::WORLD`]) is the measure: its table is the subject's table for
//! [`Identity::ANY`], and only peers for whom some rule turns out otherwise than for it are looked
//! at, one time for each different set of such rules.
//!
//! A subject that audited policies are about has a second set of pairs, under a number of its own: what would hold
//! if they were enforced, too.

use std::{
    collections::{BTreeMap, HashMap},
    rc::Rc,
};

use netpol_common::{
    tables::{Identity, MAX_RANGES, PairKey, PairValue, PortKey, Range, RuleId, RulesetId, Ruling, Subject},
    wire::Protocol,
};

use super::{
    CompileError, Snapshot,
    identity::Identities,
    rules::{Book, Condition, RuleEntry},
    shape::Declared,
    table::{List, Stage, Table, TooFine},
};
use crate::model::{Direction, IpVersion, Profile};

/// More pairs than this are refused: each costs kernel memory twice.
const MAX_PAIRS: usize = 1 << 22;

/// Fills in pairs, ports and ranges.
pub(super) fn fill(
    snapshot: &mut Snapshot,
    book: &Book<'_>,
    identities: &Identities<'_>,
    profile: Profile,
) -> Result<(), CompileError> {
    let profile = match profile {
        Profile::Allow => Ruling::allow(RuleId::NONE),
        Profile::Deny => Ruling::deny(RuleId::NONE),
    };
    let deviants = book.conditions.iter().zip(&identities.conditions).map(|(condition, holds)| {
        let mut deviants = holds.clone();
        if holds_for_world(condition) {
            deviants.invert();
        }
        deviants.iter().collect()
    });
    let deviants = deviants.collect();
    let mut pairs = Vec::new();
    let mut shelf = Shelf::default();
    for view in [View::Enforced, View::Audited] {
        for (index, direction) in [Direction::Egress, Direction::Ingress].into_iter().enumerate() {
            let mut side = Side { book, identities, direction, view, profile, deviants: &deviants, shelf: &mut shelf };
            side.fill(index, &mut pairs)?;
        }
    }
    pairs.sort_unstable_by_key(|(key, _): &(PairKey, PairValue)| (key.subject.0, key.peer.0));
    snapshot.pairs = pairs;
    snapshot.ports = shelf.ports;
    snapshot.ranges = shelf.ranges;
    Ok(())
}

/// It belongs to no endpoint, set or prefix.
const fn holds_for_world(condition: &Condition<'_>) -> bool {
    condition.selector.is_none() && condition.nets.is_none()
}

/// What decides about a subject: who has the same needs no work of their own.
#[derive(PartialEq, Eq, Hash)]
struct Plan {
    /// By tier that has any: the rules that can hold, and what its end says.
    stages: Vec<(Vec<usize>, Option<Ruling>)>,
    /// The subject's named ports.
    ports: usize,
    version: Option<IpVersion>,
    /// Some audited policy is among those.
    audited: bool,
}

/// One plan's result.
struct Answers {
    any: PairValue,
    /// Peers that differ, by index.
    peers: Vec<(usize, PairValue)>,
}

/// Which policies have a say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum View {
    Enforced,
    /// All of them, where one that is audited is about the subject.
    Audited,
}

/// One direction.
struct Side<'a, 'w> {
    book: &'a Book<'w>,
    identities: &'a Identities<'w>,
    direction: Direction,
    view: View,
    profile: Ruling,
    /// By condition: the identities for whom it holds otherwise than for the world.
    deviants: &'a Vec<Vec<usize>>,
    shelf: &'a mut Shelf,
}

impl Side<'_, '_> {
    fn fill(&mut self, direction: usize, pairs: &mut Vec<(PairKey, PairValue)>) -> Result<(), CompileError> {
        let mut known: HashMap<Plan, Rc<Answers>> = HashMap::new();
        for (index, plan) in self.plans(direction).into_iter().enumerate() {
            let is_asked = match self.view {
                // Open to all: no pair says so.
                View::Enforced => !plan.stages.is_empty() || !self.profile.is_allowed(),
                View::Audited => plan.audited,
            };
            if !is_asked {
                continue;
            }
            let answers = match known.get(&plan) {
                Some(answers) => Rc::clone(answers),
                None => {
                    let answers = Rc::new(self.answer(&plan)?);
                    known.insert(plan, Rc::clone(&answers));
                    answers
                }
            };
            let identity = Identities::numbered(index);
            let subject = match self.direction {
                Direction::Egress => Subject::egress(identity),
                Direction::Ingress => Subject::ingress(identity),
            };
            let subject = if self.view == View::Audited { subject.audited() } else { subject };
            pairs.push((PairKey { subject, peer: Identity::ANY }, answers.any));
            let peers = answers.peers.iter();
            pairs.extend(peers.map(|&(peer, value)| (PairKey { subject, peer: Identities::numbered(peer) }, value)));
            if pairs.len() > MAX_PAIRS {
                return Err(CompileError::TooManyPairs { most: MAX_PAIRS });
            }
        }
        Ok(())
    }

    /// By identity. Those of outside addresses are nobody's subject and stay empty.
    fn plans(&self, direction: usize) -> Vec<Plan> {
        let Identities { subjects, versions, ports, .. } = self.identities;
        let plan = |(&ports, &version)| Plan { stages: Vec::new(), ports, version, audited: false };
        let mut plans: Vec<_> = ports.iter().zip(versions).map(plan).collect();
        for policies in &self.book.tiers[direction] {
            let mut open = vec![false; plans.len()];
            for policy in policies.iter().filter(|policy| self.view == View::Audited || !policy.audit) {
                for identity in subjects[policy.subject].iter() {
                    let plan = &mut plans[identity];
                    plan.audited |= policy.audit;
                    if !open[identity] {
                        open[identity] = true;
                        plan.stages.push((Vec::new(), policy.end));
                    }
                    let can_hold = |rule: &usize| self.can_hold(&self.book.rules[*rule], identity);
                    if let Some((rules, _)) = plan.stages.last_mut() {
                        rules.extend(policy.rules.clone().filter(can_hold));
                    }
                }
            }
        }
        plans
    }

    /// Whether the rule can hold for this subject at all.
    fn can_hold(&self, rule: &RuleEntry<'_>, subject: usize) -> bool {
        let version = self.identities.versions[subject];
        rule.subject.is_none_or(|condition| self.identities.conditions[condition].contains(subject))
            && rule.matches.version.is_none_or(|want| version == Some(want))
    }

    fn answer(&mut self, plan: &Plan) -> Result<Answers, CompileError> {
        let steps: Vec<_> = plan
            .stages
            .iter()
            .enumerate()
            .flat_map(|(stage, (rules, _))| rules.iter().map(move |&r| (stage, r)))
            .collect();
        let rules = &self.book.rules;
        let for_world: Vec<_> = (0..steps.len())
            .filter(|&step| rules[steps[step].1].peer.is_none_or(|c| holds_for_world(&self.book.conditions[c])))
            .collect();
        let any = self.value(plan, &steps, Peer { steps: &for_world, ports: 0 })?;

        let names_ports = steps.iter().any(|&(_, rule)| rules[rule].names_peer_ports);
        let ports_of = |peer: usize| if names_ports { self.identities.ports[peer] } else { 0 };
        let mut values: HashMap<(Vec<usize>, usize), PairValue> = HashMap::new();
        let mut peers = Vec::new();
        for (peer, flips) in self.differing(&steps, names_ports) {
            let ports = ports_of(peer);
            let key = (flips, ports);
            let value = match values.get(&key) {
                Some(&value) => value,
                None => {
                    let steps_of_peer = symmetric_difference(&for_world, &key.0);
                    let value = self.value(plan, &steps, Peer { steps: &steps_of_peer, ports })?;
                    values.insert(key, value);
                    value
                }
            };
            if value != any {
                peers.push((peer, value));
            }
        }
        Ok(Answers { any, peers })
    }

    /// The peers for whom some step turns out otherwise than for the world, each with those steps.
    fn differing(&self, steps: &[(usize, usize)], names_ports: bool) -> BTreeMap<usize, Vec<usize>> {
        let mut flips: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (step, &(_, rule)) in steps.iter().enumerate() {
            let Some(condition) = self.book.rules[rule].peer else { continue };
            self.deviants[condition].iter().for_each(|&peer| flips.entry(peer).or_default().push(step));
        }
        if names_ports {
            let named = self.identities.ports.iter().enumerate().filter(|&(_, &ports)| ports != 0);
            named.for_each(|(peer, _)| {
                flips.entry(peer).or_default();
            });
        }
        flips
    }

    fn value(&mut self, plan: &Plan, steps: &[(usize, usize)], peer: Peer<'_>) -> Result<PairValue, CompileError> {
        let Identities { port_tables, .. } = self.identities;
        let (own, theirs) = (&port_tables[plan.ports], &port_tables[peer.ports]);
        let declared = match self.direction {
            Direction::Egress => Declared { source: own, destination: theirs },
            Direction::Ingress => Declared { source: theirs, destination: own },
        };
        let mut stages: Vec<_> = plan.stages.iter().map(|&(_, end)| Stage { rules: Vec::new(), end }).collect();
        for &step in peer.steps {
            let (stage, rule) = steps[step];
            stages[stage].rules.push(&self.book.rules[rule]);
        }
        let list = List { stages, profile: self.profile, declared };
        let too_many = |count| {
            let rulings = list.stages.iter().flat_map(|stage| &stage.rules).filter_map(|rule| rule.ruling);
            self.too_many_ranges(count, rulings)
        };
        let table = list.table().map_err(|TooFine(count)| too_many(count))?;
        if table.ranges.len() > MAX_RANGES as usize {
            return Err(self.too_many_ranges(table.ranges.len(), table.ranges.iter().map(|range| range.ruling)));
        }
        Ok(self.shelf.store(table))
    }

    /// Blames the rule that is named most often.
    fn too_many_ranges(&self, count: usize, rulings: impl Iterator<Item = Ruling>) -> CompileError {
        let mut counts: HashMap<u32, usize> = HashMap::new();
        rulings.for_each(|ruling| *counts.entry(ruling.rule().0).or_default() += 1);
        let worst =
            counts.into_iter().filter(|&(rule, _)| rule != 0).max_by_key(|&(rule, n)| (n, std::cmp::Reverse(rule)));
        let rule = worst.and_then(|(rule, _)| self.book.names.get(rule as usize - 1)).cloned();
        CompileError::TooManyRanges { count, rule: rule.map(Box::new) }
    }
}

/// A peer, as far as one plan can see.
struct Peer<'s> {
    /// The steps that hold for it, sorted.
    steps: &'s [usize],
    /// Its named ports.
    ports: usize,
}

/// Both are sorted, and so is the result.
fn symmetric_difference(a: &[usize], b: &[usize]) -> Vec<usize> {
    let only = |these: &[usize], those: &[usize]| -> Vec<usize> {
        these.iter().copied().filter(|step| those.binary_search(step).is_err()).collect()
    };
    let mut steps = only(a, b);
    steps.extend(only(b, a));
    steps.sort_unstable();
    steps
}

/// Ports and ranges, equal lists once.
#[derive(Default)]
struct Shelf {
    ports: Vec<(PortKey, Ruling)>,
    ranges: Vec<Range>,
    rulesets: HashMap<Vec<(Protocol, u16, Ruling)>, RulesetId>,
    lists: HashMap<Vec<Range>, u32>,
}

impl Shelf {
    fn store(&mut self, table: Table) -> PairValue {
        let Table { ports, ranges, otherwise } = table;
        let count = ranges.len() as u32;
        PairValue { ruleset: self.ruleset(ports), first: self.list(ranges), count, otherwise }
    }

    fn ruleset(&mut self, ports: Vec<(Protocol, u16, Ruling)>) -> RulesetId {
        if ports.is_empty() {
            return RulesetId::NONE;
        }
        if let Some(&ruleset) = self.rulesets.get(&ports) {
            return ruleset;
        }
        let ruleset = RulesetId(self.rulesets.len() as u32 + 1);
        let key = |protocol, port| PortKey { ruleset, port, protocol, reserved: 0 };
        self.ports.extend(ports.iter().map(|&(protocol, port, ruling)| (key(protocol, port), ruling)));
        self.rulesets.insert(ports, ruleset);
        ruleset
    }

    fn list(&mut self, ranges: Vec<Range>) -> u32 {
        if ranges.is_empty() {
            return 0;
        }
        if let Some(&first) = self.lists.get(&ranges) {
            return first;
        }
        let first = self.ranges.len() as u32;
        self.ranges.extend(&ranges);
        self.lists.insert(ranges, first);
        first
    }
}
