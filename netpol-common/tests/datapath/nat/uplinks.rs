use netpol_common::{
    drops::{Drop, Pass, Side},
    flow::{FlowFlags, Place, seconds},
    headers::HopWord,
    kernel::Settings,
    parse::{Family as _, NETWORK, V4},
    service::ServiceKey,
    tables::{AddressFlags, AddressKey, IfIndex, Network},
    wire::{MacWords, PortBe, Protocol},
};

use super::play::*;
use crate::{
    lab::*,
    support::frame::{ACK, SYN},
};

const SERVER: End = (WORLD.address, 53);
const B8080: End = (B.address, 8080);

/// Takes the pools away.
pub(super) fn only_published(lab: &mut Lab) {
    lab.0.v4.pools.clear();
    lab.0.v4.addresses.values_mut().for_each(|value| value.flags.0 &= !AddressFlags::MASQUERADE.0);
}

fn leaves(from: Who) -> Tuple {
    Tuple::new(UDP, end(from, 5000), SERVER)
}

fn has_left(port: u16) -> Tuple {
    Tuple::new(UDP, (OUTSIDE, port), SERVER)
}

/// Through the host's stack, and past it.
pub(super) const WAYS: [fn() -> Lab; 2] = [|| Lab::translating(&[]), Lab::outward];

#[test]
fn what_leaves_a_pool_has_the_uplinks_address_and_its_own_port() {
    for (way, protocol) in WAYS.into_iter().flat_map(|way| [TCP, UDP, ICMP].map(|protocol| (way, protocol))) {
        let mut lab = way();
        let port = if protocol == ICMP { 5000 } else { 53 };
        let sent = Tuple::new(protocol, end(A, 5000), (WORLD.address, port));
        for (flags, answer_flags) in [(SYN, SYN | ACK), (ACK, ACK)] {
            let arrived = lab.play(sent, flags).unwrap();
            assert_eq!(arrived.tuple, Tuple { source: (OUTSIDE, 5000), ..sent });
            let back = lab.answer(&arrived, answer_flags).unwrap();
            assert_eq!((back.tuple, back.at), (sent.reversed(), A.interface));
        }
        assert_eq!(lab.pairs(), 2);
    }
}

#[test]
fn what_has_no_port_to_claim_answers_by_does_not_leave_a_pool() {
    // GRE, ESP, SCTP: their answers could be the host's own
    for protocol in [47, 50, 132].map(Protocol) {
        let mut lab = Lab::translating(&[]);
        let sent = Tuple::new(protocol, end(A, 0), (WORLD.address, 0));
        assert_eq!(lab.play(sent, 0).unwrap_err(), Drop::Translation);
        assert_eq!(lab.pairs(), 0);
    }
}

#[test]
fn two_clients_with_one_port_get_two_and_each_its_own_answers() {
    for way in WAYS {
        for protocol in [TCP, UDP, ICMP] {
            let mut lab = way();
            let port = if protocol == ICMP { 5000 } else { 53 };
            let clients = [A, B, C].map(|who| Tuple::new(protocol, end(who, 5000), (WORLD.address, port)));
            let arrived = clients.map(|sent| lab.play(sent, SYN).unwrap());
            let mut ports = arrived.each_ref().map(|arrived| arrived.tuple.source.1);
            assert_eq!(ports[0], 5000);
            ports.sort_unstable();
            assert!(ports.windows(2).all(|two| two[0] != two[1]), "{ports:?}");
            assert!(ports.iter().all(|port| *port >= 1024));
            for (sent, arrived) in clients.iter().zip(&arrived) {
                let back = lab.answer(arrived, SYN | ACK).unwrap();
                // of ICMP both ends have the identifier
                assert_eq!((back.tuple.source.0, back.tuple.destination), (WORLD.address, sent.source));
            }
        }
    }
}

#[test]
fn one_port_of_a_client_serves_for_many_servers() {
    for way in WAYS {
        let mut lab = way();
        for server in 1..20 {
            let sent = Tuple::new(UDP, end(A, 5000), ([192, 0, 2, server], 53));
            assert_eq!(lab.play(sent, 0).unwrap().tuple.source, (OUTSIDE, 5000));
        }
    }
}

#[test]
fn a_port_that_a_socket_of_the_host_has_is_not_taken() {
    for way in WAYS {
        let mut lab = way();
        lab.0.v4.bound.push(answers_to(UDP, SERVER, 5000));
        let arrived = lab.play(leaves(A), 0).unwrap();
        assert_ne!(arrived.tuple, has_left(5000));
        assert_eq!(lab.answer(&arrived, 0).unwrap().tuple, leaves(A).reversed());
    }
}

#[test]
fn a_port_that_is_published_is_not_taken() {
    for way in WAYS {
        let mut lab = way().with_service((OUTSIDE, 5000), &[B8080]);
        let arrived = lab.play(leaves(A), 0).unwrap();
        assert_ne!(arrived.tuple, has_left(5000));
        assert_eq!(lab.answer(&arrived, 0).unwrap().tuple, leaves(A).reversed());
    }
}

#[test]
fn where_no_port_is_free_nothing_is_sent_and_nothing_left_behind() {
    for way in WAYS {
        let mut lab = way().with_service((OUTSIDE, 5000), &[B8080]);
        let any = *lab.0.v4.services.values().next().unwrap();
        for port in 0..=u16::MAX {
            let key = ServiceKey { address: addr(OUTSIDE), port: PortBe::from_host(port), protocol: UDP, zero: 0 };
            lab.0.v4.services.insert(key, any);
        }
        assert_eq!(lab.tried(leaves(A), 0), Err(Drop::Translation));
        assert_eq!(lab.pairs(), 0);
    }
}

#[test]
fn half_a_pair_without_room_for_the_other_is_taken_back() {
    for way in WAYS {
        for room in [0, 1] {
            let mut lab = way();
            lab.0.v4.room = room;
            assert_eq!(lab.tried(leaves(A), 0), Err(Drop::Translation));
            assert_eq!(lab.pairs(), 0, "with room for {room}");
        }
    }
}

#[test]
fn what_stays_among_pools_keeps_its_address() {
    for way in WAYS {
        let mut lab = way();
        let sent = Tuple::new(UDP, end(A, 5000), ([10, 0, 200, 1], 53));
        assert_eq!(lab.play(sent, 0).unwrap().tuple, sent);
        assert_eq!(lab.pairs(), 0);
    }
}

#[test]
fn only_a_pools_address_is_hidden() {
    let mut lab = Lab::translating(&[]);
    let key = AddressKey { network: Network::SHARED, address: addr(A.address) };
    lab.0.v4.addresses.get_mut(&key).unwrap().flags = AddressFlags(0);
    assert_eq!(lab.play(leaves(A), 0).unwrap().tuple, leaves(A));
    let own = Tuple::new(UDP, (OUTSIDE, 5000), SERVER);
    let out = lab.at_uplink(Side::To, IfIndex::NONE, &framed(own, (HOST.mac, WORLD.mac), 0, false));
    assert_eq!((out.verdict, tuple(&out.frame)), (Ok(Pass::Stack), own), "the host's own");
    assert_eq!(lab.pairs(), 0);
}

#[test]
fn an_uplink_without_an_address_lets_no_pool_out() {
    for way in WAYS {
        let mut lab = way();
        lab.0.v4.uplinks.clear();
        assert_eq!(lab.tried(leaves(A), 0), Err(Drop::Translation));
    }
}

#[test]
fn what_is_no_answer_is_not_let_in_by_a_translation() {
    for way in WAYS {
        let mut lab = way();
        lab.play(leaves(A), 0).unwrap();
        for other in [
            Tuple::new(UDP, (WORLD.address, 54), (OUTSIDE, 5000)),
            Tuple::new(UDP, ([192, 0, 2, 2], 53), (OUTSIDE, 5000)),
            Tuple::new(TCP, SERVER, (OUTSIDE, 5000)),
            Tuple::new(UDP, SERVER, (OUTSIDE, 5001)),
        ] {
            let seen = lab.at_uplink(Side::From, UPLINK, &framed(other, (WORLD.mac, HOST.mac), SYN, true));
            assert_eq!((seen.verdict, tuple(&seen.frame)), (Ok(Pass::Stack), other), "left to the host");
        }
    }
}

// === from outside ===

#[test]
fn a_published_port_leads_from_outside_to_a_backend_and_back() {
    for way in [WAYS[0], WAYS[1], || Lab::translating(&[Settings::STACK])] {
        let mut lab = way().with_service(PUBLISHED, &[B8080]);
        let sent = Tuple::new(TCP, end(WORLD, 40000), PUBLISHED);
        for (flags, answer_flags) in [(SYN, SYN | ACK), (ACK, ACK)] {
            let arrived = lab.play(sent, flags).unwrap();
            assert_eq!(arrived.tuple, Tuple { destination: B8080, ..sent }, "by the client's own address");
            let back = lab.answer(&arrived, answer_flags).unwrap();
            assert_eq!((back.tuple, back.at), (sent.reversed(), UPLINK));
        }
    }
}

#[test]
fn a_published_port_is_behind_the_backends_policy() {
    for way in WAYS {
        let mut lab = way().with_service(PUBLISHED, &[B8080]).isolate(&[B]);
        assert_eq!(lab.tried(Tuple::new(TCP, end(WORLD, 40000), PUBLISHED), SYN), Err(Drop::PolicyIngress));
        lab.publish();
        lab.may(WORLD, B, (TCP, 8080));
        assert!(lab.tried(Tuple::new(TCP, end(WORLD, 40000), PUBLISHED), SYN).is_ok());
    }
}

#[test]
fn a_published_port_leads_nobody_from_outside_to_outside() {
    for way in WAYS {
        let mut lab = way().with_service(PUBLISHED, &[([192, 0, 2, 77], 80)]);
        assert_eq!(lab.tried(Tuple::new(TCP, end(WORLD, 40000), PUBLISHED), SYN), Err(Drop::NoBackend));
        assert_eq!(lab.pairs(), 0);
    }
}

#[test]
fn an_endpoint_reaches_a_published_port_and_a_backend_outside() {
    for way in WAYS {
        let far = ([192, 0, 2, 77], 8080);
        let mut lab = way().with_service(PUBLISHED, &[B8080]).with_service(V, &[far]);
        let sent = Tuple::new(TCP, end(A, 40000), PUBLISHED);
        let arrived = lab.play(sent, SYN).unwrap();
        assert_eq!(arrived.tuple, Tuple { destination: B8080, ..sent });
        assert_eq!(lab.answer(&arrived, SYN | ACK).unwrap().tuple, sent.reversed());
        let sent = Tuple::new(TCP, end(A, 40000), V);
        let arrived = lab.play(sent, SYN).unwrap();
        assert_eq!((arrived.tuple, arrived.at), (Tuple::new(TCP, (OUTSIDE, 40000), far), UPLINK), "translated twice");
        assert_eq!(lab.answer(&arrived, SYN | ACK).unwrap().tuple, sent.reversed());
    }
}

#[test]
fn who_comes_to_a_pools_own_address_is_answered_from_it() {
    for way in WAYS {
        for protocol in [TCP, UDP, ICMP] {
            let mut lab = way();
            let port = if protocol == ICMP { 40000 } else { 80 };
            let sent = Tuple::new(protocol, end(WORLD, 40000), end(A, port));
            let arrived = lab.play(sent, SYN).unwrap();
            assert_eq!((arrived.tuple, arrived.at), (sent, A.interface));
            assert_eq!(lab.answer(&arrived, SYN | ACK).unwrap().tuple, sent.reversed());
            let own = Tuple::new(protocol, end(A, 50000), (WORLD.address, if protocol == ICMP { 50000 } else { 80 }));
            assert_eq!(lab.play(own, SYN).unwrap().tuple.source, (OUTSIDE, 50000), "what it opens itself is hidden");
        }
    }
}

#[test]
fn who_comes_to_a_backend_and_to_its_service_is_answered_by_each() {
    for (way, masquerades) in WAYS.into_iter().flat_map(|way| [(way, false), (way, true)]) {
        for (protocol, service_first) in [(TCP, false), (TCP, true), (UDP, false), (UDP, true)] {
            let mut lab = way().with_service(PUBLISHED, &[B8080]);
            if !masquerades {
                only_published(&mut lab);
            }
            let asked = [B8080, PUBLISHED].map(|to| Tuple::new(protocol, end(WORLD, 40000), to));
            let order = if service_first { [1, 0] } else { [0, 1] };
            let first = lab.play(asked[order[0]], SYN).unwrap();
            let second = lab.play(asked[order[1]], SYN).unwrap();
            assert_eq!(first.tuple.source, end(WORLD, 40000), "a free port is kept");
            assert_ne!(first.tuple, second.tuple, "{protocol:?}, the service first: {service_first}");
            for (arrived, number) in [(first, order[0]), (second, order[1])] {
                assert_eq!(lab.answer(&arrived, SYN | ACK).unwrap().tuple, asked[number].reversed());
            }
        }
    }
}

#[test]
fn what_a_backend_opens_to_its_services_client_outside_is_no_answer() {
    for (way, masquerades) in [WAYS[0], WAYS[1], || Lab::translating(&[Settings::STACK])]
        .into_iter()
        .flat_map(|way| [(way, false), (way, true)])
    {
        let mut lab = way().with_service(PUBLISHED, &[B8080]);
        if !masquerades {
            only_published(&mut lab);
        }
        let asked = Tuple::new(TCP, end(WORLD, 40000), PUBLISHED);
        let arrived = lab.play(asked, SYN).unwrap();
        for _ in 0..2 {
            assert_eq!(lab.answer(&arrived, SYN | ACK).unwrap().tuple, asked.reversed());
            assert_eq!(lab.tried(arrived.tuple.reversed(), SYN), Err(Drop::Translation), "in a pool: {masquerades}");
            assert_eq!(lab.answer(&arrived, ACK).unwrap().tuple, asked.reversed());
            assert_eq!(lab.play(asked, ACK).unwrap().tuple, arrived.tuple);
        }
        let elsewhere = Tuple::new(TCP, B8080, end(WORLD, 40001));
        let source = if masquerades { (OUTSIDE, 8080) } else { B8080 };
        assert_eq!(lab.play(elsewhere, SYN).unwrap().tuple.source, source);
    }
}

#[test]
fn who_opens_at_both_ends_at_once_gets_through_masquerade() {
    for way in WAYS {
        let mut lab = way();
        let sent = Tuple::new(TCP, end(A, 5000), end(WORLD, 6000));
        let arrived = lab.play(sent, SYN).unwrap();
        // RFC 5382 section 4.2
        assert_eq!(lab.answer(&arrived, SYN).unwrap().tuple, sent.reversed());
        assert_eq!(lab.answer(&arrived, SYN | ACK).unwrap().tuple, sent.reversed());
    }
}

#[test]
fn what_a_pair_has_left_behind_keeps_no_port_from_its_client() {
    for (way, protocol) in WAYS.into_iter().flat_map(|way| [(way, TCP), (way, UDP)]) {
        let mut lab = way().with_service(PUBLISHED, &[B8080]);
        let asked = Tuple::new(protocol, end(WORLD, 40000), PUBLISHED);
        for _ in 0..3 {
            let arrived = lab.play(asked, SYN).unwrap();
            assert_eq!(arrived.tuple.source, end(WORLD, 40000), "{protocol:?}");
            assert_eq!(lab.answer(&arrived, SYN | ACK).unwrap().tuple, asked.reversed());
            // as the kernel's timer does, a while later; entries of flows stay
            lab.0.wait(seconds(130));
            lab.0.v4.translations.get_mut().clear();
        }
    }
}

// === past the host's stack ===

/// What the first hook says of a packet to outside, and of the answer.
fn ways(lab: &mut Lab, sent: Tuple) -> (Pass, Pass) {
    let there = lab.play(sent, SYN).unwrap();
    let back = lab.answer(&there, SYN | ACK).unwrap();
    assert_eq!(back.tuple, sent.reversed());
    (there.first, back.first)
}

#[test]
fn what_is_translated_at_the_uplink_goes_past_the_hosts_stack_both_ways() {
    let mut lab = Lab::outward().with_service(PUBLISHED, &[B8080]);
    // on a bridge, and routed
    for who in [A, D] {
        assert_eq!(ways(&mut lab, leaves(who)), (Pass::Out, Pass::Routed));
    }
    assert_eq!(ways(&mut lab, Tuple::new(TCP, end(WORLD, 40000), PUBLISHED)), (Pass::Routed, Pass::Out));
    assert_eq!(ways(&mut lab, Tuple::new(UDP, end(WORLD, 40000), end(A, 53))), (Pass::Routed, Pass::Out));
}

#[test]
fn answers_from_outside_are_looked_at_once_not_each_time() {
    // by whose MAC address they come, the host knows, or the first answer tells
    for (known, looked) in [(WORLD.mac.into(), 0), (MacWords::ZERO, 1)] {
        let mut lab = Lab::outward();
        lab.0.next_hop = known;
        let sent = lab.play(leaves(A), 0).unwrap();
        for _ in 0..3 {
            lab.0.wait(1_000);
            lab.answer(&sent, 0).unwrap();
        }
        let arriving = Place::new(UPLINK, Side::From);
        let flows = lab.0.v4.flows.borrow();
        let (_, entry) = flows.iter().find(|(key, _)| key.place == arriving).expect("an entry of the answers");
        assert_eq!((entry.source_mac, entry.packets), (WORLD.mac.into(), 3));
        assert_eq!(entry.seen.since(entry.judged), (3 - looked) * 1_000, "the others did not take the slow path");
    }
}

#[test]
fn what_goes_past_the_stack_follows_the_hosts_route_to_another_uplink() {
    let mut lab = Lab::outward();
    lab.play(leaves(A), 0).unwrap();
    let other = IfIndex(UPLINK.0 - 1);
    lab.0.v4.uplinks.insert(other, addr([203, 0, 113, 10]));
    let frame = framed(leaves(A), (A.mac, HOST.mac), 0, false);
    for (waits, uplink) in [(0, UPLINK), (seconds(5) + 1, other), (0, other)] {
        lab.0.wait(waits);
        let sent = lab.at(Side::From, A, A.interface, &frame);
        assert_eq!((sent.verdict, sent.vouched), (Ok(Pass::Out), uplink));
    }
}

#[test]
fn what_goes_past_the_stack_has_the_next_hop_in_its_entry_and_follows_the_hosts_route_to_another() {
    let mut lab = Lab::outward().with_service(PUBLISHED, &[B8080]);
    let asked = [leaves(A), Tuple::new(TCP, end(WORLD, 40000), PUBLISHED)];
    for (waits, router) in [(0, [192, 0, 2, 101]), (seconds(5) + 1, [192, 0, 2, 102]), (seconds(5) + 1, [0; 4])] {
        lab.0.wait(waits);
        lab.0.v4.router = addr(router);
        for sent in asked {
            let (there, back) = ways(&mut lab, sent);
            assert!([there, back].contains(&Pass::Out), "{sent:?}");
        }
        let flows = lab.0.v4.flows.borrow();
        let leaving = flows.iter().filter(|(_, entry)| entry.word.flags().has(FlowFlags::OUT)).collect::<Vec<_>>();
        assert_eq!(leaving.len(), asked.len());
        for (key, entry) in leaving {
            assert_eq!(entry.rewrite.destination, addr(router), "{key:?}");
            assert_eq!(entry.becomes(key).destination, addr(WORLD.address), "{key:?}");
        }
    }
}

#[test]
fn where_somebody_has_a_say_the_stack_brings_it_there() {
    let through = |lab: &mut Lab| {
        assert_eq!(ways(lab, leaves(A)), (Pass::Stack, Pass::Stack));
        let published = Tuple::new(TCP, end(WORLD, 40000), PUBLISHED);
        assert_eq!(ways(lab, published), (Pass::Stack, Pass::Stack));
    };
    let outward = || Lab::outward().with_service(PUBLISHED, &[([10, 0, 0, 1], 8080)]);
    let mut lab = outward();
    let Settings(all) = lab.0.live.settings.with(Settings::STACK);
    lab.0.live.settings = Settings(all);
    through(&mut lab);
    // what the host would send elsewhere, it would not take from here either
    let mut lab = outward();
    lab.0.v4.routes_elsewhere = true;
    through(&mut lab);
}

#[test]
fn where_the_route_to_an_endpoint_takes_less_the_stack_brings_it_there() {
    let mut lab = Lab::outward().with_service(PUBLISHED, &[B8080]);
    lab.0.v4.narrow = [A, B].map(|who| addr(who.address)).to_vec();
    for sent in [leaves(A), Tuple::new(UDP, end(WORLD, 40000), PUBLISHED)] {
        assert_eq!(ways(&mut lab, sent), (Pass::Stack, Pass::Stack), "{sent:?}");
    }
}

#[test]
fn what_goes_to_another_router_takes_the_stack() {
    let mut lab = Lab::outward();
    for _ in 0..2 {
        assert_eq!(lab.play(leaves(A), 0).unwrap().first, Pass::Out);
        // the host would leave it to the bridge
        let frame = framed(leaves(A), (A.mac, [2, 7, 7, 7, 7, 7]), 0, false);
        let seen = lab.at(Side::From, A, A.interface, &frame);
        assert_eq!((seen.verdict, seen.frame, seen.vouched), (Ok(Pass::Stack), frame, IfIndex::NONE));
    }
}

#[test]
fn a_packet_with_no_hop_left_reaches_the_host_as_it_was_sent() {
    let mut lab = Lab::outward();
    assert_eq!(lab.play(leaves(A), 0).unwrap().first, Pass::Out);
    let mut last = framed(leaves(A), (A.mac, HOST.mac), 0, false);
    last[NETWORK + V4::HOPS] = 1;
    let seen = lab.at(Side::From, A, A.interface, &last);
    assert_eq!((seen.verdict, &seen.frame, seen.vouched), (Ok(Pass::Stack), &last, IfIndex::NONE));
    last[NETWORK + V4::HOPS] = 2;
    let seen = lab.at(Side::From, A, A.interface, &last);
    assert_eq!((seen.verdict, seen.frame[NETWORK + V4::HOPS]), (Ok(Pass::Out), 1));
}

#[test]
fn whoever_is_denied_outside_makes_no_pair_and_is_remembered_at_the_uplink() {
    for way in WAYS {
        let mut lab = way().with_service(PUBLISHED, &[B8080]).isolate(&[B]);
        let sent = Tuple::new(TCP, end(WORLD, 40000), PUBLISHED);
        for _ in 0..2 {
            assert_eq!(lab.tried(sent, SYN), Err(Drop::PolicyIngress));
        }
        assert_eq!((lab.pairs(), lab.0.v4.denials.get_mut().len()), (0, 1));
    }
}

#[test]
fn an_address_of_an_endpoint_or_of_the_host_does_not_come_from_outside() {
    for way in WAYS {
        let mut lab = way().with_service(PUBLISHED, &[B8080]);
        for source in [A.address, OUTSIDE] {
            let forged = framed(Tuple::new(UDP, (source, 4000), PUBLISHED), (WORLD.mac, HOST.mac), 0, false);
            assert_eq!(lab.at_uplink(Side::From, UPLINK, &forged).verdict, Err(Drop::Spoofed));
        }
        assert_eq!(lab.pairs(), 0);
    }
}

#[test]
fn a_publication_that_forbids_it_stops_a_direct_connection_both_ways() {
    let mut lab = Lab::outward().with_service(PUBLISHED, &[B8080]).isolate(&[B]);
    lab.may(WORLD, B, (TCP, 8080));
    let sent = Tuple::new(TCP, end(WORLD, 40000), PUBLISHED);
    let there = lab.play(sent, SYN).unwrap();
    lab.answer(&there, SYN | ACK).unwrap();
    lab.publish();
    assert_eq!(lab.tried(sent, ACK), Err(Drop::PolicyIngress));
    assert_eq!(lab.answer(&there, ACK).unwrap_err(), Drop::PolicyIngress);
}

#[test]
fn a_hop_less_leaves_the_header_checksum_right() {
    // RFC 1071: the sum over the words of a header with a right checksum is all ones
    for word in 0..=u32::MAX / 65_521 {
        let [hops, protocol, high, low] = word.wrapping_mul(65_521).to_be_bytes();
        let before = HopWord { bytes: [hops, protocol, high, low] };
        let Some(after) = V4::hop(before) else {
            assert!(hops <= 1);
            continue;
        };
        let sum = |HopWord { bytes: [a, b, c, d] }| {
            let sum = u32::from(u16::from_be_bytes([a, b])) + u32::from(u16::from_be_bytes([c, d]));
            // 0 and 0xffff are one number in this sum
            (sum % 0xffff, [a, b])
        };
        let ((one, [_, _]), (other, [left, _])) = (sum(before), sum(after));
        assert_eq!((one, left), (other, hops - 1), "{word:#x}");
    }
}
