use netpol_common::{
    drops::{Drop, Pass, Side},
    kernel::Settings,
    parse::NETWORK,
};

use super::play::*;
use crate::{
    lab::*,
    support::{classifier::Passed, frame},
};

const B8080: End = (B.address, 8080);
const FAR: End = ([192, 0, 2, 77], 8080);
const ROUTER: [u8; 4] = [198, 51, 100, 1];
const SERVER: End = (WORLD.address, 53);

/// "Port unreachable" from an address to another, about a packet.
fn error(
    (source, destination): ([u8; 4], [u8; 4]),
    about: Tuple,
    macs: (netpol_common::wire::Mac, netpol_common::wire::Mac),
) -> Vec<u8> {
    let inner = framed(about, macs, 0, false)[NETWORK..].to_vec();
    let payload = frame::icmp(3, 3, 0, &inner);
    let (kind, bytes) = frame::ip(source.into(), destination.into(), ICMP, &payload);
    frame::ethernet(macs.1, macs.0, kind, &bytes)
}

/// From whom to whom an error is, and about what.
fn said(frame: &[u8]) -> ([u8; 4], [u8; 4], Tuple) {
    let address = |at: usize| <[u8; 4]>::try_from(&frame[at..at + 4]).unwrap();
    // the quoted packet looks like one that begins a frame
    (address(NETWORK + 12), address(NETWORK + 16), tuple(&frame[28..]))
}

#[test]
fn what_a_backend_says_about_a_packet_comes_from_its_service() {
    for way in [&[][..], &[Settings::STACK]] {
        let mut lab = Lab::translating(way).with_service(V, &[B8080]);
        let sent = Tuple::new(UDP, end(A, 5000), V);
        let arrived = lab.play(sent, 0).unwrap();
        let unreachable = error((B.address, A.address), arrived.tuple, (B.mac, A.mac));
        let Passed { verdict, frame, .. } = lab.at(Side::From, B, B.interface, &unreachable);
        assert_eq!(verdict, Ok(Pass::Routed), "{way:?}");
        assert_eq!((said(&frame), &frame[..6]), ((V.0, A.address, sent), &A.mac[..]));
        let about_another = Tuple { source: end(A, 5001), ..arrived.tuple };
        let unreachable = error((B.address, A.address), about_another, (B.mac, A.mac));
        assert_eq!(lab.at(Side::From, B, B.interface, &unreachable).verdict, Err(Drop::IcmpUnrelated));
    }
}

#[test]
fn a_revoked_translation_has_no_errors() {
    let mut lab = Lab::translating(&[]).with_service(V, &[B8080]);
    let arrived = lab.play(Tuple::new(UDP, end(A, 5000), V), 0).unwrap();
    lab.publish();
    let unreachable = error((B.address, A.address), arrived.tuple, (B.mac, A.mac));
    assert_eq!(lab.at(Side::From, B, B.interface, &unreachable).verdict, Err(Drop::IcmpUnrelated));
}

/// An error that arrives from outside, as the endpoint gets it.
fn from_outside(lab: &mut Lab, to: Who, unreachable: &[u8]) -> Vec<u8> {
    let Passed { verdict, mut frame, .. } = lab.at_uplink(Side::From, UPLINK, unreachable);
    assert_eq!(verdict, STACK);
    frame[..6].copy_from_slice(&to.mac);
    let last = lab.at(Side::To, to, UPLINK, &frame);
    assert_eq!(last.verdict, STACK);
    last.frame
}

#[test]
fn an_error_about_what_left_a_pool_finds_its_sender() {
    for by in [ROUTER, WORLD.address] {
        let mut lab = Lab::translating(&[]);
        for who in [A, B] {
            let sent = Tuple::new(UDP, end(who, 5000), SERVER);
            let arrived = lab.play(sent, 0).unwrap();
            let unreachable = error((by, OUTSIDE), arrived.tuple, (WORLD.mac, HOST.mac));
            assert_eq!(
                said(&from_outside(&mut lab, who, &unreachable)),
                (by, who.address, sent),
                "also with another port"
            );
        }
    }
}

#[test]
fn an_error_about_a_packet_that_was_translated_twice_is_translated_twice() {
    for (by, from) in [(ROUTER, ROUTER), (FAR.0, V.0)] {
        let mut lab = Lab::translating(&[]).with_service(V, &[FAR]);
        let sent = Tuple::new(UDP, end(A, 5000), V);
        let arrived = lab.play(sent, 0).unwrap();
        let unreachable = error((by, OUTSIDE), arrived.tuple, (WORLD.mac, HOST.mac));
        assert_eq!(said(&from_outside(&mut lab, A, &unreachable)), (from, A.address, sent));
    }
}

#[test]
fn an_error_about_the_hosts_own_packet_is_left_to_the_host() {
    let mut lab = Lab::translating(&[]);
    lab.play(Tuple::new(UDP, end(A, 5000), SERVER), 0).unwrap();
    let unreachable = error((ROUTER, OUTSIDE), Tuple::new(UDP, (OUTSIDE, 6000), SERVER), (WORLD.mac, HOST.mac));
    let seen = lab.at_uplink(Side::From, UPLINK, &unreachable);
    assert_eq!((seen.verdict, seen.frame), (STACK, unreachable));
}
