//! The table of flows where it is smallest, and everybody wants the same places.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use netpol_common::{
    drops::Side,
    flow::FlowFlags,
    tables::{IfIndex, RuleId},
};
use netpol_user::datapath::{Action, Arrival, Datapath, Pins, Record, Role};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use support::{
    Endpoint, FAMILIES, Family, Scene, packet,
    policy::{from, ingress},
};

/// Room for 32 entries of IPv4 and as many of IPv6, of which a flow may have sixteen.
const SMALLEST: u32 = 32;

/// A scene whose classifiers have the smallest tables. `a` may ask `b` on port 1000 and `c` on 3000, `c` may ask `b` on 2000.
fn scene() -> (Scene, Datapath) {
    let scene = Scene::bridged();
    let datapath = Datapath::open_or_load(&Pins::at(scene.host.bpffs()), None, Some(SMALLEST)).expect("classifiers");
    let policies = [
        ingress("b", &[from("a", &["1000/UDP"]), from("c", &["2000/UDP"])]),
        ingress("c", &[from("a", &["3000/UDP"])]),
    ];
    scene.host.load(&scene.all(), &policies);
    (scene, datapath)
}

/// A packet, where it is sent, and whether it may be.
struct Sent {
    arrival: Arrival,
    frame: Vec<u8>,
    is_allowed: bool,
}

/// Twenty flows for each line of the policy, and as many that it denies.
fn packets(scene: &Scene) -> Vec<Sent> {
    let Scene { a, b, c, .. } = scene;
    let lines = [(a, b, 1000, true), (c, b, 2000, true), (a, c, 3000, true), (a, b, 2000, false), (c, b, 1000, false)];
    let mut packets = Vec::new();
    for (sender, receiver, port, is_allowed) in lines {
        let (macs, interface) = ((receiver.mac(), sender.mac()), interface(scene, sender));
        for (family, client) in FAMILIES.into_iter().flat_map(|family| (0..20).map(move |client| (family, client))) {
            let ends = (sender.socket(family, 4000 + client), receiver.socket(family, port));
            let frame = packet::frame(macs.0, macs.1, &packet::udp(ends.0, ends.1, b"ask"));
            packets.push(Sent { arrival: Arrival { interface, ingress: interface }, frame, is_allowed });
        }
    }
    packets
}

fn interface(scene: &Scene, endpoint: &Endpoint) -> IfIndex {
    IfIndex(scene.host.net(async |net| net.index(&endpoint.host_interface).await))
}

#[test]
fn flows_that_two_processors_remember_in_the_same_places_are_never_mixed_up() {
    const ROUNDS: u64 = 40;
    const EACH: usize = 2_000;
    let (scene, datapath) = scene();
    let packets = packets(&scene);
    let play = |cpu: usize, round: u64| {
        let mut set = CpuSet::new();
        set.set(cpu).expect("a number of a CPU");
        sched_setaffinity(Pid::from_raw(0), &set).expect("two CPUs");
        // any order, another one each time
        let mut state = round * 2 + cpu as u64;
        for _ in 0..EACH {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let Sent { arrival, frame, is_allowed } = &packets[(state >> 33) as usize % packets.len()];
            let ran = datapath.test_run((Role::Workload, Side::From), frame, *arrival).expect("a run");
            assert_eq!(ran.action, if *is_allowed { Action::Redirect } else { Action::Drop });
        }
    };
    let inside = |cpu, round| scene.host.namespace.enter(|| play(cpu, round)).expect("entering a namespace needs root");
    let mut said = BTreeMap::new();
    for round in 0..ROUNDS {
        thread::scope(|scope| {
            let both = [0, 1].map(|cpu| scope.spawn(move || inside(cpu, round)));
            both.into_iter().for_each(|thread| thread.join().expect("what should have passed"));
        });
        whole(&scene, &datapath, &mut said);
    }
    let usage = datapath.usage(datapath.turned().unwrap(), &datapath.records().unwrap()).unwrap();
    for flows in usage.into_iter().filter(|usage| usage.map == "flows") {
        assert_eq!(flows.capacity, 32, "{flows:?}");
        assert!((2..=32).contains(&flows.entries) && flows.evicted > Some(1_000), "{flows:?}");
    }
}

/// What is there is whole: who is delivered to whom, and by which rule, each flow once.
fn whole(scene: &Scene, datapath: &Datapath, said: &mut BTreeMap<(u16, bool), (RuleId, RuleId)>) {
    let records = datapath.records().expect("records");
    let flows: Vec<_> = records.iter().filter(|record| record.denied.is_none()).collect();
    for record in &flows {
        let (from, to) = (owner(scene, record.source), owner(scene, record.destination));
        let port = if record.flags.has(FlowFlags::REPLY) { record.source_port } else { record.destination_port };
        assert_eq!((record.interface, record.far), (interface(scene, from), interface(scene, to)), "{record:?}");
        let rules = (record.egress_rule, record.ingress_rule);
        assert_eq!(*said.entry((port, record.source.is_ipv4())).or_insert(rules), rules, "{record:?}");
    }
    // two CPUs that find a flow nowhere at the same time: one of them stays out
    let keys: BTreeSet<_> = flows.iter().map(|record| key(record)).collect();
    assert_eq!(keys.len(), flows.len(), "a flow is there twice: {flows:?}");
}

fn owner(scene: &Scene, address: IpAddr) -> &Endpoint {
    let found = scene.all().into_iter().find(|endpoint| endpoint.addresses.contains(&address));
    found.unwrap_or_else(|| panic!("nobody has {address}"))
}

fn key(record: &Record) -> (u32, IpAddr, IpAddr, u16, u16) {
    let ports = (record.source_port, record.destination_port);
    (record.interface.0, record.source, record.destination, ports.0, ports.1)
}

#[test]
fn a_flow_that_is_used_stays_when_others_come() {
    // the classifiers' clock goes on, of the slowest kernels too
    const TICK: Duration = Duration::from_millis(25);
    let (scene, _datapath) = scene();
    let Scene { host, a, b, .. } = &scene;
    let socket = |port: u16| a.enter(|| UdpSocket::bind(a.socket(Family::V4, port))).unwrap();
    let (busy, server) = (socket(5000), b.socket(Family::V4, 1000));
    let _answers = b.enter(|| UdpSocket::bind(server)).unwrap();
    let began = Instant::now();
    for other in 0..20 {
        busy.send_to(b"still here", server).unwrap();
        thread::sleep(TICK);
        socket(6000 + other).send_to(b"new", server).unwrap();
        thread::sleep(TICK);
    }
    assert!(began.elapsed() > 40 * TICK);
    let flows = host.flows();
    let packets = |port: u16| {
        let of = flows.iter().find(|flow| flow["source"]["port"] == port);
        of.and_then(|flow| flow["packets"].as_u64())
    };
    assert_eq!(packets(5000), Some(20), "{flows:#?}");
    assert_eq!((packets(6019), packets(6000)), (Some(1), None), "{flows:#?}");
}
