use super::*;
use crate::{compile::Workload, model::sample, netns::NamespaceId, source::Delivery};

/// The interface with that number, in that network, with these addresses.
fn running(endpoint: usize, ifindex: u32, network: u32, addresses: &[&str]) -> Found {
    let workload = Workload {
        network: Network(network),
        master: IfIndex(network),
        mac: [2, 0, 0, 0, 1, ifindex as u8],
        host_mac: [2, 0, 0, 0, 0, ifindex as u8],
        ..Workload::at(endpoint, IfIndex(ifindex), addresses.iter().map(|address| address.parse().unwrap()).collect())
    };
    Found {
        workload,
        interface: format!("v{ifindex}"),
        container_interface: "eth0".to_owned(),
        namespace: NamespaceId { device: 0, inode: u64::from(ifindex) },
        delivery: Delivery::Direct,
        outside: Delivery::Direct,
    }
}

/// `x/a`, `x/b`, ... which name these addresses.
fn named(addresses: &[&str]) -> World {
    let names = ["x/a", "x/b", "x/c"];
    sample::world(&names.iter().zip(addresses).map(|(name, text)| sample::endpoint(name, text)).collect::<Vec<_>>())
}

fn gone(endpoint: usize) -> Pending {
    Pending { endpoint, reason: String::new() }
}

fn first_load(world: &World, mut found: Vec<Found>) -> Vec<Seen> {
    settle(world, (&mut found, &[]), &[], Known::default()).seen
}

/// Endpoint, address, reason of what was refused.
fn refused(world: &World, mut found: Vec<Found>, pending: &[Pending], seen: &[Seen]) -> Vec<(usize, String, Reason)> {
    let settled = settle(world, (&mut found, pending), &[], Known { seen, accept: false });
    assert_eq!(settled.wrong, []);
    let text = |address: Address| address.to_string().trim_start_matches("address ").to_owned();
    settled.refused.into_iter().map(|one| (one.endpoint, text(one.address), one.reason)).collect()
}

#[test]
fn networks_have_addresses_of_their_own() {
    let world = named(&["", ""]);
    let found = |network| vec![running(0, 1, 7, &["10.0.0.1"]), running(1, 2, network, &["10.0.0.1"])];
    assert_eq!(refused(&world, found(8), &[], &[]), []);
    assert_eq!(refused(&world, found(7), &[], &[]).len(), 2);
}

#[test]
fn another_interface_is_seen_for_the_first_time() {
    let world = named(&[""]);
    let seen = first_load(&world, vec![running(0, 1, 7, &["10.0.0.1"])]);
    let now = |ifindex| vec![running(0, ifindex, 7, &["10.0.0.2"])];
    assert_eq!(refused(&world, now(1), &[], &seen), [(0, "10.0.0.2".to_owned(), Reason::New)]);
    assert_eq!(refused(&world, now(2), &[], &seen), []);
    let mut same_number = now(1);
    same_number[0].workload.host_mac = [2, 9, 9, 9, 9, 9];
    assert_eq!(refused(&world, same_number, &[], &seen), []);
}

#[test]
fn mac_address_from_inside_makes_no_new_interface_and_is_no_new_one() {
    let world = named(&[""]);
    let seen = first_load(&world, vec![running(0, 1, 7, &["10.0.0.1"])]);
    let mut now = vec![running(0, 1, 7, &["10.0.0.2", "fe80::1234"])];
    // made of the MAC address that it had
    let of_mac = link_local(now[0].workload.mac);
    now[0].workload.addresses.push(of_mac);
    now[0].workload.mac = [2, 0, 0, 0, 9, 9];
    let new = |address: &str| (0, address.to_owned(), Reason::New);
    let expected = ["MAC address 02:00:00:00:09:09", "10.0.0.2", "fe80::1234"].map(new);
    assert_eq!(refused(&world, now.clone(), &[], &seen), expected);
    settle(&world, (&mut now, &[]), &[], Known { seen: &seen, accept: false });
    assert_eq!(now[0].workload.mac, [2, 0, 0, 0, 1, 1]);
    let mut now = vec![running(0, 1, 7, &[])];
    now[0].workload.mac = [2, 0, 0, 0, 9, 9];
    assert_eq!(settle(&world, (&mut now, &[]), &[], Known { seen: &seen, accept: true }).refused, []);
    assert_eq!(now[0].workload.mac, [2, 0, 0, 0, 9, 9]);
}

#[test]
fn restarted_endpoint_has_its_address_before_a_newcomer() {
    let world = named(&["", ""]);
    let seen = first_load(&world, vec![running(0, 1, 7, &["10.0.0.1"])]);
    let now = vec![running(0, 3, 7, &["10.0.0.1"]), running(1, 4, 7, &["10.0.0.1"])];
    assert_eq!(refused(&world, now, &[], &seen), [(1, "10.0.0.1".to_owned(), Reason::Owned(0))]);
}

#[test]
fn endpoint_that_never_ran_keeps_what_its_document_names_from_those_without_a_title() {
    let newcomer = || vec![running(1, 4, 7, &["10.0.0.1"])];
    let expected = [(1, "10.0.0.1".to_owned(), Reason::Owned(0))];
    assert_eq!(refused(&named(&["10.0.0.1", ""]), newcomer(), &[gone(0)], &[]), expected);
    assert_eq!(refused(&named(&["10.0.0.1", "10.0.0.1"]), newcomer(), &[gone(0)], &[]), []);
}

#[test]
fn document_beats_memory() {
    let world = named(&["", "10.0.0.1"]);
    let seen = first_load(&world, vec![running(0, 1, 7, &["10.0.0.1"])]);
    let now = vec![running(0, 1, 7, &["10.0.0.1"]), running(1, 2, 7, &["10.0.0.9"])];
    let expected = [(0, "10.0.0.1".to_owned(), Reason::Owned(1)), (1, "10.0.0.9".to_owned(), Reason::Undeclared)];
    assert_eq!(refused(&world, now, &[], &seen), expected);
}

#[test]
fn renamed_document_keeps_the_interfaces_addresses() {
    let seen = first_load(&named(&["", ""]), vec![running(0, 1, 7, &["10.0.0.1"])]);
    // b is behind the interface now, and a not running
    assert_eq!(refused(&named(&["", ""]), vec![running(1, 1, 7, &["10.0.0.1"])], &[gone(0)], &seen), []);
}

#[test]
fn memory_is_the_same_after_the_same_again() {
    let world = named(&["", "", ""]);
    let found = || vec![running(0, 1, 7, &["10.0.0.1", "10.0.0.9"]), running(1, 2, 7, &["10.0.0.2", "10.0.0.9"])];
    let first = first_load(&world, found());
    let again = settle(&world, (&mut found(), &[gone(2)]), &[], Known { seen: &first, accept: false });
    assert_eq!(again.seen, first);
}
