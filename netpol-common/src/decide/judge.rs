//! What the policies of both ends say about a connection.

use super::{Desk, End, Orientation};
use crate::{
    drops::Drop,
    flow::{FlowFlags, FlowValue, PackedRule, PortPair, Word},
    kernel::{Kernel, Settings},
    policy::{PolicyTables, Probe},
    tables::{AddressFlags, RuleId, Ruling, Subject},
    wire::{Address, PortBe, Protocol},
};

/// The rules that allow a connection.
#[derive(Clone, Copy)]
pub struct Rules {
    pub egress: RuleId,
    pub ingress: RuleId,
}

/// Who said no.
#[derive(Clone, Copy)]
pub(super) struct Denial {
    pub reason: Drop,
    pub rule: RuleId,
}

impl Rules {
    pub const NONE: Self = Self { egress: RuleId::NONE, ingress: RuleId::NONE };
}

impl Denial {
    #[inline(always)]
    pub(super) fn entry<A: Address>(self, desk: &Desk<A>, orientation: Orientation) -> FlowValue<A> {
        let packet = &desk.packet;
        let egress = matches!(self.reason, Drop::PolicyEgress);
        let flags = if egress { FlowFlags::EGRESS_DENIED } else { FlowFlags::NONE };
        let flags = if orientation == Orientation::Forward { flags } else { flags.with(FlowFlags::REPLY) };
        let rule = PackedRule::new(self.rule);
        let none = PackedRule::new(RuleId::NONE);
        FlowValue {
            word: Word::new(packet.generation, packet.key.tag(), flags),
            packets: u64::from(packet.packets),
            bytes: u64::from(packet.bytes),
            seen: packet.now,
            judged: packet.now,
            ifindex: packet.ingress,
            source_mac: packet.source_mac,
            destination_mac: packet.destination_mac,
            egress_rule: if egress { rule } else { none },
            ingress_rule: if egress { none } else { rule },
            tcp_flags: packet.tcp_flags,
            reserved: 0,
            rewrite: desk.wire,
            service: desk.service,
        }
    }
}

/// Which policies are asked: [`AddressFlags`] of the endpoints that they are about.
#[derive(Clone, Copy)]
pub(super) struct View {
    egress: AddressFlags,
    ingress: AddressFlags,
    audited: bool,
}

impl View {
    pub(super) const ENFORCED: Self =
        Self { egress: AddressFlags::ISOLATED_EGRESS, ingress: AddressFlags::ISOLATED_INGRESS, audited: false };
    /// Those that are enforced and those that are audited, together.
    pub(super) const AUDITED: Self =
        Self { egress: AddressFlags::AUDIT_EGRESS, ingress: AddressFlags::AUDIT_INGRESS, audited: true };

    #[inline(always)]
    const fn of(self, subject: Subject) -> Subject {
        if self.audited { subject.audited() } else { subject }
    }
}

/// Asks the policies of both ends about the connection's original direction; where that is unclear,
/// both directions must be allowed.
#[inline(always)]
pub(super) fn judge<A: Address, K: Kernel<A>>(
    kernel: &K,
    desk: &Desk<A>,
    orientation: Orientation,
    view: View,
) -> Result<Rules, Denial> {
    let Desk { packet, source, destination, .. } = desk;
    // an endpoint speaks to itself when it is a backend of the service that it asks
    if source.is_local() && source.ifindex.0 == destination.ifindex.0 {
        return Ok(Rules::NONE);
    }
    // the real receiver's port, behind a service
    let ports = PortPair::new(packet.key.ports.source(), desk.wire.ports.destination());
    let forward = probe(packet.key.protocol(), ports.source(), ports.destination());
    let reply = probe(packet.key.protocol(), ports.destination(), ports.source());
    // one call site for both, so the verifier walks the rules once
    let (mut from, mut to, mut asked, mut again) = match orientation {
        Orientation::Forward => (source, destination, forward, false),
        Orientation::Reply => (destination, source, reply, false),
        Orientation::Unclear => (destination, source, reply, true),
    };
    loop {
        let rules = judge_direction(kernel, (packet.settings, view), (from, to), asked)?;
        if !again {
            return Ok(rules);
        }
        (from, to, asked, again) = (source, destination, forward, false);
    }
}

/// What rules look at, by the ports of a flow's key in the direction that is judged. ICMP has its type and
/// code where others have a destination port.
#[inline(always)]
pub(super) fn probe(protocol: Protocol, source: PortBe, destination: PortBe) -> Probe {
    let (source, destination) = if protocol.has_ports() {
        (source.to_host(), destination.to_host())
    } else if protocol.is_icmp() {
        (0, destination.to_host())
    } else {
        (0, 0)
    };
    Probe { protocol, source_port: source, destination_port: destination }
}

#[inline(always)]
pub(super) fn judge_direction<K: PolicyTables>(
    kernel: &K,
    (settings, view): (Settings, View),
    (from, to): (&End, &End),
    probe: Probe,
) -> Result<Rules, Denial> {
    let mut rules = Rules::NONE;
    if from.is_local() && from.flags.has(view.egress) {
        let ruling = kernel.verdict(view.of(Subject::egress(from.identity)), to.identity, probe);
        rules.egress = allowed(ruling, Drop::PolicyEgress)?;
    }
    let trusted = from.flags.has(AddressFlags::HOST) && !settings.has(Settings::POLICE_HOST);
    if to.is_local() && to.flags.has(view.ingress) && !trusted {
        let ruling = kernel.verdict(view.of(Subject::ingress(to.identity)), from.identity, probe);
        rules.ingress = allowed(ruling, Drop::PolicyIngress)?;
    }
    Ok(rules)
}

#[inline(always)]
pub(super) fn allowed(ruling: Option<Ruling>, reason: Drop) -> Result<RuleId, Denial> {
    match ruling {
        Some(ruling) if ruling.is_allowed() => Ok(ruling.rule()),
        Some(ruling) => Err(Denial { reason, rule: ruling.rule() }),
        None => Err(Denial { reason: Drop::NoPolicy, rule: RuleId::NONE }),
    }
}
