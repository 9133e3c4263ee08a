//! A policy change is one write: connections follow it with their next packet, and whatever fails on
//! the way leaves the old policy whole.

mod support;

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use netpol_user::{
    datapath::Settings,
    enforce::{Instance, Options},
    format::{self, Source},
};
use support::{
    Attempt::{Tcp, Udp},
    Endpoint, FAMILIES, Family, Host, LAYOUTS, Layout, Scene,
    Seen::{Answered, Silent},
    check, exchange,
    policy::{documents, egress, from, ingress},
};

/// Long enough for a packet to arrive that is on its way.
const SILENCE: Duration = Duration::from_millis(300);

/// Both ends of an open connection, no echo in between: either can push.
struct Line {
    client: TcpStream,
    server: TcpStream,
}

impl Line {
    fn open(client: &Endpoint, server: &Endpoint, family: Family, port: u16) -> Self {
        let listener = server.enter(|| TcpListener::bind((server.ip(family), port))).unwrap();
        let client = client.connect(&server.at(family, port));
        let server = listener.accept().unwrap().0;
        for end in [&client, &server] {
            end.set_read_timeout(Some(SILENCE)).unwrap();
        }
        Self { client, server }
    }

    fn client_is_heard(&self) -> bool {
        heard(&self.client, &self.server)
    }

    fn server_is_heard(&self) -> bool {
        heard(&self.server, &self.client)
    }
}

fn heard(mut from: &TcpStream, mut to: &TcpStream) -> bool {
    from.write_all(b"x").unwrap();
    match to.read(&mut [0; 1]) {
        Ok(length) => length == 1,
        Err(error) if error.kind() == ErrorKind::WouldBlock => false,
        Err(error) => panic!("{error}"),
    }
}

/// Only c may call b: a is denied.
fn denied() -> Vec<String> {
    vec![ingress("b", &[from("c", &[])])]
}

fn allowed() -> Vec<String> {
    vec![ingress("b", &[from("a", &[]), from("c", &[])])]
}

fn revoked_connection_stops(layout: Layout) {
    for family in FAMILIES {
        let Scene { host, a, b, c, .. } = &Scene::new(layout);
        host.load(&[a, b, c], &allowed());
        let line = Line::open(a, b, family, 80);
        assert!(line.client_is_heard() && line.server_is_heard());
        host.load(&[a, b, c], &denied());
        // the server's push comes first: nothing that the client sends has been judged since
        let (heard, counts) = host.counted(|| line.server_is_heard());
        assert!(!heard, "{family:?}: a revoked client hears the server's push");
        assert_eq!(counts.drops(), ["egress policy-ingress"]);
        assert!(!line.client_is_heard(), "{family:?}");
        assert_eq!(host.flow("a", "b", 80)["verdict"], "denied");
    }
}

#[test]
fn revoked_connection_stops_in_both_directions_on_a_bridge() {
    revoked_connection_stops(Layout::Bridged);
}

#[test]
fn revoked_connection_stops_in_both_directions_where_the_host_routes() {
    revoked_connection_stops(Layout::Routed);
}

#[test]
fn kept_connection_lives_on_through_reloads() {
    for layout in LAYOUTS {
        let Scene { host, a, b, c, .. } = &Scene::new(layout);
        host.load(&[a, b, c], &allowed());
        let lines = FAMILIES.map(|family| Line::open(a, b, family, 80));
        let (_server, mut echo) = (b.serve_tcp(81), a.connect(&b.at(Family::V4, 81)));
        for round in 0..4 {
            let other = [allowed(), vec![ingress("c", &[])]].concat();
            host.load(&[a, b, c], &if round % 2 == 0 { other } else { allowed() });
            for line in &lines {
                assert!(line.server_is_heard() && line.client_is_heard(), "{layout:?}");
            }
            assert_eq!(exchange(&mut echo), Answered);
        }
    }
}

#[test]
fn revoked_datagrams_stop_in_both_directions() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    for family in FAMILIES {
        let bind = |endpoint: &Endpoint, port: u16| {
            let socket = endpoint.enter(|| UdpSocket::bind((endpoint.ip(family), port))).unwrap();
            socket.set_read_timeout(Some(SILENCE)).unwrap();
            socket
        };
        let heard = |from: &UdpSocket, to: &UdpSocket| {
            from.send_to(b"x", to.local_addr().unwrap()).unwrap();
            to.recv(&mut [0; 1]).is_ok()
        };
        host.load(&[a, b, c], &allowed());
        let (client, server) = (bind(a, 4000), bind(b, 53));
        assert!(heard(&client, &server) && heard(&server, &client));
        host.load(&[a, b, c], &denied());
        assert!(!heard(&server, &client), "{family:?}: an answer to a revoked question arrives");
        assert!(!heard(&client, &server));
        host.load(&[a, b, c], &allowed());
        assert!(heard(&client, &server) && heard(&server, &client));
    }
}

#[test]
fn revoked_by_the_clients_egress_stops_too() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    host.load(&[a, b, c], &[]);
    let line = Line::open(a, b, Family::V4, 80);
    host.load(&[a, b, c], &[egress("a", &[])]);
    let (heard, counts) = host.counted(|| line.server_is_heard() || line.client_is_heard());
    assert!(!heard);
    assert_eq!(counts.drops(), ["egress policy-egress"]);
    // what the denied client may still do is answer
    let other = Line::open(b, a, Family::V4, 80);
    assert!(other.client_is_heard() && other.server_is_heard());
}

fn first_load_over_live_connections(layout: Layout) {
    let Scene { host, a, b, c, .. } = &Scene::new(layout);
    let (bad, good) = (Line::open(a, b, Family::V4, 80), Line::open(c, b, Family::V4, 81));
    let pushed = Line::open(a, b, Family::V6, 82);
    assert!(bad.client_is_heard() && good.server_is_heard() && pushed.client_is_heard());
    host.load(&[a, b, c], &denied());
    assert!(!pushed.server_is_heard(), "a push turned a denied client into a reply");
    assert!(!bad.client_is_heard() && !bad.server_is_heard());
    assert!(good.server_is_heard() && good.client_is_heard());
    assert_eq!(host.flow("c", "b", 81)["is_reply"], false);
}

#[test]
fn first_load_on_a_bridge_keeps_allowed_connections_and_stops_denied_ones() {
    first_load_over_live_connections(Layout::Bridged);
}

#[test]
fn first_load_where_the_host_routes_keeps_allowed_connections_and_stops_denied_ones() {
    first_load_over_live_connections(Layout::Routed);
}

#[test]
fn failed_load_changes_nothing() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    let _server = b.serve_tcp(80);
    host.load(&[a, b, c], &denied());
    let generation = host.generation();
    let good = documents(&[a, b, c], &allowed());
    // a second interface to choose from
    host.net(async |net| net.veth("v-second", "eth1", &a.namespace).await);
    let two = good.replacen(", interface: eth0", "", 1);
    let wrong = [
        ("unknown field", good.replace("podSelector: {matchLabels", "podSelectors: {matchLabels"), "podSelectors"),
        ("no YAML", format!("{good}---\nkind: [\n"), ":"),
        ("a bad port", good.replace("{app: a}}}", "{app: a}}}], ports: [{port: 99999}"), "99999"),
        ("two interfaces", two, "eth1"),
        ("the same twice", format!("{good}---\n{}", a.document()), "a"),
        ("one namespace for two", format!("{good}---\n{}", a.document().replace("name: a", "name: d")), "v-a"),
    ];
    for (what, text, named) in &wrong {
        assert_ne!(*text, good, "{what}");
        let path = host.documents("wrong.yaml", text);
        let ran = host.netpol(&["load", &path]);
        assert_eq!(ran.code, 1, "{what}: {ran:?}");
        assert!(ran.stderr.contains(named), "{what}: {}", ran.stderr);
        assert_eq!(host.generation(), generation, "{what}");
    }
    assert_eq!(host.netpol(&["load", "/nonexistent.yaml"]).code, 1);
    assert_eq!(host.netpol(&["load", "--strict", &host.documents("empty.yaml", &pending())]).code, 1);
    assert_eq!(host.generation(), generation);
    assert!(host.enforced());
    check(&[(a, Tcp(b.at(Family::V4, 80)), Silent), (c, Tcp(b.at(Family::V4, 80)), Answered)]);
}

fn pending() -> String {
    "apiVersion: netpol.dev/v1\nkind: Endpoint\nmetadata: {name: gone}\nspec: {netns: npt-does-not-exist}\n".to_owned()
}

#[test]
fn same_load_again_changes_nothing() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    let first = host.load(&[a, b, c], &denied());
    assert_eq!((&first["changed"], &first["generation"]), (&true.into(), &1.into()));
    assert_eq!(first["attached"].as_array().unwrap().len(), 3);
    let again = host.load(&[a, b, c], &denied());
    assert_eq!((&again["changed"], &again["generation"]), (&false.into(), &1.into()));
    // a flag is part of what is wanted
    let other = host.load_with(&["--police-host"], &[a, b, c], &denied());
    assert_eq!((&other["changed"], &other["generation"]), (&true.into(), &2.into()));
}

#[test]
fn room_for_flows_is_that_of_the_first_load() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    let capacity = |family: &str| {
        let told = host.netpol(&["metrics", "--once"]).ok();
        let name = format!("netpol_map_capacity{{map=\"flows\",family=\"{family}\"}} ");
        told.lines().find_map(|line| line.strip_prefix(&name)).map(str::to_owned).unwrap_or_else(|| panic!("{told}"))
    };
    host.load_with(&["--flows", "10000"], &[a, b, c], &denied());
    // up to the next multiple of 32
    assert_eq!((capacity("ipv4"), capacity("ipv6")), ("10016".to_owned(), "5024".to_owned()));
    // it stays what it is, whoever asks for nothing, for the same, or for more
    host.load(&[a, b, c], &allowed());
    host.load_with(&["--flows", "10000"], &[a, b, c], &denied());
    let generation = host.generation();
    let path = host.documents("again.yaml", &documents(&[a, b, c], &allowed()));
    let more = host.netpol(&["load", &path, "--flows", "20000"]);
    assert_eq!(more.code, 1, "{more:?}");
    assert!(more.stderr.contains("FLOWS4 has room for 10016 entries, not 20000"), "{more:?}");
    assert!(more.stderr.contains("netpol unload"), "{more:?}");
    assert_eq!((host.generation(), capacity("ipv4")), (generation, "10016".to_owned()));
    host.netpol(&["unload"]).ok();
    host.load_with(&["--flows", "20000"], &[a, b, c], &allowed());
    assert_eq!(capacity("ipv4"), "20000");
    assert_eq!(host.netpol(&["load", &path, "--flows", "1"]).code, 2);
}

#[test]
fn dry_run_tells_and_changes_nothing() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    let _server = b.serve_tcp(80);
    let report = host.load_with(&["--dry-run"], &[a, b, c], &denied());
    assert_eq!((&report["changed"], &report["dry_run"]), (&true.into(), &true.into()));
    assert!(!host.bpffs().exists());
    check(&[(a, Tcp(b.at(Family::V4, 80)), Answered)]);
    host.load(&[a, b, c], &denied());
    assert_eq!(host.load_with(&["--dry-run"], &[a, b, c], &denied())["changed"], false);
    assert_eq!(host.load_with(&["--dry-run"], &[a, b, c], &allowed())["changed"], true);
    assert_eq!(host.generation(), 1);
    check(&[(a, Tcp(b.at(Family::V4, 80)), Silent)]);
}

#[test]
fn what_path_no_longer_holds_is_gone() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    let _servers = (b.serve_tcp(80), b.serve_udp(53));
    let folder = host.folder().join("wanted");
    fs::create_dir(&folder).unwrap();
    let write = |name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
    write("endpoints.yaml", &documents(&[a, b], &[]));
    write("policy.yaml", &denied()[0]);
    write("c.yaml", &c.document());
    let path = folder.to_str().unwrap();
    host.load_path(&[], path);
    check(&[(a, Tcp(b.at(Family::V4, 80)), Silent), (a, Udp(b.at(Family::V6, 53)), Silent)]);

    fs::remove_file(folder.join("policy.yaml")).unwrap();
    assert_eq!(host.load_path(&[], path)["policies"], 0);
    check(&[(a, Tcp(b.at(Family::V4, 80)), Answered), (a, Udp(b.at(Family::V6, 53)), Answered)]);

    // without its document, nothing of ours is left at c's interface
    let attached = || fs::read_dir(host.bpffs().join("links")).unwrap().count();
    assert_eq!(attached(), 6);
    fs::remove_file(folder.join("c.yaml")).unwrap();
    let report = host.load_path(&[], path);
    assert_eq!((&report["detached"], &report["endpoints"]), (&1.into(), &2.into()));
    assert_eq!(attached(), 4);
    let ((), counts) = host.counted(|| check(&[(c, Tcp(c.at(Family::V4, 1)), support::Seen::Refused)]));
    assert_eq!(counts, support::Counts::default());
}

#[test]
fn endpoint_that_went_away_is_pending_and_detached() {
    let Scene { host, a, b, c, outside } = Scene::bridged();
    let text = documents(&[&a, &b, &c], &denied());
    let path = host.documents("load.yaml", &text);
    host.load_path(&[], &path);
    drop((c, outside));
    // the namespace's end takes both ends of its veth with it
    for _ in 0..3000 {
        if !host.run("ip", &["-br", "link"]).contains("v-c") {
            break;
        }
        thread::sleep(Duration::from_millis(5));
    }
    let status = host.status();
    assert_eq!(status["pending"][0]["name"], "c", "{status:#}");
    let report = host.load_path(&[], &path);
    assert_eq!((&report["endpoints"], &report["detached"]), (&2.into(), &1.into()), "{report:#}");
    assert_eq!(report["pending"][0]["name"], "c");
    assert!(host.enforced());
    check(&[(&a, Tcp(b.at(Family::V4, 80)), Silent)]);
}

#[test]
fn endpoint_that_comes_back_at_once_is_attached_again() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    let instance = Instance::new(host.bpffs(), &host.folder().join("state"));
    let options = Options {
        settings: Settings::default(),
        attach: None,
        audit: false,
        strict: true,
        uplinks: Vec::new(),
        accept_addresses: false,
        flows: None,
        dry_run: false,
    };
    // by the library: a new process would give the kernel the time that it needs
    let load = |endpoints: &[&Endpoint]| {
        let text = documents(endpoints, &[]).into_bytes();
        let loaded = format::parse(vec![Source { name: "endpoints".to_owned(), text }]).unwrap();
        host.namespace.enter(|| instance.load(&loaded, &options, &|_, _| {})).unwrap().unwrap()
    };
    load(&[a, b, c]);
    for _ in 0..10 {
        assert_eq!(load(&[a, b]).detached, 1);
        assert_eq!(load(&[a, b, c]).attached, [c.host_interface.as_str()]);
    }
}

/// A `netpol load` on its way.
fn start(host: &Host, path: &str) -> Child {
    let state = host.folder().join("state");
    let spawn = || {
        Command::new(env!("CARGO_BIN_EXE_netpol"))
            .args(["--bpffs", host.bpffs().to_str().unwrap(), "--state", state.to_str().unwrap()])
            .args(["load", path])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
    };
    host.namespace.enter(spawn).unwrap().unwrap()
}

/// Tells which of two policies holds: a may send to 80 and not 81 (0), or to 81 and not 80 (1).
struct Witness {
    from: UdpSocket,
    to: [UdpSocket; 2],
}

impl Witness {
    fn new(a: &Endpoint, b: &Endpoint) -> Self {
        let bind = |endpoint: &Endpoint, port: u16| {
            let socket = endpoint.enter(|| UdpSocket::bind((endpoint.ipv4(), port))).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            socket
        };
        Self { from: bind(a, 4000), to: [80, 81].map(|port| bind(b, port)) }
    }

    /// Both policies at once, or none, would be a mixture.
    #[track_caller]
    fn whole(&self) -> usize {
        let heard = |to: &UdpSocket| to.recv(&mut [0; 1]).is_ok();
        // the first packet of an address may wait for its neighbour's answer
        for _ in 0..50 {
            for to in &self.to {
                self.from.send_to(b"x", to.local_addr().unwrap()).unwrap();
            }
            match self.to.each_ref().map(heard) {
                [true, false] => return 0,
                [false, true] => return 1,
                [true, true] => panic!("two policies are enforced, or none"),
                [false, false] => {}
            }
        }
        panic!("neither policy is enforced whole: nothing arrives");
    }
}

fn versions(host: &Host, endpoints: &[&Endpoint]) -> [String; 2] {
    let policy = |port: &str| ingress("b", &[from("a", &[port])]);
    [("one.yaml", policy("80/UDP")), ("two.yaml", policy("81/UDP"))]
        .map(|(name, policy)| host.documents(name, &documents(endpoints, &[policy])))
}

#[test]
fn two_loads_at_once_both_succeed_one_after_the_other() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    let witness = Witness::new(a, b);
    let versions = versions(host, &[a, b, c]);
    for round in 0..3 {
        let loads = versions.each_ref().map(|path| start(host, path));
        for load in loads {
            let ended = load.wait_with_output().unwrap();
            assert!(ended.status.success(), "round {round}: {}", String::from_utf8_lossy(&ended.stderr));
        }
        let present = witness.whole();
        assert!(host.enforced());
        // the names are those of the policy that won
        let port = 80 + u16::try_from(present).unwrap();
        assert_eq!(host.flow("a", "b", port)["verdict"], "allowed");
        assert_eq!(host.load_path(&[], &versions[present])["changed"], false);
    }
}

#[test]
fn killed_load_leaves_a_whole_policy_and_the_next_one_works() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    let witness = Witness::new(a, b);
    let versions = versions(host, &[a, b, c]);
    let mut present = 0;
    host.load_path(&[], &versions[present]);
    let mut seen = [0; 2];
    for round in 0..30 {
        let wanted = 1 - present;
        let mut load = start(host, &versions[wanted]);
        thread::sleep(Duration::from_millis(4) * round);
        load.kill().unwrap();
        load.wait().unwrap();
        let now = witness.whole();
        seen[usize::from(now == wanted)] += 1;
        // every third time somebody repairs it, else the next one meets what was left
        if round % 3 == 0 {
            host.load_path(&[], &versions[wanted]);
            assert_eq!(witness.whole(), wanted);
            assert!(host.enforced());
            present = wanted;
        } else {
            present = now;
        }
    }
    assert!(seen[0] > 0, "none was killed before its publication: {seen:?}");
    host.load_path(&[], &versions[1]);
    assert_eq!(witness.whole(), 1);
}

#[test]
fn killed_first_load_can_be_repeated() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    let witness = Witness::new(a, b);
    let [one, _] = versions(host, &[a, b, c]);
    for round in 0..8 {
        let mut load = start(host, &one);
        thread::sleep(Duration::from_millis(25) * round);
        load.kill().unwrap();
        load.wait().unwrap();
        host.load_path(&[], &one);
        assert_eq!(witness.whole(), 0, "round {round}");
        assert!(host.enforced());
        host.netpol(&["unload"]).ok();
    }
}

#[test]
fn unload_removes_everything_that_is_its_own() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    let _server = b.serve_tcp(80);
    host.load(&[a, b, c], &denied());
    check(&[(a, Tcp(b.at(Family::V4, 80)), Silent)]);
    let stranger = host.folder().join("state/notes.txt");
    fs::write(&stranger, "not netpol's").unwrap();
    host.netpol(&["unload"]).ok();
    assert!(!host.bpffs().exists());
    assert_eq!(fs::read_to_string(&stranger).unwrap(), "not netpol's");
    assert_eq!(fs::read_dir(stranger.parent().unwrap()).unwrap().count(), 1);
    // the kernel lets go of a link some time after its pin is gone
    assert!((0..20).any(|_| a.tcp(&b.at(Family::V4, 80)) == Answered), "still enforced");
    assert_eq!(host.status()["problems"][0], "nothing is loaded; run `netpol load PATH`");
    host.netpol(&["unload"]).ok();
}

#[test]
fn pins_and_names_are_their_owners_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    host.load(&[a, b, c], &denied());
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(host.bpffs()), 0o700);
    let state = host.folder().join("state");
    assert_eq!(mode(&state), 0o700);
    for entry in fs::read_dir(&state).unwrap() {
        assert_eq!(mode(&entry.unwrap().path()), 0o600);
    }
}

#[test]
fn lost_names_do_not_end_enforcement_and_load_brings_them_back() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    let _server = b.serve_tcp(80);
    host.load(&[a, b, c], &denied());
    for damage in [true, false] {
        let state = host.folder().join("state");
        if damage {
            for entry in fs::read_dir(&state).unwrap() {
                fs::write(entry.unwrap().path(), "{").unwrap();
            }
            let status = host.netpol(&["status"]);
            assert_eq!(status.code, 1);
            assert!(status.stderr.contains("the next `netpol load` writes it anew"), "{status:?}");
        } else {
            fs::remove_dir_all(&state).unwrap();
            let status = host.netpol(&["status", "-o", "json"]);
            assert_eq!((status.code, &status.json()["enforced"]), (1, &false.into()));
            assert!(status.json()["problems"][0].as_str().unwrap().contains("names"), "{}", status.stdout);
        }
        check(&[(a, Tcp(b.at(Family::V4, 80)), Silent)]);
        host.load(&[a, b, c], &denied());
        assert!(host.enforced());
        check(&[(a, Tcp(b.at(Family::V4, 80)), Silent)]);
        assert!(host.flow("a", "b", 80)["rule"]["name"].is_string());
    }
}

#[test]
fn instance_belongs_to_one_namespace() {
    let Scene { host, a, b, c, outside } = &Scene::bridged();
    host.load(&[a, b, c], &denied());
    let path = host.documents("other.yaml", &documents(&[], &denied()));
    let (bpffs, state) = (host.bpffs().to_str().unwrap(), host.folder().join("state"));
    let elsewhere = || {
        Command::new(env!("CARGO_BIN_EXE_netpol"))
            .args(["--bpffs", bpffs, "--state", state.to_str().unwrap(), "load", &path])
            .output()
    };
    let ran = outside.enter(elsewhere).unwrap();
    assert_eq!(ran.status.code(), Some(1));
    let error = String::from_utf8_lossy(&ran.stderr);
    assert!(error.contains("another network namespace"), "{error}");
    assert!(host.enforced());
}

#[test]
fn restarted_endpoint_is_told_by_status_and_protected_by_the_next_load() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    let _server = b.serve_tcp(80);
    host.load(&[a, b, c], &denied());
    // the same namespace, another veth: what a runtime does when it restarts a container's network
    host.net(async |net| net.delete("v-a").await);
    host.net(async |net| {
        net.veth("v-a", "eth0", &a.namespace).await;
        net.enslave("v-a", "br0").await;
    });
    a.net(async |net| {
        net.up("eth0").await;
        net.address("eth0", "10.0.0.10/16".parse().unwrap()).await;
        net.settle("eth0").await;
    });
    host.net(async |net| net.forwards("v-a").await);
    let status = host.netpol(&["status", "-o", "json"]);
    assert_eq!(status.code, 1, "{}", status.stdout);
    // until then nobody takes its word: b does not hear who comes over an interface that is not a's
    let ((), counts) = host.counted(|| check(&[(a, Tcp(b.at(Family::V4, 80)), Silent)]));
    assert_eq!(counts.drops(), ["ingress arp-spoofed"]);
    host.load(&[a, b, c], &allowed());
    assert!(host.enforced());
    a.run("ip", &["neigh", "flush", "dev", "eth0"]);
    check(&[(a, Tcp(b.at(Family::V4, 80)), Answered)]);
}
