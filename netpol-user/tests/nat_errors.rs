//! ICMP errors about translated packets reach the socket that they are about: paths with a smaller MTU, hop limits,
//! ports where nobody listens.

mod support;

use std::{
    io::{self, ErrorKind, IoSliceMut},
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};
use support::{
    Endpoint, FAMILIES, Family, LAYOUTS, Layout, Scene,
    bulk::{Transferred, mtu, transfer},
    translated::{NARROW, WAYS, host_address, host_port},
};

const PATIENCE: Duration = Duration::from_secs(2);
const BULK: usize = 300_000;
const WIDE: u32 = 1_500;

/// Both layouts in every way of forwarding, with a machine far away.
fn every_way(mtu: u32, test: impl Fn(&Scene, &Endpoint, &str)) {
    for layout in LAYOUTS {
        let scene = Scene::new(layout);
        let far = scene.far(mtu);
        scene.unlimited_errors(&[&far.namespace]);
        for way in WAYS {
            scene.load_translated(layout, way);
            test(&scene, &far, &format!("{layout:?} {way:?}"));
            forget(&scene.a);
            forget(&scene.b);
        }
    }
}

/// A socket that is told of all errors, connected.
fn telling(client: &Endpoint, to: &str) -> UdpSocket {
    let to: SocketAddr = to.parse().expect("an address");
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    told_of(client.enter(|| UdpSocket::bind(any)).expect("a socket"), to)
}

fn told_of(socket: UdpSocket, peer: SocketAddr) -> UdpSocket {
    let told = match peer {
        SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4RecvErr, &true),
        SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvErr, &true),
    };
    told.expect("IP_RECVERR");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket.connect(peer).expect("an address");
    socket
}

/// An error that a socket was told of.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    /// Who sent it.
    by: IpAddr,
    kind: u8,
    code: u8,
    /// To whom the packet was that it is about.
    about: SocketAddr,
}

/// The next error, within a bounded time.
#[track_caller]
fn told(socket: &UdpSocket) -> Told {
    let begin = Instant::now();
    loop {
        match next_error(socket) {
            Ok(told) => return told,
            Err(error) => assert!(begin.elapsed() < PATIENCE, "told of no error: {error}"),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn next_error(socket: &UdpSocket) -> io::Result<Told> {
    let mut payload = [0; 2_048];
    let mut parts = [IoSliceMut::new(&mut payload)];
    let mut space = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6);
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let about = message.address.and_then(|address| {
        let four = address.as_sockaddr_in().map(|address| SocketAddr::from((address.ip(), address.port())));
        four.or_else(|| address.as_sockaddr_in6().map(|address| SocketAddr::from((address.ip(), address.port()))))
    });
    let told = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4RecvErr(error, Some(by)) => {
            Some((IpAddr::from(u32::from_be(by.sin_addr.s_addr).to_be_bytes()), error))
        }
        ControlMessageOwned::Ipv6RecvErr(error, Some(by)) => Some((IpAddr::from(by.sin6_addr.s6_addr), error)),
        _ => None,
    });
    let (by, error) = told.ok_or_else(|| io::Error::other("an error without its sender"))?;
    let about = about.ok_or_else(|| io::Error::other("an error about nobody"))?;
    Ok(Told { by, kind: error.ee_type, code: error.ee_code, about })
}

#[test]
fn a_client_behind_masquerade_learns_of_a_smaller_mtu() {
    every_way(NARROW, |scene, far, way| {
        for family in FAMILIES {
            let transferred = transfer(far, 9000, &scene.a, &far.at(family, 9000), BULK);
            assert_eq!(transferred, Transferred { client_mtu: NARROW, server_mtu: WIDE }, "{way} {family:?}");
        }
    });
}

#[test]
fn a_backend_behind_a_published_port_learns_of_a_smaller_mtu() {
    every_way(NARROW, |scene, far, way| {
        for family in FAMILIES {
            let transferred = transfer(&scene.b, 8080, far, &host_port(family), BULK);
            assert_eq!(transferred, Transferred { client_mtu: WIDE, server_mtu: NARROW }, "{way} {family:?}");
        }
    });
}

#[test]
fn a_datagram_too_large_for_the_path_is_told_of_at_its_own_socket_alone() {
    every_way(NARROW, |scene, far, way| {
        for family in FAMILIES {
            let to = far.at(family, 9000);
            let (socket, other) = (telling(&scene.a, &to), telling(&scene.a, &to));
            for socket in [&socket, &other] {
                never_fragment(socket);
            }
            socket.send(&[0; 1_400]).expect("the first one is too large for nobody yet");
            let told = told(&socket);
            let (kind, code) = if family == Family::V4 { (3, 4) } else { (2, 0) };
            let by = scene.outside.ip(family);
            let about = to.parse().expect("an address");
            assert_eq!(told, Told { by, kind, code, about }, "{way} {family:?}");
            assert_eq!(mtu(&socket).expect("its MTU"), NARROW, "{way} {family:?}");
            let error = next_error(&other).expect_err("it is not about the other one's");
            assert_eq!(error.kind(), ErrorKind::WouldBlock, "{way} {family:?}");
        }
    });
}

/// IP_MTU_DISCOVER and IPV6_MTU_DISCOVER: "do".
fn never_fragment(socket: &UdpSocket) {
    let four = socket.peer_addr().expect("connected").is_ipv4();
    let (level, name) =
        if four { (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER) } else { (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER) };
    let value: libc::c_int = libc::IP_PMTUDISC_DO;
    // SAFETY: the pointer and the length are those of a local that outlives the call.
    let set = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), 4) };
    assert_eq!(set, 0, "{}", io::Error::last_os_error());
}

#[test]
fn a_route_is_traced_through_masquerade() {
    every_way(WIDE, |scene, far, way| {
        for family in FAMILIES {
            // the port of classic traceroute, where nobody listens
            let to = far.at(family, 33_434);
            let about: SocketAddr = to.parse().expect("an address");
            let mut hops = vec![];
            for limit in 1..=8 {
                let socket = telling(&scene.a, &to);
                hop_limit(&socket, limit);
                socket.send(b"who is there?").expect("a datagram");
                let told = told(&socket);
                assert_eq!(told.about, about, "{way} {family:?}: {told:?}");
                let is_exceeded = told.kind == if family == Family::V4 { 11 } else { 3 };
                hops.push(told.by);
                if !is_exceeded {
                    break;
                }
            }
            // the host, where it routes, is the first hop
            let end = hops.split_off(hops.len().saturating_sub(2));
            assert_eq!(end, [scene.outside.ip(family), far.ip(family)], "{way} {family:?}, after {hops:?}");
            assert!(hops.len() <= 1, "{way} {family:?}: {hops:?}");
        }
    });
}

#[test]
fn a_route_is_traced_through_a_published_port() {
    every_way(WIDE, |scene, far, way| {
        for family in FAMILIES {
            // nobody listens behind it
            let to = host_port(family);
            let about: SocketAddr = to.parse().expect("an address");
            let mut hops = vec![];
            for limit in 1..=8 {
                let socket = telling(far, &to);
                hop_limit(&socket, limit);
                socket.send(b"who is there?").expect("a datagram");
                let told = told(&socket);
                assert_eq!(told.about, about, "{way} {family:?}: {told:?}");
                hops.push(told.by);
                if told.kind != if family == Family::V4 { 11 } else { 3 } {
                    break;
                }
            }
            // the host is a hop where it routes; what it leads on directly keeps its hop limit
            let [router, rest @ ..] = &hops[..] else { panic!("{way} {family:?}: nobody tells") };
            assert!(![host_address(family), scene.outside.ip(family)].contains(router), "{way} {family:?}: {hops:?}");
            let is_stack = way.contains("stack");
            let expected = vec![host_address(family); if is_stack { 2 } else { 1 }];
            assert_eq!(rest, expected, "{way} {family:?}");
        }
    });
}

#[test]
fn a_backend_is_told_of_answers_that_do_not_get_far() {
    every_way(WIDE, |scene, far, way| {
        for family in FAMILIES {
            let any = if family == Family::V4 { "0.0.0.0:8080" } else { "[::]:8080" };
            let server = scene.b.enter(|| UdpSocket::bind(any)).expect("a socket");
            server.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            let client = telling(far, &host_port(family));
            client.send(b"question").expect("a datagram");
            let (_, about) = server.recv_from(&mut [0; 16]).expect("the question");
            assert_eq!(about.ip(), far.ip(family), "{way} {family:?}");
            let server = told_of(server, about);
            // as far as the router behind the host
            hop_limit(&server, 2);
            server.send(b"answer").expect("a datagram");
            let kind = if family == Family::V4 { 11 } else { 3 };
            assert_eq!(told(&server), Told { by: scene.outside.ip(family), kind, code: 0, about }, "{way} {family:?}");
        }
    });
}

fn hop_limit(socket: &UdpSocket, limit: u32) {
    match socket.peer_addr().expect("connected") {
        SocketAddr::V4(_) => socket.set_ttl(limit).expect("a limit"),
        SocketAddr::V6(_) => {
            let (fd, value) = (socket.as_raw_fd(), limit as libc::c_int);
            let (level, name) = (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS);
            // SAFETY: the pointer and the length are those of a local that outlives the call.
            let set = unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), 4) };
            assert_eq!(set, 0, "{}", io::Error::last_os_error());
        }
    }
}

#[test]
fn who_sends_to_a_closed_port_through_masquerade_is_told() {
    every_way(WIDE, |scene, far, way| {
        for family in FAMILIES {
            let to = far.at(family, 9);
            let socket = telling(&scene.a, &to);
            socket.send(b"anybody?").expect("a datagram");
            let (kind, code) = if family == Family::V4 { (3, 3) } else { (1, 4) };
            let about = to.parse().expect("an address");
            assert_eq!(told(&socket), Told { by: far.ip(family), kind, code, about }, "{way} {family:?}");
        }
    });
}

#[test]
fn who_answers_a_masqueraded_client_that_is_gone_is_told() {
    every_way(WIDE, |scene, far, way| {
        for family in FAMILIES {
            let any = if family == Family::V4 { "0.0.0.0:9001" } else { "[::]:9001" };
            let server = far.enter(|| UdpSocket::bind(any)).expect("a socket");
            server.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            let client = telling(&scene.a, &far.at(family, 9001));
            client.send(b"question").expect("a datagram");
            let (_, seen) = server.recv_from(&mut [0; 16]).expect("the question");
            assert_eq!(seen.ip(), host_address(family), "{way} {family:?}");
            drop(client);
            drop(server);
            // from the port that was asked, as an answer must be
            let late = far.enter(|| UdpSocket::bind(any)).expect("a socket");
            let late = told_of(late, seen);
            late.send(b"answer").expect("a datagram");
            let (kind, code) = if family == Family::V4 { (3, 3) } else { (1, 4) };
            assert_eq!(told(&late), Told { by: seen.ip(), kind, code, about: seen }, "{way} {family:?}");
        }
    });
}

/// The host itself finds out that a translated packet is too large for the link to an endpoint, and says so to whoever
/// sent it, about what was sent.
#[test]
fn who_sends_through_a_translation_learns_of_a_smaller_mtu_behind_it() {
    let scene = Scene::new(Layout::Routed);
    let far = scene.far(WIDE);
    scene.unlimited_errors(&[&far.namespace]);
    for way in WAYS {
        scene.load_translated(Layout::Routed, way);
        for family in FAMILIES {
            for endpoint in [&scene.a, &scene.b] {
                let (address, narrow) = (endpoint.ip(family).to_string(), NARROW.to_string());
                let metric = if family == Family::V4 { "0" } else { "1" };
                let route = ["dev", &endpoint.host_interface, "metric", metric, "mtu", "lock", &narrow];
                scene.host.run("ip", &[&["route", "replace", &address], &route[..]].concat());
            }
            let published = transfer(&scene.b, 8080, &far, &host_port(family), BULK);
            let learnt = Transferred { client_mtu: NARROW, server_mtu: WIDE };
            assert_eq!(published, learnt, "published port, {way:?} {family:?}");
            forget(&far);
            let masquerade = transfer(&far, 9000, &scene.a, &far.at(family, 9000), BULK);
            let learnt = Transferred { client_mtu: WIDE, server_mtu: NARROW };
            assert_eq!(masquerade, learnt, "masquerade, {way:?} {family:?}");
            forget(&far);
        }
    }
}

/// What it has learnt of paths would save the next way the error.
fn forget(endpoint: &Endpoint) {
    endpoint.run("ip", &["route", "flush", "cache"]);
    endpoint.run("ip", &["-6", "route", "flush", "cache"]);
}
