//! A service that nobody is behind refuses at once, instead of letting its clients wait.

mod support;

use std::io::{ErrorKind, Read as _, Write as _};

use support::{
    Attempt, FAMILIES, LAYOUTS, Scene, Seen, check, exchange,
    translated::{WAYS, host_port, published, service, virtual_address},
};

#[test]
fn a_service_without_a_backend_refuses_whoever_asks() {
    for layout in LAYOUTS {
        let scene = Scene::new(layout);
        let Scene { host, a, outside, .. } = &scene;
        for way in WAYS {
            scene.load_nat(way, &[service("nobody"), published("nobody")]);
            for family in FAMILIES {
                let (inside, outward) = (virtual_address(family), host_port(family));
                check(&[
                    (a, Attempt::Tcp(inside.clone()), Seen::Refused),
                    (a, Attempt::Udp(inside), Seen::Refused),
                    (a, Attempt::Tcp(outward.clone()), Seen::Refused),
                    (a, Attempt::Udp(outward.clone()), Seen::Refused),
                    (outside, Attempt::Tcp(outward.clone()), Seen::Refused),
                    (outside, Attempt::Udp(outward), Seen::Refused),
                ]);
            }
        }
        let drops = host.netpol(&["status", "-o", "json"]).json();
        assert!(drops["counters"].to_string().contains("no-backend"), "{drops}");
    }
}

#[test]
fn a_connection_ends_with_its_backend() {
    for layout in LAYOUTS {
        let scene = Scene::new(layout);
        let Scene { a, b, outside, .. } = &scene;
        let _server = b.serve_tcp(8080);
        for way in WAYS {
            for family in FAMILIES {
                scene.load_nat(way, &[service("b"), published("b")]);
                let clients = [(a, virtual_address(family)), (outside, host_port(family))];
                let mut open: Vec<_> = clients.iter().map(|(client, to)| client.connect(to)).collect();
                for stream in &mut open {
                    assert_eq!(exchange(stream), Seen::Answered);
                }
                scene.load_nat(way, &[service("nobody"), published("nobody")]);
                for stream in &mut open {
                    stream.write_all(b"still there?").expect("room to send");
                    let ended = stream.read(&mut [0; 16]).map_err(|error| error.kind());
                    assert_eq!(ended, Err(ErrorKind::ConnectionReset), "{layout:?} {way:?} {family:?}");
                }
            }
        }
    }
}
