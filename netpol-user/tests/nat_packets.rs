//! Packets that are translated arrive as they were sent: whole, in fragments, and with right checksums, whatever is
//! left to hardware.

mod support;

use std::{net::UdpSocket, time::Duration};

use support::{
    Attempt, Endpoint, FAMILIES, Family, LAYOUTS, Layout, Offloads, Scene, Seen, Server, Tally, Tap,
    bulk::{echo, transfer},
    check, packet,
    translated::{WAYS, host_port, virtual_address},
};

const PATIENCE: Duration = Duration::from_secs(2);
/// A datagram of four fragments.
const LARGE: usize = 5_000;
/// What fills whole GSO packets, and more than one window.
const BULK: usize = 1 << 20;

/// What is translated: from whom, to which address, and which port of whom answers.
struct Route<'a> {
    what: &'static str,
    client: &'a Endpoint,
    to: fn(&Scene, Family) -> String,
    server: &'a Endpoint,
    port: u16,
}

fn routes(scene: &Scene) -> [Route<'_>; 4] {
    let Scene { a, b, outside, .. } = scene;
    [
        Route {
            what: "masquerade",
            client: a,
            to: |scene, family| scene.outside.at(family, 9000),
            server: outside,
            port: 9000,
        },
        Route {
            what: "published port, from outside",
            client: outside,
            to: |_, family| host_port(family),
            server: b,
            port: 8080,
        },
        Route {
            what: "published port, from a sibling",
            client: a,
            to: |_, family| host_port(family),
            server: b,
            port: 8080,
        },
        Route { what: "virtual address", client: a, to: |_, family| virtual_address(family), server: b, port: 8080 },
    ]
}

fn echoes(scene: &Scene) -> [Server; 2] {
    // one address for each: who has several may answer from another one
    [scene.outside.serve_udp(9000), scene.b.serve_udp(8080)]
}

fn every_way(test: impl Fn(&Scene, Layout, &str)) {
    for layout in LAYOUTS {
        let scene = Scene::new(layout);
        for way in WAYS {
            scene.load_translated(layout, way);
            test(&scene, layout, &format!("{layout:?} {way:?}"));
        }
    }
}

#[test]
fn fragments_of_translated_datagrams_follow_their_first_fragment() {
    every_way(|scene, _, way| {
        let _servers = echoes(scene);
        for family in FAMILIES {
            for route in routes(scene) {
                eprintln!("{way} {family:?} {}", route.what);
                for length in [LARGE, 40_000] {
                    echo(route.client, &(route.to)(scene, family), length);
                }
            }
        }
    });
}

#[test]
fn fragments_of_echoes_follow_their_first_fragment_through_masquerade() {
    every_way(|scene, _, way| {
        for family in FAMILIES {
            for client in [&scene.a, &scene.b] {
                for length in [LARGE, 40_000] {
                    let payload: Vec<u8> = (0..length).map(|at| (at / 7) as u8).collect();
                    let seen = client.ping_with(scene.outside.ip(family), &payload);
                    assert_eq!(seen, Seen::Answered, "{way} {family:?} {} {length}", client.name);
                }
            }
        }
    });
}

#[test]
fn fragments_of_two_clients_with_one_port_reach_each_its_own() {
    let scene = Scene::bridged();
    let Scene { a, b, outside, .. } = &scene;
    let _servers = echoes(&scene);
    scene.load_translated(Layout::Bridged, &[]);
    for family in FAMILIES {
        let to = outside.at(family, 9000);
        let any = if family == Family::V4 { "0.0.0.0:5000" } else { "[::]:5000" };
        let sockets = [a, b].map(|client| {
            let socket = client.enter(|| UdpSocket::bind(any)).expect("a socket");
            socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            socket.connect(&to).expect("an address");
            socket
        });
        for round in 0..10u8 {
            for (number, socket) in (0u8..).zip(&sockets) {
                socket.send(&[round * 2 + number; LARGE]).expect("a datagram");
            }
            for (number, socket) in (0u8..).zip(&sockets) {
                let mut answer = [0; LARGE + 1];
                assert_eq!(socket.recv(&mut answer).expect("the echo"), LARGE);
                assert!(answer[..LARGE].iter().all(|byte| *byte == round * 2 + number));
            }
        }
    }
}

/// Sends TCP in bulk, UDP and echo requests along a route; both ends calculate all checksums anew.
#[track_caller]
fn summed(scene: &Scene, route: &Route, family: Family) -> [Tally; 2] {
    let taps = [route.client, route.server].map(Endpoint::tap);
    let to = (route.to)(scene, family);
    transfer(route.server, route.port, route.client, &to, BULK);
    for length in [1, 2, 17, 1_000, 1_400] {
        echo(route.client, &to, length);
    }
    taps.map(Tap::tally)
}

#[test]
fn checksums_of_translated_packets_are_right_whatever_is_left_to_hardware() {
    every_way(|scene, _, way| {
        let _servers = echoes(scene);
        for offloads in [Offloads::On, Offloads::Off] {
            scene.offloads(offloads);
            for family in FAMILIES {
                for route in routes(scene) {
                    let what = format!("{way} offloads {offloads:?} {family:?} {}", route.what);
                    eprintln!("{what}");
                    for (end, tally) in ["client", "server"].into_iter().zip(summed(scene, &route, family)) {
                        assert!(tally.wrong.is_empty(), "{what}, at the {end}: {:#?}", tally.wrong);
                        assert!(tally.tcp > 2 && tally.udp >= 5, "{what}, at the {end}: {tally:?}");
                        // else one of the two would have been tested twice
                        let is_left = tally.unfinished > 0;
                        assert_eq!(is_left, offloads == Offloads::On, "{what}, at the {end}: {tally:?}");
                    }
                }
            }
        }
    });
}

#[test]
fn checksums_of_translated_queries_and_errors_are_right() {
    every_way(|scene, _, way| {
        let Scene { a, b, outside, .. } = scene;
        for family in FAMILIES {
            let taps = [a, b, outside].map(Endpoint::tap);
            check(&[
                (a, Attempt::Ping(outside.ip(family)), Seen::Answered),
                (a, Attempt::Udp(outside.at(family, 9)), Seen::Refused),
                (a, Attempt::Udp(virtual_address(family)), Seen::Refused),
                (outside, Attempt::Udp(host_port(family)), Seen::Refused),
            ]);
            for (who, tap) in ["a", "b", "outside"].into_iter().zip(taps) {
                let tally = tap.tally();
                assert!(tally.wrong.is_empty(), "{way} {family:?}, at {who}: {:#?}", tally.wrong);
                assert!(tally.icmp > 0 || who == "b", "{way} {family:?}, at {who}: {tally:?}");
            }
        }
    });
}

#[test]
fn a_tap_sees_a_checksum_that_is_wrong() {
    let scene = Scene::bridged();
    let Scene { a, b, .. } = &scene;
    scene.load_translated(Layout::Bridged, &[]);
    let _server = b.serve_udp(8080);
    for family in FAMILIES {
        let tap = b.tap();
        let mut segment = packet::udp(a.socket(family, 5000), b.socket(family, 8080), b"one bit is wrong");
        *segment.last_mut().expect("a payload") ^= 1;
        let marker = b.raw();
        a.raw().send(&packet::frame(b.mac(), a.mac(), &segment));
        let end = segment.split_off(segment.len() - 16);
        assert!(marker.receive(|frame| frame.windows(16).any(|part| part == end)).is_some(), "it does not arrive");
        assert_eq!(tap.tally().wrong.len(), 1, "{family:?}");
    }
}
