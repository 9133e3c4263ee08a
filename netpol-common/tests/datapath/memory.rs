use netpol_common::{
    drops::{Drop, Side},
    flow::{FlowFlags, REFRESH, Ticks, seconds},
    kernel::{Bucket, NEW_FLOWS, Settings},
    tables::{IfIndex, RuleId},
    wire::Protocol,
};
use proptest::{collection::vec, prelude::*};

use crate::{
    lab::*,
    support::frame::{ACK, FIN, RST, SYN},
};

#[test]
fn both_directions_are_remembered_at_once() {
    let mut lab = Lab::new().allow(A, B, DNS);
    assert_eq!(lab.send(A, B, Udp(5000, 53)), DIRECT);
    let own = lab.flow(Side::From, A, (A, B), Udp(5000, 53)).unwrap();
    let reply = lab.flow(Side::From, B, (B, A), Udp(53, 5000)).unwrap();
    assert_eq!((own.ifindex, reply.ifindex), (B.interface, A.interface));
    assert_eq!((own.packets, reply.packets), (1, 0));
    assert_eq!(own.bytes, packet(A, B, Udp(5000, 53)).len() as u64);
    assert_eq!((own.egress_rule.rule(), own.ingress_rule.rule()), (RuleId(7), RuleId(7)));
    assert_eq!((own.source_mac, reply.source_mac), (A.mac.into(), B.mac.into()));
    assert!(!own.word.flags().has(FlowFlags::REPLY) && reply.word.flags().has(FlowFlags::REPLY));
}

#[test]
fn replies_from_outside_are_expected_where_the_request_left() {
    let mut lab = Lab::new().allow(A, WORLD, DNS);
    let gateway = Who { mac: HOST.mac, ..WORLD };
    assert_eq!(lab.send(A, gateway, Udp(5000, 53)), STACK);
    assert_eq!(lab.reach(WORLD, A, Udp(53, 5000)), STACK);
    let reply = lab.flow(Side::To, A, (WORLD, A), Udp(53, 5000)).unwrap();
    assert_eq!(reply.ifindex, WORLD.interface, "the first packet tells where they come from");
    assert_eq!(lab.reach(WORLD, A, Udp(53, 5001)), Err(Drop::PolicyIngress));
}

#[test]
fn an_entry_in_use_is_looked_at_every_five_seconds() {
    let mut lab = Lab::new().allow(A, B, DNS);
    lab.send(A, B, Udp(5000, 53)).unwrap();
    let judged = |lab: &Lab| lab.flow(Side::From, A, (A, B), Udp(5000, 53)).unwrap().judged;
    let first = judged(&lab);
    lab.0.wait(REFRESH);
    lab.send(A, B, Udp(5000, 53)).unwrap();
    assert_eq!(judged(&lab), first);
    lab.0.wait(1);
    lab.evict(Side::From, B, (B, A), Udp(53, 5000));
    lab.send(A, B, Udp(5000, 53)).unwrap();
    assert_eq!(judged(&lab), lab.0.now);
    assert!(lab.flow(Side::From, B, (B, A), Udp(53, 5000)).is_some(), "its other half lives as long");
    assert_eq!(lab.flow(Side::From, A, (A, B), Udp(5000, 53)).unwrap().packets, 3, "counters go on");
}

#[test]
fn a_silent_exchange_of_datagrams_is_forgotten() {
    for (wait, passes) in [(seconds(180), true), (seconds(180) + 1, false)] {
        let mut lab = Lab::new().allow(A, B, (Protocol::UDP, 53));
        lab.send(A, B, Udp(5000, 53)).unwrap();
        lab.0.wait(wait);
        assert_eq!(lab.send(B, A, Udp(53, 5000)).is_ok(), passes, "after {wait} ticks");
    }
}

#[test]
fn no_silence_and_no_reset_makes_forget_who_opened() {
    for flags in [ACK, ACK | FIN, RST] {
        let mut lab = Lab::new().allow(A, B, (Protocol::TCP, 50000));
        lab.send(A, B, Tcp(1000, 50000, SYN)).unwrap();
        lab.send(A, B, Tcp(1000, 50000, flags)).unwrap();
        lab.0.wait(seconds(24 * 3600));
        assert!(lab.send(B, A, Tcp(50000, 1000, ACK)).is_ok(), "{flags:#x}");
        assert!(lab.send(A, B, Tcp(1000, 50000, ACK)).is_ok(), "{flags:#x}");
    }
}

#[test]
fn a_denial_is_remembered_with_who_denied() {
    let mut lab = Lab::new();
    for _ in 0..3 {
        assert_eq!(lab.send(A, B, Udp(5000, 53)), Err(Drop::PolicyEgress));
    }
    let denial = lab.denial(Side::From, A, (A, B), Udp(5000, 53)).unwrap();
    assert_eq!((denial.packets, denial.egress_rule.rule(), denial.ingress_rule.rule()), (3, RuleId(9), RuleId::NONE));
    assert!(lab.0.v4.flows.borrow().is_empty());
}

#[test]
fn a_denial_ends_with_its_generation() {
    let mut lab = Lab::new();
    assert_eq!(lab.send(A, B, Udp(5000, 53)), DENIED);
    lab.publish();
    lab.may(A, B, DNS);
    assert_eq!(lab.send(A, B, Udp(5000, 53)), DIRECT);
}

#[test]
fn a_denial_does_not_outlive_what_made_it_a_reply() {
    let mut lab = Lab::new().allow(A, B, DNS);
    lab.send(A, B, Udp(53, 53)).unwrap();
    lab.publish();
    lab.may(B, A, DNS);
    assert!(lab.send(B, A, Udp(53, 53)).is_err(), "a reply of a revoked connection");
    lab.0.wait(seconds(181));
    assert_eq!(lab.send(B, A, Udp(53, 53)), DIRECT, "a datagram of its own");
}

#[test]
fn an_older_denial_does_not_close_a_connection() {
    let mut lab = Lab::new().allow(A, B, HTTP);
    lab.send(A, B, Tcp(40000, 80, SYN)).unwrap();
    lab.send(B, A, Tcp(80, 40000, SYN | ACK)).unwrap();
    lab.0.wait(REFRESH - 10);
    assert_eq!(lab.send(B, A, Tcp(80, 40000, SYN)), DENIED);
    lab.0.wait(20);
    assert_eq!(lab.send(B, A, Tcp(80, 40000, ACK)), DIRECT, "its entry is due, not invalid");
}

#[test]
fn a_denials_counters_go_on() {
    let mut lab = Lab::new();
    assert_eq!(lab.send(A, B, Udp(5000, 53)), DENIED);
    lab.0.wait(REFRESH + 1);
    assert_eq!(lab.send(A, B, Udp(5000, 53)), DENIED);
    assert_eq!(lab.denial(Side::From, A, (A, B), Udp(5000, 53)).unwrap().packets, 2);
}

#[test]
fn without_room_nothing_passes() {
    let mut lab = Lab::new().allow(A, B, DNS);
    lab.0.full.set(true);
    assert_eq!(lab.send(A, B, Udp(5000, 53)), Err(Drop::FlowTable));
}

#[test]
fn an_entry_of_a_coming_generation_speaks_for_nobody_yet() {
    let mut lab = Lab::new().allow(A, B, DNS);
    lab.send(A, B, Udp(5000, 53)).unwrap();
    // another CPU still reads the generation before
    lab.0.live.generation.0 -= 1;
    assert_eq!(lab.send(B, A, Udp(53, 5000)), DENIED, "as if nothing were known");
}

#[test]
fn a_workload_opens_no_more_than_its_share() {
    let mut lab = Lab::new().allow(A, B, DNS);
    let buckets = lab.0.buckets.get_mut();
    buckets.insert(A.interface, Bucket { tokens: 1, filled: lab.0.now });
    assert_eq!(lab.send(A, B, Udp(5000, 53)), DIRECT);
    assert_eq!(lab.send(A, B, Udp(5001, 53)), Err(Drop::Rate));
    assert_eq!(lab.send(A, B, Udp(5000, 53)), DIRECT, "what is open stays open");
    assert_eq!(lab.send(B, A, Udp(53, 5000)), DIRECT);
    lab.0.live.settings = Settings::UNLIMITED;
    assert_eq!(lab.send(A, B, Udp(5001, 53)), DIRECT);
    assert_eq!(lab.0.buckets.borrow().get(&IfIndex(12)), None, "replies cost nothing");
}

proptest! {
    #[test]
    fn a_bucket_never_gives_more_than_it_earned(start in 1..=u32::MAX, waits in vec(0..3000u32, 1..60), asks in 1..2000u32) {
        let mut bucket = Bucket { tokens: NEW_FLOWS, filled: Ticks(start) };
        let (mut now, mut taken) = (Ticks(start), 0u64);
        let mut elapsed = 0u64;
        for wait in waits {
            now = Ticks(now.0.wrapping_add(wait));
            elapsed += u64::from(wait);
            for _ in 0..asks * 30 {
                let Some(rest) = bucket.take(now) else { break };
                bucket = rest;
                taken += 1;
            }
            prop_assert!(bucket.tokens <= NEW_FLOWS);
            // a tick is 2^20 ns
            prop_assert!(taken <= u64::from(NEW_FLOWS) + elapsed * u64::from(NEW_FLOWS) * 1_048_576 / 1_000_000_000);
        }
    }

    #[test]
    fn an_empty_bucket_fills_again(start in 1..=u32::MAX, wait in 1..2000u32) {
        let empty = Bucket { tokens: 0, filled: Ticks(start) };
        prop_assert_eq!(empty.take(Ticks(start)), None);
        let later = empty.take(Ticks(start.wrapping_add(wait))).unwrap();
        prop_assert!(later.tokens >= (wait.min(900) - 1) * 52);
        prop_assert!(later.tokens < NEW_FLOWS);
    }

    #[test]
    fn time_wraps(earlier: u32, elapsed in 0..u32::MAX / 2) {
        let (earlier, now) = (Ticks(earlier), Ticks(earlier.wrapping_add(elapsed)));
        prop_assert_eq!(now.since(earlier), elapsed);
        prop_assert_eq!(earlier.latest(now), now);
        prop_assert_eq!(now.latest(earlier), now);
        prop_assert_eq!(earlier.since(now), 0);
    }
}
