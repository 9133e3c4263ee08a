use netpol_common::{
    drops::{Drop, Pass, Side},
    flow::{PortPair, REFRESH, seconds},
    kernel::Settings,
    nat::NatState,
    wire::PortBe,
};

use super::play::*;
use crate::{
    lab::*,
    support::frame::{ACK, FIN, RST, SYN},
};

/// Delivered directly, and through the stack.
const WAYS: [&[Settings]; 2] = [&[], &[Settings::STACK]];
const B8080: End = (B.address, 8080);
const C8080: End = (C.address, 8080);

fn asks(from: Who, to: End) -> Tuple {
    Tuple::new(TCP, end(from, 40000), to)
}

#[test]
fn a_service_leads_to_its_backend_and_back_by_every_way() {
    for way in WAYS {
        for client in [A, D] {
            for protocol in [TCP, UDP] {
                let mut lab = Lab::translating(way).with_service(V, &[B8080]);
                let sent = Tuple::new(protocol, end(client, 40000), V);
                for (flags, answer_flags) in [(SYN, SYN | ACK), (ACK, ACK)] {
                    let arrived = lab.play(sent, flags).unwrap();
                    assert_eq!(arrived.tuple, Tuple::new(protocol, end(client, 40000), B8080), "{way:?}");
                    assert_eq!(arrived.at, B.interface);
                    let back = lab.answer(&arrived, answer_flags).unwrap();
                    assert_eq!(back.tuple, sent.reversed(), "{way:?}");
                    assert_eq!(back.at, client.interface);
                }
                assert_eq!(lab.pairs(), 2);
            }
        }
    }
}

#[test]
fn directly_each_direction_is_translated_where_it_leaves_its_sender() {
    let mut lab = Lab::translating(&[]).with_service(V, &[B8080]);
    let there = lab.at(Side::From, A, A.interface, &framed(asks(A, V), (A.mac, HOST.mac), SYN, false));
    assert_eq!((there.verdict, tuple(&there.frame)), (Ok(Pass::Routed), asks(A, B8080)));
    assert_eq!(there.frame[..6], B.mac);
    let back = lab.at(Side::From, B, B.interface, &framed(asks(A, B8080).reversed(), (B.mac, A.mac), ACK, true));
    assert_eq!((back.verdict, tuple(&back.frame)), (Ok(Pass::Routed), asks(A, V).reversed()));
}

#[test]
fn through_the_stack_the_clients_hook_translates_both_ways() {
    let mut lab = Lab::translating(&[Settings::STACK]).with_service(V, &[B8080]);
    let there = lab.at(Side::From, A, A.interface, &framed(asks(A, V), (A.mac, HOST.mac), SYN, false));
    assert_eq!((there.verdict, tuple(&there.frame)), (STACK, asks(A, B8080)));
    assert_eq!(there.vouched, B.interface, "the backend's hook need not look");
    for flags in [SYN | ACK, ACK] {
        let answer = framed(asks(A, B8080).reversed(), (B.mac, A.mac), flags, true);
        let back = lab.at(Side::From, B, B.interface, &answer);
        assert_eq!((back.verdict, &back.frame), (STACK, &answer), "the host sees it as it is");
        assert_eq!(back.vouched, netpol_common::tables::IfIndex::NONE, "the client's hook must look");
        let back = lab.at(Side::To, A, B.interface, &back.frame);
        assert_eq!((back.verdict, tuple(&back.frame)), (STACK, asks(A, V).reversed()));
    }
}

#[test]
fn a_backends_hook_that_must_judge_knows_who_sent_it() {
    let mut lab = Lab::translating(&[Settings::STACK]).with_service(V, &[B8080]);
    let frame = framed(asks(A, B8080), (HOST.mac, B.mac), SYN, false);
    assert_eq!(lab.at(Side::To, B, BRIDGE, &frame).verdict, Err(Drop::Spoofed), "nobody has sent that");
    lab.play(asks(A, V), SYN).unwrap();
    let seen = lab.at(Side::To, B, BRIDGE, &frame);
    assert_eq!((seen.verdict, seen.frame), (STACK, frame));
}

#[test]
fn an_endpoint_reaches_itself_through_its_service() {
    for way in WAYS {
        let mut lab = Lab::translating(way).with_service(V, &[B8080]).isolate(&[B]);
        let arrived = lab.play(asks(B, V), SYN).unwrap();
        assert_eq!((arrived.first, arrived.at), (Pass::Routed, B.interface));
        assert_eq!(arrived.tuple, Tuple::new(TCP, (V.0, 40000), B8080), "not from its own address");
        let back = lab.answer(&arrived, SYN | ACK).unwrap();
        assert_eq!((back.tuple, back.at), (asks(B, V).reversed(), B.interface));
    }
}

#[test]
fn policy_is_about_the_backend_and_its_own_port() {
    for way in WAYS {
        let mut lab = Lab::translating(way).with_service(V, &[B8080]).isolate(&[A, B]);
        lab.may(A, B, (TCP, 80));
        assert_eq!(lab.tried(asks(A, V), SYN), Err(Drop::PolicyEgress));
        lab.publish();
        lab.may(A, B, (TCP, 8080));
        assert!(lab.tried(asks(A, V), SYN).is_ok());
        assert_eq!(lab.tried(asks(C, V), SYN), Err(Drop::PolicyIngress));
    }
}

#[test]
fn what_is_denied_leaves_no_translation() {
    for way in WAYS {
        let mut lab = Lab::translating(way).with_service(V, &[B8080]).isolate(&[A, B]);
        for _ in 0..2 {
            assert_eq!(lab.tried(asks(A, V), SYN), Err(Drop::PolicyEgress));
            assert_eq!((lab.pairs(), lab.0.v4.flows.get_mut().len()), (0, 0));
        }
    }
}

#[test]
fn a_revoked_service_connection_stops_in_both_directions() {
    for way in WAYS {
        let mut lab = Lab::translating(way).with_service(V, &[B8080]).isolate(&[A, B]);
        lab.may(A, B, (TCP, 8080));
        let arrived = lab.play(asks(A, V), SYN).unwrap();
        lab.answer(&arrived, SYN | ACK).unwrap();
        lab.publish();
        lab.may(B, A, (TCP, 40000));
        assert!(lab.answer(&arrived, ACK).is_err());
        assert!(lab.tried(asks(A, V), ACK).is_err());
        lab.publish();
        lab.may(A, B, (TCP, 8080));
        assert!(lab.answer(&arrived, ACK).is_ok());
        assert!(lab.tried(asks(A, V), ACK).is_ok());
    }
}

#[test]
fn a_translation_knows_which_packets_are_replies() {
    for way in WAYS {
        let mut lab = Lab::translating(way).with_service(V, &[B8080]).isolate(&[A, B]);
        lab.may(A, B, (UDP, 8080));
        let sent = Tuple::new(UDP, end(A, 40000), V);
        let arrived = lab.play(sent, 0).unwrap();
        lab.0.v4.flows.get_mut().clear();
        let back = lab.answer(&arrived, 0).unwrap();
        assert_eq!(back.tuple, sent.reversed());
        lab.0.v4.translations.get_mut().clear();
        lab.0.v4.flows.get_mut().clear();
        assert!(lab.answer(&arrived, 0).is_err(), "by itself it opens something");
    }
}

#[test]
fn a_service_without_backends_refuses() {
    let mut lab = Lab::translating(&[]).with_service(V, &[]);
    assert_eq!(lab.tried(asks(A, V), SYN), Err(Drop::NoBackend));
    assert_eq!((lab.pairs(), lab.0.v4.flows.get_mut().len()), (0, 0));
}

#[test]
fn other_ports_of_a_services_address_are_nobodys() {
    let mut lab = Lab::translating(&[]).with_service(V, &[B8080]);
    let elsewhere = asks(A, (V.0, 81));
    let seen = lab.at(Side::From, A, A.interface, &framed(elsewhere, (A.mac, HOST.mac), SYN, false));
    assert_eq!((seen.verdict, tuple(&seen.frame)), (STACK, elsewhere));
    let ping = framed(Tuple::new(ICMP, end(A, 80), (V.0, 80)), (A.mac, HOST.mac), 0, false);
    let seen = lab.at(Side::From, A, A.interface, &ping);
    assert_eq!((seen.verdict, seen.frame), (STACK, ping));
}

#[test]
fn a_loopback_address_is_never_translated_on_a_wire() {
    let loopback = ([127, 0, 0, 1], 80);
    let mut lab = Lab::translating(&[]).with_service(loopback, &[B8080]);
    let seen = lab.at(Side::From, A, A.interface, &framed(asks(A, loopback), (A.mac, HOST.mac), SYN, false));
    assert_eq!((seen.verdict, tuple(&seen.frame)), (STACK, asks(A, loopback)));
    let outside = Tuple::new(TCP, end(WORLD, 40000), loopback);
    let frame = framed(outside, (WORLD.mac, HOST.mac), SYN, false);
    assert_eq!(tuple(&lab.at_uplink(Side::From, UPLINK, &frame).frame), outside);
    assert_eq!(lab.pairs(), 0);
}

#[test]
fn without_services_and_pools_nothing_is_translated() {
    let mut lab = Lab::translating(&[]).with_service(V, &[B8080]);
    lab.0.live.settings = Settings::default();
    let seen = lab.at(Side::From, A, A.interface, &framed(asks(A, V), (A.mac, HOST.mac), SYN, false));
    assert_eq!((seen.verdict, tuple(&seen.frame)), (STACK, asks(A, V)));
}

// === backends that change ===

#[test]
fn a_publication_leaves_connections_with_their_backends() {
    for way in WAYS {
        let mut lab = Lab::translating(way).with_service(V, &[B8080]);
        let arrived = lab.play(asks(A, V), SYN).unwrap();
        lab.unserve();
        lab.serve(V, &[C8080, B8080, C8080, C8080], 0);
        assert_eq!(lab.play(asks(A, V), ACK).unwrap().tuple, arrived.tuple);
        assert_eq!(lab.answer(&arrived, ACK).unwrap().tuple, asks(A, V).reversed());
    }
}

#[test]
fn a_connection_with_a_backend_that_is_none_any_more_ends() {
    for way in WAYS {
        let mut lab = Lab::translating(way).with_service(V, &[B8080]);
        lab.play(asks(A, V), SYN).unwrap();
        lab.unserve();
        lab.serve(V, &[C8080], 0);
        assert_eq!(lab.tried(asks(A, V), ACK), Err(Drop::NoBackend));
        assert_eq!(lab.pairs(), 0);
        let arrived = lab.play(asks(A, V), SYN).unwrap();
        assert_eq!(arrived.tuple, asks(A, C8080));
        assert_eq!(lab.answer(&arrived, SYN | ACK).unwrap().tuple, asks(A, V).reversed());
    }
}

/// Its forward direction would be valid again, for as long as nobody looks.
#[test]
fn the_last_answers_of_a_backend_that_is_none_any_more_revive_nothing() {
    let ways: [fn() -> Lab; 3] = [|| Lab::translating(&[]), || Lab::translating(&[Settings::STACK]), Lab::outward];
    for (number, way) in ways.into_iter().enumerate() {
        for (client, place) in [(A, V), (B, V), (WORLD, PUBLISHED)] {
            let mut lab = way().with_service(place, &[B8080]);
            let [stream, datagram] = [TCP, UDP].map(|protocol| Tuple::new(protocol, end(client, 40000), place));
            let arrived = [stream, datagram].map(|sent| lab.play(sent, SYN).unwrap());
            lab.unserve();
            lab.serve(place, &[C8080], 0);
            for (sent, arrived) in [stream, datagram].iter().zip(&arrived) {
                let answer = lab.answer(arrived, ACK).map(|answer| answer.tuple);
                assert_eq!(answer, Ok(sent.reversed()), "{number}: it was asked before");
            }
            assert_eq!(lab.tried(stream, ACK), Err(Drop::NoBackend), "{number}");
            assert_eq!(lab.play(datagram, 0).unwrap().tuple.destination, C8080, "{number}");
        }
    }
}

#[test]
fn datagrams_go_to_another_backend_at_once() {
    for way in WAYS {
        let mut lab = Lab::translating(way).with_service(V, &[B8080]);
        let sent = Tuple::new(UDP, end(A, 40000), V);
        lab.play(sent, 0).unwrap();
        lab.unserve();
        lab.serve(V, &[C8080], 0);
        let arrived = lab.play(sent, 0).unwrap();
        assert_eq!(arrived.tuple, Tuple::new(UDP, end(A, 40000), C8080));
        assert_eq!(lab.answer(&arrived, 0).unwrap().tuple, sent.reversed());
        assert_eq!(lab.pairs(), 2);
    }
}

#[test]
fn a_service_that_is_gone_takes_no_more_of_a_connection() {
    let mut lab = Lab::translating(&[]).with_service(V, &[B8080]);
    lab.play(asks(A, V), SYN).unwrap();
    lab.unserve();
    assert_eq!(lab.tried(asks(A, V), ACK), Err(Drop::NoBackend));
    assert_eq!(lab.pairs(), 0);
}

// === affinity ===

fn backend_of(lab: &mut Lab, port: u16) -> End {
    lab.play(Tuple::new(TCP, end(A, port), V), SYN).unwrap().tuple.destination
}

#[test]
fn connections_of_one_client_are_spread_without_affinity() {
    let mut lab = Lab::translating(&[]).with_service(V, &[B8080, C8080]);
    let to_b = (1000..1200).filter(|port| backend_of(&mut lab, *port) == B8080).count();
    assert!((60..140).contains(&to_b), "{to_b} of 200");
}

#[test]
fn a_client_keeps_its_backend_for_as_long_as_affinity_says() {
    let mut lab = Lab::translating(&[]);
    lab.serve(V, &[B8080], 60);
    assert_eq!(backend_of(&mut lab, 1000), B8080);
    lab.unserve();
    // the table alone says C
    lab.serve(V, &[C8080; 64], 60);
    let mut both = vec![C8080; 64];
    both.push(B8080);
    let table = lab.0.maglev.len();
    lab.0.v4.services.clear();
    lab.serve(V, &both, 60);
    // whatever the hash: all entries but the client's own are C's
    let index = lab.0.maglev[table];
    lab.0.maglev[table..table + 65].fill(index);
    for port in 1001..1020 {
        lab.0.wait(seconds(59));
        assert_eq!(backend_of(&mut lab, port), B8080, "each connection begins the time anew");
    }
    lab.0.wait(seconds(60) + 1);
    assert_eq!(backend_of(&mut lab, 1020), C8080);
    lab.0.wait(1);
    assert_eq!(backend_of(&mut lab, 1021), C8080, "now it stays there");
}

#[test]
fn affinity_ends_with_the_backend() {
    let mut lab = Lab::translating(&[]);
    lab.serve(V, &[B8080], 3600);
    assert_eq!(backend_of(&mut lab, 1000), B8080);
    lab.unserve();
    lab.serve(V, &[C8080], 3600);
    assert_eq!(backend_of(&mut lab, 1001), C8080);
}

// === the state of a pair ===

#[test]
fn both_halves_are_renewed_together() {
    for way in WAYS {
        let mut lab = Lab::translating(way).with_service(V, &[B8080]);
        let arrived = lab.play(asks(A, V), SYN).unwrap();
        for speaks in [true, false, true] {
            lab.0.wait(REFRESH + 1);
            if speaks {
                lab.play(asks(A, V), ACK).unwrap()
            } else {
                lab.answer(&arrived, ACK).unwrap()
            };
            let now = lab.0.now;
            assert!(lab.0.v4.translations.get_mut().values().all(|half| half.seen == now), "{way:?}");
        }
    }
}

#[test]
fn the_first_answer_makes_a_translation_last() {
    let far = (WORLD.address, 53);
    for way in WAYS {
        for (client, to) in [(A, V), (B, V), (D, V), (A, far), (WORLD, PUBLISHED)] {
            for protocol in [TCP, UDP] {
                let mut lab = Lab::translating(way).with_service(V, &[B8080]).with_service(PUBLISHED, &[B8080]);
                let answered = |lab: &mut Lab| {
                    lab.0.v4.translations.get_mut().values().filter(|half| half.state.has(NatState::ANSWERED)).count()
                };
                let arrived = lab.play(Tuple::new(protocol, end(client, 40000), to), SYN).unwrap();
                lab.play(Tuple::new(protocol, end(client, 40000), to), ACK).unwrap();
                assert_eq!(answered(&mut lab), 0);
                lab.answer(&arrived, SYN | ACK).unwrap();
                assert_eq!(answered(&mut lab), 2, "{way:?} {client:?} {protocol:?}");
            }
        }
    }
}

#[test]
fn a_pair_learns_that_its_connection_ends_and_begins_anew() {
    let all = |lab: &mut Lab, bit| lab.0.v4.translations.get_mut().values().all(|half| half.state.has(bit));
    for way in WAYS {
        for ending in [FIN | ACK, RST] {
            let mut lab = Lab::translating(way).with_service(V, &[B8080]);
            let arrived = lab.play(asks(A, V), SYN).unwrap();
            for is_clients in [true, false] {
                lab.answer(&arrived, SYN | ACK).unwrap();
                lab.play(asks(A, V), ACK).unwrap();
                assert!(!all(&mut lab, NatState::CLOSING));
                if is_clients { lab.play(asks(A, V), ending) } else { lab.answer(&arrived, ending) }.unwrap();
                assert!(all(&mut lab, NatState::CLOSING), "{way:?} {ending:#x}, by the client: {is_clients}");
                lab.play(asks(A, V), SYN).unwrap();
                assert!(!all(&mut lab, NatState::CLOSING), "{way:?} {ending:#x}, by the client: {is_clients}");
            }
        }
    }
}

/// With a connection of A's to V's backend.
fn connected(way: &[Settings]) -> Lab {
    let mut lab = Lab::translating(way).with_service(V, &[B8080]);
    let arrived = lab.play(asks(A, V), SYN).unwrap();
    lab.answer(&arrived, SYN | ACK).unwrap();
    lab.play(asks(A, V), ACK).unwrap();
    lab
}

#[test]
fn an_entry_does_not_speak_for_another_pair() {
    for way in WAYS {
        let mut lab = connected(way);
        let begun = lab.0.now;
        let halves = lab.0.v4.translations.get_mut().values_mut();
        // as if the pair had gone, and another one of the same client were there
        halves
            .filter(|half| !half.is_reply())
            .for_each(|half| half.rewrite.ports = PortPair::new(PortBe::from_host(40000), PortBe::from_host(9090)));
        lab.0.wait(1);
        assert_eq!(lab.play(asks(A, V), FIN | ACK), Err(Drop::NoBackend), "{way:?}");
        let (left, state) = (lab.0.v4.translations.get_mut(), NatState::CLOSING);
        assert!(left.values().all(|half| half.seen == begun && !half.state.has(state)), "{way:?} {left:?}");
    }
}

#[test]
fn an_entry_does_not_outlive_its_pair() {
    for way in WAYS {
        let mut lab = connected(way);
        lab.0.v4.translations.get_mut().clear();
        // what the entry alone decides still passes; what the pair must learn finds that there is none
        lab.play(asks(A, V), ACK).unwrap();
        assert_eq!(lab.play(asks(A, V), FIN | ACK), Err(Drop::NoBackend), "{way:?}");
    }
}
