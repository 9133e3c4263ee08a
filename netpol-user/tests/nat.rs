//! Services and masquerading, by real connections: who answers, and whom the other end takes the client for.

mod support;

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use aya::maps::{HashMap, Map, MapData};
use netpol_common::{
    flow::{Ticks, seconds},
    nat::{NatKey, Translation},
    wire::Addr4,
};
use support::{
    Attempt, FAMILIES, Family, LAYOUTS, Layout, Scene, Seen, check, client_of, exchange, packet,
    policy::{documents, from, ingress},
    translated::{self, WAYS, host_address, host_port, pools, published, service, socket, socket_at, virtual_address},
};

const SYN: u8 = 2;

#[test]
fn a_service_reaches_its_backend_by_its_own_address() {
    for layout in LAYOUTS {
        let scene = Scene::new(layout);
        let Scene { a, b, .. } = &scene;
        let _servers = (b.serve_tcp(8080), b.serve_udp(8080));
        for way in WAYS {
            scene.load_nat(way, &[service("b")]);
            for family in FAMILIES {
                let to = virtual_address(family);
                check(&[(a, Attempt::Tcp(to.clone()), Seen::Answered), (a, Attempt::Udp(to), Seen::Answered)]);
                check(&[(a, Attempt::Tcp(b.at(family, 8080)), Seen::Answered)]);
            }
        }
    }
}

#[test]
fn a_backend_sees_its_clients_own_address() {
    for layout in LAYOUTS {
        let scene = Scene::new(layout);
        let Scene { a, b, outside, .. } = &scene;
        for way in WAYS {
            scene.load_nat(way, &[service("b"), published("b"), pools(layout)]);
            for family in FAMILIES {
                assert_eq!(client_of(b, 8080, a, &virtual_address(family)), a.ip(family), "{layout:?} {way:?}");
                let host = host_port(family);
                assert_eq!(client_of(b, 8080, a, &host), a.ip(family), "{layout:?} {way:?}");
                assert_eq!(client_of(b, 8080, outside, &host), outside.ip(family), "{layout:?} {way:?}");
            }
        }
    }
}

#[test]
fn a_backend_that_is_denied_is_denied_by_every_route() {
    for layout in LAYOUTS {
        let scene = Scene::new(layout);
        let Scene { a, b, c, outside, .. } = &scene;
        let _servers = (b.serve_tcp(8080), b.serve_udp(8080));
        for way in WAYS {
            let policy = ingress("b", &[from("c", &["8080/TCP", "8080/UDP"])]);
            scene.load_nat(way, &[service("b"), published("b"), policy]);
            for family in FAMILIES {
                let (to, host) = (virtual_address(family), host_port(family));
                check(&[
                    (c, Attempt::Tcp(to.clone()), Seen::Answered),
                    (c, Attempt::Udp(to.clone()), Seen::Answered),
                    (c, Attempt::Tcp(host.clone()), Seen::Answered),
                    (a, Attempt::Tcp(to.clone()), Seen::Silent),
                    (a, Attempt::Udp(to), Seen::Silent),
                    (a, Attempt::Tcp(host.clone()), Seen::Silent),
                    (outside, Attempt::Tcp(host.clone()), Seen::Silent),
                    (outside, Attempt::Udp(host), Seen::Silent),
                ]);
            }
        }
    }
}

#[test]
fn an_endpoint_reaches_itself_through_its_service() {
    for layout in LAYOUTS {
        let scene = Scene::new(layout);
        let b = &scene.b;
        let _servers = (b.serve_tcp(8080), b.serve_udp(8080));
        for way in WAYS {
            scene.load_nat(way, &[service("b"), published("b"), ingress("b", &[])]);
            for family in FAMILIES {
                let host = host_port(family);
                check(&[
                    (b, Attempt::Tcp(virtual_address(family)), Seen::Answered),
                    (b, Attempt::Udp(virtual_address(family)), Seen::Answered),
                    (b, Attempt::Tcp(host.clone()), Seen::Answered),
                    (b, Attempt::Udp(host), Seen::Answered),
                ]);
            }
        }
    }
}

#[test]
fn what_leaves_a_pool_has_the_uplinks_address() {
    for layout in LAYOUTS {
        let scene = Scene::new(layout);
        let Scene { a, b, outside, .. } = &scene;
        let _server = outside.serve_udp(9000);
        for way in WAYS {
            scene.load_nat(way, &[pools(layout)]);
            for family in FAMILIES {
                let elsewhere = outside.at(family, 7000);
                assert_eq!(client_of(outside, 7000, a, &elsewhere), host_address(family), "{layout:?} {way:?}");
                assert_eq!(client_of(b, 7000, a, &b.at(family, 7000)), a.ip(family), "{layout:?} {way:?}");
                check(&[
                    (a, Attempt::Udp(outside.at(family, 9000)), Seen::Answered),
                    (a, Attempt::Ping(outside.ip(family)), Seen::Answered),
                ]);
            }
        }
    }
}

#[test]
fn who_comes_from_outside_to_a_pools_address_is_answered_from_it() {
    for layout in LAYOUTS {
        let scene = Scene::new(layout);
        let Scene { a, outside, .. } = &scene;
        let _server = a.serve_udp(9000);
        for way in WAYS {
            scene.load_nat(way, &[pools(layout)]);
            for family in FAMILIES {
                assert_eq!(client_of(a, 7000, outside, &a.at(family, 7000)), outside.ip(family), "{layout:?} {way:?}");
                check(&[
                    (outside, Attempt::Udp(a.at(family, 9000)), Seen::Answered),
                    (outside, Attempt::Ping(a.ip(family)), Seen::Answered),
                ]);
            }
        }
    }
}

#[test]
fn two_clients_with_one_port_get_two_translations() {
    let scene = Scene::bridged();
    let Scene { a, b, outside, .. } = &scene;
    scene.load_nat(&[], &[pools(Layout::Bridged)]);
    let server = socket(outside, 9000);
    let clients = [a, b].map(|client| socket(client, 5000));
    let mut sources = Vec::new();
    for (number, client) in clients.iter().enumerate() {
        client.send_to(&[number as u8], outside.at(Family::V4, 9000)).expect("a packet");
        let (_, from) = server.recv_from(&mut [0]).expect("the packet");
        sources.push(from);
    }
    assert_eq!(sources[0].port(), 5000, "a free port is kept");
    assert_ne!(sources[0], sources[1]);
    for (number, client) in clients.iter().enumerate() {
        server.send_to(&[number as u8 + 10], sources[number]).expect("an answer");
        let mut byte = [0];
        client.recv(&mut byte).expect("the answer");
        assert_eq!(usize::from(byte[0]), number + 10);
    }
}

/// What `outside` takes port 5000 of `a` for.
fn taken_for(scene: &Scene) -> SocketAddr {
    let (server, client) = (socket(&scene.outside, 9000), socket(&scene.a, 5000));
    translated::taken_for(&server, &client, &scene.outside.at(Family::V4, 9000))
}

#[test]
fn a_port_of_the_hosts_own_sockets_is_no_translations() {
    let scene = Scene::bridged();
    scene.load_nat(&[], &[pools(Layout::Bridged)]);
    let own = scene.host.itself().enter(|| UdpSocket::bind("192.0.2.1:5000")).expect("a socket");
    let from = taken_for(&scene);
    assert_eq!(from.ip(), host_address(Family::V4));
    assert_ne!(from.port(), 5000, "the host would get the answers");
    // it is free again, for another connection
    drop(own);
    scene.host.netpol(&["unload"]).ok();
    scene.load_nat(&[], &[pools(Layout::Bridged)]);
    assert_eq!(taken_for(&scene).port(), 5000);
}

#[test]
fn the_kernel_ends_what_is_silent_for_too_long_and_nothing_else() {
    let scene = Scene::bridged();
    scene.load_nat(&[], &[pools(Layout::Bridged)]);
    let path = scene.host.bpffs().join("maps/NAT4");
    let map = MapData::from_pin(path).expect("the pinned map");
    let map = Map::from_map_data(map).expect("a hash");
    let mut nat = HashMap::<MapData, NatKey<Addr4>, Translation<Addr4>>::try_from(map).expect("translations");
    let keys = |nat: &HashMap<MapData, NatKey<Addr4>, Translation<Addr4>>| {
        nat.keys().collect::<Result<Vec<_>, _>>().expect("their keys")
    };
    taken_for(&scene);
    let silent = keys(&nat);
    assert_eq!(silent.len(), 2, "one for each direction");
    let _server = scene.outside.serve_udp(9001);
    let kept = Attempt::Udp(scene.outside.at(Family::V4, 9001));
    check(&[(&scene.b, kept, Seen::Answered)]);
    assert!(keys(&nat).len() > 2);
    // an answered UDP connection is kept for five minutes, its answers' half a little longer
    for key in &silent {
        let mut half = nat.get(key, 0).expect("half a pair");
        half.seen = Ticks(half.seen.0.wrapping_sub(seconds(360)));
        nat.insert(key, half, 0).expect("the same, older");
    }
    let begin = Instant::now();
    while keys(&nat).iter().any(|key| silent.contains(key)) {
        assert!(begin.elapsed() < Duration::from_secs(30), "the timer looks every 15 seconds");
        thread::sleep(Duration::from_millis(100));
    }
    assert!(!keys(&nat).is_empty(), "the other connection's are there");
}

#[test]
fn what_leaves_by_another_uplink_has_the_address_of_that_one() {
    let scene = Scene::bridged();
    let Scene { host, a, outside, .. } = &scene;
    let elsewhere = host.attach("elsewhere", &["198.51.100.9/24", "2001:db8:9::9/64"]);
    let own = ["198.51.100.1", "2001:db8:9::1"];
    host.net(async |net| {
        for (address, width) in own.into_iter().zip(["24", "64"]) {
            net.address("v-elsewhere", format!("{address}/{width}").parse().expect("an address")).await;
        }
        net.settle("v-elsewhere").await;
    });
    elsewhere.net(async |net| {
        for address in ["198.51.100.9/24", "2001:db8:9::9/64"] {
            net.address("eth0", address.parse().expect("an address")).await;
        }
        net.settle("eth0").await;
    });
    elsewhere.gateways(&own);
    for way in WAYS {
        let flags = [&["--uplink", "v-elsewhere"], way].concat();
        scene.load_nat(&flags, &[pools(Layout::Bridged), published("b")]);
        let _server = scene.b.serve_tcp(8080);
        for (family, own) in FAMILIES.into_iter().zip(own) {
            assert_eq!(client_of(outside, 7000, a, &outside.at(family, 7000)), host_address(family), "{way:?}");
            let address = client_of(&elsewhere, 7000, a, &elsewhere.at(family, 7000));
            assert_eq!(address.to_string(), own, "{way:?}");
            // and what is published is so at each
            let host = SocketAddr::new(own.parse().expect("an address"), 8000).to_string();
            check(&[(&elsewhere, Attempt::Tcp(host), Seen::Answered)]);
        }
    }
}

#[test]
fn an_external_address_is_published_for_everybody() {
    for layout in LAYOUTS {
        let scene = Scene::new(layout);
        let Scene { host, a, b, outside, .. } = &scene;
        let _servers = (b.serve_tcp(8080), b.serve_udp(8080));
        let external = service("b").replace(
            "  ports:",
            "  externalIPs: ['192.0.2.1', '203.0.113.7', '2001:db8::1', '2001:db8:7::7']\n  ports:",
        );
        // of the host's, and one that is routed to it
        for (network, gateway) in [("203.0.113.7/32", "192.0.2.1"), ("2001:db8:7::7/128", "2001:db8::1")] {
            outside.run("ip", &["route", "add", network, "via", gateway, "dev", "eth0"]);
        }
        for way in WAYS {
            let path = host.documents("nat.yaml", &documents(&scene.all(), std::slice::from_ref(&external)));
            host.netpol(&[&["load", "--uplink", "v-outside"], way, &[&path]].concat()).ok();
            for to in ["192.0.2.1:80", "203.0.113.7:80", "[2001:db8::1]:80", "[2001:db8:7::7]:80"] {
                for client in [a, outside, &host.itself()] {
                    check(&[
                        (client, Attempt::Tcp(to.to_owned()), Seen::Answered),
                        (client, Attempt::Udp(to.to_owned()), Seen::Answered),
                    ]);
                }
            }
        }
    }
}

#[test]
fn flows_tell_what_a_packet_becomes() {
    let scene = Scene::bridged();
    let Scene { host, a, b, outside, .. } = &scene;
    let _servers = (b.serve_tcp(8080), outside.serve_udp(9000));
    scene.load_nat(&[], &[service("b"), pools(Layout::Bridged)]);
    check(&[
        (a, Attempt::Tcp(virtual_address(Family::V4)), Seen::Answered),
        (a, Attempt::Udp(outside.at(Family::V4, 9000)), Seen::Answered),
    ]);
    let flows = host.flows();
    let of = |address: &str| {
        let is = |flow: &&serde_json::Value| flow["destination"]["address"] == address && flow["is_reply"] == false;
        flows.iter().find(is).unwrap_or_else(|| panic!("{flows:#?}"))
    };
    let to_service = of("10.96.0.10");
    assert_eq!((&to_service["service"], &to_service["destination"]["port"]), (&"default/b:80".into(), &80.into()));
    let becomes = &to_service["translated"]["destination"];
    assert_eq!(becomes, &format!("{}:8080", b.ipv4()), "{to_service:#}");
    let masqueraded = of(&outside.ipv4().to_string());
    let leaves = masqueraded["translated"]["source"].as_str().expect("another source");
    assert!(leaves.starts_with("192.0.2.1:"), "{masqueraded:#}");
    let text = host.netpol(&["flows", "--all"]).ok();
    assert!(text.contains("default/b:80 => 10.0.0.10:") && text.contains("> 10.0.0.20:8080"), "{text}");
}

#[test]
fn an_established_connection_survives_a_publication_and_no_change_of_backends() {
    let scene = Scene::bridged();
    let Scene { a, b, c, .. } = &scene;
    let _servers = (b.serve_tcp(8080), c.serve_tcp(8080));
    scene.load_nat(&[], &[service("b")]);
    let mut stream = a.connect(&virtual_address(Family::V4));
    assert_eq!(exchange(&mut stream), Seen::Answered);
    scene.load_nat(&[], &[service("b"), ingress("b", &[from("a", &["8080/TCP"])])]);
    assert_eq!(exchange(&mut stream), Seen::Answered);
    let other = service("b").replace("selector: {app: b}", "selector: {app: c}");
    scene.load_nat(&[], &[other]);
    assert_ne!(exchange(&mut stream), Seen::Answered, "its backend is none of the service's any more");
    check(&[(a, Attempt::Tcp(virtual_address(Family::V4)), Seen::Answered)]);
}

/// As whom `b` arrives at a client outside, which opens from its service's port.
fn arrives_as(scene: &Scene, layout: Layout, client: SocketAddr) -> Option<IpAddr> {
    let Scene { host, b, outside, .. } = scene;
    let router = host.mac(if layout == Layout::Bridged { "br0" } else { "v-b" });
    let family = if client.is_ipv4() { Family::V4 } else { Family::V6 };
    let (sender, listener) = (b.raw(), outside.raw());
    sender.send(&packet::frame(router, b.mac(), &packet::tcp(b.socket(family, 8080), client, SYN, &[])));
    let (ethertype, source, transport) = match family {
        Family::V4 => ([8, 0], 26..30, 34),
        Family::V6 => ([0x86, 0xdd], 22..38, 54),
    };
    let to = client.port().to_be_bytes();
    let is_it = |frame: &[u8]| {
        let is_to = frame.get(transport + 2..transport + 4) == Some(&to);
        frame.get(12..14) == Some(&ethertype) && is_to && frame.get(transport + 13) == Some(&SYN)
    };
    listener.receive(is_it).map(|frame| match family {
        Family::V4 => IpAddr::from(<[u8; 4]>::try_from(&frame[source]).expect("an address")),
        Family::V6 => IpAddr::from(<[u8; 16]>::try_from(&frame[source]).expect("an address")),
    })
}

#[test]
fn what_a_backend_opens_is_no_part_of_a_clients_connection() {
    for layout in LAYOUTS {
        let scene = Scene::new(layout);
        let Scene { host, b, outside, .. } = &scene;
        let _server = b.serve_tcp(8080);
        for way in WAYS {
            scene.load_nat(way, &[published("b")]);
            for family in FAMILIES {
                let what = format!("{layout:?} {way:?} {family:?}");
                let mut stream = outside.connect(&host_port(family));
                assert_eq!(exchange(&mut stream), Seen::Answered, "{what}");
                let client = stream.local_addr().expect("its own address");
                let (seen, counts) = host.counted(|| arrives_as(&scene, layout, client));
                assert_eq!((seen, counts.drops()), (None, vec!["egress translation".to_owned()]), "{what}");
                assert_eq!(exchange(&mut stream), Seen::Answered, "{what}");
                let elsewhere = SocketAddr::new(client.ip(), client.port() ^ 1);
                assert_eq!(arrives_as(&scene, layout, elsewhere), Some(b.ip(family)), "{what}");
            }
        }
    }
}

#[test]
fn a_client_that_its_backend_has_asked_first_gets_another_port() {
    for layout in LAYOUTS {
        let scene = Scene::new(layout);
        let Scene { b, outside, .. } = &scene;
        for (way, port) in WAYS.into_iter().zip([5000, 5001]) {
            scene.load_nat(way, &[published("b")]);
            for family in FAMILIES {
                let ends = [(b, 8080), (outside, port)].map(|(end, port)| end.socket(family, port));
                let [backend, client] = [(b, ends[0]), (outside, ends[1])].map(|(end, at)| socket_at(end, at));
                let published: SocketAddr = host_port(family).parse().expect("an address");
                let sends = |from: &UdpSocket, at: SocketAddr, to: &UdpSocket| {
                    from.send_to(b"x", at).expect("a packet");
                    to.recv_from(&mut [0]).expect("the packet").1
                };
                assert_eq!(sends(&backend, ends[1], &client), ends[0], "{layout:?} {way:?}");
                let other = sends(&client, published, &backend);
                assert!(other.ip() == ends[1].ip() && other.port() != port, "{layout:?} {way:?}: {other}");
                for _ in 0..2 {
                    assert_eq!(sends(&backend, other, &client), published, "{layout:?} {way:?}");
                    assert_eq!(sends(&client, ends[0], &backend), ends[1], "{layout:?} {way:?}");
                    assert_eq!(sends(&client, published, &backend), other, "{layout:?} {way:?}");
                    assert_eq!(sends(&backend, ends[1], &client), ends[0], "{layout:?} {way:?}");
                }
            }
        }
    }
}

#[test]
fn an_error_about_a_translated_packet_reaches_its_sender() {
    for layout in LAYOUTS {
        let scene = Scene::new(layout);
        let Scene { a, b, outside, .. } = &scene;
        for way in WAYS {
            scene.load_nat(way, &[service("b"), published("b"), pools(layout)]);
            for family in FAMILIES {
                let host = host_port(family);
                check(&[
                    (a, Attempt::Udp(virtual_address(family)), Seen::Refused),
                    (a, Attempt::Udp(host.clone()), Seen::Refused),
                    (b, Attempt::Udp(virtual_address(family)), Seen::Refused),
                    (a, Attempt::Udp(outside.at(family, 9)), Seen::Refused),
                    (outside, Attempt::Udp(host), Seen::Refused),
                ]);
            }
        }
    }
}
