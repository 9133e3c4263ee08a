//! What is not a plain packet of a connection has a written rule: fragments, extension headers, ICMP
//! errors, protocols without ports, headers that lie.

mod support;

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use support::{
    Endpoint, FAMILIES, Family, Fate, HOST, LAYOUTS, Layout, Scene, Wire,
    packet::{self, ICMP, ICMPV6, TCP, UDP, seal},
    policy::{anybody, calico, egress, from, ingress, to},
    wire::{dropped, isolated},
};

const SYN: u8 = 2;
const ACK: u8 = 16;

/// Both isolated, but a may ask b on 53/UDP and 80/TCP.
fn asking() -> Vec<String> {
    let ports = ["53/UDP", "80/TCP"];
    isolated(&[egress("a", &[to("b", &ports)]), ingress("b", &[from("a", &ports)])])
}

fn ends(scene: &Scene, family: Family, ports: (u16, u16)) -> (SocketAddr, SocketAddr) {
    (scene.a.socket(family, ports.0), scene.b.socket(family, ports.1))
}

/// A datagram of 4,000 bytes, in fragments; whether it arrives whole.
fn large_datagram_arrives(client: &Endpoint, server: &Endpoint, family: Family, port: u16) -> bool {
    let bind = |endpoint: &Endpoint, port: u16| {
        let socket = endpoint.enter(|| UdpSocket::bind((endpoint.ip(family), port))).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        socket
    };
    let (from, to) = (bind(client, 0), bind(server, port));
    let data: Vec<u8> = (0..4000u32).map(|n| (n % 251) as u8).collect();
    let mut buffer = [0; 5000];
    for (sender, receiver) in [(&from, &to), (&to, &from)] {
        sender.send_to(&data, receiver.local_addr().unwrap()).unwrap();
        let Ok((length, _)) = receiver.recv_from(&mut buffer) else { return false };
        assert_eq!(buffer[..length], data);
    }
    true
}

fn fragments_are_judged_as_one(layout: Layout, forwarding: &str) {
    let scene = &Scene::new(layout);
    let Scene { host, a, b, .. } = scene;
    host.load_with(&["--forwarding", forwarding], &scene.all(), &asking());
    for family in FAMILIES {
        assert!(large_datagram_arrives(a, b, family, 53), "{family:?}");
        let (arrives, counts) = host.counted(|| large_datagram_arrives(a, b, family, 54));
        assert!(!arrives, "{family:?}");
        assert_eq!(counts.drops(), ["egress policy-egress"], "all of its fragments, for one reason");
        assert_eq!(counts.of("egress dropped policy-egress"), 3);
    }
}

#[test]
fn fragmented_datagram_is_judged_as_one_on_a_bridge() {
    fragments_are_judged_as_one(Layout::Bridged, "direct");
}

#[test]
fn fragmented_datagram_is_judged_as_one_on_a_bridge_that_forwards() {
    fragments_are_judged_as_one(Layout::Bridged, "stack");
}

#[test]
fn fragmented_datagram_is_judged_as_one_where_the_host_would_route() {
    fragments_are_judged_as_one(Layout::Routed, "direct");
}

#[test]
fn fragmented_datagram_is_judged_as_one_where_the_host_routes() {
    fragments_are_judged_as_one(Layout::Routed, "stack");
}

/// An IPv4 packet, made a fragment: its offset in units of 8 bytes, and whether more come.
fn fragment4(packet: &[u8], id: u16, offset: u16, more: bool) -> Vec<u8> {
    let mut packet = packet.to_vec();
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    packet[6..8].copy_from_slice(&(offset | u16::from(more) << 13).to_be_bytes());
    seal(&mut packet);
    packet
}

fn fragment6((from, to): (IpAddr, IpAddr), id: u32, (next, offset, more): (u8, u16, bool), data: &[u8]) -> Vec<u8> {
    let place = (offset << 3 | u16::from(more)).to_be_bytes();
    packet::ip(from, to, 44, &[&[next, 0][..], &place, &id.to_be_bytes(), data].concat())
}

#[test]
fn later_fragment_without_its_first_is_dropped() {
    for policies in [vec![], asking()] {
        let scene = &Scene::bridged();
        scene.host.load(&scene.all(), &policies);
        let wire = Wire::of(scene);
        let (from, to) = ends(scene, Family::V4, (4000, 53));
        let datagram = packet::udp(from, to, &[7; 64]);
        assert_eq!(wire.packet(&fragment4(&datagram, 1, 2, false)), dropped("egress fragment"));
        assert_eq!(wire.packet(&fragment4(&datagram, 2, 0, true)), Fate::Arrived);
        assert_eq!(wire.packet(&fragment4(&datagram, 2, 9, false)), Fate::Arrived);
        assert_eq!(wire.packet(&fragment4(&datagram, 3, 9, false)), dropped("egress fragment"), "another packet's");

        let (from, to) = ends(scene, Family::V6, (4000, 53));
        let segment = packet::udp_segment(from, to, &[7; 64]);
        let ips = (from.ip(), to.ip());
        assert_eq!(wire.packet(&fragment6(ips, 1, (UDP, 2, false), &segment)), dropped("egress fragment"));
        assert_eq!(wire.packet(&fragment6(ips, 2, (UDP, 0, true), &segment)), Fate::Arrived);
        assert_eq!(wire.packet(&fragment6(ips, 2, (UDP, 9, false), &segment)), Fate::Arrived);
    }
}

#[test]
fn fragment_cannot_rewrite_the_header_that_was_judged() {
    let scene = &Scene::bridged();
    scene.host.load(&scene.all(), &asking());
    let wire = Wire::of(scene);
    let (from, to) = ends(scene, Family::V4, (4000, 80));
    let syn = packet::tcp(from, to, SYN, &[7; 64]);
    assert_eq!(wire.packet(&fragment4(&syn, 1, 0, true)), Fate::Arrived);
    // RFC 3128: the flags are in the second eight bytes
    assert_eq!(wire.packet(&fragment4(&syn, 1, 1, false)), dropped("egress fragment"));
    let (from, to) = ends(scene, Family::V6, (4000, 80));
    let ips = (from.ip(), to.ip());
    let segment = &packet::tcp(from, to, SYN, &[7; 64])[40..];
    assert_eq!(wire.packet(&fragment6(ips, 1, (TCP, 0, true), segment)), Fate::Arrived);
    assert_eq!(wire.packet(&fragment6(ips, 1, (TCP, 1, false), segment)), dropped("egress fragment"));
    // so small a first fragment that the flags are not in it
    let tiny = fragment6(ips, 2, (TCP, 0, true), &segment[..8]);
    assert_eq!(wire.send_bare(&packet::frame(wire.target, wire.source, &tiny)), dropped("egress malformed"));
}

#[test]
fn extension_headers_are_followed_to_what_policy_judges() {
    let scene = &Scene::bridged();
    scene.host.load(&scene.all(), &asking());
    let wire = Wire::of(scene);
    let options = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
    let with = |chain: &[u8], port: u16| {
        let (from, to) = ends(scene, Family::V6, (4000, port));
        let mut headers = vec![];
        for (index, _) in chain.iter().enumerate() {
            headers.extend(options(chain.get(index + 1).copied().unwrap_or(UDP)));
        }
        headers.extend(packet::udp_segment(from, to, b"options"));
        packet::ip(from.ip(), to.ip(), chain[0], &headers)
    };
    for chain in [&[0][..], &[60], &[0, 60], &[0, 60, 60]] {
        assert_eq!(wire.packet(&with(chain, 53)), Fate::Arrived, "{chain:?}");
        assert_eq!(wire.packet(&with(chain, 54)), dropped("egress policy-egress"), "{chain:?}");
    }
    assert_eq!(wire.packet(&with(&[60; 8], 53)), dropped("egress extension-headers"), "too many to follow");
    // a routing header lets the sender choose the path, whatever its type
    for kind in [0, 2, 3, 4] {
        let (from, to) = ends(scene, Family::V6, (4000, 53));
        let routing = [&[UDP, 2, kind, 1, 0, 0, 0, 0][..], &[0; 16], &packet::udp_segment(from, to, b"x")].concat();
        let packet = packet::ip(from.ip(), to.ip(), 43, &routing);
        assert_eq!(wire.packet(&packet), dropped("egress extension-headers"), "type {kind}");
    }
}

#[test]
fn lying_headers_are_dropped() {
    for policies in [vec![], asking()] {
        let scene = &Scene::bridged();
        scene.host.load(&scene.all(), &policies);
        let wire = Wire::of(scene);
        let (from, to) = ends(scene, Family::V4, (4000, 53));
        let plain = packet::udp(from, to, b"x");
        let changed = |at: usize, byte: u8| {
            let mut packet = plain.clone();
            packet[at] = byte;
            packet
        };
        let six = {
            let (from, to) = ends(scene, Family::V6, (4000, 80));
            packet::tcp(from, to, SYN, b"")[..46].to_vec()
        };
        let mut wrong_version = six.clone();
        wrong_version[0] = 0x50;
        for (what, kind, packet) in [
            ("version 5", 0x0800, changed(0, 0x55)),
            ("IPv6 as IPv4", 0x0800, changed(0, 0x65)),
            ("a header of 16 bytes", 0x0800, changed(0, 0x44)),
            ("a header longer than the frame", 0x0800, changed(0, 0x4f)),
            ("IPv4 as IPv6", 0x86dd, plain.clone()),
            ("version 5 as IPv6", 0x86dd, wrong_version),
            ("TCP cut short", 0x86dd, six[..46].to_vec()),
        ] {
            let frame = packet::ethernet(wire.target, wire.source, kind, &packet);
            assert_eq!(wire.send_bare(&frame), dropped("egress malformed"), "{what}");
        }
    }
}

#[test]
fn flags_that_no_connection_has_are_dropped() {
    for policies in [vec![], asking()] {
        let scene = &Scene::bridged();
        scene.host.load(&scene.all(), &policies);
        let wire = Wire::of(scene);
        for family in FAMILIES {
            let (from, to) = ends(scene, family, (4000, 80));
            // null, SYN+FIN, SYN+RST, FIN alone, FIN+PSH+URG ("Xmas"), everything
            for flags in [0, 0x03, 0x06, 0x01, 0x29, 0x3f] {
                let fate = wire.packet(&packet::tcp(from, to, flags, b""));
                assert_eq!(fate, dropped("egress tcp-flags"), "{flags:#x}");
            }
            assert_eq!(wire.packet(&packet::tcp(from, to, SYN, b"")), Fate::Arrived);
        }
    }
}

#[test]
fn middle_of_a_connection_that_nobody_saw_is_judged_as_its_clients() {
    let scene = &Scene::bridged();
    scene.host.load(&scene.all(), &asking());
    let wire = Wire::of(scene);
    let back = Wire::new(&scene.host, &scene.b, &scene.a);
    for family in FAMILIES {
        // the ephemeral port is the client's
        let (from, to) = ends(scene, family, (40_000, 80));
        assert_eq!(wire.packet(&packet::tcp(from, to, ACK, b"x")), Fate::Arrived);
        let (from, to) = ends(scene, family, (40_001, 80));
        assert_eq!(back.packet(&packet::tcp(to, from, ACK, b"x")), Fate::Arrived);
        let (from, to) = ends(scene, family, (40_002, 81));
        assert_eq!(back.packet(&packet::tcp(to, from, ACK, b"x")), dropped("egress policy-egress"));
        // unclear: both must be allowed, and b may not call a
        let (from, to) = ends(scene, family, (1024, 80));
        assert_eq!(wire.packet(&packet::tcp(from, to, ACK, b"x")), dropped("egress policy-egress"));
        // a SYN from the replying side opens a connection of its own
        let (from, to) = ends(scene, family, (40_000, 80));
        assert_eq!(back.packet(&packet::tcp(to, from, SYN, b"")), dropped("egress policy-egress"));
    }
}

#[test]
fn protocols_without_ports_are_judged_by_their_number() {
    let scene = &Scene::bridged();
    let gre = "types: [Ingress], ingress: [{action: Allow, protocol: 47, source: {selector: app == 'a'}}]";
    scene.host.load(&scene.all(), &[calico("b", gre), ingress("b", &[anybody(&["9999/UDP"])])]);
    let wire = Wire::of(scene);
    for family in FAMILIES {
        let (from, to) = (scene.a.ip(family), scene.b.ip(family));
        assert_eq!(wire.packet(&packet::ip(from, to, 47, &[0; 40])), Fate::Arrived);
        // ESP, OSPF, L2TP, and one for experiments (RFC 3692)
        for protocol in [50, 89, 115, 253] {
            let fate = wire.packet(&packet::ip(from, to, protocol, &[0; 40]));
            assert_eq!(fate, dropped("egress policy-ingress"), "{protocol}");
        }
    }
    let flows = scene.host.flows();
    assert!(flows.iter().any(|flow| flow["verdict"] == "allowed" && flow["source"]["port"].is_null()), "{flows:#?}");
}

#[test]
fn sctp_is_judged_by_port() {
    let scene = &Scene::bridged();
    scene
        .host
        .load(&scene.all(), &isolated(&[egress("a", &[to("b", &["3868/SCTP"])]), ingress("b", &[from("a", &[])])]));
    let wire = Wire::of(scene);
    for family in FAMILIES {
        let init = |port: u16| {
            let ports = [40_000u16.to_be_bytes(), port.to_be_bytes()].concat();
            packet::ip(scene.a.ip(family), scene.b.ip(family), 132, &[&ports[..], &[0; 28]].concat())
        };
        assert_eq!(wire.packet(&init(3868)), Fate::Arrived);
        assert_eq!(wire.packet(&init(3869)), dropped("egress policy-egress"));
    }
    assert_eq!(scene.host.flow("a", "b", 3868)["protocol"], "SCTP");
}

/// An ICMP error of that family about a packet.
fn unreachable((from, to): (IpAddr, IpAddr), about: &[u8]) -> Vec<u8> {
    // port unreachable (RFC 792, RFC 4443)
    let head = if from.is_ipv4() { [3, 3, 0, 0, 0, 0] } else { [1, 4, 0, 0, 0, 0] };
    packet::icmp(from, to, head, about)
}

#[test]
fn icmp_error_passes_only_about_a_packet_that_was_sent() {
    for policies in [vec![], asking()] {
        let scene = &Scene::bridged();
        let Scene { host, a, b, .. } = scene;
        host.load(&scene.all(), &policies);
        let (wire, back) = (Wire::of(scene), Wire::new(host, b, a));
        for family in FAMILIES {
            let (from, to) = ends(scene, family, (4000, 53));
            let question = packet::udp(from, to, b"question");
            let answer = |about: &[u8]| back.packet(&unreachable((to.ip(), from.ip()), about));
            assert_eq!(answer(&question), dropped("egress icmp-unrelated"), "before there was one");
            assert_eq!(wire.packet(&question), Fate::Arrived);
            assert_eq!(answer(&question), Fate::Arrived);
            let other = packet::udp(SocketAddr::new(from.ip(), 4001), to, b"question");
            assert_eq!(answer(&other), dropped("egress icmp-unrelated"), "another port");
            let elsewhere = packet::udp(from, scene.c.socket(family, 53), b"question");
            assert_eq!(answer(&elsewhere), dropped("egress icmp-unrelated"), "a packet that b never got");
            let cut = &question[..if from.is_ipv4() { 20 } else { 40 }];
            assert_eq!(
                back.send_bare(&packet::frame(back.target, back.source, &unreachable((to.ip(), from.ip()), cut))),
                dropped("egress icmp-unrelated"),
                "too little of it"
            );
            // a third party's word about it
            let third = Wire::new(host, &scene.c, a);
            let fate = third.packet(&unreachable((scene.c.ip(family), from.ip()), &question));
            assert!(matches!(fate, Fate::Dropped(_)), "{fate:?}");
        }
    }
}

#[test]
fn revoked_flow_gets_no_icmp_errors_any_more() {
    let scene = &Scene::bridged();
    let Scene { host, a, b, .. } = scene;
    host.load(&scene.all(), &asking());
    let (from, to) = ends(scene, Family::V4, (4000, 53));
    let question = packet::udp(from, to, b"question");
    assert_eq!(Wire::of(scene).packet(&question), Fate::Arrived);
    host.load(&scene.all(), &isolated(&[]));
    let error = unreachable((to.ip(), from.ip()), &question);
    assert_eq!(Wire::new(host, b, a).packet(&error), dropped("egress icmp-unrelated"));
}

#[test]
fn errors_of_routers_on_the_way_come_back() {
    for layout in LAYOUTS {
        let scene = &Scene::new(layout);
        let Scene { host, a, outside, .. } = scene;
        let blocks = "{cidr: 192.0.2.9/32}}, {ipBlock: {cidr: 2001:db8::9/128}";
        let policies = isolated(&[egress("a", &[format!("{{to: [{{ipBlock: {blocks}}}]}}")])]);
        host.load(&scene.all(), &policies);
        for (family, kind) in [(Family::V4, [11, 0]), (Family::V6, [3, 0])] {
            let socket = a.enter(|| UdpSocket::bind((a.ip(family), 0))).unwrap();
            if family == Family::V4 {
                socket.set_ttl(1).unwrap();
            } else {
                nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Ipv6Ttl, &1).unwrap();
            }
            let input = a.raw();
            socket.send_to(b"how far?", outside.at(family, 33_434)).unwrap();
            let at = if family == Family::V4 { 34 } else { 54 };
            assert!(input.receive(|frame| frame.get(at..at + 2) == Some(&kind)).is_some(), "{layout:?} {family:?}");
        }
        // but nobody outside may make one up
        let (router, own) = (host.mac("v-outside"), outside.mac());
        let made_up = packet::udp(a.socket(Family::V4, 5000), outside.socket(Family::V4, 1), b"x");
        let error = unreachable((outside.ipv4(), a.ipv4()), &made_up);
        let raw = outside.raw();
        let ((), counts) = host.counted(|| raw.send(&packet::frame(router, own, &error)));
        assert_eq!(counts.drops(), ["ingress icmp-unrelated"]);
    }
}

#[test]
fn closed_port_outside_is_told() {
    for layout in LAYOUTS {
        let scene = &Scene::new(layout);
        let Scene { host, a, outside, .. } = scene;
        let block = format!("{{to: [{{ipBlock: {{cidr: {}/32}}}}, {{ipBlock: {{cidr: 192.0.2.9/32}}}}]}}", HOST[0]);
        host.load(&scene.all(), &isolated(&[egress("a", &[block])]));
        for to in [outside.at(Family::V4, 9), format!("{}:9", HOST[0])] {
            assert_eq!(a.udp(&to), support::Seen::Refused, "{layout:?} {to}");
        }
    }
}

#[test]
fn echo_with_the_same_id_in_the_other_direction_is_another_flow() {
    let scene = &Scene::bridged();
    let Scene { host, a, b, .. } = scene;
    let rules =
        "{action: Allow, protocol: ICMP, icmp: {type: 8}}, {action: Allow, protocol: ICMPv6, icmp: {type: 128}}";
    let policies = [
        calico("a", &format!("types: [Egress], egress: [{rules}]")),
        calico("b", &format!("types: [Ingress], ingress: [{rules}]")),
    ];
    host.load(&scene.all(), &isolated(&policies));
    let (wire, back) = (Wire::of(scene), Wire::new(host, b, a));
    for family in FAMILIES {
        let (request, reply) = if family == Family::V4 { (8, 0) } else { (128, 129) };
        let echo = |from: &Endpoint, to: &Endpoint, kind: u8, id: u8| {
            packet::icmp(from.ip(family), to.ip(family), [kind, 0, 0, id, 0, 1], b"echo")
        };
        let unasked = wire.packet(&echo(a, b, reply, 7));
        assert_eq!(unasked, dropped("egress policy-egress"), "a reply to what nobody may ask");
        assert_eq!(wire.packet(&echo(a, b, request, 7)), Fate::Arrived);
        assert_eq!(back.packet(&echo(b, a, reply, 7)), Fate::Arrived);
        let fate = back.packet(&echo(b, a, request, 7));
        assert_eq!(fate, dropped("egress policy-egress"), "the same id, asked from the other side");
    }
    assert_eq!((ICMP, ICMPV6), (1, 58));
}

#[test]
fn a_flow_is_idle_since_its_last_packet() {
    // a jiffy of the slowest kernels, twice, and what is rounded
    const FINENESS: Duration = Duration::from_millis(25);
    let scene = Scene::bridged();
    let Scene { host, a, .. } = &scene;
    for family in FAMILIES {
        // a generation for each: the flow is asked for by its names
        host.load(&scene.all(), &[]);
        let (from, to) = ends(&scene, family, (4000, 4001));
        let socket = a.enter(|| UdpSocket::bind(from)).unwrap();
        let sends = Instant::now();
        socket.send_to(b"ping", to).unwrap();
        let sent = Instant::now();
        thread::sleep(Duration::from_millis(1_200));
        let asks = sent.elapsed();
        let idle = host.flow("a", "b", 4001)["idle_seconds"].as_f64().unwrap();
        let answered = sends.elapsed();
        let idle = Duration::from_secs_f64(idle);
        assert!(asks - FINENESS <= idle && idle <= answered + FINENESS, "{asks:?} {idle:?} {answered:?}");
    }
}
