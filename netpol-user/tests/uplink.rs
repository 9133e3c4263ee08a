//! What passes an uplink goes straight between it and the endpoint, where the host's routing alone would have a say, and
//! through the host's stack everywhere else.

mod support;

use std::{
    net::{IpAddr, UdpSocket},
    path::Path,
    time::Duration,
};

use support::{
    Attempt, Endpoint, FAMILIES, Family, Host, LAYOUTS, Layout, RawSocket, Scene, Seen,
    bulk::echo,
    check, exchange, packet,
    policy::{Counts, anybody, from, ingress},
    translated::{WAYS, host_address, host_port, pools, published, service, virtual_address},
    wait_until,
};

const OUT: &str = "egress passed out";
const IN: &str = "ingress passed routed";
const STACK: [&str; 2] = ["egress passed stack", "ingress passed stack"];

/// One connection out through masquerade, and one in through a published port; each of some packets both ways.
#[track_caller]
fn talk(scene: &Scene, family: Family) -> Counts {
    let Scene { host, a, b, outside, .. } = scene;
    let _servers = (outside.serve_tcp(9000), b.serve_tcp(8080), b.serve_udp(8080));
    let ((), counts) = host.counted(|| {
        check(&[
            (a, Attempt::Tcp(outside.at(family, 9000)), Seen::Answered),
            (a, Attempt::Ping(outside.ip(family)), Seen::Answered),
            (outside, Attempt::Tcp(host_port(family)), Seen::Answered),
            (outside, Attempt::Udp(host_port(family)), Seen::Answered),
        ]);
    });
    counts
}

/// Why what passes the uplinks takes the host's stack; `direct` if it doesn't.
#[track_caller]
fn outside_of(host: &Host, name: &str) -> String {
    let endpoints = host.netpol(&["endpoints", "-o", "json"]).json();
    let row = endpoints.as_array().unwrap().iter().find(|row| row["name"] == name).unwrap();
    row["outside"].as_str().unwrap().to_owned()
}

#[test]
fn what_passes_an_uplink_goes_past_the_hosts_stack() {
    for layout in LAYOUTS {
        let scene = Scene::new(layout);
        scene.load_translated(layout, &[]);
        assert_eq!(outside_of(&scene.host, "a"), "direct");
        for family in FAMILIES {
            let counts = talk(&scene, family);
            assert!(counts.of(OUT) >= 10 && counts.of(IN) >= 10, "{layout:?} {family:?} {counts:?}");
            assert_eq!(STACK.map(|name| counts.of(name)), [0, 0], "{layout:?} {family:?} {counts:?}");
        }
    }
}

#[test]
fn with_the_stack_forwarding_nothing_goes_past_it() {
    for layout in LAYOUTS {
        let scene = Scene::new(layout);
        scene.load_translated(layout, WAYS[1]);
        for family in FAMILIES {
            let counts = talk(&scene, family);
            assert_eq!([OUT, IN].map(|name| counts.of(name)), [0, 0], "{layout:?} {family:?} {counts:?}");
        }
    }
}

#[test]
fn who_has_a_say_between_an_endpoint_and_an_uplink_keeps_it() {
    let scene = Scene::bridged();
    let host = &scene.host;
    for name in ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"] {
        // else rules of routing are rules of the bridge, too
        if Path::new("/proc/sys").join(name).exists() {
            host.sysctl(name, "0");
        }
    }
    let change = |program: &str, arguments: &str| host.run(program, &arguments.split(' ').collect::<Vec<_>>());
    for (does, undoes, reason) in [
        (
            ("nft", "add table ip t; add chain ip t c { type filter hook forward priority 0; }"),
            ("nft", "delete table ip t"),
            "nftables chain ip/t/c sees routed packets",
        ),
        (
            (
                "nft",
                "add table netdev t; add chain netdev t c { type filter hook ingress device v-outside priority 0; }",
            ),
            ("nft", "delete table netdev t"),
            "nftables chain netdev/t/c is on v-outside",
        ),
        (
            ("ip", "link set v-a mtu 1400"),
            ("ip", "link set v-a mtu 1500"),
            "v-a takes packets of 1400 bytes, uplink v-outside of 1500",
        ),
        (
            ("ip", "xfrm policy add src 10.0.0.0/16 dst 192.0.2.0/24 dir out action allow"),
            ("ip", "xfrm policy flush"),
            "IPsec policies see what leaves by an uplink",
        ),
    ] {
        change(does.0, does.1);
        scene.load_translated(Layout::Bridged, &[]);
        assert_eq!(outside_of(host, "a"), reason);
        let stack = &host.status()["stack"];
        let told = format!("to and from the uplinks: {reason}");
        assert!(stack.as_array().unwrap().iter().any(|row| row["reason"] == told), "{stack}");
        let counts = talk(&scene, Family::V4);
        assert_eq!(counts.of(OUT), 0, "{reason}: {counts:?}");
        change(undoes.0, undoes.1);
    }
    scene.load_translated(Layout::Bridged, &[]);
    assert!(talk(&scene, Family::V4).of(OUT) > 0);
}

#[test]
fn what_the_host_would_route_elsewhere_takes_its_stack() {
    let scene = Scene::bridged();
    scene.load_translated(Layout::Bridged, &[]);
    let (host, outside) = (&scene.host, &scene.outside);
    for family in FAMILIES {
        // answers would go nowhere: what comes is no way to deliver them past that
        let width = if family == Family::V4 { 32 } else { 128 };
        let route = format!("{}/{width}", outside.ip(family));
        host.run("ip", &["route", "add", "blackhole", &route]);
        let _server = scene.b.serve_udp(8080);
        let ((), counts) = host.counted(|| check(&[(outside, Attempt::Udp(host_port(family)), Seen::Silent)]));
        assert_eq!([OUT, IN].map(|name| counts.of(name)), [0, 0], "{family:?} {counts:?}");
        host.run("ip", &["route", "del", "blackhole", &route]);
    }
}

#[test]
fn who_is_next_behind_an_uplink_is_known_by_its_entry_and_followed() {
    let scene = Scene::bridged();
    scene.load_translated(Layout::Bridged, &[]);
    let Scene { host, a, outside, .. } = &scene;
    let mac = outside.mac().map(|byte| format!("{byte:02x}")).join(":");
    for (family, far, routers) in [
        (Family::V4, "198.51.100.1", ["192.0.2.101", "192.0.2.102"]),
        (Family::V6, "2001:db8:51::1", ["2001:db8::101", "2001:db8::102"]),
    ] {
        let neighbour = |router: &str, mac: &str| {
            host.run("ip", &["neigh", "replace", router, "lladdr", mac, "nud", "permanent", "dev", "v-outside"]);
        };
        let route = |router: &str| {
            host.run("ip", &["route", "replace", far, "via", router, "dev", "v-outside"]);
        };
        let [right, wrong] = [mac.as_str(), "02:00:00:00:00:99"];
        neighbour(routers[0], right);
        neighbour(routers[1], wrong);
        outside.run("ip", &["address", "add", far, "dev", "eth0", "nodad"]);
        let far: IpAddr = far.parse().unwrap();
        let server = outside.enter(|| UdpSocket::bind((far, 9000))).unwrap();
        server.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let client = |port| a.enter(|| UdpSocket::bind(a.socket(family, port))).unwrap();
        let arrives = |client: &UdpSocket| {
            client.send_to(b"x", (far, 9000)).unwrap();
            server.recv(&mut [0; 8]).is_ok()
        };
        let stays = |client: &UdpSocket| {
            route(routers[0]);
            assert!((0..3).all(|_| arrives(client)), "{family:?}");
            route(routers[1]);
            let (arrived, counts) = host.counted(|| arrives(client));
            arrived && counts.of(OUT) == 1
        };
        // the host's route is asked for seldom; a machine that is that slow gets more chances
        let client = (5000..5005).map(client).find(stays).expect("a packet that no route was searched for");
        wait_until("another router is followed", || !arrives(&client));
        // the neighbour table is asked for each packet
        let (lost, counts) = host.counted(|| !arrives(&client));
        assert!(lost && counts.of(OUT) == 1, "{family:?} {counts:?}");
        neighbour(routers[1], right);
        let (arrived, counts) = host.counted(|| arrives(&client));
        assert!(arrived && counts.of(OUT) == 1, "{family:?} {counts:?}");
    }
}

#[test]
fn a_denied_client_outside_is_stopped_at_the_uplink_and_told_of_with_its_rule() {
    for layout in LAYOUTS {
        let scene = Scene::new(layout);
        let Scene { host, b, outside, .. } = &scene;
        let _servers = (b.serve_tcp(8080), b.serve_udp(8080));
        for way in WAYS {
            scene.load_nat(
                way,
                &[service("b"), published("b"), pools(layout), ingress("b", &[from("a", &["8080/TCP"])])],
            );
            for family in FAMILIES {
                let to = host_port(family);
                let ((), counts) = host.counted(|| {
                    check(&[
                        (outside, Attempt::Tcp(to.clone()), Seen::Silent),
                        (outside, Attempt::Udp(to), Seen::Silent),
                    ]);
                });
                assert_eq!(counts.drops(), ["ingress policy-ingress"], "{layout:?} {way:?} {family:?}");
                let flow = host.flow(&outside.ip(family).to_string(), "b", 8000);
                assert_eq!((&flow["verdict"], &flow["direction"]), (&"denied".into(), &"ingress".into()), "{flow:#}");
                assert_eq!(flow["interface"], "v-outside");
                let words = flow["explanation"].as_str().unwrap();
                assert!(words.contains("isolated by NetworkPolicy default/b"), "{words}");
            }
        }
    }
}

/// Somebody outside who writes frames as it likes.
struct Forger<'a> {
    scene: &'a Scene,
    socket: RawSocket,
}

impl<'a> Forger<'a> {
    fn new(scene: &'a Scene) -> Self {
        Self { scene, socket: scene.outside.raw() }
    }

    /// Sends a datagram to the published port; what the host counted, some harmless ones after it included.
    fn send(&self, mac: packet::Mac, source: &str) -> Counts {
        let Scene { host, outside, .. } = self.scene;
        let datagram = packet::udp(source.parse().unwrap(), host_port(Family::V4).parse().unwrap(), b"x");
        let ((), counts) = host.counted(|| {
            self.socket.send(&packet::frame(mac, outside.mac(), &datagram));
            check(&[(outside, Attempt::Ping(host_address(Family::V4)), Seen::Answered)]);
        });
        counts
    }
}

#[test]
fn a_frame_for_a_neighbour_of_the_host_is_left_alone() {
    let scene = Scene::bridged();
    let _server = scene.b.serve_udp(8080);
    scene.load_translated(Layout::Bridged, &[]);
    let (host, forger) = (&scene.host, Forger::new(&scene));
    let source = scene.outside.socket(Family::V4, 4000).to_string();
    let counts = forger.send(host.mac("v-outside"), &source);
    assert_eq!(counts.of(IN), 1, "{counts:?}");
    // a switch floods it, the host is not meant
    let counts = forger.send([2, 9, 9, 9, 9, 9], &source);
    assert_eq!((counts.of(IN), counts.drops()), (0, vec![]), "{counts:?}");
}

#[test]
fn who_claims_outside_to_be_an_endpoint_or_the_host_is_dropped() {
    let scene = Scene::bridged();
    scene.load_translated(Layout::Bridged, &[]);
    let forger = Forger::new(&scene);
    let own = scene.host.mac("v-outside");
    for source in [scene.a.at(Family::V4, 4000), format!("{}:4000", host_address(Family::V4))] {
        let counts = forger.send(own, &source);
        assert_eq!(counts.drops(), ["ingress spoofed"], "{source} {counts:?}");
    }
}

/// A connection goes on when what is on its way changes, in either direction.
#[test]
fn a_connection_survives_the_change_between_both_ways() {
    let scene = Scene::bridged();
    let Scene { a, b, outside, .. } = &scene;
    let _servers = (outside.serve_tcp(9000), b.serve_tcp(8080));
    scene.load_translated(Layout::Bridged, &[]);
    let mut streams = [a.connect(&outside.at(Family::V4, 9000)), outside.connect(&host_port(Family::V4))];
    for way in [WAYS[1], WAYS[0], WAYS[1], WAYS[0]] {
        for stream in &mut streams {
            assert_eq!(exchange(stream), Seen::Answered, "{way:?}");
        }
        scene.load_translated(Layout::Bridged, way);
        for stream in &mut streams {
            assert_eq!(exchange(stream), Seen::Answered, "{way:?}");
        }
    }
}

#[test]
fn a_revoked_connection_from_outside_stops() {
    let scene = Scene::bridged();
    let Scene { b, outside, .. } = &scene;
    let _server = b.serve_tcp(8080);
    let more = [published("b"), pools(Layout::Bridged)];
    scene.load_nat(&[], &more);
    let mut stream = outside.connect(&host_port(Family::V4));
    assert_eq!(exchange(&mut stream), Seen::Answered);
    scene.load_nat(&[], &[&more[..], &[ingress("b", &[])]].concat());
    assert_ne!(exchange(&mut stream), Seen::Answered);
    scene.load_nat(&[], &[&more[..], &[ingress("b", &[anybody(&["8080/TCP"])])]].concat());
    check(&[(outside, Attempt::Tcp(host_port(Family::V4)), Seen::Answered)]);
}

/// Audited policies are counted at the endpoint's own interface, so its packets pass there.
#[test]
fn an_audited_endpoint_takes_the_stack_and_its_verdicts_are_counted() {
    let scene = Scene::bridged();
    let Scene { host, b, outside, .. } = &scene;
    let _server = b.serve_udp(8080);
    let audited = ingress("b", &[]).replace("name: ", "annotations: {netpol.dev/audit: \"true\"}, name: ");
    scene.load_nat(&[], &[published("b"), pools(Layout::Bridged), audited]);
    let ((), counts) = host.counted(|| check(&[(outside, Attempt::Udp(host_port(Family::V4)), Seen::Answered)]));
    assert_eq!(counts.of(IN), 0, "{counts:?}");
    assert!(outside_of(host, "b").starts_with("an audited policy is about it"));
    assert_eq!(outside_of(host, "a"), "direct");
    let would = &host.status()["would_drop"];
    assert_eq!(would[0]["reason"], "policy-ingress", "{would}");
}

/// A larger frame than the uplink takes is not sent past the host, which says so.
#[test]
fn what_is_too_large_for_the_uplink_is_told_to_its_sender() {
    let scene = Scene::bridged();
    let Scene { host, a, outside, .. } = &scene;
    let larger = |endpoint: &Endpoint| endpoint.run("ip", &["link", "set", "eth0", "mtu", "9000"]);
    larger(a);
    for port in ["v-a", "v-b", "v-c", "br0"] {
        host.run("ip", &["link", "set", port, "mtu", "9000"]);
    }
    scene.load_translated(Layout::Bridged, &[]);
    assert_eq!(outside_of(host, "a"), "direct");
    let _server = outside.serve_udp(9000);
    for family in FAMILIES {
        let to = outside.at(family, 9000);
        let any = if family == Family::V4 { "0.0.0.0:0" } else { "[::]:0" };
        let ((), counts) = host.counted(|| {
            let socket = a.enter(|| UdpSocket::bind(any)).expect("a socket");
            socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
            socket.connect(&to).expect("an address");
            socket.send(&[7; 5000]).expect("a datagram");
            let told = socket.recv(&mut [0]).expect_err("not sent on").raw_os_error();
            assert_eq!(told, Some(libc::EMSGSIZE), "{family:?}");
        });
        assert_eq!((counts.of(OUT), counts.of(STACK[0])), (0, 1), "{family:?} {counts:?}");
        // now it is sent in fragments that fit
        let ((), counts) = host.counted(|| echo(a, &to, 5000));
        assert!(counts.of(OUT) >= 4, "{family:?} {counts:?}");
    }
}

/// A route may take less than its interface does; the host tells the sender, and not only of the first packet.
#[test]
fn what_is_too_large_for_a_route_is_told_to_its_sender() {
    let scene = Scene::bridged();
    let Scene { host, a, outside, .. } = &scene;
    let _server = outside.serve_udp(9000);
    scene.load_translated(Layout::Bridged, &[]);
    for family in FAMILIES {
        let width = if family == Family::V4 { 32 } else { 128 };
        let narrow = format!("{}/{width} dev v-outside mtu lock 1300", outside.ip(family));
        host.run("ip", &[&["route", "add"][..], &narrow.split(' ').collect::<Vec<_>>()].concat());
        let any = if family == Family::V4 { "0.0.0.0:0" } else { "[::]:0" };
        let socket = a.enter(|| UdpSocket::bind(any)).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
        socket.connect(outside.at(family, 9000)).expect("an address");
        socket.send(&[7; 100]).expect("a datagram");
        assert_eq!(socket.recv(&mut [0; 200]).expect("the echo"), 100, "{family:?}");
        socket.send(&[7; 1400]).expect("a datagram");
        let told = socket.recv(&mut [0]).expect_err("not sent on").raw_os_error();
        assert_eq!(told, Some(libc::EMSGSIZE), "{family:?}");
        echo(a, &outside.at(family, 9000), 1400);
    }
}

/// The endpoint asked a service; only its own hook knows as whom the backend must answer.
#[test]
fn a_backend_outside_answers_as_the_service_that_was_asked() {
    for layout in LAYOUTS {
        let scene = Scene::new(layout);
        let Scene { a, outside, .. } = &scene;
        let _servers = (outside.serve_tcp(9000), outside.serve_udp(9000));
        for way in WAYS {
            scene.load_nat(way, &[elsewhere(outside), pools(layout)]);
            for family in FAMILIES {
                let to = virtual_address(family);
                check(&[
                    (a, Attempt::Tcp(to.clone()), Seen::Answered),
                    (a, Attempt::Udp(to), Seen::Answered),
                    (a, Attempt::Tcp(outside.at(family, 9000)), Seen::Answered),
                ]);
            }
        }
    }
}

#[test]
fn with_a_local_policy_clients_outside_meet_only_who_is_here() {
    const MANY: usize = 12;
    let scene = Scene::bridged();
    let Scene { a, b, outside, .. } = &scene;
    let _servers = (b.serve_tcp(8080), b.serve_udp(8080), outside.serve_tcp(9000), outside.serve_udp(9000));
    let mixed = |policy: &str| {
        let spec = format!("spec:\n  type: NodePort\n  externalTrafficPolicy: {policy}\n  selector");
        let here = service("b").replace("spec:\n  selector", &spec).replace("port: 80,", "port: 80, nodePort: 8000,");
        here + &slices("b", outside)
    };
    for way in WAYS {
        scene.load_nat(way, &[mixed("Local"), pools(Layout::Bridged)]);
        for family in FAMILIES {
            // an endpoint asks by the service's own address: both backends, of which each serves
            for (client, to) in [(outside, host_port(family)), (a, virtual_address(family))] {
                check(&vec![(client, Attempt::Tcp(to.clone()), Seen::Answered); MANY]);
                check(&vec![(client, Attempt::Udp(to), Seen::Answered); MANY]);
            }
        }
        // whom nothing else brings to a backend outside
        scene.load_nat(way, &[mixed("Cluster"), pools(Layout::Bridged)]);
        for family in FAMILIES {
            let is_answered = |_| outside.tcp(&host_port(family)) == Seen::Answered;
            assert!(!(0..4 * MANY).all(is_answered), "{way:?} {family:?}");
        }
    }
}

/// A service at the virtual addresses, port 80, whose only backend is port 9000 of somebody without a document.
fn elsewhere(backend: &Endpoint) -> String {
    service("out").replace("  selector: {app: out}\n", "") + &slices("out", backend)
}

/// Port 9000 of somebody, behind a service's ports.
fn slices(service: &str, backend: &Endpoint) -> String {
    let slice = |family: Family| {
        let (number, kind) = if family == Family::V4 { (4, "IPv4") } else { (6, "IPv6") };
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {service}-{number}, \
             labels: {{kubernetes.io/service-name: {service}}}}}\naddressType: {kind}\n\
             endpoints: [{{addresses: ['{}']}}]\n\
             ports: [{{name: t, port: 9000, protocol: TCP}}, {{name: u, port: 9000, protocol: UDP}}]\n",
            backend.ip(family)
        )
    };
    FAMILIES.into_iter().map(slice).collect()
}
