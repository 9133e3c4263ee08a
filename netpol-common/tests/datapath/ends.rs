use netpol_common::{
    drops::{Drop, Pass, Side},
    kernel::Settings,
    parse::ethertype,
    tables::{AddressFlags, IfIndex},
    wire::Protocol,
};

use crate::{
    lab::*,
    support::frame::{self, ACK, BROADCAST, SYN},
};

const OPENS: Load = Tcp(40000, 80, SYN);

#[test]
fn an_allowed_connection_passes_both_hooks() {
    let mut lab = Lab::new().allow(A, B, HTTP);
    assert_eq!(lab.send(A, B, OPENS), DIRECT);
    assert_eq!(lab.reach(A, B, OPENS), STACK);
    assert_eq!(lab.send(B, A, Tcp(80, 40000, SYN | ACK)), DIRECT);
    assert_eq!(lab.reach(B, A, Tcp(80, 40000, SYN | ACK)), STACK);
}

#[test]
fn each_side_can_say_no() {
    let mut lab = Lab::new();
    assert_eq!(lab.send(A, B, OPENS), Err(Drop::PolicyEgress));
    lab.publish();
    lab.may(A, B, HTTP);
    let ingress = netpol_common::tables::Subject::ingress(B.identity);
    lab.0.pairs.retain(|key, _| !(key.subject == ingress && key.peer == A.identity));
    assert_eq!(lab.send(A, B, OPENS), Err(Drop::PolicyIngress));
    assert_eq!(lab.reach(A, B, OPENS), Err(Drop::PolicyIngress));
}

#[test]
fn an_isolated_endpoint_that_the_tables_do_not_know_is_dropped() {
    let mut lab = Lab::new();
    lab.0.pairs.clear();
    assert_eq!(lab.send(A, B, OPENS), Err(Drop::NoPolicy));
    assert_eq!(lab.send(A, B, OPENS), Err(Drop::NoPolicy), "the reason stays the same");
    assert!(lab.denial(Side::From, A, (A, B), OPENS).is_none());
}

#[test]
fn spoofed_source_never_reaches_judgement() {
    let mut lab = Lab::new().allow(A, B, HTTP).allow(C, B, HTTP);
    let another_address = Who { address: C.address, ..A };
    let another_mac = Who { mac: C.mac, ..A };
    let nobody = Who { address: [10, 0, 0, 77], ..A };
    for liar in [another_address, another_mac, nobody] {
        assert_eq!(lab.send(liar, B, OPENS), Err(Drop::Spoofed), "{liar:?}");
    }
    assert!(lab.0.v4.flows.borrow().is_empty() && lab.0.v4.denials.borrow().is_empty());
}

#[test]
fn a_spoofed_mac_does_not_ride_on_an_open_connection() {
    let mut lab = Lab::new().allow(A, B, HTTP);
    assert_eq!(lab.send(A, B, OPENS), DIRECT);
    assert_eq!(lab.send(Who { mac: C.mac, ..A }, B, Tcp(40000, 80, ACK)), Err(Drop::Spoofed));
}

#[test]
fn where_a_packet_came_from_proves_its_source() {
    let mut lab = Lab::new().allow(A, B, HTTP);
    for elsewhere in [C.interface, BRIDGE, WORLD.interface, IfIndex::NONE] {
        let verdict = lab.see(Side::To, B, elsewhere, &packet(A, B, OPENS));
        assert_eq!(verdict, Err(Drop::Spoofed), "{elsewhere:?}");
    }
    assert_eq!(lab.reach(A, B, OPENS), STACK);
    assert_eq!(lab.see(Side::To, B, C.interface, &packet(A, B, OPENS)), Err(Drop::Spoofed), "with an entry, too");
}

#[test]
fn only_the_host_speaks_as_the_host() {
    let mut lab = Lab::new();
    assert_eq!(lab.reach(HOST, B, OPENS), STACK);
    let mut lab = Lab::new();
    let from_a_workload = Who { interface: A.interface, ..HOST };
    assert_eq!(lab.reach(from_a_workload, B, OPENS), Err(Drop::Spoofed));
    let from_outside = Who { interface: WORLD.interface, ..HOST };
    assert_eq!(lab.reach(from_outside, B, OPENS), Err(Drop::Spoofed));
}

#[test]
fn the_host_is_trusted_unless_it_is_policed() {
    let mut lab = Lab::new();
    lab.0.live.settings = Settings::POLICE_HOST;
    assert_eq!(lab.reach(HOST, B, OPENS), Err(Drop::PolicyIngress));
    lab.publish();
    lab.0.live.settings = Settings::default();
    assert_eq!(lab.reach(HOST, B, OPENS), STACK);
}

#[test]
fn the_host_at_an_address_of_the_world_is_the_host() {
    let mut lab = Lab::new();
    assert_eq!(lab.reach(Who { interface: IfIndex::NONE, ..WORLD }, B, OPENS), STACK);
    let mut lab = Lab::new();
    assert_eq!(lab.reach(WORLD, B, OPENS), Err(Drop::PolicyIngress));
}

#[test]
fn a_routed_packet_is_vouched_for_by_its_senders_hook() {
    let mut lab = Lab::new().allow(A, D, HTTP);
    let routed = |lab: &mut Lab| lab.see(Side::To, D, BRIDGE, &packet(A, D, OPENS));
    assert_eq!(routed(&mut lab), Err(Drop::Spoofed), "nobody has seen A send this");
    assert_eq!(lab.send(A, Who { mac: HOST.mac, ..D }, OPENS), STACK);
    assert_eq!(routed(&mut lab), STACK);
    let over_another = lab.see(Side::To, D, OTHER_BRIDGE, &packet(A, D, OPENS));
    assert_eq!(over_another, Err(Drop::Spoofed), "A is not behind that bridge");
}

#[test]
fn other_peoples_packets_are_not_delivered() {
    let mut lab = Lab::new().allow(A, B, HTTP).allow(A, C, HTTP);
    let astray = packet(A, Who { mac: B.mac, ..C }, OPENS);
    assert_eq!(lab.see(Side::To, B, A.interface, &astray), Err(Drop::NotForEndpoint));
    let nobodys = packet(A, Who { address: [10, 0, 0, 99], ..B }, OPENS);
    assert_eq!(lab.see(Side::To, B, A.interface, &nobodys), Err(Drop::NotForEndpoint));
}

#[test]
fn a_group_is_judged_as_each_endpoint_that_it_reaches() {
    let everybody = Who { address: [10, 0, 0, 255], mac: BROADCAST, ..B };
    let mut lab = Lab::new().allow(A, B, DNS);
    assert_eq!(lab.reach(A, everybody, Udp(5000, 53)), STACK);
    assert_eq!(lab.reach(A, Who { interface: C.interface, ..everybody }, Udp(5000, 53)), DENIED);
    // nothing answers a group as the group
    assert_eq!(lab.0.v4.flows.borrow().len(), 1);
}

#[test]
fn a_frame_to_everybody_reaches_no_address_that_policy_closes() {
    let mut lab = Lab::new().allow(A, B, DNS);
    let hidden = Who { mac: BROADCAST, ..B2 };
    assert_eq!(lab.reach(A, hidden, Udp(5000, 53)), DENIED);
    let open = Who { mac: BROADCAST, ..B };
    assert_eq!(lab.reach(A, open, Udp(5000, 53)), STACK);
    let anothers = Who { address: C.address, ..open };
    assert_eq!(lab.reach(A, anothers, Udp(5000, 53)), Err(Drop::NotForEndpoint));
}

#[test]
fn an_interface_without_a_name_waits_or_is_closed() {
    let mut lab = Lab::new();
    let newcomer = Who { interface: IfIndex(77), ..A };
    assert_eq!(lab.send(newcomer, B, OPENS), Ok(Pass::Waiting));
    lab.0.live.settings = Settings::ISOLATE_WAITING;
    assert_eq!(lab.send(newcomer, B, OPENS), Err(Drop::NoPolicy));
    let unknown = raw(newcomer, B.mac, &[0; 46]);
    assert_eq!(lab.see(Side::From, newcomer, newcomer.interface, &unknown), Err(Drop::NoPolicy));
}

#[test]
fn isolated_endpoint_drops_unknown_ethertype() {
    let mut lab = Lab::new();
    let lldp = raw(A, B.mac, &[0; 46]);
    assert_eq!(lab.see(Side::From, A, A.interface, &lldp), Err(Drop::Ethertype));
    assert_eq!(lab.see(Side::To, B, A.interface, &lldp), Err(Drop::Ethertype));
    lab.0.hooks.get_mut(&A.interface).unwrap().flags = AddressFlags::ISOLATED_INGRESS;
    assert_eq!(lab.see(Side::From, A, A.interface, &lldp), Ok(Pass::Unjudged));
}

#[test]
fn a_tagged_frame_is_dropped_whoever_sends_it() {
    let mut lab = Lab::new().allow(A, B, HTTP);
    let (_, inner) = frame::ip(ip(A), ip(B), Protocol::TCP, &frame::tcp(40000, 80, SYN));
    for tag in [ethertype::VLAN, ethertype::QINQ] {
        let tagged = frame::ethernet(B.mac, A.mac, tag, &[&[0, 0, 8, 0], &inner[..]].concat());
        assert_eq!(lab.see(Side::From, A, A.interface, &tagged), Err(Drop::Vlan));
    }
}

#[test]
fn direct_delivery_replaces_only_what_the_bridge_would_do() {
    let stack = |change: &dyn Fn(&mut Lab), to: Who| {
        let mut lab = Lab::new().allow(A, B, HTTP).allow(A, D, HTTP);
        change(&mut lab);
        lab.send(A, to, OPENS)
    };
    assert_eq!(stack(&|_| {}, B), DIRECT);
    assert_eq!(stack(&|_| {}, Who { mac: HOST.mac, ..B }), STACK, "the frame is for the host");
    assert_eq!(stack(&|_| {}, D), STACK, "another segment");
    assert_eq!(stack(&|lab| lab.0.live.settings = Settings::STACK, B), STACK);
    let isolate = |lab: &mut Lab, who: Who| {
        let flag = AddressFlags::PORT_ISOLATED;
        let hook = lab.0.hooks.get_mut(&who.interface).unwrap();
        hook.flags = hook.flags.with(flag);
        let values = lab.0.v4.addresses.values_mut().filter(|value| value.ifindex == who.interface);
        values.for_each(|value| value.flags = value.flags.with(flag));
    };
    assert_eq!(stack(&|lab| isolate(lab, A), B), DIRECT, "one isolated port may talk to one that is not");
    assert_eq!(stack(&|lab| [A, B].into_iter().for_each(|who| isolate(lab, who)), B), STACK);
    assert_eq!(stack(&|lab| lab.0.hooks.get_mut(&A.interface).unwrap().segment = 0, B), STACK);
}

#[test]
fn a_direct_flow_takes_the_bridge_when_the_frame_is_for_somebody_else() {
    let mut lab = Lab::new().allow(A, B, HTTP);
    assert_eq!(lab.send(A, B, OPENS), DIRECT);
    assert_eq!(lab.send(A, Who { mac: C.mac, ..B }, Tcp(40000, 80, ACK)), STACK);
}

#[test]
fn routed_delivery_needs_the_host_as_next_hop() {
    let mut lab = Lab::new().allow(A, B, HTTP).allow(A, B, DNS);
    for hook in lab.0.hooks.values_mut() {
        hook.flags = hook.flags.with(AddressFlags::ROUTED);
    }
    for value in lab.0.v4.addresses.values_mut().filter(|value| value.ifindex != IfIndex::NONE) {
        value.flags = value.flags.with(AddressFlags::ROUTED);
    }
    assert_eq!(lab.send(A, B, Udp(5000, 53)), STACK);
    assert_eq!(lab.send(A, Who { mac: HOST.mac, ..B }, OPENS), Ok(Pass::Routed));
}
