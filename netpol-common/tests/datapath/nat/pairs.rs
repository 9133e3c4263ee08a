//! No two connections share the key of their answers, and what comes back is what was sent.

use std::collections::{HashMap, HashSet};

use netpol_common::{
    drops::Drop,
    flow::seconds,
    kernel::Settings,
    nat::{NatKey, NatState, Translation},
    wire::Addr4,
};
use proptest::{collection::vec, prelude::*, sample::select};

use super::play::*;
use crate::{
    lab::*,
    support::frame::{ACK, FIN, RST, SYN},
};

const WAYS: [&[Settings]; 2] = [&[], &[Settings::STACK]];
const B8080: End = (B.address, 8080);
const C8080: End = (C.address, 8080);
/// A backend that is no endpoint.
const FAR: End = ([192, 0, 2, 77], 8080);

fn through_service() -> Tuple {
    Tuple::new(UDP, end(A, 5000), V)
}

fn plain(to: End) -> Tuple {
    Tuple::new(UDP, end(A, 5000), to)
}

// === with connections that are not translated ===

#[test]
fn a_plain_connection_does_not_take_the_answers_of_a_translated_one() {
    for backend in [B8080, FAR] {
        for way in WAYS {
            let mut lab = Lab::translating(way).with_service(V, &[backend]);
            let arrived = lab.play(through_service(), 0).unwrap();
            assert_eq!(lab.tried(plain(backend), 0), Err(Drop::Translation), "{backend:?} {way:?}");
            assert_eq!(lab.answer(&arrived, 0).unwrap().tuple, through_service().reversed());
        }
    }
}

#[test]
fn a_translated_connection_does_not_take_the_answers_of_a_plain_one() {
    for backend in [B8080, FAR] {
        for way in WAYS {
            let mut lab = Lab::translating(way).with_service(V, &[backend]);
            let direct = lab.play(plain(backend), 0).unwrap();
            let arrived = lab.play(through_service(), 0).unwrap();
            assert_ne!(arrived.tuple, direct.tuple, "{backend:?} {way:?}");
            assert_eq!(lab.answer(&arrived, 0).unwrap().tuple, through_service().reversed());
            assert_eq!(lab.answer(&direct, 0).unwrap().tuple, plain(backend).reversed());
        }
    }
}

#[test]
fn a_plain_connection_keeps_its_answers_across_a_publication() {
    for backend in [B8080, FAR] {
        for way in WAYS {
            let mut lab = Lab::translating(way).with_service(V, &[backend]);
            let direct = lab.play(plain(backend), 0).unwrap();
            lab.publish();
            let arrived = lab.play(through_service(), 0).unwrap();
            assert_ne!(arrived.tuple, direct.tuple, "{backend:?} {way:?}");
            assert_eq!(lab.answer(&direct, 0).unwrap().tuple, plain(backend).reversed());
            assert_eq!(lab.answer(&arrived, 0).unwrap().tuple, through_service().reversed());
        }
    }
}

#[test]
fn what_a_backend_opens_from_its_services_port_is_no_answer() {
    for backend in [B, C] {
        for way in WAYS {
            let (mut lab, arrived) = answered(backend, way);
            let before = halves(&mut lab, true);
            lab.0.wait(seconds(1));
            assert_eq!(lab.tried(arrived.tuple.reversed(), SYN), Err(Drop::Translation), "{way:?}");
            assert_eq!(halves(&mut lab, true), before, "it does not keep the pair alive");
            assert_eq!(lab.answer(&arrived, ACK).unwrap().tuple, tcp_through_service().reversed());
            assert_eq!(lab.play(tcp_through_service(), ACK).unwrap().tuple, arrived.tuple);
        }
    }
}

#[test]
fn a_pair_without_a_connection_gives_way_to_what_its_backend_opens() {
    type Ends = fn(&mut Lab, &Arrived);
    let cases: [(&str, Ends); 4] = [
        ("reset by the backend", |lab, arrived| _ = lab.answer(arrived, RST | ACK).unwrap()),
        ("closed by the client", |lab, _| _ = lab.play(tcp_through_service(), FIN | ACK).unwrap()),
        ("the service has another backend", |lab, _| {
            lab.unserve();
            lab.serve(V, &[FAR], 0);
        }),
        ("no service", |lab, _| lab.unserve()),
    ];
    for way in WAYS {
        for (case, ends) in cases {
            let (mut lab, arrived) = answered(B, way);
            ends(&mut lab, &arrived);
            let own = arrived.tuple.reversed();
            let opened = lab.play(own, SYN).unwrap_or_else(|drop| panic!("{case} {way:?}: {drop:?}"));
            assert_eq!(opened.tuple, own, "{case} {way:?}");
            assert_eq!(lab.pairs(), 0, "{case} {way:?}");
        }
        let mut lab = Lab::translating(way).with_service(V, &[B8080]);
        let arrived = lab.play(tcp_through_service(), SYN).unwrap();
        let own = arrived.tuple.reversed();
        assert_eq!(lab.play(own, SYN).unwrap().tuple, own, "never answered: perhaps somebody else sent it {way:?}");
    }
}

/// A connection through the service, which its backend has answered.
fn answered(backend: Who, way: &[Settings]) -> (Lab, Arrived) {
    let mut lab = Lab::translating(way).with_service(V, &[end(backend, 8080)]);
    let arrived = lab.play(tcp_through_service(), SYN).unwrap();
    assert_eq!(lab.answer(&arrived, SYN | ACK).unwrap().tuple, tcp_through_service().reversed());
    (lab, arrived)
}

fn tcp_through_service() -> Tuple {
    Tuple { protocol: TCP, ..through_service() }
}

// === with other CPUs, and halves that are lost ===

/// The halves of a pair.
fn halves(lab: &mut Lab, is_reply: bool) -> Vec<(NatKey<Addr4>, Translation<Addr4>)> {
    let all = lab.0.v4.translations.get_mut().iter().map(|(key, half)| (*key, *half));
    all.filter(|(_, half)| half.is_reply() == is_reply).collect()
}

#[test]
fn two_packets_of_one_connection_at_once_make_one_whole_pair() {
    for way in WAYS {
        for reply_is_theirs in [false, true] {
            let mut lab = Lab::translating(way).with_service(V, &[B8080]);
            lab.play(through_service(), 0).unwrap();
            let (original, reply) = (halves(&mut lab, false)[0], halves(&mut lab, true)[0]);
            lab.0.v4.forget();
            // the other CPU gets the reply's half first, or finds it there; and then the original one
            let rivals = lab.0.v4.rivals.get_mut();
            rivals.insert(original.0, original.1);
            if reply_is_theirs {
                rivals.insert(reply.0, reply.1);
            }
            let arrived = lab.play(through_service(), 0).unwrap();
            assert_eq!(lab.pairs(), 2, "{way:?}, the other's reply: {reply_is_theirs}");
            assert_eq!(lab.answer(&arrived, 0).unwrap().tuple, through_service().reversed());
        }
    }
}

/// Another CPU is about to put its own half where the first of a packet through the service goes: `theirs` makes it of ours.
fn rivalled(
    way: &[Settings],
    theirs: impl FnOnce(&mut Translation<Addr4>),
) -> (Lab, (NatKey<Addr4>, Translation<Addr4>)) {
    let mut lab = Lab::translating(way).with_service(V, &[B8080]);
    lab.play(through_service(), 0).unwrap();
    let (key, mut half) = halves(&mut lab, false)[0];
    lab.0.v4.forget();
    theirs(&mut half);
    lab.0.v4.rivals.get_mut().insert(key, half);
    (lab, (key, half))
}

#[test]
fn two_packets_of_one_connection_at_once_go_the_same_way() {
    for way in WAYS {
        // the other CPU has chosen another port
        let (mut lab, _) = rivalled(way, |original| {
            original.rewrite.ports = netpol_common::flow::PortPair::new(
                netpol_common::wire::PortBe::from_host(7777),
                original.rewrite.ports.destination(),
            );
        });
        let arrived = lab.play(through_service(), 0).unwrap();
        assert_eq!(arrived.tuple.source, (A.address, 7777));
        assert_eq!(halves(&mut lab, true), [], "the other CPU has that one");
    }
}

#[test]
fn who_opens_by_what_has_just_become_the_key_of_answers_makes_no_pair() {
    for way in WAYS {
        let (mut lab, theirs) = rivalled(way, |half| half.state = half.state.with(NatState::REPLY));
        assert_eq!(lab.play(through_service(), 0).err(), Some(Drop::Translation), "{way:?}");
        assert_eq!(halves(&mut lab, false), [], "{way:?}");
        assert_eq!(halves(&mut lab, true), [theirs], "{way:?}: the other CPU's");
    }
}

#[test]
fn a_pair_that_has_lost_its_first_half_is_made_whole() {
    for way in WAYS {
        let mut lab = Lab::translating(way).with_service(V, &[B8080]);
        let before = lab.play(through_service(), 0).unwrap();
        let (lost, _) = halves(&mut lab, false)[0];
        lab.0.v4.translations.get_mut().remove(&lost);
        lab.0.wait(seconds(6));
        assert_eq!(lab.answer(&before, 0).unwrap().tuple, through_service().reversed(), "answers still come back");
        let arrived = lab.play(through_service(), 0).unwrap();
        assert_eq!(arrived.tuple, before.tuple, "{way:?}");
        let now = lab.0.now;
        assert_eq!(lab.pairs(), 2);
        assert!(lab.0.v4.translations.get_mut().values().all(|half| half.seen == now), "both are in use");
        assert_eq!(lab.answer(&arrived, 0).unwrap().tuple, through_service().reversed());
    }
}

// === any connections ===

/// Who opens something, from which port, to where.
#[derive(Clone, Copy, Debug)]
struct Opens {
    tuple: Tuple,
    /// Answered this often, later.
    answers: u8,
    /// Before it, in seconds.
    pause: u32,
    /// There is a publication before.
    publishes: bool,
}

fn opens() -> impl Strategy<Value = Opens> {
    let clients = select(vec![A, B, C, D, WORLD]);
    let targets = select(vec![V, V2, B8080, C8080, FAR, (WORLD.address, 53), PUBLISHED, (OUTSIDE, 8001)]);
    let protocols = select(vec![TCP, UDP, ICMP]);
    let ports = select(vec![5000u16, 5001, 8080, 53]);
    (clients, targets, protocols, ports, 0..3u8, select(vec![0, 0, 0, 6]), prop::bool::weighted(0.1)).prop_filter_map(
        "nobody speaks to itself, and from outside only what is published is reached",
        |(client, (address, port), protocol, from, answers, pause, publishes)| {
            let source = end(client, from);
            // both ends of an echo have the identifier
            let destination = (address, if protocol == ICMP { from } else { port });
            let is_virtual = [V.0, V2.0].contains(&address);
            let is_outside = client == WORLD;
            let is_odd = address == client.address
                || is_outside && ![OUTSIDE, B.address, C.address].contains(&address)
                || protocol == ICMP && (is_virtual || address == OUTSIDE);
            let tuple = Tuple::new(protocol, source, destination);
            (!is_odd).then_some(Opens { tuple, answers, pause, publishes })
        },
    )
}

fn services(lab: &mut Lab) {
    lab.serve(V, &[B8080, C8080, FAR], 0);
    lab.serve(V2, &[B8080, C8080], 3600);
    lab.serve(PUBLISHED, &[B8080], 0);
    lab.serve((OUTSIDE, 8001), &[C8080, B8080], 0);
}

/// Each original half has a reply of its own, and each reply leads back to it.
fn assert_bijection(lab: &mut Lab) {
    let (originals, replies) = (halves(lab, false), halves(lab, true));
    assert_eq!(originals.len(), replies.len());
    let replies: HashMap<_, _> = replies.into_iter().collect();
    for (key, half) in originals {
        let back =
            replies.get(&NatKey::reply(&half.rewrite, key.protocol, key.zone)).expect("a reply for each original");
        assert_eq!(back.rewrite.reversed(), key.rewrite(), "the reply's rewrite undoes the original's");
        assert_eq!((back.service, back.seen), (half.service, half.seen));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_opened_each_answer_reaches_the_one_who_asked(
        all in vec(opens(), 1..40), stack in any::<bool>(), chance in any::<u32>()
    ) {
        let mut lab = Lab::translating(WAYS[usize::from(stack)]);
        lab.0.chance.set(chance);
        services(&mut lab);
        let mut open = HashMap::new();
        let (mut taken, mut answered) = (HashSet::new(), HashSet::new());
        for Opens { tuple, answers, pause, publishes } in all {
            // a key that is another connection's answers is no connection of its own
            let answers_to = open.iter().find(|(_, known): &(&Tuple, &Arrived)| known.tuple.reversed() == tuple);
            if open.contains_key(&tuple.reversed()) || answers_to.is_some() {
                let is_services = answers_to
                    .is_some_and(|(by, known)| by.destination != known.tuple.destination && answered.contains(by));
                if is_services && tuple.protocol == TCP {
                    prop_assert_eq!(lab.tried(tuple, SYN), Err(Drop::Translation));
                }
                continue;
            }
            if publishes {
                lab.publish();
            }
            lab.0.wait(seconds(pause));
            let flags = if open.contains_key(&tuple) { ACK } else { SYN };
            let arrived = match lab.play(tuple, flags) {
                Ok(arrived) => arrived,
                // a plain one whose answers are another's
                Err(reason) => {
                    prop_assert_eq!(reason, Drop::Translation);
                    prop_assert!(![V.0, V2.0, OUTSIDE].contains(&tuple.destination.0), "{:?}", tuple);
                    prop_assert!(!open.contains_key(&tuple));
                    continue;
                }
            };
            if let Some(before) = open.insert(tuple, arrived.clone()) {
                prop_assert_eq!(before.tuple, arrived.tuple, "it goes on as it began");
            } else {
                prop_assert!(taken.insert(arrived.tuple), "{:?} arrives as another did", tuple);
            }
            if answers > 0 {
                answered.insert(tuple);
            }
            for _ in 0..answers {
                let back = lab.answer(&arrived, ACK).unwrap();
                // who echoes has only an identifier, which its answer's key takes for both ends
                prop_assert_eq!(back.tuple.destination, tuple.source);
                prop_assert_eq!(back.tuple.source.0, tuple.destination.0);
                prop_assert!(tuple.protocol == ICMP || back.tuple.source.1 == tuple.destination.1);
            }
            assert_bijection(&mut lab);
        }
        for (tuple, arrived) in &open {
            let back = lab.answer(arrived, ACK).unwrap();
            prop_assert_eq!(back.tuple.destination, tuple.source);
            prop_assert!(tuple.protocol == ICMP || back.tuple == tuple.reversed());
            prop_assert_eq!(lab.play(*tuple, ACK).unwrap().tuple, arrived.tuple);
        }
    }

    /// What arrives is what somebody would have sent who had known whom to ask, and from where; and its answer is what
    /// the client waits for. (Nobody calculates checksums here: netpol-user's differential test compares them.)
    #[test]
    fn a_reply_undoes_its_request_byte_for_byte(
        (open, other) in (opens(), opens()),
        there in (vec(any::<u8>(), 0..100), 0..=10u8),
        back in (vec(any::<u8>(), 0..100), 0..=10u8),
        (stack, chance) in (any::<bool>(), any::<u32>()),
    ) {
        let mut lab = Lab::translating(WAYS[usize::from(stack)]);
        lab.0.chance.set(chance);
        services(&mut lab);
        // it may take the port, and may itself be of the same connection
        prop_assume!(other.tuple.reversed() != open.tuple);
        lab.play(other.tuple, SYN).unwrap();
        let there = Content { flags: SYN, answer: false, words: there.1, payload: &there.0 };
        let Ok(arrived) = lab.carry(open.tuple, there) else { return Ok(()) };
        prop_assert_eq!(&arrived.packet, &there.packet(arrived.tuple));
        let back = Content { flags: SYN | ACK, answer: true, words: back.1, payload: &back.0 };
        let answered = lab.carry(arrived.tuple.reversed(), back).unwrap();
        let expected = if open.tuple.protocol == ICMP { answered.tuple } else { open.tuple.reversed() };
        prop_assert_eq!(answered.tuple.destination, open.tuple.source);
        prop_assert_eq!(&answered.packet, &back.packet(expected));
    }

    #[test]
    fn a_service_allows_nothing_and_denies_nothing(
        rules in vec((select(vec![A, B, C, D]), select(vec![A, B, C, D]), select(vec![80u16, 8080, 5000])), 0..6),
        (client, to) in (select(vec![A, B, C, D]), select(vec![V, V2])),
        protocol in select(vec![TCP, UDP]),
        stack in any::<bool>(),
    ) {
        let mut lab = Lab::translating(WAYS[usize::from(stack)])
            .with_service(V, &[B8080])
            .with_service(V2, &[C8080])
            .isolate(&[A, B, C, D]);
        let may = |from: Who, to: Who, port| rules.contains(&(from, to, port));
        for (from, to, port) in &rules {
            lab.may(*from, *to, (protocol, *port));
        }
        let backend = if to == V { B } else { C };
        let sent = Tuple::new(protocol, end(client, 5000), to);
        let allowed = client == backend || may(client, backend, 8080);
        let result = lab.play(sent, SYN);
        prop_assert_eq!(result.is_ok(), allowed, "{:?}", result);
        let Ok(arrived) = result else {
            prop_assert_eq!(lab.pairs(), 0);
            return Ok(());
        };
        prop_assert!(lab.answer(&arrived, SYN | ACK).is_ok());
        // what only answers opens nothing, whatever it may
        if protocol == TCP {
            prop_assert_eq!(lab.tried(arrived.tuple.reversed(), SYN), Err(Drop::Translation));
            prop_assert!(lab.answer(&arrived, ACK).is_ok());
        }
        lab.publish();
        prop_assert_eq!(lab.answer(&arrived, ACK).is_ok(), client == backend);
        prop_assert_eq!(lab.play(sent, ACK).is_ok(), client == backend);
    }
}
