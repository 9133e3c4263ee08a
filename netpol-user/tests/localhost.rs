//! The host itself reaches services, by localhost too: at its sockets, and by nobody else's.

mod support;

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use netpol_user::datapath::{Datapath, Pins, control_group};
use support::{
    Attempt, Endpoint, FAMILIES, Family, HOST, LAYOUTS, Scene, Seen, check,
    packet::{self, TCP},
    policy::{documents, from, ingress},
};

const PATIENCE: Duration = Duration::from_secs(2);
const SYN: u8 = 2;

/// `app`'s port 8080: port 80 of virtual addresses, and port 8000 of the host.
fn service(app: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {app}}}\nspec:\n  type: NodePort\n  selector: {{app: {app}}}\n  \
         clusterIPs: ['10.96.0.10', 'fd96::10']\n  clusterIP: '10.96.0.10'\n  ports:\n  \
         - {{name: t, port: 80, targetPort: 8080, nodePort: 8000, protocol: TCP}}\n  \
         - {{name: u, port: 80, targetPort: 8080, nodePort: 8000, protocol: UDP}}\n"
    )
}

/// Where it is published: at the virtual address, a loopback address, and one of the host.
fn places(family: Family) -> [String; 3] {
    let [four, six] = HOST;
    match family {
        Family::V4 => ["10.96.0.10:80".to_owned(), "127.0.0.1:8000".to_owned(), format!("{four}:8000")],
        Family::V6 => ["[fd96::10]:80".to_owned(), "[::1]:8000".to_owned(), format!("[{six}]:8000")],
    }
}

/// The same of IPv4, as an IPv6 socket writes it.
fn mapped() -> [String; 3] {
    places(Family::V4).map(|place| format!("[::ffff:{}", place.replace(':', "]:")))
}

/// A loopback address, and the port of the host.
fn localhost(family: Family) -> String {
    let [_, own, _] = places(family);
    own
}

/// Where a socket is bound that goes there.
fn any(to: &str) -> &'static str {
    if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" }
}

fn every_place() -> Vec<String> {
    FAMILIES.into_iter().flat_map(places).chain(mapped()).collect()
}

impl Scene {
    #[track_caller]
    fn load_services(&self, flags: &[&str], more: &[String]) {
        let path = self.host.documents("nat.yaml", &documents(&self.all(), more));
        self.host.netpol(&[&["load", "--uplink", "v-outside"], flags, &[&path]].concat()).ok();
    }
}

#[track_caller]
fn check_host(host: &Endpoint, seen: Seen) {
    let attempts = every_place().into_iter().flat_map(|to| [Attempt::Tcp(to.clone()), Attempt::Udp(to)]);
    let expected: Vec<_> = attempts.map(|attempt| (host, attempt, seen)).collect();
    check(&expected);
}

/// The hooks of the control group where the programs that `datapath` has open are not.
#[track_caller]
fn missing(datapath: &Datapath) -> usize {
    let group = control_group().expect("tests need a cgroup2 mount");
    datapath.missing_sockets(&group).unwrap_or_else(|error| panic!("{error}")).len()
}

fn open(scene: &Scene) -> Datapath {
    Datapath::open(&Pins::at(scene.host.bpffs())).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn the_host_reaches_a_service_at_every_place_where_it_is_published() {
    for layout in LAYOUTS {
        let scene = Scene::new(layout);
        let _servers = (scene.b.serve_tcp(8080), scene.b.serve_udp(8080));
        for way in [&[][..], &["--forwarding", "stack"]] {
            scene.load_services(way, &[service("b")]);
            check_host(&scene.host.itself(), Seen::Answered);
        }
    }
}

#[test]
fn a_socket_is_told_the_services_address_and_never_the_backends() {
    let scene = Scene::bridged();
    let host = scene.host.itself();
    let _servers = (scene.b.serve_tcp(8080), scene.b.serve_udp(8080));
    scene.load_services(&[], &[service("b")]);
    for place in every_place() {
        let to: SocketAddr = place.parse().expect("an address");
        assert_eq!(host.connect(&place).peer_addr().expect("a peer"), to);
        let [unconnected, connected] = [(); 2].map(|()| {
            let socket = host.enter(|| UdpSocket::bind(any(&place))).expect("a socket");
            socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            socket
        });
        for _ in 0..3 {
            unconnected.send_to(b"ping", to).expect("a datagram");
            assert_eq!(unconnected.recv_from(&mut [0; 8]).expect("an answer"), (4, to));
        }
        connected.connect(to).expect("a connection");
        assert_eq!(connected.peer_addr().expect("a peer"), to);
        connected.send(b"ping").expect("a datagram");
        assert_eq!(connected.recv_from(&mut [0; 8]).expect("an answer"), (4, to));
    }
}

#[test]
fn what_is_not_published_is_left_alone() {
    let scene = Scene::bridged();
    let Scene { b, .. } = &scene;
    let host = scene.host.itself();
    let _servers = (b.serve_tcp(8080), b.serve_udp(8080), host.serve_tcp(9000), host.serve_udp(9000));
    scene.load_services(&[], &[service("b")]);
    for family in FAMILIES {
        let (loopback, direct) = (localhost(family).replace("8000", "9000"), b.at(family, 8080));
        check(&[
            (&host, Attempt::Tcp(loopback.clone()), Seen::Answered),
            (&host, Attempt::Udp(loopback.clone()), Seen::Answered),
            (&host, Attempt::Tcp(direct.clone()), Seen::Answered),
            (&host, Attempt::Tcp(loopback.replace("9000", "8001")), Seen::Refused),
        ]);
        assert_eq!(host.connect(&direct).peer_addr().expect("a peer").to_string(), direct);
    }
}

#[test]
fn a_containers_own_loopback_address_is_its_own() {
    let scene = Scene::bridged();
    let Scene { a, b, .. } = &scene;
    let _servers = (b.serve_tcp(8080), b.serve_udp(8080));
    scene.load_services(&[], &[service("b")]);
    for place in ["127.0.0.1:8000", "[::1]:8000", "[::ffff:127.0.0.1]:8000"] {
        let [tcp, udp] = [Attempt::Tcp(place.to_owned()), Attempt::Udp(place.to_owned())];
        check(&[(a, tcp.clone(), Seen::Refused), (a, udp.clone(), Seen::Refused)]);
        let _own = (a.serve_tcp(8000), a.serve_udp(8000));
        check(&[(a, tcp, Seen::Answered), (a, udp, Seen::Answered)]);
    }
}

/// Whether a SYN that `outside` sends out of thin air comes to `b`.
fn reaches(scene: &Scene, family: Family, to: &str) -> bool {
    let Scene { host, b, outside, .. } = scene;
    let (sender, listener) = (outside.raw(), b.raw());
    let segment = packet::tcp(outside.socket(family, 40_000), to.parse().expect("an address"), SYN, &[]);
    sender.send(&packet::frame(host.mac("v-outside"), outside.mac(), &segment));
    // the EtherType, where the protocol is and where the source port; other connections may be closing meanwhile
    let (ethertype, at, port) = if family == Family::V4 { ([8, 0], 23, 34) } else { ([0x86, 0xdd], 20, 54) };
    let is_it = |frame: &[u8]| {
        frame.get(12..14) == Some(&ethertype)
            && frame.get(at) == Some(&TCP)
            && frame.get(port..port + 2) == Some(&40_000_u16.to_be_bytes())
    };
    listener.receive(is_it).is_some()
}

#[test]
fn what_a_neighbour_sends_to_a_loopback_address_reaches_no_backend() {
    let scene = Scene::bridged();
    scene.load_services(&[], &[service("b")]);
    for family in FAMILIES {
        let [_, own, address] = places(family);
        assert!(!reaches(&scene, family, &own), "{family:?}");
        assert!(reaches(&scene, family, &address), "{family:?}");
    }
}

/// What Docker's `-p 127.0.0.1:8000:8080` does.
#[test]
fn what_is_published_on_localhost_alone_only_the_host_itself_reaches() {
    let scene = Scene::bridged();
    let Scene { host, a, b, outside, .. } = &scene;
    let _servers = (b.serve_tcp(8080), b.serve_udp(8080));
    let itself = host.itself();
    let local = "apiVersion: v1\nkind: Service\nmetadata: {name: local}\nspec:\n  selector: {app: b}\n  \
                 externalIPs: ['127.0.0.1', '::1']\n  ports:\n  \
                 - {name: t, port: 8000, targetPort: 8080, protocol: TCP}\n  \
                 - {name: u, port: 8000, targetPort: 8080, protocol: UDP}\n";
    scene.load_services(&[], &[local.to_owned()]);
    for family in FAMILIES {
        let [_, own, address] = places(family);
        for (from, to, seen) in [
            (&itself, &own, Seen::Answered),
            (&itself, &address, Seen::Refused),
            (a, &address, Seen::Refused),
            (a, &own, Seen::Refused),
            (outside, &address, Seen::Refused),
        ] {
            check(&[(from, Attempt::Tcp(to.clone()), seen), (from, Attempt::Udp(to.clone()), seen)]);
        }
        assert!(!reaches(&scene, family, &own), "{family:?}");
    }
}

#[test]
fn instances_beside_each_other_have_each_its_own_hosts_sockets() {
    let (one, other) = (Scene::bridged(), Scene::bridged());
    let _servers = (one.b.serve_tcp(8080), one.b.serve_udp(8080));
    one.load_services(&[], &[service("b")]);
    // nobody listens on this one's backend
    other.load_services(&[], &[service("a")]);
    check_host(&one.host.itself(), Seen::Answered);
    check_host(&other.host.itself(), Seen::Refused);
    other.host.netpol(&["unload"]).ok();
    check_host(&one.host.itself(), Seen::Answered);
}

#[test]
fn a_service_without_backend_refuses_at_once() {
    let scene = Scene::bridged();
    scene.load_services(&[], &[service("nobody")]);
    let begin = Instant::now();
    check_host(&scene.host.itself(), Seen::Refused);
    for place in every_place() {
        let socket = scene.host.itself().enter(|| UdpSocket::bind(any(&place))).expect("a socket");
        let error = socket.send_to(b"ping", &place).expect_err("nobody is there");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{place}");
    }
    assert!(begin.elapsed() < PATIENCE);
}

#[test]
fn a_policed_host_is_denied_by_localhost_as_by_any_other_route() {
    for layout in LAYOUTS {
        let scene = Scene::new(layout);
        let host = scene.host.itself();
        let _servers = (scene.b.serve_tcp(8080), scene.b.serve_udp(8080));
        let denied = [service("b"), ingress("b", &[from("c", &["8080/TCP", "8080/UDP"])])];
        scene.load_services(&["--police-host"], &denied);
        check_host(&host, Seen::Silent);
        scene.load_services(&[], &denied);
        check_host(&host, Seen::Answered);
    }
}

#[test]
fn programs_are_attached_while_something_is_published() {
    let scene = Scene::bridged();
    scene.load_services(&[], &[]);
    let datapath = open(&scene);
    assert_eq!(missing(&datapath), 8);
    scene.load_services(&[], &[service("b")]);
    assert_eq!(missing(&datapath), 0);
    assert!(scene.host.enforced());
    scene.load_services(&[], &[]);
    assert_eq!(missing(&datapath), 8);
    scene.load_services(&[], &[service("b")]);
    assert_eq!(missing(&datapath), 0);
    scene.host.netpol(&["unload"]).ok();
    assert_eq!(missing(&datapath), 8, "also while somebody has the programs open");
    assert!(!scene.host.bpffs().exists(), "nothing stays pinned");
}

#[test]
fn another_builds_programs_are_replaced_in_place() {
    let scene = Scene::bridged();
    scene.load_services(&[], &[service("b")]);
    let before = open(&scene);
    let pins = Pins::at(scene.host.bpffs());
    let mut after = Datapath::open_or_load(&pins, None, None).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((missing(&before), missing(&after)), (0, 8));
    let group = control_group().expect("tests need a cgroup2 mount");
    let is_new = scene.host.namespace.enter(|| after.attach_sockets(&group)).expect("entering a network namespace");
    assert!(!is_new.unwrap_or_else(|error| panic!("{error}")), "the links are the same");
    assert_eq!((missing(&before), missing(&after)), (8, 0));
}

#[test]
fn a_link_that_is_lost_is_a_problem_that_the_next_load_mends() {
    let scene = Scene::bridged();
    let _server = scene.b.serve_tcp(8080);
    scene.load_services(&[], &[service("b")]);
    for (family, hook) in FAMILIES.into_iter().zip(["connect4", "connect6"]) {
        let datapath = open(&scene);
        std::fs::remove_file(scene.host.bpffs().join(format!("links/cgroup-{hook}"))).expect("the pin");
        // the kernel ends it some time after
        let begin = Instant::now();
        while missing(&datapath) == 0 && begin.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(1));
        }
        let status = scene.host.status();
        let problem = status["problems"][0].as_str().expect("a problem");
        let lost = format!("the host itself does not reach services: nothing is attached to {hook} at /");
        assert!(problem.starts_with(&lost), "{problem}");
        scene.load_services(&[], &[service("b")]);
        assert!(scene.host.enforced());
        check(&[(&scene.host.itself(), Attempt::Tcp(localhost(family)), Seen::Answered)]);
    }
}

#[test]
fn without_control_groups_the_host_is_told_and_all_else_works() {
    let scene = Scene::bridged();
    let Scene { host, a, b, .. } = &scene;
    let _server = b.serve_tcp(8080);
    let path = host.documents("nat.yaml", &documents(&scene.all(), &[service("b")]));
    let (bpffs, state) = (host.bpffs().display().to_string(), host.folder().join("state").display().to_string());
    let netpol = env!("CARGO_BIN_EXE_netpol");
    // in a mount namespace of its own
    let script = "umount -l -a -t cgroup2 && exec \"$@\"";
    let flags = ["-m", "sh", "-ec", script, "sh", netpol, "--bpffs", &bpffs, "--state", &state];
    let ran = host.command("unshare", &[&flags[..], &["load", "--uplink", "v-outside", &path]].concat());
    let text = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{text}");
    assert!(text.contains("no file system of type cgroup2 is mounted"), "{text}");
    for family in FAMILIES {
        let [to, own, _] = places(family);
        check(&[(a, Attempt::Tcp(to), Seen::Answered), (&host.itself(), Attempt::Tcp(own), Seen::Refused)]);
    }
    let ran = host.command("unshare", &[&flags[..], &["status"]].concat());
    let text = String::from_utf8_lossy(&ran.stdout);
    assert!(text.contains("no file system of type cgroup2 is mounted"), "{text}");
}

/// A socket of the host's that is connected, by TCP and by UDP, and has been answered by both.
struct Pair {
    tcp: TcpStream,
    udp: UdpSocket,
}

impl Pair {
    #[track_caller]
    fn open(host: &Endpoint, to: &str) -> Self {
        let udp = host.enter(|| UdpSocket::bind(any(to))).expect("a socket");
        udp.connect(to).expect("a connection");
        udp.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let tcp = host.connect(to);
        tcp.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut pair = Self { tcp, udp };
        assert_eq!(pair.outcome(), [None, None], "{to}");
        pair
    }

    /// What becomes of something that is sent and echoed.
    fn outcome(&mut self) -> [Option<ErrorKind>; 2] {
        let mut answer = [0; 4];
        let tcp = self.tcp.write_all(b"ping").and_then(|()| self.tcp.read_exact(&mut answer));
        let lost = self.udp.take_error().expect("its error");
        let udp = lost.map_or_else(|| self.udp.send(b"ping").and_then(|_| self.udp.recv(&mut answer)), Err);
        [tcp.err().map(|error| error.kind()), udp.err().map(|error| error.kind())]
    }
}

#[test]
fn connected_sockets_of_a_removed_backend_are_closed_and_no_others() {
    let scene = Scene::bridged();
    let Scene { a, b, c, .. } = &scene;
    let host = scene.host.itself();
    let servers = [a, b, c].map(|endpoint| (endpoint.serve_tcp(8080), endpoint.serve_udp(8080)));
    let other =
        service("b").replace("10.96.0.10", "10.96.0.11").replace("fd96::10", "fd96::11").replace("8000", "8001");
    let load = |services: &[String]| {
        let path = scene.host.documents("nat.yaml", &documents(&scene.all(), services));
        scene.host.netpol(&["load", "--uplink", "v-outside", "-o", "json", &path]).json()
    };
    // it goes on to another backend, or is none any more
    let web = |app: &str| service(app).replace(&format!("{{name: {app}}}"), "{name: web}");
    for after in [vec![web("c"), other.clone()], vec![other.clone()]] {
        load(&[web("a"), other.clone()]);
        let mut former: Vec<_> = every_place().iter().map(|place| Pair::open(&host, place)).collect();
        let kept = ["10.96.0.11:80", "[fd96::11]:80", "127.0.0.1:8001", "[::1]:8001"].into_iter().map(str::to_owned);
        // whoever has asked for the backend itself goes on, too
        let direct = FAMILIES.map(|family| a.at(family, 8080));
        let mut kept: Vec<_> = kept.chain(direct).map(|place| Pair::open(&host, &place)).collect();
        let report = load(&after);
        assert_eq!((&report["closed_sockets"], &report["warnings"]), (&18.into(), &serde_json::json!([])), "{report}");
        for pair in &mut former {
            assert_eq!(pair.outcome(), [Some(ErrorKind::ConnectionAborted); 2]);
        }
        for pair in &mut kept {
            assert_eq!(pair.outcome(), [None, None]);
        }
        assert_eq!(load(&after)["closed_sockets"], 0);
    }
    drop(servers);
}

#[test]
fn a_former_backend_is_told_that_the_hosts_connection_has_ended() {
    let scene = Scene::bridged();
    let host = scene.host.itself();
    let listener = scene.a.enter(|| TcpListener::bind("[::]:8080")).expect("a listener");
    scene.load_services(&[], &[service("a")]);
    let clients = every_place().into_iter().map(|place| host.connect(&place));
    let opened: Vec<_> = clients.map(|client| (client, listener.accept().expect("the connection").0)).collect();
    scene.load_services(&[], &[service("b")]);
    for (client, mut accepted) in opened {
        accepted.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let place = client.peer_addr();
        assert_eq!(accepted.read(&mut [0; 4]).expect_err("an end").kind(), ErrorKind::ConnectionReset, "{place:?}");
    }
}

#[test]
fn sockets_of_the_host_that_are_connected_with_a_service_are_counted_while_they_are() {
    let scene = Scene::bridged();
    let Scene { host, a, b, .. } = &scene;
    let _servers = (b.serve_tcp(8080), b.serve_udp(8080));
    scene.load_services(&[], &[service("b")]);
    let counted = || {
        let rows = host.netpol(&["services", "-o", "json"]).json();
        let of = |name: &str| {
            let row = rows.as_array().and_then(|rows| rows.iter().find(|row| row["port_name"] == name)).expect("a row");
            row["host_connections"].as_u64().expect("a number")
        };
        (of("t"), of("u"))
    };
    assert_eq!(counted(), (0, 0));
    // who asks for the backend itself, and others than the host, are none
    let _others = FAMILIES.map(|family| {
        let [to, ..] = places(family);
        (host.itself().connect(&b.at(family, 8080)), a.connect(&to))
    });
    let pairs: Vec<_> = every_place().iter().map(|place| Pair::open(&host.itself(), place)).collect();
    assert_eq!(counted(), (9, 9));
    assert!(host.netpol(&["services"]).ok().contains("2 open, 9 of the host"));
    drop(pairs);
    let begin = Instant::now();
    // TCP that was closed may wait for the other end
    while counted() != (0, 0) {
        assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", counted());
    }
}
