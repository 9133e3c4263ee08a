use netpol_common::{
    drops::{Drop, Side},
    flow::FlowFlags,
    wire::Protocol,
};

use crate::{
    lab::*,
    support::frame::{ACK, FIN, RST, SYN},
};

const REQUEST: Load = Tcp(40000, 80, ACK);
const RESPONSE: Load = Tcp(80, 40000, ACK);

#[test]
fn syn_from_the_replying_side_is_a_new_connection() {
    let mut lab = Lab::new().allow(A, B, HTTP);
    assert_eq!(lab.send(A, B, Tcp(40000, 80, SYN)), DIRECT);
    assert_eq!(lab.send(B, A, RESPONSE), DIRECT);
    assert_eq!(lab.send(B, A, Tcp(80, 40000, SYN)), DENIED);
    assert_eq!(lab.send(B, A, RESPONSE), DIRECT, "what was open stays open");
    assert_eq!(lab.send(A, B, REQUEST), DIRECT);
}

#[test]
fn the_side_that_sends_a_syn_becomes_the_client() {
    let mut lab = Lab::new().allow(A, B, HTTP).allow(B, A, (Protocol::TCP, 40000));
    assert_eq!(lab.send(A, B, Tcp(40000, 80, SYN)), DIRECT);
    assert_eq!(lab.send(B, A, Tcp(80, 40000, SYN)), DIRECT);
    let reply =
        |from, to, load| lab.flow(Side::From, from, (from, to), load).unwrap().word.flags().has(FlowFlags::REPLY);
    assert!(reply(A, B, REQUEST));
    assert!(!reply(B, A, RESPONSE));
}

#[test]
fn a_syn_ack_opens_nothing() {
    let mut lab = Lab::new().allow(B, A, (Protocol::TCP, 40000));
    assert_eq!(lab.send(B, A, Tcp(80, 40000, SYN | ACK)), DENIED, "judged as the reply that it says it is");
    let mut lab = Lab::new().allow(A, B, HTTP);
    assert_eq!(lab.send(B, A, Tcp(80, 40000, SYN | ACK)), DIRECT);
    assert_eq!(lab.send(B, A, Tcp(80, 40000, SYN)), DENIED);
}

#[test]
fn in_the_middle_the_ephemeral_port_is_the_clients() {
    let mut lab = Lab::new().allow(A, B, HTTP);
    assert_eq!(lab.send(B, A, RESPONSE), DIRECT);
    let mut lab = Lab::new().allow(A, B, HTTP);
    assert_eq!(lab.send(A, B, REQUEST), DIRECT);
    let mut lab = Lab::new().allow(B, A, (Protocol::TCP, 40000));
    assert_eq!(lab.send(B, A, RESPONSE), Err(Drop::PolicyEgress));
}

#[test]
fn where_it_is_unclear_who_opened_both_must_be_allowed() {
    let (there, back) = (Tcp(40000, 50000, ACK), Tcp(50000, 40000, ACK));
    for (from, to, load) in [(A, B, there), (B, A, back)] {
        let mut lab = Lab::new().allow(A, B, (Protocol::TCP, 50000));
        assert!(lab.send(from, to, load).is_err());
        let mut lab = lab.allow(B, A, (Protocol::TCP, 40000));
        lab.0.v4.forget();
        assert_eq!(lab.send(from, to, load), DIRECT);
    }
}

#[test]
fn what_was_unclear_stays_unclear_until_a_syn() {
    let (there, back) = (Tcp(40000, 50000, ACK), Tcp(50000, 40000, ACK));
    let both = |lab: &mut Lab| {
        lab.may(A, B, (Protocol::TCP, 50000));
        lab.may(B, A, (Protocol::TCP, 40000));
    };
    for (from, to, load) in [(A, B, there), (B, A, back)] {
        let mut lab = Lab::new();
        both(&mut lab);
        assert_eq!(lab.send(from, to, load), DIRECT);
        lab.publish();
        lab.may(A, B, (Protocol::TCP, 50000));
        assert!(lab.send(A, B, there).is_err(), "perhaps B opened it");
        assert!(lab.send(B, A, back).is_err());
        assert_eq!(lab.send(A, B, Tcp(40000, 50000, SYN)), DIRECT);
        assert_eq!(lab.send(B, A, back), DIRECT, "now it is known who did");
    }
}

#[test]
fn a_syn_tells_who_opened_what_was_unclear() {
    let mut lab = Lab::new().allow(A, B, (Protocol::TCP, 50000)).allow(B, A, (Protocol::TCP, 40000));
    assert_eq!(lab.send(A, B, Tcp(40000, 50000, ACK)), DIRECT);
    assert_eq!(lab.send(A, B, Tcp(40000, 50000, SYN)), DIRECT);
    lab.publish();
    lab.may(A, B, (Protocol::TCP, 50000));
    assert_eq!(lab.send(B, A, Tcp(50000, 40000, SYN | ACK)), DIRECT);
}

#[test]
fn a_lost_half_is_restored_from_the_other() {
    // ports from which nothing could be guessed
    let open = (Protocol::TCP, 50000);
    let (there, back) = (Tcp(40000, 50000, ACK), Tcp(50000, 40000, ACK));
    let mut lab = Lab::new().allow(A, B, open);
    assert_eq!(lab.send(A, B, Tcp(40000, 50000, SYN)), DIRECT);
    lab.evict(Side::From, B, (B, A), back);
    assert_eq!(lab.send(B, A, back), DIRECT);
    lab.evict(Side::From, A, (A, B), there);
    assert_eq!(lab.send(A, B, there), DIRECT);
    assert!(lab.flow(Side::From, B, (B, A), back).unwrap().word.flags().has(FlowFlags::REPLY));
}

#[test]
fn where_it_arrives_the_senders_hook_knows_who_opened() {
    let mut lab = Lab::new().allow(A, B, DNS);
    assert_eq!(lab.send(A, B, Udp(5000, 53)), DIRECT);
    // from here on the bridge brings the packets, and the first is a reply
    lab.0.live.settings = netpol_common::kernel::Settings::STACK;
    lab.publish();
    lab.may(A, B, DNS);
    assert_eq!(lab.send(B, A, Udp(53, 5000)), STACK);
    assert_eq!(lab.reach(B, A, Udp(53, 5000)), STACK);
}

#[test]
fn the_first_datagram_opens() {
    let mut lab = Lab::new().allow(A, B, DNS);
    assert_eq!(lab.send(B, A, Udp(53, 5000)), DENIED);
    assert_eq!(lab.send(A, B, Udp(5000, 53)), DIRECT);
    assert_eq!(lab.send(B, A, Udp(53, 5000)), DIRECT);
    assert_eq!(lab.send(B, A, Udp(54, 5000)), DENIED);
}

#[test]
fn stale_reply_is_judged_by_its_original_direction() {
    let mut lab = Lab::new().allow(A, B, DNS);
    assert_eq!(lab.send(A, B, Udp(5000, 53)), DIRECT);
    assert_eq!(lab.send(B, A, Udp(53, 5000)), DIRECT);
    lab.publish();
    lab.may(B, A, (Protocol::UDP, 5000));
    assert!(lab.send(B, A, Udp(53, 5000)).is_err(), "its connection was revoked");
    assert!(lab.send(A, B, Udp(5000, 53)).is_err());
    lab.publish();
    lab.may(A, B, DNS);
    assert_eq!(lab.send(B, A, Udp(53, 5000)), DIRECT, "and allowed again");
}

#[test]
fn a_revoked_connection_stops_in_both_directions() {
    for first in [(A, B, REQUEST), (B, A, RESPONSE)] {
        let mut lab = Lab::new().allow(A, B, HTTP);
        assert_eq!(lab.send(A, B, Tcp(40000, 80, SYN)), DIRECT);
        assert_eq!(lab.send(B, A, RESPONSE), DIRECT);
        lab.publish();
        let (from, to, load) = first;
        assert!(lab.send(from, to, load).is_err());
        assert!(lab.send(A, B, REQUEST).is_err());
        assert!(lab.send(B, A, RESPONSE).is_err());
    }
}

#[test]
fn an_echo_id_in_the_other_direction_is_no_reply() {
    let mut lab = Lab::new().allow(A, B, PING);
    // identifiers that look like a request's type and code are the ones to confuse
    for id in [1, 0x800, 0x801, 0x4800, 0x8000, 0xd00] {
        assert_eq!(lab.send(A, B, Icmp(8, id)), DIRECT, "{id:#x}");
        assert_eq!(lab.send(B, A, Icmp(0, id)), DIRECT, "{id:#x}");
        assert_eq!(lab.send(B, A, Icmp(8, id)), DENIED, "{id:#x}");
    }
}

#[test]
fn an_echo_reply_opens_nothing() {
    // A may send B whatever ICMP it wants, B may not ask A
    let mut lab = Lab::new().allow(A, B, (Protocol::ICMP, 0));
    lab.may(A, B, PING);
    assert!(lab.send(A, B, Icmp(0, 7)).is_err(), "B may not have asked");
    assert!(lab.send(B, A, Icmp(8, 7)).is_err());
    let mut lab = Lab::new().allow(B, A, PING);
    assert_eq!(lab.send(A, B, Icmp(0, 7)), DIRECT);
    assert_eq!(lab.send(B, A, Icmp(8, 7)), DIRECT);
}

#[test]
fn ports_that_are_used_again_are_a_connection_of_their_own() {
    for ending in [FIN | ACK, RST] {
        for ends in [(A, B, Tcp(40000, 50000, ending)), (B, A, Tcp(50000, 40000, ending))] {
            let mut lab = Lab::new().allow(A, B, (Protocol::TCP, 50000));
            let (from, to, load) = ends;
            assert_eq!(lab.send(A, B, Tcp(40000, 50000, SYN)), DIRECT);
            assert_eq!(lab.send(from, to, load), DIRECT);
            assert_eq!(lab.send(A, B, Tcp(40000, 50000, SYN)), DIRECT);
            assert_eq!(lab.send(B, A, Tcp(50000, 40000, SYN | ACK)), DIRECT);
            assert_eq!(lab.send(A, B, Tcp(40000, 50000, ACK)), DIRECT);
            lab.0.wait(netpol_common::flow::seconds(3600));
            assert_eq!(lab.send(B, A, Tcp(50000, 40000, ACK)), DIRECT, "{ends:?}: an open connection may be silent");
        }
    }
}
