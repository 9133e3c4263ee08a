use netpol_common::{
    drops::{Drop, Side},
    flow::{FlowFlags, Generation},
    kernel::Settings,
    tables::{AddressFlags, Identity, PairKey, PairValue, PortKey, RuleId, RulesetId, Ruling, Subject},
};

use crate::{
    lab::*,
    nat::play::{Tuple, UDP, V, end, framed},
    support::frame::{ACK, SYN},
};

/// The rule of the audited policy that allows one port, and the one that denies all others.
const ALLOWS: RuleId = RuleId(20);
const DENIES: RuleId = RuleId(21);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Egress,
    Ingress,
}

use Direction::*;

impl Lab {
    /// An audited policy about `who` that would allow `tcp/80` alone.
    fn audit(mut self, who: Who, direction: Direction) -> Self {
        self.audited(who, direction);
        self
    }

    fn audited(&mut self, who: Who, direction: Direction) {
        let (subject, flag) = match direction {
            Egress => (Subject::egress(who.identity), AddressFlags::AUDIT_EGRESS),
            Ingress => (Subject::ingress(who.identity), AddressFlags::AUDIT_INGRESS),
        };
        for value in self.0.v4.addresses.values_mut().filter(|value| value.identity == who.identity) {
            value.flags = value.flags.with(flag);
        }
        let subject = subject.audited();
        let ruleset = RulesetId(99);
        let pair = PairValue { ruleset, first: 0, count: 0, otherwise: Ruling::deny(DENIES) };
        self.0.pairs.insert(PairKey { subject, peer: Identity::ANY }, pair);
        let (protocol, port) = HTTP;
        self.0.ports.insert(PortKey { ruleset, port, protocol, reserved: 0 }, Ruling::allow(ALLOWS));
    }

    fn would_drop(&self) -> Vec<(Side, Drop)> {
        self.0.would_drop.take()
    }
}

const AT: (Side, Who) = (Side::From, A);

#[test]
fn what_an_audited_policy_would_stop_passes_and_is_counted() {
    for (who, direction, reason) in [(B, Ingress, Drop::PolicyIngress), (A, Egress, Drop::PolicyEgress)] {
        let mut lab = Lab::new().allow(A, B, DNS).audit(who, direction);
        for _ in 0..3 {
            assert_eq!(lab.send(A, B, Udp(5000, 53)), DIRECT);
        }
        assert_eq!(lab.would_drop(), [(Side::From, reason); 3]);
        let flow = lab.flow(AT.0, AT.1, (A, B), Udp(5000, 53)).unwrap();
        assert!(flow.word.flags().has(FlowFlags::AUDITED));
        assert_eq!(flow.word.flags().has(FlowFlags::EGRESS_DENIED), direction == Egress);
        // the rule that would be stands where the one of its direction is
        let rules = (flow.egress_rule.rule(), flow.ingress_rule.rule());
        assert_eq!(rules, if direction == Egress { (DENIES, RuleId(7)) } else { (RuleId(7), DENIES) });
        assert_eq!(flow.packets, 3);
        // answers would not be there, or be stopped, too
        assert_eq!(lab.send(B, A, Udp(53, 5000)), DIRECT);
        assert_eq!(lab.would_drop(), [(Side::From, reason)]);
    }
}

#[test]
fn what_it_would_allow_is_as_it_was() {
    let mut lab = Lab::new().allow(A, B, HTTP).audit(B, Ingress).audit(A, Egress);
    assert_eq!(lab.send(A, B, Tcp(5000, 80, SYN)), DIRECT);
    assert_eq!(lab.send(B, A, Tcp(80, 5000, SYN | ACK)), DIRECT);
    assert_eq!(lab.would_drop(), []);
    let flow = lab.flow(AT.0, AT.1, (A, B), Tcp(5000, 80, SYN)).unwrap();
    assert!(!flow.word.flags().has(FlowFlags::AUDITED));
    assert_eq!((flow.egress_rule.rule(), flow.ingress_rule.rule()), (RuleId(7), RuleId(7)));
}

#[test]
fn it_is_not_asked_about_the_other_direction_nor_about_others() {
    // of B's egress and of C
    let mut lab = Lab::new().allow(A, B, DNS).audit(B, Egress).audit(C, Ingress);
    assert_eq!(lab.send(A, B, Udp(5000, 53)), DIRECT);
    assert_eq!(lab.would_drop(), []);
}

#[test]
fn what_is_denied_is_denied_and_no_more() {
    let mut lab = Lab::new().audit(B, Ingress);
    for _ in 0..2 {
        assert_eq!(lab.send(A, B, Udp(5000, 53)), DENIED);
    }
    assert_eq!(lab.would_drop(), []);
}

#[test]
fn a_publication_without_it_ends_the_count() {
    let mut lab = Lab::new().allow(A, B, DNS).audit(B, Ingress);
    lab.send(A, B, Udp(5000, 53)).unwrap();
    assert_eq!(lab.would_drop().len(), 1);
    for value in lab.0.v4.addresses.values_mut() {
        value.flags = AddressFlags(value.flags.0 & !AddressFlags::AUDIT_INGRESS.0);
    }
    lab.0.live.generation = Generation(lab.0.live.generation.0 + 1);
    assert_eq!(lab.send(A, B, Udp(5000, 53)), DIRECT);
    assert_eq!(lab.would_drop(), []);
    let flow = lab.flow(AT.0, AT.1, (A, B), Udp(5000, 53)).unwrap();
    assert!(!flow.word.flags().has(FlowFlags::AUDITED));
    assert_eq!((flow.packets, flow.ingress_rule.rule()), (2, RuleId(7)));
    // and one with it begins it, also for what was open before
    lab.audited(B, Ingress);
    lab.0.live.generation = Generation(lab.0.live.generation.0 + 1);
    assert_eq!(lab.send(B, A, Udp(53, 5000)), DIRECT, "an answer");
    assert_eq!(lab.would_drop(), [(Side::From, Drop::PolicyIngress)]);
}

#[test]
fn the_host_is_audited_where_it_is_policed() {
    let mut lab = Lab::new().allow(HOST, B, DNS).audit(B, Ingress);
    assert_eq!(lab.reach(HOST, B, Udp(5000, 53)), STACK);
    assert_eq!(lab.would_drop(), []);
    lab.0.live.settings = Settings::POLICE_HOST;
    lab.0.live.generation = Generation(lab.0.live.generation.0 + 1);
    assert_eq!(lab.reach(HOST, B, Udp(5000, 53)), STACK);
    assert_eq!(lab.would_drop(), [(Side::To, Drop::PolicyIngress)]);
}

#[test]
fn where_the_opener_is_unclear_both_directions_are_asked() {
    // both have ports of clients
    let load = Tcp(40_000, 50_000, ACK);
    let (there, back) = ((netpol_common::wire::Protocol::TCP, 50_000), (netpol_common::wire::Protocol::TCP, 40_000));
    for (who, audited) in [(A, true), (B, true), (C, false)] {
        let mut lab = Lab::new().allow(A, B, there).allow(B, A, back).audit(who, Ingress);
        assert_eq!(lab.send(A, B, load), DIRECT);
        assert_eq!(!lab.would_drop().is_empty(), audited);
    }
}

#[test]
fn what_passes_two_hooks_counts_once() {
    let mut lab = Lab::new().allow(A, B, DNS).audit(B, Ingress);
    // through the stack, and nobody vouches for it
    lab.0.live.settings = Settings::STACK;
    for _ in 0..2 {
        assert_eq!(lab.send(A, B, Udp(5000, 53)), STACK);
        assert_eq!(lab.reach(A, B, Udp(5000, 53)), STACK);
        assert_eq!(lab.would_drop(), [(Side::From, Drop::PolicyIngress)]);
    }
    let arrived = lab.flow(Side::To, B, (A, B), Udp(5000, 53)).unwrap();
    assert!(arrived.word.flags().has(FlowFlags::AUDITED), "it is told all the same");
    // what the sender's hook has not seen is counted where it arrives
    assert_eq!(lab.reach(WORLD, B, Udp(5000, 53)), Err(Drop::PolicyIngress));
    lab.may(WORLD, B, DNS);
    lab.0.live.generation = Generation(lab.0.live.generation.0 + 1);
    assert_eq!(lab.reach(WORLD, B, Udp(5000, 53)), STACK);
    assert_eq!(lab.would_drop(), [(Side::To, Drop::PolicyIngress)]);
}

#[test]
fn what_was_to_a_service_where_it_was_sent_counts_once_too() {
    let mut lab = Lab::translating(&[Settings::STACK]).with_service(V, &[end(B, 53)]).audit(B, Ingress);
    let asks = |to| Tuple::new(UDP, end(A, 40_000), to);
    for _ in 0..2 {
        let sent = framed(asks(V), (A.mac, HOST.mac), 0, false);
        assert_eq!(lab.at(Side::From, A, A.interface, &sent).verdict, STACK);
        // routed over the bridge: nobody vouches for it
        let arrives = framed(asks(end(B, 53)), (HOST.mac, B.mac), 0, false);
        assert_eq!(lab.at(Side::To, B, BRIDGE, &arrives).verdict, STACK);
        assert_eq!(lab.would_drop(), [(Side::From, Drop::PolicyIngress)]);
    }
}
