//! Nobody can be somebody else: who speaks is told by the interface, whatever a frame says.

mod support;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use support::{
    Attempt::Tcp,
    Endpoint, FAMILIES, Family, Fate, Host, Scene,
    Seen::{Answered, Silent},
    Wire, check,
    packet::{self, BROADCAST, Mac},
    policy::{from, ingress},
    wire::{dropped, isolated},
};

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn v6(address: IpAddr) -> Ipv6Addr {
    let IpAddr::V6(address) = address else { panic!("{address}") };
    address
}

/// A datagram to b's port 53.
fn to_b(scene: &Scene, source: IpAddr) -> Vec<u8> {
    let family = if source.is_ipv4() { Family::V4 } else { Family::V6 };
    packet::udp(SocketAddr::new(source, 4000), scene.b.socket(family, 53), b"who am I?")
}

#[test]
fn foreign_source_address_is_dropped_whether_or_not_policy_is_about_the_sender() {
    for policies in [vec![], isolated(&[])] {
        let scene = &Scene::bridged();
        scene.host.load(&scene.all(), &policies);
        let wire = Wire::of(scene);
        // a neighbour's, the bridge's, the host's, an outside one, nobody's, and what is no source at all
        let foreign = [
            "10.0.0.30",
            "10.0.0.20",
            "10.0.0.1",
            "192.0.2.1",
            "192.0.2.9",
            "10.0.0.99",
            "127.0.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "fd00::30",
            "fd00::20",
            "fd00::1",
            "2001:db8::1",
            "2001:db8::9",
            "fd00::99",
            "::1",
            "ff02::1",
            "fe80::1",
        ];
        for source in foreign {
            assert_eq!(wire.packet(&to_b(scene, address(source))), dropped("egress spoofed"), "{source}");
        }
        if policies.is_empty() {
            assert_eq!(wire.packet(&to_b(scene, scene.a.ipv4())), Fate::Arrived);
            assert_eq!(wire.packet(&to_b(scene, scene.a.ipv6())), Fate::Arrived);
        }
    }
}

#[test]
fn foreign_mac_address_is_dropped_also_in_a_known_flow() {
    let scene = &Scene::bridged();
    scene.host.load(&scene.all(), &[]);
    let wire = Wire::of(scene);
    for family in FAMILIES {
        let packet = to_b(scene, scene.a.ip(family));
        for stranger in [scene.c.mac(), scene.host.mac("br0"), [2, 0, 0, 0, 0, 9]] {
            let forged = packet::frame(wire.target, stranger, &packet);
            assert_eq!(wire.send(&forged), dropped("egress spoofed"));
            assert_eq!(wire.packet(&packet), Fate::Arrived);
            assert_eq!(wire.send(&forged), dropped("egress spoofed"), "the flow's entry is not for it");
        }
    }
}

#[test]
fn address_of_an_owner_that_is_gone_is_still_not_anybody_elses() {
    let Scene { host, a, b, c, outside } = Scene::bridged();
    // only c may call b
    let policies = [ingress("b", &[from("c", &[]), support::policy::anybody(&["9999/UDP"])])];
    host.load(&[&a, &b, &c], &policies);
    let gone = c.ipv4();
    let document = c.document().replace(c.netns().to_str().unwrap(), "npt-gone");
    drop(c);
    let scene = Scene { c: host.endpoint("br0", "other", &["10.0.0.40/16"]), host, a, b, outside };
    let wire = Wire::of(&scene);
    assert_eq!(wire.packet(&to_b(&scene, gone)), dropped("egress spoofed"), "before the next load");
    let text = [support::policy::documents(&[&scene.a, &scene.b, &scene.c], &policies), document].join("---\n");
    let report = scene.host.load_path(&[], &scene.host.documents("gone.yaml", &text));
    assert_eq!(report["pending"][0]["name"], "c");
    assert_eq!(wire.packet(&to_b(&scene, gone)), dropped("egress spoofed"), "after it");
    // nor is it the host's to use
    let host = scene.host.itself().raw_on("br0");
    let (target, source) = (wire.target, scene.host.mac("br0"));
    let ((), counts) = scene.host.counted(|| {
        host.send(&packet::frame(target, source, &to_b(&scene, gone)));
    });
    assert_eq!(counts.drops(), [""; 0], "an address that is nobody's any more is the host's like any other");
}

#[test]
fn address_that_an_endpoint_gives_itself_is_not_believed_until_a_load_accepts_it() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    let _server = b.serve_tcp(80);
    host.load(&[a, b, c], &[ingress("b", &[from("c", &[]), from("a", &[])])]);
    a.run("ip", &["addr", "del", "10.0.0.10/16", "dev", "eth0"]);
    a.run("ip", &["addr", "add", "10.0.0.77/16", "dev", "eth0"]);
    let ((), counts) = host.counted(|| check(&[(a, Tcp(b.at(Family::V4, 80)), Silent)]));
    assert!(counts.drops().iter().all(|drop| drop == "egress arp-spoofed" || drop == "egress spoofed"), "{counts:?}");
    let status = host.netpol(&["status", "-o", "json"]);
    assert_eq!(status.code, 1);
    let problem = status.json()["problems"][0].as_str().unwrap().to_owned();
    assert!(
        problem.contains("default/a has the address 10.0.0.77, which it had not when it was first seen"),
        "{problem}"
    );
    host.load_with(&["--accept-addresses"], &[a, b, c], &[ingress("b", &[from("c", &[]), from("a", &[])])]);
    a.run("ip", &["neigh", "flush", "dev", "eth0"]);
    check(&[(a, Tcp(b.at(Family::V4, 80)), Answered)]);
}

#[test]
fn reused_address_has_its_new_owners_identity_after_a_load() {
    let Scene { host, a, b, c, outside } = Scene::bridged();
    let _server = b.serve_tcp(80);
    let policies = [ingress("b", &[from("c", &[])])];
    host.load(&[&a, &b, &c], &policies);
    check(&[(&c, Tcp(b.at(Family::V4, 80)), Answered)]);
    let open = c.connect(&b.at(Family::V4, 80));
    drop((c, open, outside));
    // another container gets the address: not one that b answers
    let d = host.endpoint("br0", "d", &["10.0.0.30/16", "fd00::30/64"]);
    check(&[(&d, Tcp(b.at(Family::V4, 80)), Silent)]);
    host.load(&[&a, &b, &d], &policies);
    d.run("ip", &["neigh", "flush", "dev", "eth0"]);
    let ((), counts) = host.counted(|| check(&[(&d, Tcp(b.at(Family::V4, 80)), Silent)]));
    assert_eq!(counts.drops(), ["egress policy-ingress"]);
    assert_eq!(host.flow("d", "b", 80)["source"]["labels"]["app"], "d");
}

#[test]
fn host_process_with_a_containers_address_is_spoofed_and_with_its_own_is_the_host() {
    let scene = &Scene::bridged();
    let Scene { host, b, c, .. } = scene;
    host.load(&scene.all(), &isolated(&[]));
    let (bridge, target) = (host.mac("br0"), b.mac());
    let socket = host.itself().raw_on("br0");
    let send =
        |source: IpAddr| host.counted(|| socket.send(&packet::frame(target, bridge, &to_b(scene, source)))).1.drops();
    for family in FAMILIES {
        assert_eq!(send(c.ip(family)), ["ingress spoofed"]);
    }
    assert_eq!(send(address("10.0.0.1")), [""; 0]);
    assert_eq!(send(address("fd00::1")), [""; 0]);
}

#[test]
fn outside_machine_with_a_containers_or_the_hosts_address_is_spoofed() {
    let scene = &Scene::bridged();
    let Scene { host, b, c, outside, .. } = scene;
    // the host would take the packet for one of the bridge otherwise
    for setting in ["net/ipv4/conf/all/rp_filter", "net/ipv4/conf/v-outside/rp_filter"] {
        host.sysctl(setting, "0");
    }
    host.sysctl("net/ipv4/conf/all/accept_local", "1");
    host.load(&scene.all(), &[ingress("b", &[from("c", &[])])]);
    check(&[(&host.itself(), Tcp(b.at(Family::V4, 80)), support::Seen::Refused)]);
    let (socket, router, own) = (outside.raw(), host.mac("v-outside"), outside.mac());
    for source in [c.ipv4(), c.ipv6(), address("10.0.0.1")] {
        let frame = packet::frame(router, own, &to_b(scene, source));
        let ((), counts) = host.counted(|| socket.send(&frame));
        assert_eq!(counts.drops(), ["ingress spoofed"], "{source}");
    }
}

/// A frame with these tags.
fn tagged(wire: &Wire<'_>, tags: &[(u16, u16)], packet: &[u8]) -> Vec<u8> {
    let tags = tags.iter().flat_map(|(kind, id)| [kind.to_be_bytes(), id.to_be_bytes()]).flatten();
    let inner = packet::frame(wire.target, wire.source, packet);
    inner[..12].iter().copied().chain(tags).chain(inner[12..].iter().copied()).collect()
}

#[test]
fn vlan_tags_are_dropped_whatever_is_inside() {
    for policies in [vec![], isolated(&[])] {
        let scene = &Scene::bridged();
        scene.host.load(&scene.all(), &policies);
        let wire = Wire::of(scene);
        let stacks: [&[(u16, u16)]; 6] = [
            &[(0x8100, 0)],
            &[(0x8100, 5)],
            &[(0x8100, 0xe000)],
            &[(0x88a8, 5)],
            &[(0x88a8, 5), (0x8100, 6)],
            &[(0x8100, 0), (0x8100, 0)],
        ];
        for stack in stacks {
            for source in [scene.a.ipv4(), scene.a.ipv6(), scene.c.ipv4()] {
                let frame = tagged(&wire, stack, &to_b(scene, source));
                assert_eq!(wire.send(&frame), dropped("egress vlan"), "{stack:x?} {source}");
            }
        }
    }
}

#[test]
fn vlan_tag_towards_an_endpoint_is_dropped() {
    let scene = &Scene::bridged();
    let Scene { host, b, .. } = scene;
    host.load(&scene.all(), &isolated(&[]));
    let (socket, target, source) = (host.itself().raw_on("br0"), b.mac(), host.mac("br0"));
    let plain = packet::frame(target, source, &to_b(scene, address("10.0.0.1")));
    let frame = [&plain[..12], &[0x81, 0, 0, 0], &plain[12..]].concat();
    assert_eq!(host.counted(|| socket.send(&frame)).1.drops(), ["ingress vlan"]);
}

#[test]
fn arp_claims_only_what_is_the_senders_own() {
    for policies in [vec![], isolated(&[])] {
        let scene = &Scene::bridged();
        scene.host.load(&scene.all(), &policies);
        let wire = Wire::of(scene);
        let (own, target) = ((wire.source, scene.a.ipv4()), (wire.target, scene.b.ipv4()));
        let nobody = ([0; 6], address("0.0.0.0"));
        let send = |to: Mac, message: Vec<u8>| wire.send(&packet::ethernet(to, wire.source, 0x0806, &message));
        for claimed in ["10.0.0.30", "10.0.0.20", "10.0.0.1", "192.0.2.1", "10.0.0.99", "255.255.255.255"] {
            let claim = (wire.source, address(claimed));
            for (to, operation, target) in
                [(wire.target, 2, target), (wire.target, 1, target), (BROADCAST, 1, claim), (BROADCAST, 2, claim)]
            {
                let message = packet::arp(operation, claim, target);
                assert_eq!(send(to, message), dropped("egress arp-spoofed"), "{claimed} {operation}");
            }
        }
        let other_mac = packet::arp(2, (scene.c.mac(), scene.a.ipv4()), target);
        assert_eq!(send(wire.target, other_mac), dropped("egress arp-spoofed"));
        // its own address, announced or asked with, and a probe (RFC 5227)
        assert_eq!(send(wire.target, packet::arp(2, own, target)), Fate::Arrived);
        assert_eq!(send(BROADCAST, packet::arp(1, own, (nobody.0, target.1))), Fate::Arrived);
        assert_eq!(send(BROADCAST, packet::arp(1, own, own)), Fate::Arrived);
        assert_eq!(send(BROADCAST, packet::arp(1, (wire.source, nobody.1), own)), Fate::Arrived);
        let neighbours = scene.b.run("ip", &["neigh", "show", "10.0.0.1"]);
        let mac = wire.source.map(|byte| format!("{byte:02x}")).join(":");
        assert!(!neighbours.contains(&mac), "{neighbours}");
    }
}

#[test]
fn neighbour_discovery_claims_only_what_is_the_senders_own() {
    for policies in [vec![], isolated(&[])] {
        let scene = &Scene::bridged();
        scene.host.load(&scene.all(), &policies);
        let wire = Wire::of(scene);
        let (a, b) = (scene.a.ipv6(), scene.b.ipv6());
        for claimed in ["fd00::30", "fd00::20", "fd00::1", "2001:db8::1", "fd00::99", "fe80::1"] {
            let target = v6(address(claimed));
            for from in [a, address(claimed)] {
                let advertisement = packet::advertisement(from, b, target, wire.source);
                assert_eq!(wire.packet(&advertisement), dropped("egress nd-spoofed"), "{claimed} as {from}");
            }
            let solicitation = packet::icmp(address(claimed), b, [135, 0, 0, 0, 0, 0], &v6(b).octets());
            assert_eq!(wire.packet(&solicitation), dropped("egress nd-spoofed"), "{claimed}");
        }
        assert_eq!(wire.packet(&packet::advertisement(a, b, v6(a), wire.source)), Fate::Arrived);
        let solicitation = packet::icmp(a, b, [135, 0, 0, 0, 0, 0], &v6(b).octets());
        assert_eq!(wire.packet(&solicitation), Fate::Arrived);
        let forged = packet::frame(wire.target, scene.c.mac(), &packet::advertisement(a, b, v6(a), wire.source));
        assert_eq!(wire.send(&forged), dropped("egress nd-spoofed"), "another's MAC address");
    }
}

#[test]
fn containers_are_no_routers() {
    for policies in [vec![], isolated(&[])] {
        let scene = &Scene::bridged();
        scene.host.load(&scene.all(), &policies);
        let wire = Wire::of(scene);
        let (a, b) = (scene.a.ipv6(), scene.b.ipv6());
        let advertisement = |from, to| packet::icmp(from, to, [134, 0, 64, 0, 0x70, 8], &[0; 8]);
        let link_local = address("fe80::1");
        for packet in [
            advertisement(a, b),
            advertisement(a, address("ff02::1")),
            advertisement(link_local, b),
            packet::icmp(a, b, [137, 0, 0, 0, 0, 0], &[0; 32]),
            packet::icmp(scene.a.ipv4(), scene.b.ipv4(), [5, 1, 10, 0, 0, 10], &[0x45; 28]),
        ] {
            // what could not have begun on this link is not even looked at
            let fate = wire.packet(&packet);
            let reasons = ["egress router-advertisement", "egress nd-spoofed"].map(dropped);
            assert!(reasons.contains(&fate), "{fate:?}");
        }
        // behind an extension header, too: 8 bytes of options that mean nothing
        let ip = packet::icmp(a, b, [134, 0, 64, 0, 0x70, 8], &[0; 8]);
        let hidden = packet::ip(a, b, 60, &[&[58, 0, 1, 4, 0, 0, 0, 0], &ip[40..]].concat());
        let reasons = ["egress router-advertisement", "egress nd-spoofed"].map(dropped);
        assert!(reasons.contains(&wire.packet(&hidden)));
    }
}

#[test]
fn containers_are_no_dhcp_servers() {
    for policies in [vec![], isolated(&[])] {
        let scene = &Scene::bridged();
        scene.host.load(&scene.all(), &policies);
        let wire = Wire::of(scene);
        let socket = |ip: &str, port| SocketAddr::new(address(ip), port);
        let offer = packet::udp(scene.a.socket(Family::V4, 67), scene.b.socket(Family::V4, 68), &[2; 240]);
        let relayed = packet::udp(scene.a.socket(Family::V4, 67), scene.b.socket(Family::V4, 67), &[2; 240]);
        let reply = packet::udp(scene.a.socket(Family::V6, 547), scene.b.socket(Family::V6, 546), &[7; 40]);
        for packet in [offer, relayed, reply] {
            assert_eq!(wire.packet(&packet), dropped("egress dhcp-server"));
        }
        // asking the link is what a container may; its neighbours' policies judge what they hear of it
        let open = policies.is_empty();
        let discover = packet::udp(socket("0.0.0.0", 68), socket("255.255.255.255", 67), &[1; 240]);
        let host = scene.host.itself().raw_on("br0");
        let fate = wire.send(&packet::frame(BROADCAST, wire.source, &discover));
        assert_eq!(fate, if open { Fate::Arrived } else { dropped("ingress policy-ingress") });
        assert!(host.receive(|frame| frame.windows(240).any(|window| window == [1; 240])).is_some());
        // and it hears a server that is no container
        let answer = packet::udp(socket("10.0.0.1", 67), scene.a.socket(Family::V4, 68), &[2; 240]);
        let from = scene.host.mac("br0");
        let ((), counts) = scene.host.counted(|| host.send(&packet::frame(wire.source, from, &answer)));
        assert!(counts.of("ingress passed control") > 0, "{counts:?}");
        assert!(!counts.drops().iter().any(|drop| drop.starts_with("ingress")), "{counts:?}");
        // a renewal goes to one server: an ordinary flow, as is whatever else uses these ports
        let renewal = packet::udp(scene.a.socket(Family::V4, 68), scene.b.socket(Family::V4, 67), &[1; 240]);
        let fate = wire.packet(&renewal);
        assert_eq!(fate, if open { Fate::Arrived } else { dropped("egress policy-egress") });
        let forged = packet::frame(BROADCAST, scene.c.mac(), &discover);
        assert_eq!(wire.send(&forged), dropped("egress spoofed"), "in another's name");
    }
}

/// An EtherType for experiments (IEEE 802), an AppleTalk one, an IPv4 packet in LLC/SNAP, a spanning tree's BPDU.
fn strangers(wire: &Wire<'_>, packet: &[u8]) -> Vec<Vec<u8>> {
    let snap = [&[0xaa, 0xaa, 3, 0, 0, 0, 8, 0][..], packet].concat();
    let length = u16::try_from(snap.len()).unwrap();
    let frame = |kind, payload: &[u8]| packet::ethernet(wire.target, wire.source, kind, payload);
    vec![frame(0x88b5, packet), frame(0x809b, packet), frame(length, &snap), frame(38, &[0x42, 0x42, 3, 0, 0, 0, 0, 0])]
}

#[test]
fn isolated_endpoint_sends_and_gets_no_unknown_ethertype() {
    let only = |direction: &str| {
        let policy = format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: one}}\nspec: \
             {{podSelector: {{matchLabels: {{app: {}}}}}, policyTypes: [{direction}], {}: [{{}}]}}\n",
            if direction == "Ingress" { "b" } else { "a" },
            direction.to_lowercase()
        );
        vec![policy]
    };
    // even a policy that allows everything cannot judge these
    for (policies, fate) in [
        (only("Egress"), dropped("egress ethertype")),
        (only("Ingress"), dropped("ingress ethertype")),
        (vec![], Fate::Arrived),
    ] {
        let scene = &Scene::bridged();
        scene.host.load(&scene.all(), &policies);
        let wire = Wire::of(scene);
        for frame in strangers(&wire, &to_b(scene, scene.a.ipv4())) {
            assert_eq!(wire.send(&frame), fate, "{:02x?}", &frame[12..22]);
        }
        let unjudged = scene.host.counts().of("egress passed unjudged");
        assert_eq!(unjudged > 0, policies != only("Egress"), "{policies:?}");
    }
}

#[test]
fn only_the_endpoints_own_addresses_are_delivered_to_it() {
    let scene = &Scene::bridged();
    scene.host.load(&scene.all(), &[]);
    let wire = Wire::of(scene);
    for target in ["10.0.0.99", "10.0.0.30", "192.0.2.9", "127.0.0.1"] {
        let packet = packet::udp(scene.a.socket(Family::V4, 4000), SocketAddr::new(address(target), 53), b"x");
        assert_eq!(wire.packet(&packet), dropped("ingress not-for-endpoint"), "{target}");
    }
    let packet = packet::udp(scene.a.socket(Family::V6, 4000), SocketAddr::new(address("fd00::99"), 53), b"x");
    assert_eq!(wire.packet(&packet), dropped("ingress not-for-endpoint"));
}

#[test]
fn routed_endpoints_cannot_speak_for_each_other_either() {
    let host = Host::new();
    let a = host.routed_endpoint("a", &["10.1.0.10", "fd01::10"]);
    let b = host.routed_endpoint("b", &["10.1.0.20", "fd01::20"]);
    let c = host.routed_endpoint("c", &["10.1.0.30", "fd01::30"]);
    host.load(&[&a, &b, &c], &[ingress("b", &[from("c", &[])])]);
    let (socket, router, own) = (a.raw(), host.mac("v-a"), a.mac());
    let send = |source: IpAddr, endpoint: &Endpoint| {
        let family = if source.is_ipv4() { Family::V4 } else { Family::V6 };
        let packet = packet::udp(SocketAddr::new(source, 4000), endpoint.socket(family, 53), b"x");
        host.counted(|| socket.send(&packet::frame(router, own, &packet))).1.drops()
    };
    for family in FAMILIES {
        assert_eq!(send(c.ip(family), &b), ["egress spoofed"]);
        assert_eq!(send(a.ip(family), &b), ["egress policy-ingress"]);
    }
    for source in ["169.254.1.1", "fe80::1", "10.1.0.99"] {
        assert_eq!(send(address(source), &b), ["egress spoofed"], "{source}");
    }
}
