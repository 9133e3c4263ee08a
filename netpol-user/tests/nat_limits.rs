//! Where nothing is left to translate with, new connections are dropped and counted, none gets another's place, and what is
//! open goes on.

mod support;

use std::collections::HashSet;

use aya::maps::{HashMap, Map, MapData};
use netpol_common::{
    flow::PortPair,
    nat::{NatKey, Translation},
    wire::{Addr4, PortBe},
};
use support::{
    Family, Layout, Scene,
    translated::{WAYS, host_address, pools, socket, taken_for},
};

const DROPPED: &str = "egress dropped translation";

type Pairs = HashMap<MapData, NatKey<Addr4>, Translation<Addr4>>;

fn pairs(scene: &Scene) -> Pairs {
    let map = MapData::from_pin(scene.host.bpffs().join("maps/NAT4")).expect("the pinned map");
    Map::from_map_data(map).expect("a hash").try_into().expect("translations")
}

#[test]
fn where_no_port_is_free_a_connection_is_dropped_and_counted() {
    for way in WAYS {
        let scene = Scene::bridged();
        let Scene { host, a, b, outside, .. } = &scene;
        scene.load_nat(way, &[pools(Layout::Bridged)]);
        let (server, other) = (socket(outside, 9000), socket(outside, 9001));
        let [to, elsewhere] = [9000, 9001].map(|port| outside.at(Family::V4, port));
        let open = socket(a, 5000);
        assert_eq!(taken_for(&server, &open, &to).port(), 5000, "{way:?}");
        // as if everybody else had all the other ports
        let mut all = pairs(&scene);
        let ours = all.iter().map(|pair| pair.expect("a pair")).find(|(_, half)| half.is_reply());
        let (key, half) = ours.expect("the half of the replies");
        for port in 1024..=u16::MAX {
            let ports = PortPair::new(key.ports.source(), PortBe::from_host(port));
            let key = NatKey { ports, ..key };
            if port != 5000 {
                all.insert(key, Translation { tag: key.tag(), ..half }, 0).expect("there is room");
            }
        }
        let full = all.keys().count();
        let late = socket(b, 5000);
        let (_, counts) = host.counted(|| {
            late.send_to(b"late", &to).expect("a packet");
            // comes behind it, to another port, where all are free
            assert_eq!(taken_for(&other, &late, &elsewhere).port(), 5000, "{way:?}");
        });
        assert_eq!((counts.of(DROPPED), counts.drops()), (1, vec!["egress translation".to_owned()]), "{way:?}");
        assert_eq!(all.keys().count(), full + 2, "{way:?}: the pair of the other connection alone");
        assert_eq!(taken_for(&server, &open, &to).port(), 5000, "{way:?}: what is open goes on");
        server.set_nonblocking(true).expect("non-blocking");
        assert!(server.recv(&mut [0; 8]).is_err(), "{way:?}: it has arrived");
    }
}

#[test]
fn where_there_is_no_room_connections_are_dropped_and_counted_and_the_others_are_right() {
    // entries: two for a connection
    const ROOM: &str = "1024";
    for way in WAYS {
        let scene = Scene::bridged();
        let Scene { host, a, b, outside, .. } = &scene;
        scene.load_nat(&[way, &["--flows", ROOM]].concat(), &[pools(Layout::Bridged)]);
        let server = socket(outside, 9000);
        let to = outside.at(Family::V4, 9000);
        let clients: Vec<_> = [a, b].iter().flat_map(|client| (5000..5300).map(|port| socket(client, port))).collect();
        let (mut sources, mut dropped) = (HashSet::new(), 0);
        // as many at once as the server's buffer holds
        for some in clients.chunks(50) {
            let ((), counts) = host.counted(|| {
                for (number, client) in (0u8..).zip(some) {
                    client.send_to(&[number], &to).expect("a packet");
                }
            });
            // each is either counted as dropped or arrives
            let lost = counts.of(DROPPED) as usize;
            assert!(counts.drops().iter().all(|reason| reason == "egress translation"), "{way:?} {counts:?}");
            for _ in 0..some.len() - lost {
                let mut number = [0];
                let (_, from) = server.recv_from(&mut number).expect("a packet");
                assert_eq!(from.ip(), host_address(Family::V4), "{way:?}");
                assert!(sources.insert(from), "{way:?}: two clients are {from}");
                server.send_to(&number, from).expect("an answer");
                let mut answer = [0];
                some[usize::from(number[0])].recv(&mut answer).expect("the answer to its own packet");
                assert_eq!(answer, number, "{way:?}");
            }
            dropped += lost;
        }
        assert_eq!((sources.len(), dropped), (512, 600 - 512), "{way:?}");
        server.set_nonblocking(true).expect("non-blocking");
        assert!(server.recv(&mut [0]).is_err(), "{way:?}: what was dropped has arrived");
    }
}
