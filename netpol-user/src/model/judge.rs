//! The meaning of policies: interprets the ordered rules directly, one connection at a time.
//!
//! `matrix`, `trace` and the tests' oracle ask here; the kernel asks compiled tables. Neither
//! knows of the other, so each checks the other.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    Action, Direction, EntityMatch, IcmpMatch, IpVersion, NetworkSet, Policy, PortMatch, Profile, Protocol, Rule,
    Selector, Tier, TierDefault, World,
};

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Party {
    /// By its index in [`World::endpoints`]; without an address no CIDR holds for it.
    Endpoint { index: usize, address: Option<IpAddr> },
    /// An address that no endpoint has (the host's own included).
    Outside(IpAddr),
}

impl Party {
    pub const fn address(self) -> Option<IpAddr> {
        match self {
            Self::Endpoint { address, .. } => address,
            Self::Outside(address) => Some(address),
        }
    }

    pub const fn endpoint(self) -> Option<usize> {
        match self {
            Self::Endpoint { index, .. } => Some(index),
            Self::Outside(_) => None,
        }
    }
}

/// The first packet of a connection, as rules see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Opening {
    pub protocol: Protocol,
    /// 0 for protocols without ports.
    pub source_port: u16,
    /// 0 for protocols without ports.
    pub destination_port: u16,
    /// Type and code, for ICMP and ICMPv6.
    pub icmp: Option<(u8, u8)>,
}

/// What becomes of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// `None` where the source is no endpoint.
    pub egress: Option<Decision>,
    /// `None` where the destination is no endpoint.
    pub ingress: Option<Decision>,
}

impl Judgement {
    pub fn allowed(&self) -> bool {
        [&self.egress, &self.ingress].into_iter().flatten().all(|decision| decision.allowed)
    }

    /// The end that settles it: the first that denies, else one where some rule allows. `None` where no
    /// end is an endpoint.
    pub fn decisive(&self) -> Option<(Direction, &Decision)> {
        let ends = [(Direction::Egress, &self.egress), (Direction::Ingress, &self.ingress)];
        let ends = ends.map(|(direction, decision)| Some((direction, decision.as_ref()?)));
        let denies = |(_, decision): &(_, &Decision)| !decision.allowed;
        let is_ruled = |(_, decision): &(_, &Decision)| decision.reason != Reason::Profile;
        let ends = || ends.iter().flatten().copied();
        ends().find(denies).or_else(|| ends().rev().find(is_ruled)).or_else(|| ends().next_back())
    }
}

/// One direction's verdict and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub allowed: bool,
    pub reason: Reason,
}

/// Positions are indices into [`World::tiers`], [`Tier::policies`] and the direction's rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    Rule {
        tier: usize,
        policy: usize,
        rule: usize,
    },
    /// No rule of the tier matched and its default is to deny. `policy` is the first that isolates.
    TierDefault {
        tier: usize,
        policy: usize,
    },
    /// No policy is about this direction of the endpoint, or all passed.
    Profile,
}

/// What was considered on the way to a decision, in order. Positions as in [`Reason`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Policy {
        tier: usize,
        policy: usize,
        standing: Standing,
    },
    /// Of a policy that counts. `None`: the rule matches.
    Rule {
        tier: usize,
        policy: usize,
        rule: usize,
        mismatch: Option<Mismatch>,
    },
    /// No rule decided in a tier that has a policy that counts.
    TierEnd {
        tier: usize,
    },
}

/// Whether a policy has a say about one direction of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Counts,
    /// Its subject does not hold the endpoint.
    OtherEndpoints,
    /// It holds the endpoint and says nothing about this direction.
    OtherDirection,
    /// It would have a say, but is only staged.
    Audited,
}

/// The first condition of a rule that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mismatch {
    Version,
    Protocol,
    Icmp,
    Source(EndMismatch),
    Destination(EndMismatch),
}

/// The first condition about one end that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndMismatch {
    /// By `selector`.
    NotSelected,
    /// By `not_selector`.
    Excluded,
    OutsideNets,
    InsideNotNets,
    PortNotListed,
    PortExcluded,
}

/// Which policies count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Regime {
    /// Those that are enforced.
    Enforced,
    /// The audited ones too, each in its place.
    WithAudited,
}

/// A connection that is asked about. Positions in the answers are those of `world`.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    pub world: &'a World,
    pub from: Party,
    pub to: Party,
    pub opening: Opening,
    pub regime: Regime,
}

/// Judges a connection from `from` to `to`, as it is enforced.
pub fn judge(world: &World, from: Party, to: Party, opening: Opening) -> Judgement {
    Question { world, from, to, opening, regime: Regime::Enforced }.judge()
}

pub(super) fn selects_endpoint(world: &World, selector: &Selector, index: usize) -> bool {
    let endpoint = &world.endpoints[index];
    selector.selects(world, Some(&endpoint.name.namespace), &endpoint.labels)
}

/// One direction of a connection, as its endpoint's policies see it.
struct Side<'a> {
    question: Question<'a>,
    direction: Direction,
    /// The endpoint whose policies are asked.
    subject: usize,
}

impl<'a> Side<'a> {
    fn decide(&self, visit: &mut dyn FnMut(Step)) -> Decision {
        let world = self.question.world;
        for (t, tier) in world.tiers.iter().enumerate() {
            match self.ask(t, tier, visit) {
                Some((Action::Allow, reason)) => return Decision { allowed: true, reason },
                Some((Action::Deny, reason)) => return Decision { allowed: false, reason },
                Some((Action::Pass | Action::Log, _)) | None => {}
            }
        }
        Decision { allowed: world.profile == Profile::Allow, reason: Reason::Profile }
    }

    /// `None`: no policy of the tier counts, it is skipped.
    fn ask(&self, t: usize, tier: &'a Tier, visit: &mut dyn FnMut(Step)) -> Option<(Action, Reason)> {
        let mut first = None;
        for (p, policy) in tier.policies.iter().enumerate() {
            let standing = self.standing(policy);
            visit(Step::Policy { tier: t, policy: p, standing });
            if standing != Standing::Counts {
                continue;
            }
            first.get_or_insert(p);
            for (r, rule) in self.rules(policy).iter().enumerate() {
                let mismatch = self.question.mismatched(policy, rule);
                visit(Step::Rule { tier: t, policy: p, rule: r, mismatch });
                if mismatch.is_none() && rule.action != Action::Log {
                    return Some((rule.action, Reason::Rule { tier: t, policy: p, rule: r }));
                }
            }
        }
        let policy = first?;
        visit(Step::TierEnd { tier: t });
        let default = match tier.default {
            TierDefault::Deny => Action::Deny,
            TierDefault::Pass => Action::Pass,
        };
        Some((default, Reason::TierDefault { tier: t, policy }))
    }

    fn standing(&self, policy: &Policy) -> Standing {
        if !selects_endpoint(self.question.world, &policy.subject, self.subject) {
            return Standing::OtherEndpoints;
        }
        match policy.rules(self.direction) {
            None => Standing::OtherDirection,
            Some(_) if policy.audit && self.question.regime == Regime::Enforced => Standing::Audited,
            Some(_) => Standing::Counts,
        }
    }

    fn rules(&self, policy: &'a Policy) -> &'a [Rule] {
        policy.rules(self.direction).unwrap_or_default()
    }
}

impl<'a> Question<'a> {
    /// The verdict.
    pub fn judge(self) -> Judgement {
        let one = |direction| Some(self.side(direction)?.decide(&mut |_| ()));
        Judgement { egress: one(Direction::Egress), ingress: one(Direction::Ingress) }
    }

    /// Everything that is considered about one direction; `None` where that end is no endpoint.
    pub fn walk(self, direction: Direction) -> Option<Vec<Step>> {
        let mut steps = vec![];
        self.side(direction)?.decide(&mut |step| steps.push(step));
        Some(steps)
    }

    /// Whether an audited policy would have a say.
    pub fn is_audited(self) -> bool {
        let enforced = Question { regime: Regime::Enforced, ..self };
        let audited = || self.world.tiers.iter().flat_map(|tier| &tier.policies).filter(|policy| policy.audit);
        [Direction::Egress, Direction::Ingress]
            .into_iter()
            .filter_map(|direction| enforced.side(direction))
            .any(|side| audited().any(|policy| side.standing(policy) == Standing::Audited))
    }

    fn side(self, direction: Direction) -> Option<Side<'a>> {
        let party = match direction {
            Direction::Egress => self.from,
            Direction::Ingress => self.to,
        };
        Some(Side { question: self, direction, subject: party.endpoint()? })
    }

    fn mismatched(self, policy: &Policy, rule: &Rule) -> Option<Mismatch> {
        let m = &rule.matches;
        let sets = if policy.kind.selects_sets() { self.world.sets.as_slice() } else { &[] };
        let Opening { protocol, source_port, destination_port, .. } = self.opening;
        let own = [
            (m.version.is_none_or(|want| self.is_version(want)), Mismatch::Version),
            (m.protocol.is_none_or(|want| want == protocol), Mismatch::Protocol),
            (m.not_protocol.is_none_or(|unwanted| unwanted != protocol), Mismatch::Protocol),
            (m.icmp.is_none_or(|want| self.is_icmp(want)), Mismatch::Icmp),
            (m.not_icmp.is_none_or(|unwanted| protocol.is_icmp() && !self.is_icmp(unwanted)), Mismatch::Icmp),
        ];
        if let Some((_, mismatch)) = own.into_iter().find(|(holds, _)| !holds) {
            return Some(mismatch);
        }
        let source = End { world: self.world, sets, party: self.from, protocol, port: source_port };
        let destination = End { party: self.to, port: destination_port, ..source };
        let source = source.mismatch(&m.source).map(Mismatch::Source);
        source.or_else(|| destination.mismatch(&m.destination).map(Mismatch::Destination))
    }

    fn is_version(self, want: IpVersion) -> bool {
        match self.from.address().or(self.to.address()) {
            Some(IpAddr::V4(_)) => want == IpVersion::V4,
            Some(IpAddr::V6(_)) => want == IpVersion::V6,
            // an endpoint without addresses speaks whatever it is asked to
            None => true,
        }
    }

    fn is_icmp(self, want: IcmpMatch) -> bool {
        let Some((kind, code)) = self.opening.icmp else { return false };
        want.kind.is_none_or(|k| k == kind) && want.code.is_none_or(|c| c == code)
    }
}

/// One end of the connection, as a rule's [`EntityMatch`] sees it.
#[derive(Clone, Copy)]
struct End<'a> {
    world: &'a World,
    /// The sets that the policy's selectors look at.
    sets: &'a [NetworkSet],
    party: Party,
    protocol: Protocol,
    port: u16,
}

impl End<'_> {
    fn mismatch(self, m: &EntityMatch) -> Option<EndMismatch> {
        let is_one_of = |ports: &[PortMatch]| self.protocol.has_ports() && ports.iter().any(|port| self.is_port(port));
        if !m.selector.as_ref().is_none_or(|selector| self.is_selected(selector)) {
            return Some(EndMismatch::NotSelected);
        }
        if m.not_selector.as_ref().is_some_and(|selector| self.is_selected(selector)) {
            return Some(EndMismatch::Excluded);
        }
        if !m.nets.as_ref().is_none_or(|nets| self.is_inside(nets)) {
            return Some(EndMismatch::OutsideNets);
        }
        if self.is_inside(&m.not_nets) {
            return Some(EndMismatch::InsideNotNets);
        }
        if !m.ports.as_ref().is_none_or(|ports| is_one_of(ports)) {
            return Some(EndMismatch::PortNotListed);
        }
        is_one_of(&m.not_ports).then_some(EndMismatch::PortExcluded)
    }

    /// As a peer: endpoints by their labels, any address by the network sets that hold it.
    fn is_selected(self, selector: &Selector) -> bool {
        self.party.endpoint().is_some_and(|index| selects_endpoint(self.world, selector, index))
            || self.sets.iter().any(|set| {
                self.is_inside(&set.nets) && selector.selects(self.world, set.namespace.as_deref(), &set.labels)
            })
    }

    fn is_inside(self, nets: &[IpNet]) -> bool {
        self.party.address().is_some_and(|address| nets.iter().any(|net| net.contains(&address)))
    }

    fn is_port(self, want: &PortMatch) -> bool {
        let name = match want {
            PortMatch::Range(range) => return range.contains(&self.port),
            PortMatch::Named(name) => name,
        };
        let declared = self.party.endpoint().map(|index| self.world.endpoints[index].ports.as_slice());
        declared.unwrap_or_default().iter().any(|declared| {
            declared.name.as_ref() == Some(name) && declared.protocol == self.protocol && declared.port == self.port
        })
    }
}

#[cfg(test)]
mod tests;
