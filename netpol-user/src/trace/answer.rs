//! What the kernel says, in the names of its generation, and where that is not what the rules say.

use std::net::{IpAddr, SocketAddr};

use netpol_common::{
    drops::{Drop, Pass, Side as Hook},
    tables::{IfIndex, RuleId},
};
use serde::Serialize;

use super::{
    explain::Leg,
    path::{Passed, Path},
};
use crate::{
    datapath::Role,
    model::{explain, row::Side},
    state::{self, Names},
};

/// The kernel's answer to the first packet of the connection.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Answer {
    pub generation: u32,
    /// The classifiers that were asked have the same instructions as those that are loaded.
    pub same_code: bool,
    /// `null`: it was not asked.
    pub allowed: Option<bool>,
    pub drop_reason: Option<&'static str>,
    /// Why it was not asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_asked: Option<String>,
    /// Hook by hook.
    pub steps: Vec<Step>,
    /// How the packet goes on from the last of them.
    pub delivery: Option<Delivery>,
    /// What is not as the rules say; none is how it must be.
    pub differences: Vec<String>,
}

/// A packet at a hook.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    pub hook: &'static str,
    pub interface: String,
    pub source: String,
    pub destination: String,
    /// `passed` or `dropped`.
    pub verdict: &'static str,
    /// As counters have it; `null`: an uplink counts nothing that passes.
    pub reason: Option<&'static str>,
    pub egress_rule: Option<state::Rule>,
    pub ingress_rule: Option<state::Rule>,
    pub translated: Option<Leaving>,
}

/// The addresses and ports that a packet leaves a hook with.
#[derive(Clone, Debug, Serialize)]
pub struct Leaving {
    pub source: String,
    pub destination: String,
}

/// How a packet goes on.
#[derive(Clone, Debug, Serialize)]
pub struct Delivery {
    /// `direct` or `routed`: into the other namespace at once; `out`: out of an uplink at once; `stack`: the host brings
    /// it there.
    pub way: &'static str,
    pub reason: String,
}

impl Step {
    pub fn new(names: &Names, passed: &Passed) -> Self {
        let opening = passed.packet.opening;
        let end = |address: IpAddr, port: u16| match opening.protocol.has_ports() {
            true => SocketAddr::new(address, port).to_string(),
            false => address.to_string(),
        };
        let reason = passed.dropped().map(Drop::name).or_else(|| passed.pass().map(Pass::name));
        let (egress, ingress) = passed.rules();
        Self {
            hook: match (passed.role, passed.side) {
                (Role::Workload, Hook::From) => "from_workload",
                (Role::Workload, Hook::To) => "to_workload",
                (Role::Uplink, Hook::From) => "from_uplink",
                (Role::Uplink, Hook::To) => "to_uplink",
            },
            interface: interface(names, passed.interface),
            source: end(passed.packet.source, opening.source_port),
            destination: end(passed.packet.destination, opening.destination_port),
            verdict: if passed.dropped().is_some() { "dropped" } else { "passed" },
            reason,
            egress_rule: names.rule(egress.0).cloned(),
            ingress_rule: names.rule(ingress.0).cloned(),
            translated: passed.translated().map(|to| Leaving {
                source: end(to.source, to.source_port),
                destination: end(to.destination, to.destination_port),
            }),
        }
    }
}

/// An interface by name, where it is one of ours.
pub fn interface(names: &Names, number: IfIndex) -> String {
    let endpoint = names.endpoints.iter().find(|e| e.ifindex == number.0).map(|e| &e.interface);
    let uplink = || names.uplinks.iter().find(|u| u.ifindex == number.0).map(|u| &u.name);
    endpoint.or_else(uplink).cloned().unwrap_or_else(|| format!("#{}", number.0))
}

/// How the packet goes on from its last hook.
pub fn delivery(names: &Names, path: &Path) -> Option<Delivery> {
    let (judge, last) = (path.judge()?, path.0.last()?);
    if path.dropped().is_some() {
        return None;
    }
    let stack = |reason| Some(Delivery { way: "stack", reason });
    let at = |number: IfIndex| names.endpoints.iter().find(|endpoint| endpoint.ifindex == number.0);
    let reached = path.reached()?;
    let receiver = || names.endpoints.iter().find(|endpoint| endpoint.addresses.contains(&reached.ip()));
    match (judge.side, judge.pass()?) {
        (_, Pass::Direct) => {
            let reason = "both are on one bridge, and nothing on the way would have a say".to_owned();
            Some(Delivery { way: "direct", reason })
        }
        (_, Pass::Routed) => {
            let reason = "the host would bring it there, and nothing on the way would have a say".to_owned();
            Some(Delivery { way: "routed", reason })
        }
        (_, Pass::Out) => {
            let uplink = path.uplink().map_or_else(String::new, |uplink| interface(names, uplink));
            let reason = format!("the host would route it, out of {uplink}, and nothing on the way would have a say");
            Some(Delivery { way: "out", reason })
        }
        (Hook::To, _) => stack(format!("the host brings it to {}", interface(names, judge.interface))),
        (Hook::From, _) if last.role == Role::Uplink => {
            let why = at(judge.interface).and_then(|endpoint| endpoint.stack.as_ref().or(endpoint.outside.as_ref()));
            let why = why.map(|reason| format!(" ({reason})")).unwrap_or_default();
            stack(format!("the host routes it, out of {}{why}", interface(names, last.interface)))
        }
        (Hook::From, _) => match receiver() {
            Some(receiver) => {
                let own = at(judge.interface).and_then(|endpoint| endpoint.stack.clone());
                let why = own.or_else(|| receiver.stack.clone());
                stack(why.unwrap_or_else(|| "the two are neither on one bridge nor both routed".to_owned()))
            }
            None => stack("the host takes or routes it".to_owned()),
        },
    }
}

/// Says where the kernel's verdict about two ends is not that of the rules. `opened` are the two, in words.
pub fn compare(names: &Names, leg: &Leg, path: &Path, opened: &str) -> Option<String> {
    let judge = path.judge()?;
    let (egress, ingress) = judge.rules();
    let rule = |number: RuleId| names.rule(number.0);
    let sides = [&leg.row.egress, &leg.row.ingress];
    let said = |side: Option<&Side>| side.map_or_else(|| "nobody judges it".to_owned(), |side| side.reason.clone());
    let by = |number: RuleId| match (rule(number), number) {
        (_, RuleId::NONE) => "no rule".to_owned(),
        (Some(rule), _) => rule.describe(),
        (None, RuleId(number)) => format!("rule {number}, whose name is not known"),
    };
    let denial = sides.into_iter().flatten().find(|side| !side.allowed);
    match (denial, path.dropped()) {
        (None, None) => {
            let agree =
                is_by(sides[0].as_ref(), rule(egress), egress) && is_by(sides[1].as_ref(), rule(ingress), ingress);
            let expected = sides.map(|side| said(side.as_ref()));
            (!agree).then(|| {
                let [out, into] = expected;
                format!(
                    "{opened}: both allow it, for different reasons: by the rules {out}, and {into}; by the kernel {}, and {}",
                    by(egress),
                    by(ingress)
                )
            })
        }
        (None, Some(drop)) => {
            let decisive = said(leg.row.ingress.as_ref().or(leg.row.egress.as_ref()));
            let by = match drop {
                Drop::PolicyEgress => format!(" by {}", by(egress)),
                Drop::PolicyIngress => format!(" by {}", by(ingress)),
                other => format!(" ({})", other.explanation()),
            };
            Some(format!("{opened}: the rules allow it ({decisive}), the kernel drops it: {}{by}", drop.name()))
        }
        (Some(denial), None) => Some(format!(
            "{opened}: the rules deny it ({}), the kernel lets it pass, by {} and {}",
            denial.reason,
            by(egress),
            by(ingress)
        )),
        (Some(denial), Some(drop)) => {
            let is_egress = leg.row.egress.as_ref().is_some_and(|side| !side.allowed);
            let (expected, number) =
                if is_egress { (Drop::PolicyEgress, egress) } else { (Drop::PolicyIngress, ingress) };
            let agree = drop == expected && is_by(Some(denial), rule(number), number);
            (!agree).then(|| {
                format!(
                    "{opened}: both deny it, for different reasons: by the rules {}, by the kernel {} by {}",
                    denial.reason,
                    drop.name(),
                    by(if drop == Drop::PolicyEgress { egress } else { ingress })
                )
            })
        }
    }
}

/// Whether the kernel's rule is the one that the rules' answer names.
fn is_by(side: Option<&Side>, rule: Option<&state::Rule>, number: RuleId) -> bool {
    let wanted = side.and_then(|side| {
        let by_rule = side.rule.as_ref().map(|r| (&r.kind, &r.namespace, &r.name, Some(r.index), &r.source));
        by_rule.or_else(|| side.isolated_by.as_ref().map(|p| (&p.kind, &p.namespace, &p.name, None, &p.source)))
    });
    match (wanted, rule) {
        (None, None) => number == RuleId::NONE,
        (Some(wanted), Some(state::Rule { kind, namespace, name, index, source, .. })) => {
            wanted == (kind, namespace, name, *index, source)
        }
        _ => false,
    }
}

/// `tcp/80 from shop/a to shop/b`
pub fn opened(question: &crate::model::Question<'_>) -> String {
    let (from, to) = (question.name(question.from), question.name(question.to));
    format!("{} from {from} to {to}", explain::Service(question.opening))
}
