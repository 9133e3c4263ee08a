//! `netpol metrics`: what Prometheus is told is what the kernel counted, of traffic that is real.

mod support;

use std::{collections::BTreeMap, fs, net::UdpSocket, path::Path};

use netpol_common::denial;
use support::{
    Attempt::Tcp,
    Family, Host, Scene,
    Seen::{Answered, Silent},
    check,
    policy::{from, ingress},
};

/// Series and their values.
fn series(text: &str) -> BTreeMap<String, f64> {
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
            (series.to_owned(), value.parse().unwrap_or_else(|error| panic!("{line}: {error}")))
        })
        .collect()
}

fn once(host: &Host) -> BTreeMap<String, f64> {
    series(&host.netpol(&["metrics", "--once"]).ok())
}

fn packets(direction: &str, verdict: &str, reason: &str) -> String {
    format!("netpol_packets_total{{direction=\"{direction}\",verdict=\"{verdict}\",reason=\"{reason}\"}}")
}

/// `b` answers `a` on port 80 and nobody else.
fn loaded() -> Scene {
    let scene = Scene::bridged();
    scene.host.load(&[&scene.a, &scene.b, &scene.c], &[ingress("b", &[from("a", &["80/TCP"])])]);
    scene
}

#[test]
fn packets_are_what_the_classifiers_counted() {
    let Scene { host, a, b, c, .. } = &loaded();
    let _server = b.serve_tcp(80);
    let before = once(host);
    let (_, counted) = host.counted(|| {
        check(&[(a, Tcp(b.at(Family::V4, 80)), Answered), (c, Tcp(b.at(Family::V4, 80)), Silent)]);
    });
    let after = once(host);
    let grown = |series: &str| (after[series] - before[series]) as u64;
    let dropped = packets("egress", "dropped", "policy-ingress");
    assert!(grown(&dropped) > 0);
    assert_eq!(grown(&dropped), counted.of("egress dropped policy-ingress"));
    assert_eq!(grown(&packets("egress", "passed", "direct")), counted.of("egress passed direct"));
    assert_eq!(after[&packets("ingress", "dropped", "spoofed")], 0.0);
}

#[test]
fn numbers_of_verdicts_flows_and_rules_are_exactly_what_was_sent() {
    const DATA: &[u8] = b"eight by";
    // Ethernet, IPv4 and UDP headers in front
    const FRAME: u64 = 14 + 20 + 8 + DATA.len() as u64;
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    host.load(&[a, b, c], &[ingress("b", &[from("a", &["9000/UDP"])])]);
    let _silent = b.enter(|| UdpSocket::bind("0.0.0.0:9000")).unwrap();
    let before = once(host);
    for (client, count) in [(a, 500), (c, 700)] {
        let socket = client.enter(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
        for _ in 0..count {
            socket.send_to(DATA, b.at(Family::V4, 9000)).unwrap();
        }
    }
    let after = once(host);
    let grown = |series: &str| (after[series] - before[series]) as u64;
    let (passed, dropped) = (packets("egress", "passed", "direct"), packets("egress", "dropped", "policy-ingress"));
    let bytes = |series: &str| series.replace("packets_total", "bytes_total");
    assert_eq!((grown(&passed), grown(&bytes(&passed))), (500, 500 * FRAME));
    assert_eq!((grown(&dropped), grown(&bytes(&dropped))), (700, 700 * FRAME));
    let rule = |family: &str, rule: &str| {
        let wanted = |name: &&String| name.starts_with(family) && name.contains(&format!("rule=\"{rule}\""));
        after[after.keys().find(wanted).unwrap_or_else(|| panic!("no {family} of {rule} in {after:#?}"))] as u64
    };
    for (index, count) in [("0", 500), ("default-deny", 700)] {
        assert_eq!((rule("netpol_rule_packets", index), rule("netpol_rule_bytes", index)), (count, count * FRAME));
    }
    let flows = host.flows();
    let of = |verdict: &str| {
        let is = |flow: &&serde_json::Value| {
            flow["verdict"] == verdict && flow["protocol"] == "UDP" && flow["destination"]["port"] == 9000
        };
        let found: Vec<_> = flows.iter().filter(is).collect();
        assert_eq!(found.len(), 1, "{found:#?}");
        (found[0]["packets"].as_u64().unwrap(), found[0]["bytes"].as_u64().unwrap())
    };
    assert_eq!((of("allowed"), of("denied")), ((500, 500 * FRAME), (700, 700 * FRAME)));
}

#[test]
fn rules_maps_and_publication_are_told() {
    let Scene { host, a, b, c, .. } = &loaded();
    let _server = b.serve_tcp(80);
    check(&[(a, Tcp(b.at(Family::V4, 80)), Answered), (c, Tcp(b.at(Family::V4, 80)), Silent)]);
    let flows = host.flows();
    let metrics = once(host);
    let rule = |family: &str, rule: &str| {
        let wanted = |name: &&String| name.starts_with(family) && name.contains(&format!("rule=\"{rule}\""));
        let found = metrics.keys().find(wanted).unwrap_or_else(|| panic!("no {family} of {rule} in {metrics:#?}"));
        assert!(found.contains("kind=\"NetworkPolicy\"") && found.contains("load.yaml:"), "{found}");
        metrics[found] as u64
    };
    assert_eq!((rule("netpol_rule_flows", "0"), rule("netpol_rule_flows", "default-deny")), (1, 1));
    let denied: Vec<_> = flows.iter().filter(|flow| flow["verdict"] == "denied").collect();
    assert_eq!(denied.len(), 1);
    assert!(rule("netpol_rule_packets", "default-deny") >= denied[0]["packets"].as_u64().unwrap());
    let usage = |metric: &str, map: &str| metrics[&format!("netpol_map_{metric}{{map=\"{map}\",family=\"ipv4\"}}")];
    let v4 = |flows: &[serde_json::Value], verdict: &str| {
        let is = |flow: &&serde_json::Value| {
            flow["verdict"] == verdict && flow["source"]["address"].as_str().unwrap().contains('.')
        };
        flows.iter().filter(is).count() as f64
    };
    // the host speaks to multicast groups meanwhile
    let later = host.flows();
    let remembered = v4(&flows, "allowed")..=v4(&later, "allowed");
    assert!(remembered.contains(&usage("entries", "flows")), "{remembered:?}");
    assert_eq!(usage("entries", "denials"), v4(&flows, "denied"));
    assert_eq!((usage("capacity", "flows"), usage("capacity", "denials")), (262_144.0, 16_384.0));
    assert_eq!(usage("pressure_ratio", "denials"), 1.0 / 16_384.0);
    assert_eq!((metrics["netpol_enforced"], metrics["netpol_generation"]), (1.0, 1.0));
    assert_eq!((metrics["netpol_policies"], metrics["netpol_endpoints"]), (1.0, 3.0));
    assert!(metrics["netpol_last_publication_duration_seconds"] > 0.0);
    assert!(metrics["netpol_last_publication_timestamp_seconds"] > 1.7e9);
}

#[test]
fn what_makes_room_for_others_is_counted() {
    const ROOM: u64 = 1024;
    // two entries each; more denials than there is room for
    const CONNECTIONS: u64 = 2000;
    const DENIALS: u64 = 20_000;
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    let policies = [ingress("b", &[from("a", &["9000/UDP"])])];
    host.load_with(&["--flows", &ROOM.to_string()], &[a, b, c], &policies);
    let made = |map: &str| {
        let metrics = once(host);
        let of = |metric: &str| metrics[&format!("netpol_map_{metric}{{map=\"{map}\",family=\"ipv4\"}}")] as u64;
        (of("entries") + of("evicted_entries"), of("evicted_entries"))
    };
    let (flows, denials) = (made("flows"), made("denials"));
    assert_eq!((flows.1, denials), (0, (0, 0)));
    for _ in 0..CONNECTIONS {
        let socket = a.enter(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
        socket.send_to(b"new", b.at(Family::V4, 9000)).unwrap();
    }
    let socket = c.enter(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    for port in (10_000..).take(DENIALS as usize) {
        socket.send_to(b"denied", b.at(Family::V4, port)).unwrap();
    }
    let (more_flows, more_denials) = (made("flows"), made("denials"));
    // ports may come twice, and the host itself speaks now and then
    let expected = 2 * CONNECTIONS * 9 / 10..=2 * CONNECTIONS + 20;
    assert!(expected.contains(&(more_flows.0 - flows.0)), "{more_flows:?} after {flows:?}");
    assert!(more_flows.1 >= more_flows.0 - ROOM, "{more_flows:?}");
    assert_eq!(more_denials.0, DENIALS);
    assert!(more_denials.1 >= DENIALS - u64::from(denial::ROOM), "{more_denials:?}");
}

/// What comes after each `begin`, up to the next `end`.
fn between<'a>(text: &'a str, begin: &str, end: char) -> Vec<&'a str> {
    text.split(begin).skip(1).filter_map(|rest| Some(rest.split_once(end)?.0)).collect()
}

#[test]
fn everything_that_dashboard_and_alerts_ask_for_is_served() {
    let Scene { host, a, b, c, .. } = &loaded();
    let _server = b.serve_tcp(80);
    check(&[(a, Tcp(b.at(Family::V4, 80)), Answered), (c, Tcp(b.at(Family::V4, 80)), Silent)]);
    let served: Vec<String> = once(host).into_keys().collect();
    let contrib = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib").join(name);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let dashboard: serde_json::Value = serde_json::from_str(&contrib("grafana-dashboard.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().expect("targets").clone());
    let mut asked: Vec<String> =
        targets.map(|target| target["expr"].as_str().expect("an expression").to_owned()).collect();
    let panels = asked.len();
    let alerts = contrib("alerts.yaml");
    asked.extend(alerts.lines().filter_map(|line| Some(line.trim().strip_prefix("expr: ")?.to_owned())));
    assert!(panels > 10 && asked.len() > panels, "{asked:#?}");
    for expression in &asked {
        let words = expression.split(|c: char| !c.is_alphanumeric() && c != '_');
        let metric = words.into_iter().find(|word| word.starts_with("netpol_")).expect("a metric");
        let series: Vec<_> = served.iter().filter(|series| series.split('{').next() == Some(metric)).collect();
        assert!(!series.is_empty(), "nobody serves {metric} of {expression}");
        // `instance` is given by who scrapes
        let labels = between(expression, "by (", ')').into_iter().flat_map(|list| list.split(", "));
        for label in labels.filter(|label| *label != "instance") {
            let has =
                |series: &&String| [",", "{"].iter().any(|before| series.contains(&format!("{before}{label}=\"")));
            assert!(series.iter().any(has), "{metric} has no {label}: {expression}");
        }
        // what is picked out by a label must be there, too
        for (label, values) in ["verdict", "reason", "map"].into_iter().flat_map(|label| {
            let of = |operator: &str| between(expression, &format!("{label}{operator}\""), '"');
            [of("="), of("=~")].concat().into_iter().map(move |values| (label, values)).collect::<Vec<_>>()
        }) {
            for value in values.split('|') {
                let wanted = format!("{label}=\"{value}\"");
                assert!(series.iter().any(|series| series.contains(&wanted)), "{metric} has no {wanted}: {expression}");
            }
        }
    }
}

#[test]
fn not_enforced_is_a_zero() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    let nothing = once(host);
    assert_eq!((nothing["netpol_enforced"], nothing["netpol_generation"]), (0.0, 0.0));
    host.load(&[a, b, c], &[ingress("b", &[])]);
    assert_eq!(once(host)["netpol_enforced"], 1.0);
    // another program is put in front
    let path = host.folder().join("load.yaml");
    let (other, state) = (host.bpffs().join("other"), host.folder().join("other"));
    let (other, state) = (other.to_str().unwrap(), state.to_str().unwrap());
    let program = env!("CARGO_BIN_EXE_netpol");
    host.run(program, &["--bpffs", other, "--state", state, "load", path.to_str().unwrap()]);
    let hidden = once(host);
    assert_eq!((hidden["netpol_enforced"], hidden["netpol_problems"]), (0.0, 3.0), "{hidden:#?}");
    host.run(program, &["--bpffs", other, "--state", state, "unload"]);
}

#[test]
fn the_port_serves_the_same_to_callers_by_a_known_name() {
    let Scene { host, .. } = &loaded();
    let served = host.serve(&["metrics", "--listen", "127.0.0.1:0"]);
    let answer = served.get("/metrics", "localhost");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert_eq!(series(&answer.body)["netpol_enforced"], 1.0);
    assert_eq!(served.get("/metrics", "evil.example").status, 403);
    assert_eq!(served.request("POST", "/metrics", "localhost").status, 405);
    assert_eq!(served.get("/", "localhost").status, 404);
}

#[test]
fn a_names_file_of_an_earlier_version_is_read() {
    let Scene { host, .. } = &loaded();
    let path = host.folder().join("state/names-1.json");
    let mut names: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    names.as_object_mut().unwrap().remove("published").unwrap();
    std::fs::write(&path, names.to_string()).unwrap();
    let metrics = once(host);
    assert_eq!(metrics["netpol_enforced"], 1.0);
    assert!(!metrics.contains_key("netpol_last_publication_timestamp_seconds"));
}
