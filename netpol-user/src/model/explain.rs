//! Verdicts in words: which policy, which rule, where it is written, and what it said.

use std::fmt;

use super::{
    Action, Decision, Direction, EndMismatch, Mismatch, Opening, Party, Policy, PolicyKind, Profile, Protocol,
    Question, Reason, Rule, Standing, Step,
};

impl<'a> Question<'a> {
    /// `namespace/name`, or the address.
    pub fn name(&self, party: Party) -> String {
        match party {
            Party::Endpoint { index, .. } => self.world.endpoints[index].name.to_string(),
            Party::Outside(address) => address.to_string(),
        }
    }

    /// The end whose policies decide a direction.
    pub const fn subject(&self, direction: Direction) -> Party {
        match direction {
            Direction::Egress => self.from,
            Direction::Ingress => self.to,
        }
    }

    /// `tcp/80 from shop/a`, as the subject of that direction sees it.
    fn traffic(&self, direction: Direction) -> String {
        let (word, peer) = match direction {
            Direction::Egress => ("to", self.to),
            Direction::Ingress => ("from", self.from),
        };
        format!("{} {word} {}", Service(self.opening), self.name(peer))
    }

    pub fn policy(&self, tier: usize, policy: usize) -> &'a Policy {
        &self.world.tiers[tier].policies[policy]
    }

    /// The policy and the rule that a reason points at.
    pub fn rule(&self, direction: Direction, reason: Reason) -> Option<(&'a Policy, &'a Rule)> {
        let Reason::Rule { tier, policy, rule } = reason else { return None };
        let policy = self.policy(tier, policy);
        Some((policy, policy.rules(direction)?.get(rule)?))
    }

    /// One sentence that says why, without a full stop.
    pub fn reason(&self, direction: Direction, decision: &Decision) -> String {
        let traffic = self.traffic(direction);
        let way = direction_name(direction);
        match decision.reason {
            Reason::Rule { .. } => match self.rule(direction, decision.reason) {
                Some((policy, rule)) => format!(
                    "rule {} of {} {way} at {} {} {traffic}",
                    rule.index,
                    PolicyName(policy),
                    rule.origin,
                    verb(rule.action)
                ),
                None => format!("a rule decides about {traffic}"),
            },
            Reason::TierDefault { tier, policy } => {
                let policy = self.policy(tier, policy);
                let name = &self.world.tiers[tier].name;
                // Kubernetes' policies have one tier, and their readers no word for it
                let within = match policy.kind {
                    PolicyKind::NetworkPolicy => String::new(),
                    _ => format!(" in tier {name}"),
                };
                let mut text = String::new();
                let policy = format_args!("{} {way} at {}{within}", PolicyName(policy), policy.origin);
                // a String takes everything
                let _ = isolated(&mut text, policy, format_args!("{traffic}"));
                text
            }
            Reason::Profile => self.profile(direction, &traffic),
        }
    }

    fn profile(&self, direction: Direction, traffic: &str) -> String {
        let way = direction_name(direction);
        let subject = self.name(self.subject(direction));
        let steps = self.walk(direction).unwrap_or_default();
        let passed = steps.iter().any(|step| matches!(step, Step::Policy { standing: Standing::Counts, .. }));
        match (passed, self.world.profile) {
            (false, Profile::Allow) => format!("no policy is about the {way} of {subject}, so it is open"),
            (false, Profile::Deny) => {
                format!("no policy is about the {way} of {subject}, and what no policy allows is denied")
            }
            (true, Profile::Allow) => format!("every tier passes {traffic} on, and what no tier denies is open"),
            (true, Profile::Deny) => format!("every tier passes {traffic} on, and what no tier allows is denied"),
        }
    }

    /// Why a rule is not about this connection.
    pub fn mismatch(&self, mismatch: Mismatch) -> String {
        let (end, party, port, what) = match mismatch {
            Mismatch::Version => return "it is about the other IP version".to_owned(),
            Mismatch::Protocol => return format!("it is not about {}", self.opening.protocol),
            Mismatch::Icmp => return format!("it is not about {}", Service(self.opening)),
            Mismatch::Source(what) => ("source", self.from, self.opening.source_port, what),
            Mismatch::Destination(what) => ("destination", self.to, self.opening.destination_port, what),
        };
        let name = self.name(party);
        let whose = match party {
            Party::Endpoint { address: Some(address), .. } => format!("{name} ({address})"),
            Party::Endpoint { address: None, .. } => format!("{name} (no known address)"),
            Party::Outside(_) => name.clone(),
        };
        match what {
            EndMismatch::NotSelected => format!("its {end} does not select {name}"),
            EndMismatch::Excluded => format!("its {end} excludes {name}"),
            EndMismatch::OutsideNets => format!("its {end} networks do not hold {whose}"),
            EndMismatch::InsideNotNets => format!("its {end} excludes a network that holds {whose}"),
            EndMismatch::PortNotListed if !self.opening.protocol.has_ports() => {
                format!("it is about {end} ports, and {} has none", self.opening.protocol)
            }
            EndMismatch::PortNotListed => format!("{end} port {port} is not among its ports"),
            EndMismatch::PortExcluded => format!("it excludes {end} port {port}"),
        }
    }
}

/// The words of a default deny, wherever they are said.
pub fn isolated(f: &mut impl fmt::Write, policy: fmt::Arguments<'_>, traffic: fmt::Arguments<'_>) -> fmt::Result {
    write!(f, "isolated by {policy}, and no rule allows {traffic}")
}

/// What a policy's standing means, for people.
pub const fn standing(standing: Standing, direction: Direction) -> &'static str {
    match (standing, direction) {
        (Standing::Counts, _) => "selects it",
        (Standing::OtherEndpoints, _) => "does not select it",
        (Standing::OtherDirection, Direction::Egress) => "selects it, says nothing about egress",
        (Standing::OtherDirection, Direction::Ingress) => "selects it, says nothing about ingress",
        (Standing::Audited, _) => "selects it, but is audited, not enforced",
    }
}

pub const fn direction_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Egress => "egress",
        Direction::Ingress => "ingress",
    }
}

/// What a rule does to what it matches.
pub const fn verb(action: Action) -> &'static str {
    match action {
        Action::Allow => "allows",
        Action::Deny => "denies",
        Action::Pass => "passes on",
        Action::Log => "logs",
    }
}

/// `NetworkPolicy shop/postgres`, or `ClusterNetworkPolicy base`.
pub struct PolicyName<'a>(pub &'a Policy);

impl fmt::Display for PolicyName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Policy { kind, namespace, name, .. } = self.0;
        f.write_str(kind.as_str())?;
        match namespace {
            Some(namespace) => write!(f, " {namespace}/{name}"),
            None => write!(f, " {name}"),
        }
    }
}

/// `tcp/80`, `icmp/8/0`, `protocol 47`.
pub struct Service(pub Opening);

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Opening { protocol, destination_port, icmp, .. } = self.0;
        let Some(name) = Protocol::name(protocol) else { return write!(f, "protocol {protocol}") };
        f.write_str(&name.to_lowercase())?;
        match icmp {
            Some((kind, code)) => write!(f, "/{kind}/{code}"),
            None if protocol.has_ports() => write!(f, "/{destination_port}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Match, Regime, Tier, TierDefault, sample::*};

    /// What is said about tcp/80 from `x/web` into `x/db` under these tiers.
    fn said(tiers: Vec<Tier>, profile: Profile) -> String {
        let mut world = world(&[endpoint("x/web", "10.0.0.1"), endpoint("x/db", "10.0.0.2")]);
        (world.tiers, world.profile) = (tiers, profile);
        let question = Question {
            world: &world,
            from: party(&world, 0),
            to: party(&world, 1),
            opening: tcp(80),
            regime: Regime::Enforced,
        };
        let decision = question.judge().ingress.unwrap();
        question.reason(Direction::Ingress, &decision)
    }

    #[test]
    fn every_reason_is_a_sentence() {
        let with = |rules| vec![tier("sec", TierDefault::Deny, vec![Policy { ingress: Some(rules), ..policy("p") }])];
        let all = |action| with(vec![rule(action, Match::default())]);
        let cases = [
            (vec![], Profile::Allow, "no policy is about the ingress of x/db, so it is open"),
            (vec![], Profile::Deny, "no policy is about the ingress of x/db, and what no policy allows is denied"),
            (
                all(Action::Pass),
                Profile::Allow,
                "every tier passes tcp/80 from x/web on, and what no tier denies is open",
            ),
            (
                all(Action::Pass),
                Profile::Deny,
                "every tier passes tcp/80 from x/web on, and what no tier allows is denied",
            ),
            (
                with(vec![]),
                Profile::Allow,
                "isolated by GlobalNetworkPolicy p ingress at policies.yaml:10 in tier sec, and no rule allows tcp/80 from x/web",
            ),
            (
                all(Action::Deny),
                Profile::Allow,
                "rule 0 of GlobalNetworkPolicy p ingress at policies.yaml:12 denies tcp/80 from x/web",
            ),
        ];
        for (tiers, profile, expected) in cases {
            assert_eq!(said(tiers, profile), expected);
        }
    }

    #[test]
    fn every_mismatch_is_a_sentence() {
        let world = world(&[endpoint("x/web", "10.0.0.1")]);
        let to = Party::Outside("192.0.2.1".parse().unwrap());
        let question =
            Question { world: &world, from: party(&world, 0), to, opening: tcp(80), regime: Regime::Enforced };
        let cases = [
            (Mismatch::Version, "it is about the other IP version"),
            (Mismatch::Protocol, "it is not about TCP"),
            (Mismatch::Source(EndMismatch::NotSelected), "its source does not select x/web"),
            (Mismatch::Source(EndMismatch::PortExcluded), "it excludes source port 40000"),
            (Mismatch::Destination(EndMismatch::OutsideNets), "its destination networks do not hold 192.0.2.1"),
            (Mismatch::Destination(EndMismatch::PortNotListed), "destination port 80 is not among its ports"),
        ];
        for (mismatch, expected) in cases {
            assert_eq!(question.mismatch(mismatch), expected);
        }
        let ping = Opening { protocol: Protocol::ICMP, source_port: 0, destination_port: 0, icmp: Some((8, 0)) };
        let question = Question { opening: ping, ..question };
        let no_port = question.mismatch(Mismatch::Destination(EndMismatch::PortNotListed));
        assert_eq!(no_port, "it is about destination ports, and ICMP has none");
        assert_eq!(question.mismatch(Mismatch::Icmp), "it is not about icmp/8/0");
    }

    #[test]
    fn services_are_written_like_ports_of_rules() {
        let opening = |protocol, icmp| Opening { protocol, source_port: 0, destination_port: 0, icmp };
        assert_eq!(Service(tcp(80)).to_string(), "tcp/80");
        assert_eq!(Service(opening(Protocol::ICMPV6, Some((128, 0)))).to_string(), "icmpv6/128/0");
        assert_eq!(Service(opening(Protocol(47), None)).to_string(), "protocol 47");
    }
}
