//! `netpol top` on real traffic: the real program in a terminal, and what scripts get.
//!
//! | file | what |
//! |---|---|
//! | `sorting` | every column, in both directions |
//! | `grouping` | by ends, by service |
//! | `sparklines` | rates over time |

mod grouping;
mod sorting;
mod sparklines;

#[path = "../support/mod.rs"]
mod support;

use std::{
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::Value;
use support::{
    Attempt::{Tcp, Udp},
    Endpoint, FAMILIES, Family, Host, Scene,
    Seen::{Answered, Silent},
    check,
    policy::{from, ingress},
};

const SMALL: (u16, u16) = (24, 80);
const LARGE: (u16, u16) = (50, 200);
const COMMAND: [&str; 3] = ["top", "--interval", "0.2"];

/// `a` may reach `b` on tcp/80 and udp/53, `c` may not.
fn scene() -> Scene {
    let scene = Scene::bridged();
    scene.host.load(&scene.all(), &[ingress("b", &[from("a", &["80/TCP", "53/UDP"])])]);
    scene
}

/// One connection from `a` that is answered, one from `c` that is not.
fn talk(Scene { a, b, c, .. }: &Scene) {
    let to = || Tcp(b.at(Family::V4, 80));
    check(&[(a, to(), Answered), (c, to(), Silent)]);
}

/// A socket of `from` that has sent `count` datagrams of four bytes and got as many back.
fn echoed(from: &Endpoint, to: SocketAddr, count: usize) -> UdpSocket {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = from.enter(|| UdpSocket::bind(any)).unwrap();
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    for _ in 0..count {
        socket.send(b"ping").unwrap();
        assert_eq!(socket.recv(&mut [0; 16]).unwrap(), 4);
    }
    socket
}

fn once(host: &Host, arguments: &[&str]) -> Vec<Value> {
    let ran = host.netpol(&[&["top", "--once", "--interval", "0.2", "-o", "json"], arguments].concat());
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{}", ran.stdout);
    ran.json().as_array().unwrap().clone()
}

#[test]
fn once_tells_every_packet_and_byte_of_both_directions() {
    let scene = scene();
    let Scene { host, a, b, c, .. } = &scene;
    let _server = b.serve_udp(53);
    for family in FAMILIES {
        let to: SocketAddr = b.at(family, 53).parse().unwrap();
        let socket = echoed(a, to, 7);
        // Ethernet, IP, UDP, four bytes
        let frame = if family == Family::V4 { 14 + 20 + 8 + 4 } else { 14 + 40 + 8 + 4 };
        let port = socket.local_addr().unwrap().port();
        let rows = once(host, &["--filter", &format!("from:default/a port:{port} proto:udp to:{}", to.ip())]);
        assert_eq!(rows.len(), 1, "{rows:#?}");
        let row = &rows[0];
        let numbers = |fields: [&str; 4]| fields.map(|field| row[field].as_u64().unwrap());
        assert_eq!(numbers(["packets", "reply_packets", "bytes", "reply_bytes"]), [7, 7, 7 * frame, 7 * frame]);
        assert_eq!((&row["packets_per_second"], &row["bytes_per_second"]), (&0.0.into(), &0.0.into()));
        assert_eq!(
            (&row["verdict"], &row["is_reply"], &row["tcp_state"]),
            (&"allowed".into(), &false.into(), &Value::Null)
        );
        assert_eq!((&row["source"]["name"], &row["destination"]["name"]), (&"a".into(), &"b".into()));
        assert_eq!((&row["source"]["port"], &row["destination"]["port"]), (&port.into(), &53.into()));
        assert_eq!(row["rule"]["index"], 0);
        assert!(row["age_seconds"].as_f64().unwrap() >= 0.2, "{row:#}");
    }
    check(&[(c, Udp(b.at(Family::V4, 53)), Silent)]);
    let rows = once(host, &["--filter", "verdict:denied"]);
    assert_eq!(rows.len(), 1, "{rows:#?}");
    assert_eq!((&rows[0]["packets"], &rows[0]["reply_packets"], &rows[0]["bytes"]), (&1.into(), &0.into(), &46.into()));
    let said = rows[0]["explanation"].as_str().unwrap();
    assert!(said.starts_with("isolated by NetworkPolicy default/b-ingress-"), "{said}");
    assert!(said.ends_with(", and no rule allows udp/53 from default/c"), "{said}");
}

#[test]
fn once_tells_rates_of_what_happens_between_its_readings() {
    let scene = scene();
    let Scene { host, a, b, .. } = &scene;
    let _server = b.serve_udp(53);
    let to: SocketAddr = b.at(Family::V4, 53).parse().unwrap();
    let socket = echoed(a, to, 1);
    let stop = AtomicBool::new(false);
    let row = thread::scope(|scope| {
        scope.spawn(|| {
            // not for ever, where the other side panics
            let begin = Instant::now();
            while !stop.load(Ordering::Relaxed) && begin.elapsed() < Duration::from_secs(30) {
                socket.send(b"ping").unwrap();
                _ = socket.recv(&mut [0; 16]);
            }
        });
        let rows = once(host, &["--filter", "proto:udp"]);
        stop.store(true, Ordering::Relaxed);
        rows[0].clone()
    });
    let number = |field: &str| row[field].as_f64().unwrap();
    assert!(number("packets_per_second") > 0.0, "{row:#}");
    // All packets are of the same size. A reading may fall between the two counters of a packet: one for each
    // direction, in each of two readings, 0.2 s apart at least.
    let difference = number("bytes_per_second") - number("packets_per_second") * 46.0;
    assert!(difference.abs() <= 4.0 * 46.0 / 0.2, "{row:#}");
    assert!(number("packets") > 1.0 && number("reply_packets") > 1.0, "{row:#}");
}

#[test]
fn once_tells_the_state_of_tcp_connections() {
    let scene = scene();
    let Scene { host, a, b, .. } = &scene;
    let _server = b.serve_tcp(80);
    let mut open = a.connect(&b.at(Family::V4, 80));
    assert_eq!(support::exchange(&mut open), Answered);
    let state = || once(host, &["--filter", "port:80"])[0]["tcp_state"].as_str().unwrap().to_owned();
    assert_eq!(state(), "ESTABLISHED");
    open.shutdown(std::net::Shutdown::Write).unwrap();
    // the server closes when it sees that
    assert_eq!(std::io::Read::read(&mut open, &mut [0; 4]).unwrap(), 0);
    assert_eq!(state(), "CLOSED");
}

#[test]
fn once_prints_the_same_rows_in_every_notation() {
    let scene = scene();
    let _server = scene.b.serve_tcp(80);
    talk(&scene);
    let run = |output| scene.host.netpol(&["top", "--once", "--interval", "0.1", "--filter", "port:80", "-o", output]);
    let (json, yaml, table) = (run("json").json(), run("yaml").ok(), run("table").ok());
    let yaml: Value = serde_saphyr::from_str(&yaml).unwrap();
    let keys = |value: &Value| value[0].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!((json.as_array().unwrap().len(), keys(&json)), (yaml.as_array().unwrap().len(), keys(&yaml)));
    assert_eq!(table.lines().count(), json.as_array().unwrap().len() + 1, "{table}");
    assert!(table.contains("no rule allows tcp/80 from default/c"), "{table}");
    for key in
        ["time", "verdict", "explanation", "source", "packets_per_second", "reply_bytes", "tcp_state", "age_seconds"]
    {
        assert!(keys(&json).contains(&key.to_owned()), "{key} in {json:#}");
    }
}

#[test]
fn screen_tells_who_is_allowed_who_is_denied_and_by_what() {
    let scene = scene();
    let _server = scene.b.serve_tcp(80);
    talk(&scene);
    for size in [SMALL, LARGE] {
        let mut terminal = scene.host.terminal(size, &[], &COMMAND);
        terminal.shows(&["enforced: generation 1, 1 policy, 3 endpoints", "packets/s", "denied/s", "[1 Flows]"]);
        terminal.line(&["✓ allowed", "default/a", "default/b:80", "TCP", "default/b-ingress"]);
        terminal.line(&["✗ denied", "default/c", "default/b:80", "TCP", "default/b-ingress"]);
        if size == LARGE {
            terminal.line(&["VERDICT", "FROM", "PKT/S", "PACKETS", "BYTES", "AGE", "STATE", "RULE"]);
            terminal.line(&["✓ allowed", "CLOSED", "ingress[0] (", "load.yaml:"]);
            terminal.line(&["✗ denied", "ingress: default deny (", "load.yaml:"]);
        }
        // and the selected row in words
        terminal.keys("/verdict:denied\r");
        terminal.wait("the words of the denial", |text| {
            let text = text.replace('\n', " ");
            text.contains("isolated by NetworkPolicy default/b-ingress")
                && text.contains("no rule allows tcp/80 from default/c")
                && text.contains("1 flow,")
        });
        terminal.keys("q");
        assert!(terminal.ends_and_restores().success());
    }
}

#[test]
fn keys_and_clicks_sort_filter_and_open_details() {
    let scene = scene();
    let _server = scene.b.serve_tcp(80);
    talk(&scene);
    // hosts and bridges have things to say of their own
    let mut terminal = scene.host.terminal(LARGE, &[], &[&COMMAND[..], &["--filter", "port:80"]].concat());
    terminal.shows(&["✓ allowed", "✗ denied", "2 flows, by PKT/S ▼", "PKT/S▼"]);
    let first = |text: &str| text.lines().nth(4).unwrap_or_default().to_owned();
    terminal.click("FROM");
    let text = terminal.shows(&["by FROM ▲"]);
    assert!(first(&text).contains("default/a:"), "{text}");
    terminal.keys("r");
    let text = terminal.shows(&["by FROM ▼"]);
    assert!(first(&text).contains("default/c:"), "{text}");
    terminal.keys(">");
    terminal.shows(&["by TO ▲"]);

    terminal.keys("/\x15form:x\r");
    terminal.shows(&["column 1: no field `form:`; did you mean `from:`?"]);
    terminal.keys("\x15port:80 not verdict:denied\r");
    let text = terminal.shows(&["1 flow,", "filter: port:80 not verdict:denied"]);
    assert!(!text.contains("✗ denied"), "{text}");
    terminal.keys("\r");
    terminal.line(&["from", "default/a", "10.0.0.10", "app=a"]);
    terminal.line(&["because", "NetworkPolicy default/b-ingress", "ingress[0]", "load.yaml:"]);
    terminal.line(&["forward", "packets", "bytes", "SYN"]);
    terminal.line(&["reply", "packets", "bytes", "SYN"]);
    terminal.line(&["tcp state", "CLOSED"]);
    terminal.keys("\x1b");
    terminal.shows(&["VERDICT"]);
    terminal.keys("/\x15proto:tcp\r");
    terminal.shows(&["2 flows,"]);
    // a click on a row selects it: its verdict in words is below
    terminal.click("✗ denied");
    terminal.shows(&["isolated by NetworkPolicy default/b-ingress"]);
    terminal.click("✓ allowed");
    terminal.shows(&["✓ allowed: NetworkPolicy default/b-ingress"]);

    terminal.keys("g");
    terminal.shows(&["2 groups", "CONNS"]);
    terminal.click("2 Endpoints");
    terminal.line(&["default/b", "✓ 1", "✗ 1", "ingress"]);
    terminal.keys("3");
    terminal.line(&["✗ denied", "ingress: default deny"]);
    terminal.keys("4");
    terminal.line(&["✗ policy-ingress", "egress", "the ingress policy of the destination"]);
    terminal.keys("?");
    terminal.shows(&["proto:", "namespace/name", "another tab"]);
    terminal.keys("\x03");
    assert!(terminal.ends_and_restores().success());
}

#[test]
fn paused_screen_stays_and_goes_on_afterwards() {
    let scene = scene();
    let _server = scene.b.serve_tcp(80);
    let mut terminal = scene.host.terminal(SMALL, &[], &[&COMMAND[..], &["--filter", "proto:tcp"]].concat());
    terminal.shows(&["nothing matches the filter"]);
    terminal.keys(" ");
    terminal.shows(&["PAUSED"]);
    talk(&scene);
    // several readings would have been shown
    thread::sleep(Duration::from_secs(1));
    assert!(!terminal.text().contains("default/a"), "{}", terminal.text());
    terminal.keys(" ");
    let text = terminal.shows(&["default/a", "default/c"]);
    assert!(!text.contains("PAUSED"), "{text}");
    terminal.keys("q");
    assert!(terminal.ends_and_restores().success());
}

#[test]
fn terminal_is_restored_when_the_program_is_told_to_end() {
    let scene = scene();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let terminal = scene.host.terminal(SMALL, &[], &COMMAND);
        terminal.shows(&["enforced"]);
        terminal.signal(signal);
        assert!(terminal.ends_and_restores().success(), "{signal}");
    }
}

#[test]
fn nothing_enforced_is_said_and_loads_are_followed() {
    let scene = Scene::bridged();
    let mut terminal = scene.host.terminal(SMALL, &[], &COMMAND);
    terminal.shows(&["NOT ENFORCED", "netpol load PATH"]);
    scene.host.load(&scene.all(), &[ingress("b", &[])]);
    terminal.shows(&["enforced: generation 1"]);
    check(&[(&scene.a, Tcp(scene.b.at(Family::V4, 80)), Silent)]);
    terminal.line(&["✗ denied", "default/a"]);
    scene.host.load(&scene.all(), &[ingress("b", &[]), ingress("c", &[])]);
    // what was remembered is of the policy before
    terminal.line(&["~ denied", "default/a", "a policy of before"]);
    scene.host.netpol(&["unload"]).ok();
    terminal.shows(&["NOT ENFORCED"]);
    terminal.keys("q");
    assert!(terminal.ends_and_restores().success());
}

#[test]
fn without_colour_the_words_and_symbols_are_the_same() {
    let scene = scene();
    let _server = scene.b.serve_tcp(80);
    talk(&scene);
    let mut terminal = scene.host.terminal(SMALL, &[("NO_COLOR", "1")], &COMMAND);
    terminal.shows(&["✓ allowed", "✗ denied"]);
    assert!(!terminal.has_colour());
    terminal.keys("q");
    terminal.ends_and_restores();
    let mut terminal = scene.host.terminal(SMALL, &[], &COMMAND);
    terminal.shows(&["✓ allowed", "✗ denied"]);
    assert!(terminal.has_colour());
    terminal.keys("q");
    terminal.ends_and_restores();
}

#[test]
fn every_flow_is_read_once_also_where_there_are_many() {
    const PORTS: std::ops::Range<u16> = 10_000..20_000;
    let scene = Scene::bridged();
    let Scene { host, a, b, .. } = &scene;
    host.load(&scene.all(), &[]);
    for family in FAMILIES {
        let any = if family == Family::V4 { "0.0.0.0:0" } else { "[::]:0" };
        let socket = a.enter(|| UdpSocket::bind(any)).unwrap();
        for port in PORTS {
            socket.send_to(b"ping", (b.ip(family), port)).unwrap();
        }
        // two entries each: several reads of the map
        let rows = once(host, &["--filter", &format!("proto:udp to:{}", b.ip(family))]);
        let mut ports: Vec<_> = rows.iter().map(|row| row["destination"]["port"].as_u64().unwrap()).collect();
        ports.sort_unstable();
        assert_eq!(ports, PORTS.map(u64::from).collect::<Vec<_>>());
        assert!(rows.iter().all(|row| row["packets"] == 1 && row["reply_packets"] == 0));
        let flows = host.netpol(&["flows", "--filter", &format!("proto:udp to:{}", b.ip(family)), "-o", "json"]).json();
        assert_eq!(flows.as_array().unwrap().len(), PORTS.len());
    }
}

#[test]
fn once_warns_where_it_is_not_enforced() {
    let scene = scene();
    let index = scene.host.net(async |net| net.index("v-b").await);
    std::fs::remove_file(scene.host.bpffs().join(format!("links/{index}-from_workload"))).unwrap();
    let begin = Instant::now();
    // the kernel takes some time to put a link away
    while scene.host.enforced() {
        assert!(begin.elapsed() < Duration::from_secs(10), "still enforced");
    }
    let ran = scene.host.netpol(&["top", "--once", "--interval", "0.1", "-o", "json"]);
    assert!(ran.stderr.contains("NOT ENFORCED") && ran.stderr.contains("default/b"), "{ran:?}");
    assert!(ran.json().is_array());
}

#[test]
fn without_a_terminal_top_says_what_to_use() {
    let scene = scene();
    let ran = scene.host.netpol(&["top"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("top --once"), "{ran:?}");
    for wrong in [&["top", "-o", "json"][..], &["top", "--once", "--interval", "0"], &["top", "--filter", "form:x"]] {
        assert_eq!(scene.host.netpol(wrong).code, 2, "{wrong:?}");
    }
    assert_eq!(Host::new().netpol(&["top", "--once"]).code, 1);
}

/// A service at 10.96.0.10: port 80 goes to 80 of `b`.
const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.96.0.10, \
                       selector: {app: b}, ports: [{port: 80}]}\n";

#[test]
fn services_have_a_tab_with_what_goes_through_them() {
    let scene = Scene::bridged();
    let Scene { host, a, b, .. } = &scene;
    host.load(&scene.all(), &[SERVICE.to_owned()]);
    let _server = b.serve_tcp(80);
    let mut open = a.connect("10.96.0.10:80");
    assert_eq!(support::exchange(&mut open), Answered);
    let rows = once(host, &["--tab", "services"]);
    assert_eq!(rows.len(), 1, "{rows:#?}");
    assert_eq!((&rows[0]["name"], &rows[0]["connections"]["open"]), (&"web".into(), &1.into()));
    assert_eq!(rows[0]["backends"][0]["seen"], "answering");
    assert!(rows[0]["packets"].as_u64() > Some(1) && rows[0]["packets_per_second"].is_number(), "{rows:#?}");
    let table = host.netpol(&["top", "--once", "--interval", "0.1", "--tab", "services"]).ok();
    assert!(table.lines().nth(1).is_some_and(|line| line.contains("✓ 1/1")), "{table}");

    // and its connections, among the others
    let mut terminal = host.terminal(LARGE, &[], &[&COMMAND[..], &["--filter", "port:80 proto:tcp"]].concat());
    terminal.line(&["TO", "TRANSLATED"]);
    terminal.line(&["✓ allowed", "default/a", "default/b:80", "default/web:80"]);
    terminal.keys("\r");
    terminal.line(&["service", "default/web:80"]);
    terminal.line(&["leaves as", "10.0.0.10:", "> 10.0.0.20:80"]);
    terminal.keys("\x03");
    assert!(terminal.ends_and_restores().success());

    for size in [SMALL, LARGE] {
        let mut terminal = host.terminal(size, &[], &COMMAND);
        terminal.shows(&["5 Services"]);
        terminal.keys("5");
        terminal.line(&["SERVICE", "PORT", "OPEN"]);
        terminal.line(&["default/web", "80/tcp"]);
        terminal.shows(&["[5 Services]", "1 row, by PKT/S ▼", "default/b:80; connections: 1 open"]);
        terminal.keys("\r");
        terminal.line(&["backends", "default/b:80"]);
        terminal.line(&["published", "10.96.0.10:80"]);
        terminal.keys("q");
        assert!(terminal.ends_and_restores().success());
    }
    // the tab to begin with
    let mut terminal = host.terminal(SMALL, &[], &[&COMMAND[..], &["--tab", "services"]].concat());
    terminal.shows(&["[5 Services]", "default/web"]);
    terminal.keys("q");
    assert!(terminal.ends_and_restores().success());
}

#[test]
fn once_prints_every_tab() {
    let scene = scene();
    let _server = scene.b.serve_tcp(80);
    talk(&scene);
    let endpoints = once(&scene.host, &["--tab", "endpoints"]);
    let sums = endpoints.iter().find(|row| row["name"] == "b").expect("b");
    assert_eq!((&sums["allowed"]["connections"], &sums["denied"]["connections"]), (&1.into(), &1.into()), "{sums:#}");
    let rules = once(&scene.host, &["--tab", "rules"]);
    assert!(rules.iter().any(|row| row["verdict"] == "denied" && row["rule"]["index"].is_null()), "{rules:#?}");
    let drops = once(&scene.host, &["--tab", "drops"]);
    assert_eq!((&drops[0]["reason"], &drops[0]["direction"]), (&"policy-ingress".into(), &"egress".into()));
    assert!(once(&scene.host, &["--tab", "services"]).is_empty());
}

#[test]
fn what_audited_policies_would_drop_is_marked() {
    let scene = Scene::bridged();
    let Scene { host, a, b, .. } = &scene;
    let audited =
        ingress("b", &[]).replacen("metadata: {", "metadata: {annotations: {netpol.dev/audit: \"true\"}, ", 1);
    host.load(&scene.all(), &[audited]);
    let _server = b.serve_tcp(80);
    check(&[(a, Tcp(b.at(Family::V4, 80)), Answered)]);
    let mut terminal = host.terminal(SMALL, &[], &[&COMMAND[..], &["--filter", "verdict:would-drop"]].concat());
    terminal.line(&["! audited", "default/a", "default/b:80", "default/b-ingress"]);
    terminal.shows(&["it passes, and would be denied"]);
    terminal.keys("3");
    terminal.line(&["! audited", "ingress: default deny"]);
    terminal.keys("4");
    terminal.line(&["! policy-ingress", "egress"]);
    terminal.keys("q");
    assert!(terminal.ends_and_restores().success());
}
