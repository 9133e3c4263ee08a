//! `netpol observe`: what happens to real packets is told as it happens, to several at once, and what is not told is
//! counted.

mod support;

use std::{
    fs::File,
    net::{IpAddr, SocketAddr},
    path::Path,
    thread,
    time::Duration,
};

use aya::maps::{Array, Map, MapData};
use netpol_common::{
    flow::Ticks,
    kernel::{Bucket, Settings},
};
use nix::{
    sys::signal::Signal,
    time::{ClockId, clock_gettime},
};
use pcap_file::pcapng::{
    Block, PcapNgReader,
    blocks::{enhanced_packet::EnhancedPacketOption, interface_description::InterfaceDescriptionOption},
};
use serde_json::{Value, json};
use support::{
    Attempt::{Tcp, Udp},
    Family, Layout, Scene,
    Seen::{Answered, Refused, Silent},
    check,
    packet::{self, seal},
    policy::{anybody, documents, from, ingress},
    translated::{host_port, pools, published, service, virtual_address},
    wait_until,
};

/// `b` answers `a` on port 80 and nobody else.
fn loaded() -> Scene {
    let scene = Scene::bridged();
    scene.host.load(&scene.all(), &[ingress("b", &[from("a", &["80/TCP"])])]);
    scene
}

/// An event about packets between these, to this port.
fn between<'a>(kind: &'a str, from: &'a str, to: &'a str, port: u16) -> impl Fn(&Value) -> bool {
    move |event| {
        event["type"] == kind
            && event["source"]["name"] == from
            && event["destination"]["name"] == to
            && event["destination"]["port"] == port
    }
}

#[test]
fn new_connection_and_denial_are_told_with_their_rules() {
    let Scene { host, a, b, c, .. } = &loaded();
    let _server = b.serve_tcp(80);
    let mut watch = host.observe(&[]);
    for family in [Family::V4, Family::V6] {
        check(&[(a, Tcp(b.at(family, 80)), Answered), (c, Tcp(b.at(family, 80)), Silent)]);
        let address = a.ip(family).to_string();
        let opened = watch.event("a to b", |event| {
            between("new", "a", "b", 80)(event) && event["source"]["address"] == address.as_str()
        });
        assert_eq!(opened["verdict"], "allowed");
        assert_eq!((&opened["direction"], &opened["is_reply"]), (&Value::from("egress"), &Value::from(false)));
        assert_eq!(opened["rule"]["index"], 0);
        assert_eq!(opened["packets"], 1);
        let address = c.ip(family).to_string();
        let denied = watch.event("c to b", |event| {
            between("drop", "c", "b", 80)(event) && event["source"]["address"] == address.as_str()
        });
        assert_eq!((&denied["verdict"], &denied["drop_reason"]), (&"denied".into(), &"policy-ingress".into()));
        assert_eq!(denied["rule"]["index"], Value::Null, "{denied}");
        let source = denied["rule"]["source"].as_str().expect("a file and its line");
        assert!(source.contains("load.yaml:"), "{source}");
        let explanation = denied["explanation"].as_str().expect("words");
        assert!(explanation.contains("no rule allows tcp/80 from default/c"), "{explanation}");
        assert_eq!((&denied["at"], &denied["was_allowed"]), (&"default/c".into(), &false.into()));
    }
    watch.end();
    assert_eq!(watch.sum("lost", "lost"), 0);
}

#[test]
fn closed_connection_is_told_once_with_the_totals_of_both_directions() {
    let Scene { host, a, b, .. } = &loaded();
    let _server = b.serve_tcp(80);
    for filter in [&["--type", "closed"][..], &[]] {
        let mut watch = host.observe(filter);
        let (_, counts) = host.counted(|| {
            check(&[(a, Tcp(b.at(Family::V4, 80)), Answered)]);
            watch.event("the end", between("closed", "a", "b", 80));
        });
        watch.end();
        let closed = watch.all("closed");
        assert_eq!(closed.len(), 1, "{closed:#?}");
        let closed = closed[0];
        assert_eq!(closed["tcp_state"], "CLOSED", "{closed}");
        let total = closed["packets"].as_u64().unwrap() + closed["reply_packets"].as_u64().unwrap();
        assert_eq!(total, counts.of("egress passed direct"), "{closed}");
        // SYN, ACK, request, FIN at least, and what answers them
        assert!(closed["packets"].as_u64().unwrap() >= 4 && closed["reply_packets"].as_u64().unwrap() >= 3, "{closed}");
        let flow = |flow: &&Value| flow["source"]["port"] == closed["source"]["port"] && flow["is_reply"] == false;
        let flow = host.flows().iter().find(flow).expect("its entry").clone();
        assert_eq!((&flow["packets"], &flow["bytes"]), (&closed["packets"], &closed["bytes"]));
    }
}

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
/// kernel's errors would be called: its LRU makes room, and redirection refuses nothing that is asked of it.)
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
fn connection_that_a_load_revokes_is_told_as_one_that_was_allowed() {
    let Scene { host, a, b, .. } = &loaded();
    let _server = b.serve_tcp(80);
    let mut stream = a.connect(&b.at(Family::V4, 80));
    assert_eq!(support::exchange(&mut stream), Answered);
    let mut watch = host.observe(&["reason:policy-*"]);
    host.load(&[a, b], &[ingress("b", &[])]);
    assert_eq!(support::exchange(&mut stream), Silent);
    let revoked = watch.event("the revoked connection", between("drop", "a", "b", 80));
    assert_eq!((&revoked["was_allowed"], &revoked["current"]), (&true.into(), &true.into()));
    watch.end();
}

#[test]
fn translation_is_told_with_the_service() {
    let scene = Scene::bridged();
    let Scene { host, a, b, c, .. } = &scene;
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  selector: {app: b}\n  \
                   clusterIP: 10.96.0.10\n  ports: [{port: 80, targetPort: 8080}]\n";
    let policies = [service.to_owned(), ingress("b", &[from("a", &["8080/TCP"])])];
    let path = host.documents("load.yaml", &documents(&scene.all(), &policies));
    host.netpol(&["load", "--uplink", "v-outside", &path]).ok();
    let _server = b.serve_tcp(8080);
    let mut watch = host.observe(&[]);
    check(&[(a, Tcp("10.96.0.10:80".into()), Answered), (c, Tcp("10.96.0.10:80".into()), Silent)]);
    let told = watch.event("a to the service", |event| event["type"] == "new" && event["source"]["name"] == "a");
    assert_eq!((&told["service"], &told["destination"]["address"]), (&"default/web:80".into(), &"10.96.0.10".into()));
    assert_eq!(
        (&told["destination"]["name"], &told["translated"]["destination"]),
        (&"b".into(), &"10.0.0.20:8080".into())
    );
    let denied = watch.drop_of("policy-ingress");
    assert_eq!((&denied["service"], &denied["destination"]["name"]), (&"default/web:80".into(), &"b".into()));
    let closed = watch.event("the end", |event| event["type"] == "closed" && event["source"]["name"] == "a");
    assert!(closed["reply_packets"].as_u64().unwrap() >= 3, "{closed}");
    watch.end();
}

#[test]
fn refusal_is_told_as_its_client_asked() {
    let scene = Scene::bridged();
    let Scene { host, a, outside, .. } = &scene;
    scene.load_nat(&[], &[service("nobody"), published("nobody")]);
    let mut watch = host.observe(&["--type", "drop"]);
    for (client, to, port) in [(a, virtual_address(Family::V4), 80), (outside, host_port(Family::V4), 8000)] {
        check(&[(client, Tcp(to), Refused)]);
        let is_it = |event: &Value| event["drop_reason"] == "no-backend" && event["destination"]["port"] == port;
        let told = watch.event("the refusal", is_it);
        assert_eq!(told["source"]["address"], client.ip(Family::V4).to_string(), "{told}");
    }
    watch.end();
}

#[test]
fn observers_are_told_what_they_asked_for() {
    let Scene { host, a, b, c, .. } = &loaded();
    let _server = b.serve_tcp(80);
    let mut drops = host.observe(&["--type", "drop", "from:default/c"]);
    let mut opened = host.observe(&["--type", "new", "to:b", "port:80"]);
    let mut nothing = host.observe(&["reason:spoofed"]);
    assert_eq!(host.observers(), 3);
    check(&[(a, Tcp(b.at(Family::V4, 80)), Answered), (c, Tcp(b.at(Family::V4, 80)), Silent)]);
    check(&[(a, Udp(b.at(Family::V4, 80)), Silent)]);
    opened.event("a to b", between("new", "a", "b", 80));
    drops.event("c to b", between("drop", "c", "b", 80));
    for watch in [&mut drops, &mut opened, &mut nothing] {
        watch.end();
    }
    assert!(drops.all("new").is_empty() && drops.all("drop").iter().all(|event| event["source"]["name"] == "c"));
    assert!(opened.all("drop").is_empty() && opened.all("closed").is_empty());
    assert_eq!(opened.all("new").len(), 1);
    assert!(nothing.all("drop").is_empty() && nothing.all("new").is_empty());
}

#[test]
fn nobody_observes_and_the_classifiers_know() {
    let Scene { host, .. } = &loaded();
    assert!(!host.is_observed());
    let mut first = host.observe(&[]);
    let mut second = host.observe(&[]);
    assert!(host.is_observed());
    first.end();
    assert!(host.is_observed());
    second.end();
    assert!(!host.is_observed());
}

#[test]
fn status_tells_how_many_observe_and_what_they_were_not_told() {
    let scene = loaded();
    let host = &scene.host;
    assert_eq!(host.status()["observers"], json!({"count": 0, "lost_events": 0, "suppressed_drops": 0}));
    let watches = [host.observe(&[]), host.observe(&["--type", "drop"])];
    for _ in 0..20 {
        check(&[(&scene.c, Udp(scene.b.at(Family::V4, 53)), Silent)]);
    }
    let observers = &host.status()["observers"];
    assert_eq!((&observers["count"], &observers["lost_events"]), (&json!(2), &json!(0)), "{observers}");
    let told = host.netpol(&["status"]).ok();
    assert!(
        told.contains("\nobservers\n  2 now; not told to observers until now: 0 events for want of room"),
        "{told}"
    );
    drop(watches);
    wait_until("nobody observes", || host.status()["observers"]["count"] == 0);
}

#[test]
fn stalled_observer_is_told_how_much_it_lost_and_others_lose_nothing() {
    const FLOWS: u16 = 400;
    let scene = Scene::bridged();
    let Scene { host, a, b, .. } = &scene;
    host.load(&scene.all(), &[ingress("b", &[anybody(&["53/UDP"])])]);
    // the smallest ring has room for some 25 events
    let mut stalled = host.observe(&["--type", "new", "--buffer", "4", "to:b port:53"]);
    let mut awake = host.observe(&["--type", "new", "to:b port:53"]);
    let (socket, source, target) = (a.raw(), a.mac(), b.mac());
    let send = |port: u16| {
        let (from, to) = (a.socket(Family::V4, port), b.socket(Family::V4, 53));
        socket.send(&packet::frame(target, source, &packet::udp(from, to, b"hello")));
    };
    send(1999);
    stalled.event("the first", between("new", "a", "b", 53));
    stalled.signal(Signal::SIGSTOP);
    (2000..2000 + FLOWS).for_each(send);
    awake.event("the last", |event| event["source"]["port"] == 1999 + FLOWS);
    stalled.signal(Signal::SIGCONT);
    stalled.event("the loss", |event| event["type"] == "lost");
    stalled.end();
    awake.end();
    let lost = stalled.sum("lost", "lost");
    assert!(lost > 0);
    assert_eq!(stalled.all("new").len() as u64 + lost, u64::from(FLOWS) + 1);
    assert_eq!(awake.all("new").len(), usize::from(FLOWS) + 1);
    assert_eq!(awake.sum("lost", "lost"), 0);
    let metrics = host.netpol(&["metrics", "--once"]).ok();
    assert!(metrics.contains(&format!("netpol_observer_lost_events_total {lost}\n")), "{metrics}");
}

#[test]
fn killed_observer_leaves_its_place_to_the_next_and_to_a_load() {
    let Scene { host, a, b, .. } = &loaded();
    let _server = b.serve_tcp(80);
    let mut killed: Vec<_> = (0..8).map(|_| host.observe(&[])).collect();
    let refused = host.netpol(&["observe", "--for", "1"]);
    assert!(refused.code == 1 && refused.stderr.contains("8 observers already"), "{refused:?}");
    let mut last = killed.pop().expect("eight");
    for watch in &mut killed {
        watch.signal(Signal::SIGKILL);
        watch.ended();
    }
    // seven leases hold still, and nobody is behind them; the first place is taken over
    let mut next = host.begin_to_observe(&["--count", "1", "--type", "new", "to:b"]);
    wait_until("the next one is told", || {
        check(&[(a, Tcp(b.at(Family::V4, 80)), Answered)]);
        next.has_told()
    });
    assert_eq!((next.ended(), next.all("new").len()), (Some(0), 1));
    last.event("a to b", between("new", "a", "b", 80));
    last.end();
    assert!(host.is_observed(), "by the killed ones");
    host.load(&[a, b], &[]);
    assert!(!host.is_observed());
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

#[test]
fn packets_are_written_with_their_verdicts() {
    let Scene { host, a, b, c, .. } = &loaded();
    let file = host.folder().join("packets.pcapng");
    let mut watch = host.observe(&["--pcap", file.to_str().unwrap(), "--type", "new,drop", "proto:tcp"]);
    let _server = b.serve_tcp(80);
    check(&[(a, Tcp(b.at(Family::V4, 80)), Answered), (c, Tcp(b.at(Family::V6, 80)), Silent)]);
    watch.event("a to b", between("new", "a", "b", 80));
    watch.event("c to b", between("drop", "c", "b", 80));
    watch.end();
    let mut reader = PcapNgReader::new(File::open(&file).expect("the file")).expect("a section");
    let (mut interfaces, mut packets) = (vec![], vec![]);
    while let Some(block) = reader.next_block() {
        match block.expect("a block") {
            Block::InterfaceDescription(block) => {
                interfaces.extend(block.options.iter().filter_map(|option| match option {
                    InterfaceDescriptionOption::IfName(name) => Some(name.to_string()),
                    _ => None,
                }))
            }
            Block::EnhancedPacket(block) => {
                let comment = block.options.iter().find_map(|option| match option {
                    EnhancedPacketOption::Comment(comment) => Some(comment.to_string()),
                    _ => None,
                });
                packets.push((
                    interfaces[block.interface_id as usize].clone(),
                    block.data.to_vec(),
                    comment,
                    block.original_len,
                ));
            }
            _ => {}
        }
    }
    assert_eq!(packets.len(), watch.told.iter().filter(|event| event["type"] != "suppressed").count());
    let of = |interface: &str| packets.iter().find(|packet| packet.0 == interface).expect("a packet");
    let (_, frame, comment, length) = of("v-a");
    assert_eq!((&frame[..6], &frame[12..14], &frame[26..30]), (&b.mac()[..], &[8, 0][..], &[10, 0, 0, 10][..]));
    assert_eq!(frame.len(), *length as usize);
    assert!(comment.as_ref().is_some_and(|comment| comment.starts_with("new allowed: ")), "{comment:?}");
    let (_, frame, comment, _) = of("v-c");
    assert_eq!((&frame[6..12], &frame[12..14]), (&c.mac()[..], &[0x86, 0xdd][..]));
    let comment = comment.as_ref().expect("a comment");
    assert!(comment.starts_with("drop policy-ingress: ") && comment.contains("no rule allows tcp/80"), "{comment}");
}

#[test]
fn recent_past_is_told_from_what_is_remembered() {
    let Scene { host, a, b, c, .. } = &loaded();
    let _server = b.serve_tcp(80);
    check(&[(c, Tcp(b.at(Family::V4, 80)), Silent)]);
    check(&[(a, Tcp(b.at(Family::V4, 80)), Answered)]);
    let lines = |arguments: &[&str]| -> Vec<Value> {
        let told = host.netpol(&[&["observe", "-o", "json"], arguments].concat()).ok();
        told.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let told = lines(&["--last", "100", "to:b"]);
    let kinds: Vec<_> = told.iter().map(|event| (&event["type"], &event["source"]["name"])).collect();
    assert_eq!(kinds, [(&"drop".into(), &"c".into()), (&"flow".into(), &"a".into())], "the latest last");
    let last = lines(&["--last", "1", "to:b"]);
    assert!(last.len() == 1 && last[0]["source"] == told[1]["source"], "{last:#?}");
    assert!(lines(&["--last", "100", "--type", "drop", "reason:spoofed"]).is_empty());
    assert!(!host.is_observed());
}

#[test]
fn unload_ends_it() {
    let Scene { host, .. } = &loaded();
    let mut watch = host.observe(&[]);
    host.netpol(&["unload"]).ok();
    assert_eq!(watch.ended(), Some(1));
}

#[test]
fn words_are_for_people() {
    let Scene { host, a, b, c, .. } = &loaded();
    let _server = b.serve_tcp(80);
    for (format, wanted) in [("compact", " > default/b:80 TCP: "), ("table", "default/b:80  ")] {
        let running = thread::scope(|scope| {
            let watching =
                scope.spawn(|| host.netpol(&["observe", "-o", format, "--count", "1", "--type", "new", "to:b"]));
            wait_until("it observes", || host.observers() == 1);
            check(&[(a, Tcp(b.at(Family::V4, 80)), Answered), (c, Tcp(b.at(Family::V4, 80)), Silent)]);
            watching.join().expect("an end")
        });
        let told = running.ok();
        assert!(told.lines().any(|line| line.contains("new") && line.contains(wanted)), "{told}");
    }
    let wrong = host.netpol(&["observe", "reson:spoofed"]);
    assert!(wrong.code == 1 && wrong.stderr.contains("did you mean `reason:`"), "{wrong:?}");
}
