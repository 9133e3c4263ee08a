//! Drops are told by their reasons, and a flood of them hides no other.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use aya::maps::{Array, Map, MapData};
use netpol_common::{
    flow::Ticks,
    kernel::{Bucket, Settings},
};
use nix::time::{ClockId, clock_gettime};
use serde_json::Value;

use crate::{
    between, loaded,
    support::{
        Attempt::Udp,
        Family, Layout, Scene,
        Seen::Silent,
        check,
        packet::{self, seal},
        translated::pools,
    },
};

#[test]
fn drops_are_told_by_their_reasons() {
    let scene = &loaded();
    let Scene { host, a, b, c, .. } = scene;
    let mut watch = host.observe(&["--type", "drop"]);
    let (socket, source, target) = (a.raw(), a.mac(), b.mac());
    let [own, other, foreign] = [a.socket(Family::V4, 4000), b.socket(Family::V4, 53), c.socket(Family::V4, 4000)];
    let send = |packet: &[u8]| socket.send(&packet::frame(target, source, packet));

    send(&packet::udp(foreign, other, b"c?"));
    let spoofed = watch.drop_of("spoofed");
    assert_eq!((&spoofed["at"], &spoofed["source"]["address"]), (&"default/a".into(), &"10.0.0.30".into()));
    assert_eq!((&spoofed["destination"]["port"], &spoofed["rule"]), (&53.into(), &Value::Null));
    assert_eq!(spoofed["explanation"], "the source address or MAC does not belong to where the packet came from");

    let whole = packet::frame(target, source, &packet::udp(own, other, b"tag"));
    socket.send(&[&whole[..12], &[0x81, 0, 0, 5], &whole[12..]].concat());
    let vlan = watch.drop_of("vlan");
    assert_eq!(
        (&vlan["protocol"], &vlan["source"]["address"], &vlan["at"]),
        (&"VLAN".into(), &Value::Null, &"default/a".into())
    );

    let claim = packet::arp(2, (source, c.ipv4()), (target, b.ipv4()));
    socket.send(&packet::ethernet(target, source, 0x0806, &claim));
    let arp = watch.drop_of("arp-spoofed");
    assert_eq!((&arp["protocol"], &arp["source"]["address"]), (&"ARP".into(), &"10.0.0.30".into()));
    assert_eq!(arp["frame"]["ethertype"], "0x0806");

    // neither SYN, ACK nor RST
    send(&packet::tcp(own, b.socket(Family::V4, 80), 0, b""));
    let flags = watch.drop_of("tcp-flags");
    assert_eq!((&flags["source"]["name"], &flags["destination"]["name"]), (&"a".into(), &"b".into()));

    let mut fragment = packet::udp(own, other, &[7; 64]);
    fragment[7] = 2;
    seal(&mut fragment);
    send(&fragment);
    let fragment = watch.drop_of("fragment");
    assert_eq!((&fragment["source"]["name"], &fragment["protocol"]), (&"a".into(), &"UDP".into()));

    let (own6, other6) = (a.socket(Family::V6, 4000), b.socket(Family::V6, 53));
    let routing = [&[17, 2, 0, 1, 0, 0, 0, 0][..], &[0; 16], &packet::udp_segment(own6, other6, b"x")].concat();
    send(&packet::ip(own6.ip(), other6.ip(), 43, &routing));
    let extension = watch.drop_of("extension-headers");
    assert_eq!((&extension["source"]["name"], &extension["destination"]["name"]), (&"a".into(), &"b".into()));

    let mut version5 = packet::udp(own, other, b"5");
    version5[0] = 0x55;
    socket.send(&packet::ethernet(target, source, 0x0800, &version5));
    let malformed = watch.drop_of("malformed");
    assert_eq!((&malformed["protocol"], &malformed["source"]["address"]), (&"IPv4".into(), &Value::Null));

    // an error about what was never sent
    let quoted = packet::udp(own, other, b"never");
    send(&packet::icmp(own.ip(), other.ip(), [3, 3, 0, 0, 0, 0], &quoted));
    assert_eq!(watch.drop_of("icmp-unrelated")["protocol"], "ICMP");

    // what a bridge floods ends at whom it is not for
    let stranger: SocketAddr = "10.0.0.99:53".parse().unwrap();
    host.itself().raw_on("br0").send(&packet::frame(
        b.mac(),
        host.mac("br0"),
        &packet::udp("10.0.0.1:4000".parse().unwrap(), stranger, b"?"),
    ));
    let other = watch.drop_of("not-for-endpoint");
    assert_eq!((&other["direction"], &other["at"]), (&"ingress".into(), &"default/b".into()));

    // isolated for ingress, so what policy cannot judge does not reach b
    host.itself().raw_on("br0").send(&packet::ethernet(b.mac(), host.mac("br0"), 0x88b5, b"what?"));
    assert_eq!(watch.drop_of("ethertype")["protocol"], "ethertype 0x88b5");
    watch.end();
    assert_eq!(watch.sum("lost", "lost"), 0);
}

#[test]
fn drops_of_link_control_are_told_by_their_reasons() {
    let scene = &loaded();
    let Scene { host, a, b, .. } = scene;
    let mut watch = host.observe(&["--type", "drop"]);
    let (socket, source, target) = (a.raw(), a.mac(), b.mac());
    let send = |packet: &[u8]| socket.send(&packet::frame(target, source, packet));
    let (IpAddr::V6(other), own) = (b.ipv6(), a.ipv6()) else { panic!("not IPv6") };

    send(&packet::advertisement(own, other.into(), other, source));
    let claim = watch.drop_of("nd-spoofed");
    assert_eq!((&claim["at"], &claim["protocol"]), (&"default/a".into(), &"ICMPv6".into()));

    send(&packet::icmp(own, other.into(), [134, 0, 64, 0, 0x70, 8], &[0; 8]));
    let router = watch.drop_of("router-advertisement");
    assert_eq!((&router["at"], &router["source"]["name"]), (&"default/a".into(), &"a".into()));

    send(&packet::udp(a.socket(Family::V4, 67), b.socket(Family::V4, 68), &[2; 240]));
    let offer = watch.drop_of("dhcp-server");
    assert_eq!((&offer["at"], &offer["destination"]["port"]), (&"default/a".into(), &68.into()));
}

/// What is left of reasons: limits that are reached, and tables that are not there. (`flow-table` and `delivery` are what the
/// kernel's errors would be called: an array has all its elements, and redirection refuses nothing that is asked of it.)
#[test]
fn drops_at_a_limit_or_without_tables_are_told_by_their_reasons() {
    let scene = Scene::bridged();
    let Scene { host, a, c, outside, .. } = &scene;
    scene.load_nat(&[], &[pools(Layout::Bridged)]);
    let mut watch = host.observe(&["--type", "drop"]);
    let pinned = |name: &str| MapData::from_pin(Path::new(host.bpffs()).join("maps").join(name)).expect("pinned");

    // SCTP has no port to be told from others by: it does not leave a pool
    let sctp =
        packet::ip(a.ipv4(), outside.ipv4(), 132, &[0x13, 0x88, 0x13, 0x88, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 20]);
    a.raw().send(&packet::frame(host.mac("br0"), a.mac(), &sctp));
    let untranslated = watch.drop_of("translation");
    assert_eq!(
        (&untranslated["protocol"], &untranslated["destination"]["address"]),
        (&"SCTP".into(), &"192.0.2.9".into())
    );

    let mut rates: Array<MapData, Bucket> = Map::Array(pinned("RATES")).try_into().expect("buckets");
    let clock = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).expect("a clock"));
    // all that there is for an hour
    let spent = Bucket { tokens: 0, filled: Ticks::from_nanos((clock + Duration::from_secs(3600)).as_nanos() as u64) };
    (0..rates.len()).for_each(|place| rates.set(place, spent, 0).expect("a bucket"));
    check(&[(a, Udp(c.at(Family::V4, 53)), Silent)]);
    let limited = watch.drop_of("rate");
    assert_eq!((&limited["source"]["name"], &limited["destination"]["name"]), (&"a".into(), &"c".into()));
    (0..rates.len()).for_each(|place| rates.set(place, Bucket::UNTOUCHED, 0).expect("a bucket"));

    // a generation that nobody has published, and that isolates whom it does not know
    let mut live: Array<MapData, u64> = Map::Array(pinned("LIVE")).try_into().expect("the word");
    let word = live.get(&0, 0).expect("the word");
    live.set(0, ((word >> 32) + 1) << 32 | u64::from(Settings::ISOLATE_WAITING.0), 0).expect("the word");
    check(&[(a, Udp(c.at(Family::V4, 53)), Silent)]);
    assert_eq!(watch.drop_of("no-policy")["source"]["address"], a.ipv4().to_string());
    live.set(0, word, 0).expect("the word");
}

#[test]
fn flood_of_denied_packets_hides_no_other_drop() {
    let scene = &loaded();
    let Scene { host, a, b, c, .. } = scene;
    let mut watch = host.observe(&["--type", "drop", "--buffer", "1024"]);
    let flood = |ports: std::ops::Range<u16>, to: u16| {
        let (socket, source, target) = (c.raw(), c.mac(), b.mac());
        for port in ports {
            let (from, to) = (c.socket(Family::V4, port), b.socket(Family::V4, to));
            socket.send(&packet::frame(target, source, &packet::tcp(from, to, 2, b"")));
        }
    };
    let (_, counts) = host.counted(|| {
        // one door, from everywhere; then every door
        flood(1000..6000, 80);
        check(&[(c, Udp(b.at(Family::V4, 4444)), Silent)]);
        let (socket, source, target) = (c.raw(), c.mac(), b.mac());
        for port in 1..4000 {
            let (from, to) = (c.socket(Family::V4, 999), b.socket(Family::V4, port));
            socket.send(&packet::frame(target, source, &packet::tcp(from, to, 2, b"")));
        }
        check(&[(a, Udp(b.at(Family::V4, 4445)), Silent)]);
        watch.event("the single drop of who floods", between("drop", "c", "b", 4444));
        watch.event("the single drop of another", between("drop", "a", "b", 4445));
    });
    watch.end();
    let dropped = counts.of("egress dropped policy-ingress");
    assert!(dropped >= 9001, "{counts:?}");
    assert_eq!(watch.sum("lost", "lost"), 0);
    let (told, suppressed) = (watch.all("drop").len() as u64, watch.sum("suppressed", "suppressed"));
    assert_eq!(told + suppressed, dropped, "all of them, told or counted");
    assert!(told < 5000, "{told}");
}
