//! A service's backend outside: its client's own hook and the uplink each translate that connection, and whatever else the client and
//! the backend say to each other stays apart from that.

use netpol_common::{drops::Drop, wire::Protocol};

use super::{
    play::*,
    uplinks::{WAYS, only_published},
};
use crate::{
    lab::*,
    support::frame::{ACK, SYN},
};

const FAR: End = ([192, 0, 2, 77], 8080);

fn cases() -> impl Iterator<Item = (fn() -> Lab, Protocol)> {
    WAYS.into_iter().flat_map(|way| [(way, TCP), (way, UDP)])
}

/// What a client sends through the service, and to the backend itself from the same port.
fn sent(protocol: Protocol) -> [Tuple; 2] {
    [V, FAR].map(|to| Tuple::new(protocol, end(A, 5000), to))
}

impl Lab {
    /// Opens a connection, which is answered.
    fn opened(&mut self, sent: Tuple) -> Arrived {
        let arrived = self.play(sent, SYN).unwrap_or_else(|drop| panic!("{sent:?}: {drop:?}"));
        assert_eq!(self.answer(&arrived, SYN | ACK).unwrap().tuple, sent.reversed());
        arrived
    }

    /// Both directions come where they did.
    fn goes_on(&mut self, sent: Tuple, arrived: &Arrived) {
        assert_eq!(self.answer(arrived, SYN | ACK).unwrap().tuple, sent.reversed());
        assert_eq!(self.play(sent, ACK).unwrap().tuple, arrived.tuple);
    }
}

#[test]
fn who_asks_a_backend_too_does_not_get_its_services_translation() {
    for ((way, protocol), flags) in cases().flat_map(|case| [(case, SYN), (case, ACK)]) {
        let mut lab = way().with_service(V, &[FAR]);
        let [served, own] = sent(protocol);
        let arrived = lab.play(served, SYN).unwrap();
        assert_eq!(lab.tried(own, flags), Err(Drop::Translation), "{protocol:?} {flags}");
        assert_eq!(lab.answer(&arrived, SYN | ACK).unwrap().tuple, served.reversed());
        assert_eq!(lab.tried(own, flags), Err(Drop::Translation), "{protocol:?} {flags}");
        lab.goes_on(served, &arrived);
    }
}

#[test]
fn who_asks_a_former_backend_does_not_get_its_services_answers() {
    for (way, protocol) in cases() {
        let mut lab = way().with_service(V, &[FAR]);
        let [served, own] = sent(protocol);
        let arrived = lab.opened(served);
        lab.unserve();
        assert_eq!(lab.tried(own, SYN), Err(Drop::Translation), "{protocol:?}: its answers would be the service's");
        assert_eq!(lab.answer(&arrived, ACK).unwrap().tuple, served.reversed(), "{protocol:?}");
    }
}

#[test]
fn where_a_services_connection_was_not_let_out_its_answers_are_still_no_one_elses() {
    for (way, protocol) in cases() {
        let mut lab = way().with_service(V, &[FAR]);
        let [served, own] = sent(protocol);
        lab.0.v4.uplinks.insert(UPLINK, addr([0; 4]));
        assert_eq!(lab.tried(served, SYN), Err(Drop::Translation));
        lab.0.v4.uplinks.insert(UPLINK, addr(OUTSIDE));
        assert_eq!(lab.tried(own, SYN), Err(Drop::Translation), "{protocol:?}");
    }
}

#[test]
fn who_has_asked_a_backend_gets_its_services_answers_by_another_port() {
    for (way, protocol) in cases() {
        let mut lab = way().with_service(V, &[FAR]);
        let [served, own] = sent(protocol);
        let [first, second] = [own, served].map(|sent| lab.play(sent, SYN).unwrap());
        assert_eq!(first.tuple, Tuple { source: (OUTSIDE, 5000), ..own });
        assert_ne!(second.tuple, first.tuple, "{protocol:?}");
        lab.goes_on(own, &first);
        lab.goes_on(served, &second);
    }
}

#[test]
fn whom_a_backend_asks_by_a_published_port_does_not_mix_it_up_with_its_service() {
    for ((way, protocol), masquerades) in cases().flat_map(|case| [(case, true), (case, false)]) {
        let [served, own] = sent(protocol);
        let inward = Tuple::new(protocol, own.destination, PUBLISHED);
        for order in [[inward, served], [served, inward]] {
            let mut lab = way().with_service(PUBLISHED, &[end(A, 5000)]).with_service(V, &[FAR]);
            if !masquerades {
                only_published(&mut lab);
            }
            let arrived = order.map(|sent| lab.opened(sent));
            lab.goes_on(order[1], &arrived[1]);
            lab.goes_on(order[0], &arrived[0]);
        }
    }
}

#[test]
fn whom_a_backend_asks_at_its_own_address_does_not_mix_it_up_with_its_service() {
    for (way, protocol) in cases() {
        let mut lab = way().with_service(V, &[FAR]);
        let [served, own] = sent(protocol);
        let first = lab.opened(served);
        let second = lab.play(own.reversed(), SYN).unwrap();
        assert_ne!(second.tuple, own.reversed(), "{protocol:?}");
        lab.goes_on(own.reversed(), &second);
        lab.goes_on(served, &first);
    }
}

#[test]
fn a_service_keeps_its_port_where_half_of_its_pair_is_left() {
    for way in WAYS {
        let mut lab = way().with_service(V, &[FAR]);
        let [served, _] = sent(UDP);
        let arrived = lab.play(served, 0).unwrap();
        let left = lab.0.v4.translations.get_mut();
        left.retain(|key, _| key.destination != addr(V.0));
        assert_eq!(left.len(), 3, "the half of the answers, and the uplink's pair");
        lab.publish();
        assert_eq!(lab.play(served, 0).unwrap().tuple, arrived.tuple);
        assert_eq!(lab.answer(&arrived, 0).unwrap().tuple, served.reversed());
    }
}

#[test]
fn who_becomes_hidden_still_gets_the_answers_of_a_backend() {
    for (way, protocol) in cases() {
        let mut lab = way().with_service(V, &[FAR]);
        let (pools, addresses) = (lab.0.v4.pools.clone(), lab.0.v4.addresses.clone());
        only_published(&mut lab);
        let [served, _] = sent(protocol);
        let arrived = lab.play(served, SYN).unwrap();
        assert_eq!(arrived.tuple.source, served.source);
        (lab.0.v4.pools, lab.0.v4.addresses) = (pools, addresses);
        lab.publish();
        assert_eq!(lab.answer(&arrived, SYN | ACK).unwrap().tuple, served.reversed(), "{protocol:?}");
    }
}

#[test]
fn what_a_backend_opens_to_its_services_client_is_no_answer() {
    for way in WAYS {
        let mut lab = way().with_service(V, &[FAR]);
        let [served, _] = sent(TCP);
        let arrived = lab.opened(served);
        lab.play(served, ACK).unwrap();
        // anybody who forges the backend's address can send that
        assert_eq!(lab.play(arrived.tuple.reversed(), SYN).map(|arrived| arrived.tuple), Err(Drop::Translation));
        assert_eq!(lab.answer(&arrived, ACK).unwrap().tuple, served.reversed(), "the connection goes on");
    }
}
