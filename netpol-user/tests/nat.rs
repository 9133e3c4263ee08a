//! Services and masquerading, by real connections: who answers, and whom the other end takes the client for.

mod support;

use std::{net::UdpSocket, time::Duration};

use support::{
    Attempt, FAMILIES, Family, LAYOUTS, Layout, Scene, Seen, check, client_of, exchange,
    policy::{from, ingress},
    translated::{WAYS, host_address, host_port, pools, published, service, virtual_address},
};

const PATIENCE: Duration = Duration::from_secs(2);

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
                    (b, Attempt::Tcp(host), Seen::Answered),
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
    let server = outside.enter(|| UdpSocket::bind("0.0.0.0:9000")).expect("a socket");
    server.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let clients = [a, b].map(|client| client.enter(|| UdpSocket::bind("0.0.0.0:5000")).expect("a socket"));
    let mut sources = Vec::new();
    for (number, client) in clients.iter().enumerate() {
        client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
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
