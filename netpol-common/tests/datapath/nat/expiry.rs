use netpol_common::{
    flow::{KeyProtocol, PortPair, Ticks, seconds},
    nat::{NatKey, NatState, Translation, Zone, is_expired},
    wire::{Addr4, Protocol},
};

use super::play::*;

const OPEN: NatState = NatState::EXISTS;
const ANSWERED: NatState = OPEN.with(NatState::ANSWERED);
const CLOSING: NatState = ANSWERED.with(NatState::CLOSING);

fn key(protocol: Protocol) -> NatKey<Addr4> {
    NatKey {
        source: addr([10, 0, 0, 1]),
        destination: addr([10, 0, 0, 2]),
        ports: PortPair::NONE,
        zone: Zone::UPLINKS,
        protocol: KeyProtocol::from(protocol),
    }
}

#[test]
fn a_silent_translation_ends_by_its_protocol_and_state() {
    let cases = [
        (TCP, OPEN, 240),
        (TCP, ANSWERED, 7_500),
        (TCP, CLOSING, 120),
        (TCP, OPEN.with(NatState::CLOSING), 120),
        (UDP, OPEN, 120),
        (UDP, ANSWERED, 300),
        (ICMP, OPEN, 60),
        (ICMP, ANSWERED, 60),
        (Protocol::ICMPV6, OPEN, 60),
        (Protocol(47), OPEN, 600),
    ];
    for (protocol, state, patience) in cases {
        // the half of the replies goes last, so nobody claims them while the other is there
        for (state, patience) in
            [(state, seconds(patience)), (state.with(NatState::REPLY), seconds(patience) + seconds(30))]
        {
            // the clock may wrap between
            let seen = Ticks(u32::MAX - 5);
            let half = Translation { seen, state, ..Translation::NOTHING };
            let after = |ticks: u32| is_expired(&key(protocol), &half, Ticks(seen.0.wrapping_add(ticks)));
            assert!(!after(0) && !after(patience), "{protocol:?} {state:?}");
            assert!(after(patience + 1), "{protocol:?} {state:?}");
        }
    }
}

#[test]
fn a_clock_that_is_ahead_ends_nothing() {
    let half = Translation { seen: Ticks(1000), state: OPEN, ..Translation::NOTHING };
    assert!(!is_expired(&key(ICMP), &half, Ticks(990)));
}
