use super::*;
use crate::wire::Addr4;

const MAC: MacWords = MacWords::new([2, 0, 0, 0, 0, 1]);
const BROADCAST: MacWords = MacWords::new([0xff; 6]);
const OTHER: MacWords = MacWords::new([2, 0, 0, 0, 0, 2]);

fn udp(side: Side, destination_mac: MacWords, (from, to): (u16, u16)) -> Packet<Addr4> {
    Packet {
        key: FlowKey {
            source: Addr4(1),
            destination: Addr4(2),
            source_port: PortBe::from_host(from),
            destination_port: PortBe::from_host(to),
            place: Place::new(IfIndex(7), side),
            protocol: Protocol::UDP,
            zero: 0,
            zeros: 0,
        },
        source_mac: MAC,
        destination_mac,
        ingress: IfIndex::NONE,
        icmp: PortBe::ZERO,
        tcp_flags: 0,
        packets: 1,
        bytes: 300,
        generation: Generation(1),
        settings: Settings::default(),
        now: Ticks(0),
    }
}

const HOOK: HookValue = HookValue {
    network: Network::SHARED,
    master: IfIndex::NONE,
    segment: 0,
    mac: MAC,
    host_mac: OTHER,
    flags: AddressFlags(0),
    reserved: 0,
    identity4: Identity::ANY,
    identity6: Identity::ANY,
};

/// `None`: the policy decides.
fn guarded(packet: &Packet<Addr4>) -> Option<Result<Action, Drop>> {
    is_dhcp(packet).then(|| dhcp(packet, &HOOK))
}

#[test]
fn workload_may_ask_the_whole_link_for_an_address() {
    assert_eq!(guarded(&udp(Side::From, BROADCAST, (68, 67))), Some(Ok(Action::Control)));
    let forged = Packet { source_mac: OTHER, ..udp(Side::From, BROADCAST, (68, 67)) };
    assert_eq!(guarded(&forged), Some(Err(Drop::Spoofed)));
}

#[test]
fn workload_may_not_be_a_dhcp_server() {
    for to in [67, 68, 53] {
        assert_eq!(guarded(&udp(Side::From, OTHER, (67, to))), Some(Err(Drop::DhcpServer)), "to port {to}");
    }
}

#[test]
fn servers_answer_reaches_a_client() {
    assert_eq!(guarded(&udp(Side::To, MAC, (67, 68))), Some(Ok(Action::Control)));
}

#[test]
fn ports_of_dhcp_open_no_way_around_the_policy() {
    for packet in [
        // out of a workload that may not speak to that address
        udp(Side::From, OTHER, (68, 67)),
        // into a workload: its other ports, and its own port 67
        udp(Side::To, MAC, (67, 53)),
        udp(Side::To, MAC, (67, 67)),
        udp(Side::To, MAC, (68, 67)),
        udp(Side::To, BROADCAST, (68, 67)),
    ] {
        assert_eq!(guarded(&packet), None, "{:?}", packet.key);
    }
}
