//! The meaning of policies: interprets the ordered rules directly, one connection at a time.
//!
//! `matrix`, `trace` and the tests' oracle ask here; the kernel asks compiled tables. Neither
//! knows of the other, so each checks the other.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    Action, Direction, EntityMatch, IcmpMatch, IpVersion, Match, Policy, PortMatch, Profile, Protocol, Rule, Selector,
    TierDefault, World,
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

    const fn endpoint(self) -> Option<usize> {
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
}

/// One direction's verdict and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub allowed: bool,
    pub reason: Reason,
}

/// Positions are indices into [`World::tiers`], [`super::Tier::policies`] and the direction's rules.
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

/// Judges a connection from `from` to `to`. Positions in the answer are those of `world`.
pub fn judge(world: &World, from: Party, to: Party, opening: Opening) -> Judgement {
    let one = |party: Party, direction| {
        party.endpoint().map(|index| decide(world, direction, index, Connection { world, from, to, opening }))
    };
    Judgement { egress: one(from, Direction::Egress), ingress: one(to, Direction::Ingress) }
}

fn decide(world: &World, direction: Direction, subject: usize, connection: Connection<'_>) -> Decision {
    for (t, tier) in world.tiers.iter().enumerate() {
        let mut first = None;
        let about = |policy: &&Policy| !policy.audit && selects_endpoint(world, &policy.subject, subject);
        let mut verdict = None;
        for (p, policy) in tier.policies.iter().enumerate().filter(|(_, policy)| about(policy)) {
            let Some(rules) = policy.rules(direction) else { continue };
            first.get_or_insert(p);
            let hit = rules.iter().enumerate().find(|(_, rule)| connection.decided_by(rule));
            if let Some((r, rule)) = hit {
                verdict = Some((rule.action, Reason::Rule { tier: t, policy: p, rule: r }));
                break;
            }
        }
        let Some(first) = first else { continue };
        let end = match tier.default {
            TierDefault::Deny => Action::Deny,
            TierDefault::Pass => Action::Pass,
        };
        let (action, reason) = verdict.unwrap_or((end, Reason::TierDefault { tier: t, policy: first }));
        match action {
            Action::Allow => return Decision { allowed: true, reason },
            Action::Deny => return Decision { allowed: false, reason },
            Action::Pass | Action::Log => {}
        }
    }
    Decision { allowed: world.profile == Profile::Allow, reason: Reason::Profile }
}

pub(super) fn selects_endpoint(world: &World, selector: &Selector, index: usize) -> bool {
    let endpoint = &world.endpoints[index];
    selector.selects(world, Some(&endpoint.name.namespace), &endpoint.labels)
}

#[derive(Clone, Copy)]
struct Connection<'a> {
    world: &'a World,
    from: Party,
    to: Party,
    opening: Opening,
}

impl Connection<'_> {
    fn decided_by(self, rule: &Rule) -> bool {
        rule.action != Action::Log && self.matches(&rule.matches)
    }

    fn matches(self, m: &Match) -> bool {
        let Opening { protocol, source_port, destination_port, icmp } = self.opening;
        let version = |want| match self.from.address().or(self.to.address()) {
            Some(IpAddr::V4(_)) => want == IpVersion::V4,
            Some(IpAddr::V6(_)) => want == IpVersion::V6,
            // an endpoint without addresses speaks whatever it is asked to
            None => true,
        };
        let icmp_is = |want: IcmpMatch| {
            icmp.is_some_and(|(kind, code)| want.kind.is_none_or(|k| k == kind) && want.code.is_none_or(|c| c == code))
        };
        m.version.is_none_or(version)
            && m.protocol.is_none_or(|p| p == protocol)
            && m.not_protocol.is_none_or(|p| p != protocol)
            && m.icmp.is_none_or(icmp_is)
            && m.not_icmp.is_none_or(|unwanted| protocol.is_icmp() && !icmp_is(unwanted))
            && self.end_matches(self.from, source_port, &m.source)
            && self.end_matches(self.to, destination_port, &m.destination)
    }

    fn end_matches(self, party: Party, port: u16, m: &EntityMatch) -> bool {
        let inside = |nets: &[IpNet]| party.address().is_some_and(|a| nets.iter().any(|net| net.contains(&a)));
        let port_is = |want: &PortMatch| match want {
            PortMatch::Range(range) => range.contains(&port),
            PortMatch::Named(name) => party.endpoint().is_some_and(|index| {
                self.world.endpoints[index].ports.iter().any(|declared| {
                    declared.name.as_ref() == Some(name)
                        && declared.protocol == self.opening.protocol
                        && declared.port == port
                })
            }),
        };
        let has_ports = self.opening.protocol.has_ports();
        m.selector.as_ref().is_none_or(|s| self.is_selected(party, s))
            && !m.not_selector.as_ref().is_some_and(|s| self.is_selected(party, s))
            && m.nets.as_ref().is_none_or(|nets| inside(nets))
            && !inside(&m.not_nets)
            && m.ports.as_ref().is_none_or(|ports| has_ports && ports.iter().any(port_is))
            && !(has_ports && m.not_ports.iter().any(port_is))
    }

    /// As a peer: endpoints by their labels, any address by the network sets that hold it.
    fn is_selected(self, party: Party, selector: &Selector) -> bool {
        party.endpoint().is_some_and(|index| selects_endpoint(self.world, selector, index))
            || party.address().is_some_and(|address| {
                self.world.sets.iter().any(|set| {
                    set.nets.iter().any(|net| net.contains(&address))
                        && selector.selects(self.world, set.namespace.as_deref(), &set.labels)
                })
            })
    }
}
