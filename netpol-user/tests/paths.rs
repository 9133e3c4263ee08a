//! Policy holds on every way between two endpoints, whoever forwards: between bridges, between a bridge
//! and a routed interface, at link-local and at second addresses.

mod support;

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    thread,
    time::Duration,
};

use support::{
    Attempt::{Ping, Tcp, Udp},
    Endpoint, FAMILIES, Family, Fate, Host, Scene,
    Seen::{Answered, Silent},
    Wire, check,
    packet::{self, seal},
    policy::{anybody, egress, from, ingress, to},
    wire::{dropped, isolated},
};

/// Endpoints that only the host's routing connects: on one bridge, on another, and on none.
struct Islands {
    host: Host,
    a: Endpoint,
    b: Endpoint,
    c: Endpoint,
}

impl Islands {
    fn new() -> Self {
        let host = Host::new();
        host.bridge("br0", &["10.0.0.1/24", "fd00::1/64"]);
        host.bridge("br1", &["10.0.1.1/24", "fd00:0:0:1::1/64"]);
        let a = host.endpoint("br0", "a", &["10.0.0.10/24", "fd00::10/64"]);
        let b = host.endpoint("br1", "b", &["10.0.1.20/24", "fd00:0:0:1::20/64"]);
        a.gateways(&["10.0.0.1", "fd00::1"]);
        b.gateways(&["10.0.1.1", "fd00:0:0:1::1"]);
        // makes the host a router
        let c = host.routed_endpoint("c", &["10.1.0.30", "fd01::30"]);
        Self { host, a, b, c }
    }
}

#[test]
fn endpoints_behind_different_bridges_and_routes_are_judged() {
    let Islands { host, a, b, c } = &Islands::new();
    let _servers = [a, b, c].map(|endpoint| (endpoint.serve_tcp(80), endpoint.serve_udp(53)));
    // a ring: a may call b, b may call c, c may call a
    let ring = [("a", "c"), ("b", "a"), ("c", "b")];
    host.load(&[a, b, c], &ring.map(|(to, peer)| ingress(to, &[from(peer, &[])])));
    let mut expected = vec![];
    for family in FAMILIES {
        for (from, to, back) in [(a, b, c), (b, c, a), (c, a, b)] {
            expected.push((from, Tcp(to.at(family, 80)), Answered));
            expected.push((from, Udp(to.at(family, 53)), Answered));
            expected.push((from, Ping(to.ip(family)), Answered));
            expected.push((from, Tcp(back.at(family, 80)), Silent));
            expected.push((from, Udp(back.at(family, 53)), Silent));
        }
    }
    let ((), counts) = host.counted(|| check(&expected));
    assert_eq!(counts.drops(), ["egress policy-ingress"]);
    assert_eq!(counts.of("egress passed direct") + counts.of("egress passed routed"), 0, "{counts:?}");
    // both hooks on the way remember it
    let flows = host.flows();
    let both = ["egress", "ingress"].map(|direction| {
        flows.iter().any(|flow| {
            flow["source"]["name"] == "a" && flow["destination"]["port"] == 80 && flow["direction"] == direction
        })
    });
    assert_eq!(both, [true, true], "{flows:#?}");
}

#[test]
fn connection_over_the_hosts_routing_is_revoked_too() {
    let Islands { host, a, b, c } = &Islands::new();
    let _server = b.serve_tcp(80);
    host.load(&[a, b, c], &[ingress("b", &[from("a", &[])])]);
    let mut lines = FAMILIES.map(|family| a.connect(&b.at(family, 80)));
    for line in &mut lines {
        assert_eq!(support::exchange(line), Answered);
    }
    host.load(&[a, b, c], &[ingress("b", &[])]);
    for line in &mut lines {
        assert_eq!(support::exchange(line), Silent);
    }
}

#[test]
fn neighbours_address_is_spoofed_over_the_hosts_routing_too() {
    let Islands { host, a, b, c } = &Islands::new();
    host.load(&[a, b, c], &[ingress("b", &[from("c", &[])])]);
    let (socket, router, own) = (a.raw(), host.mac("br0"), a.mac());
    for family in FAMILIES {
        let packet = packet::udp(c.socket(family, 4000), b.socket(family, 53), b"who am I?");
        let ((), counts) = host.counted(|| socket.send(&packet::frame(router, own, &packet)));
        assert_eq!(counts.drops(), ["egress spoofed"]);
    }
}

/// What `spec` the kernel made of an endpoint's own link-local address.
fn link_local(endpoint: &Endpoint) -> IpAddr {
    let line = endpoint.run("ip", &["-br", "-6", "addr", "show", "dev", "eth0", "scope", "link"]);
    let address = line.split_whitespace().find(|word| word.starts_with("fe80")).unwrap();
    address.split('/').next().unwrap().parse().unwrap()
}

#[test]
fn link_local_addresses_are_judged_like_the_others() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    let _servers = (b.serve_tcp(80), b.serve_tcp(81));
    host.load(&[a, b, c], &[ingress("b", &[from("a", &["80/TCP"])])]);
    let address = link_local(b);
    let scope = |endpoint: &Endpoint| endpoint.net(async |net| net.index("eth0").await);
    let at = |endpoint: &Endpoint, port: u16| Tcp(format!("[{address}%{}]:{port}", scope(endpoint)));
    check(&[(a, at(a, 80), Answered), (a, at(a, 81), Silent), (c, at(c, 80), Silent)]);
}

#[test]
fn rules_about_addresses_tell_an_endpoints_addresses_apart() {
    let host = Host::new();
    host.bridge("br0", &["10.0.0.1/16"]);
    let a = host.endpoint("br0", "a", &["10.0.0.10/16", "10.0.0.11/16"]);
    let b = host.endpoint("br0", "b", &["10.0.0.20/16"]);
    host.load(&[&a, &b], &[ingress("b", &["{from: [{ipBlock: {cidr: 10.0.0.11/32}}]}".to_owned()])]);
    let _server = b.serve_udp(53);
    let ask = |source: IpAddr| {
        let socket = a.enter(|| UdpSocket::bind((source, 0))).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        socket.send_to(b"?", b.socket(Family::V4, 53)).unwrap();
        socket.recv(&mut [0; 1]).is_ok()
    };
    assert!(ask(a.addresses[1]));
    let (answered, counts) = host.counted(|| ask(a.addresses[0]));
    assert!(!answered);
    assert_eq!(counts.drops(), ["egress policy-ingress"]);
}

#[test]
fn endpoint_may_call_itself() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    let _server = a.serve_tcp(80);
    host.load(&[a, b, c], &isolated(&[]));
    check(&[(a, Tcp(a.at(Family::V4, 80)), Answered), (a, Tcp("127.0.0.1:80".to_owned()), Answered)]);
}

#[test]
fn options_of_ipv4_are_skipped_and_atomic_fragments_are_whole() {
    let scene = &Scene::bridged();
    let ports = ["53/UDP"];
    let policies = isolated(&[egress("a", &[to("b", &ports)]), ingress("b", &[from("a", &ports)])]);
    scene.host.load(&scene.all(), &policies);
    let wire = Wire::of(scene);
    let ends = |family, port| (scene.a.socket(family, 4000), scene.b.socket(family, port));
    let with_options = |(from, to): (SocketAddr, SocketAddr)| {
        let plain = packet::udp(from, to, b"options");
        // 40 bytes of No-Operation: as many as fit
        let mut packet = [&plain[..20], &[1; 40], &plain[20..]].concat();
        packet[0] = 0x4f;
        let length = u16::try_from(packet.len()).unwrap();
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        seal(&mut packet);
        packet
    };
    assert_eq!(wire.packet(&with_options(ends(Family::V4, 53))), Fate::Arrived);
    assert_eq!(wire.packet(&with_options(ends(Family::V4, 54))), dropped("egress policy-egress"));
    // RFC 6946: a fragment header in a packet that is no fragment
    let atomic = |(from, to): (SocketAddr, SocketAddr)| {
        let segment = packet::udp_segment(from, to, b"atomic");
        packet::ip(from.ip(), to.ip(), 44, &[&[17, 0, 0, 0, 0, 0, 0, 9][..], &segment].concat())
    };
    assert_eq!(wire.packet(&atomic(ends(Family::V6, 53))), Fate::Arrived);
    assert_eq!(wire.packet(&atomic(ends(Family::V6, 54))), dropped("egress policy-egress"));
}

#[test]
fn remembered_denial_counts_each_packet_and_ends_with_the_policy() {
    let scene = &Scene::bridged();
    let Scene { host, a, b, c, .. } = scene;
    host.load(&scene.all(), &isolated(&[]));
    let wire = Wire::of(scene);
    let packet = packet::udp(a.socket(Family::V4, 4000), b.socket(Family::V4, 53), b"again");
    let apart = Duration::from_millis(100);
    for _ in 0..5 {
        assert_eq!(wire.packet(&packet), dropped("egress policy-egress"));
        thread::sleep(apart);
    }
    let denied = host.flow("a", "b", 53);
    assert_eq!((&denied["verdict"], &denied["packets"]), (&"denied".into(), &5.into()), "{denied:#}");
    assert!(denied["idle_seconds"].as_f64() > Some(4.0 * apart.as_secs_f64()), "judged once: {denied:#}");
    host.load(&[a, b, c], &[ingress("b", &[anybody(&["9999/UDP", "53/UDP"])])]);
    assert_eq!(wire.packet(&packet), Fate::Arrived);
    host.load(&scene.all(), &isolated(&[]));
    assert_eq!(wire.packet(&packet), dropped("egress policy-egress"));
}
