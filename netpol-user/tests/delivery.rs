//! Direct delivery replaces only what the kernel would have done anyway, and what is delivered, in
//! either way, arrives as it was sent.

mod support;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    path::Path,
    thread,
    time::Duration,
};

use support::{
    Attempt::{Ping, Tcp, Udp},
    Endpoint, FAMILIES, Family, Fate, Host, Layout, Scene,
    Seen::{Answered, Silent},
    Wire, check,
    packet::{self, BROADCAST},
    policy::{anybody, egress, from, ingress},
    wire::dropped,
};

/// Why an endpoint's packets take the host's stack; `direct` if they don't.
#[track_caller]
fn delivery(host: &Host, name: &str) -> String {
    let endpoints = host.netpol(&["endpoints", "-o", "json"]).json();
    let row = endpoints.as_array().unwrap().iter().find(|row| row["name"] == name).unwrap();
    row["delivery"].as_str().unwrap().to_owned()
}

fn isolate_port(host: &Host, port: &str) {
    host.run("ip", &["link", "set", "dev", port, "type", "bridge_slave", "isolated", "on"]);
}

#[test]
fn isolated_ports_do_not_talk_through_direct_delivery() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    let _servers = (b.serve_tcp(80), c.serve_tcp(80));
    isolate_port(host, "v-a");
    isolate_port(host, "v-b");
    for flags in [&[][..], &["--forwarding", "stack"]] {
        host.load_with(flags, &[a, b, c], &[]);
        // the neighbour's address is known, or nothing would be sent
        for (endpoint, other) in [(a, b), (b, a)] {
            let mac = other.mac().map(|byte| format!("{byte:02x}")).join(":");
            let address = other.ipv4().to_string();
            endpoint.run("ip", &["neigh", "replace", &address, "lladdr", &mac, "dev", "eth0"]);
        }
        let ((), counts) = host.counted(|| {
            check(&[(a, Tcp(b.at(Family::V4, 80)), Silent), (a, Ping(b.ipv4()), Silent)]);
        });
        assert_eq!(counts.of("egress passed direct"), 0, "{counts:?}");
        // an isolated port and one that is not
        check(&[(a, Tcp(c.at(Family::V4, 80)), Answered)]);
    }
}

/// Docker's icc=false: what a bridge passes on goes through iptables, which drops it.
#[test]
fn rules_that_see_bridged_packets_go_on_blocking_and_status_says_so() {
    if !Path::new("/proc/sys/net/bridge").exists() {
        // loads the module where it can be; without it there is nothing to go past
        let loaded = std::process::Command::new("modprobe").arg("br_netfilter").output();
        assert!(Path::new("/proc/sys/net/bridge").exists(), "this test needs br_netfilter: {loaded:?}");
    }
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    let _server = b.serve_tcp(80);
    host.sysctl("net/bridge/bridge-nf-call-iptables", "1");
    host.sysctl("net/bridge/bridge-nf-call-ip6tables", "0");
    host.run("iptables", &["-I", "FORWARD", "-i", "br0", "-o", "br0", "-j", "DROP"]);
    host.load(&[a, b, c], &[]);
    let ((), counts) = host.counted(|| {
        check(&[(a, Tcp(b.at(Family::V4, 80)), Silent), (c, Ping(b.ipv4()), Silent)]);
    });
    assert_eq!((counts.of("egress passed direct"), counts.drops()), (0, vec![]), "{counts:?}");
    let reason = delivery(host, "a");
    assert!(reason.contains("bridge-nf-call-iptables=1"), "{reason}");
    assert!(host.status()["stack"][0]["reason"].as_str().unwrap().contains("bridge-nf-call-iptables=1"));
    // the rule does not see bridged packets any more, so they may go directly
    host.sysctl("net/bridge/bridge-nf-call-iptables", "0");
    host.load(&[a, b, c], &[]);
    assert_eq!(delivery(host, "a"), "direct");
    let ((), counts) = host.counted(|| check(&[(a, Tcp(b.at(Family::V4, 80)), Answered)]));
    assert!(counts.of("egress passed direct") > 4, "{counts:?}");
}

#[test]
fn bridge_that_is_down_carries_nothing() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    let _server = b.serve_tcp(80);
    host.load(&[a, b, c], &[]);
    check(&[(a, Tcp(b.at(Family::V4, 80)), Answered)]);
    host.net(async |net| net.down("br0").await);
    host.load(&[a, b, c], &[]);
    let reason = delivery(host, "a");
    assert!(
        reason == "bridge br0 is down" || reason == "port v-a of bridge br0 is disabled, not forwarding",
        "{reason}"
    );
    check(&[(a, Tcp(b.at(Family::V4, 80)), Silent)]);
}

#[test]
fn port_that_moved_to_another_bridge_leaves_its_neighbours() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    let _servers = (b.serve_tcp(80), c.serve_tcp(80));
    host.load(&[a, b, c], &[]);
    check(&[(a, Tcp(b.at(Family::V4, 80)), Answered)]);
    host.bridge("br1", &[]);
    host.net(async |net| {
        net.enslave("v-b", "br1").await;
        net.forwards("v-b").await;
    });
    assert_eq!(host.load(&[a, b, c], &[])["changed"], true);
    check(&[(a, Tcp(b.at(Family::V4, 80)), Silent), (a, Tcp(c.at(Family::V4, 80)), Answered)]);
    // and back
    host.net(async |net| {
        net.enslave("v-b", "br0").await;
        net.forwards("v-b").await;
    });
    host.load(&[a, b, c], &[]);
    a.run("ip", &["neigh", "flush", "dev", "eth0"]);
    check(&[(a, Tcp(b.at(Family::V4, 80)), Answered)]);
}

#[test]
fn frame_for_another_mac_address_is_not_delivered_directly() {
    let scene = &Scene::bridged();
    scene.host.load(&scene.all(), &[]);
    let wire = Wire::of(scene);
    let packet = packet::udp(scene.a.socket(Family::V4, 4000), scene.b.socket(Family::V4, 53), b"x");
    assert_eq!(wire.packet(&packet), Fate::Arrived);
    // the bridge takes it to c, whose address it is not
    let ((), counts) = scene.host.counted(|| {
        let fate = wire.send(&packet::frame(scene.c.mac(), wire.source, &packet));
        assert_eq!(fate, dropped("ingress not-for-endpoint"));
    });
    assert!(counts.of("egress passed stack") > 0, "{counts:?}");
}

const MEGABYTES: usize = 10;

/// Sends ten megabytes that no shift or swap leaves the same.
fn transfer(mut from: TcpStream, mut to: TcpStream) {
    let block =
        |number: usize| -> Vec<u8> { (0..1 << 16).map(|byte| (byte * 7 + byte / 251 + number) as u8).collect() };
    let blocks = MEGABYTES * 16;
    let receiver = thread::spawn(move || {
        to.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut buffer = vec![0; 1 << 16];
        for number in 0..blocks {
            to.read_exact(&mut buffer).unwrap();
            assert!(buffer == block(number), "block {number} is not what was sent");
        }
    });
    for number in 0..blocks {
        from.write_all(&block(number)).unwrap();
    }
    receiver.join().unwrap();
}

fn large_transfers_are_whole(layout: Layout, forwarding: &str, offload: bool) {
    let scene = &Scene::new(layout);
    let Scene { host, a, b, .. } = scene;
    if !offload {
        for endpoint in [a, b] {
            endpoint.enter(no_offload);
        }
    }
    let policies = [ingress("b", &[from("a", &["80/TCP"])]), egress("b", &[]), ingress("a", &[])];
    host.load_with(&["--forwarding", forwarding], &scene.all(), &policies);
    for family in FAMILIES {
        for upwards in [true, false] {
            let listener = b.enter(|| TcpListener::bind(b.socket(family, 80))).unwrap();
            let client = a.connect(&b.at(family, 80));
            let server = listener.accept().unwrap().0;
            let ((), counts) =
                host.counted(|| if upwards { transfer(client, server) } else { transfer(server, client) });
            assert_eq!(counts.drops(), [""; 0], "{layout:?} {forwarding} {family:?}");
            let (passed, other) = match (forwarding, layout) {
                ("direct", Layout::Bridged) => ("direct", "stack"),
                ("direct", Layout::Routed) => ("routed", "stack"),
                _ => ("stack", "direct"),
            };
            // segments count, not the large buffers that they travel in
            let segments = counts.of(&format!("egress passed {passed}"));
            assert!(segments as usize > MEGABYTES * 1_000_000 / 1500, "{counts:?}");
            assert_eq!(counts.of(&format!("egress passed {other}")), 0, "{counts:?}");
        }
    }
}

/// `ethtool -K eth0 tx off tso off gso off gro off`: checksums are in the packets that leave.
fn no_offload() {
    const SIOCETHTOOL: libc::Ioctl = 0x8946;
    // ETHTOOL_STXCSUM, ETHTOOL_STSO, ETHTOOL_SGSO, ETHTOOL_SGRO of linux/ethtool.h
    let commands = [0x17u32, 0x1f, 0x24, 0x2c];
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    for command in commands {
        let mut value = [command, 0];
        let mut request = [0u64; 5];
        request[0] = u64::from_ne_bytes(*b"eth0\0\0\0\0");
        request[2] = value.as_mut_ptr() as u64;
        // SAFETY: a struct ifreq (40 bytes: name, then a pointer to a struct ethtool_value), both locals that
        // outlive the call.
        let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, request.as_mut_ptr()) };
        assert_eq!(result, 0, "{command:#x}: {}", std::io::Error::last_os_error());
    }
}

#[test]
fn large_transfers_are_whole_delivered_directly() {
    large_transfers_are_whole(Layout::Bridged, "direct", true);
}

#[test]
fn large_transfers_are_whole_through_the_bridge() {
    large_transfers_are_whole(Layout::Bridged, "stack", true);
}

#[test]
fn large_transfers_are_whole_routed_directly() {
    large_transfers_are_whole(Layout::Routed, "direct", true);
}

#[test]
fn large_transfers_are_whole_through_the_hosts_routing() {
    large_transfers_are_whole(Layout::Routed, "stack", true);
}

#[test]
fn large_transfers_are_whole_without_offloads() {
    large_transfers_are_whole(Layout::Bridged, "direct", false);
}

#[test]
fn routed_packets_arrive_with_the_receivers_mac_address() {
    let scene = &Scene::new(Layout::Routed);
    let Scene { host, a, b, .. } = scene;
    host.load(&scene.all(), &[]);
    let input = b.raw();
    for family in FAMILIES {
        assert_eq!(a.udp(&b.at(family, 53)), support::Seen::Refused);
        let kind: [u8; 2] = if family == Family::V4 { [8, 0] } else { [0x86, 0xdd] };
        let frame = input.receive(|frame| frame[12..14] == kind && frame.windows(4).any(|four| four == b"ping"));
        assert_eq!(frame.unwrap()[..6], b.mac());
    }
}

#[test]
fn path_with_a_smaller_mtu_is_told_to_the_sender() {
    for family in FAMILIES {
        let scene = &Scene::new(Layout::Routed);
        let Scene { host, a, outside, .. } = scene;
        host.run("ip", &["link", "set", "v-outside", "mtu", "1300"]);
        outside.run("ip", &["link", "set", "eth0", "mtu", "1300"]);
        let block = "{to: [{ipBlock: {cidr: 192.0.2.0/24}}, {ipBlock: {cidr: 2001:db8::/64}}]}".to_owned();
        host.load(&scene.all(), &[egress("a", &[block]), ingress("a", &[])]);
        let listener = outside.enter(|| TcpListener::bind(outside.socket(family, 80))).unwrap();
        let client = a.connect(&outside.at(family, 80));
        let server = listener.accept().unwrap().0;
        // its segments are too large at first; the ICMP error about one of them must come through
        let ((), counts) = host.counted(|| transfer(client, server));
        assert_eq!(counts.drops(), [""; 0], "{family:?}");
    }
}

/// A datagram to everybody.
fn to_group(scene: &Scene, wire: &Wire<'_>, group: &str, port: u16) -> Fate {
    let group: SocketAddr = format!("{group}:{port}").parse().unwrap();
    let (family, mac) = match group {
        SocketAddr::V4(to) if to.ip().is_multicast() => {
            let [_, b, c, d] = to.ip().octets();
            (Family::V4, [1, 0, 0x5e, b & 0x7f, c, d])
        }
        SocketAddr::V4(_) => (Family::V4, BROADCAST),
        SocketAddr::V6(to) => {
            let octets = to.ip().octets();
            (Family::V6, [0x33, 0x33, octets[12], octets[13], octets[14], octets[15]])
        }
    };
    let packet = packet::udp(scene.a.socket(family, 4000), group, b"to all");
    wire.send(&packet::frame(mac, wire.source, &packet))
}

#[test]
fn multicast_and_broadcast_to_an_isolated_endpoint_are_judged_by_policy() {
    let scene = &Scene::bridged();
    let Scene { host, a, b, .. } = scene;
    // c is no endpoint, so its interface counts nothing
    let groups = ["255.255.255.255", "10.0.255.255", "224.0.0.251", "[ff02::fb]"];
    host.load(&[a, b], &[ingress("b", &[from("a", &["5353/UDP"]), anybody(&["9999/UDP"])])]);
    let wire = Wire::of(scene);
    for group in groups {
        assert_eq!(to_group(scene, &wire, group, 5353), Fate::Arrived, "{group}");
        assert_eq!(to_group(scene, &wire, group, 5354), dropped("ingress policy-ingress"), "{group}");
    }
    // and the sender's own policy has its say
    host.load(&[a, b], &[egress("a", &[anybody(&["9999/UDP"])])]);
    for group in groups {
        assert_eq!(to_group(scene, &wire, group, 5353), dropped("egress policy-egress"), "{group}");
    }
}

#[test]
fn enforcement_needs_no_process() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    let _servers = (b.serve_tcp(80), b.serve_udp(53));
    host.load(&[a, b, c], &[ingress("b", &[from("a", &[])])]);
    let ours = host.bpffs().to_str().unwrap().to_owned();
    let holds = |entry: fs::DirEntry| {
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command).contains(&ours)
    };
    assert!(!fs::read_dir("/proc").unwrap().flatten().any(holds), "a process of this instance is running");
    let expected: [(&Endpoint, _, _); 3] = [
        (a, Tcp(b.at(Family::V4, 80)), Answered),
        (c, Tcp(b.at(Family::V4, 80)), Silent),
        (c, Udp(b.at(Family::V6, 53)), Silent),
    ];
    check(&expected);
}
