//! What is published, and who answers there.

use std::{collections::BTreeMap, net::IpAddr};

use netpol_common::{
    kernel::Settings,
    service::{MemberKey, ServiceKey, ServiceValue, hash, pick},
    tables::{AddressFlags, IfIndex, Network},
    wire::{Addr4, Addr6, Address, PortBe, Protocol},
};
use proptest::{collection::vec, prelude::*, sample::select};

use super::worlds::{at, endpoint, labels, nets, running};
use crate::{
    compile::{BackendState, CompileError, Snapshot, Workload, compile, outside},
    model::{
        EndpointPort, EndpointSlice, Expr, IpVersion, ObjectName, Pool, Scope, Selector, Service, ServiceAddress,
        ServicePort, SliceEndpoint, SlicePort, Target, Traffic, World,
    },
};

fn x(name: &str) -> ObjectName {
    ObjectName { namespace: "x".into(), name: name.into() }
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Of the endpoints with `app: NAME`, at these addresses; without ports.
fn service(name: &str, app: Option<&str>, addresses: &[&str]) -> Service {
    let selector = |app: &str| Selector {
        scope: Scope::Namespace("x".into()),
        labels: Expr::And(vec![Expr::Eq("app".into(), app.into())]),
    };
    Service {
        name: x(name),
        selector: app.map(selector),
        addresses: addresses.iter().map(|text| own(text, false)).collect(),
        internal_traffic: Traffic::Cluster,
        external_traffic: Traffic::Cluster,
        family: None,
        affinity: None,
        publish_not_ready: false,
        ports: Vec::new(),
        origin: at(1),
    }
}

fn own(text: &str, is_external: bool) -> ServiceAddress {
    ServiceAddress { address: address(text), is_external, origin: at(1) }
}

fn port(port: u16, target: Target) -> ServicePort {
    ServicePort { name: None, protocol: Protocol::TCP, port, target, node_port: None, origin: at(2) }
}

fn slice(service: &str, endpoints: &[(&str, bool)], port: u16) -> EndpointSlice {
    let endpoint = |&(text, ready): &(&str, bool)| SliceEndpoint { address: address(text), ready, origin: at(3) };
    EndpointSlice {
        name: x("slice"),
        service: Some(service.into()),
        endpoints: endpoints.iter().map(endpoint).collect(),
        ports: vec![SlicePort { name: None, protocol: Protocol::TCP, port }],
        weight: 1,
        origin: at(3),
    }
}

/// Where something is published, in words.
fn place(address: impl Into<IpAddr>, port: PortBe, protocol: Protocol) -> String {
    format!("{} {}/{protocol}", address.into(), port.to_host())
}

/// By place: the backends in its Maglev table, each once.
fn answers(snapshot: &Snapshot) -> BTreeMap<String, Vec<String>> {
    let mut answers = BTreeMap::new();
    for (key, value) in &snapshot.services4 {
        let backend = |&i: &u32| (snapshot.backends4[i as usize].address.into(), snapshot.backends4[i as usize].port);
        answers
            .insert(place(key.address, key.port, key.protocol), distinct(slots(snapshot, value).iter().map(backend)));
    }
    for (key, value) in &snapshot.services6 {
        let backend = |&i: &u32| (snapshot.backends6[i as usize].address.into(), snapshot.backends6[i as usize].port);
        answers
            .insert(place(key.address, key.port, key.protocol), distinct(slots(snapshot, value).iter().map(backend)));
    }
    answers
}

fn slots<'s>(snapshot: &'s Snapshot, value: &ServiceValue) -> &'s [u32] {
    &snapshot.maglev[value.first as usize..(value.first + value.size) as usize]
}

fn distinct(backends: impl Iterator<Item = (IpAddr, PortBe)>) -> Vec<String> {
    let mut list: Vec<_> = backends.map(|(address, port)| format!("{address} {}", port.to_host())).collect();
    list.sort_unstable();
    list.dedup();
    list
}

/// Two endpoints `web` in both families, one of them with a named port elsewhere, and these services.
fn world(services: Vec<Service>) -> World {
    let web = |name: &str, number: u8, http: u16| {
        let mut web = endpoint(name, &format!("10.0.0.{number}"));
        web.addresses.push(address("fe80::1"));
        web.addresses.push(address(&format!("fd00::{number}")));
        web.labels = labels(&[("app", "web")]);
        web.ports = vec![EndpointPort { name: Some("http".into()), port: http, protocol: Protocol::TCP }];
        web
    };
    let mut elsewhere = endpoint("elsewhere", "10.0.0.9");
    elsewhere.name.namespace = "y".into();
    elsewhere.labels = labels(&[("app", "web")]);
    World { endpoints: vec![web("one", 1, 80), web("two", 2, 8080), elsewhere], services, ..World::default() }
}

/// Every address is on its own link, like the link-local ones.
fn workloads(world: &World) -> Vec<Workload> {
    let routed = |(number, workload): (usize, Workload)| Workload { network: Network(number as u32), ..workload };
    running(world).into_iter().enumerate().map(routed).collect()
}

fn compiled(world: &World, host: &[&str]) -> Snapshot {
    let host: Vec<_> = host.iter().map(|text| address(text)).collect();
    compile(world, &workloads(world), &host).unwrap()
}

fn strings<const N: usize>(list: [&str; N]) -> Vec<String> {
    list.map(str::to_owned).to_vec()
}

#[test]
fn selected_endpoints_of_the_services_namespace_answer_in_their_own_family() {
    let mut web = service("web", Some("web"), &["10.96.0.1", "fd96::1"]);
    web.ports = vec![port(80, Target::Named("http".into())), port(9000, Target::Number(9001))];
    let snapshot = compiled(&world(vec![web]), &[]);
    let expected = [
        ("10.96.0.1 80/TCP", strings(["10.0.0.1 80", "10.0.0.2 8080"])),
        ("10.96.0.1 9000/TCP", strings(["10.0.0.1 9001", "10.0.0.2 9001"])),
        ("fd96::1 80/TCP", strings(["fd00::1 80", "fd00::2 8080"])),
        ("fd96::1 9000/TCP", strings(["fd00::1 9001", "fd00::2 9001"])),
    ];
    assert_eq!(answers(&snapshot), expected.map(|(place, backends)| (place.to_owned(), backends)).into());
    let numbers: Vec<_> = snapshot.services4.iter().map(|(_, value)| value.service).collect();
    assert_eq!(numbers, [1, 2]);
    assert_eq!(snapshot.services[1].port, 9000);
}

#[test]
fn node_ports_are_published_at_every_address_of_the_host_and_on_localhost() {
    let mut web = service("web", Some("web"), &[]);
    web.ports = vec![ServicePort { node_port: Some(8080), ..port(80, Target::Number(80)) }];
    let host = ["192.0.2.1", "2001:db8::1", "fe80::5", "127.0.0.1"];
    let places = |web: Service| answers(&compiled(&world(vec![web]), &host)).into_keys().collect::<Vec<_>>();
    assert_eq!(
        places(web.clone()),
        ["127.0.0.1 8080/TCP", "192.0.2.1 8080/TCP", "2001:db8::1 8080/TCP", "::1 8080/TCP"]
    );
    assert_eq!(
        places(Service { family: Some(IpVersion::V6), ..web.clone() }),
        ["2001:db8::1 8080/TCP", "::1 8080/TCP"]
    );
    let external = Service { addresses: vec![own("192.0.2.1", true)], ..web };
    let places = places(external);
    assert!(places.contains(&"192.0.2.1 80/TCP".to_owned()), "its own port there as well: {places:?}");
}

#[test]
fn slices_list_backends_and_those_not_ready_get_nothing() {
    let mut out = service("out", None, &["10.96.0.2"]);
    out.ports = vec![port(443, Target::Number(1))];
    let listed = slice("out", &[("192.0.2.7", true), ("192.0.2.8", false)], 8443);
    let world = |out: &Service| World { slices: vec![listed.clone()], ..self::world(vec![out.clone()]) };
    let snapshot = compiled(&world(&out), &[]);
    assert_eq!(answers(&snapshot)["10.96.0.2 443/TCP"], ["192.0.2.7 8443"]);
    let states: Vec<_> = snapshot.services[0].backends.iter().map(|backend| backend.state).collect();
    assert_eq!(states, [BackendState::Ready, BackendState::NotReady]);
    out.publish_not_ready = true;
    assert_eq!(answers(&compiled(&world(&out), &[]))["10.96.0.2 443/TCP"].len(), 2);
    out.ports[0].name = Some("https".into());
    assert_eq!(answers(&compiled(&world(&out), &[]))["10.96.0.2 443/TCP"], Vec::<String>::new(), "no such port");
}

#[test]
fn who_is_elsewhere_has_no_part_in_what_is_local() {
    use Traffic::{Cluster, Local};
    let slices = |here: &str| vec![slice("web", &[("198.51.100.7", true), (here, true)], 80)];
    // an address of an endpoint's, and one of the host's
    for here in ["10.0.0.9", "192.0.2.1"] {
        for (internal, external) in [(Cluster, Cluster), (Cluster, Local), (Local, Cluster), (Local, Local)] {
            for addresses in [vec![own("10.96.0.1", false), own("192.0.2.5", true)], vec![own("192.0.2.5", true)]] {
                let mut web = service("web", Some("web"), &[]);
                web.ports = vec![ServicePort { node_port: Some(8080), ..port(80, Target::Number(80)) }];
                (web.addresses, web.internal_traffic, web.external_traffic) = (addresses, internal, external);
                let world = World { slices: slices(here), ..world(vec![web.clone()]) };
                let snapshot = compiled(&world, &["192.0.2.1"]);
                let mut locals = vec!["10.0.0.1 80".to_owned(), "10.0.0.2 80".to_owned(), format!("{here} 80")];
                locals.sort_unstable();
                let all: Vec<_> = locals.iter().cloned().chain(["198.51.100.7 80".to_owned()]).collect();
                for (place, found) in answers(&snapshot) {
                    if !place.contains(':') {
                        let traffic = if place.starts_with("10.96.") { internal } else { external };
                        assert_eq!(found, if traffic == Local { locals.clone() } else { all.clone() }, "{place}");
                    }
                }
                // each address stands beside those who answer there
                for service in &snapshot.services {
                    for (place, _) in &service.addresses {
                        let traffic = if *place == address("10.96.0.1") { internal } else { external };
                        let lists =
                            service.backends.iter().any(|backend| backend.address == Some(address("198.51.100.7")));
                        assert_eq!(lists, traffic == Cluster, "{place}");
                    }
                }
                let is_split = internal != external && web.addresses.len() == 2;
                assert_eq!(snapshot.services.len(), if is_split { 2 } else { 1 });
            }
        }
    }
}

#[test]
fn a_service_without_running_backends_is_published_all_the_same() {
    let mut web = service("web", Some("web"), &["10.96.0.1"]);
    web.ports = vec![port(80, Target::Number(80))];
    web.affinity = Some(60);
    let snapshot = compile(&world(vec![web]), &[], &[]).unwrap();
    let [(_, value)] = snapshot.services4[..] else { panic!("{:?}", snapshot.services4) };
    assert_eq!(value, ServiceValue { first: 0, size: 0, affinity: 60, service: 1 });
    assert_eq!(pick(7, &value), None);
    let pending = |backend: &crate::compile::BackendName| backend.state == BackendState::Pending;
    assert_eq!(snapshot.services[0].backends.iter().filter(|backend| pending(backend)).count(), 2);
}

#[test]
fn what_the_machine_makes_ambiguous_is_refused() {
    let mut web = service("web", Some("web"), &["10.0.0.9"]);
    web.ports = vec![port(80, Target::Number(80))];
    let refused = |services: &[Service], host: &[&str]| {
        let world = world(services.to_vec());
        let host: Vec<_> = host.iter().map(|text| address(text)).collect();
        compile(&world, &workloads(&world), &host).unwrap_err()
    };
    let endpoint = ObjectName { namespace: "y".into(), name: "elsewhere".into() };
    let expected = CompileError::ServiceAtEndpoint { address: address("10.0.0.9"), service: x("web"), endpoint };
    assert_eq!(refused(&[web.clone()], &[]), expected);
    web.addresses = vec![own("192.0.2.1", true)];
    let mut node = service("node", None, &[]);
    node.ports = vec![ServicePort { node_port: Some(80), ..port(8080, Target::Number(80)) }];
    let expected = CompileError::ServiceTwice {
        address: address("192.0.2.1"),
        port: 80,
        protocol: Protocol::TCP,
        one: x("web"),
        two: x("node"),
    };
    assert_eq!(refused(&[web.clone(), node], &["192.0.2.1"]), expected);
    let shared = CompileError::BackendTwice { service: x("web"), endpoint: x("one"), address: address("10.0.0.1") };
    let world = world(vec![web]);
    let mut twice = workloads(&world);
    twice.push(Workload { ifindex: IfIndex(99), network: Network(99), endpoint: 2, ..twice[0].clone() });
    assert_eq!(compile(&world, &twice, &[]).unwrap_err(), shared);
}

/// Addresses and ports of those that are told apart.
fn backends_outside<A: Address + Into<IpAddr>>(members: &[(MemberKey<A>, u32)]) -> Vec<String> {
    outside(members).map(|key| format!("{} {}", key.backend.into(), key.backend_port.to_host())).collect()
}

#[test]
fn backends_that_are_not_on_this_host_are_told_apart() {
    let mut web = service("web", Some("web"), &["10.96.0.1", "fd96::1"]);
    web.ports = vec![port(80, Target::Number(8_080))];
    let told_apart = |listed: &[(&str, bool)]| {
        let mut world = World { slices: vec![slice("web", listed, 8_443)], ..world(vec![web.clone()]) };
        // of two endpoints, each in a network of its own
        world.endpoints.extend([endpoint("left", "10.0.0.77"), endpoint("right", "10.0.0.77")]);
        let snapshot = compiled(&world, &["192.0.2.1"]);
        let all = [backends_outside(&snapshot.members4), backends_outside(&snapshot.members6)].concat();
        (all, snapshot.nobody_outside())
    };
    // endpoints, one of another namespace, and the host itself
    let nobody = Settings::NOBODY_OUTSIDE;
    assert_eq!(told_apart(&[("10.0.0.9", true), ("192.0.2.1", true)]), (vec![], nobody));
    let but_one = Settings(nobody.0 & !Settings::nobody_outside(PortBe::from_host(8_443)).0);
    assert_eq!(but_one.0.count_ones(), 15);
    assert_eq!(told_apart(&[("192.0.2.7", true)]), (strings(["192.0.2.7 8443"]), but_one));
    assert_eq!(told_apart(&[("2001:db8::7", true)]), (strings(["2001:db8::7 8443"]), but_one));
    assert_eq!(
        told_apart(&[("10.0.0.77", true)]),
        (strings(["10.0.0.77 8443"]), but_one),
        "whose it is here, is unclear"
    );
    assert_eq!(told_apart(&[("192.0.2.7", false)]), (vec![], nobody), "not ready: nobody asks it");
}

#[test]
fn services_with_the_same_backends_share_a_table() {
    let one = |n: u8| {
        let mut web = service(&format!("web{n}"), Some("web"), &[&format!("10.96.0.{n}")]);
        web.ports = vec![port(80, Target::Number(80))];
        web
    };
    let snapshot = compiled(&world(vec![one(1), one(2), one(3)]), &[]);
    assert_eq!(snapshot.maglev.len(), 251);
    assert_eq!(snapshot.backends4.len(), 2);
    assert_eq!(snapshot.members4.len(), 6);
}

#[test]
fn endpoints_in_pools_that_translate_are_marked_and_all_pools_are_listed() {
    let pool = |name: &str, cidr: &str, nat_outgoing, disabled| Pool {
        name: name.into(),
        cidr: nets(&[cidr])[0],
        nat_outgoing,
        disabled,
        origin: at(1),
    };
    let mut world = world(vec![]);
    world.pools = vec![
        pool("a", "10.0.0.0/30", true, false),
        pool("b", "fd00::/64", true, true),
        pool("c", "172.16.0.0/12", false, false),
        pool("d", "10.0.0.0/30", true, false),
    ];
    let snapshot = compiled(&world, &["10.0.0.3"]);
    let marked = |flags: AddressFlags| flags.has(AddressFlags::MASQUERADE);
    let four = snapshot.addresses4.iter().filter(|(_, value)| marked(value.flags));
    let four: Vec<_> = four.map(|(key, _)| IpAddr::from(key.address).to_string()).collect();
    assert_eq!(four, ["10.0.0.1", "10.0.0.2"], "neither what lies outside nor the host");
    assert!(!snapshot.addresses6.iter().any(|(_, value)| marked(value.flags)));
    assert_eq!(snapshot.pools4, [nets4("10.0.0.0/30"), nets4("172.16.0.0/12")]);
    assert_eq!(snapshot.pools6.len(), 1);
}

fn nets4(text: &str) -> ipnet::Ipv4Net {
    text.parse().unwrap()
}

#[test]
fn ten_thousand_services_with_ports_of_their_own_have_a_table_each() {
    let services = (0..10_000u32).map(|n| {
        let [_, _, a, b] = n.to_be_bytes();
        let mut web = service(&format!("s{n}"), Some("web"), &[&format!("10.96.{a}.{b}")]);
        web.ports = vec![port(80, Target::Number(1 + n as u16))];
        web
    });
    let snapshot = compiled(&world(services.collect()), &[]);
    assert_eq!((snapshot.services4.len(), snapshot.members4.len()), (10_000, 20_000));
    assert_eq!(snapshot.maglev.len(), 10_000 * 251);
}

/// Endpoints `web` that run or not, with a weight; what a slice lists; how many addresses are published.
fn some_service() -> impl Strategy<Value = World> {
    let endpoint = (prop::bool::ANY, 1..=100u8, select(&["web", "db"][..]));
    (vec(endpoint, 0..12), vec(prop::bool::ANY, 0..5), 1..4u8).prop_map(|(endpoints, listed, addresses)| {
        let one = |(n, (six, weight, app)): (usize, (bool, u8, &str))| {
            let mut one = self::endpoint(&format!("e{n}"), &format!("10.0.0.{}", n + 1));
            if six {
                one.addresses.push(address(&format!("fd00::{}", n + 1)));
            }
            one.labels = labels(&[("app", app)]);
            one.weight = weight;
            one
        };
        let texts: Vec<String> = (0..listed.len()).map(|n| format!("192.0.2.{n}")).collect();
        let listed: Vec<_> = texts.iter().map(String::as_str).zip(listed).collect();
        let published: Vec<String> = (0..addresses).map(|n| format!("10.96.0.{n}")).collect();
        let mut published: Vec<&str> = published.iter().map(String::as_str).collect();
        published.push("fd96::1");
        let mut web = service("web", Some("web"), &published);
        web.ports = vec![port(80, Target::Number(8080))];
        World {
            endpoints: endpoints.into_iter().enumerate().map(one).collect(),
            services: vec![web],
            slices: vec![slice("web", &listed, 8080)],
            ..World::default()
        }
    })
}

proptest! {
    #[test]
    fn every_slot_leads_to_a_member_and_every_member_has_a_slot(world in some_service(), client in any::<u32>()) {
        let snapshot = compile(&world, &running(&world), &[]).unwrap();
        for (key, value) in &snapshot.services4 {
            let ServiceKey { address, port, protocol, .. } = *key;
            let is_here = |m: &&(netpol_common::service::MemberKey<Addr4>, u32)| {
                (m.0.address, m.0.port, m.0.protocol) == (address, port, protocol)
            };
            let mut members: Vec<u32> = snapshot.members4.iter().filter(is_here).map(|(_, index)| *index).collect();
            members.sort_unstable();
            let mut slots = slots(&snapshot, value).to_vec();
            slots.sort_unstable();
            slots.dedup();
            prop_assert_eq!(&slots, &members);
            let picked = pick(hash(&Addr4(client), PortBe(client as u16), value.service), value);
            prop_assert_eq!(picked.is_none(), members.is_empty());
            prop_assert!(picked.is_none_or(|slot| members.contains(&snapshot.maglev[slot as usize])));
        }
        for (key, index) in &snapshot.members4 {
            let backend = snapshot.backends4[*index as usize];
            prop_assert_eq!((key.backend, key.backend_port), (backend.address, backend.port));
        }
        for (key, index) in &snapshot.members6 {
            let backend = snapshot.backends6[*index as usize];
            let expected: (Addr6, PortBe) = (backend.address, backend.port);
            prop_assert_eq!((key.backend, key.backend_port), expected);
        }
    }
}
