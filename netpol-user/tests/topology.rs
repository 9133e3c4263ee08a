//! What the other tests stand on: namespaces, endpoints that reach each other, an instance of its
//! own for each host.

mod support;

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, UdpSocket},
    path::Path,
};

use netpol_user::netns::{Namespace, cookie};
use support::{Host, Seen, pair};

#[test]
fn namespaces_are_told_apart_and_entering_moves_nobody_else() {
    let (one, two) = (Namespace::anonymous().unwrap(), Namespace::anonymous().unwrap());
    let before = cookie().unwrap();
    let of = |namespace: &Namespace| namespace.enter(|| cookie().unwrap()).unwrap();
    assert_eq!(of(&one), of(&one));
    assert_ne!(of(&one), of(&two));
    assert_ne!(of(&one), before);
    assert_eq!(cookie().unwrap(), before);
    assert_ne!(one.id().unwrap(), two.id().unwrap());
    let inside = one.enter(|| Namespace::current().unwrap().id().unwrap()).unwrap();
    assert_eq!(inside, one.id().unwrap());
}

#[test]
fn namespace_is_found_by_its_path_from_another_process() {
    let namespace = Namespace::anonymous().unwrap();
    assert_eq!(Namespace::open(namespace.path()).unwrap().id().unwrap(), namespace.id().unwrap());
    let seen = std::process::Command::new("stat").args(["-L", "-c", "%i"]).arg(namespace.path()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&seen.stdout).trim(), namespace.id().unwrap().inode.to_string());
}

#[test]
fn only_network_namespaces_are_opened_as_such() {
    for path in ["/proc/self/ns/mnt", "/dev/null", "/proc/self/status", "/"] {
        let error = Namespace::open(Path::new(path)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{path}");
    }
    assert_eq!(Namespace::open(Path::new("/run/netns/npt-nobody")).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn asynchronous_sockets_are_inside() {
    let namespace = Namespace::anonymous().unwrap();
    // its loopback is down, so nothing can be reached
    let error = namespace.block_on(async || tokio::net::TcpStream::connect("127.0.0.1:1").await.unwrap_err());
    assert_eq!(error.unwrap().kind(), ErrorKind::NetworkUnreachable);
}

#[test]
fn bridged_endpoints_reach_each_other_and_the_host() {
    let (_host, a, b) = pair();
    let _servers = (b.serve_tcp(80), b.serve_udp(53));
    for to in ["10.0.0.20", "[fd00::20]"] {
        assert_eq!(a.tcp(&format!("{to}:80")), Seen::Answered);
        assert_eq!(a.tcp(&format!("{to}:81")), Seen::Refused);
        assert_eq!(a.udp(&format!("{to}:53")), Seen::Answered);
        assert_eq!(a.udp(&format!("{to}:54")), Seen::Refused);
    }
    for to in [b.ipv4(), b.ipv6(), "10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()] {
        assert_eq!(a.ping(to), Seen::Answered, "{to}");
    }
}

#[test]
fn routed_endpoints_reach_each_other() {
    let host = Host::new();
    let a = host.routed_endpoint("a", &["10.1.0.5", "fd01::5"]);
    let b = host.routed_endpoint("b", &["10.1.0.6", "fd01::6"]);
    let _servers = (b.serve_tcp(80), b.serve_udp(53));
    for to in ["10.1.0.6", "[fd01::6]"] {
        assert_eq!(a.tcp(&format!("{to}:80")), Seen::Answered);
        assert_eq!(a.udp(&format!("{to}:53")), Seen::Answered);
    }
    for to in [b.ipv4(), b.ipv6()] {
        assert_eq!(a.ping(to), Seen::Answered, "{to}");
    }
}

#[test]
fn silence_is_told_from_refusal() {
    let (host, a, b) = pair();
    let rules = "add table bridge t; add chain bridge t c { type filter hook forward priority 0; policy drop; }";
    host.run("nft", &[rules]);
    assert_eq!(a.tcp("10.0.0.20:80"), Seen::Silent);
    assert_eq!(a.udp("[fd00::20]:53"), Seen::Silent);
    assert_eq!(a.ping(b.ipv4()), Seen::Silent);
}

#[test]
fn raw_frames_arrive_as_they_were_sent() {
    let (_host, a, b) = pair();
    let (from, to) = (a.raw(), b.raw());
    // EtherType 0x88b5 is for experiments (IEEE 802)
    let frame = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1], &[0x88, 0xb5], &[7; 46]].concat();
    from.send(&frame);
    assert_eq!(to.receive(|frame| frame[12..14] == [0x88, 0xb5]), Some(frame));
}

#[test]
fn hosts_do_not_meet() {
    let ((one, a, _), (two, _, _)) = (pair(), pair());
    assert_ne!(one.bpffs(), two.bpffs());
    assert_ne!(one.folder(), two.folder());
    let _socket = a.enter(|| UdpSocket::bind((IpAddr::from(Ipv4Addr::new(10, 0, 0, 10)), 53)).unwrap());
    assert_eq!(one.netpol(&["--version"]).code, 0);
}

#[test]
fn host_leaves_no_folder_behind() {
    let host = Host::new();
    let (folder, bpffs) = (host.folder().to_owned(), host.bpffs().to_owned());
    std::fs::create_dir(&bpffs).unwrap();
    assert!(folder.exists());
    drop(host);
    assert!(!folder.exists() && !bpffs.exists());
}
